"""Transposing a 16 x 16 tile of 32-bit values in vector registers: four rounds of exchanges between pairs of rows.

Round d (1, 2, 4, 8) swaps the off-diagonal d x d blocks of every 2d x 2d block: 64 two-operand shuffles in all.

Vectors are bound to variables one by one and not kept in a local buffer: TVM takes even small buffers from its
workspace pool, where every value that passes through is written to memory (clustering took twice as long so).
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

TILE = 16


def lanes(start=0, count: int = TILE):
    """The index of ``count`` neighbouring entries from ``start`` on."""
    return T.Ramp(start, 1, count)


def splat(value, count: int = TILE):
    """A vector of ``count`` equal values."""
    return T.Broadcast(value, count)


def transpose_tile(rows: list[Any]) -> list[Any]:
    """The columns of 16 vectors of 16; emits the statements that bind them."""
    for d in (1, 2, 4, 8):
        upper = [j if not j & d else TILE + (j ^ d) for j in range(TILE)]
        lower = [j ^ d if not j & d else TILE + j for j in range(TILE)]
        exchanged = list(rows)
        for i in range(TILE):
            if not i & d:
                exchanged[i] = T.bind(T.Shuffle([rows[i], rows[i + d]], upper))
                exchanged[i + d] = T.bind(T.Shuffle([rows[i], rows[i + d]], lower))
        rows = exchanged
    return rows
