"""Numbering the clusters of one (unit, segment) and summing their members (``docs/algorithm.md``, clauses 6, 7, 12).

Vectors arrive in order, each with the word that its cluster's members share; whoever numbers a segment runs alone,
so neither numbers nor sums depend on the threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from adr_tvm.schedules.hash_table import find_cluster, slot_count
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat
from adr_tvm.settings import ReuseSetting

DIRECT_BITS = 12  # up to this many hash bits a key is its own slot
SPREAD = 16  # rows behind those of clusters that vectors of zeros are added to


@dataclass(frozen=True)
class Numbering:
    """Parts of a kernel that numbers one segment's vectors.

    Attributes:
        begin: inline ``(slots, sums, bases, sizes, n)``: nothing is known yet. ``n`` int32 [2]: clusters; non-finite
            vectors.
        place: inline ``(chunks, v, word, index, slots, words, sums, bases, sizes, n, id)``: id[0] = cluster of the
            vector whose entries are the list ``chunks`` of bound float32 x 16, and whose word is int64 and not
            negative. It joins its cluster's sum. ``v`` float32 [Lp] is scratch; neighbouring vectors have
            neighbouring ``index``.
        finish: inline ``(centroids, u, s, sums, bases, sizes, n)``: write the means.
        write_keys: inline ``(keys, u, s, slots, words, n)``: write the key of each cluster, 2^H for that of zeros.
    """

    begin: Any
    place: Any
    finish: Any
    write_keys: Any


def numbering(setting: ReuseSetting, L: int, Lp: int, slots_size: Any) -> Numbering:
    """How to number vectors of L entries, padded to Lp. ``slots_size`` comes from ``table_slots``."""
    exact, direct = setting.hash == "exact", has_direct_slots(setting)

    def is_zero(word):
        return word == T.int64(1 << setting.H)

    def row_of(word, index, cluster, sizes):
        """Where a vector is added up.

        The sum of zeros stays zero, but one row for all of them would make each addition wait for the last.
        """
        if exact:
            return cluster
        spare = T.cast(sizes.shape[0], "int32") - SPREAD
        return T.bind(T.Select(is_zero(word), spare + T.cast(index % SPREAD, "int32"), cluster))

    def open_cluster(chunks, word, sums, bases, sizes, cluster):
        T.buffer_store(sizes, 0 if exact else T.Select(is_zero(word), 1, 0), [cluster])
        for c, entries in enumerate(chunks):
            T.buffer_store(bases, entries, [cluster, lanes(c * TILE)])
            T.buffer_store(sums, splat(T.float32(0)), [cluster, lanes(c * TILE)])

    def add_member(chunks, sums, bases, sizes, cluster):
        T.buffer_store(sizes, sizes[cluster] + 1, [cluster])
        for c, entries in enumerate(chunks if not exact else []):
            at = [cluster, lanes(c * TILE)]
            T.buffer_store(sums, sums[cluster, lanes(c * TILE)] + (entries - bases[cluster, lanes(c * TILE)]), at)

    def keep(chunks, v):
        for c, entries in enumerate(chunks):
            T.buffer_store(v, entries, [lanes(c * TILE)])

    def same_bits(bases, v):
        def clear_if_different(other, hit) -> None:
            with T.serial(L) as j, T.If(T.reinterpret("int32", bases[other, j]) != T.reinterpret("int32", v[j])):
                with T.Then():
                    T.buffer_store(hit, 0, [0])

        return clear_if_different

    @T.inline
    def begin(slots, sums, bases, sizes, n):
        n[0] = 0
        n[1] = 0
        if not exact:
            for i in range(SPREAD):
                row = T.meta_var(sizes.shape[0] - SPREAD + i)
                sizes[row] = 0
                for c in T.unroll(Lp // TILE):
                    bases[row, lanes(c * TILE)] = splat(T.float32(0))
                    sums[row, lanes(c * TILE)] = splat(T.float32(0))
        for i in range(slots_size):
            slots[i] = -1

    @T.inline
    def place(chunks, v, word, index, slots, words, sums, bases, sizes, n, id):
        if direct:
            if slots[word] < 0:
                slots[word] = n[0]
                open_cluster(chunks, word, sums, bases, sizes, n[0])
                n[0] = n[0] + 1
            id[0] = slots[word]
        else:
            probe = T.alloc_buffer((1,), "int64", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")

            if exact:
                keep(chunks, v)
            find = T.meta_var(find_cluster(same_bits(bases, v) if exact else None))
            find(slots, words, slots_size, word, probe, id, hit)
            if id[0] < 0:
                id[0] = n[0]
                slots[probe[0]] = n[0]
                words[n[0]] = word
                open_cluster(chunks, word, sums, bases, sizes, n[0])
                n[0] = n[0] + 1
        add_member(chunks, sums, bases, sizes, row_of(word, index, id[0], sizes))

    @T.inline
    def finish(centroids, u, s, sums, bases, sizes, n):
        for cluster in range(n[0]):
            for c in T.unroll(Lp // TILE):
                for j in T.vectorized(TILE):
                    centroids[u, s, cluster, c * TILE + j] = bases[cluster, c * TILE + j] + sums[
                        cluster, c * TILE + j
                    ] / T.cast(sizes[cluster], "float32")

    @T.inline
    def write_keys(keys, u, s, slots, words, n):
        if direct:
            for key in range(slots_size):
                if slots[key] >= 0:
                    keys[u, s, slots[key]] = T.cast(key, "int32")
        else:
            for cluster in range(n[0]):
                keys[u, s, cluster] = T.cast(words[cluster], "int32")

    return Numbering(begin, place, finish, write_keys)


def has_direct_slots(setting: ReuseSetting) -> bool:
    """Whether every key has a slot of its own."""
    return setting.hash != "exact" and setting.H <= DIRECT_BITS


def table_slots(setting: ReuseSetting, vectors):
    """Slots of the table of a segment with a number of vectors (int or expression)."""
    return 2**setting.H + 1 if has_direct_slots(setting) else slot_count(setting, vectors)
