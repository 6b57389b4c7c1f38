"""Predicted times of the kernels of bare C on a core.

A time is a sum of amounts of work. ``INSTRUCTIONS`` says how many instructions a unit of each takes: the first four are
those of the kernels' inner loops as ``arm-none-eabi-gcc -O2`` makes them, the others were fitted to layers under
emulation (``python -m benchmarks.bare_c_instructions``). How many cycles these take is an estimate from what Arm's
manuals say of the cores: a fused multiply-add takes three on a Cortex-M4; a Cortex-M7 may start two instructions at
once. Of a 64-bit Arm core, whose products are vectors (``NEON_PRODUCTS``), they follow from its ``Core``: as many
cycles as such work takes beside a server core, which does four instructions in one. Nothing was measured on a board,
and slow memory is not in it: it orders settings, and the milliseconds are rough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from adr_tvm.bare_c.reuse_calls import unsupported, vectors_of
from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.cost import SHORTEST, CostModel
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, TargetEntry

INSTRUCTIONS: dict[str, float] = {
    "products": 1.95,  # multiply-adds of four pixels or clusters times four channels
    "single products": 3.0,  # of one pixel or cluster
    "bits": 3.0,  # multiply-adds of keys
    "copies": 1.5,
    "outputs": 9.0,
    "entries": 24.0,  # of vectors: loaded, looked at, loaded again and averaged
    "gathered": 33.0,  # further, of im2col rows
    "vectors": 530.0,  # numbered, linked and averaged
    "readers": 21.0,  # outputs found that read a vector through a tap
    "adds": 6.1,  # entries of products added to outputs
}
NEON_PRODUCTS = {"products": 0.7, "single products": 1.2, "bits": 0.7}
FUSED = ("products", "single products", "bits")  # a unit of which is one fused multiply-add


GHZ = {"cortex-m4": 0.168, "cortex-m7": 0.400}  # of an STM32F4 and an STM32H7
CYCLES_PER_INSTRUCTION = {"cortex-m4": 1.2, "cortex-m7": 0.8}
CYCLES_PER_FUSED = {"cortex-m4": 2.0, "cortex-m7": 0.0}  # further, of a fused multiply-add
SERVER_INSTRUCTIONS = 4  # in a cycle of the core that ``Core.slowdown`` is relative to
SAMPLED_ROWS = 64  # SAMPLE of reuse_conv2d_f32.c


def neon_core(entry: TargetEntry) -> tuple[float, float]:
    """(GHz, cycles that an instruction takes) of a 64-bit Arm core; of one that is not known those of the slowest."""
    core = entry.core or TARGETS["arm64"].core
    assert core is not None
    return core.ghz, core.slowdown / SERVER_INSTRUCTIONS


def term_seconds(entry: TargetEntry) -> dict[str, float]:
    """Seconds of a unit of each term."""
    if not entry.bare_metal:
        ghz, cycles = neon_core(entry)
        return {term: 1e-9 / ghz * cycles * count for term, count in (INSTRUCTIONS | NEON_PRODUCTS).items()}
    cycle, each, fused = 1e-9 / GHZ[entry.mcpu], CYCLES_PER_INSTRUCTION[entry.mcpu], CYCLES_PER_FUSED[entry.mcpu]
    return {term: cycle * (count * each + fused * (term in FUSED)) for term, count in INSTRUCTIONS.items()}


def clock_of(entry: TargetEntry) -> str:
    """Core and clock, for people."""
    ghz = GHZ[entry.mcpu] if entry.bare_metal else neon_core(entry)[0]
    return f"{entry.mcpu} at {1000 * ghz:.0f} MHz"


@dataclass(frozen=True)
class BareCCost(CostModel):
    """See the module; ``seconds`` are those of ``INSTRUCTIONS``."""

    @classmethod
    def of(cls, entry: TargetEntry) -> Self:
        """The model of a target's core."""
        return cls(term_seconds(entry), 1, f"estimated for bare C on a {clock_of(entry)}")

    @staticmethod
    def unsupported(geometry: ConvGeometry, setting: ReuseSetting) -> str:
        """Why there is no such layer; empty if there is."""
        return unsupported(geometry, setting)

    @staticmethod
    def dense_work(geometry: ConvGeometry) -> dict[str, float]:
        """Units of each term of one image, dense."""
        return dense_work(geometry)

    @staticmethod
    def reuse_work(geometry: ConvGeometry, setting: ReuseSetting, clusters: float) -> dict[str, float]:
        """Units of each term of one image with reuse; clusters are those of all segments."""
        return reuse_work(geometry, setting, clusters)

    def dense_seconds(self, geometry: ConvGeometry, images: int) -> float:
        """Time of the dense layer on some images."""
        return images * self.predicted(self.dense_work(geometry))

    def reuse_seconds(self, geometry: ConvGeometry, setting: ReuseSetting, r_c: float, images: int) -> float:
        """Time of the layer with reuse, given its remaining ratio; infinite where there is no such layer."""
        if self.unsupported(geometry, setting):
            return float("inf")
        return images * self.predicted(self.reuse_work(geometry, setting, r_c * geometry.vectors(setting)))

    def cluster_seconds(self, geometry: ConvGeometry, setting: ReuseSetting) -> float:
        """Time that one more cluster costs: its products."""
        none, one = (self.predicted(self.reuse_work(geometry, setting, n)) for n in (0.0, 1.0))
        return max(SHORTEST, one - none)


def _channels(geometry: ConvGeometry) -> int:
    return -(-geometry.M // 4) * 4


def dense_work(g: ConvGeometry) -> dict[str, float]:
    """Units of each term of one image, dense."""
    return {"products": g.rows * g.K * _channels(g), "outputs": g.rows * g.M}


def reuse_work(g: ConvGeometry, setting: ReuseSetting, clusters: float) -> dict[str, float]:
    """Units of each term of one image with reuse; clusters are those of all segments."""
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
