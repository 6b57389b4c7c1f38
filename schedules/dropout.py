"""Inverted dropout from a counter-based generator, and its gradient, which is the same map.

y[i] = x[i] / (1 - rate) where bits(seed, stream, i) >= rate 2^32, else 0. The bits are a hash of the entry's index
under a key that seed and stream give: two rounds of Wellons' 32-bit mixer (multiplications and shifts, each reversible,
bias below 0.2 %), so that any part of the mask can be computed anywhere, and again on the way back instead of kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.sliding_window import loop_of

LANES = 16
CHUNK = 16 * 1024  # entries of a task
MIX = ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, None))  # shift, then multiply
GOLDEN = 0x9E3779B9


def _u(value: int) -> tirx.PrimExpr:
    return tirx.const(value, "uint32")


def _times(x: tirx.PrimExpr, factor: int) -> tirx.PrimExpr:
    """x factor mod 2^32; TVM tells LLVM that no product overflows, so it is taken in 64 bits."""
    lanes = str(x.ty.dtype).partition("x")[2]
    wide, narrow = (f"{dtype}x{lanes}" if lanes else dtype for dtype in ("uint64", "uint32"))
    product = tirx.Cast(wide, x) * tirx.const(factor, "uint64")
    return tirx.Cast(narrow, product & tirx.const(2**32 - 1, "uint64"))


def mixed(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """A 32-bit value with its bits mixed; reversible."""
    for shift, factor in MIX:
        x = T.bind(x ^ (x >> _u(shift)))
        if factor is not None:
            x = T.bind(_times(x, factor))
    return x


def dropout_entries(rate: float) -> Callable[[Any, Any, Any, Any, int], None]:
    """What emits ``lanes`` entries of Y from place ``start`` on: ``(X, Y, keys, start, lanes)``."""
    threshold, scale = min(round(rate * 2**32), 2**32 - 1), 1.0 / (1.0 - rate)

    def keep(X, Y, keys, start, lanes):
        place = T.Ramp(start, 1, lanes) if lanes > 1 else start
        index = T.Cast(f"int32x{lanes}" if lanes > 1 else "int32", place)
        index = tirx.reinterpret(f"uint32x{lanes}" if lanes > 1 else "uint32", index)  # a ramp must not be unsigned
        bits = mixed(T.bind(mixed(T.bind(index ^ keys[0])) ^ keys[1]))
        x = T.bind(X[place])
        kept = tirx.Select(bits >= _u(threshold), x * T.float32(scale), tirx.const(0, x.ty.dtype))
        T.buffer_store(Y, kept, [place])

    return keep


def dropout_keys(stream: int) -> Callable[[Any, Any], None]:
    """What emits the two words of ``keys`` that a seed and a stream give: ``(seed, keys)``."""

    def keys_of(seed, keys):
        low, high = T.Cast("uint32", seed[0]), T.Cast("uint32", seed[0] >> T.int64(32))
        first = mixed(T.bind(low ^ _u((stream * GOLDEN) % 2**32)))
        T.buffer_store(keys, mixed(T.bind(first ^ high)), [0])
        T.buffer_store(keys, mixed(T.bind(keys[0] ^ _u(GOLDEN))), [1])

    return keys_of


@functools.cache
def dropout(size: int, rate: float, stream: int) -> tirx.PrimFunc:
    """Drop entries.

    Args:
        size: number of entries, less than 2^32.
        rate: share that is dropped, 0 to 1 without 1.
        stream: tells the dropouts of a network apart.

    Returns:
        PrimFunc of X float32 [size], seed int64 [1], Y float32 [size].
    """
    tasks = -(-size // CHUNK)
    loop = loop_of(tasks, CHUNK * 8)
    keep, keys_of = dropout_entries(rate), dropout_keys(stream)

    @T.inline
    def part(X, Y, keys, start, lanes):
        keep(X, Y, keys, start, lanes)

    @T.prim_func(private=True)
    def kernel(x: T.handle, s: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(size),), "float32")
        seed = T.match_buffer(s, (T.int64(1),), "int64")
        Y = T.match_buffer(y, (T.int64(size),), "float32")
        keys = T.alloc_buffer((2,), "uint32")
        keys_of(seed, keys)
        for task in loop(T.int64(tasks)):
            count = T.meta_var(T.min(T.int64(CHUNK), size - task * CHUNK))
            for v in range(count // LANES):
                part(X, Y, keys, task * CHUNK + v * LANES, LANES)
            for i in range(count % LANES):
                part(X, Y, keys, task * CHUNK + count // LANES * LANES + i, 1)

    return kernel
