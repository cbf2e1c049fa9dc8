"""The one table of numbers on the README, from what the other benchmarks recorded: `python -m bench.headline`.

It measures nothing: `make bench`, `make bench-encoder` and `make bench-quantized` do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import decode, encoder, quantized, run, table

MARKS = ("<!-- headline -->", "<!-- /headline -->")
DEFAULT, RAGGED = "default", "ragged 32x256"
# peer and request of MiniLM; the ragged batch is 26 % filled, which its peer was told
MINILM = (
    ("onnxopt", "8x128"),
    ("onnxopt-ragged", RAGGED),
    ("onnxopt-int8", "8x128"),
)
SMOLLM2 = (("int8", "prompt"), ("int4", "alone"))


def main() -> int:
    """Write the table into a file, or show it."""
    parser = argparse.ArgumentParser(description="Write the table of numbers of the README from recorded results.")
    parser.add_argument("--table", type=Path, help="write it into this file")
    path = parser.parse_args().table
    if path is None:
        print(recorded())
    else:
        table.put(path, MARKS, recorded())
        print(f"table written to {path}")
    return 0


def recorded() -> str:
    """Return the table of the results that lie in this repository."""
    minilm, judged, smollm2 = (
        json.loads(path.read_text(encoding="utf-8")) for path in (run.RESULT, encoder.RESULT, quantized.RESULT)
    )
    return render(minilm, judged, smollm2)


def render(minilm: Mapping[str, Any], judged: Mapping[str, Any], smollm2: Mapping[str, Any]) -> str:
    """Return the table with its caption.

    Args:
        minilm: what `bench.run` recorded.
        judged: what `bench.encoder` recorded.
        smollm2: what `bench.quantized` recorded.
    """
    peers = {peer["name"]: peer for peer in minilm["peers"]}
    rows = [_minilm(peers, name, shape, judged) for name, shape in MINILM]
    rows += [_smollm2(smollm2, name, key) for name, key in SMOLLM2]
    machine, versions = minilm["machine"], minilm["versions"]
    caption = (
        f"{minilm['threads']} threads of {table.escape(str(machine['cpu']))}, onnxruntime {versions['onnxruntime']}, "
        f"torch {versions['torch']}, {str(minilm['created'])[:10]}; of int8 the mean cosine over texts that nothing "
        "was fitted to, and the perplexity on such text."
    )
    head = ["model", "request", "onnxopt", "times faster", "answer"]
    return f"{caption}\n\n{table.lines(head, rows)}\n"


def _minilm(peers: Mapping[str, Mapping[str, Any]], name: str, shape: str, judged: Mapping[str, Any]) -> list[str]:
    """Return the row of an encoder: one request beside the default export."""
    peer = peers[name]
    latency, precision = peer["latency"][shape], peer["precision"]
    sizes = shape.removeprefix("ragged ").replace("x", " × ")
    request = f"{sizes} tokens" + (", 26 % of them real" if shape == RAGGED else "")
    kept = f"cosine {judged['cosine']['mean']:.4f}" if precision == "int8" else _error(peer)
    return [
        f"MiniLM, {precision}",
        request,
        f"{latency['p50_ms']:,.0f} ms",
        f"{latency['speedup']:.2f} × the default export",
        kept,
    ]


def _error(peer: Mapping[str, Any]) -> str:
    return f"within {max(float(error) for error in peer['errors'].values()):.0e} of torch, any padding"


def _smollm2(result: Mapping[str, Any], name: str, key: str) -> list[str]:
    """Return the row of a language model: one request beside llama.cpp."""
    request, unit = {
        "prompt": ("a prompt of 256 tokens", "tokens/s read"),
        "alone": ("one token behind 256", "tokens/s written"),
    }[key]
    speed, _ = decode.rate(result, name, key)
    more = result["perplexity"][name] / result["perplexity"]["float"] - 1
    return [
        quantized.TITLES[name].replace("onnxopt --precision ", "SmolLM2-135M, "),
        request,
        f"{speed:,.0f} {unit}",
        f"{decode.faster(result, name, 'llama', key):.2f} × llama.cpp, Q4_1",
        f"perplexity {more:+.1%}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
