"""Numbers that follow from the sizes of a graph's open axes: polynomials over axes and over what is computed of them.

A number is one of

* a Python int or bool, or a NumPy float: a constant;
* a `Poly`: a sum of products of atoms with whole coefficients, an int64 of the graph;
* an `Atom` that is no integer: a float or a truth value that depends on sizes.

An atom is an axis, a size that only the data tells (`fresh`), or a call such as `div(sequence, 256)`. Equal calls are
one object, so two polynomials are the same number at every size if they are equal; the reverse is the business of
`check`. The smaller and the larger of two integers are written with `pos(x)`, which is x where that is positive, else
0: max(a, b) = b + pos(a − b), min(a, b) = a − pos(a − b), and of pos(x) and pos(−x) = pos(x) − x only the one is used
whose first coefficient is positive. So the rows that a cut leaves and those that it takes add up to all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Union

import numpy as np

from onnxopt.spec import Array

ENDLESS = 2**31 - 1  # no tensor has so many entries along an axis; exporters write it, or more, for the end of one
INT, BOOL = "int64", "bool"


class Atom:
    """An axis, a size that only data tells, or a call.

    Attributes:
        op: `axis`, `fresh`, or what is called.
        dtype: NumPy name of its type; integers are int64, whatever type the graph gives them.
        args: of a call.
        name: of an axis.
        positive: whether it is known to be 0 or more.
        order: by which atoms of one product are sorted.
    """

    __slots__ = ("args", "dtype", "name", "op", "order", "positive")
    _made: dict[tuple[object, ...], Atom] = {}  # noqa: RUF012 - every atom there is, so that equal ones are one
    _numbers = itertools.count()

    def __init__(self, op: str, dtype: str, args: tuple[Number, ...], name: str, *, positive: bool) -> None:
        self.op, self.dtype, self.args, self.name, self.positive = op, dtype, args, name, positive
        self.order = next(Atom._numbers)

    @classmethod
    def of(cls, op: str, dtype: str, args: tuple[Number, ...], name: str = "", *, positive: bool = False) -> Atom:
        """Return the one atom of these words."""
        key = (op, dtype, tuple((type(arg), arg) for arg in args), name)
        found = cls._made.get(key)
        if found is None:
            found = cls._made[key] = cls(op, dtype, args, name, positive=positive)
        return found

    def __repr__(self) -> str:
        return self.name or f"{self.op}({', '.join(map(repr, self.args))})"


Monomial = tuple[Atom, ...]


class Poly:
    """A sum of products of atoms with whole coefficients; with no atom at all it would be an int instead."""

    __slots__ = ("_hash", "parts")

    def __init__(self, parts: tuple[tuple[Monomial, int], ...]) -> None:
        self.parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self._hash == other._hash and self.parts == other.parts

    def __repr__(self) -> str:
        shown = [
            "*".join([*([str(factor)] if factor != 1 or not atoms else []), *map(repr, atoms)])
            for atoms, factor in self.parts
        ]
        return " + ".join(shown)

    @property
    def constant(self) -> int:
        """What is added to the products."""
        return next((factor for atoms, factor in self.parts if not atoms), 0)

    def atoms(self) -> Iterator[Atom]:
        """Yield the atoms of its products, repeated as they occur."""
        for atoms, _ in self.parts:
            yield from atoms


Size = Union[int, Poly]  # noqa: UP007 - names of classes that refer to each other
Number = Union[bool, int, np.generic, Poly, Atom]  # noqa: UP007


def _key(atoms: Monomial) -> tuple[int, ...]:
    return (-len(atoms), *(atom.order for atom in atoms))


def _poly(parts: dict[Monomial, int]) -> Size:
    kept = [(atoms, factor) for atoms, factor in parts.items() if factor]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Poly(tuple(sorted(kept, key=lambda part: _key(part[0]))))


def _parts(size: Size) -> tuple[tuple[Monomial, int], ...]:
    return size.parts if isinstance(size, Poly) else (((), int(size)),)


def atom(one: Atom) -> Poly:
    """Return an integer atom as a polynomial."""
    return Poly((((one,), 1),))


def axis(name: str) -> Poly:
    """Return the size of an axis."""
    return atom(Atom.of("axis", INT, (), name, positive=True))


def fresh() -> Poly:
    """Return a size that only data tells, and that is equal to no other."""
    return atom(Atom("fresh", INT, (), "?", positive=True))


def is_integer(number: Number) -> bool:
    """Tell whether a number is an integer of the graph, constant or not."""
    return isinstance(number, Poly) or (isinstance(number, int) and not isinstance(number, bool))


def is_constant(number: Number) -> bool:
    """Tell whether a number depends on no size."""
    return not isinstance(number, (Poly, Atom))


# Whole numbers


def add(left: Size, right: Size) -> Size:
    """left + right."""
    parts = dict(_parts(left))
    for atoms, factor in _parts(right):
        parts[atoms] = parts.get(atoms, 0) + factor
    return _poly(parts)


def multiply(left: Size, right: Size) -> Size:
    """left · right."""
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    parts: dict[Monomial, int] = {}
    for one, first in _parts(left):
        for other, second in _parts(right):
            atoms = tuple(sorted((*one, *other), key=lambda item: item.order))
            parts[atoms] = parts.get(atoms, 0) + first * second
    return _poly(parts)


def negative(size: Size) -> Size:
    """−size."""
    return multiply(size, -1)


def subtract(left: Size, right: Size) -> Size:
    """left − right."""
    return add(left, negative(right))


def product(sizes: Iterable[Size]) -> Size:
    """Return the product of sizes, 1 of none."""
    result: Size = 1
    for size in sizes:
        result = multiply(result, size)
    return result


def not_negative(size: Size) -> bool:
    """Tell whether a size is 0 or more, whatever the axes are; False says nothing."""
    below = [(atoms, factor) for atoms, factor in _parts(size) if factor < 0 or not all(one.positive for one in atoms)]
    if not below:
        return True
    atoms, factor = below[0]
    if len(below) > 1 or factor != -1 or len(atoms) != 1 or atoms[0].op != "pos":
        return False
    rest, over = add(size, atom(atoms[0])), atoms[0].args[0]  # rest − pos(over) is the smaller of two
    return not_negative(rest) and not_negative(subtract(rest, over))  # type: ignore[arg-type]  # pos takes an integer


def at_least(size: Size, least: int) -> bool:
    """Tell whether a size is `least` or more, whatever the axes are; False says nothing."""
    return not_negative(subtract(size, least))


def pos(size: Size) -> Size:
    """Return the size where it is positive, else 0."""
    if isinstance(size, int):
        return max(size, 0)
    if not_negative(size):
        return size
    if not_negative(negative(size)):
        return 0
    if size.parts[0][1] < 0:
        return add(size, pos(negative(size)))
    return atom(Atom.of("pos", INT, (size,), positive=True))


def largest(left: Size, right: Size) -> Size:
    """max(left, right)."""
    return add(right, pos(subtract(left, right)))


def smallest(left: Size, right: Size) -> Size:
    """min(left, right)."""
    return subtract(left, pos(subtract(left, right)))


def exact_quotient(size: Size, divisor: Size) -> Size | None:
    """Return size / divisor where the division leaves nothing, by its form alone, else None."""
    if isinstance(divisor, int):
        if divisor == 0 or any(factor % divisor for _, factor in _parts(size)):
            return None
        return _poly({atoms: factor // divisor for atoms, factor in _parts(size)})
    if size == divisor:
        return 1
    if len(divisor.parts) == 1:
        return _by_monomial(size, divisor.parts[0])
    return _long_division(size, divisor)


def _by_monomial(size: Size, divisor: tuple[Monomial, int]) -> Size | None:
    atoms, factor = divisor
    parts: dict[Monomial, int] = {}
    for own, coefficient in _parts(size):
        rest = list(own)
        for one in atoms:
            if one not in rest:
                return None
            rest.remove(one)
        if coefficient % factor:
            return None
        parts[tuple(rest)] = coefficient // factor
    return _poly(parts)


def _long_division(size: Size, divisor: Poly) -> Size | None:
    """Divide by a sum, leading product by leading product; (past + sequence)·batch by past + sequence, say."""
    quotient: Size = 0
    for _ in range(16):
        if size == 0:
            return quotient
        if not isinstance(size, Poly):
            return None
        step = _by_monomial(_poly(dict([size.parts[0]])), divisor.parts[0])
        if step is None:
            return None
        quotient = add(quotient, step)
        size = subtract(size, multiply(step, divisor))
    return None


def divide(left: Size, right: Size) -> Size:
    """left / right, cut towards zero as ONNX Runtime does."""
    exact = exact_quotient(left, right)
    if exact is not None:
        return exact
    if isinstance(left, int) and isinstance(right, int):
        return 0 if right == 0 else (abs(left) // abs(right)) * (1 if (left < 0) == (right < 0) else -1)
    return atom(Atom.of("div", INT, (left, right), positive=not_negative(left) and not_negative(right)))


def modulo(left: Size, right: Size) -> Size:
    """Left modulo right, with the sign of the divisor."""
    if exact_quotient(left, right) is not None:
        return 0
    if isinstance(left, int) and isinstance(right, int):
        return left % right if right else 0
    return atom(Atom.of("mod", INT, (left, right), positive=not_negative(right)))


def broadcast(left: Size, right: Size) -> Size:
    """Return the size that two dimensions give together where they are equal or one of them is 1."""
    if right in {left, 1}:
        return left
    if left == 1:
        return right
    if isinstance(left, int):
        return left
    if isinstance(right, int):
        return right
    first, second = sorted((left, right), key=lambda size: (*_key(size.parts[0][0]), hash(size)))
    return atom(Atom.of("broadcast", INT, (first, second), positive=True))


def copied(size: Size, known: Size) -> Size:
    """Return the dimension that a Reshape makes of `size` in its target: that of the input, `known`, where it is 0."""
    return atom(Atom.of("copied", INT, (size, known), positive=True))


# Calls on numbers of any type


def call(op: str, dtype: str, *args: Number) -> Number:
    """Return what an elementwise operation makes of numbers.

    Args:
        op: a name in `FUNCTIONS`.
        dtype: NumPy name of the result; every integer type is `int64`.
        args: its operands.
    """
    if dtype == INT and all(map(is_integer, args)) and op in _WHOLE:
        return _WHOLE[op](*args)
    if op == "where" and is_constant(args[0]):
        return args[1] if args[0] else args[2]
    if op == "where" and args[1] == args[2] and type(args[1]) is type(args[2]):
        return args[1]
    if op in _COMPARED and all(map(is_integer, args)):
        decided = _decide(op, args[0], args[1])  # type: ignore[arg-type]  # both are integers
        if decided is not None:
            return decided
    if all(map(is_constant, args)):
        found = np.asarray(FUNCTIONS[op](dtype, *(np.asarray(arg) for arg in args)))
        if dtype in {BOOL, INT}:
            return bool(found) if dtype == BOOL else int(found)
        exact: np.generic = np.dtype(dtype).type(found)
        return exact
    positive = op == "where" and all(is_integer(arg) and not_negative(arg) for arg in args[1:])  # type: ignore[arg-type]  # integers
    made = Atom.of(op, dtype, args, positive=positive)
    return atom(made) if dtype == INT else made


def _decide(op: str, left: Size, right: Size) -> bool | None:
    """Compare two integers by the signs of their difference; None where it depends on the sizes."""
    low, high = not_negative(subtract(left, right)), not_negative(subtract(right, left))
    if low and high:
        return op in ("equal", "less_equal", "greater_equal")
    above, below = at_least(subtract(left, right), 1), at_least(subtract(right, left), 1)
    known: dict[str, bool | None] = {
        "equal": False if above or below else None,
        "less": True if below else (False if low else None),
        "less_equal": True if high else (False if above else None),
        "greater": True if above else (False if high else None),
        "greater_equal": True if low else (False if below else None),
    }
    return known[op]


_COMPARED = frozenset({"equal", "less", "less_equal", "greater", "greater_equal"})
_WHOLE: dict[str, Callable[..., Number]] = {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "div": divide,
    "mod": modulo,
    "max": largest,
    "min": smallest,
    "neg": negative,
    "relu": pos,
    "abs": lambda size: add(pos(size), pos(negative(size))),
    "cast": lambda size: size,
}


Function = Callable[..., Array]  # of the dtype of its result and of its operands


def _division(dtype: str, left: Array, right: Array) -> Array:
    if dtype != INT:
        return np.divide(left, right).astype(dtype)
    safe: Array = np.where(right == 0, 1, right)
    quotient: Array = np.sign(left) * np.sign(safe) * (np.abs(left) // np.abs(safe))
    return quotient.astype(dtype)


def _cast(dtype: str, number: Array) -> Array:
    if dtype == BOOL:
        return np.asarray(number != 0)
    rounded: Array = np.trunc(number) if dtype == INT else number
    return rounded.astype(dtype)


def _choice(dtype: str, condition: Array, first: Array, second: Array) -> Array:
    return np.asarray(np.where(condition, first, second)).astype(dtype)


def _typed(function: Callable[..., object]) -> Function:
    return lambda dtype, *args: np.asarray(function(*args)).astype(dtype)


FUNCTIONS: dict[str, Function] = {
    "add": _typed(np.add),
    "sub": _typed(np.subtract),
    "mul": _typed(np.multiply),
    "div": _division,
    "mod": lambda dtype, a, b: np.mod(a, np.where(b == 0, 1, b)).astype(dtype),
    "fmod": lambda dtype, a, b: np.fmod(a, np.where(b == 0, 1, b)).astype(dtype),
    "pow": _typed(np.power),
    "max": _typed(np.maximum),
    "min": _typed(np.minimum),
    "neg": _typed(np.negative),
    "abs": _typed(np.abs),
    "sign": _typed(np.sign),
    "relu": lambda dtype, a: np.maximum(a, 0).astype(dtype),
    "pos": lambda dtype, a: np.maximum(a, 0).astype(dtype),
    "floor": _typed(np.floor),
    "ceil": _typed(np.ceil),
    "round": _typed(np.round),
    "sqrt": _typed(np.sqrt),
    "exp": _typed(np.exp),
    "log": _typed(np.log),
    "reciprocal": _typed(lambda a: np.divide(1, a, dtype=a.dtype)),
    "cast": _cast,
    "not": _typed(np.logical_not),
    "and": _typed(np.logical_and),
    "or": _typed(np.logical_or),
    "xor": _typed(np.logical_xor),
    "equal": _typed(np.equal),
    "less": _typed(np.less),
    "less_equal": _typed(np.less_equal),
    "greater": _typed(np.greater),
    "greater_equal": _typed(np.greater_equal),
    "where": _choice,
    "broadcast": lambda dtype, a, b: _choice(dtype, a == 1, b, a),
    "copied": lambda dtype, a, b: _choice(dtype, a == 0, b, a),
}
