"""Pieces of clusters (``cluster_pieces``), numbered in the order of the sorted members by a prefix sum."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.cluster_pieces import ClusterPieces
from adr_tvm.schedules.cuda.prefix_sum import BLOCK, EACH, THREADS, blocks_of, count_block, entries_before

_count_block, _entries_before = count_block(1), entries_before(1)


def _marks(R: int, N: int):
    """Inline ``(ids, members, mark, q, j)``: what begins and ends at the j-th member of a group.

    mark int32 [3]: 1 if a piece begins; the id if its cluster does, else -1; the id if the members end, else -1.
    """

    @T.inline
    def inline(ids, members, mark, q, j):
        mark[0] = 0
        mark[1] = -1
        mark[2] = -1
        if j < N:
            id = T.meta_var(ids[q, members[q, j]])
            if id >= 0:
                if j == 0:
                    mark[1] = id
                else:
                    if ids[q, members[q, j - 1]] != id:
                        mark[1] = id
                if T.Or(mark[1] >= 0, j % R == 0):
                    mark[0] = 1
                if j == N - 1:
                    mark[2] = id
                else:
                    if ids[q, members[q, j + 1]] < 0:
                        mark[2] = id

    return inline


@functools.cache
def count_pieces(layout: ClusterPieces) -> tirx.PrimFunc:
    """Pieces that begin in each block of the sorted members.

    Returns:
        PrimFunc of ids int32 [groups, N], members int32 [groups, N] and the output counted int32 [groups, blocks].
    """
    groups, N = layout.members_shape
    blocks, find = blocks_of(N), _marks(layout.piece, N)

    @T.prim_func(private=True)
    def kernel(i: T.handle, me: T.handle, co: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        ids = T.match_buffer(i, (T.int64(groups), T.int64(N)), "int32")
        members = T.match_buffer(me, (T.int64(groups), T.int64(N)), "int32")
        counted = T.match_buffer(co, (T.int64(groups), T.int64(blocks)), "int32")
        flat_counted = T.decl_buffer((groups * blocks,), "int32", data=counted.data)
        for block in T.thread_binding(groups * blocks, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                total = T.alloc_buffer((1,), "int32", scope="shared")
                own = T.alloc_buffer((1,), "int32", scope="local")
                mark = T.alloc_buffer((3,), "int32", scope="local")
                own[0] = 0
                for e in range(EACH):
                    find(ids, members, mark, block // blocks, block % blocks * BLOCK + t * EACH + e)
                    own[0] = own[0] + mark[0]
                _count_block(own, total, flat_counted, block, t)

    return kernel


@functools.cache
def number_pieces(layout: ClusterPieces) -> tirx.PrimFunc:
    """Where pieces begin, whose they are, and how many there are.

    Returns:
        PrimFunc of ids, members, counted as of ``count_pieces`` and the outputs firsts int32 [groups, pieces + 1], the
        place of each piece's first member, and behind the last piece the end of all; owners int32 [groups, pieces], its
        cluster; leading int32 [groups, capacity + 1], the first piece of each cluster, and behind the last cluster the
        end of all; totals int32 [groups, 2], pieces and clusters.
    """
    groups, N = layout.members_shape
    blocks, find, pieces, cap = blocks_of(N), _marks(layout.piece, N), layout.pieces, layout.capacity

    @T.prim_func(private=True)
    def kernel(i: T.handle, me: T.handle, co: T.handle, fi: T.handle, ow: T.handle, le: T.handle, to: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        ids = T.match_buffer(i, (T.int64(groups), T.int64(N)), "int32")
        members = T.match_buffer(me, (T.int64(groups), T.int64(N)), "int32")
        counted = T.match_buffer(co, (T.int64(groups), T.int64(blocks)), "int32")
        firsts = T.match_buffer(fi, (T.int64(groups), T.int64(pieces + 1)), "int32")
        owners = T.match_buffer(ow, (T.int64(groups), T.int64(pieces)), "int32")
        leading = T.match_buffer(le, (T.int64(groups), T.int64(cap + 1)), "int32")
        totals = T.match_buffer(to, (T.int64(groups), T.int64(2)), "int32")
        flat_counted = T.decl_buffer((groups * blocks,), "int32", data=counted.data)
        for block in T.thread_binding(groups * blocks, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                before = T.alloc_buffer((1,), "int32", scope="shared")
                sums = T.alloc_buffer((THREADS,), "int32", scope="shared")
                own = T.alloc_buffer((1,), "int32", scope="local")
                held = T.alloc_buffer((1,), "int32", scope="local")
                mark = T.alloc_buffer((3,), "int32", scope="local")
                q = T.meta_var(block // blocks)
                first = T.meta_var(block % blocks * BLOCK + t * EACH)
                own[0] = 0
                for e in range(EACH):
                    find(ids, members, mark, q, first + e)
                    own[0] = own[0] + mark[0]
                _entries_before(own, flat_counted, q * blocks, block % blocks, before, sums, held, t)
                if T.And(block % blocks == 0, t == 0):
                    if ids[q, members[q, 0]] < 0:
                        totals[q, 0] = 0
                        totals[q, 1] = 0
                for e in range(EACH):
                    find(ids, members, mark, q, first + e)
                    if mark[1] >= 0:
                        leading[q, mark[1]] = held[0]
                    if mark[0] == 1:
                        firsts[q, held[0]] = first + e
                        owners[q, held[0]] = ids[q, members[q, first + e]]
                        held[0] = held[0] + 1
                    if mark[2] >= 0:
                        firsts[q, held[0]] = first + e + 1
                        leading[q, mark[2] + 1] = held[0]
                        totals[q, 0] = held[0]
                        totals[q, 1] = mark[2] + 1

    return kernel
