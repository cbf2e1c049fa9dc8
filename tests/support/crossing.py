"""Small decoders whose rotary tables change with the length of the text, in several spellings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.support.cached import Decoder

COUNTED = "top = ReduceMax<keepdims=0>(positions)"  # torch: the largest position of the batch
COLUMNS = "counted = Sub(total, one) top = Squeeze(counted)"  # onnxruntime-genai's builder: the length of the mask
TURNED = (
    "floats = Cast<to=1>(positions) wide = Unsqueeze(floats, last) angles = Mul(wide, chosen)"
    " cos = Cos(angles) sin = Sin(angles) x0 = Identity(words)"
)
CHOSEN = "longer = GreaterOrEqual(top, limit) chosen = Where(longer, slower, frequencies)"
WHOLE = (
    "count = Add(top, step) longer = Greater(count, limit)"
    " chosen = If(longer) <then_branch = long () => (float[8] a) { a = Identity(slower) },"
    " else_branch = short () => (float[8] b) { b = Identity(frequencies) }>"
)
# two limits: three tables
TWICE = (
    "longer = GreaterOrEqual(top, limit) longest = GreaterOrEqual(top, further)"
    " some = Where(longer, slower, frequencies) chosen = Where(longest, slowest, some)"
)
# Dynamic NTK: the base grows with every token beyond the limit (transformers, _compute_dynamic_ntk_parameters)
ENDLESS = (
    "count = Add(top, step) grown = Max(count, limit) long = Cast<to=1>(grown) most = Cast<to=1>(limit)"
    " ratio = Div(long, most) base = Pow(ratio, powers) chosen = Div(frequencies, base)"
)
SPELLINGS = {
    "the largest position": f"{COUNTED} {CHOSEN} {TURNED}",
    "the length of the mask": f"{COLUMNS} {CHOSEN} {TURNED}",
    "a branch": f"{COUNTED} {WHOLE} {TURNED}",
}


def crossing_decoder(start: str, limit: int, *, further: int = 0, layers: int = 2) -> Decoder:
    """Return a decoder with tables that change beyond `limit` tokens, and again beyond `further`."""
    frequencies = 0.5 ** np.arange(8)
    numbers = {
        "limit": np.array(limit),
        "further": np.array(further),
        "slower": (frequencies / np.linspace(1.5, 6.0, 8)).astype(np.float32),
        "slowest": (frequencies / np.linspace(2.5, 16.0, 8)).astype(np.float32),
        "powers": np.linspace(0.2, 1.4, 8).astype(np.float32),
    }
    return replace(Decoder(layers=layers), start=start, weights=numbers)
