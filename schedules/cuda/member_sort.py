"""Positions sorted by cluster: a stable radix sort, so that the members of a cluster lie in ascending order.

Four bits of the id are sorted at a time, those of lowest weight first: each block counts the digits of its positions,
the counts are added up in the order (digit, block), and every position goes where the counts before it say. Nothing
depends on the order in which threads run. Positions in no cluster come last.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.prefix_sum import BLOCK, EACH, THREADS, blocks_of

DIGIT_BITS = 4
DIGITS = 1 << DIGIT_BITS
NO_CLUSTER = 2**31 - 1  # its digits are the largest
_STEPS = THREADS.bit_length() - 1
_CELLS = DIGITS * THREADS
_PER_THREAD = _CELLS // THREADS
_BANKS = 32


def sorting_passes(capacity: int) -> int:
    """Digits that tell ids below ``capacity``, and positions without one, apart."""
    return next(n for n in range(1, 9) if DIGITS**n > capacity)


def _item(members, shift, q, j):
    """The position that is sorted j-th so far."""
    return T.if_then_else(shift[0] == 0, j, members[q, j])


def _digit(ids, q, position, shift):
    id = ids[q, position]
    return T.shift_right(T.if_then_else(id >= 0, id, NO_CLUSTER), shift[0]) & (DIGITS - 1)


@T.inline
def _sum_up(sums, held, t):
    """sums [THREADS] of shared memory become the sums of the threads up to each, in steps of powers of two."""
    T.tvm_storage_sync("shared")
    for step in range(_STEPS):
        held[0] = 0
        if t >= T.shift_left(1, step):
            held[0] = sums[t - T.shift_left(1, step)]
        T.tvm_storage_sync("shared")
        sums[t] = sums[t] + held[0]
        T.tvm_storage_sync("shared")


@functools.cache
def count_digits() -> tirx.PrimFunc:
    """How often each digit occurs in each block of positions.

    Returns:
        PrimFunc of ids int32 [groups, N], members int32 [groups, N], the positions as they are sorted so far, shift
        int32 [1], of the digit's bits (0: the positions are those of the ids, and members are not read), and the output
        counts int32 [groups, DIGITS * blocks].
    """

    @T.prim_func(private=True)
    def kernel(i: T.handle, me: T.handle, sh: T.handle, co: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        groups = T.int64()
        N = T.int64()
        ids = T.match_buffer(i, (groups, N), "int32")
        members = T.match_buffer(me, (groups, N), "int32")
        shift = T.match_buffer(sh, (T.int64(1),), "int32")
        counts = T.match_buffer(co, (groups, blocks_of(N) * DIGITS), "int32")
        for block in T.thread_binding(groups * blocks_of(N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                total = T.alloc_buffer((DIGITS,), "int32", scope="shared")
                q = T.meta_var(T.cast(block, "int64") // blocks_of(N))
                bx = T.meta_var(T.cast(block, "int64") % blocks_of(N))
                if t < DIGITS:
                    total[t] = 0
                T.tvm_storage_sync("shared")
                for e in T.unroll(EACH):
                    j = T.meta_var(T.cast(bx, "int32") * BLOCK + e * THREADS + t)
                    if j < T.cast(N, "int32"):
                        digit = T.meta_var(_digit(ids, q, _item(members, shift, q, j), shift))
                        T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(total[digit]), 1))
                T.tvm_storage_sync("shared")
                if t < DIGITS:
                    counts[q, t * blocks_of(N) + bx] = total[t]

    return kernel


@functools.cache
def digit_offsets() -> tirx.PrimFunc:
    """Sums of what lies before each entry of a row, a block for each row.

    Returns:
        PrimFunc of counts int32 [groups, entries] and the output offsets int32 [groups, entries].
    """

    @T.prim_func(private=True)
    def kernel(co: T.handle, of: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        groups = T.int64()
        entries = T.int64()
        counts = T.match_buffer(co, (groups, entries), "int32")
        offsets = T.match_buffer(of, (groups, entries), "int32")
        for q in T.thread_binding(groups, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                sums = T.alloc_buffer((THREADS,), "int32", scope="shared")
                held = T.alloc_buffer((1,), "int32", scope="local")
                own = T.alloc_buffer((EACH,), "int32", scope="local")
                before = T.alloc_buffer((1,), "int32", scope="local")
                before[0] = 0
                for step in range(T.cast(blocks_of(entries), "int32")):
                    held[0] = 0
                    for e in T.unroll(EACH):
                        j = T.meta_var(step * BLOCK + t * EACH + e)
                        own[e] = 0
                        if j < T.cast(entries, "int32"):
                            own[e] = counts[q, j]
                        held[0] = held[0] + own[e]
                    sums[t] = held[0]
                    _sum_up(sums, held, t)
                    held[0] = before[0]
                    if t > 0:
                        held[0] = held[0] + sums[t - 1]
                    before[0] = before[0] + sums[THREADS - 1]
                    for e in T.unroll(EACH):
                        j = T.meta_var(step * BLOCK + t * EACH + e)
                        if j < T.cast(entries, "int32"):
                            offsets[q, j] = held[0]
                        held[0] = held[0] + own[e]
                    T.tvm_storage_sync("shared")

    return kernel


@functools.cache
def place_members() -> tirx.PrimFunc:
    """Positions in the order of one digit more.

    Returns:
        PrimFunc of ids, members and shift as of ``count_digits``, offsets int32 [groups, DIGITS * blocks] and the
        output placed int32 [groups, N].
    """

    def cell(i):
        """Where entry i lies in shared memory: successive ones of a thread, and one of each thread, in all banks."""
        return i + i // _BANKS

    @T.prim_func(private=True)
    def kernel(i: T.handle, me: T.handle, sh: T.handle, of: T.handle, pl: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        groups = T.int64()
        N = T.int64()
        ids = T.match_buffer(i, (groups, N), "int32")
        members = T.match_buffer(me, (groups, N), "int32")
        shift = T.match_buffer(sh, (T.int64(1),), "int32")
        offsets = T.match_buffer(of, (groups, blocks_of(N) * DIGITS), "int32")
        placed = T.match_buffer(pl, (groups, N), "int32")
        for block in T.thread_binding(groups * blocks_of(N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                found = T.alloc_buffer((_CELLS + _CELLS // _BANKS,), "int32", scope="shared")  # by digit, then thread
                sums = T.alloc_buffer((THREADS,), "int32", scope="shared")
                base = T.alloc_buffer((DIGITS,), "int32", scope="shared")
                held = T.alloc_buffer((1,), "int32", scope="local")
                more = T.alloc_buffer((1,), "int32", scope="local")
                item = T.alloc_buffer((EACH,), "int32", scope="local")
                digit = T.alloc_buffer((EACH,), "int32", scope="local")
                q = T.meta_var(T.cast(block, "int64") // blocks_of(N))
                bx = T.meta_var(T.cast(block, "int64") % blocks_of(N))
                for d in T.unroll(DIGITS):
                    found[cell(d * THREADS + t)] = 0
                for e in T.unroll(EACH):
                    j = T.meta_var(T.cast(bx, "int32") * BLOCK + t * EACH + e)
                    digit[e] = -1
                    if j < T.cast(N, "int32"):
                        item[e] = _item(members, shift, q, j)
                        digit[e] = _digit(ids, q, item[e], shift)
                        place = T.meta_var(cell(digit[e] * THREADS + t))
                        found[place] = found[place] + 1
                T.tvm_storage_sync("shared")
                held[0] = 0
                for k in T.unroll(_PER_THREAD):
                    held[0] = held[0] + found[cell(t * _PER_THREAD + k)]
                sums[t] = held[0]
                _sum_up(sums, held, t)
                held[0] = 0
                if t > 0:
                    held[0] = sums[t - 1]
                for k in T.unroll(_PER_THREAD):
                    more[0] = found[cell(t * _PER_THREAD + k)]
                    found[cell(t * _PER_THREAD + k)] = held[0]
                    held[0] = held[0] + more[0]
                T.tvm_storage_sync("shared")
                if t < DIGITS:
                    base[t] = offsets[q, t * blocks_of(N) + bx] - found[cell(t * THREADS)]
                T.tvm_storage_sync("shared")
                for e in T.unroll(EACH):
                    if digit[e] >= 0:
                        place = T.meta_var(cell(digit[e] * THREADS + t))
                        placed[q, base[digit[e]] + found[place]] = item[e]
                        found[place] = found[place] + 1

    return kernel
