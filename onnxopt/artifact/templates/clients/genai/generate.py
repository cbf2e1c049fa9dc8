"""Write on from a text with onnxruntime-genai, or check that it writes what the artifact's maker expects.

python generate.py "The capital of France is"     # in the chat template, where the model has one; --plain without
python generate.py                                # checks golden/texts.json

Exit code 0: every text is reproduced; 1: ids or tokens differ; 2: the artifact cannot be read or run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime_genai as og

ARTIFACT = Path(__file__).resolve().parents[2]


def write(model: og.Model, ids: list[int], count: int) -> list[int]:
    """Return the greedy tokens after a prompt."""
    options = og.GeneratorParams(model)
    options.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=len(ids) + count)
    generator = og.Generator(model, options)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(ids) :]]


def in_template(tokenizer: og.Tokenizer, text: str) -> str:
    """Return what a user says in the model's chat template."""
    messages = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


def with_marks(ids: list[int]) -> list[int]:
    """Return the row of a text: onnxruntime-genai tokenizes without the special tokens that the model wants around."""
    described = json.loads((ARTIFACT / "io.json").read_text(encoding="utf-8")).get("tokenizer", {})
    before, after = described.get("marks", {}).get("single", ([], []))
    return [*before, *ids, *after]


def encoded(tokenizer: og.Tokenizer, text: str, *, chat: bool) -> list[int]:
    """Return the ids that the model reads; a chat template writes the special tokens itself."""
    ids = [int(token) for token in tokenizer.encode(text)]
    return ids if chat else with_marks(ids)


def difference(model: og.Model, tokenizer: og.Tokenizer, case: dict[str, object]) -> str:
    """Return in words what differs from a golden text, or an empty string."""
    text, wanted, chat = str(case["text"]), [int(token) for token in case["expected"]], bool(case.get("chat"))
    if chat and in_template(tokenizer, text) != case["written"]:
        return f"the chat template makes {in_template(tokenizer, text)!r} of {text!r}, expected {case['written']!r}"
    ids = [int(token) for token in case["ids"]]
    made = encoded(tokenizer, str(case["written"]) if chat else text, chat=chat)
    if made != ids:
        return f"the tokenizer makes {made} of {text!r}, expected {ids}"
    found = write(model, ids, len(wanted))[: len(wanted)]
    return "" if found == wanted else f"after {text!r} it writes {found}, expected {wanted}"


def main() -> int:
    """Run the command; whatever stops it is said in one line."""
    try:
        return run()
    except Exception as error:  # noqa: BLE001 - the library raises whatever its readers do
        print(f"unusable: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


def run() -> int:
    """Write on from the words of the command line or, without any, check the golden texts."""
    model = og.Model(str(ARTIFACT))
    tokenizer = og.Tokenizer(model)
    plain = "--plain" in sys.argv[1:] or not has_template()
    words = " ".join(word for word in sys.argv[1:] if word != "--plain")
    if words:
        ids = encoded(tokenizer, words if plain else in_template(tokenizer, words), chat=not plain)
        print(tokenizer.decode(write(model, ids, 60)))
        return 0
    golden = ARTIFACT / "golden" / "texts.json"
    if not golden.is_file():
        raise FileNotFoundError("the artifact has no golden texts to check; give it a text")
    for case in json.loads(golden.read_text(encoding="utf-8"))["cases"]:
        said = difference(model, tokenizer, case)
        if said:
            print(f"differs: {said}")
            return 1
        chat = " in the chat template" if case.get("chat") else ""
        print(f"equal: {case['text']!r}{chat} + {tokenizer.decode([int(token) for token in case['expected']])!r}")
    return 0


def has_template() -> bool:
    """Tell whether the model's tokenizer has a chat template."""
    settings = ARTIFACT / "tokenizer_config.json"
    inside = settings.is_file() and "chat_template" in json.loads(settings.read_text(encoding="utf-8"))
    return inside or (ARTIFACT / "chat_template.jinja").is_file()


if __name__ == "__main__":
    sys.exit(main())
