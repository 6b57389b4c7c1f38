"""Sign-hash keys of 32 neuron vectors at once, two groups of 16 lanes (``docs/algorithm.md``, clauses 2 to 4).

Every entry of a plane is loaded once for both groups. The entries come in a loop whose length is known at run time
only: written out, the code generator kept all planes on the stack as vectors, and moved sums there too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from adr_tvm.schedules.transpose_tile import TILE, lanes, splat

GROUPS = 2
AT_ONCE = 12  # bits whose sums for both groups fit the registers
MAGNITUDE = 0x7FFFFFFF


def pair_keys(planes, thresholds, s, H: int, length, load: Callable[[Any], list[Any]]) -> tuple[list[Any], Any]:
    """Emit the hash of 32 vectors.

    Args:
        planes, thresholds: buffers [S, L, Hp] and [S, Hp]; s: the segment.
        length: of the vectors, an expression.
        load: function of l that gives entry l of both groups, float32 x 16.

    Returns:
        The keys of each group, int32 x 16, 2^H for a vector of zeros; and the bits of the larger |product| with the
        first plane, which are infinity's or more where a vector is not finite, or where a sum overflows.
    """
    keys = [splat(T.int32(0))] * GROUPS
    ones = T.alloc_buffer((GROUPS, TILE), "int32", scope="local")  # bits that any entry has
    magnitude = splat(T.int32(0))
    for i in range(GROUPS):
        T.buffer_store(ones, splat(T.int32(0)), [i, lanes()])
    for first in range(0, H, AT_ONCE):
        count = min(AT_ONCE, H - first)
        dots = [T.alloc_buffer((count, TILE), "float32", scope="local") for _ in range(GROUPS)]
        for dot in dots:
            for h in range(count):
                T.buffer_store(dot, splat(T.float32(0)), [h, lanes()])
        with T.serial(length) as l:
            entries = [T.bind(entry) for entry in load(l)]
            if first == 0:
                for i, entry in enumerate(entries):
                    T.buffer_store(ones, ones[i, lanes()] | T.reinterpret("int32x16", entry), [i, lanes()])
            for h in range(count):
                plane = T.bind(splat(planes[s, l, first + h]))
                for dot, entry in zip(dots, entries, strict=True):
                    T.buffer_store(dot, dot[h, lanes()] + entry * plane, [h, lanes()])
        if first == 0:
            sizes = [T.reinterpret("int32x16", dot[0, lanes()]) & splat(T.int32(MAGNITUDE)) for dot in dots]
            magnitude = T.bind(T.max(*sizes))
        for h in range(count):
            threshold, value = T.bind(splat(thresholds[s, first + h])), splat(T.int32(1 << (first + h)))
            for i, dot in enumerate(dots):
                keys[i] = T.bind(keys[i] | T.Select(dot[h, lanes()] > threshold, value, splat(T.int32(0))))
    for i in range(GROUPS):
        zero = (ones[i, lanes()] & splat(T.int32(MAGNITUDE))) == splat(T.int32(0))
        keys[i] = T.bind(T.Select(zero, splat(T.int32(1 << H)), keys[i]))
    return keys, magnitude
