"""Bring a wave to another rate."""

from __future__ import annotations

import math

import numpy as np

from onnxopt.errors import InputError
from onnxopt.spec import Array

_RATES = (1_000, 768_000)
_ZEROS = 32  # zero crossings of the filter on each side
_ROLL_OFF = 0.95  # of half the lower rate: what passes
_BETA = 9.0  # of Kaiser's window: what does not pass is 90 dB down


def resample(sound: Array, rate: int, wanted: int, *, where: str = "") -> Array:
    """Bring a wave to another rate, with a windowed sinc in as many phases as the rates have to each other.

    Smith, J. O., "Digital Audio Resampling": what lies above half the lower rate is taken out, since it would come back
    as another pitch.

    Args:
        sound: float32 [samples].
        rate: samples a second that it has.
        wanted: samples a second that are wanted.
        where: its file, for messages.

    Returns:
        float32 [samples · wanted / rate, rounded up].

    Raises:
        InputError: one of the rates is none that sounds have.
    """
    if not all(_RATES[0] <= one <= _RATES[1] for one in (rate, wanted)):
        raise InputError(
            f"has {rate} samples a second, the model wants {wanted}; rates from {_RATES[0]} to {_RATES[1]} are read",
            where=where,
        )
    if rate == wanted:
        return sound
    shared = math.gcd(rate, wanted)
    phases, step = wanted // shared, rate // shared
    cutoff = _ROLL_OFF * min(1.0, wanted / rate)  # of half the rate that the wave has
    reach = math.ceil(_ZEROS / cutoff)
    places = np.arange(-reach, reach + 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (reach, reach + 1)), places.size)
    made = np.zeros(-(-sound.size * wanted // rate), np.float32)
    for phase in range(min(phases, made.size)):
        whole, part = divmod(phase * step, phases)
        distance = places - part / phases
        weight = np.i0(_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / (reach + 1)) ** 2))) / np.i0(_BETA)
        taps = (cutoff * np.sinc(cutoff * distance) * weight).astype(np.float32)
        own = made[phase::phases]
        own[:] = windows[whole::step][: own.size] @ taps
    return made
