"""Build tiny checkpoints with random weights, as a user would find them on disk: config, safetensors, tokenizer.

The architectures are real ones of transformers with small numbers in their configs, so every road that a full model
takes is taken, in milliseconds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

Kind = Literal["bert", "distilbert", "roberta", "vit", "gpt2"]
KINDS: tuple[Kind, ...] = ("bert", "distilbert", "roberta", "vit", "gpt2")

SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCABULARY = 200
POSITIONS = 160

_CLASSES: dict[str, dict[str, str]] = {
    "bert": {
        "feature-extraction": "BertModel",
        "fill-mask": "BertForMaskedLM",
        "text-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
    },
    "distilbert": {
        "feature-extraction": "DistilBertModel",
        "text-classification": "DistilBertForSequenceClassification",
    },
    "roberta": {"feature-extraction": "RobertaModel", "fill-mask": "RobertaForMaskedLM"},
    "vit": {"image-feature-extraction": "ViTModel", "image-classification": "ViTForImageClassification"},
    "gpt2": {"text-generation": "GPT2LMHeadModel", "feature-extraction": "GPT2Model"},
}


def tiny_checkpoint(
    kind: str,
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    task: str | None = None,
    tokenizer: bool = True,
    pooling: dict[str, Any] | None = None,
    labels: int | None = None,
) -> Path:
    """Write a checkpoint folder and return it.

    Args:
        kind: one of `KINDS`.
        folder: where to write; made when missing.
        layers: number of transformer blocks.
        hidden: width.
        heads: attention heads.
        task: which head; the default is the first of the kind.
        tokenizer: false leaves the tokenizer files out.
        pooling: content of `1_Pooling/config.json`; a `modules.json` with Transformer, Pooling and Normalize is added.
        labels: how many; 6, or the 2 of an answer's start and end, when not given.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    classes = _CLASSES[kind]
    model_class = getattr(transformers, classes[task] if task else next(iter(classes.values())))
    labels = labels or (2 if task == "question-answering" else 6)
    config = model_class.config_class(**_settings(kind, layers, hidden, heads), num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = model_class(config).eval()
        spread_weights(model)
    model.save_pretrained(folder, safe_serialization=True)
    if kind == "vit":
        _write_image_processor(folder, 30)
    elif tokenizer:
        tiny_tokenizer(folder, gpt2=kind == "gpt2")
    if pooling is not None:
        write_pooling(folder, pooling)
    return folder


def spread_weights(model: Any) -> None:
    """Draw all parameters from a wider distribution: fresh norms and tiny weights would hide wrong rewrites."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2)


def tiny_tokenizer(folder: Path, *, gpt2: bool = False) -> Path:
    """Write a word-level tokenizer of `VOCABULARY` words of CPython's help text; GPT-2 style has no CLS and SEP."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    counts: dict[str, int] = {}
    for word in re.findall(r"[a-z]+", " ".join(str(topics[key]) for key in sorted(topics)).lower()):
        counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: (-counts[word], word))
    words = [*SPECIALS.values(), *common][:VOCABULARY]
    inner = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=SPECIALS["unk_token"])
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if not gpt2:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
        )
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"} if gpt2 else SPECIALS
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=POSITIONS - 8, **specials).save_pretrained(folder)
    return folder


def write_pooling(folder: Path, pooling: dict[str, Any], *, normalize: bool = True) -> None:
    """Add the files that make a checkpoint a sentence-transformers model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def _settings(kind: str, layers: int, hidden: int, heads: int) -> dict[str, Any]:
    if kind == "vit":
        return {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": 2 * hidden,
            "image_size": 30,
            "patch_size": 10,
        }
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0}
    if kind == "gpt2":
        ends = {"bos_token_id": 3, "eos_token_id": 3}
        return {**common, **ends, "n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": POSITIONS}
    if kind == "distilbert":
        names = {"n_layers": layers, "dim": hidden, "n_heads": heads, "hidden_dim": 2 * hidden}
        return {**common, **names, "max_position_embeddings": POSITIONS}
    return {
        **common,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1 if kind == "roberta" else 2,
        # RoBERTa counts positions from pad_token_id + 1, as its real checkpoints do with id 1
        **({"pad_token_id": 1} if kind == "roberta" else {}),
    }


def _write_image_processor(folder: Path, size: int) -> None:
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": size, "width": size},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
