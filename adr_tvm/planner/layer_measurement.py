"""Compiling the settings of one layer and timing them where the layer is in the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.planner.choose import pareto
from adr_tvm.planner.clock import Clock
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.findings import WORTH, Measured
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import cluster_limit, count_clusters, setting_key
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.shortlist import Shortlisted
from adr_tvm.settings import TABLES, ReuseSetting

PREDICTED_SPREAD = 0.75  # a prediction, scaled by how far another setting of the layer was off, is rarely this far off
MOST_TABLES = 2  # types of product tables that are tried beside float32


class LayerMeasurement:
    """Measures settings of layers on one batch.

    Args:
        network: the network.
        target: to compile for.
        cost: the cost model.
        batch: inputs by name.
        clock: what times kernels.
    """

    def __init__(
        self,
        network: PlanningNetwork,
        target: Target,
        cost: CostModel,
        batch: Mapping[str, np.ndarray],
        clock: Clock,
    ):
        self.network, self.target, self.cost, self.batch, self.clock = network, target, cost, batch, clock
        self.images = len(next(iter(batch.values())))

    def promising(self, c: Candidate, options: Sequence[Shortlisted]) -> list[Measured]:
        """Options of a layer, measured: of each kind of kernel the one that is predicted to be fastest, then those that
        may still pay by what it showed of the predictions.
        """
        kinds: dict[tuple[str, bool], list[Shortlisted]] = {}
        for s in options:
            kinds.setdefault((s.setting.granularity, s.setting.hash == "exact"), []).append(s)
        fastest = [min(some, key=lambda s: s.predicted) for some in kinds.values()]
        measured = self.measure(c, fastest)
        rest: list[Shortlisted] = []
        for first, some in zip(measured, kinds.values(), strict=True):
            # What is slower than the first by so much, and that is not fast enough, does not pay.
            limit = first.short.predicted * WORTH * first.dense / (PREDICTED_SPREAD * first.reuse)
            rest += [s for s in some if s.predicted <= limit and s.setting != _unguarded(first)]
        return [*measured, *self.measure(c, rest)]

    def measure(self, c: Candidate, options: Sequence[Shortlisted]) -> list[Measured]:
        """Options of a layer, measured."""
        if not options:
            return []
        g = c.geometry
        assert g is not None
        kernels = {
            setting_key(s.setting): LayerKernel(c.call, self.target, s.setting, *_arrays(s.planes)) for s in options
        }
        dense = self.network.dense[c.layer]
        times = self.clock.kernels(self.network, c.layer, {"dense": dense, **kernels}, self.batch)
        x = self.input(c.layer)
        r, images = dense(x)[0].numpy(), int(x.shape[0])
        predicted_dense = self.cost.dense_seconds(g, self.images)
        measured = []
        for s in options:
            key = setting_key(s.setting)
            clusters = count_clusters(kernels[key], x)
            nmse = _nmse(kernels[key](x)[0].numpy(), r)
            limit = cluster_limit(g, s.setting, images, clusters, times[key], times["dense"])
            guarded = dataclasses.replace(s, setting=dataclasses.replace(s.setting, max_clusters=limit))
            clusters /= images if s.setting.scope == "batch" else 1
            measured.append(
                Measured(
                    guarded,
                    kernels[key],
                    times["dense"],
                    times[key],
                    clusters,
                    nmse,
                    predicted_dense=predicted_dense,
                )
            )
        return measured

    def other_tables(self, c: Candidate, m: Measured) -> list[Shortlisted]:
        """A measured setting with the types of product tables that are predicted to be faster, fastest first."""
        setting = _unguarded(m)
        if _exact_or_row(setting) or setting.gain or setting.table != "float32":
            return []
        tables = [dataclasses.replace(setting, table=table) for table in TABLES if table != "float32"]  # type: ignore[arg-type]
        timed = [(self._predicted(c, m, each), each) for each in tables]
        faster = sorted((pair for pair in timed if pair[0] < m.short.predicted), key=lambda pair: pair[0])
        return [dataclasses.replace(m.short, setting=each, predicted=time) for time, each in faster[:MOST_TABLES]]

    def with_gain(self, c: Candidate, m: Measured) -> list[Shortlisted]:
        """A measured setting with ``gain``, which takes a little time and is closer to the dense layer."""
        setting = _unguarded(m)
        if _exact_or_row(setting) or setting.gain or setting.table.startswith("int"):
            return []
        gain = dataclasses.replace(setting, gain=True)
        return [dataclasses.replace(m.short, setting=gain, predicted=self._predicted(c, m, gain))]

    def _predicted(self, c: Candidate, m: Measured, setting: ReuseSetting) -> float:
        assert c.geometry is not None
        return self.cost.reuse_seconds(c.geometry, setting, m.short.r_c, self.images)

    def input(self, layer: str) -> Any:
        """The tensor that a layer gets."""
        seen: list[Any] = []

        def hook(at: str, x: Any) -> None:
            if at == layer:
                seen.append(tvm.runtime.tensor(x.numpy()))

        with self.network.watching(hook):
            self.network.run(self.batch)
        return seen[0]


def undominated(measured: Sequence[Measured]) -> list[Measured]:
    """Those that are worth their time and no other of the layer is both faster and closer to its dense output."""
    worth = [m for m in measured if m.worth]
    # Of equal errors the exact reuse of other granularities must not hide lossless reuse.
    points = [(m.reuse, -1.0 if m.short.setting.lossless else m.nmse) for m in worth]
    return [m for m, kept in zip(worth, pareto(points), strict=True) if kept]


def _exact_or_row(setting: ReuseSetting) -> bool:
    return setting.hash == "exact" or setting.granularity == "row"


def _unguarded(m: Measured) -> ReuseSetting:
    return dataclasses.replace(m.short.setting, max_clusters=None)


def _arrays(planes: HashPlanes | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    return (None, None) if planes is None else (planes.planes, planes.thresholds)


def _nmse(y: np.ndarray, r: np.ndarray) -> float:
    r64 = r.astype(np.float64)
    spread = float(((r64 - r64.mean(axis=tuple(range(r.ndim - 1)))) ** 2).sum())
    return float(((y - r64) ** 2).sum()) / spread if spread > 0 else 0.0
