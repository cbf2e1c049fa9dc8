"""Prune an opened checkpoint and write it as a checkpoint again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.host.disk import needing
from onnxopt.host.folders import staged
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.folder import assets_of
from onnxopt.load.checkpoint.opened import Opened
from onnxopt.prune.checkpoint.heads import shrink_heads
from onnxopt.prune.checkpoint.network import Pruned, choose_layers, cut_vocabulary, keep_layers, shrink_ffn
from onnxopt.prune.checkpoint.vocabulary import Cut, choose_tokens, renumber_ids, rewrite_tokenizer
from onnxopt.prune.spec import PruneSpec
from onnxopt.spec import Say
from onnxopt.texts.files import read_texts


def prune_opened(opened: Opened, spec: PruneSpec, batches: Sequence[Mapping[str, Any]], say: Say) -> list[Pruned]:
    """Prune a network in place; its config follows.

    Args:
        opened: the checkpoint.
        spec: layers, heads, ffn and vocabulary; what a config cannot say is refused.
        batches: calibration feeds, int64 [rows, tokens].
        say: told what happens.

    Returns:
        What was made smaller; `write_opened` needs to know of a vocabulary that was cut.

    Raises:
        InputError: for parts that only a graph can lose.
    """
    alien = [kind for kind in spec.amounts if kind not in ("layers", "heads", "ffn")]
    alien += ["zeros"] if spec.zeros else []
    if alien:
        raise InputError(
            f"{alien[0]} is pruned on a graph, not in a checkpoint",
            where="--prune",
            hint="use `onnxopt optimize --prune`, or leave it out of the student",
        )
    report: list[Pruned] = []
    network, config = opened.network, opened.config
    if "layers" in spec.amounts:
        count = int(config.num_hidden_layers)
        say("how much each layer changes")
        kept, changes = choose_layers(network, config, spec.amounts["layers"].of(count), spec, batches)
        keep_layers(network, config, kept)
        gone = [index for index in range(count) if index not in kept]
        shown = ", ".join(f"{index} ({changes[index]:.3f})" if changes else str(index) for index in gone)
        report.append(Pruned("layers", "layers", count, len(kept), note=f"gone: {shown}"))
    if "heads" in spec.amounts:
        report += shrink_heads(network, config, spec, batches, say)
    if "ffn" in spec.amounts:
        report += shrink_ffn(network, config, spec, batches, say)
    return report


def cut_opened(opened: Opened, spec: PruneSpec) -> tuple[Cut, Pruned]:
    """Cut the vocabulary of a network in place to the tokens of the texts that the spec names."""
    if spec.vocabulary is None:
        raise InputError("no texts are named", where="--prune vocab")
    config = opened.config
    texts = read_texts(spec.vocabulary, "line")
    cut = choose_tokens(opened.folder, texts, int(config.get_text_config().vocab_size), spec.align)
    names = cut_vocabulary(opened.network, config, cut.kept)
    for one in (config, getattr(opened.network, "generation_config", None)):
        for key, value in renumber_ids(vars(one), cut).items() if one is not None else ():
            setattr(one, key, value)
    note = f"the tokens of {len(texts)} texts of {spec.vocabulary.name}, special tokens, bytes and ASCII"
    return cut, Pruned("vocab", ", ".join(names), cut.before, len(cut.kept), note=note)


def write_opened(
    opened: Opened, folder: Path, cut: Cut | None = None, *, beside: Mapping[str, str] | None = None
) -> None:
    """Write a checkpoint folder that transformers and `optimize` read, and prove that it can be read again.

    Args:
        opened: a network that was changed.
        folder: to write.
        cut: the ids that stayed, when the vocabulary was cut: the tokenizer is rewritten.
        beside: more files of text, by name.

    Raises:
        InputError: when the weights do not fit the config any more.
    """
    with staged(folder) as fresh, needing(4 * opened.parameters):
        for path in assets_of(opened.folder):
            copy = fresh / path.relative_to(opened.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        if cut is not None:
            rewrite_tokenizer(fresh, cut)
        with quiet():
            opened.network.save_pretrained(fresh)
            _, found = type(opened.network).from_pretrained(fresh, output_loading_info=True)
        broken = [*found["missing_keys"], *found["unexpected_keys"], *map(str, found.get("mismatched_keys", ()))]
        if broken:
            raise InputError(f"the config does not describe the pruned weights: {broken[0]}", where=str(folder))
        for name, text in (beside or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")
