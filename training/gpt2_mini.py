"""Train the sample gpt2-mini from nothing: `python -m training.gpt2_mini` writes models/weights/gpt2-mini.

`python -m training.card` then writes its model card and pins it in its recipe.

A GPT-2 of 6 layers, width 192 and 6 heads with a byte-level BPE of 4,096 tokens, on the English text that `text.py`
finds beside this Python. Whenever the held-out loss is the lowest so far, the weights are written, so that it can be
stopped at any time; how far it came is in `training.json`, the facts behind the model card.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from training.text import PACKAGES, documents

TARGET = Path(__file__).resolve().parent.parent / "models" / "weights" / "gpt2-mini"
END = "<|endoftext|>"
VOCABULARY = 4096
SEED = 0
SAMPLING = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 40,
    "repetition_penalty": 1.2,
}  # what its text reads best with
_EVALUATION_BATCH = 16
_PAUSE_SECONDS = 2.0
_LEAST_LEARNING_RATE = 0.05  # of the highest, at the end of the cosine


@dataclass(frozen=True)
class Settings:
    """What decides the outcome.

    Attributes:
        steps: weight updates.
        chunks: pieces of text an update, each as long as the model's context.
        lengths: tokens a sequence, in turns: a chunk is cut into sequences of that length. Short ones are quicker, long
            ones teach the late positions.
        reference_repeats: how often the language reference, the best prose of all, is read for one time of the rest.
        learning_rate: the highest one, of the matrices of the layers; cosine after a linear start.
        other_rate: the highest one of tables, gains and biases.
        warmup: updates of the linear start.
        weight_decay: of the matrices of the layers.
        clip: longest gradient.
        every: updates between evaluations.
    """

    steps: int = 2400
    chunks: int = 4
    lengths: tuple[int, ...] = (128, 128, 256, 512)
    reference_repeats: int = 4
    learning_rate: float = 4e-3
    other_rate: float = 3e-3
    warmup: int = 60
    weight_decay: float = 0.1
    clip: float = 1.0
    every: int = 300


def main() -> int:
    """Read the text, make the tokenizer, train, write."""
    parser = argparse.ArgumentParser(description="Train the sample gpt2-mini on the documentation beside Python.")
    parser.add_argument("--out", type=Path, default=TARGET, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="weight updates (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: %(default)s)")
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16, where the processor can")
    parser.add_argument("--resume", type=Path, help="folder with weights of an earlier run to start from")
    parser.add_argument("--seed", type=int, default=SEED, help="of the order of the text (default: %(default)s)")
    parser.add_argument("--pause-file", type=Path, help="wait while this file exists")
    arguments = parser.parse_args()
    settings = Settings(steps=arguments.steps, learning_rate=arguments.learning_rate)

    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    found = documents()
    training = [one.text for one in found if not one.held_out]
    reference = [one.text for one in found if not one.held_out and one.origin.startswith("topics/")]
    held_out = [one.text for one in found if one.held_out]
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(training)
    tokenizer.save_pretrained(arguments.out)
    facts = {
        "text": {
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "documents": len(training),
            "characters": sum(map(len, training)),
            "sha256": hashlib.sha256("\0".join(training).encode()).hexdigest(),
            "held_out_documents": len(held_out),
            "held_out_characters": sum(map(len, held_out)),
        },
        "settings": asdict(settings) | {"seed": SEED, "bfloat16": arguments.bfloat16},
    }
    again = reference * (settings.reference_repeats - 1)
    stream, held = encode(tokenizer, [*training, *again]), encode(tokenizer, held_out)
    print(f"{len(stream):,} tokens to train on, {len(held):,} held out", flush=True)
    facts["text"] |= {"tokens": len(stream), "held_out_tokens": len(held)}
    if arguments.resume:
        facts["resumed"] = json.loads((arguments.resume / "training.json").read_text(encoding="utf-8"))["outcome"]
    train(
        stream,
        held,
        settings,
        arguments.out,
        facts,
        start=arguments.resume,
        seed=arguments.seed,
        pause=arguments.pause_file,
        bfloat16=arguments.bfloat16,
    )
    return 0


def make_tokenizer(texts: Sequence[str]) -> Any:
    """Learn GPT-2's byte-level BPE from texts; the end of text is the last token, as in GPT-2's own vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    vocabulary = learnt["vocab"] | {END: VOCABULARY - 1}
    merges = [tuple(pair) for pair in learnt["merges"]]
    return GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=model_config().n_positions)


def model_config() -> Any:
    """Return the architecture."""
    from transformers import GPT2Config

    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=VOCABULARY,
        n_positions=512,
        n_embd=192,
        n_layer=6,
        n_head=6,
        activation_function="gelu_new",
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def encode(tokenizer: Any, texts: Iterable[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the tokens of all texts as one row, int64 [N], with the end of text after each."""
    end = tokenizer.convert_tokens_to_ids(END)
    return np.concatenate([[*tokenizer(text, verbose=False)["input_ids"], end] for text in texts]).astype(np.int64)


def train(
    stream: np.ndarray[Any, np.dtype[np.int64]],
    held: np.ndarray[Any, np.dtype[np.int64]],
    settings: Settings,
    target: Path,
    facts: dict[str, Any],
    *,
    start: Path | None,
    seed: int,
    pause: Path | None,
    bfloat16: bool,
) -> None:
    """Train, from nothing or from weights in `start`; write them whenever the held-out loss is the lowest so far."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    # plain attention is quicker to train on a CPU than the fused one
    if start:
        network = AutoModelForCausalLM.from_pretrained(start, attn_implementation="eager", dtype=torch.float32).train()
    else:
        network = AutoModelForCausalLM.from_config(model_config(), attn_implementation="eager")
    optimizers = _optimizers(network, settings)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: _factor(step, settings)) for one in optimizers]
    lowest, seconds, taught = math.inf, 0.0, 0.0
    for step, batch in enumerate(_batches(stream, settings, network.config.n_positions, seed), start=1):
        while pause and pause.exists():
            time.sleep(_PAUSE_SECONDS)
        began = time.perf_counter()
        tokens = torch.from_numpy(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(tokens[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        taught += loss.item()
        seconds += time.perf_counter() - began
        if step % settings.every and step != settings.steps:
            continue
        found = held_out_loss(network, held)
        mean = taught / ((step - 1) % settings.every + 1)
        print(f"step {step}, {seconds:.0f} s: loss {mean:.3f}, held out {found:.3f}", flush=True)
        taught = 0.0
        if found < lowest:
            lowest = found
            outcome = {"step": step, "training_loss": mean, "held_out_loss": found, "seconds": seconds}
            write(network, target, facts | {"outcome": outcome | {"held_out_perplexity": math.exp(found)}})


def _optimizers(network: Any, settings: Settings) -> list[Any]:
    """Return Muon for the matrices of the layers (Jordan et al. 2024), AdamW for all else."""
    import torch

    named = list(network.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and ".h." in name]
    others = [weight for name, weight in named if weight.ndim != 2 or ".h." not in name]
    return [
        torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _factor(step: int, settings: Settings) -> float:
    """Return the share of the highest learning rate at a step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return _LEAST_LEARNING_RATE + (1 - _LEAST_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def _batches(
    stream: np.ndarray[Any, np.dtype[np.int64]], settings: Settings, context: int, seed: int
) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Yield batches, int64 [sequences, length + 1]: every epoch sees all tokens once, cut at other places."""
    random = np.random.default_rng(seed)
    starts: list[int] = []
    for step in range(settings.steps):
        while len(starts) < settings.chunks:
            shift = int(random.integers(context))
            starts += [int(start) for start in random.permutation(np.arange(shift, len(stream) - context, context))]
        chosen, starts = starts[: settings.chunks], starts[settings.chunks :]
        length = settings.lengths[step % len(settings.lengths)]
        places = [start + offset for start in chosen for offset in range(0, context, length)]
        yield np.stack([stream[place : place + length + 1] for place in places])


def held_out_loss(network: Any, held: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Return the mean loss, in nats a token, over tokens cut into sequences of the whole context, side by side."""
    import torch
    from torch.nn import functional

    sequence = network.config.n_positions
    count = (len(held) - 1) // sequence
    rows = np.stack([held[start * sequence : (start + 1) * sequence + 1] for start in range(count)])
    losses = []
    network.eval()
    with torch.inference_mode():
        for start in range(0, count, _EVALUATION_BATCH):
            tokens = torch.from_numpy(rows[start : start + _EVALUATION_BATCH])
            logits = network(tokens[:, :-1], use_cache=False).logits
            losses.append(functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").flatten())
    network.train()
    return float(torch.cat(losses).mean())


def write(network: Any, target: Path, facts: dict[str, Any]) -> None:
    """Write the weights in float16, which halves the file, and what is known of them."""
    import torch
    from transformers import GPT2LMHeadModel

    copy = GPT2LMHeadModel(network.config)
    copy.load_state_dict(network.state_dict())
    copy.generation_config.update(**SAMPLING)
    copy.to(torch.float16).save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    today = datetime.now(timezone.utc).date().isoformat()
    versions = {"torch": torch.__version__}
    content = facts | {"sha256": digest, "date": today, "versions": versions}
    (target / "training.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
