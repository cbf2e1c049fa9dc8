"""What to prune, as a user writes it: `ffn=25%,heads=2,layers=2,vocab=keep:texts.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from onnxopt.errors import InputError

Importance = Literal["magnitude", "activation", "error"]
IMPORTANCES: tuple[Importance, ...] = ("magnitude", "activation", "error")
Allocation = Literal["uniform", "sensitivity"]
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "sensitivity")
Order = Literal["importance", "random", "last"]
ORDERS: tuple[Order, ...] = ("importance", "random", "last")

AUTO = "auto"  # in place of an amount
_COUNTED = ("ffn", "heads", "layers", "channels")
_Name = TypeVar("_Name", bound=str)
_EXAMPLE = "write for example ffn=25%,heads=2,layers=2,vocab=keep:texts.txt"


@dataclass(frozen=True)
class Amount:
    """How many of a group's members go: a count, a share of them, or what a search finds.

    Attributes:
        count: members; 0 when a share is given.
        share: between 0 and 1; 0 when a count is given.
        auto: as many as make it fastest within a budget.
    """

    count: int = 0
    share: float = 0.0
    auto: bool = False

    @classmethod
    def parse(cls, text: str, where: str) -> Amount:
        """Read `2`, `25%` or `auto`."""
        shown = text.strip()
        try:
            if shown == AUTO:
                return cls(auto=True)
            if shown.endswith("%"):
                share = float(shown[:-1]) / 100
                if 0 < share < 1:
                    return cls(share=share)
            elif int(shown) > 0:
                return cls(count=int(shown))
        except ValueError:
            pass
        raise InputError(
            f"cannot read the amount {text!r}", where=where, hint="write a count (2), a share (25%) or auto"
        )

    def of(self, members: int, align: int = 1) -> int:
        """Return how many of `members` go, so that what stays is a multiple of `align` where it can be.

        At least as many go as were asked for; one aligned block always stays.
        """
        gone = self.count or round(self.share * members)
        kept = members - gone
        if align > 1 and members > align:
            kept = max(align, kept // align * align)
        return members - kept if gone else 0

    def __str__(self) -> str:
        return AUTO if self.auto else str(self.count) if self.count else f"{100 * self.share:g}%"


@dataclass(frozen=True)
class PruneSpec:
    """What to prune and how to choose.

    Attributes:
        amounts: by kind: `ffn` channels inside feed-forward blocks, `heads` of each attention, whole `layers`,
            `channels` of convolutions.
        vocabulary: a file of texts whose tokens stay, or None.
        zeros: share of zeros in each weight, `2:4` for two in each four; empty for none. Shapes stay.
        layer_order: which layers go: the least important, drawn ones, or the last.
        importance: how channels and heads are scored.
        compensate: refit what reads them by least squares.
        align: sizes that stay are multiples of this.
        allocation: the same share everywhere, or more where it costs less.
        seed: of whatever is drawn.
    """

    amounts: Mapping[str, Amount] = field(default_factory=dict)
    vocabulary: Path | None = None
    zeros: str = ""
    layer_order: Order = "importance"
    importance: Importance = "error"
    compensate: bool = True
    align: int = 16
    allocation: Allocation = "uniform"
    seed: int = 0

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        importance: str = "error",
        compensate: bool = True,
        align: int = 16,
        allocation: str = "uniform",
        seed: int = 0,
    ) -> PruneSpec:
        """Read what the command line takes.

        Args:
            text: `ffn=25%`, `ffn=auto`, `heads=2`, `layers=2` (or `layers=2:random`, `layers=2:last`), `channels=25%`,
                `vocab=keep:texts.txt`, `zeros=50%` or `zeros=2:4`, separated by commas.
            importance: one of `IMPORTANCES`.
            compensate: refit by least squares.
            align: sizes that stay are multiples of this.
            allocation: one of `ALLOCATIONS`.
            seed: of whatever is drawn.

        Raises:
            InputError: in one line, when something cannot be read.
        """
        if align < 1:
            raise InputError(f"the alignment is {align}", hint="use 1 or more, such as 8, 16 or 64")
        amounts: dict[str, Amount] = {}
        vocabulary: Path | None = None
        zeros, order = "", "importance"
        named: set[str] = set()
        for part in filter(None, (one.strip() for one in text.split(","))):
            kind, mark, value = (piece.strip() for piece in part.partition("="))
            if not mark or not value:
                raise InputError(f"cannot read {part!r}", where="--prune", hint=_EXAMPLE)
            if kind in named:
                raise InputError(f"{kind} is named twice", where="--prune")
            named.add(kind)
            if kind == "layers":
                value, _, after = value.partition(":")
                order = after or order
            if kind in _COUNTED:
                amounts[kind] = Amount.parse(value, f"--prune {kind}")
                if kind == "layers" and amounts[kind].auto:
                    raise InputError("layers are counted, not searched", where="--prune layers", hint="layers=2")
            elif kind == "vocab":
                vocabulary = _kept_texts(value)
            elif kind == "zeros":
                zeros = _zeros(value)
            else:
                raise InputError(f"unknown part {kind!r}", where="--prune", hint=_EXAMPLE)
        if not named:
            raise InputError("nothing to prune is named", where="--prune", hint=_EXAMPLE)
        scored, spread = _one_of(importance, IMPORTANCES, "importance"), _one_of(allocation, ALLOCATIONS, "allocation")
        chosen = _one_of(order, ORDERS, "choice of layers")
        return cls(amounts, vocabulary, zeros, chosen, scored, compensate, align, spread, seed)

    @property
    def searched(self) -> tuple[str, ...]:
        """The kinds whose amount is to be found."""
        return tuple(kind for kind, amount in self.amounts.items() if amount.auto)

    def __str__(self) -> str:
        parts = [f"{kind}={amount}" for kind, amount in self.amounts.items()]
        if "layers" in self.amounts and self.layer_order != "importance":
            parts = [f"{part}:{self.layer_order}" if part.startswith("layers=") else part for part in parts]
        parts += [f"vocab=keep:{self.vocabulary.name}"] if self.vocabulary else []
        parts += [f"zeros={self.zeros}"] if self.zeros else []
        return ",".join(parts)


def _one_of(text: str, known: tuple[_Name, ...], what: str) -> _Name:
    for one in known:
        if one == text:
            return one
    raise InputError(f"unknown {what} {text!r}", hint=f"use one of {', '.join(known)}")


def _kept_texts(value: str) -> Path:
    verb, mark, name = value.partition(":")
    if verb != "keep" or not mark or not name:
        raise InputError(f"cannot read vocab={value!r}", where="--prune", hint="write vocab=keep:texts.txt")
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError("no such file", where=name, hint="name a text file whose tokens stay")
    return path


def _zeros(value: str) -> str:
    if value == "2:4":
        return value
    if value.endswith("%"):
        Amount.parse(value, "--prune zeros")
        return value
    raise InputError(f"cannot read zeros={value!r}", where="--prune", hint="write zeros=50% or zeros=2:4")
