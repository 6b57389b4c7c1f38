"""Every channel of the input as a padded map, rows behind one another: what ``segment`` neuron vectors are read from.

An entry of a segment is one channel seen through one tap. In a map the same entry of output pixels in a row lies
side by side (every SW-th float), so that 16 output pixels are 16 lanes; and the entries of one vector that belong to
one row of taps lie side by side as well. One more map, of ones where the image is and zeros in the padding, tells
which vectors read the image at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat, transpose_tile

MARGIN = TILE  # floats in front of the first map that a vector may take in


@dataclass(frozen=True)
class ChannelMaps:
    """Layout of the maps [image, channel, row, column], behind them that of the padding.

    Attributes:
        together: a channel's maps of all images follow each other, [channel, image, row, column]: what goes through the
            images segment by segment then reads memory in order.
    """

    geometry: ConvGeometry
    together: bool

    @property
    def rows(self) -> int:
        """Of a map."""
        return self.geometry.H + self.geometry.padding[0] + self.geometry.padding[2]

    @property
    def pitch(self) -> int:
        """Entries of a row."""
        return self.geometry.W + self.geometry.padding[1] + self.geometry.padding[3]

    @property
    def map_size(self) -> int:
        """Entries of a map."""
        return self.rows * self.pitch

    def size(self, images):
        """Entries of a number of images, with the map of the padding and what vectors take in around them."""
        behind = TILE * self.geometry.strides[1]
        return images * (self.geometry.C * self.map_size) + (MARGIN + self.map_size + behind)

    def step(self, images):
        """From a channel's map to the next channel's of the same image."""
        return images * self.map_size if self.together else T.int64(self.map_size)

    def start(self, image, channel, images):
        """Where a map begins."""
        size = self.map_size if self.together else self.geometry.C * self.map_size
        return T.cast(image, "int64") * size + (T.cast(channel, "int64") * self.step(images) + MARGIN)

    def padding_start(self, images):
        """Where the map of the padding begins."""
        return images * (self.geometry.C * self.map_size) + MARGIN

    def tap(self, tap: int) -> int:
        """Offset in a map of what a tap of output pixel 0 reads."""
        g = self.geometry
        return tap // g.KW * g.dilation[0] * self.pitch + tap % g.KW * g.dilation[1]

    def place(self, y, x):
        """Offset in a map of pixel (y, x) of the image."""
        return (y + self.geometry.padding[0]) * self.pitch + (x + self.geometry.padding[1])


def fill_maps(layout: ChannelMaps):
    """Inline ``(X, maps, B)``: maps = X [B, H, W, C] and the map of the padding; 16 channels of an image a task."""
    g, size = layout.geometry, layout.map_size
    H, W, C = g.H, g.W, g.C
    blocks = -(-C // TILE)
    tiles = -(-W // TILE) if W >= TILE and C % TILE == 0 else 0
    padded = any(g.padding)

    def transpose(X, maps, image, y, x, channel, start, step):
        rows = [T.bind(X[image, y, x + q, lanes(channel)]) for q in range(TILE)]
        for c, column in enumerate(transpose_tile(rows)):
            T.buffer_store(maps, column, [lanes(start + c * step + T.cast(layout.place(y, x), "int64"))])

    @T.inline
    def clear(maps, start):
        for i in range(size // TILE):
            maps[lanes(start + i * TILE)] = splat(T.float32(0))
        for i in range(size % TILE):
            maps[start + (size // TILE * TILE + i)] = T.float32(0)

    @T.inline
    def inline(X, maps, B):
        for task in T.parallel(B * blocks + 1):
            image = T.meta_var(task // blocks)
            channel = T.meta_var(task % blocks * TILE)
            count = T.meta_var(TILE if C % TILE == 0 else T.min(TILE, C - channel))
            start = T.meta_var(layout.start(image, channel, B))
            step = T.meta_var(layout.step(B))
            if task == B * blocks:
                clear(maps, layout.padding_start(B))
                for y in range(H):
                    for x in range(W):
                        maps[layout.padding_start(B) + layout.place(y, x)] = T.float32(1)
            else:
                if padded:
                    for c in range(count):
                        clear(maps, start + T.cast(c, "int64") * step)
                for y in range(H):
                    if tiles > 0:
                        for tile in range(tiles):
                            transpose(X, maps, image, y, T.min(tile * TILE, W - TILE), channel, start, step)
                    else:
                        for x in range(W):
                            for c in range(count):
                                maps[start + T.cast(c, "int64") * step + layout.place(y, x)] = X[
                                    image, y, x, channel + c
                                ]

    return inline
