"""The search over layers: shortlist, measure, weigh, refine, choose, verify, back off.

Everything that depends on the machine goes through ``Timings``, everything random through the seed: the same search
with the same timings gives the same plan, byte for byte. Under a time budget the layers that promise most go first;
what is not tried in time stays dense, errors are measured on fewer images, and so is the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set

import tvm
from tvm.target import Target

from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.errors import DataError
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.passes.mark_candidates import Candidate, CandidateRules, find_candidates
from adr_tvm.planner.accuracy import DenseOutputs, OutputMetric, new_metric, output_errors
from adr_tvm.planner.choose import Option, nested_plans
from adr_tvm.planner.clock import Clock
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.findings import Findings, Measured, kernels_of
from adr_tvm.planner.layer_measurement import LayerMeasurement, undominated
from adr_tvm.planner.measure import setting_key
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.shortlist import OUT_OF_TIME, Shortlist, Shortlisted, Shortlists
from adr_tvm.planner.time_budget import CHOSEN_BY, MEASURED_BY, REFINED_BY, VERIFIED_BY, WEIGHED_BY, TimeBudget
from adr_tvm.progress import progress
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting

SENSITIVITY_IMAGES = 64
CHOICE_IMAGES = 2048
FINER = 3  # settings of a layer that are tried between two others
MORE_ACCURATE = 1  # of those that are closer to the dense layer than the lower one
NEXT_STEPS = 4  # behind the furthest plan that keeps the budget, whose layers get a closer look

# A layer's setting in the furthest plan that keeps the budget, and the one in the next plan that has another.
_Around = tuple[Measured | None, Measured | None]


class LayerSearch:
    """One search; see the module.

    Args:
        mod: canonical module.
        checked: the model.
        rules: layers the user allows.
        calibration: data; split here into a planning and a held-back half.
        target: to compile for; this machine's.
        options: what the user asked for.
        timings: of an earlier search, which repeat what a time budget left.
        cost: what predicts times.
        clock: what times kernels.
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
        cost: CostModel,
        clock: Clock,
    ):
        self.options, self.cost, self.clock = options, cost, clock
        self.time = TimeBudget(options.time_budget, timings)
        self.planning, self.held_back = calibration.split(options.seed)
        candidates = find_candidates(mod["main"], "main", rules)
        self.findings = Findings(candidates, {c.layer: c.reason for c in candidates if c.reason})
        self.open = [c for c in candidates if not c.reason]
        for c in list(self.open):
            if (reason := _alone(c, options.scope)) is not None:
                self.findings.reasons[c.layer] = reason
                self.open.remove(c)
        self.network = PlanningNetwork(mod, self.open, target, [spec.name for spec in checked.inputs])
        self.batch = next(iter(self.planning))[0]
        self.measurement = LayerMeasurement(self.network, target, cost, self.batch, clock)
        images = self.measurement.images
        self.image_seconds = self.time.seconds_per_image(lambda: self.network.run(self.batch), images)

    def run(self) -> Findings:
        """Search.

        Raises:
            DataError: the metric does not fit the network or the data.
        """
        self.metric = metric_for(self.options, DenseOutputs(self.network, self.planning, 1)).name
        images = self.measurement.images
        self.shortlists = Shortlists(self.network, self.open, self.planning, images, self.options, self.cost, self.time)
        self._measure(self.shortlists.lists)
        self._weigh([(layer, m) for layer, ms in self.findings.measured.items() for m in undominated(ms)])
        self._refine("finer settings", self._finer)
        self._refine("variants", self._variants)
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
        if self.time.limited:
            layers.sort(key=lambda c: -self._promise(c, lists[c.layer]))
        found: dict[str, list[Measured]] = {}
        with progress("measuring layers", len(layers)) as step:
            for c in layers:
                if self.time.left(f"measure {c.layer}", MEASURED_BY) <= 0:
                    self.findings.reasons[c.layer] = OUT_OF_TIME
                    continue
                found[c.layer] = measured = self.measurement.promising(c, lists[c.layer].options)
                if not any(m.worth for m in measured):
                    best = min(measured, key=lambda m: m.reuse)
                    word = "predicted" if self.clock.predicted else "measured"
                    self.findings.reasons[c.layer] = (
                        f"{word} no gain: at best {best.reuse / best.dense:.2f}x the dense time "
                        f"({setting_key(best.short.setting)}, r_c {best.short.r_c:.2f})"
                    )
                step.advance(1, c.layer)
        self.findings.measured = {c.layer: found[c.layer] for c in self.open if c.layer in found}
        untried = sum(reason == OUT_OF_TIME for reason in self.findings.reasons.values())
        if untried:
            self.findings.notes.append(
                f"The time budget left {untried} of {untried + len(found)} promising layers untried."
            )

    def _promise(self, c: Candidate, short: Shortlist) -> float:
        """Seconds that the best setting of a layer is predicted to save on a batch."""
        assert c.geometry is not None
        dense = self.cost.dense_seconds(c.geometry, self.measurement.images)
        return dense - min(s.predicted for s in short.options)

    def _weigh(self, some: Sequence[tuple[str, Measured]], share: float = WEIGHED_BY, phase: str = "weigh") -> None:
        """Error at the network's output of settings, one layer at a time."""
        if self.time.limited:
            some = sorted(some, key=lambda found: found[1].reuse - found[1].dense)
        images = self.time.images(phase, share, len(some), self.image_seconds, SENSITIVITY_IMAGES)
        data = DenseOutputs(self.network, self.planning, images)
        with progress("weighing layers at the network's output", len(some)) as step:
            for layer, m in some:
                if m.short.setting.lossless:
                    m.error = 0.0
                elif self.time.left(f"{phase} {layer}|{setting_key(m.short.setting)}", share) > 0:
                    _, m.error = output_errors(
                        self.network, kernels_of({layer: m}), data, new_metric(self.metric, data)
                    )
                step.advance(1, layer)

    def _refine(self, phase: str, more: Callable[[Candidate, _Around], Sequence[Shortlisted]]) -> None:
        """Measure and weigh more settings around where the choice is going to be made: of the layers in the furthest
        plan that keeps the budget on planning data, and of those that come next.
        """
        plans = nested_plans(self._options())
        reached = self._furthest_within(plans, phase, REFINED_BY)
        chosen = self._measured_of(plans[reached])
        around: dict[str, _Around] = {layer: (m, None) for layer, m in chosen.items()}
        for plan in plans[reached + NEXT_STEPS : reached : -1]:
            later = {layer: m for layer, m in self._measured_of(plan).items() if m is not chosen.get(layer)}
            around |= {layer: (chosen.get(layer), m) for layer, m in later.items()}
        by_name, some = {c.layer: c for c in self.open}, []
        with progress(f"measuring {phase}", len(around)) as step:
            for layer, pair in around.items():
                if self.time.left(f"{phase} {layer}", REFINED_BY) <= 0:
                    break
                before = self.findings.measured[layer]
                found = self.measurement.measure(by_name[layer], more(by_name[layer], pair))
                kept = undominated([*before, *found])
                some += [(layer, m) for m in found if any(m is other for other in kept)]
                before += found
                step.advance(1, layer)
        self._weigh(some, REFINED_BY, f"weigh {phase}")

    def _finer(self, c: Candidate, around: _Around) -> list[Shortlisted]:
        """Settings that were passed over: some between the two, and those that are a little more accurate than the
        lower one, in case held-back data do not show that it keeps the budget.
        """
        low, high = (m.short.nmse if m is not None else None for m in around)
        known = {setting_key(m.short.setting) for m in self.findings.measured[c.layer]}
        passed = [s for s in self.shortlists.lists[c.layer].between if setting_key(s.setting) not in known]
        above = [s for s in passed if (low is None or s.nmse > low) and high is not None and s.nmse < high]
        below = [s for s in passed if low is not None and s.nmse < low]
        count = min(FINER, len(above))
        some = [above[(2 * i + 1) * len(above) // (2 * count)] for i in range(count)]
        return [self.shortlists.with_planes(c.layer, s) for s in [*below[-MORE_ACCURATE:], *some]]

    def _variants(self, c: Candidate, around: _Around) -> list[Shortlisted]:
        """The setting that keeps the budget with faster product tables; it and the next one with gain."""
        known = {setting_key(m.short.setting) for m in self.findings.measured[c.layer]}
        low, high = around
        found = [] if low is None else [*self.measurement.other_tables(c, low), *self.measurement.with_gain(c, low)]
        found += [] if high is None else self.measurement.with_gain(c, high)
        return [s for s in found if setting_key(s.setting) not in known]

    def _options(self) -> dict[str, list[Option]]:
        return {
            layer: [Option(m.short.setting, m.dense - m.reuse, m.error) for m in ms if m.error is not None]
            for layer, ms in self.findings.measured.items()
        }

    def _choose(self) -> None:
        """The furthest plan of the nested sequence whose bound, on held-back data, is within the budget."""
        plans = nested_plans(self._options())
        reached = self._furthest_within(plans, "choose", CHOSEN_BY)
        images = self.time.images("verify", VERIFIED_BY, 2, self.image_seconds, len(self.held_back))
        held_back = DenseOutputs(self.network, self.held_back, images)
        slow: set[tuple[str, ReuseSetting]] = set()
        while True:
            reached, metric = self._furthest_shown(plans[: reached + 1], slow, held_back)
            timed = self._in_network(self._without(plans[reached], slow))
            found = {(layer, m.short.setting) for layer, m in timed.items() if not m.worth}
            if not found:
                break
            slow |= found
        self.findings.metric, self.findings.chosen = metric, timed
        self._explain(metric.images)

    def _furthest_shown(
        self, plans: Sequence[Mapping[str, Option]], slow: Set[tuple[str, ReuseSetting]], data: DenseOutputs
    ) -> tuple[int, OutputMetric]:
        """Furthest step whose bound is within the budget, and its metric; the last step is tried first, then bisection.

        Plans of the sequence contain each other, and so do, nearly, the sets of images they fail on: that one plan
        that breaks the budget passes by chance is hardly likelier for all of them together than for the first such.
        """
        low, high, middle = 0, len(plans) - 1, len(plans) - 1
        shown: dict[int, OutputMetric] = {}
        with progress("verifying on held-back data", None) as step:
            while middle not in shown:
                chosen = self._without(plans[middle], slow)
                metric = self._drop(chosen, data)
                step.advance(1, f"{len(chosen)} layers")
                if _lossy(chosen) and not metric.within(self.budget):
                    self.findings.images_needed = metric.images_needed(self.budget)
                    high = middle - 1
                else:
                    shown[middle] = metric
                    low = middle
                middle = (low + high + 1) // 2
        return low, shown[low]

    def _without(self, plan: Mapping[str, Option], slow: Set[tuple[str, ReuseSetting]]) -> dict[str, Measured]:
        """What was measured of a plan, but for layers that do not pay inside the network."""
        return {layer: m for layer, m in self._measured_of(plan).items() if (layer, m.short.setting) not in slow}

    def _furthest_within(self, plans: Sequence[Mapping[str, Option]], phase: str, share: float) -> int:
        """Largest step whose measured drop, without any margin, is within the budget on planning data (bisection)."""
        low, high = 0, len(plans) - 1
        runs = len(plans).bit_length() + 1  # the dense network too
        images = self.time.images(phase, share, runs, self.image_seconds, CHOICE_IMAGES)
        data = DenseOutputs(self.network, self.planning, images)
        with progress("choosing under the budget", None) as step:
            while low < high:
                middle = (low + high + 1) // 2
                chosen = self._measured_of(plans[middle])
                fits = self._drop(chosen, data).keeps(self.budget)
                step.advance(1, f"{len(chosen)} layers")
                low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _drop(self, chosen: Mapping[str, Measured], data: DenseOutputs) -> OutputMetric:
        """The metric of the network with some layers reused."""
        kernels = kernels_of(chosen)
        return output_errors(self.network, kernels, data, new_metric(self.metric, data))[0]

    def _measured_of(self, plan: Mapping[str, Option]) -> dict[str, Measured]:
        return {
            layer: next(m for m in self.findings.measured[layer] if m.short.setting == option.setting)
            for layer, option in plan.items()
        }

    def _in_network(self, chosen: Mapping[str, Measured]) -> dict[str, Measured]:
        """Chosen layers with their times in whole runs of the network; notes why a layer does not pay there."""
        kernels = kernels_of(chosen)
        timed = {}
        for layer, (dense, reuse) in self.clock.layers(self.network, kernels, self.batch).items():
            timed[layer] = dataclasses.replace(chosen[layer], dense=dense, reuse=reuse)
            if not timed[layer].worth:
                self.findings.reasons[layer] = f"no gain inside the network: {reuse / dense:.2f}x the dense time"
        return timed

    def _explain(self, held_back: int) -> None:
        """Why the layers that measured faster, but are not chosen, stay dense."""
        reason = "its error does not fit the accuracy budget"
        if self.findings.images_needed is not None:
            reason = f"{held_back} held-back images do not show that its error fits the accuracy budget"
        for layer, ms in self.findings.measured.items():
            worth = [m for m in ms if m.worth]
            if worth and layer not in self.findings.chosen and layer not in self.findings.reasons:
                self.findings.reasons[layer] = OUT_OF_TIME if all(m.error is None for m in worth) else reason


def metric_for(options: SearchOptions, data: DenseOutputs) -> OutputMetric:
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


def _lossy(chosen: Mapping[str, Measured]) -> bool:
    return any(not m.short.setting.lossless for m in chosen.values())
