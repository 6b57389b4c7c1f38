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


class PairKeys:
    """The keys of two groups of 16 vectors together: each entry of a plane is loaded once for both.

    Whether a vector is finite is left to the caller: what ``magnitude`` gives is infinity's bits or more if one is not,
    but also where a sum overflows.
    """

    def __init__(self, planes, thresholds, s, H: int):
        self.planes, self.thresholds, self.s, self.H = planes, thresholds, s, H
        self.dots = [[splat(T.float32(0))] * H for _ in range(2)]
        self.ones = [splat(T.int32(0))] * 2  # bits that any entry has

    def add_all(self, length: int, entries: Callable[[Any], list[Any]]) -> None:
        """Entries 0 ... length; ``entries(l)`` gives those of both groups as bound float32 x 16."""
        whole, rest = divmod(length, TILE)
        if whole > UNROLLED:
            dots = [T.alloc_buffer((self.H, TILE), "float32", scope="local") for _ in range(2)]
            ones = T.alloc_buffer((2, TILE), "int32", scope="local")
            self._keep(dots, ones)
            with T.serial(whole) as c:
                self._take(dots, ones)
                self._add(c * TILE, TILE, entries)
                self._keep(dots, ones)
            self._take(dots, ones)
        else:
            self._add(0, whole * TILE, entries)
        self._add(whole * TILE, rest, entries)

    def _add(self, first: Any, count: int, entries: Callable[[Any], list[Any]]) -> None:
        for l in range(count):
            pair = entries(first + l)
            planes = [T.bind(splat(self.planes[self.s, first + l, h])) for h in range(self.H)]
            for i, entry in enumerate(pair):
                self.ones[i] = T.bind(self.ones[i] | T.reinterpret("int32x16", entry))
                self.dots[i] = [T.bind(dot + entry * plane) for dot, plane in zip(self.dots[i], planes, strict=True)]

    def _keep(self, dots, ones) -> None:
        for i in range(2):
            for h in range(self.H):
                T.buffer_store(dots[i], self.dots[i][h], [h, lanes()])
            T.buffer_store(ones, self.ones[i], [i, lanes()])

    def _take(self, dots, ones) -> None:
        for i in range(2):
            self.dots[i] = [T.bind(dots[i][h, lanes()]) for h in range(self.H)]
            self.ones[i] = T.bind(ones[i, lanes()])

    def magnitude(self) -> Any:
        """int32 x 16: the bits of the larger |product| with the first plane, of both groups."""
        first, second = (T.reinterpret("int32x16", dots[0]) & splat(T.int32(0x7FFFFFFF)) for dots in self.dots)
        return T.bind(T.max(first, second))

    def keys(self) -> list[Any]:
        """int32 x 16 of each group: the key, 2^H for a vector of zeros."""
        found = []
        for dots, ones in zip(self.dots, self.ones, strict=True):
            key = splat(T.int32(0))
            for h, dot in enumerate(dots):
                bit = dot > splat(self.thresholds[self.s, h])
                key = T.bind(key | T.Select(bit, splat(T.int32(1 << h)), splat(T.int32(0))))
            zero = (ones & splat(T.int32(0x7FFFFFFF))) == splat(T.int32(0))
            found.append(T.bind(T.Select(zero, splat(T.int32(1 << self.H)), key)))
        return found
