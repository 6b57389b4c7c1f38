"""Measuring a plan that is given, without a search."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes.mark_candidates import Candidate, CandidateRules, find_candidates
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.accuracy import DenseOutputs, output_errors
from adr_tvm.planner.clock import Clock
from adr_tvm.planner.findings import Findings, Measured
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.layer_search import metric_for
from adr_tvm.planner.measure import count_clusters
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.shortlist import Shortlisted


def given_findings(
    mod: tvm.IRModule,
    checked: CheckedModel,
    rules: CandidateRules,
    plan: ReusePlan,
    calibration: CalibrationSet | None,
    target: Target,
    options: SearchOptions,
    clock: Clock,
) -> tuple[Findings, str, Mapping[str, np.ndarray] | None]:
    """(findings, metric name, a batch) of a given plan; without calibration data nothing is measured.

    Raises:
        ModelError: the plan names a layer the model lacks or that cannot be rewritten, or planes do not fit.
        DataError: the metric does not fit.
    """
    candidates = find_candidates(mod["main"], "main", rules)
    by_name = {c.layer: c for c in candidates}
    findings = Findings(candidates, {c.layer: c.reason for c in candidates if c.reason})
    kernels = {layer: _kernel(by_name, plan, layer, target) for layer in plan.reused}
    if calibration is None:
        for layer, kernel in kernels.items():
            findings.chosen[layer] = _measured(plan, layer, kernel, 0.0, 0.0, 0.0, by_name[layer])
        if kernels:
            findings.notes.append("The plan was given and no calibration data: nothing was measured layer by layer.")
        return findings, "none", None
    layers = [by_name[layer] for layer in plan.reused]
    network = PlanningNetwork(mod, layers, target, [spec.name for spec in checked.inputs])
    data = DenseOutputs(network, calibration)
    metric = metric_for(options, data)
    findings.metric, _ = output_errors(network, kernels, data, metric)
    batch = next(iter(calibration))[0]
    times = clock.layers(network, kernels, batch)
    images = len(next(iter(batch.values())))
    seen: dict[str, object] = {}
    with network.watching(lambda layer, x: seen.update({layer: tvm.runtime.tensor(x.numpy())})):
        network.run(batch)
    for layer, kernel in kernels.items():
        clusters = count_clusters(kernel, seen[layer])
        if plan.reused[layer].scope == "batch":
            clusters /= images
        findings.chosen[layer] = _measured(plan, layer, kernel, *times[layer], clusters, by_name[layer])
    return findings, metric.name, batch


def _kernel(by_name: Mapping[str, Candidate], plan: ReusePlan, layer: str, target: Target) -> LayerKernel:
    candidate = by_name.get(layer)
    if candidate is None:
        raise ModelError(f"the plan reuses layer {layer!r}, which the model does not have: it has {', '.join(by_name)}")
    if candidate.reason:
        raise ModelError(f"the plan reuses layer {layer!r}, which must stay dense: {candidate.reason}")
    planes = plan.planes.get(layer)
    try:
        return LayerKernel(
            candidate.call,
            target,
            plan.reused[layer],
            None if planes is None else planes.planes,
            None if planes is None else planes.thresholds,
        )
    except ValueError as error:
        raise ModelError(f"the plan does not fit the model: {error}") from None


def _measured(
    plan: ReusePlan,
    layer: str,
    kernel: LayerKernel,
    dense: float,
    reuse: float,
    clusters: float,
    c: Candidate,
) -> Measured:
    assert c.geometry is not None
    setting, planes = plan.reused[layer], plan.planes.get(layer)
    units_vectors = c.geometry.vectors(setting)
    hashes = None if planes is None else HashPlanes(planes.planes, planes.thresholds, np.zeros(0, np.float32))
    r_c = clusters / units_vectors if units_vectors else 1.0
    return Measured(Shortlisted(setting, hashes, r_c, 0.0, 0.0), kernel, dense, reuse, clusters, 0.0)
