"""The cost model of a GPU: what its data sheet says it can multiply and move, and shares of it that kernels reach.

A time is the longest of its phases' arithmetic and memory traffic, plus what a launch takes:

    dense    N K M multiply-adds; X, W and Y through memory
    row      hash: N K H multiply-adds, X once; numbering: some words for each row; products of the representatives;
             the copies of their outputs
    pixel,   hash: P C H (segment: N K H) multiply-adds; numbering: some words for each vector; sums: some for each
    segment  entry; products of the centroids, written; the gather-add of N taps S rows of M products out of the cache

Products of ``tf32``, ``bf16`` and ``fp16`` are those of tensor cores, and of the latter two data have 16 bits; hashing
is fp32 always.

The shares are guesses, not measurements: they order settings, and the milliseconds are rough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.cost import CostModel
from adr_tvm.precision import Precision
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import Gpu, TargetEntry

GEMM_SHARE, TENSOR_SHARE, HASH_SHARE, MEMORY_SHARE = 0.6, 0.5, 0.2, 0.7
LAUNCH = 4e-6  # seconds, of a kernel
ROW_LAUNCHES = 8  # of a layer that reuses
ROW_WORDS = 16  # of four bytes, that numbering reads and writes for each row
VECTOR_LAUNCHES, ROUND_LAUNCHES = 9, 2  # of a layer of `pixel` or `segment`, and more for each round of segments
VECTOR_WORDS, SUM_WORDS = 14, 6  # for each vector, and for each of its entries
CACHE_SPEED = 2.5  # of the cache, where memory is 1
UNKNOWN = Gpu((), None, 1, 1)
EXACT_HASH_FLOPS = 24  # what hashing an entry's bits takes, in multiplications and additions


@dataclass(frozen=True)
class GpuCostModel(CostModel):
    """Predicted times of layers; ``threads`` is 1, since the processor beside the GPU only starts kernels.

    Attributes:
        gpu: what is known of it.
        precision: data type of products and data; None: fp32.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    gpu: Gpu = UNKNOWN
    precision: Precision | None = None

    @property
    def sha256(self) -> str:
        """Hash of all that a prediction depends on."""
        shares = [GEMM_SHARE, TENSOR_SHARE, HASH_SHARE, MEMORY_SHARE, LAUNCH, ROW_LAUNCHES, ROW_WORDS, EXACT_HASH_FLOPS]
        shares += [VECTOR_LAUNCHES, ROUND_LAUNCHES, VECTOR_WORDS, SUM_WORDS, CACHE_SPEED]
        name = None if self.precision is None else self.precision.name
        return hashlib.sha256(json.dumps([asdict(self.gpu), shares, name]).encode()).hexdigest()

    def dense_seconds(self, geometry: ConvGeometry, images: int) -> float:
        """Time of the dense layer on some images."""
        g, N = geometry, images * geometry.rows
        moved = images * g.H * g.W * g.C + g.K * g.M + N * g.M
        return LAUNCH + self._products(2 * N * g.K * g.M, moved)

    def reuse_seconds(self, geometry: ConvGeometry, setting: ReuseSetting, r_c: float, images: int) -> float:
        """Time of the layer with reuse, given its remaining ratio; integer tables, which have no kernels, as fp32."""
        if setting.granularity != "row":
            return self._vector_seconds(geometry, setting, r_c, images)
        g, N = geometry, images * geometry.rows
        exact = setting.hash == "exact"
        pixels = images * g.H * g.W * g.C
        hashing = N * g.K * (EXACT_HASH_FLOPS if exact else 2 * setting.H)
        # Rows that match are compared, or their mean is taken: both read every row once more.
        again = self._phase(N * g.K, HASH_SHARE, self._bytes * pixels)
        products = self._products(2 * r_c * N * g.K * g.M, r_c * N * (g.K + g.M) + g.K * g.M)
        copies = self._phase(0, 1, self._bytes * 2 * (1 - r_c) * N * g.M)
        numbering = self._phase(0, 1, 4 * ROW_WORDS * N)
        keys = self._phase(hashing, HASH_SHARE, self._bytes * pixels)
        return ROW_LAUNCHES * LAUNCH + keys + again + numbering + products + copies

    def _vector_seconds(self, geometry: ConvGeometry, setting: ReuseSetting, r_c: float, images: int) -> float:
        from adr_tvm.schedules.cuda.product_table import segments_together

        g, N, S, L = geometry, images * geometry.rows, geometry.segments(setting), geometry.vector_length(setting)
        taps = g.KH * g.KW if setting.granularity == "pixel" else 1
        entries = images * g.positions(setting) * (g.C if setting.granularity == "pixel" else g.K)
        vectors = images * g.vectors(setting)
        units = images if setting.scope == "image" else 1
        rounds = -(-S // segments_together(g, setting, units))
        hashing = self._phase(
            entries * (EXACT_HASH_FLOPS if setting.hash == "exact" else 2 * setting.H), HASH_SHARE, 4 * entries
        )
        numbering = self._phase(0, 1, 4 * VECTOR_WORDS * vectors)
        sums = self._phase(0, 1, 4 * SUM_WORDS * entries)
        clusters, word = r_c * vectors, 0.5 if setting.table == "bfloat16" else 1.0
        products = self._products(2 * clusters * L * taps * g.M, clusters * (L + taps * g.M * word) + g.K * g.M)
        words = N * taps * S * g.M * word / CACHE_SPEED + 2 * rounds * N * g.M
        gathers = self._phase(N * taps * S * g.M, HASH_SHARE, 4 * words)
        launches = (VECTOR_LAUNCHES + ROUND_LAUNCHES * rounds) * LAUNCH
        return launches + hashing + numbering + sums + products + gathers

    def cluster_seconds(self, geometry: ConvGeometry, setting: ReuseSetting) -> float:
        """Time that one more cluster costs: its products."""
        if setting.granularity != "row":
            L, width = geometry.vector_length(setting), geometry.M
            width *= geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
            return self._products(2 * L * width, L + width)
        return self._products(2 * geometry.K * geometry.M, geometry.K + geometry.M)

    @property
    def _bytes(self) -> int:
        """Of an entry of X, W or Y."""
        return 4 if self.precision is None else self.precision.bits // 8

    def _products(self, flops: float, entries: float) -> float:
        """Seconds of products, with entries of X, W and Y through memory."""
        if self.precision is None:
            return self._phase(flops, GEMM_SHARE, self._bytes * entries)
        peak = self.gpu.tf32 if self.precision.name == "tf32" else self.gpu.half
        return self._phase(flops, TENSOR_SHARE * peak / self.gpu.teraflops, self._bytes * entries)

    def _phase(self, flops: float, share: float, moved: float) -> float:
        """Seconds: the longer of arithmetic, at a share of the fp32 peak, and of bytes through memory."""
        return max(flops / (share * self.gpu.teraflops * 1e12), moved / (MEMORY_SHARE * self.gpu.gigabytes * 1e9))


def gpu_cost_model(entry: TargetEntry, precision: Precision | None = None) -> GpuCostModel:
    """The model to predict a CUDA target's times with, in a data type that its tensor cores know, or fp32."""
    assert entry.gpu is not None
    peak, kind = entry.gpu.teraflops, "fp32"
    if precision is not None:
        peak, kind = entry.gpu.tf32 if precision.name == "tf32" else entry.gpu.half, precision.name
    name = "an A100, in place of a GPU that is not known" if entry.name == "cuda" else entry.name
    source = f"data sheet of {name}: {peak:g} TFLOP/s in {kind}, {entry.gpu.gigabytes:g} GB/s"
    return GpuCostModel(source=source, gpu=entry.gpu, precision=precision)
