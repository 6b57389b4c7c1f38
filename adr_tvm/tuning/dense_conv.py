"""Dense convolutions and dense layers as tuning tasks."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import tirx
from tvm.target import Target

from adr_tvm.activation import Activation
from adr_tvm.report.formats import geometry_text
from adr_tvm.schedules.conv_schedule import ConvSchedule
from adr_tvm.schedules.dense_conv2d import dense_conv2d
from adr_tvm.schedules.packing import pack_weights, pad_channels
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.tuned import KernelShape, conv_schedule, tuned_schedules
from adr_tvm.tuning.conv_cost import conv_cost
from adr_tvm.tuning.conv_space import conv_schedules, fits_registers
from adr_tvm.tuning.task import Arguments


class DenseConvTask:
    """See ``TuningTask``; the kernel is ``schedules/dense_conv2d.py`` with a ReLU."""

    schedule_type: ClassVar[type] = ConvSchedule

    def __init__(self, kernel: KernelShape, target: Target, images: int) -> None:
        self.kernel, self.images = kernel, kernel.batch or images
        self.target, self.geometry = target, kernel.geometry
        self.isa = isa_of(target)

    @property
    def name(self) -> str:
        """As in the report, with the number of images where it is not 1."""
        text = geometry_text(self.geometry)
        return text if self.images == 1 else f"{self.images} x {text}"

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        return 2.0 * self.images * self.geometry.macs

    @property
    def weight_bytes(self) -> int:
        """Without padding."""
        return 4 * self.geometry.K * self.geometry.M

    def default(self) -> ConvSchedule:
        """As ``schedules/tuned.py`` chooses it."""
        with tuned_schedules(None):
            return conv_schedule(self.target, self.geometry, self.kernel.batch)

    def candidates(self, threads: int) -> dict[ConvSchedule, float]:
        """All of ``conv_schedules``, with their ``conv_cost``.

        A dense layer whose batch is free has its default alone: what is best for one row is not for a thousand.
        """
        g, schedules = self.geometry, [self.default()]
        rows = self.images * g.rows
        if self.kernel.batch is not None or g.rows > 1:
            schedules += conv_schedules(self.isa, g, rows, serial=self.kernel.batch is not None)
        return {s: conv_cost(s, self.isa, g, rows, threads) for s in schedules}

    def accepts(self, schedule: ConvSchedule) -> bool:
        """Whether its tile fits the registers, and its buffers memory."""
        return fits_registers(schedule.tile, self.isa) and schedule.k_step <= 1 << 20 and schedule.panels <= 1 << 20

    def function(self, schedule: ConvSchedule) -> tirx.PrimFunc:
        """With a ReLU and without a residual, which cost every schedule the same."""
        return dense_conv2d(self.geometry, Activation.relu(), schedule)

    def arguments(self, schedule: ConvSchedule) -> Arguments:
        """X, packed weights, padded bias."""
        g, NR = self.geometry, schedule.tile.NR
        x, w, bias = self._data
        return Arguments(
            [x, pack_weights(w, NR), pad_channels(bias, NR)], (1,), [((self.images, g.OH, g.OW, g.M), "float32")]
        )

    @cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        g, rng = self.geometry, np.random.default_rng(0)
        x = rng.standard_normal((self.images, g.H, g.W, g.C), np.float32)
        w = rng.standard_normal((g.KH, g.KW, g.C, g.M), np.float32)
        return np.maximum(x, 0), w, rng.standard_normal(g.M, np.float32)
