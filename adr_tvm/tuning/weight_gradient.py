"""Gradients of the weights of convolutions and dense layers as tuning tasks.

Input gradients need none of their own: their phases are convolutions, looked up as ``conv2d``.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import tirx
from tvm.target import Target

from adr_tvm.report.formats import geometry_text
from adr_tvm.schedules.register_tile import MAX_VECTORS, RegisterTile, isa_of
from adr_tvm.schedules.tuned import KernelShape, tuned_schedules, weight_gradient_schedule
from adr_tvm.schedules.weight_gradient import weight_gradient
from adr_tvm.schedules.weight_gradient_schedule import (
    WeightGradientSchedule,
    layout_of,
    parts_of,
    step_cost,
    vector_lanes,
    weight_gradient_tiles,
)
from adr_tvm.tuning.task import Arguments

PIXELS = (128, 256, 512, 1024)
GROUPS = (64, 128, 256, 1024)  # channels
PADDED = 1.2  # entries computed for those wanted, relative to the tile that wastes least
MOST_CHANNELS, MOST_PIXELS = 1 << 16, 1 << 14  # of a group and of a chunk, from a file
# What is tried first; in vector multiply-adds of a step of one tile.
WAITING = 4.0  # a vector of dW, stored and loaded between two chunks
COPY = 2.0  # a vector of an operand that is packed
IN_PLACE = 0.02  # relative: an operand whose pixels lie apart
TASK = 200.0


class WeightGradientTask:
    """See ``TuningTask``; the kernel is ``schedules/weight_gradient.py``.

    Raises:
        ValueError: the batch of the kernel is not known.
    """

    schedule_type: ClassVar[type] = WeightGradientSchedule

    def __init__(self, kernel: KernelShape, target: Target, images: int) -> None:
        if kernel.batch is None:
            raise ValueError("the gradient of weights needs a batch that is known")
        self.kernel, self.images, self.target = kernel, kernel.batch, target
        self.geometry, self.isa = kernel.geometry, isa_of(target)
        self.layout, self.parts = layout_of(kernel.geometry, self.images), parts_of(kernel.geometry, self.images)

    @property
    def name(self) -> str:
        """As in the report."""
        return f"weight gradient of {self.images} x {geometry_text(self.geometry)}"

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        return 2.0 * self.images * self.geometry.macs

    @property
    def weight_bytes(self) -> int:
        """Of dW."""
        return 4 * self.geometry.K * self.geometry.M

    def default(self) -> WeightGradientSchedule:
        """As ``schedules/tuned.py`` chooses it."""
        with tuned_schedules(None):
            return weight_gradient_schedule(self.target, self.geometry, self.images)

    def candidates(self, threads: int) -> dict[WeightGradientSchedule, float]:
        """Tiles, sizes of chunks and groups, operands in place or packed; parts never change, since bytes would."""
        pixels = self.layout.batch * self.layout.OH * self.layout.OW
        sizes = sorted({min(count, pixels) for count in PIXELS})
        found = {self.default()} | {
            WeightGradientSchedule(tile, size, max(1, rows // tile.MR), max(1, channels // tile.NR), pack_x, pack_dz)
            for tile in self._tiles()
            for size in sizes
            for rows in GROUPS[:3]
            for channels in GROUPS
            for pack_x in ((False,) if self.layout.padded else (False, True))
            for pack_dz in (False, True)
        }
        return {schedule: self._cost(schedule, threads) for schedule in found}

    def _tiles(self) -> list[RegisterTile]:
        lanes = vector_lanes(self.isa, self.layout.M)
        tiles = weight_gradient_tiles(self.isa, self.layout.rows, self.layout.M, lanes)
        costs = {tile: self._computed(tile) * step_cost(tile) for tile in tiles}
        return [tile for tile in tiles if costs[tile] <= PADDED * min(costs.values())]

    def _computed(self, tile: RegisterTile) -> int:
        return -(-self.layout.rows // tile.MR) * -(-self.layout.M // tile.NR)

    def _cost(self, s: WeightGradientSchedule, threads: int) -> float:
        """Of the busiest thread."""
        lay, vectors = self.layout, s.tile.vectors
        tiles, blocks = -(-lay.rows // s.tile.MR), -(-lay.M // s.tile.NR)
        groups = -(-tiles // s.tiles) * -(-blocks // s.blocks)
        pixels, taps = lay.batch * lay.OH * lay.OW, lay.KH * lay.KX
        each = step_cost(s.tile) + WAITING * s.tile.MR * vectors / s.pixels
        work = pixels * taps * tiles * blocks * each
        reads = -(-blocks // s.blocks), -(-tiles // s.tiles)
        work *= 1 + IN_PLACE * ((not s.pack_x) + (not s.pack_dz))
        work += COPY * pixels * (reads[0] * tiles * s.pack_x + reads[1] * blocks * vectors * s.pack_dz)
        tasks = groups * self.parts.count
        return -(-tasks // threads) / tasks * (work + TASK * tasks)

    def accepts(self, schedule: WeightGradientSchedule) -> bool:
        """Whether its tile fits the registers and the gradient, and its buffers memory."""
        tile, lanes = schedule.tile, vector_lanes(self.isa, self.layout.M)
        if tile.lanes != lanes or tile.NR % lanes or not lanes <= tile.NR <= MAX_VECTORS * lanes:
            return False
        return (
            tile in weight_gradient_tiles(self.isa, self.layout.rows, self.layout.M, lanes)
            and max(schedule.tiles * tile.MR, schedule.blocks * tile.NR) <= MOST_CHANNELS
            and schedule.pixels <= MOST_PIXELS
        )

    def function(self, schedule: WeightGradientSchedule) -> tirx.PrimFunc:
        """The kernel."""
        return weight_gradient(self.geometry, self.images, schedule)

    def arguments(self, schedule: WeightGradientSchedule) -> Arguments:
        """X, which the forward pass read last, and dZ."""
        g = self.geometry
        return Arguments(list(self._data), (0,), [((g.KH, g.KW, g.C, g.M), "float32")])

    @cached_property
    def _data(self) -> list[np.ndarray]:
        g, rng = self.geometry, np.random.default_rng(0)
        x = rng.standard_normal((self.images, g.H, g.W, g.C), np.float32)
        return [np.maximum(x, 0), rng.standard_normal((self.images, g.OH, g.OW, g.M), np.float32)]
