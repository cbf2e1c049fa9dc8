"""Write the model card of gpt2-mini from what its training measured: `python -m training.card`.

The samples in it are what the weights write on this machine; the rest comes from `training.json`. The hash of the
weights goes into the recipe too, which pins them.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from training.gpt2_mini import TARGET, model_config

RECIPE = TARGET.parent.parent / "gpt2_mini.py"
PROMPT = "The import statement"
NEW_TOKENS = 80
PENALTY = 1.2
FIRST_STEPS = 2400  # of the run that the resumed one started from
TEMPLATE = Path(__file__).with_name("card.md")


def main() -> int:
    """Write the card and pin the weights."""
    parser = argparse.ArgumentParser(description="Write the model card of gpt2-mini and pin its weights in the recipe.")
    parser.parse_args()
    write_card(TARGET)
    pin(TARGET)
    print(f"written: {TARGET / 'README.md'}, {RECIPE}")
    return 0


def write_card(folder: Path) -> None:
    """Write README.md beside the weights of a folder."""
    facts: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    text, settings, outcome = facts["text"], facts["settings"], facts["outcome"]
    before = facts.get("resumed", {"step": 0, "seconds": 0.0})
    updates = f"{outcome['step']:,} of {settings['steps']:,}"
    command = ".venv/bin/python -m training.gpt2_mini --bfloat16"
    if before["step"]:
        updates += f", behind {before['step']:,} of an earlier run"
        first = f"{command} --steps {FIRST_STEPS:,} --out build/gpt2-mini-first".replace(",", "")
        command = f"{first}  # stopped after {before['step']}\n{command} --resume build/gpt2-mini-first --seed 1 "
        command += f"--steps {settings['steps']} --learning-rate {settings['learning_rate']:g}"
    context = model_config().n_positions
    greedy, sampled = _samples(folder)
    named = [f"{name} {version}" for name, version in text["packages"].items()]
    card = TEMPLATE.read_text(encoding="utf-8").format(
        **facts,
        prompt=PROMPT,
        penalty=PENALTY,
        context=context,
        batch=settings["chunks"] * context,
        updates=updates,
        command=command,
        minutes=(outcome["seconds"] + before["seconds"]) / 60,
        size=(folder / "model.safetensors").stat().st_size,
        greedy=_quoted(greedy),
        sampled=_quoted(sampled),
        packages=" and ".join((", ".join(named[:-1]), named[-1])),
        documents=text["documents"] + text["held_out_documents"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def pin(folder: Path) -> None:
    """Write the hash of the weights into the recipe."""
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    recipe = RECIPE.read_text(encoding="utf-8")
    RECIPE.write_text(re.sub(r'sha256="\w{64}"', f'sha256="{facts["sha256"]}"', recipe), encoding="utf-8")


def _samples(folder: Path) -> tuple[str, str]:
    """Return what the model writes: greedy, and drawn."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    common = {"max_new_tokens": NEW_TOKENS, "pad_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    sampled = network.generate(**prompt, **common)
    greedy = network.generate(**prompt, **common, do_sample=False, repetition_penalty=PENALTY)
    first, second = (tokenizer.decode(row[0], skip_special_tokens=True).strip() for row in (greedy, sampled))
    return first, second


def _quoted(text: str) -> str:
    return text.replace("\n", "\n>\n> ")


if __name__ == "__main__":
    raise SystemExit(main())
