"""The forms that a pass may give a region, and which one was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

AS_IS = "as it is"  # the form that a pass leaves alone
Source = Literal["measured", "cache", "recorded", "pinned", "first"]
Key = tuple[str, str]  # a pass, and the class of its regions


@dataclass(frozen=True)
class Choice:
    """The form that a class of regions gets.

    Attributes:
        form: its name; `AS_IS` keeps the region.
        source: measured now, measured before, taken from the shipped table, taken over from another build, or the
            first that the pass names.
        times_ms: of the whole model in each form, median milliseconds, one per shape of the workload.
        disagree: on some shape another form is clearly faster.
        where: the machine that the shipped table was measured on.
    """

    form: str
    source: Source
    times_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    disagree: bool = False
    where: str = ""

    def __str__(self) -> str:
        if self.source == "first":
            return f"{self.form} (not measured)"
        split = ", shapes disagree" if self.disagree else ""
        times = "; ".join(f"{form} {' '.join(f'{t:.3g}' for t in series)}" for form, series in self.times_ms.items())
        shown = f", ms of the model per shape: {times}" if times else ""
        where = f" on {self.where}" if self.where else ""
        return f"{self.form} ({self.source}{where}{split}{shown})"


class Known(Protocol):
    """What is known of the forms of kernels before anything is measured."""

    def recorded(self, key: Key, forms: Sequence[str]) -> Choice | None:
        """Return what was found out for a class of regions, None where nothing was."""


class Forms:
    """Tells passes which form a class of regions gets, and remembers what it was asked.

    Args:
        profit: what is known; None knows nothing.
        chosen: forms that are set.

    Attributes:
        met: the forms that each class of regions could have.
    """

    def __init__(self, profit: Known | None = None, chosen: Mapping[Key, Choice] | None = None) -> None:
        self._profit = profit
        self._chosen = dict(chosen or {})
        self.met: dict[Key, tuple[str, ...]] = {}

    def of(self, name: str, kind: str, forms: Sequence[str]) -> Choice:
        """Return the form of a class of regions.

        Args:
            name: the pass.
            kind: the class, in words.
            forms: what its regions can become, the one that is usually best first.
        """
        key = (name, kind)
        self.met[key] = tuple(forms)
        if key not in self._chosen or self._chosen[key].form not in forms:
            known = self._profit.recorded(key, forms) if self._profit is not None else None
            self._chosen[key] = known or Choice(forms[0], "first")
        return self._chosen[key]

    @property
    def chosen(self) -> dict[Key, Choice]:
        """What was answered so far."""
        return {key: self._chosen[key] for key in self.met}

    def but(self, key: Key, form: str) -> Forms:
        """Return the same with one class in another form."""
        return Forms(self._profit, {**self._chosen, key: Choice(form, "measured")})
