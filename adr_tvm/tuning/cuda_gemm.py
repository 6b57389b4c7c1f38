"""The GEMM kernels of a GPU as tuning tasks: convolutions and dense layers, dense and of the rows in a list.

How many rows a list holds is known only when the layer runs. Here it holds one in ``ONE_IN``, spread over all rows;
where rows are clustered by signs, every second of them is a centroid.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.target import Target

from adr_tvm.activation import Activation
from adr_tvm.precision import PRECISIONS, Precision
from adr_tvm.report.formats import geometry_text
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.schedules.cuda import implicit_gemm as threads
from adr_tvm.schedules.cuda import tensor_gemm as tensors
from adr_tvm.schedules.cuda.tensor_tile import TensorTile
from adr_tvm.schedules.cuda.thread_tile import ThreadTile
from adr_tvm.schedules.cuda.tuned_tile import tensor_gemm_tile, thread_gemm_tile
from adr_tvm.schedules.tuned import KernelShape, tuned_schedules
from adr_tvm.tuning.cuda_space import (
    fits_tensor_tile,
    fits_thread_tile,
    tensor_cost,
    tensor_tiles,
    thread_cost,
    thread_tiles,
)
from adr_tvm.tuning.task import Arguments

ONE_IN = 8
RELU = Activation.relu()  # and no residual, which cost every tile the same


class _GemmTask:
    """What both have in common; see ``TuningTask``."""

    storage = "float32"
    bytes_of_entry = 4

    def __init__(self, kernel: KernelShape, target: Target, images: int) -> None:
        self.kernel, self.images, self.target = kernel, kernel.batch or images, target
        self.geometry, self.setting = kernel.geometry, kernel.setting
        if self.setting is not None and self.setting.granularity != "row":
            raise ValueError("only rows are multiplied from a list")

    @property
    def rows(self) -> int:
        """All of them."""
        return self.images * self.geometry.rows

    @property
    def products(self) -> int:
        """Rows that are multiplied."""
        return self.rows if self.setting is None else -(-self.rows // ONE_IN)

    @property
    def name(self) -> str:
        """As in the report, with the number of images where it is not 1."""
        text = geometry_text(self.geometry)
        text = text if self.images == 1 else f"{self.images} x {text}"
        return text if self.setting is None else f"{text}, one row in {ONE_IN} ({self.setting.hash})"

    @property
    def flops(self) -> float:
        """Two for each multiply-add."""
        return 2.0 * self.products * self.geometry.K * self.geometry.M

    @property
    def weight_bytes(self) -> int:
        """Without padding."""
        return self.bytes_of_entry * self.geometry.K * self.geometry.M

    @property
    def _searched(self) -> bool:
        """A dense layer whose batch is free keeps its default: what is best for one row is not for a thousand."""
        return self.kernel.batch is not None or self.geometry.rows > 1

    def _arguments(self, weights: np.ndarray, bias: np.ndarray) -> Arguments:
        g, setting, given = self.geometry, self.setting, [self._x, weights, bias]
        if setting is not None:
            work = np.zeros(self.rows, np.int32)
            work[: self.products] = np.arange(0, self.rows, ONE_IN, dtype=np.int32)[: self.products]
            given += [work, np.array([self.products, self.products // 2], np.int32)]
            if setting.hash != "exact":
                given += [self._source, self._centroids]
        return Arguments(given, (1,), [((self.images, g.OH, g.OW, g.M), self.storage)])

    def _random(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape, np.float32)

    def _stored(self, values: np.ndarray) -> np.ndarray:
        return values

    @cached_property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(0)

    @cached_property
    def _x(self) -> np.ndarray:
        g = self.geometry
        return self._stored(np.maximum(self._random(self.images, g.H, g.W, g.C), 0))

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """[K, M] and [M]."""
        return self._stored(self._random(self.geometry.K, self.geometry.M)), self._random(self.geometry.M)

    @cached_property
    def _source(self) -> np.ndarray:
        """Of every second row in the list a centroid."""
        source = np.full(self.rows, -1, np.int32)
        source[: self.products : 2] = np.arange(-(-self.products // 2)) % len(self._centroids)
        return source

    @cached_property
    def _centroids(self) -> np.ndarray:
        g, setting = self.geometry, self.setting
        assert setting is not None
        U, G = units(setting, self.images)
        count = capacity(setting, int(G) * g.rows if setting.scope == "batch" else g.rows)
        return self._stored(self._random(int(U) * int(count), g.K))


class ThreadGemmTask(_GemmTask):
    """See ``TuningTask``; the kernels are those of ``schedules/cuda/implicit_gemm.py``."""

    schedule_type: ClassVar[type] = ThreadTile

    def default(self) -> ThreadTile:
        """The one of the estimate."""
        with tuned_schedules(None):
            return thread_gemm_tile(self.geometry, self.kernel.batch, self.setting)

    def candidates(self, threads: int) -> dict[ThreadTile, float]:
        """All of ``thread_tiles``."""
        default = self.default()
        found = {default: thread_cost(default, self.geometry, self.products)}
        return found | (thread_tiles(self.geometry, self.products) if self._searched else {})

    def accepts(self, schedule: ThreadTile) -> bool:
        """Whether the kernels can be made with it."""
        return fits_thread_tile(schedule, self.geometry)

    def function(self, schedule: ThreadTile) -> tirx.PrimFunc:
        """The kernel."""
        if self.setting is None:
            return threads.implicit_gemm(self.geometry, RELU, schedule)
        return threads.implicit_gemm_of_rows(self.geometry, RELU, schedule, self.setting)

    def arguments(self, schedule: ThreadTile) -> Arguments:
        """X, padded weights and bias; the list and its centroids."""
        g, (w, bias) = self.geometry, self._weights
        below, right = threads.padded_k(g, schedule) - g.K, threads.padded_m(g, schedule) - g.M
        return self._arguments(np.pad(w, ((0, below), (0, right))), np.pad(bias, (0, right)))


class TensorGemmTask(_GemmTask):
    """See ``TuningTask``; the kernels are those of ``schedules/cuda/tensor_gemm.py``."""

    schedule_type: ClassVar[type] = TensorTile

    def __init__(self, kernel: KernelShape, target: Target, images: int) -> None:
        super().__init__(kernel, target, images)
        self.precision: Precision = PRECISIONS[kernel.kind.rpartition("_")[2]]
        self.storage, self.bytes_of_entry = self.precision.storage, self.precision.bits // 8

    def default(self) -> TensorTile:
        """The one of the estimate."""
        with tuned_schedules(None):
            return tensor_gemm_tile(self.geometry, self.kernel.batch, self.precision, self.setting)

    def candidates(self, threads: int) -> dict[TensorTile, float]:
        """All of ``tensor_tiles``."""
        default = self.default()
        found = {default: tensor_cost(default, self.geometry, self.products, self.precision)}
        return found | (tensor_tiles(self.geometry, self.products, self.precision) if self._searched else {})

    def accepts(self, schedule: TensorTile) -> bool:
        """Whether the kernels can be made with it."""
        return fits_tensor_tile(schedule, self.geometry, self.precision)

    def function(self, schedule: TensorTile) -> tirx.PrimFunc:
        """The kernel."""
        if self.setting is None:
            return tensors.tensor_gemm(self.geometry, RELU, schedule, self.precision)
        return tensors.tensor_gemm_of_rows(self.geometry, RELU, schedule, self.precision, self.setting)

    def arguments(self, schedule: TensorTile) -> Arguments:
        """X, packed weights and padded bias; the list and its centroids."""
        g, (w, bias) = self.geometry, self._weights
        Kp, Mp = tensors.padded_k(g, schedule, self.precision), tensors.padded_m(g, schedule)
        packed = np.pad(w.T, ((0, Mp - g.M), (0, Kp - g.K)))[[tensors.packed_channel(row) for row in range(Mp)]]
        return self._arguments(packed, np.pad(bias, (0, Mp - g.M)))

    def _stored(self, values: np.ndarray) -> np.ndarray:
        rounded: Any = self.precision.rounded(values)
        return rounded
