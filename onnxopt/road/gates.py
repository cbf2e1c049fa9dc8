"""Gates: what a user requires of a result; where it is not so, nothing is written and the command exits with 1."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.errors import GateError
from onnxopt.load.export.torch_pair import PAIR
from onnxopt.records.measurements import Race
from onnxopt.road.options import Options
from onnxopt.road.work import Worked


def require_met(parts: Sequence[Worked], options: Options) -> None:
    """Refuse a result that is not what was required of it.

    Args:
        parts: the graph, or encoder and decoder, with what is shipped of each.
        options: as the user wrote them.

    Raises:
        GateError: it is slower than required, or in another precision than was asked for.
    """
    for name, part in zip(PAIR if len(parts) > 1 else ("",), parts, strict=True):
        label = f"the {name}" if name else part.loaded.name
        found = part.evidence.quantization
        if options.quantize.require_precision and found is not None and not found.shipped:
            raise GateError(
                f"{found.asked} was required, and the float graph would be shipped: {found.reason}",
                where=label,
                hint="nothing was written; widen --budget, choose another --precision, add --allow-slower where it is "
                "the time, or drop --require-precision",
            )
        if options.tune.require_speedup is not None:
            _require_speedup(options.tune.require_speedup, part, label)


def _require_speedup(wanted: float, part: Worked, label: str) -> None:
    """Refuse what is seen to be less than so many times as fast as the original, its interval included."""
    decision = part.decision
    hint = "nothing was written; drop --require-speedup, or lower it, to have the result all the same"
    if not decision.races:
        raise GateError(f"{wanted:g}x was required, and no time could be measured here", where=label, hint=hint)
    race = next((one for one in decision.races if one.form == decision.form.name), None)
    high = 1.0 if race is None else race.high  # the original is as fast as itself
    if high < wanted:
        said = _said(race, decision.races)
        raise GateError(f"{wanted:g}x was required, and {said}", where=label, hint=hint)


def _said(race: Race | None, races: Sequence[Race]) -> str:
    """Say how fast what would be shipped is."""
    if race is not None:
        return f"the {race.form} graph is {race} over the workload"
    tried = ", ".join(f"the {one.form} graph is {one}" for one in races)
    return f"the original would be shipped: {tried}"
