"""Output pixels taken 16 at a time, as lanes: from the channel maps, in rows or across their ends.

A map's row holds more than OW entries. Groups either begin anew with each output row, or run on through the rows of the
map, over entries that are no output pixel: whichever takes fewer. A few rows make a block, whose keys stay in L1.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.channel_maps import ChannelMaps
from adr_tvm.schedules.transpose_tile import TILE, lanes

BLOCK = 1024  # keys of a block, about


@dataclass(frozen=True)
class OutputGroups:
    """The groups of a layer.

    Attributes:
        on: groups run on through the rows of the map.
    """

    layout: ChannelMaps
    on: bool

    @staticmethod
    def of(layout: ChannelMaps) -> OutputGroups:
        """The kind that takes fewer groups."""
        g = layout.geometry
        through = -(-((g.OH - 1) * layout.pitch + g.OW) // TILE)
        return OutputGroups(layout, g.strides == (1, 1) and through < g.OH * -(-g.OW // TILE))

    @property
    def geometry(self) -> ConvGeometry:
        """Of the layer."""
        return self.layout.geometry

    @property
    def pitch(self) -> int:
        """Keys from one output row to the next."""
        return self.layout.pitch if self.on else -(-self.geometry.OW // TILE) * TILE

    @property
    def block(self) -> int:
        """Output rows of a block; the last may have fewer."""
        return min(self.geometry.OH, max(1, BLOCK // self.pitch))

    @property
    def blocks(self) -> int:
        """Of an image."""
        return -(-self.geometry.OH // self.block)

    @property
    def keys(self) -> int:
        """Room for the keys of a block, and a whole number of pairs of groups."""
        return -(-self.block * self.pitch // (2 * TILE)) * 2 * TILE

    def count(self, rows):
        """Groups of so many output rows."""
        if self.on:
            return ((rows - 1) * self.pitch + (self.geometry.OW + TILE - 1)) // TILE
        return rows * (self.pitch // TILE)

    def position(self, group):
        """Offset in a map of what tap 0 of a group's first output pixel reads, from that of the block's first on."""
        if self.on:
            return group * TILE
        per_row = self.pitch // TILE
        return self.pixel(group // per_row, group % per_row * TILE)

    def pixel(self, y, x):
        """Likewise of an output pixel."""
        SH, SW = self.geometry.strides
        return y * (SH * self.layout.pitch) + x * SW

    def load(self, maps, place):
        """float32 x 16 of a group whose first lies at ``place``."""
        SW = self.geometry.strides[1]
        if SW == 1:
            return maps[lanes(place)]
        if SW == 2:
            return T.Shuffle(
                [maps[lanes(place)], maps[lanes(place + (TILE - 1))]],
                [2 * j if 2 * j < TILE else 2 * j + 1 for j in range(TILE)],
            )
        return T.Shuffle([maps[place + j * SW] for j in range(TILE)], list(range(TILE)))
