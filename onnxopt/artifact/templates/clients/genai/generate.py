"""Write on from a text with onnxruntime-genai, or check that it writes what the artifact's maker expects.

python generate.py "The capital of France is"
python generate.py            # checks expected.json; exit code 1 when a token differs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime_genai as og

HERE = Path(__file__).resolve().parent


def write(model: og.Model, ids: list[int], count: int) -> list[int]:
    """Return the greedy tokens after a prompt."""
    options = og.GeneratorParams(model)
    options.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=len(ids) + count)
    generator = og.Generator(model, options)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(ids) :]]


def main() -> int:
    """Run the command."""
    model = og.Model(str(HERE.parents[1]))
    tokenizer = og.Tokenizer(model)
    if len(sys.argv) > 1:
        ids = tokenizer.encode(" ".join(sys.argv[1:])).tolist()
        print(tokenizer.decode(write(model, ids, 60)))
        return 0
    for case in json.loads((HERE / "expected.json").read_text(encoding="utf-8")):
        found = write(model, case["prompt"], len(case["tokens"]))[: len(case["tokens"])]
        if found != case["tokens"]:
            print(f"differs: after {case['text']!r} it writes {found}, expected {case['tokens']}")
            return 1
        print(f"equal: {case['text']!r} + {tokenizer.decode(found)!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
