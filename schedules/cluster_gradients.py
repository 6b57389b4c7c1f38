"""Weight gradient and gradient of the centroids from sums of dZ over the members of each cluster.

    D_t[c] = sum over the positions p of cluster c of dZ[what tap t of p reads]
    dW_t = C^T D_t,   dC[c] = sum_t D_t[c] W_t^T / n_c

Ning, Guan, Shen (ICDE 2019) have the form with one tap; here one pass over the members makes the sums of all taps, and
both gradients share it (``docs/algorithm.md``, clauses B1 to B8). D is held for a few clusters at a time, in L1: their
sums grow in registers, members in the order of their list, from a block of dZ in L2 (``gradient_layout``).
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import Accumulators, across
from adr_tvm.schedules.cluster import SPARE_CENTROIDS
from adr_tvm.schedules.gradient_layout import GradientLayout, int64

MAX_ROWS = 8  # clusters whose sums are multiplied together


def cluster_rows_together(layout: GradientLayout) -> int:
    """Clusters whose sums are multiplied together: a row of each is in registers."""
    return max(2, min(MAX_ROWS, layout.isa.registers // 2 // layout.vectors))


def _row_vectors(layout: GradientLayout, rows: int) -> int:
    """Vectors of a row of dC that are in registers for all ``rows``."""
    vectors = layout.Lp // layout.isa.lanes
    return max(v for v in (1, 2, 4) if v * rows <= layout.isa.registers // 2 + 1 and vectors % v == 0)


class _Sums:
    """Emits the parts of ``cluster_gradients`` that are written out."""

    def __init__(self, layout: GradientLayout):
        self.layout, self.rows = layout, cluster_rows_together(layout)
        self.lanes, self.vectors, self.NB = layout.isa.lanes, layout.vectors, layout.channels
        self.row_vectors = _row_vectors(layout, self.rows)

    def at(self, start: Any) -> Any:
        """Index of a vector."""
        return across(start, self.lanes)

    def bounds(self, starts: Any, chunk: Any, s: Any, c: Any) -> list[tuple[Any, Any]]:
        """Where the members of a cluster begin and end, for each phase."""
        lists = [f * self.layout.capacity + c for f in range(len(self.layout.phases))]
        return [(starts[chunk, s, at], starts[chunk, s, at + 1]) for at in lists]

    def any_member(self, starts: Any, chunk: Any, s: Any, c: Any) -> Any:
        """Whether a cluster has members in a chunk."""
        result = tirx.const(False, "bool")
        for first, last in self.bounds(starts, chunk, s, c):
            result = T.Or(result, first < last)
        return result

    def sum_members(self, Z: Any, members: Any, starts: Any, chunk: Any, s: Any, c: Any, D: Any, row: Any) -> None:
        """D[row] = the sums of cluster c over the members in a chunk, all taps."""
        together = max(1, self.layout.registers // self.vectors)
        for (first, last), phase in zip(self.bounds(starts, chunk, s, c), self.layout.phases, strict=True):
            for begin in range(0, len(phase.taps), together):
                taps = phase.taps[begin : begin + together]
                sums = Accumulators(len(taps), self.vectors, self.lanes)
                sums.clear()
                start, end = T.bind(first), T.bind(last)
                with T.serial(start, end) as j:
                    place = T.bind(T.cast(members[chunk, s, j], "int64"))

                    def read(i: int, v: int, place=place, taps=taps) -> Any:
                        return Z[self.at(place + T.int64(taps[i][1] * self.NB + v * self.lanes))]

                    sums.add(read)
                for i, (tap, _) in enumerate(taps):
                    for v in range(self.vectors):
                        T.buffer_store(D, sums.vector(i, v), [row, self.at(tap * self.NB + v * self.lanes)])

    def add_weight_gradient(self, D: Any, C: Any, dW: Any, part: Any, block: Any, s: Any) -> None:
        """dW_t += C^T D_t of the clusters at hand."""
        with T.serial(self.layout.taps) as t:
            starts = [t * self.NB + v * self.lanes for v in range(self.vectors)]
            sums = [[T.bind(D[i, self.at(start)]) for start in starts] for i in range(self.rows)]
            with T.serial(self.layout.valid_length(s)) as l:
                totals = [dW[part, block, s, t, l, self.at(v * self.lanes)] for v in range(self.vectors)]
                for i in range(self.rows):
                    entry = T.bind(T.Broadcast(C[i, l], self.lanes))
                    totals = [T.bind(total + entry * sums[i][v]) for v, total in enumerate(totals)]
                for v, total in enumerate(totals):
                    T.buffer_store(dW, total, [part, block, s, t, l, self.at(v * self.lanes)])

    def add_centroid_gradient(
        self, D: Any, W: Any, dC: Any, owner: Any, block: Any, s: Any, which: Any, filled: Any
    ) -> None:
        """dC[c] += sum_t D_t[c] W_t^T of the clusters at hand."""
        width = self.row_vectors * self.lanes
        with T.serial(self.layout.Lp // width) as q:
            sums = Accumulators(self.rows, self.row_vectors, self.lanes)
            sums.clear()
            with T.serial(self.layout.taps * self.NB) as k:
                sums.add_products(lambda i: D[i, k], lambda v: W[block, s, k, self.at(q * width + v * self.lanes)])
            for i in range(self.rows):
                with T.If(i < filled[0]), T.Then():
                    for v in range(self.row_vectors):
                        place = [*owner, s, which[i], self.at(q * width + v * self.lanes)]
                        T.buffer_store(dC, dC[tuple(place)] + sums.vector(i, v), place)


def _copy_block(layout: GradientLayout):
    """Inline ``(dz, Z, chunk, block)``: dZ of a chunk and a block of channels, zeros around it."""
    rows, columns, NB, M = layout.rows, layout.columns, layout.channels, layout.geometry.M
    OH, OW, pitch, lanes = rows.out, columns.out, columns.pitch, layout.isa.lanes
    per_unit, G, images, bands = layout.unit_chunks, layout.images, layout.chunk_images, layout.bands
    block_rows, lead = layout.block_rows, layout.lead

    def copy_pixel(dz, Z, image, oy, ox, block, pixel):
        for v in range(layout.vectors):
            m = block * NB + v * lanes
            to = across(pixel * NB + v * lanes, lanes)
            if M % NB == 0:
                T.buffer_store(Z, dz[image, oy, ox, across(m, lanes)], [to])
                continue
            with T.If(m + lanes <= M):
                with T.Then():
                    T.buffer_store(Z, dz[image, oy, ox, across(m, lanes)], [to])
                with T.Else(), T.serial(lanes) as j:
                    inside = T.if_then_else(m + j < M, dz[image, oy, ox, T.min(m + j, M - 1)], T.float32(0))
                    T.buffer_store(Z, inside, [pixel * NB + v * lanes + j])

    def clear_pixel(Z, pixel):
        for v in range(layout.vectors):
            T.buffer_store(Z, T.Broadcast(T.float32(0), lanes), [across(pixel * NB + v * lanes, lanes)])

    @T.inline
    def inline(dz, Z, chunk, block):
        first = T.meta_var(chunk % per_unit // bands * images)
        oy0 = T.meta_var(layout.first_row(chunk % per_unit % bands))
        for pixel in range(lead):
            clear_pixel(Z, pixel)
        for i in range(T.min(images, G - first)):
            for r in range(block_rows):
                row = T.meta_var(lead + (i * block_rows + r) * pitch)
                if T.And(oy0 + r >= 0, oy0 + r < OH):
                    for ox in range(OW):
                        copy_pixel(dz, Z, chunk // per_unit * G + first + i, oy0 + r, ox, block, row + ox)
                    for x in range(pitch - OW):
                        clear_pixel(Z, row + OW + x)
                else:
                    for x in range(pitch):
                        clear_pixel(Z, row + x)

    return inline


@functools.cache
def cluster_gradients(layout: GradientLayout, averaged: bool) -> tirx.PrimFunc:
    """The kernel.

    Args:
        layout: how it is cut up.
        averaged: whether the gradient of the centroids is wanted.

    Returns:
        PrimFunc of dz float32 [B, OH, OW, M], starts and members of ``member_lists``, centroids float32
        [U, S, rows, entries] of the clustering kernels, then, if ``averaged``, the weights of ``transpose_weights``.
        Outputs: dw float32 [parts, blocks, S, taps, L, channels] and, if ``averaged``, dc float32
        [groups, owners, S, capacity, Lp], not yet divided by n_c. They are summed by ``gradient_sums``.
    """
    g, S, L, Lp, cap, taps = layout.geometry, layout.segments, layout.L, layout.Lp, layout.capacity, layout.taps
    NB, blocks, parts, groups, U = layout.channels, layout.blocks, layout.parts, layout.groups, layout.units
    chunks, per_unit, lanes = layout.chunks, layout.unit_chunks, layout.isa.lanes
    emit, copy_block = _Sums(layout), _copy_block(layout)
    CB, B = emit.rows, layout.batch
    stored = (cap, g.K) if layout.setting.granularity == "row" else (cap + SPARE_CENTROIDS, Lp)

    def owner_of(part, chunk):
        return chunk // per_unit if U > 1 else part

    def copy_centroid(centroids, u, s, c, C, row):
        for l in range(0, L - L % lanes, lanes):
            T.buffer_store(C, centroids[u, s, c, across(l, lanes)], [row, across(l, lanes)])
        for l in range(L - L % lanes, L):
            T.buffer_store(C, centroids[u, s, c, l], [row, l])

    def clear(buffer, place, count):
        with T.serial(count // lanes) as k:
            T.buffer_store(buffer, T.Broadcast(T.float32(0), lanes), [*place, across(k * lanes, lanes)])

    @T.inline
    def multiply(D, C, W, dW, dC, group, part, chunk, block, s, which, filled):
        emit.add_weight_gradient(D, C, dW, part, block, s)
        if averaged:
            emit.add_centroid_gradient(D, W, dC, [group, owner_of(part, chunk)], block, s, which, filled)

    @T.inline
    def segment(Z, members, starts, centroids, W, dW, dC, D, C, which, filled, group, part, chunk, block, s):
        filled[0] = 0
        for c in range(cap):
            if emit.any_member(starts, chunk, s, c):
                emit.sum_members(Z, members, starts, chunk, s, c, D, filled[0])
                copy_centroid(centroids, chunk // per_unit, s, c, C, filled[0])
                if averaged:
                    which[filled[0]] = T.cast(c, "int32")
                filled[0] = filled[0] + 1
            if T.Or(filled[0] == CB, T.And(c == cap - 1, filled[0] > 0)):
                for row in range(CB - filled[0]):
                    clear(D, [filled[0] + row], taps * NB)
                    clear(C, [filled[0] + row], Lp)
                multiply(D, C, W, dW, dC, group, part, chunk, block, s, which, filled)
                filled[0] = 0

    @T.inline
    def run(dz, starts, members, centroids, W, dW, dC):
        for task in T.parallel(groups * parts):
            group = T.meta_var(task // parts)
            part = T.meta_var(task % parts)
            group_blocks = T.meta_var(T.min(layout.group_blocks, blocks - group * layout.group_blocks))
            Z = T.alloc_buffer((layout.block_pixels * NB,), "float32")
            D = T.alloc_buffer((CB, taps * NB), "float32")
            C = T.alloc_buffer((CB, Lp), "float32")
            which = T.alloc_buffer((CB,), "int32", scope="local")
            filled = T.alloc_buffer((1,), "int32", scope="local")
            for b in range(group_blocks):
                for s in range(S):
                    for t in range(taps):
                        for l in range(L):
                            clear(dW, [part, group * layout.group_blocks + b, s, t, l], NB)
            for k in range(T.min(layout.part_chunks, chunks - part * layout.part_chunks)):
                chunk = T.meta_var(part * layout.part_chunks + k)
                if averaged:
                    if k % (per_unit if U > 1 else layout.part_chunks) == 0:
                        for s in range(S):
                            for c in range(cap):
                                clear(dC, [group, owner_of(part, chunk), s, c], Lp)
                for b in range(group_blocks):
                    block = T.meta_var(group * layout.group_blocks + b)
                    copy_block(dz, Z, chunk, block)
                    for s in range(S):
                        segment(
                            Z, members, starts, centroids, W, dW, dC, D, C, which, filled, group, part, chunk, block, s
                        )

    if averaged:

        @T.prim_func(private=True)
        def both(z: T.handle, st: T.handle, m: T.handle, c: T.handle, w: T.handle, dw: T.handle, dc: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            dz = T.match_buffer(z, int64(B, g.OH, g.OW, g.M), "float32")
            starts = T.match_buffer(st, int64(*layout.starts_shape), "int32")
            members = T.match_buffer(m, int64(*layout.members_shape), "int32")
            centroids = T.match_buffer(c, int64(U, S, *stored), "float32")
            W = T.match_buffer(w, int64(*layout.transposed_shape), "float32")
            dW = T.match_buffer(dw, int64(*layout.weight_sums_shape), "float32")
            dC = T.match_buffer(dc, int64(*layout.centroid_sums_shape), "float32")
            run(dz, starts, members, centroids, W, dW, dC)

        return both

    @T.prim_func(private=True)
    def weights_only(z: T.handle, st: T.handle, m: T.handle, c: T.handle, dw: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        dz = T.match_buffer(z, int64(B, g.OH, g.OW, g.M), "float32")
        starts = T.match_buffer(st, int64(*layout.starts_shape), "int32")
        members = T.match_buffer(m, int64(*layout.members_shape), "int32")
        centroids = T.match_buffer(c, int64(U, S, *stored), "float32")
        dW = T.match_buffer(dw, int64(*layout.weight_sums_shape), "float32")
        run(dz, starts, members, centroids, dW, dW, dW)

    return weights_only
