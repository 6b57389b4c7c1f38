"""Predicted time of a layer, dense and with reuse: prunes candidates before anything is measured.

    dense    2 N K M / flops
    reuse    hash: vectors (fixed + L per_entry)
             GEMM: 2 clusters L taps M / flops
             gather-add: N S taps M / adds
             (``row``: the copies N M in place of gather-adds)

This is the papers' model (ADR, ICDE 2019, section 4) with the gather-add, which they leave out and which measures as
the largest term of ``pixel``. Coefficients are for one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting


@dataclass(frozen=True)
class CostModel:
    """Coefficients of one thread.

    Attributes:
        flops: of dense and centroid GEMMs, 1/s.
        vector_seconds: hashing and numbering one vector, beside its entries.
        entry_seconds: one entry of a contiguous vector.
        gathered_entry_seconds: one entry of a ``segment`` vector, which is gathered.
        adds: gathered additions, 1/s.
        copies: floats copied from row to row, 1/s.
        call_seconds: fixed cost of a reuse layer.
    """

    flops: float = 200e9
    vector_seconds: float = 15e-9
    entry_seconds: float = 0.4e-9
    gathered_entry_seconds: float = 2e-9
    adds: float = 40e9
    copies: float = 4e9
    call_seconds: float = 10e-6

    def dense_seconds(self, geometry: ConvGeometry, images: int) -> float:
        """Time of the dense layer on some images."""
        return 2 * images * geometry.macs / self.flops

    def reuse_seconds(self, geometry: ConvGeometry, setting: ReuseSetting, r_c: float, images: int) -> float:
        """Time of the layer with reuse, given its remaining ratio."""
        vectors, L = images * geometry.vectors(setting), geometry.vector_length(setting)
        entry = self.gathered_entry_seconds if setting.granularity == "segment" else self.entry_seconds
        hashing = vectors * (self.vector_seconds + L * entry)
        N, M = images * geometry.rows, geometry.M
        gemm = r_c * vectors * self.cluster_seconds(geometry, setting)
        if setting.granularity == "row":
            return self.call_seconds + hashing + gemm + N * M / self.copies
        taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
        return self.call_seconds + hashing + gemm + N * geometry.segments(setting) * taps * M / self.adds

    def cluster_seconds(self, geometry: ConvGeometry, setting: ReuseSetting) -> float:
        """Time that one more cluster costs: its products."""
        taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
        return 2 * geometry.vector_length(setting) * taps * geometry.M / self.flops


def reuse_macs(geometry: ConvGeometry, setting: ReuseSetting, r_c: float) -> int:
    """Multiply-adds of one image with reuse: hashing and centroid products."""
    vectors, L = geometry.vectors(setting), geometry.vector_length(setting)
    taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
    hashing = 0 if setting.hash == "exact" else vectors * L * setting.H
    return round(hashing + r_c * vectors * L * taps * geometry.M)
