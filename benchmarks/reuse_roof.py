"""The least time that a reuse layer can take on this machine, phase by phase."""

from __future__ import annotations

from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting
from benchmarks.ceilings import Ceilings

ENTRY_BYTES = {"float32": 4, "bfloat16": 2, "int16": 2, "int8": 1}


def reuse_roof(geometry: ConvGeometry, setting: ReuseSetting, clusters: float, ceilings: Ceilings) -> float:
    """Seconds of one image: the phases follow each other, each at its own ceiling.

    - hash: vectors * L * H multiply-adds at peak (`exact` has none);
    - products of centroids: clusters * L * taps * M multiply-adds at peak;
    - gather: a table entry for each output, segment and tap, read at the bandwidth of the level of the memory that the
      table of one segment fits in. Adding up takes no time of its own.

    Args:
        clusters: of the image, all segments together.
    """
    L, S = geometry.vector_length(setting), geometry.segments(setting)
    taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
    entry = ENTRY_BYTES[setting.table]
    hashed = 0 if setting.hash == "exact" else geometry.vectors(setting) * L * setting.H
    products = clusters * L * taps * geometry.M
    gathered = geometry.rows * S * taps * geometry.M * entry
    level = ceilings.level(clusters / S * taps * geometry.M * entry)
    return (2 * (hashed + products) / ceilings.gflops + gathered / level.read) / 1e9
