"""A hash table of keys in global memory: of the vectors of one key it keeps the smallest (``docs/algorithm.md``, 12).

A slot belongs to one key, that of the vector that took it first, and ends up with the smallest vector of that key,
whatever the order in which threads came: it is the cluster's representative. Which slot a key gets may differ from run
to run; nothing that is kept depends on it.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.settings import ReuseSetting

THREADS = 256
NO_KEY = -1  # of a vector that is not finite
NO_VECTOR = -2
EMPTY = 2**31 - 1  # a slot that no vector has; greater than any, so that the smallest vector of a slot wins
MULTIPLIER = 0x1E3779B97F4A7C15  # odd, its bits well mixed; TVM's constants have 63 bits


def table_size(setting: ReuseSetting, vectors):
    """Slots of the hash table of some vectors: at least twice the keys that they can have."""
    if setting.hash == "exact":
        return 2 * vectors
    if isinstance(vectors, int):
        return 2 * min(2**setting.H + 1, vectors)
    return 2 * tirx.min(tirx.IntImm("int64", 2**setting.H + 1), vectors)


@functools.cache
def insert_keys() -> tirx.PrimFunc:
    """Put every vector with a key into the table of its group: a unit, or a segment of one.

    Returns:
        PrimFunc of words int64 [groups, N], not negative where there is a key, and table int32 [groups, slots], which
        it changes, and the output slot int32 [groups, N], the word itself for vectors without a key.
    """

    @T.prim_func(private=True)
    def kernel(wo: T.handle, ta: T.handle, sl: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        groups = T.int64()
        N = T.int64()
        slots = T.int64()
        words = T.match_buffer(wo, (groups, N), "int64")
        table = T.match_buffer(ta, (groups, slots), "int32")
        slot = T.match_buffer(sl, (groups, N), "int32")
        for block in T.thread_binding(groups * ((N + (THREADS - 1)) // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                place = T.alloc_buffer((1,), "int64", scope="local")
                holder = T.alloc_buffer((1,), "int32", scope="local")
                found = T.alloc_buffer((1,), "int32", scope="local")
                blocks = T.meta_var((N + (THREADS - 1)) // THREADS)
                q = T.meta_var(T.cast(block, "int64") // blocks)
                n = T.meta_var(T.cast(block, "int64") % blocks * THREADS + t)
                if n < N:
                    found[0] = T.if_then_else(words[q, n] < T.int64(0), 1, 0)
                    if found[0] == 1:
                        slot[q, n] = T.cast(words[q, n], "int32")
                    place[0] = T.cast(
                        T.shift_right(T.cast(words[q, n], "uint64") * T.uint64(MULTIPLIER), T.uint64(24))
                        % T.cast(slots, "uint64"),
                        "int64",
                    )
                    while found[0] == 0:
                        holder[0] = T.call_extern(
                            "int32", "atomicCAS", T.address_of(table[q, place[0]]), EMPTY, T.cast(n, "int32")
                        )
                        if holder[0] == EMPTY:
                            found[0] = 1
                        else:
                            if words[q, holder[0]] == words[q, n]:
                                found[0] = 1
                        if found[0] == 1:
                            T.evaluate(
                                T.call_extern(
                                    "int32", "atomicMin", T.address_of(table[q, place[0]]), T.cast(n, "int32")
                                )
                            )
                            slot[q, n] = T.cast(place[0], "int32")
                        else:
                            place[0] = (place[0] + 1) % slots

    return kernel
