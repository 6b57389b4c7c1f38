"""The GEMM and gather-add of layers that reuse (``pixel``, ``segment``) as tuning tasks.

The vectors of a measured call repeat so that half of all possible clusters are there, which is what a layer with few
hash bits finds on real activations; each position takes one of them at random, which spares the gather no cache miss.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import tvm
from tvm import tirx
from tvm.target import Target

from adr_tvm.activation import Activation
from adr_tvm.report.formats import geometry_text, setting_text
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, cluster, units
from adr_tvm.schedules.gemm_scatter import gemm_scatter
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.schedules.packing import pack_weights, pad_channels
from adr_tvm.schedules.register_tile import gemm_tile, isa_of
from adr_tvm.schedules.reuse_schedule import ReuseSchedule, fitted
from adr_tvm.schedules.tuned import KernelShape, reuse_schedule, tuned_schedules
from adr_tvm.schedules.vector_key import pad_planes
from adr_tvm.tuning.task import Arguments
from adr_tvm.tuning.trial import compiled

MOST_PROTOTYPES = 1024
MOST_COLUMNS = 8
BANDS = (1, 2, 4)


class ReuseConvTask:
    """See ``TuningTask``; the kernel is ``schedules/gemm_scatter.py`` with a ReLU.

    Raises:
        ValueError: the kernel has no setting.
    """

    schedule_type: ClassVar[type] = ReuseSchedule

    def __init__(self, kernel: KernelShape, target: Target, images: int) -> None:
        if kernel.setting is None or kernel.setting.granularity == "row":
            raise ValueError("pixel or segment reuse needs a setting")
        self.kernel, self.images, self.target = kernel, kernel.batch or images, target
        self.geometry, self.setting, self.isa = kernel.geometry, kernel.setting, isa_of(target)
        self.tile = gemm_tile(self.isa, self.geometry.M)

    @property
    def name(self) -> str:
        """As in the report, with the number of images where it is not 1."""
        text = f"{geometry_text(self.geometry)}, {setting_text(self.setting)}"
        return text if self.images == 1 else f"{self.images} x {text}"

    @property
    def flops(self) -> float:
        """Of the dense kernel that it stands for."""
        return 2.0 * self.images * self.geometry.macs

    @property
    def weight_bytes(self) -> int:
        """Without padding."""
        return 4 * self.geometry.K * self.geometry.M

    def default(self) -> ReuseSchedule:
        """As ``schedules/tuned.py`` chooses it."""
        with tuned_schedules(None):
            return reuse_schedule(self.target, self.geometry, self.setting, self.kernel.batch)

    def candidates(self, threads: int) -> dict[ReuseSchedule, float]:
        """The default with other blocks, columns and bands; nearer to the default counts as better.

        Segments are added up in the same groups, since other groups may round otherwise.
        """
        default = self.default()
        found = {default: 1.0}
        for channels in self._channels(default):
            for columns in range(1, MOST_COLUMNS + 1):
                for bands in BANDS:
                    schedule = replace(default, channels=channels, columns=columns, bands=bands)
                    if self.accepts(schedule) and bands <= self.geometry.OH:
                        found.setdefault(schedule, self._cost(schedule, default, threads))
        return found

    def _channels(self, default: ReuseSchedule) -> list[int]:
        """Sizes of blocks that divide the channels as the default's does."""
        padded = -(-self.geometry.M // default.channels) * default.channels
        sizes = (default.channels // 2, default.channels, 2 * default.channels)
        return [size for size in sizes if size % self.isa.lanes == 0 and padded % size == 0 and self._suits(size)]

    def _suits(self, channels: int) -> bool:
        """Whether the table format has rows of so many channels."""
        pairs = self.setting.table in ("bfloat16", "int8")
        return channels % (2 * self.isa.lanes if pairs else self.isa.lanes) == 0 and channels <= 4 * self.isa.lanes

    def _cost(self, schedule: ReuseSchedule, default: ReuseSchedule, threads: int) -> float:
        """Grows with the distance from the default, and with tables made twice or threads that idle."""
        distance = abs(np.log2(schedule.columns / default.columns)) + abs(np.log2(schedule.channels / default.channels))
        tasks = units(self.setting, self.images)[0] * -(-self.geometry.M // schedule.channels) * schedule.bands
        return (1 + 0.02 * distance + 0.1 * (schedule.bands - 1)) * -(-tasks // threads) * threads / tasks

    def accepts(self, schedule: ReuseSchedule) -> bool:
        """Whether sums fit the registers, and tables what the default takes twice."""
        vectors = -(-schedule.channels // self.isa.lanes)
        usual = fitted(schedule, self.isa, self.geometry, self.setting)
        return (
            self._suits(schedule.channels)
            and schedule.columns * vectors + vectors + 1 <= self.isa.registers
            and schedule.columns <= MOST_COLUMNS
            and schedule.bands <= max(BANDS)
            and schedule.together <= 4 * usual.together
        )

    def function(self, schedule: ReuseSchedule) -> tirx.PrimFunc:
        """With a ReLU."""
        return gemm_scatter(self.geometry, self.setting, Activation.relu(), self.tile, schedule)

    def arguments(self, schedule: ReuseSchedule) -> Arguments:
        """X, packed weights, padded bias, and what the cluster kernel finds."""
        g = self.geometry
        return Arguments(list(self._data), (1,), [((self.images, g.OH, g.OW, g.M), "float32")])

    @cached_property
    def _data(self) -> list[np.ndarray]:
        g, rng = self.geometry, np.random.default_rng(0)
        x = self._input(rng)
        w = rng.standard_normal((g.KH, g.KW, g.C, g.M), np.float32)
        bias = rng.standard_normal(g.M, np.float32)
        parts = self._clusters(x, rng)
        return [x, pack_weights(w, self.tile.NR), pad_channels(bias, self.tile.NR), *parts]

    def _input(self, rng: np.random.Generator) -> np.ndarray:
        g = self.geometry
        kinds = MOST_PROTOTYPES if self.setting.hash == "exact" else min(MOST_PROTOTYPES, 2 ** (self.setting.H - 1))
        prototypes = np.maximum(rng.standard_normal((kinds, g.C), np.float32), 0)
        return prototypes[rng.integers(kinds, size=(self.images, g.H, g.W))]

    def _clusters(self, x: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Ids, gains, centroids, counts and stats of an input."""
        g, setting, source = self.geometry, self.setting, vector_source(self.geometry, self.setting)
        U, G = units(setting, self.images)
        S, size, L = source.segments, G * source.map_size, g.vector_length(setting)
        cap = capacity(setting, G * source.per_image)
        planes, thresholds = np.zeros((1, 1, 8), np.float32), np.zeros((1, 8), np.float32)
        if setting.hash != "exact":
            drawn = rng.standard_normal((S, L, setting.H), np.float32)
            mean = np.float32(np.sqrt(0.5 / np.pi))  # of what _input is made of
            planes, thresholds = pad_planes(drawn), pad_planes(mean * drawn.sum(axis=1), np.inf)
        outputs = [
            np.zeros((U, S, size), np.int32),
            np.zeros((U, S, size) if setting.gain else (1, 1, 1), np.float32),
            np.zeros((U, S, cap + SPARE_CENTROIDS, source.Lp), np.float32),
            np.zeros((U, S, 2), np.int32),
            np.zeros((U, 2), np.int32),
            np.zeros((1, 1, 1), np.int32),  # keys, which are not asked for
        ]
        tensors = [tvm.runtime.tensor(array) for array in (x, planes, thresholds, *outputs)]
        compiled(cluster(g, setting), self.target)(*tensors)
        return [tensor.numpy() for tensor in tensors[3:-1]]
