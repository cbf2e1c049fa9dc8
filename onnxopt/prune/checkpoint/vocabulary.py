"""Cut a vocabulary to what texts use, and rewrite the tokenizer so that text in still gives the same tokens.

What stays: the tokens of the texts, whatever merges lead to them, special and added tokens, bytes (a byte-level
alphabet or byte fallbacks), and single ASCII characters. Text of other words is then written in smaller pieces; what
has no piece at all becomes the unknown token, as it would have before with any other rare character.

Why the texts keep their tokens: WordPiece takes the longest piece, Unigram the likeliest path, and neither finds a new
one among fewer pieces; BPE applies the same merges in the same order, since every merge on the way to a kept token
stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.folder import read_json_object
from onnxopt.prune.selection import Ints
from onnxopt.texts.tokenizer import encoded

TOKENIZER = "tokenizer.json"
SLOW_FILES = ("vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
BATCH = 512
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
ASCII = frozenset(map(chr, range(33, 127)))


@dataclass(frozen=True)
class Cut:
    """Which ids stay.

    Attributes:
        kept: int64, old ids in order; the place of an id is its new one.
        before: ids there were.
    """

    kept: Ints
    before: int

    def new(self, old: int) -> int | None:
        """Return the new id of an old one, or None."""
        place = int(np.searchsorted(self.kept, old))
        return place if place < len(self.kept) and self.kept[place] == old else None


def choose_tokens(folder: Path, texts: Sequence[str], size: int, align: int = 1) -> Cut:
    """Choose the ids that stay.

    Args:
        folder: has tokenizer.json.
        texts: whose tokens stay.
        size: rows of the model's table.
        align: the number of ids that stay is a multiple of this: as many unused ones stay, the lowest first.

    Raises:
        InputError: when there is no tokenizer.json, its kind is unknown, or the texts are empty.
    """
    import tokenizers

    content = _content(folder)
    if not texts:
        raise InputError("there is no text whose tokens would stay", where="--prune vocab")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    used: set[int] = set()
    for start in range(0, len(texts), BATCH):
        for encoding in encoded(tokenizer, texts[start : start + BATCH]):
            used.update(encoding.ids)
    vocabulary = _vocabulary(content)
    used |= {int(one["id"]) for one in content.get("added_tokens", ())}
    used |= _always(content, vocabulary)
    if content["model"]["type"] == "BPE":
        used = _with_merges(used, vocabulary, _pairs(content["model"]["merges"]))
    used = {one for one in used if one < size}
    spare = (one for one in sorted(vocabulary.values()) if one not in used and one < size)
    while len(used) % align and (extra := next(spare, None)) is not None:
        used.add(extra)
    return Cut(np.array(sorted(used), np.int64), size)


def _content(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER
    if not path.is_file():
        raise InputError(f"no {TOKENIZER}, so the vocabulary cannot be cut", where=str(folder))
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = content["model"].get("type")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path)) from error
    if kind is None:  # older files do not name it
        kind = "BPE" if "merges" in content["model"] else "WordPiece"
        content["model"]["type"] = kind
    if kind not in ("BPE", "WordPiece", "Unigram", "WordLevel"):
        raise InputError(f"is a tokenizer of kind {kind}", where=str(path), hint="BPE, WordPiece and Unigram are known")
    return content


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    words = content["model"]["vocab"]
    if isinstance(words, list):  # Unigram: pieces with their scores
        return {str(piece[0]): place for place, piece in enumerate(words)}
    return {str(word): int(place) for word, place in words.items()}


def _always(content: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """Return ids that stay whatever the texts are: unknown, bytes, single ASCII characters."""
    model = content["model"]
    unknown = model.get("unk_token")
    kept = {vocabulary[unknown]} if isinstance(unknown, str) and unknown in vocabulary else set()
    if isinstance(model.get("unk_id"), int):
        kept.add(int(model["unk_id"]))
    byte_level = "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    prefix = str(model.get("continuing_subword_prefix") or "")
    for word, place in vocabulary.items():
        bare = word.removeprefix(prefix) if prefix else word
        bare = bare.removeprefix("▁") or word
        single = len(bare) == 1 and (bare in ASCII or byte_level)
        if single or (len(word) == 6 and word.startswith("<0x") and word.endswith(">")) or word == "▁":
            kept.add(place)
    return kept


def _pairs(merges: Iterable[Any]) -> list[tuple[str, str]]:
    found = []
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        found.append((str(left), str(right)))
    return found


def _with_merges(used: set[int], vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> set[int]:
    """Add the parts of every merge that makes a kept token, and theirs."""
    words = {place: word for word, place in vocabulary.items()}
    makes: dict[str, list[tuple[str, str]]] = {}
    for left, right in pairs:
        makes.setdefault(left + right, []).append((left, right))
    stack, kept = list(used), set(used)
    while stack:
        for pair in makes.get(words.get(stack.pop(), ""), ()):
            for part in pair:
                place = vocabulary.get(part)
                if place is not None and place not in kept:
                    kept.add(place)
                    stack.append(place)
    return kept


def rewrite_tokenizer(folder: Path, cut: Cut) -> list[str]:
    """Rewrite the tokenizer's files in a folder for the ids that stay; return the names of files that are left out.

    Args:
        folder: a copy of the checkpoint's files; changed in place.
        cut: which ids stay.
    """
    content = _content(folder)
    model = content["model"]
    vocabulary = _vocabulary(content)
    kept = {word: new for word, old in vocabulary.items() if (new := cut.new(old)) is not None}
    if isinstance(model["vocab"], list):
        model["vocab"] = [piece for place, piece in enumerate(model["vocab"]) if cut.new(place) is not None]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = cut.new(model["unk_id"])
    else:
        model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    if model.get("merges"):
        as_text = isinstance(model["merges"][0], str)
        pairs = [
            pair for pair in _pairs(model["merges"]) if pair[0] in kept and pair[1] in kept and "".join(pair) in kept
        ]
        model["merges"] = [" ".join(pair) for pair in pairs] if as_text else [list(pair) for pair in pairs]
    for one in content.get("added_tokens", ()):
        one["id"] = _new(cut, one["id"])
    content["post_processor"] = _renumbered(content.get("post_processor"), cut)
    if isinstance(content.get("padding"), dict) and "pad_id" in content["padding"]:
        content["padding"]["pad_id"] = _new(cut, content["padding"]["pad_id"])
    (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if (folder / "vocab.txt").is_file():
        ordered = sorted(kept, key=lambda word: kept[word])
        (folder / "vocab.txt").write_text("\n".join(ordered) + "\n", encoding="utf-8")
    _renumber_settings(folder, cut)
    gone = [name for name in SLOW_FILES if (folder / name).is_file()]
    for name in gone:
        (folder / name).unlink()  # they would bring the old ids back; tokenizer.json says it all
    return gone


def _new(cut: Cut, old: Any) -> int:
    """Return the new id of a token that always stays."""
    found = cut.new(int(old))
    if found is None:
        raise InputError(f"the special token {old} is not among the rows of the model", where=TOKENIZER)
    return found


def _renumbered(part: Any, cut: Cut) -> Any:
    """Renumber a post-processor: templates list ids by name, the older kinds hold pairs of a token and its id."""
    if isinstance(part, dict):
        done = {key: _renumbered(value, cut) for key, value in part.items()}
        if isinstance(part.get("ids"), list) and "tokens" in part:
            done["ids"] = [_new(cut, one) for one in part["ids"]]
        for key in ("sep", "cls"):
            pair = part.get(key)
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int):
                done[key] = [pair[0], _new(cut, pair[1])]
        return done
    return [_renumbered(one, cut) for one in part] if isinstance(part, list) else part


def _renumber_settings(folder: Path, cut: Cut) -> None:
    """Renumber ids in the tokenizer's and the model's own settings."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = read_json_object(path)
        named = settings.get("added_tokens_decoder")
        if isinstance(named, dict):
            settings["added_tokens_decoder"] = {str(_new(cut, int(old))): token for old, token in named.items()}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    path = folder / "added_tokens.json"
    if path.is_file():
        words = {word: _new(cut, old) for word, old in read_json_object(path).items()}
        path.write_text(json.dumps(words, ensure_ascii=False) + "\n", encoding="utf-8")
    path = folder / "generation_config.json"
    if path.is_file():
        path.write_text(json.dumps(renumber_ids(read_json_object(path), cut), indent=2) + "\n", encoding="utf-8")


def renumber_ids(settings: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    """Return settings with every `..._token_id` and every list of tokens renumbered; ids that are gone are left out."""
    done: dict[str, Any] = {}
    for key, value in settings.items():
        if (key.endswith(("_token_id", "_token_ids")) and value is not None) or (
            key in ("suppress_tokens", "begin_suppress_tokens") and isinstance(value, list)
        ):
            done[key] = _renumbered_ids(value, cut)
        else:
            done[key] = value
    return done


def _renumbered_ids(value: Any, cut: Cut) -> Any:
    if isinstance(value, list):
        return [new for old in value if isinstance(old, int) and (new := cut.new(old)) is not None]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    return cut.new(value)
