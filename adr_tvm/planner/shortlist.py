"""From the grid of settings to the few that are worth compiling: planes, remaining ratio and error on calibration data.

What the cost model expects to be slower than dense even with a single cluster in each segment is dropped unseen. Then
two passes over a few images of the planning half: the first gathers the statistics that planes are fitted to, the
second, on other images where there are any, estimates how much vectors repeat. What is still expected to be slower is
dropped, and of the rest the Pareto front of (time, error) is thinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import HashPlanes, make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import vectors_at
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.planner.choose import pareto
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.repetition import draw_sample, repetition
from adr_tvm.planner.settings_grid import settings_grid
from adr_tvm.planner.time_budget import SHORTLISTED_BY, TimeBudget
from adr_tvm.progress import progress
from adr_tvm.settings import ReuseSetting

FIT_POSITIONS = 16_384  # positions looked at per layer, so that large images do not take minutes
FIT_ENTRIES = 1 << 22  # entries of vectors of one shape that planes are fitted to
FIT_IMAGES = 32  # that the positions are drawn from
WORTH_PREDICTED = 1.2  # of the dense time: predictions are rough, measurement decides
SAMPLE_IMAGES = 8  # that settings are compared on; a whole batch where images are clustered together
FINE_SHARE = 0.03  # of the layers' predicted dense time, from which on a layer gets a close look
MOST_DISTINCT = 0.9  # share of distinct rows from which on lossless reuse is a matter of noise, not of time
MOST_SETTINGS = 4  # of one layer that are compiled and measured at first
OUT_OF_TIME = "not tried: the time budget was used up by layers that promised more"


@dataclass
class Shortlisted:
    """One setting of one layer that is worth measuring.

    Attributes:
        setting: what to try.
        planes: its hash planes; None for ``exact``.
        r_c: remaining ratio on calibration data.
        nmse: error of the vectors.
        predicted: seconds for a batch.
    """

    setting: ReuseSetting
    planes: HashPlanes | None
    r_c: float
    nmse: float
    predicted: float


@dataclass
class Shortlist:
    """What remains of one layer's grid, or why nothing does.

    Attributes:
        options: what to measure; their planes are made.
        between: the rest of the Pareto front, by error, to look closer at where the choice is going to be made.
        reason: why there are no options.
    """

    options: list[Shortlisted] = field(default_factory=list)
    between: list[Shortlisted] = field(default_factory=list)
    reason: str = ""


Statistics = dict[tuple[str, int], VectorStatistics]


def shape_key(setting: ReuseSetting) -> tuple[str, int]:
    """What planes of different H of one family share: the shape of the vectors."""
    return setting.granularity, setting.L


def as_nhwc(x: Any, geometry: ConvGeometry) -> np.ndarray:
    """The input tensor of a layer as float32 [B, H, W, C]."""
    return x.numpy().reshape(-1, geometry.H, geometry.W, geometry.C)


class Shortlists:
    """Settings worth measuring, by layer; under a time budget the layers that may save most come first.

    Args:
        network: the network.
        candidates: its layers.
        planning: data.
        batch: images that predicted times are of.
        options: the user's.
        cost: what predicts times.
        time: what may be spent.
    """

    def __init__(
        self,
        network: PlanningNetwork,
        candidates: Sequence[Candidate],
        planning: CalibrationSet,
        batch: int,
        options: SearchOptions,
        cost: CostModel,
        time: TimeBudget,
    ):
        self.geometries, self.seed = {c.layer: _geometry(c) for c in candidates}, options.seed
        self.cost, self.batch = cost, batch
        self.lists: dict[str, Shortlist] = {}
        grids: dict[str, list[ReuseSetting]] = {}
        whole = sum(cost.dense_seconds(g, batch) for g in self.geometries.values())
        for layer, g in self.geometries.items():
            fine = cost.dense_seconds(g, batch) >= FINE_SHARE * whole
            grids[layer], self.lists[layer] = _affordable(g, settings_grid(g, options, batch, fine), cost, batch)
        tried = {layer: g for layer, g in self.geometries.items() if grids[layer]}
        self.statistics = _fit(network, tried, grids, planning, self.seed)
        samples = _sample_inputs(network, tried, planning, options.scope == "batch")
        order = list(tried)
        if time.limited:
            order.sort(key=lambda layer: -_promise(tried[layer], grids[layer], cost, batch))
        with progress("clustering calibration data", len(order)) as step:
            for layer in order:
                if time.left(f"shortlist {layer}", SHORTLISTED_BY) <= 0:
                    self.lists[layer] = Shortlist(reason=OUT_OF_TIME)
                    continue
                found = self._analysed(layer, grids[layer], samples[layer])
                self.lists[layer] = _thinned(found, cost.dense_seconds(tried[layer], batch))
                step.advance(1, layer)
        for layer, short in self.lists.items():
            short.options = [self.with_planes(layer, option) for option in short.options]

    def with_planes(self, layer: str, option: Shortlisted) -> Shortlisted:
        """An option with the planes of all segments."""
        setting = option.setting
        if setting.hash == "exact" or option.planes is not None:
            return option
        planes = make_planes(setting.hash, setting.H, self.statistics[layer][shape_key(setting)], self.seed)
        return replace(option, planes=planes)

    def _analysed(self, layer: str, grid: Sequence[ReuseSetting], images: np.ndarray) -> list[Shortlisted]:
        """Settings with estimates; of one shape of vectors none with more bits than the first that costs too much."""
        g, found, too_slow = self.geometries[layer], [], set()
        limit = WORTH_PREDICTED * self.cost.dense_seconds(g, self.batch)
        for setting in grid:
            if shape_key(setting) in too_slow:
                continue
            sample = draw_sample(g, setting, len(images), self.seed)
            planes = None
            if setting.hash != "exact":
                statistics = self.statistics[layer][shape_key(setting)].only(sample.segments)
                planes = make_planes(setting.hash, setting.H, statistics, self.seed)
            r_c, nmse = repetition(images, g, setting, sample, planes)
            predicted = self.cost.reuse_seconds(g, setting, r_c, self.batch)
            found.append(Shortlisted(setting, None, r_c, nmse, predicted))
            if predicted > limit and setting.hash != "exact":
                too_slow.add(shape_key(setting))
        return found


def _geometry(candidate: Candidate) -> ConvGeometry:
    assert candidate.geometry is not None  # candidates without a geometry carry a reason and do not come here
    return candidate.geometry


def _at_best(geometry: ConvGeometry, setting: ReuseSetting, cost: CostModel, batch: int) -> float:
    """Predicted seconds of a batch with a single cluster in each segment of each unit."""
    units = batch if setting.scope == "image" else 1
    return cost.reuse_seconds(geometry, setting, units / (batch * geometry.positions(setting)), batch)


def _affordable(
    geometry: ConvGeometry, grid: Sequence[ReuseSetting], cost: CostModel, batch: int
) -> tuple[list[ReuseSetting], Shortlist]:
    """Settings that may be fast enough, and what to say where none may."""
    if not grid:
        return [], Shortlist(reason="no setting fits this layer")
    dense = cost.dense_seconds(geometry, batch)
    times = [_at_best(geometry, setting, cost, batch) for setting in grid]
    kept = [s for s, seconds in zip(grid, times, strict=True) if seconds <= WORTH_PREDICTED * dense]
    reason = f"predicted no gain: {min(times) / dense:.2f}x the dense time even if all vectors were equal"
    return kept, Shortlist(reason="" if kept else reason)


def _promise(geometry: ConvGeometry, grid: Sequence[ReuseSetting], cost: CostModel, batch: int) -> float:
    """Seconds of a batch that a layer may save at most."""
    return cost.dense_seconds(geometry, batch) - min(_at_best(geometry, setting, cost, batch) for setting in grid)


def _fitted(geometry: ConvGeometry, planning: CalibrationSet) -> int:
    """Images, from the first on, that a layer's planes are fitted to: at most half, so that others are left."""
    return max(1, min(-(-len(planning) // 2), FIT_IMAGES, -(-4 * FIT_POSITIONS // geometry.rows)))


def _fit(
    network: PlanningNetwork,
    geometries: Mapping[str, ConvGeometry],
    grids: Mapping[str, Sequence[ReuseSetting]],
    planning: CalibrationSet,
    seed: int,
) -> dict[str, Statistics]:
    """Statistics of the vectors of every shape in the grids, at positions drawn from a few images."""
    found: dict[str, Statistics] = {}
    shapes: dict[str, dict[tuple[str, int], ReuseSetting]] = {}
    for layer, g in geometries.items():
        shapes[layer] = {shape_key(s): s for s in grids[layer] if s.hash != "exact"}
        found[layer] = {
            key: VectorStatistics(g.segments(s), g.vector_length(s), seed) for key, s in shapes[layer].items()
        }
    wanted = {layer: _fitted(g, planning) for layer, g in geometries.items()}
    left, rng = dict(wanted), np.random.default_rng(seed)

    def hook(layer: str, x: Any) -> None:
        if left.get(layer, 0) <= 0 or not found[layer]:
            return
        g = geometries[layer]
        images = as_nhwc(x, g)[: left[layer]]
        left[layer] -= len(images)
        for key, statistics in found[layer].items():
            setting = shapes[layer][key]
            P, segments = g.positions(setting), np.arange(g.segments(setting))
            entries = g.vector_length(setting) * len(segments)
            most = max(64, min(FIT_POSITIONS, FIT_ENTRIES // entries) // wanted[layer])
            positions = np.arange(P) if most >= P else np.sort(rng.choice(P, most, replace=False))
            vectors = vectors_at(images, g, setting, positions, segments)
            statistics.update(vectors.reshape(-1, *vectors.shape[2:]))

    with network.watching(hook), progress("fitting hash planes", max(wanted.values(), default=0)) as step:
        for inputs, _ in planning:
            if all(n <= 0 for n in left.values()):
                break
            network.run(inputs)
            step.advance(min(planning.batch_size, max(wanted.values())))
    return found


def _sample_inputs(
    network: PlanningNetwork, geometries: Mapping[str, ConvGeometry], planning: CalibrationSet, whole_batch: bool
) -> dict[str, np.ndarray]:
    """Some inputs of every layer, of images that its planes are not fitted to (where there is more than one)."""
    wanted = min(max(SAMPLE_IMAGES, planning.batch_size) if whole_batch else SAMPLE_IMAGES, len(planning))
    first = {layer: min(_fitted(g, planning), len(planning) - wanted) for layer, g in geometries.items()}
    kept: dict[str, list[np.ndarray]] = {layer: [] for layer in geometries}
    done = size = 0

    def hook(layer: str, x: Any) -> None:
        if layer not in geometries:
            return
        images = as_nhwc(x, geometries[layer])
        start, stop = max(0, first[layer] - done), first[layer] + wanted - done
        if len(images) != size:  # the first axis of this layer's input is not the image
            kept[layer] = [images[-wanted:].copy()]
        elif start < min(stop, size):
            kept[layer].append(images[start:stop].copy())

    with network.watching(hook):
        for inputs, _ in planning:
            if all(done >= first[layer] + wanted for layer in geometries):
                break
            size = len(next(iter(inputs.values())))
            network.run(inputs)
            done += size
    return {layer: np.concatenate(images) for layer, images in kept.items()}


def _thinned(analysed: Sequence[Shortlisted], dense: float) -> Shortlist:
    best = min(analysed, key=lambda s: s.predicted)
    repeating = [s for s in analysed if not s.setting.lossless or s.r_c <= MOST_DISTINCT]
    worth = [s for s in repeating if s.predicted <= WORTH_PREDICTED * dense]
    if not worth:
        return Shortlist(
            reason=f"predicted no gain: at best {best.predicted / dense:.2f}x the dense time, r_c {best.r_c:.2f}"
        )
    # `exact` of another granularity has no error here either, but only lossless reuse fits every budget.
    errors = [-1.0 if s.setting.lossless else s.nmse for s in worth]
    points = [(s.predicted, error) for s, error in zip(worth, errors, strict=True)]
    front = [s for s, kept in zip(worth, pareto(points), strict=True) if kept]
    front.sort(key=lambda s: (not s.setting.lossless, s.nmse))
    some = {round(i * (len(front) - 1) / (MOST_SETTINGS - 1)) for i in range(MOST_SETTINGS)}
    options = [s for i, s in enumerate(front) if i in some]
    return Shortlist(options, [s for i, s in enumerate(front) if i not in some])
