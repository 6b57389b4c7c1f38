"""Where the entries of a segment's neuron vectors lie in the channel maps, and loading one vector.

Entries whose places follow each other are a *run*: with L = 10 and a 5 x 5 window a vector has two. A vector is
put together from one load for each run, which begins where lane 0 would lie, so that every entry arrives in its lane.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.channel_maps import ChannelMaps
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat


def period(g: ConvGeometry, L: int) -> int:
    """Segments after which the taps of their entries repeat."""
    taps = g.KH * g.KW
    return taps // math.gcd(L, taps)


def _patterns(g: ConvGeometry, L: int) -> list[range]:
    """The different segments, as entries of the im2col row; others repeat them some channels later."""
    segments = -(-g.K // L)
    first = [range(s * L, min(s * L + L, g.K)) for s in range(min(segments, period(g, L)))]
    return [*first, range((segments - 1) * L, g.K)]


def most_runs(g: ConvGeometry, L: int) -> list[int]:
    """Runs in each 16 entries of a segment, in the segment that has most."""
    maps, taps = ChannelMaps(g, together=False), g.KH * g.KW
    most = [1] * -(-L // TILE)
    for entries in _patterns(g, L):
        places = [k // taps * maps.map_size + maps.tap(k % taps) for k in entries]
        for c, start in enumerate(range(0, len(places), TILE)):
            chunk = places[start : start + TILE]
            breaks = sum(after != before + 1 for before, after in itertools.pairwise(chunk))
            most[c] = max(most[c], breaks + 1)
    return most


def may_lie_in_padding(g: ConvGeometry, L: int) -> bool:
    """Whether some segment of some output pixel reads no pixel of the image."""
    (PT, PL, _, _), (SH, SW), (DH, DW), taps = g.padding, g.strides, g.dilation, g.KH * g.KW
    y = np.arange(g.OH)[:, None] * SH - PT + np.arange(g.KH) * DH
    x = np.arange(g.OW)[:, None] * SW - PL + np.arange(g.KW) * DW
    rows = np.unique((y >= 0) & (y < g.H), axis=0)  # which rows of taps some output row sees
    columns = np.unique((x >= 0) & (x < g.W), axis=0)
    for entries in _patterns(g, L):
        tap = np.unique(np.array(entries) % taps)
        if not (rows[:, None, tap // g.KW] & columns[None, :, tap % g.KW]).any(axis=-1).all():
            return True
    return False


@dataclass(frozen=True)
class SegmentEntries:
    """Parts of a kernel that reads the vectors of every segment.

    ``offsets`` int64 [S, Lp]: places of the entries, from output pixel 0 in the segment's first channel on; ``shifts``
    int64 [S, loads]: where each load begins; ``masks`` int32 [S, loads, 16]: -1 for the entries it brings, else 0.
    """

    layout: ChannelMaps
    L: int

    @cached_property
    def runs(self) -> list[int]:
        """Runs in each 16 entries, at most."""
        return most_runs(self.layout.geometry, self.L)

    @property
    def loads(self) -> int:
        """As many for each 16 entries as the most that one of them takes."""
        return len(self.runs) * max(self.runs)

    def find(self):
        """Inline ``(offsets, shifts, masks, B)``: fill them."""
        maps, g, L = self.layout, self.layout.geometry, self.L
        taps, S = g.KH * g.KW, -(-g.K // L)
        loads, most = self.loads, max(self.runs)

        def offset(s, l, B):
            channel = T.cast((s * L + l) // taps - s * L // taps, "int64")
            return channel * maps.step(B) + T.cast(maps.tap((s * L + l) % taps), "int64")

        @T.inline
        def inline(offsets, shifts, masks, B):
            for s in T.parallel(S):
                run = T.alloc_buffer((1,), "int32", scope="local")
                run[0] = 0
                for i in range(loads):
                    shifts[s, i] = T.int64(0)
                    masks[s, i, lanes()] = splat(T.int32(0))
                for l in range(T.min(L, g.K - s * L)):
                    offsets[s, l] = offset(s, l, B)
                    if l % TILE == 0:
                        run[0] = l // TILE * most
                        shifts[s, run[0]] = offsets[s, l]
                    elif offsets[s, l] != offsets[s, l - 1] + T.int64(1):
                        run[0] = run[0] + 1
                        shifts[s, run[0]] = offsets[s, l] - T.cast(l % TILE, "int64")
                    masks[s, run[0], l % TILE] = -1

        return inline

    def bind(self, shifts, masks, s) -> list[list[tuple]]:
        """(shift, mask) of the loads of each 16 entries of segment s, as variables that stay in registers."""
        most = max(self.runs)
        return [
            [(T.bind(shifts[s, c * most + r]), T.bind(masks[s, c * most + r, lanes()])) for r in range(runs)]
            for c, runs in enumerate(self.runs)
        ]

    @staticmethod
    def load(maps, position, loads: list[list[tuple]]) -> list:
        """The vector at a position as bound vectors of 16, zeros behind; ``loads`` from ``bind``."""
        chunks = []
        for chunk in loads:
            bits = splat(T.int32(0))
            for shift, mask in chunk:
                bits = bits | (T.reinterpret("int32x16", maps[lanes(position + shift)]) & mask)
            chunks.append(T.bind(T.reinterpret("float32x16", bits)))
        return chunks
