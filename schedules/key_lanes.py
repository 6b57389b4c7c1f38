"""Sign-hash keys of 16 neuron vectors at once, one vector a lane (``docs/algorithm.md``, clauses 2 to 5).

Every lane runs the FMA chain of clause 2 on its own, so the keys are those of ``vector_key.sign_key`` bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from adr_tvm.schedules.transpose_tile import TILE, lanes, splat
from adr_tvm.schedules.vector_key import INFINITY_BITS, NON_FINITE

UNROLLED = 2  # chunks of 16 entries written out; of more, one is written in a loop


def add_chunks(found: KeyLanes, length: int, add_chunk: Callable[[Any, int], None]) -> None:
    """Emit ``add_chunk(c, count)`` for every chunk c of 16 entries, of which the last may hold fewer."""
    whole, rest = divmod(length, TILE)
    if whole > UNROLLED:
        dots = T.alloc_buffer((found.H, TILE), "float32", scope="local")
        largest = T.alloc_buffer((TILE,), "int32", scope="local")
        found.kept_in(dots, largest)
        with T.serial(whole) as c:
            found.taken_from(dots, largest)
            add_chunk(c, TILE)
            found.kept_in(dots, largest)
        found.taken_from(dots, largest)
    else:
        for c in range(whole):
            add_chunk(c, TILE)
    if rest:
        add_chunk(whole, rest)


class KeyLanes:
    """The keys of 16 vectors whose entries come one after another; the methods emit statements.

    ``planes`` [S, L, Hp] and ``thresholds`` [S, Hp] are buffers, s the segment.
    """

    def __init__(self, planes, thresholds, s, H: int):
        self.planes, self.thresholds, self.s, self.H = planes, thresholds, s, H
        self.dots = [splat(T.float32(0))] * H
        self.largest = splat(T.int32(0))

    def add(self, entry: Any, l) -> None:
        """Entry l of the 16 vectors, float32 x 16."""
        bits = T.reinterpret("int32x16", entry) & splat(T.int32(0x7FFFFFFF))
        self.largest = T.bind(T.max(self.largest, bits))
        self.dots = [T.bind(self.dots[h] + entry * splat(self.planes[self.s, l, h])) for h in range(self.H)]

    def kept_in(self, dots, largest) -> None:
        """Move the state to buffers, float32 [H, 16] and int32 [16], between two of many chunks of entries."""
        for h in range(self.H):
            T.buffer_store(dots, self.dots[h], [h, lanes()])
        T.buffer_store(largest, self.largest, [lanes()])

    def taken_from(self, dots, largest) -> None:
        """Take the state back."""
        self.dots = [T.bind(dots[h, lanes()]) for h in range(self.H)]
        self.largest = T.bind(largest[lanes()])

    def keys(self) -> Any:
        """int32 x 16: the key, 2^H for a vector of zeros, NON_FINITE."""
        key = splat(T.int32(0))
        for h in range(self.H):
            bit = self.dots[h] > splat(self.thresholds[self.s, h])
            key = T.bind(key | T.Select(bit, splat(T.int32(1 << h)), splat(T.int32(0))))
        key = T.Select(self.largest == splat(T.int32(0)), splat(T.int32(1 << self.H)), key)
        return T.bind(T.Select(self.largest >= splat(T.int32(INFINITY_BITS)), splat(T.int32(NON_FINITE)), key))
