"""Prefix sums over what each thread counted, for lists in ascending order whose length stays on the GPU.

A list is made of blocks of ``BLOCK`` successive items, ``EACH`` for a thread. One kernel counts the entries of each
block, the next adds up the counts before its own block and before each of its threads. Nothing depends on the order in
which blocks and threads run.
"""

from __future__ import annotations

from tvm.script import tirx as T

THREADS = 256
EACH = 4
BLOCK = THREADS * EACH
_STEPS = THREADS.bit_length() - 1


def blocks_of(items):
    """Blocks that some items are counted in."""
    return (items + (BLOCK - 1)) // BLOCK


def count_block(J: int):
    """Inline ``(own, total, counts, place, t)``: counts[place, j] = sum of the threads' own[j], j < J.

    ``total`` int32 [J] is shared memory; ``counts`` is flat.
    """

    @T.inline
    def inline(own, total, counts, place, t):
        if t < J:
            total[t] = 0
        T.tvm_storage_sync("shared")
        for j in T.unroll(J):
            if own[j] > 0:
                T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(total[j]), own[j]))
        T.tvm_storage_sync("shared")
        if t < J:
            counts[place * J + t] = total[t]

    return inline


def entries_before(J: int):
    """Inline ``(own, counts, first, block, before, sums, held, t)``: held[j] = entries of the list before thread t's.

    ``counts`` is flat, and ``first`` the place in it of the list's first block. ``before`` int32 [J] and ``sums`` int32
    [J * THREADS] are shared memory; afterwards ``before[j] + sums[(j + 1) * THREADS - 1]`` are the entries up to the
    end of the block.
    """

    @T.inline
    def inline(own, counts, first, block, before, sums, held, t):
        if t < J:
            before[t] = 0
        T.tvm_storage_sync("shared")
        for j in T.unroll(J):
            held[j] = 0
        for i in range((block + (THREADS - 1)) // THREADS):
            if i * THREADS + t < block:
                for j in T.unroll(J):
                    held[j] = held[j] + counts[(first + i * THREADS + t) * J + j]
        for j in T.unroll(J):
            if held[j] > 0:
                T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(before[j]), held[j]))
            sums[j * THREADS + t] = own[j]
        T.tvm_storage_sync("shared")
        # Sums of the threads up to each, in steps of powers of two.
        for step in range(_STEPS):
            for j in T.unroll(J):
                held[j] = 0
                if t >= T.shift_left(1, step):
                    held[j] = sums[j * THREADS + t - T.shift_left(1, step)]
            T.tvm_storage_sync("shared")
            for j in T.unroll(J):
                sums[j * THREADS + t] = sums[j * THREADS + t] + held[j]
            T.tvm_storage_sync("shared")
        for j in T.unroll(J):
            held[j] = before[j] + sums[j * THREADS + t] - own[j]

    return inline
