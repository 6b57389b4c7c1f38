"""Swapping two axes of a tensor: [outer, R, C, K] -> [outer, C, R, K], what changes of layout and shuffles come to.

Runs of K > 1 entries are copied as they are. A narrow side, such as the channels of an RGB image, is interleaved: n
vectors of neighbouring columns become n vectors of the output by n - 1 two-operand shuffles each, or the other way
round. Wider matrices are transposed in registers, in tiles of 16 x 16. What is left over at the end of a side is
covered by a vector or tile that overlaps the one before; both write the same. Smaller matrices go entry by entry.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.sliding_window import loop_of
from adr_tvm.schedules.transpose_tile import TILE, lanes, transpose_tile

NARROW = 6  # widest side that is interleaved: beyond, tiles need fewer shuffles
TASK_FLOATS = 8 * 1024


@functools.cache
def permute(outer: int, R: int, C: int, K: int = 1, batch: int | None = None) -> tirx.PrimFunc:
    """Y[b, o, c, r, k] = X[b, o, r, c, k].

    Args:
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, outer * R * C * K] and Y likewise; B is symbolic.
    """
    size, swap = R * C * K, _swap(R, C, K)
    # A task is a part of one matrix along its longer side, or a number of small matrices.
    side = max(R, C)
    chunk = min(side, max(TILE, TASK_FLOATS * side // size // TILE * TILE))
    chunks = -(-side // chunk)
    matrices = max(1, TASK_FLOATS // size) if chunks == 1 else 1
    groups = -(-outer // matrices)
    loop = loop_of(batch, outer * size)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(outer * size)), "float32")
        Y = T.match_buffer(y, (B, T.int64(outer * size)), "float32")
        for task in loop(B * (groups * chunks)):
            group = T.meta_var(task // chunks % groups)
            first = T.meta_var(task % chunks * chunk)
            for m in range(T.min(matrices, outer - group * matrices)):
                base = T.meta_var((group * matrices + m) * size)
                swap(X, Y, task // (groups * chunks), base, first, T.min(chunk, side - first))

    return kernel


def _swap(R: int, C: int, K: int) -> Any:
    """Emits the statements that swap the sides of one matrix, for ``count`` places of the longer side from ``first``.

    Called with (X, Y, image, offset of the matrix in the image, first, count).
    """
    if K > 1 or (min(R, C) < TILE and (max(R, C) < TILE or min(R, C) > NARROW)):
        return functools.partial(_runs, R, C, K)
    return functools.partial(_narrow if min(R, C) <= NARROW else _tiles, R, C)


def _runs(R: int, C: int, K: int, X: Any, Y: Any, b: Any, base: Any, first: Any, count: Any) -> None:
    with T.serial(0, count) as i, T.serial(0, min(R, C)) as j:
        r, c = (i + first, j) if R >= C else (j, i + first)
        source, target = base + (r * C + c) * K, base + (c * R + r) * K
        if K // TILE:
            with T.serial(0, K // TILE) as k:
                T.buffer_store(Y, X[b, lanes(source + k * TILE)], [b, lanes(target + k * TILE)])
        if K % TILE:
            with T.vectorized(0, K % TILE) as k:
                at = K // TILE * TILE + k
                T.buffer_store(Y, X[b, source + at], [b, target + at])


def _narrow(R: int, C: int, X: Any, Y: Any, b: Any, base: Any, first: Any, count: Any) -> None:
    n, wide = min(R, C), max(R, C)
    with T.serial(0, (count + (TILE - 1)) // TILE) as v:
        w = T.min(first + v * TILE, wide - TILE)
        apart = [base + k * wide + w for k in range(n)]  # a vector in each of the n long rows
        together = [base + w * n + k * TILE for k in range(n)]
        inputs, outputs, exchange = (apart, together, _interleaved) if R < C else (together, apart, _separated)
        for place, vector in zip(outputs, exchange([T.bind(X[b, lanes(at)]) for at in inputs]), strict=True):
            T.buffer_store(Y, vector, [b, lanes(place)])


def _tiles(R: int, C: int, X: Any, Y: Any, b: Any, base: Any, first: Any, count: Any) -> None:
    short = min(R, C)
    with T.serial(0, (count + (TILE - 1)) // TILE) as i, T.serial(0, -(-short // TILE)) as j:
        along, across = T.min(first + i * TILE, max(R, C) - TILE), T.min(j * TILE, short - TILE)
        r, c = (along, across) if R >= C else (across, along)
        rows = [T.bind(X[b, lanes(base + (r + k) * C + c)]) for k in range(TILE)]
        for k, column in enumerate(transpose_tile(rows)):
            T.buffer_store(Y, column, [b, lanes(base + (c + k) * R + r)])


def _interleaved(vectors: list[Any]) -> list[Any]:
    """Vectors a, b, c as the vectors that hold a0 b0 c0 a1 b1 c1 ..."""
    n = len(vectors)
    return [_picked(vectors, [divmod(o * TILE + i, n)[::-1] for i in range(TILE)]) for o in range(n)]


def _separated(vectors: list[Any]) -> list[Any]:
    """The inverse of `_interleaved`."""
    n = len(vectors)
    return [_picked(vectors, [divmod(i * n + o, TILE) for i in range(TILE)]) for o in range(n)]


def _picked(vectors: list[Any], picks: list[tuple[int, int]]) -> Any:
    """The vector whose lane i is lane ``picks[i][1]`` of vector ``picks[i][0]``; emits the statements that bind it."""
    found = vectors[0]
    for number in range(1 if len(vectors) > 1 else 0, len(vectors)):
        # The first round also puts the lanes of vector 0 in place; later ones keep what is there.
        kept = [lane if number <= 1 else i for i, (_, lane) in enumerate(picks)]
        index = [TILE + lane if source == number else kept[i] for i, (source, lane) in enumerate(picks)]
        found = T.bind(T.Shuffle([found, vectors[number]], index))
    return found
