"""Compare sentences: `python examples/embed.py build/minilm "a cat sleeps" "a kitten naps" "shares fell"`.

What to feed is read from `io.json`, as a program in any other language would do it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

import onnxopt


def embed(folder: Path, texts: list[str]) -> npt.NDArray[np.float32]:
    """Return float32 [texts, size], one vector of length 1 for each text.

    Args:
        folder: an artifact of a sentence encoder.
        texts: what to embed, all in one batch.
    """
    told = json.loads((folder / "io.json").read_text(encoding="utf-8"))
    words = told["tokenizer"]
    tokenizer = Tokenizer.from_file(str(folder / words["file"]))
    tokenizer.enable_padding(pad_id=words["pad_id"], direction=words["padding_side"])
    if words["max_length"]:
        tokenizer.enable_truncation(words["max_length"])
    rows = tokenizer.encode_batch([text.lower() if words["lowercase"] else text for text in texts])
    known = {
        "ids": [row.ids for row in rows],
        "mask": [row.attention_mask for row in rows],
        "types": [row.type_ids for row in rows],
    }
    feeds = {one["name"]: np.array(known[one["meaning"]], one["dtype"]) for one in told["inputs"]}
    return onnxopt.Session(folder).run(feeds, ["sentence_embedding"])["sentence_embedding"]


def main() -> None:
    """Print the cosine of each pair of texts."""
    parser = argparse.ArgumentParser(description="Compare sentences.")
    parser.add_argument("folder", type=Path, help="an artifact of a sentence encoder")
    parser.add_argument("texts", nargs="+")
    arguments = parser.parse_args()
    vectors = embed(arguments.folder, arguments.texts)
    cosines = vectors @ vectors.T
    for first, one in enumerate(arguments.texts):
        for second, other in enumerate(arguments.texts[:first]):
            print(f"{cosines[first, second]:.4f}  {other} · {one}")


if __name__ == "__main__":
    main()
