"""Predicted times of the kernels of bare C on a microcontroller's core.

A time is a sum of amounts of work, in cycles of ``CYCLES``. These were estimated from the instructions of the kernels'
inner loops, as ``arm-none-eabi-gcc -O2`` makes them, and the cycles that Arm's manuals give for each: a VFMA takes
three on a Cortex-M4, a Cortex-M7 starts one in a cycle, beside a load. Nothing was measured on a board, and slow flash
is not in them: they order settings, and the milliseconds are rough.
"""

from __future__ import annotations

from dataclasses import dataclass

from adr_tvm.bare_c.reuse_calls import unsupported, vectors_of
from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.cost import SHORTEST, CostModel
from adr_tvm.settings import ReuseSetting

GHZ = {"cortex-m4": 0.168, "cortex-m7": 0.400}  # of an STM32F4 and an STM32H7
CYCLES: dict[str, dict[str, float]] = {
    "cortex-m4": {
        "products": 4.1,  # multiply-adds of four pixels or clusters times four channels
        "single products": 4.8,  # of one
        "outputs": 14.0,
        "bits": 4.3,  # multiply-adds of keys
        "entries": 16.0,  # of vectors: loaded, looked at, loaded again and averaged
        "gathered": 20.0,  # further, of im2col rows
        "vectors": 120.0,  # numbered and linked
        "readers": 40.0,  # outputs found that read a vector through a tap
        "adds": 5.5,  # entries of products added to outputs
        "copies": 2.5,
    },
    "cortex-m7": {
        "products": 1.2,
        "single products": 1.8,
        "outputs": 8.0,
        "bits": 1.6,
        "entries": 9.0,
        "gathered": 11.0,
        "vectors": 70.0,
        "readers": 25.0,
        "adds": 2.5,
        "copies": 1.2,
    },
}
SAMPLED_ROWS = 64  # SAMPLE of reuse_conv2d_f32.c


@dataclass(frozen=True)
class BareCCost(CostModel):
    """See the module; ``seconds`` are those of ``CYCLES``."""

    @classmethod
    def of(cls, core: str) -> BareCCost:
        """The model of a core."""
        seconds = {term: cycles / (GHZ[core] * 1e9) for term, cycles in CYCLES[core].items()}
        return cls(seconds, 1, f"estimated for bare C on a {core} at {1000 * GHZ[core]:.0f} MHz")

    def dense_seconds(self, geometry: ConvGeometry, images: int) -> float:
        """Time of the dense layer on some images."""
        return images * self.predicted(_dense_work(geometry))

    def reuse_seconds(self, geometry: ConvGeometry, setting: ReuseSetting, r_c: float, images: int) -> float:
        """Time of the layer with reuse, given its remaining ratio; infinite where bare C has no such layer."""
        if unsupported(geometry, setting):
            return float("inf")
        return images * self.predicted(_reuse_work(geometry, setting, r_c * geometry.vectors(setting)))

    def cluster_seconds(self, geometry: ConvGeometry, setting: ReuseSetting) -> float:
        """Time that one more cluster costs: its products."""
        none, one = (self.predicted(_reuse_work(geometry, setting, n)) for n in (0.0, 1.0))
        return max(SHORTEST, one - none)


def _channels(geometry: ConvGeometry) -> int:
    return -(-geometry.M // 4) * 4


def _dense_work(g: ConvGeometry) -> dict[str, float]:
    return {"products": g.rows * g.K * _channels(g), "outputs": g.rows * g.M}


def _reuse_work(g: ConvGeometry, setting: ReuseSetting, clusters: float) -> dict[str, float]:
    """Units of each term of one image."""
    S, L = g.segments(setting), g.vector_length(setting)
    vectors, M = vectors_of(g, setting) * S, _channels(g)
    taps = g.KH * g.KW if setting.granularity == "pixel" else 1
    exact = setting.hash == "exact"
    if exact and setting.granularity == "row" and not clusters:  # a sample was enough
        vectors = min(vectors, SAMPLED_ROWS)
    work = {
        "vectors": vectors,
        "entries": vectors * L,
        "gathered": vectors * L * (setting.granularity == "segment"),
        "bits": 0.0 if exact else vectors * L * (-(-setting.H // 4) * 4),
    }
    if setting.granularity == "row":
        products = {"single products": clusters * L * M, "copies": g.rows * g.M}
        return work | products | {"outputs": (clusters if exact else g.rows) * g.M}
    return work | {
        "products": clusters * L * taps * M,
        "readers": vectors * taps,
        "adds": g.rows * taps * S * g.M * (1.5 if setting.gain else 1.0),
        "outputs": g.rows * g.M,
    }
