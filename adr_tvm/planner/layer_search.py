"""The search over layers: shortlist, measure, weigh, choose, verify, back off.

Everything that depends on the machine goes through ``Timings``, everything random through the seed: the same search
with the same timings gives the same plan, byte for byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm.calibration import CalibrationSet
from adr_tvm.errors import DataError
from adr_tvm.hashing import HashPlanes
from adr_tvm.metrics import Metric
from adr_tvm.onnx_model import CheckedModel
from adr_tvm.passes.mark_candidates import Candidate, CandidateRules, find_candidates
from adr_tvm.planner.accuracy import DenseOutputs, new_metric, output_errors
from adr_tvm.planner.choose import Option, nested_plans
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.findings import Findings, Measured
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import cluster_limit, count_clusters, setting_key, time_in_place, time_kernels
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.shortlist import Shortlist, Shortlisted, shortlist
from adr_tvm.progress import progress
from adr_tvm.results import Timings

SENSITIVITY_IMAGES = 256
CHOICE_IMAGES = 2048


class LayerSearch:
    """One search; see the module.

    Args:
        mod: canonical module.
        checked: the model.
        rules: layers the user allows.
        calibration: data; split here into a planning and a held-back half.
        target: to compile for; measured on this machine.
        options: what the user asked for.
        timings: measurements to use and extend.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        checked: CheckedModel,
        rules: CandidateRules,
        calibration: CalibrationSet,
        target: Target,
        options: SearchOptions,
        timings: Timings,
    ):
        self.target, self.options, self.timings = target, options, timings
        self.planning, self.held_back = calibration.split(options.seed)
        self.cost = CostModel()
        candidates = find_candidates(mod["main"], "main", rules)
        self.findings = Findings(candidates, {c.layer: c.reason for c in candidates if c.reason})
        self.open = [c for c in candidates if not c.reason]
        for c in list(self.open):
            if (reason := _alone(c, options.scope)) is not None:
                self.findings.reasons[c.layer] = reason
                self.open.remove(c)
        self.network = PlanningNetwork(mod, self.open, target, [spec.name for spec in checked.inputs])
        self.batch = next(iter(self.planning))[0]
        self.images = len(next(iter(self.batch.values())))

    def run(self) -> Findings:
        """Search.

        Raises:
            DataError: the metric does not fit the network or the data.
        """
        self.metric = metric_for(self.options, DenseOutputs(self.network, self.planning, 1)).name
        lists = shortlist(self.network, self.open, self.planning, self.options, self.cost)
        self._measure(lists)
        self._weigh()
        self._choose()
        return self.findings

    @property
    def budget(self) -> float:
        """The budget in the metric's unit."""
        return self.options.budget(self.metric)

    def _measure(self, lists: Mapping[str, Shortlist]) -> None:
        """Compile what is shortlisted and time it inside the network; drop what is not enough faster."""
        layers = [c for c in self.open if lists[c.layer].options]
        self.findings.reasons |= {layer: s.reason for layer, s in lists.items() if not s.options}
        with progress("measuring layers", len(layers)) as step:
            for c in layers:
                measured = self._measure_layer(c, lists[c.layer].options)
                self.findings.measured[c.layer] = measured
                if not any(m.worth for m in measured):
                    best = min(measured, key=lambda m: m.reuse)
                    self.findings.reasons[c.layer] = (
                        f"measured no gain: at best {best.reuse / best.dense:.2f}x the dense time "
                        f"({setting_key(best.short.setting)}, r_c {best.short.r_c:.2f})"
                    )
                step.advance(1, c.layer)

    def _measure_layer(self, c: Candidate, options: Sequence[Shortlisted]) -> list[Measured]:
        assert c.geometry is not None
        kernels = {
            setting_key(s.setting): LayerKernel(c.call, self.target, s.setting, *_arrays(s.planes)) for s in options
        }
        times = time_kernels(
            self.network, c.layer, {"dense": self.network.dense[c.layer], **kernels}, self.batch, self.timings
        )
        x = self._input(c.layer)
        r = self.network.dense[c.layer](x)[0].numpy()
        measured = []
        for s in options:
            key = setting_key(s.setting)
            clusters = count_clusters(kernels[key], [x])
            y = kernels[key](x)[0].numpy()
            limit = cluster_limit(c.geometry, s.setting, self.images, clusters, times[key], times["dense"])
            guarded = dataclasses.replace(s, setting=dataclasses.replace(s.setting, max_clusters=limit))
            measured.append(Measured(guarded, kernels[key], times["dense"], times[key], clusters, _nmse(y, r)))
        return measured

    def _input(self, layer: str) -> Any:
        seen: list[Any] = []

        def hook(at: str, x: Any) -> None:
            if at == layer:
                seen.append(tvm.runtime.tensor(x.numpy()))

        with self.network.watching(hook):
            self.network.run(self.batch)
        return seen[0]

    def _weigh(self) -> None:
        """Error at the network's output of each setting that is worth its time, one layer at a time."""
        worth = [(layer, m) for layer, ms in self.findings.measured.items() for m in ms if m.worth]
        data = DenseOutputs(self.network, self.planning, SENSITIVITY_IMAGES)
        with progress("weighing layers at the network's output", len(worth)) as step:
            for layer, m in worth:
                if m.short.setting.lossless:
                    m.error = 0.0
                else:
                    _, m.error = output_errors(self.network, {layer: m.kernel}, data, new_metric(self.metric, data))
                step.advance(1, layer)

    def _choose(self) -> None:
        """The furthest plan of the nested sequence whose bound, on held-back data, is within the budget."""
        options = {
            layer: [Option(m.short.setting, m.dense - m.reuse, m.error) for m in ms if m.error is not None]
            for layer, ms in self.findings.measured.items()
        }
        plans = nested_plans(options)
        data = DenseOutputs(self.network, self.planning, CHOICE_IMAGES)
        reached = self._furthest_within(plans, data)
        held_back = DenseOutputs(self.network, self.held_back)
        best: Metric | None = None
        with progress("verifying on held-back data", None) as step:
            while reached >= 0:
                chosen = self._kernels_of(plans[reached])
                best, _ = output_errors(self.network, _kernels(chosen), held_back, new_metric(self.metric, held_back))
                step.advance(1, f"{len(chosen)} layers")
                lossy = any(not m.short.setting.lossless for m in chosen.values())
                if not lossy or best.within(self.budget):
                    break
                self.findings.images_needed = best.images_needed(self.budget)
                reached -= 1
        self.findings.metric = best
        self._keep_what_pays(self._kernels_of(plans[max(reached, 0)]))
        for layer, ms in self.findings.measured.items():
            if layer not in self.findings.chosen and layer not in self.findings.reasons and any(m.worth for m in ms):
                self.findings.reasons[layer] = "its error does not fit the accuracy budget"

    def _furthest_within(self, plans: Sequence[Mapping[str, Option]], data: DenseOutputs) -> int:
        """Largest step whose measured drop, without any margin, is within the budget on planning data (bisection)."""
        low, high = 0, len(plans) - 1
        with progress("choosing under the budget", None) as step:
            while low < high:
                middle = (low + high + 1) // 2
                kernels = _kernels(self._kernels_of(plans[middle]))
                metric, _ = output_errors(self.network, kernels, data, new_metric(self.metric, data))
                step.advance(1, f"{len(kernels)} layers")
                fits = metric.value() >= self.budget if self.metric == "psnr" else metric.drop() <= self.budget
                low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _kernels_of(self, plan: Mapping[str, Option]) -> dict[str, Measured]:
        return {
            layer: next(m for m in self.findings.measured[layer] if m.short.setting == option.setting)
            for layer, option in plan.items()
        }

    def _keep_what_pays(self, chosen: dict[str, Measured]) -> None:
        """Drop layers that are not enough faster in whole runs of the network."""
        if not chosen:
            return
        for layer, (dense, reuse) in time_in_place(self.network, _kernels(chosen), self.batch, self.timings).items():
            m = dataclasses.replace(chosen[layer], dense=dense, reuse=reuse)
            if m.worth:
                self.findings.chosen[layer] = m
            else:
                self.findings.reasons[layer] = f"no gain inside the network: {reuse / dense:.2f}x the dense time"


def metric_for(options: SearchOptions, data: DenseOutputs) -> Metric:
    """The metric the user asked for.

    Raises:
        DataError: it does not fit the network or the data.
    """
    try:
        return new_metric(options.metric, data)
    except ValueError as error:
        raise DataError(str(error)) from None


def _alone(c: Candidate, scope: str | None) -> str | None:
    """Why nothing can repeat within a unit of this layer."""
    if c.geometry is not None and c.geometry.rows == 1 and scope != "batch":
        return "one row per image: nothing can repeat within an image (scope=batch looks across images)"
    return None


def _arrays(planes: HashPlanes | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    return (None, None) if planes is None else (planes.planes, planes.thresholds)


def _kernels(chosen: Mapping[str, Measured]) -> dict[str, LayerKernel]:
    return {layer: m.kernel for layer, m in chosen.items()}


def _nmse(y: np.ndarray, r: np.ndarray) -> float:
    r64 = r.astype(np.float64)
    spread = float(((r64 - r64.mean(axis=tuple(range(r.ndim - 1)))) ** 2).sum())
    return float(((y - r64) ** 2).sum()) / spread if spread > 0 else 0.0
