"""Sums of dZ over the members of each piece, for every tap (``docs/algorithm.md``, clause B2; ``cluster_pieces``).

A thread adds up a few output channels under one tap, members in the order of the list. Neighbouring threads read
neighbouring channels of the same pixel of dZ. Where the members lie is worked out once for a block, in shared memory.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.cluster_pieces import ClusterPieces

THREADS = 128
IN_FLIGHT = 4  # members that are read before they are added
MEMBERS = 1024  # of a block, whose places are in shared memory
OUTSIDE = -(1 << 20)  # row of no tap's pixel


def _threads_across(layout: ClusterPieces, V: int) -> int:
    """Threads that share the sums of a piece: as many as have work, so that narrow layers have several in a block."""
    least = -(-THREADS * layout.piece // MEMBERS)
    return min(THREADS, 1 << (max(-(-layout.width // V), least) - 1).bit_length())


@functools.cache
def piece_sums(layout: ClusterPieces) -> tirx.PrimFunc:
    """The table of one round.

    Returns:
        PrimFunc of dZ float32 [B, OH, OW, M], members int32 [groups, N], firsts int32 [groups, pieces + 1], totals
        int32 [groups, 2], round int32 [2], of segments and of pieces, and the output table float32 [U, together, rows,
        taps M], of which rows behind the last piece are not written.
    """
    g, R = layout.geometry, -(-layout.piece // IN_FLIGHT) * IN_FLIGHT
    OH, OW, M, KW = g.OH, g.OW, g.M, g.KW
    (SH, SW), (DH, DW), (_, PL, _, PR) = g.strides, g.dilation, g.padding
    pixel = layout.setting.granularity == "pixel"
    B, G, U, S, N = layout.batch, layout.images, layout.units, layout.segments, layout.positions
    rows, together, width, pieces, size = (
        layout.rows, layout.together, layout.width, layout.pieces, layout.map_size
    )  # fmt: skip
    V = 4 if M % 4 == 0 else 1
    across = _threads_across(layout, V)
    each = THREADS // across  # pieces of a block
    down, parts = -(-rows // each), -(-width // (across * V))
    columns = g.W + PL + PR if pixel else OW

    def place(image, position):
        """(row, column, first pixel of the image): of the id map with padding, or of dZ."""
        return position // columns, position % columns, image * (OH * OW)

    def read_by(row, column, tap):
        """(row, column) of the output pixel that reads a position under a tap, and whether there is one."""
        if not pixel:
            return row, column, row >= 0
        y, x = row - tap // KW * DH, column - tap % KW * DW
        inside = T.And(y >= 0, x >= 0)
        if SH > 1:
            inside = T.And(inside, y % SH == 0)
        if SW > 1:
            inside = T.And(inside, x % SW == 0)
        return y // SH, x // SW, T.And(inside, T.And(y // SH < OH, x // SW < OW))

    @T.prim_func(private=True)
    def kernel(z: T.handle, me: T.handle, fi: T.handle, to: T.handle, ro: T.handle, ta: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        DZ = T.match_buffer(z, (T.int64(B), T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        members = T.match_buffer(me, (T.int64(U * S), T.int64(N)), "int32")
        firsts = T.match_buffer(fi, (T.int64(U * S), T.int64(pieces + 1)), "int32")
        totals = T.match_buffer(to, (T.int64(U * S), T.int64(2)), "int32")
        round = T.match_buffer(ro, (T.int64(2),), "int32")
        table = T.match_buffer(ta, (T.int64(U), T.int64(together), T.int64(rows), T.int64(width)), "float32")
        flat_z = T.decl_buffer((B * OH * OW * M,), "float32", data=DZ.data)
        flat_table = T.decl_buffer((U * together * rows * width,), "float32", data=table.data)
        for block in T.thread_binding(U * together * down * parts, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                row = T.alloc_buffer((each * R,), "int32", scope="shared")
                column = T.alloc_buffer((each * R,), "int32", scope="shared")
                base = T.alloc_buffer((each * R,), "int32", scope="shared")
                total = T.alloc_buffer((V,), "float32", scope="local")
                values = T.alloc_buffer((IN_FLIGHT * V,), "float32", scope="local")
                where = T.alloc_buffer((3,), "int32", scope="local")
                begin = T.alloc_buffer((1,), "int32", scope="local")
                many = T.alloc_buffer((1,), "int32", scope="local")
                u = T.meta_var(block // (together * down * parts))
                zz = T.meta_var(block // (down * parts) % together)
                slot = T.meta_var(t // across)
                r = T.meta_var(block // parts % down * each + slot)
                s = T.meta_var(round[0] * together + zz)
                q = T.meta_var(u * S + s)
                i = T.meta_var(round[1] * rows + r)
                k = T.meta_var((block % parts * across + t % across) * V)
                if s >= S:
                    T.evaluate(T.thread_return())
                if round[1] * rows + block // parts % down * each >= totals[q, 0]:
                    T.evaluate(T.thread_return())
                many[0] = 0
                if T.And(i < totals[q, 0], r < rows):
                    begin[0] = firsts[q, i]
                    many[0] = firsts[q, i + 1] - begin[0]
                for e in range(-(-R // across)):
                    j = T.meta_var(e * across + t % across)
                    if j < R:
                        row[slot * R + j] = OUTSIDE
                        column[slot * R + j] = 0
                        base[slot * R + j] = 0
                        if j < many[0]:
                            n = T.meta_var(members[q, begin[0] + j])
                            found = T.meta_var(place(u * G + n // size, n % size))
                            row[slot * R + j] = found[0]
                            column[slot * R + j] = found[1]
                            base[slot * R + j] = found[2]
                T.tvm_storage_sync("shared")
                if T.And(k < width, many[0] > 0):
                    for v in T.unroll(V):
                        total[v] = T.float32(0)
                    for step in range((many[0] + (IN_FLIGHT - 1)) // IN_FLIGHT):
                        for e in T.unroll(IN_FLIGHT):
                            at = T.meta_var(slot * R + step * IN_FLIGHT + e)
                            where[0] = row[at]
                            where[1] = column[at]
                            where[2] = base[at]
                            found = T.meta_var(read_by(where[0], where[1], k // M))
                            if found[2]:
                                entry = T.meta_var(T.cast(where[2] + found[0] * OW + found[1], "int64") * M + k % M)
                                for v in T.vectorized(V):
                                    values[e * V + v] = flat_z[entry + v]
                            else:
                                for v in T.vectorized(V):
                                    values[e * V + v] = T.float32(0)
                        for e in T.unroll(IN_FLIGHT):
                            for v in T.unroll(V):
                                total[v] = total[v] + values[e * V + v]
                    to_row = T.meta_var((T.cast(u * together + zz, "int64") * rows + r) * width + k)
                    for v in T.vectorized(V):
                        flat_table[to_row + v] = total[v]

    return kernel
