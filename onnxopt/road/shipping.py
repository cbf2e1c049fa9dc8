"""Decide which form of a graph is shipped: the fastest that is proved, the original's included.

The optimized graph is shipped unless the original is seen to be faster on the workload. Then the steps are taken back:
the fused graph in standard operators, without the kernels that were chosen for the target, is tried, and where that
gains nothing either, the model is shipped as it was loaded. What was asked for by name (pruning, fewer bits) is not
taken back for the sake of speed, but said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError, ProofError
from onnxopt.load.loaded import Loaded
from onnxopt.records.ledger import Ledger
from onnxopt.records.manifest import FormName, Shipped
from onnxopt.records.measurements import Latency, Race
from onnxopt.records.rewrites import ProofRecord

logger = logging.getLogger(__name__)

_HERE = " on this machine"
SLOWER = f"slower than the original{_HERE}"
AS_OPTIMIZED = Shipped()


@dataclass(frozen=True)
class Form:
    """A form of the graph that is proved.

    Attributes:
        name: which form.
        loaded: with its graph.
        path: its file.
        ledger: what was done for it.
        proof: its comparisons with the reference.
    """

    name: FormName
    loaded: Loaded
    path: Path
    ledger: Ledger
    proof: tuple[ProofRecord, ...]


@dataclass(frozen=True)
class Decision:
    """What is shipped, and why.

    Attributes:
        form: what is shipped.
        shipped: the same for the manifest.
        races: of all forms that were measured.
    """

    form: Form
    shipped: Shipped = AS_OPTIMIZED
    races: tuple[Race, ...] = ()

    @property
    def latency(self) -> tuple[Latency, ...]:
        """Before and after, of what is shipped; empty where nothing was measured."""
        for race in self.races:
            if race.form == self.form.name:
                return race.shapes
        same = {"low": 1.0, "high": 1.0}
        return tuple(
            shape.model_copy(update=same | {"after_ms": shape.before_ms})
            for race in self.races[:1]
            for shape in race.shapes
        )


def decide(
    optimized: Form,
    others: Mapping[FormName, Callable[[], Form]],
    compare: Callable[[Form], Race],
    *,
    asked: str = "",
) -> Decision:
    """Return the fastest form, measured as long as the one before is slower than the original.

    Args:
        optimized: all passes; it is shipped where it is not seen to be slower than the original.
        others: make and prove the other forms, in the order in which they are tried; `original` comes last.
        compare: runs a form beside the original.
        asked: why the optimized graph is shipped even where it is slower; empty where nothing was asked for.
    """
    first = compare(optimized)
    if first.verdict != "slower":
        return Decision(optimized, races=(first,))
    races, tried, refused = [first], [optimized.name], ""
    best = optimized
    for name, make in others.items():
        try:
            form = make()
        except (InputError, ProofError) as error:
            logger.warning("the %s graph cannot be shipped: %s", name, error)
            refused = f"the {name} graph cannot be shipped: {error.what}"
            continue
        if name != "original":
            races.append(compare(form))
            if races[-1].verdict == "slower" or races[-1].speedup < 1.0:
                tried.append(name)
                best = form if races[-1].verdict != "slower" or races[-1].low > first.high else best
                continue
        shipped = Shipped(form=name, tried=tuple(tried), reason=_because(tried))
        logger.warning("the %s graph is shipped: %s", name, shipped.reason)
        return Decision(form, shipped, tuple(races))
    why = "; ".join(part for part in (asked, refused) if part)
    speed = SLOWER if best is optimized else f"faster than the optimized one, but not than the original{_HERE}"
    reason = f"{speed}{f', and shipped all the same: {why}' if why else ''}"
    logger.warning("the %s graph is shipped: %s", best.name, reason)
    others_tried = tuple(name for name in tried if name != best.name)
    return Decision(best, Shipped(form=best.name, tried=others_tried, reason=reason), tuple(races))


def _because(tried: list[FormName]) -> str:
    """Say why the forms before are not shipped."""
    names = " and the ".join(tried)
    return f"the {names} graph {'is' if len(tried) == 1 else 'are'} {SLOWER}"
