"""From the grid of settings to the few that are worth compiling: planes, remaining ratio and error on calibration data.

Two passes over a few images of the planning half: the first fits the planes of every vector shape, the second, on
other images where there are any, clusters with each setting. What the cost model expects to be slower than dense is
dropped, and of the rest the Pareto front of (time, error) is thinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import HashPlanes, analyse, make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.planner.choose import pareto
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.settings_grid import settings_grid
from adr_tvm.progress import progress
from adr_tvm.settings import ReuseSetting

FIT_POSITIONS = 16_384  # positions looked at per layer, so that large images do not take minutes
WORTH_PREDICTED = 1.2  # of the dense time: predictions are rough, measurement decides
SAMPLE_IMAGES = 8  # that settings are compared on; a whole batch where images are clustered together
MOST_SETTINGS = 6  # of one layer that are compiled and measured
WITH_GAIN = 4  # the most accurate of them are also tried with gain


@dataclass
class Shortlisted:
    """One setting of one layer that is worth measuring.

    Attributes:
        setting: what to try.
        planes: its hash planes; None for ``exact``.
        r_c: remaining ratio on calibration data.
        nmse: error of the vectors.
        predicted: seconds for ``images`` images.
    """

    setting: ReuseSetting
    planes: HashPlanes | None
    r_c: float
    nmse: float
    predicted: float


@dataclass
class Shortlist:
    """What remains of one layer's grid, or why nothing does."""

    options: list[Shortlisted] = field(default_factory=list)
    reason: str = ""


def shape_key(setting: ReuseSetting) -> tuple[str, int]:
    """What planes of different H of one family share: the shape of the vectors."""
    return setting.granularity, setting.L


def as_nhwc(x: Any, geometry: ConvGeometry) -> np.ndarray:
    """The input tensor of a layer as float32 [B, H, W, C]."""
    return x.numpy().reshape(-1, geometry.H, geometry.W, geometry.C)


def shortlist(
    network: PlanningNetwork,
    candidates: Sequence[Candidate],
    planning: CalibrationSet,
    options: SearchOptions,
    cost: CostModel,
) -> dict[str, Shortlist]:
    """Settings worth measuring, by layer."""
    grids = {c.layer: settings_grid(_geometry(c), options) for c in candidates}
    geometries = {c.layer: _geometry(c) for c in candidates}
    seed = options.seed
    statistics = _fit(network, geometries, grids, planning, seed)
    samples = _sample_inputs(network, geometries, planning, options.scope == "batch")
    lists: dict[str, Shortlist] = {}
    with progress("clustering calibration data", len(candidates)) as step:
        for layer, grid in grids.items():
            analysed = [
                _analysed(samples[layer], geometries[layer], setting, statistics[layer], cost, seed) for setting in grid
            ]
            lists[layer] = _thinned(analysed, cost.dense_seconds(geometries[layer], 1))
            step.advance(1, layer)
    return lists


def _geometry(candidate: Candidate) -> ConvGeometry:
    assert candidate.geometry is not None  # candidates without a geometry carry a reason and do not come here
    return candidate.geometry


def _images(geometry: ConvGeometry, have: int) -> int:
    return max(1, min(have, -(-FIT_POSITIONS // geometry.rows)))


def _fitted(geometry: ConvGeometry, planning: CalibrationSet) -> int:
    """Images, from the first on, that a layer's planes are fitted to: at most half, so that others are left."""
    return _images(geometry, -(-len(planning) // 2))


def _fit(
    network: PlanningNetwork,
    geometries: dict[str, ConvGeometry],
    grids: dict[str, list[ReuseSetting]],
    planning: CalibrationSet,
    seed: int,
) -> dict[str, dict[tuple[str, int], VectorStatistics]]:
    found: dict[str, dict[tuple[str, int], VectorStatistics]] = {}
    for layer, grid in grids.items():
        g = geometries[layer]
        found[layer] = {
            shape_key(s): VectorStatistics(g.segments(s), g.vector_length(s), seed) for s in grid if s.hash != "exact"
        }
    left = {layer: _fitted(g, planning) for layer, g in geometries.items()}

    def hook(layer: str, x: Any) -> None:
        if left[layer] <= 0 or not found[layer]:
            return
        images = as_nhwc(x, geometries[layer])[: left[layer]]
        left[layer] -= len(images)
        for (granularity, L), statistics in found[layer].items():
            setting = ReuseSetting(granularity=granularity, L=L)  # type: ignore[arg-type]
            statistics.update(neuron_vectors(images, geometries[layer], setting))

    with network.watching(hook), progress("fitting hash planes", None) as step:
        for inputs, _ in planning:
            if all(n <= 0 for n in left.values()):
                break
            network.run(inputs)
            step.advance(1)
    return found


def _sample_inputs(
    network: PlanningNetwork, geometries: dict[str, ConvGeometry], planning: CalibrationSet, whole_batch: bool
) -> dict[str, np.ndarray]:
    """Some inputs of every layer, of images that its planes are not fitted to (where there is more than one)."""
    most = max(SAMPLE_IMAGES, planning.batch_size) if whole_batch else SAMPLE_IMAGES
    wanted = {layer: min(most, _images(g, len(planning))) for layer, g in geometries.items()}
    first = {layer: min(_fitted(g, planning), len(planning) - wanted[layer]) for layer, g in geometries.items()}
    kept: dict[str, list[np.ndarray]] = {layer: [] for layer in geometries}
    done = size = 0

    def hook(layer: str, x: Any) -> None:
        images = as_nhwc(x, geometries[layer])
        start, stop = max(0, first[layer] - done), first[layer] + wanted[layer] - done
        if len(images) != size:  # the first axis of this layer's input is not the image
            kept[layer] = [images[-wanted[layer] :].copy()]
        elif start < min(stop, size):
            kept[layer].append(images[start:stop].copy())

    with network.watching(hook):
        for inputs, _ in planning:
            if all(done >= first[layer] + wanted[layer] for layer in geometries):
                break
            size = len(next(iter(inputs.values())))
            network.run(inputs)
            done += size
    return {layer: np.concatenate(images) for layer, images in kept.items()}


def _analysed(
    images: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    statistics: dict[tuple[str, int], VectorStatistics],
    cost: CostModel,
    seed: int,
) -> Shortlisted:
    planes = (
        None if setting.hash == "exact" else make_planes(setting.hash, setting.H, statistics[shape_key(setting)], seed)
    )
    units = len(images) if setting.scope == "image" else 1
    r_c, nmse = analyse(neuron_vectors(images, geometry, setting), planes, units)
    return Shortlisted(setting, planes, r_c, nmse, cost.reuse_seconds(geometry, setting, r_c, 1))


def _thinned(analysed: list[Shortlisted], dense: float) -> Shortlist:
    if not analysed:
        return Shortlist(reason="no setting fits this layer")
    best = min(analysed, key=lambda s: s.predicted)
    worth = [s for s in analysed if s.predicted <= WORTH_PREDICTED * dense]
    if not worth:
        return Shortlist(
            reason=f"predicted no gain: at best {best.predicted / dense:.2f}x the dense time, r_c {best.r_c:.2f}"
        )
    # `exact` of another granularity has no error here either, but only lossless reuse fits every budget.
    errors = [-1.0 if s.setting.lossless else s.nmse for s in worth]
    points = [(s.predicted, error) for s, error in zip(worth, errors, strict=True)]
    front = [s for s, kept in zip(worth, pareto(points), strict=True) if kept]
    front.sort(key=lambda s: (not s.setting.lossless, s.nmse))
    if len(front) > MOST_SETTINGS:
        front = [front[round(i * (len(front) - 1) / (MOST_SETTINGS - 1))] for i in range(MOST_SETTINGS)]
    scalable = [s for s in front if s.setting.granularity == "pixel" and s.planes is not None][:WITH_GAIN]
    gains = [replace(s, setting=replace(s.setting, gain=True)) for s in scalable]
    return Shortlist(options=[*front, *gains])
