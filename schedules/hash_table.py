"""A hash table from 64-bit words to cluster numbers: open addressing, linear probing, at most half full.

Slots hold cluster numbers (int32, -1 is free); ``words`` holds each cluster's word.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.settings import ReuseSetting


def slot_count(setting: ReuseSetting, vectors):
    """Slots for a number of vectors (int or expression): one per key where that is no more than two per vector."""
    if setting.hash == "exact":
        return 2 * vectors
    if isinstance(vectors, int):
        return min(2**setting.H, 2 * vectors)
    return tirx.min(tirx.IntImm("int64", 2**setting.H), 2 * vectors)


def find_cluster(same=None):
    """Inline ``(slots, words, slots_size, word, probe, found, hit)``: look a word up.

    Afterwards found[0] is its cluster, or -1 and probe[0] is the slot to put it in. ``probe`` is an int64 [1],
    ``found`` and ``hit`` int32 [1] local buffers. ``same``: inline ``(cluster, hit)`` that clears hit[0] when the
    data behind an equal word differ.
    """

    @T.inline
    def inline(slots, words, slots_size, word, probe, found, hit):
        probe[0] = T.truncmod(word & T.int64(0x7FFFFFFFFFFFFFFF), T.cast(slots_size, "int64"))
        hit[0] = 0
        found[0] = slots[probe[0]]
        while T.And(found[0] >= 0, hit[0] == 0):
            if words[found[0]] == word:
                hit[0] = 1
                if same is not None:
                    same(found[0], hit)
            if hit[0] == 0:
                probe[0] = T.if_then_else(probe[0] + 1 == slots_size, T.int64(0), probe[0] + 1)
                found[0] = slots[probe[0]]

    return inline
