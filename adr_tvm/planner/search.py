"""Entry points of the planner: search for a plan, or evaluate a given one; both end in a built library and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm.build import build_plan
from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.deploy.threads import set_threads
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.passes.mark_candidates import CandidateRules
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.clock import Clock, MeasuredClock
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.cost_file import record
from adr_tvm.planner.findings import WORTH, Findings, plan_of
from adr_tvm.planner.given_plan import given_findings
from adr_tvm.planner.layer_search import LayerSearch
from adr_tvm.planner.lossless import lossless_findings, with_counts
from adr_tvm.planner.network_time import NetworkTimes
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.summary import network_result
from adr_tvm.progress import progress
from adr_tvm.report.results import NetworkResult, Timings

NOT_SLOWER = 1.0  # whole network with reuse / dense, above which everything is reverted
NOT_SLOWER_UNSEEN = 1.05  # the same on random data, where lossless reuse can only cost


@dataclass
class Outcome:
    """What a search or an evaluation ends in.

    Attributes:
        plan: what each layer does and why.
        result: numbers for the report.
        timings: every time measured or taken from the given timings.
        executable: the compiled library, with its entries.
    """

    plan: ReusePlan
    result: NetworkResult
    timings: Timings
    executable: tvm.runtime.Executable


def search(
    mod: tvm.IRModule,
    checked: CheckedModel,
    rules: CandidateRules,
    calibration: CalibrationSet | None,
    target: Target,
    options: SearchOptions,
    timings: Timings | None = None,
    cost: CostModel | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Find a plan.

    Args:
        mod: canonical module.
        checked: the model it came from.
        rules: layers the user allows.
        calibration: samples to plan and verify with. None leaves lossless reuse only, taken unless the network is
            slower with it on data that never repeat.
        target: what to compile for here; this machine's.
        options: the user's wishes.
        timings: times of an earlier search, which make this one repeatable.
        cost: what predicts times; the defaults if None.
        clock: what times kernels; None: this machine's, with ``timings``.

    Raises:
        DataError: the metric does not fit the network or the data.
    """
    timings = Timings() if timings is None else timings
    clock = clock or MeasuredClock(timings)
    if calibration is None or options.lossless:
        findings = lossless_findings(mod, rules, options)
        batch = None if calibration is None else next(iter(calibration))[0]
        return _finish(mod, checked, findings, "none", batch, target, options, timings, clock)
    cost = cost or CostModel(threads=set_threads())
    record(cost, timings)
    found = LayerSearch(mod, checked, rules, calibration, target, options, timings, cost, clock)
    findings = found.run()
    outcome = _finish(mod, checked, findings, found.metric, found.batch, target, options, timings, clock)
    result = dataclasses.replace(outcome.result, cost_model=cost.source, cost_model_sha256=cost.sha256)
    return dataclasses.replace(outcome, result=result)


def evaluate(
    mod: tvm.IRModule,
    checked: CheckedModel,
    rules: CandidateRules,
    plan: ReusePlan,
    calibration: CalibrationSet | None,
    target: Target,
    options: SearchOptions,
    timings: Timings | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Apply a given plan as it is; measure and report it.

    Raises:
        ModelError: the plan names layers the model lacks, or its planes do not fit.
        DataError: the metric does not fit the network or the data.
    """
    timings = Timings() if timings is None else timings
    clock = clock or MeasuredClock(timings)
    findings, metric, batch = given_findings(mod, checked, rules, plan, calibration, target, options, clock)
    return _finish(mod, checked, findings, metric, batch, target, options, timings, clock, plan)


def _finish(
    mod: tvm.IRModule,
    checked: CheckedModel,
    findings: Findings,
    metric: str,
    batch: Mapping[str, np.ndarray] | None,
    target: Target,
    options: SearchOptions,
    timings: Timings,
    clock: Clock,
    given: ReusePlan | None = None,
) -> Outcome:
    """Build, time the whole network, revert everything if it is certainly slower after all, and sum up."""
    budget = options.budget(metric)
    described = (checked, str(target.kind.name), metric, budget, options.seed, clock.threads, clock.predicted)
    with progress("building the library", None) as step:
        plan = given or plan_of(findings, *described)
        executable = build_plan(mod, plan, target)
        step.advance(1)
    times = clock.network(executable, checked, batch, plan, options.seed)
    if given is None and plan.reused and _reverted(times, options.lossless, batch is not None):
        ratio = times.main / times.dense
        word = "is predicted to take" if clock.predicted else "measured"
        for layer in findings.chosen:
            findings.reasons[layer] = f"reverted: the whole network {word} {ratio:.2f}x its dense time"
        findings = dataclasses.replace(findings, chosen={})
        plan = plan_of(findings, *described)
        executable = build_plan(mod, plan, target)
        times = dataclasses.replace(times, main=times.dense, main_at_least=times.dense)
    if given is None and options.lossless and plan.reused and batch is not None:
        findings = with_counts(findings, executable, checked, plan, batch)
    images = 1 if batch is None else len(next(iter(batch.values())))
    findings.notes.append(clock.note(images))
    result = network_result(findings, plan, checked, target, metric, options, times, clock)
    return Outcome(plan, result, timings, executable)


def _reverted(times: NetworkTimes, lossless: bool, on_data: bool) -> bool:
    """Whether the network as compiled is not fast enough beside the dense one.

    Accuracy is spent for a gain that was seen only. What costs none, and looks for repetition that other inputs may
    have, goes where it is certain that these have none (without data: that it takes more than a little).
    """
    if not on_data:
        return times.slower(NOT_SLOWER_UNSEEN)
    if lossless:
        return times.slower(WORTH)
    return times.main > NOT_SLOWER * times.dense or times.slower(NOT_SLOWER)
