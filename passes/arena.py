"""Where the tensors of a sequence of kernel calls lie in one block of memory.

Tensors that are never alive at the same time may share memory. Sizes may hold symbolic dimensions. Those that are
multiples of the same dimension, such as the batch, or of none, are packed together, in units of it, wherever there is
room. The others share *slots*, each as large as the largest of its tensors for any value of the dimensions; values that
stand for typical ones decide only who shares with whom.

Both go through the tensors from the largest to the smallest ("greedy by size" of Pisarchyk and Lee, "Efficient memory
management for deep neural net inference", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.sym import Analyzer, ConstIntBound
from tvm.tirx.analysis import undefined_vars

from adr_tvm.lifetimes import Lifetime, lowest_offsets

ALIGNMENT = 64  # bytes; what kernels assume of every tensor
TYPICAL_DIMENSION = 32


@dataclass(frozen=True)
class Request(Lifetime):
    """A tensor that needs memory.

    Attributes:
        size: bytes.
        first, last: calls from and up to which it is alive, both included.
    """

    size: Expr
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Byte offsets of the requests, and the size of the whole."""

    offsets: list[Expr]
    size: Expr


def plan_arena(requests: Sequence[Request]) -> Arena:
    """Place tensors; offsets are multiples of 64 bytes."""
    offsets: list[Expr] = [_int(0)] * len(requests)
    end: Expr = _int(0)
    groups: dict[int, tuple[Expr, dict[int, int]]] = {}  # by hash of the dimension: it, and bytes for one of it
    others = []
    for index, request in enumerate(requests):
        multiple = _multiple(request.size)
        if multiple is None:
            others.append(index)
        else:
            unit, size = multiple
            groups.setdefault(_key(unit), (unit, {}))[1][index] = size
    for unit, sizes in groups.values():
        places, total = _pack(requests, sizes)
        for index, place in places.items():
            offsets[index] = _simplify(end + unit * place)
        end = _simplify(end + unit * total)
    for slot in _slots(requests, others):
        for index in slot:
            offsets[index] = end
        end = _simplify(end + _largest([requests[index].size for index in slot]))
    return Arena(offsets, end)


def _multiple(size: Expr) -> tuple[Expr, int] | None:
    """The dimension that a size is a multiple of, or 1, and bytes for one of it; None for any other form."""
    variables = list(undefined_vars(size))
    if len(variables) > 1:
        return None
    unit = variables[0] if variables else _int(1)
    once = _value(size, 1)
    return (unit, once) if Analyzer().can_prove_equal(size, unit * once) else None


def _pack(requests: Sequence[Request], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """The lowest free place for each of the requests in ``sizes``, and the end of the last."""
    rounded = {index: -(-size // ALIGNMENT) * ALIGNMENT for index, size in sizes.items()}
    places = lowest_offsets(requests, rounded, sorted(sizes, key=lambda i: -sizes[i]))
    return places, max(places[index] + rounded[index] for index in places)


def _slots(requests: Sequence[Request], indices: Sequence[int]) -> list[list[int]]:
    """Groups of requests that are never alive at the same time."""
    typical = {index: _value(requests[index].size, TYPICAL_DIMENSION) for index in indices}
    slots: list[list[int]] = []
    for index in sorted(indices, key=lambda i: -typical[i]):
        free = [slot for slot in slots if not any(requests[index].overlaps(requests[other]) for other in slot)]
        if free:
            min(free, key=lambda slot: typical[slot[0]]).append(index)
        else:
            slots.append([index])
    return slots


def _largest(sizes: Sequence[Expr]) -> Expr:
    """The largest size, rounded up to the alignment; what can be proven smaller is left out."""
    kept: list[Expr] = []
    analyzer = Analyzer()
    for size in sizes:
        for variable in undefined_vars(size):
            analyzer.update(variable, ConstIntBound(1, 1 << 40), override=True)
        if not any(analyzer.can_prove(size <= other) for other in kept):
            kept.append(size)
    largest = kept[0]
    for size in kept[1:]:
        largest = tirx.max(largest, size)
    return (largest + (ALIGNMENT - 1)) // ALIGNMENT * ALIGNMENT


def _value(size: Expr, dimension: int) -> int:
    """A size where every symbolic dimension has one value."""
    analyzer = Analyzer()
    for variable in undefined_vars(size):
        analyzer.bind(variable, _int(dimension))
    return int(analyzer.simplify(size))


def _key(unit: Expr) -> int:
    return hash(unit) if isinstance(unit, tirx.Var) else 0


def _int(value: int) -> Expr:
    return tirx.const(value, "int64")


def _simplify(expr: Expr) -> Expr:
    return Analyzer().simplify(expr)
