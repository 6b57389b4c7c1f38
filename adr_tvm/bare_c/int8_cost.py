"""Predicted times of the int8 kernels of bare C on a core.

Amounts of work are instructions, as they were counted on a Cortex-M4 under emulation (``benchmarks/cortex_m.py``) for
the kernels' inner loops; a core's cycles for each instruction are an estimate from Arm's manuals: a load takes two on a
Cortex-M4, and a Cortex-M7 issues two instructions at once. ``NEON`` are those of the kernels' form for 64-bit Arm,
counted by ``benchmarks/bare_c_arm64.py``, whose cycles follow from the target's ``Core``. Nothing was measured on a
board.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from adr_tvm.bare_c.cost import GHZ, BareCCost, clock_of, neon_core
from adr_tvm.geometry import ConvGeometry
from adr_tvm.int8.quantise import unsupported_reuse
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TargetEntry

CYCLES_PER_INSTRUCTION = {"cortex-m4": 1.4, "cortex-m7": 0.8}
INSTRUCTIONS = {
    "products": 29 / 32,  # multiply-adds of two filters with four columns
    "blocks": 35.0,  # of such, whatever their length
    "columns": 2.0,  # entries of im2col rows
    "outputs": 20.0,
    "vectors": 270.0,  # hashed and found
    "entries": 10.0,  # of vectors, added up and divided
    "gathered": 14.0,  # further, of im2col rows
    "adds": 0.85,  # int16 products
    "entry maps": 6.0,  # pixels, for each segment and block of channels
}
NEON_PRODUCTS = {False: 36 / 128, True: 25 / 256}  # without dot products, and with
NEON = {"blocks": 6.0, "outputs": 13.0, "adds": 0.7}


@dataclass(frozen=True)
class Int8Cost(BareCCost):
    """See the module; ``seconds`` are those of ``INSTRUCTIONS``."""

    @classmethod
    def of(cls, entry: TargetEntry) -> Self:
        """The model of a target's core."""
        if entry.bare_metal:
            ghz, cycles, instructions = GHZ[entry.mcpu], CYCLES_PER_INSTRUCTION[entry.mcpu], INSTRUCTIONS
        else:
            ghz, cycles = neon_core(entry)
            instructions = INSTRUCTIONS | NEON | {"products": NEON_PRODUCTS["+dotprod" in entry.mattr]}
        seconds = {term: count * cycles / (ghz * 1e9) for term, count in instructions.items()}
        return cls(seconds, 1, f"estimated for bare C in int8 on a {clock_of(entry)}")

    @staticmethod
    def unsupported(geometry: ConvGeometry, setting: ReuseSetting) -> str:
        """See ``BareCCost``."""
        return unsupported_reuse(geometry, setting)

    @staticmethod
    def dense_work(geometry: ConvGeometry) -> dict[str, float]:
        """See ``BareCCost``."""
        return _dense_work(geometry)

    @staticmethod
    def reuse_work(geometry: ConvGeometry, setting: ReuseSetting, clusters: float) -> dict[str, float]:
        """See ``BareCCost``."""
        return _reuse_work(geometry, setting, clusters)


def _dense_work(g: ConvGeometry) -> dict[str, float]:
    return {
        "products": g.rows * g.K * g.M,
        "blocks": g.rows * g.M / 8,
        "columns": g.rows * g.K,
        "outputs": g.rows * g.M,
    }


def _reuse_work(g: ConvGeometry, setting: ReuseSetting, clusters: float) -> dict[str, float]:
    """Units of each term of one image."""
    S, L = g.segments(setting), g.vector_length(setting)
    vectors, pixel = g.vectors(setting), setting.granularity == "pixel"
    length = -(-L // 4) * 4
    if setting.granularity == "row":
        return {
            "products": clusters * g.K * g.M,
            "blocks": clusters * g.M / 8,
            "columns": (g.rows + clusters) * g.K,
            "outputs": clusters * g.M,
            "gathered": g.rows * g.K / 14,
        }
    exact = setting.hash == "exact"
    taps = g.KH * g.KW if pixel else 1
    bits = 0 if exact else vectors * setting.H
    return {
        "products": clusters * length * taps * g.M + bits * length,
        "blocks": clusters * taps * g.M / 8 + bits / 8,
        "outputs": g.rows * g.M,
        "vectors": vectors,
        "entries": vectors * L,
        "gathered": 0.0 if pixel else vectors * L,
        "adds": g.rows * taps * S * g.M * (2.0 if exact else 1.0),
        "entry maps": (g.H * g.W if pixel else g.rows) * S * g.M / (8 if exact else 16),
    }
