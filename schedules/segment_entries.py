"""Where the entries of a segment's neuron vectors lie in the channel maps, and loading one vector.

Entries whose places follow each other are a *run*: with L = 10 and a 5 x 5 window a vector has two. A vector is
put together from one load for each run, which begins where lane 0 would lie, so that every entry arrives in its lane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.channel_maps import ChannelMaps
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat


def _patterns(g: ConvGeometry, L: int) -> list[range]:
    """The different segments, as entries of the im2col row; others repeat them some channels later."""
    taps, segments = g.KH * g.KW, -(-g.K // L)
    period = min(segments, taps // math.gcd(L, taps))
    first = [range(s * L, min(s * L + L, g.K)) for s in range(period)]
    return [*first, range((segments - 1) * L, g.K)]


def most_runs(g: ConvGeometry, L: int) -> list[int]:
    """Runs in each 16 entries of a segment, in the segment that has most."""
    maps, taps = ChannelMaps(g), g.KH * g.KW
    most = [1] * -(-L // TILE)
    for entries in _patterns(g, L):
        places = [k // taps * maps.map_size + maps.tap(k % taps) for k in entries]
        for c, start in enumerate(range(0, len(places), TILE)):
            chunk = places[start : start + TILE]
            breaks = sum(after != before + 1 for before, after in zip(chunk, chunk[1:], strict=False))
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
    """Parts of a kernel that reads the vectors of one segment.

    ``offsets`` int64 [Lp]: places of the entries, from output pixel 0 in the segment's first channel on; ``shifts``
    int64 [len(runs) * max(runs)]: where the load of each run begins; ``run_of`` int32 [Lp]: which run of its 16 an entry is in, -1
    beyond the segment.
    """

    geometry: ConvGeometry
    L: int

    @property
    def runs(self) -> list[int]:
        """Runs in each 16 entries, at most."""
        return most_runs(self.geometry, self.L)

    def find(self):
        """Inline ``(offsets, shifts, run_of, s, length, run)``: fill them; ``run`` int32 [1] is scratch."""
        g, L, maps, taps = self.geometry, self.L, ChannelMaps(self.geometry), self.geometry.KH * self.geometry.KW
        chunks, most = len(self.runs), max(self.runs)

        def offset(s, l):
            tap = (s * L + l) % taps
            channel = (s * L + l) // taps - s * L // taps
            return T.cast(channel * maps.map_size + maps.tap(tap), "int64")

        @T.inline
        def inline(offsets, shifts, run_of, s, length, run):
            for i in range(chunks * most):
                shifts[i] = T.int64(0)
            for l in range(chunks * TILE):
                offsets[l] = T.int64(0)
                run_of[l] = -1
                if l < length:
                    offsets[l] = offset(s, l)
            for l in range(length):
                c = T.meta_var(l // TILE)
                if l % TILE == 0:
                    run[0] = 0
                    shifts[c * most] = offsets[l]
                elif offsets[l] != offsets[l - 1] + T.int64(1):
                    run[0] = run[0] + 1
                    shifts[c * most + run[0]] = offsets[l] - T.cast(l % TILE, "int64")
                run_of[l] = run[0]

        return inline

    def load(self, maps, position, shifts, run_of) -> list:
        """The vector at a position as bound vectors of 16, zeros behind."""
        chunks, most = [], max(self.runs)
        for c, runs in enumerate(self.runs):
            run, chunk = T.bind(run_of[lanes(c * TILE)]), splat(T.float32(0))
            for r in range(runs):
                entries = maps[lanes(position + shifts[c * most + r])]
                chunk = T.bind(T.Select(run == splat(T.int32(r)), entries, chunk))
            chunks.append(chunk)
        return chunks
