"""Predicted time of a layer, dense and with reuse: prunes candidates before anything is measured.

A time is a sum of amounts of work, each with a coefficient in seconds per unit on one thread (``TERMS``). The amounts
follow from shapes and the number of clusters:

    dense    N K M multiply-adds, N K entries packed, N M outputs
    reuse    vectors numbered, their entries loaded and summed, L H multiply-adds of each for its hash, clusters opened;
             centroid products: clusters L taps M; gather-adds: N S taps M
             (``row``: dense products of the representatives, and N M copies in place of gather-adds)

This is the papers' model (ADR, ICDE 2019, section 4) with the gather-add, which they leave out and which measures as
the largest term of ``pixel``. `adr_tvm.bench.fit_machine` fits the coefficients to a machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.reuse_schedule import BLOCK_CLUSTERS
from adr_tvm.settings import ReuseSetting

PADDED = 16  # output channels and hashed entries are padded to whole vectors
PADDED_BITS = 8
SHORTEST = 1e-9  # seconds

# Seconds of one unit on one thread; fitted on a Zen 5 server core (AVX-512).
TERMS: dict[str, float] = {
    "call": 10e-6,  # a dense kernel
    "dense flops": 4e-12,
    "packed": 40e-12,  # entries of im2col rows
    "outputs": 0.13e-9,
    "reuse call": 15e-6,
    "vectors": 4e-9,
    "entries": 10e-12,
    "gathered": 77e-12,  # entries of a hashed `row` vector, which are gathered
    "bits": 29e-12,  # entries times bits
    # Of `segment`, whose planes are not padded: measured against the dense kernel on another machine.
    "segment vectors": 1.5e-9,
    "segment entries": 50e-12,
    "segment bits": 10e-12,
    "clusters": 3e-9,
    "product flops": 5e-12,
    "adds float32": 16e-12,
    "adds bfloat16": 15e-12,
    "adds int16": 10e-12,
    "adds int8": 6.5e-12,
    "lookups": 63e-12,  # of ids that one of several tables may hold
    "gains": 0.63e-9,  # gather-adds that are scaled, of all output channels
    "copies": 0.9e-9,
}
# What takes a vector unit's whole width: on narrower units it takes longer.
VECTORISED = (
    "dense flops",
    "bits",
    "segment bits",
    "product flops",
    *(name for name in TERMS if name.startswith("adds")),
)


def default_seconds(lanes: int = 16) -> dict[str, float]:
    """Coefficients of a machine nobody measured, with vectors of ``lanes`` floats."""
    return {name: value * 16 / lanes if name in VECTORISED else value for name, value in TERMS.items()}


@dataclass(frozen=True)
class CostModel:
    """Coefficients and the number of threads they are used with.

    Attributes:
        seconds: of one unit on one thread, by term; a term that is missing costs nothing.
        threads: that a kernel runs on.
        source: where the coefficients come from, in words for the report.
    """

    seconds: Mapping[str, float] = field(default_factory=default_seconds)
    threads: int = 1
    source: str = "defaults"

    @property
    def sha256(self) -> str:
        """Hash of all that a prediction depends on."""
        seconds = sorted((name, value) for name, value in self.seconds.items() if value)
        content = {"threads": self.threads, "seconds": dict(seconds)}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def dense_seconds(self, geometry: ConvGeometry, images: int) -> float:
        """Time of the dense layer on some images."""
        return self.predicted(dense_work(geometry, images, self.threads))

    def reuse_seconds(self, geometry: ConvGeometry, setting: ReuseSetting, r_c: float, images: int) -> float:
        """Time of the layer with reuse, given its remaining ratio."""
        clusters = r_c * images * geometry.vectors(setting)
        return self.predicted(reuse_work(geometry, setting, clusters, images, self.threads))

    def cluster_seconds(self, geometry: ConvGeometry, setting: ReuseSetting) -> float:
        """Time that one more cluster costs: its products."""
        none, one = (self.predicted(reuse_work(geometry, setting, n, 1, self.threads)) for n in (0, 1))
        return one - none

    def predicted(self, work: Mapping[str, float]) -> float:
        """Time of some work: units by term; never nothing, whatever the coefficients."""
        return max(SHORTEST, sum(amount * self.seconds.get(name, 0.0) for name, amount in work.items()))


def dense_work(geometry: ConvGeometry, images: int, threads: int = 1) -> dict[str, float]:
    """Units of each term that the busiest thread does for the dense layer."""
    N, M = images * geometry.rows, _padded(geometry.M, PADDED)
    share = 1 / threads
    return {
        "call": 1.0,
        "dense flops": 2 * N * geometry.K * M * share,
        "packed": N * geometry.K * share,
        "outputs": N * M * share,
    }


def reuse_work(
    geometry: ConvGeometry, setting: ReuseSetting, clusters: float, images: int, threads: int = 1
) -> dict[str, float]:
    """Units of each term that the busiest thread does for a reuse layer.

    Args:
        clusters: of all images and segments together.
    """
    N, M = images * geometry.rows, _padded(geometry.M, PADDED)
    S, L = geometry.segments(setting), geometry.vector_length(setting)
    vectors = images * geometry.vectors(setting)
    bits = 0 if setting.hash == "exact" else _padded(setting.H, PADDED_BITS)
    units = images if setting.scope == "image" else 1
    share, numbered = 1 / threads, _busiest_share(units * S, threads)
    Lp = _padded(L, PADDED)
    work = {"reuse call": 1.0, "clusters": clusters * numbered}
    if setting.granularity == "segment" and setting.hash != "exact":
        work |= {
            "segment vectors": vectors * numbered,
            "segment entries": vectors * Lp * numbered,
            "segment bits": vectors * L * setting.H * numbered,
        }
    else:
        gathered = setting.granularity == "segment" or (setting.granularity == "row" and setting.hash != "exact")
        work |= {
            "vectors": vectors * numbered,
            "gathered" if gathered else "entries": vectors * Lp * numbered,
            "bits": vectors * L * bits * share,
        }
    if setting.granularity == "row":
        return work | {"dense flops": 2 * clusters * L * M * share, "copies": N * geometry.M * share}
    taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
    tables = math.ceil(max(1.0, clusters / (units * S * BLOCK_CLUSTERS)))  # filled one after the other
    return work | {
        "product flops": 2 * clusters * L * taps * M * share,
        f"adds {setting.table}": N * S * taps * M * share,
        "lookups": N * S * taps * M * tables * (tables > 1) * share,
        "gains": N * S * taps * setting.gain * share,
    }


def _busiest_share(tasks: int, threads: int) -> float:
    """Share of ``tasks`` equal tasks that the thread with the most has to do."""
    return -(-tasks // threads) / tasks


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to


def reuse_macs(geometry: ConvGeometry, setting: ReuseSetting, r_c: float) -> int:
    """Multiply-adds of one image with reuse: hashing and centroid products."""
    vectors, L = geometry.vectors(setting), geometry.vector_length(setting)
    taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
    hashing = 0 if setting.hash == "exact" else vectors * L * setting.H
    return round(hashing + r_c * vectors * L * taps * geometry.M)
