"""The gather-add: every output pixel adds the table rows that its ids name (``docs/algorithm.md``, clause 10).

A few neighbouring output pixels share the registers, and ids are read input pixel by input pixel: each is needed by
several of those outputs through different taps, whose rows of the table lie side by side. Every output still adds its
taps in their own order.

Ids are first turned into places in the table, for a piece of a row of output pixels at a time, and kept in pairs:
what bounds the gather is the number of loads, and so one serves two ids.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from adr_tvm.schedules.neuron_vectors import TapGrid
from adr_tvm.schedules.product_table import TableFormat, Vectors
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat

PIECE = 64  # output pixels whose places are found at once, about


def piece_columns(grid: TapGrid, columns: int) -> int:
    """Output pixels of a piece: a multiple of ``columns``, or the whole row."""
    pieces = -(-grid.columns // PIECE)
    return min(grid.columns, -(-grid.columns // (pieces * columns)) * columns)


def read_width(grid: TapGrid, columns: int) -> int:
    """Map entries between the first and the last that ``columns`` neighbouring outputs read."""
    return (columns - 1) * grid.SW + (grid.KW - 1) * grid.DW + 1


def place_pairs(grid: TapGrid, columns: int) -> int:
    """Pairs of places that ``columns`` neighbouring outputs read, whole vectors of them."""
    return -(-read_width(grid, columns) // TILE) * (TILE // 2)


def find_places(grid: TapGrid, columns: int, row_size: int):
    """Inline ``(places, ids, u, s, z, start)``: where the rows of the ids lie in a segment's table.

    places int64 [z, ky, pair]: that of column 2 pair, and in the upper half that of the next. ``start``: index in the
    id map of what tap 0 of the first output reads.
    """
    width = read_width(grid, columns)

    def store(places, z, ky, i, found):
        found = (found + splat(T.int32(1))) * splat(T.int32(row_size))
        T.buffer_store(places, T.reinterpret("int64x8", found), [z, ky, lanes(i * (TILE // 2), TILE // 2)])

    def last(ids, u, s, first, count):
        return T.Shuffle([ids[u, s, first + j] if j < count else T.int32(-1) for j in range(TILE)], list(range(TILE)))

    @T.inline
    def inline(places, ids, u, s, z, start):
        for ky in range(grid.KH):
            first = T.meta_var(start + ky * (grid.DH * grid.pitch))
            for i in range(width // TILE):
                store(places, z, ky, i, ids[u, s, lanes(first + i * TILE)])
            if width % TILE > 0:
                rest = T.meta_var(last(ids, u, s, first + width // TILE * TILE, width % TILE))
                store(places, z, ky, width // TILE, rest)

    return inline


def _place(places, z, ky, x, dx: int, paired: bool, known: dict[int, Any]) -> Any:
    """The place of column x + dx, where x is even if ``paired``."""
    if not paired:
        column = x + dx
        shifted = T.shift_right(places[z, ky, column // 2], T.cast(column % 2 * 32, "int64"))
        return T.bind(shifted & T.int64(0xFFFFFFFF))
    if dx // 2 not in known:
        known[dx // 2] = T.bind(places[z, ky, x // 2 + dx // 2])
    pair = known[dx // 2]
    return T.bind(T.shift_right(pair, T.int64(32)) if dx % 2 else pair & T.int64(0xFFFFFFFF))


def gather_add(
    grid: TapGrid, table: TableFormat, sums: list[Vectors], rows, places, z, x, factor, even
) -> list[Vectors]:
    """Emit the additions of segment z of the tables for neighbouring output pixels, the first at column x of the piece.

    Args:
        sums: accumulators of each output pixel.
        rows: the tables as a flat buffer, with a function for the start of a segment's.
        even: whether x SW is even.
        factor: function of (ky, x) that gives the gain of a vector, or None.

    Returns:
        The new accumulators.
    """
    sums = list(sums)
    flat, start_of = rows
    for ky in range(grid.KH):
        pairs: dict[int, Any] = {}
        reads: dict[int, list[tuple[int, int]]] = {}
        for column in range(len(sums)):
            for kx in range(grid.KW):
                reads.setdefault(column * grid.SW + kx * grid.DW, []).append((column, ky * grid.KW + kx))
        for dx in sorted(reads):
            place = _place(places, z, ky, x * grid.SW, dx, even, pairs)
            gain = None if factor is None else T.bind(factor(ky, x * grid.SW + dx))
            for column, tap in reads[dx]:

                def row(first, count, place=place, tap=tap):
                    return flat[lanes(start_of(z) + place + T.int64(tap * table.row + first), count)]

                sums[column] = table.add(sums[column], row, gain)
    return sums
