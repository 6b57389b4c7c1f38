"""The report's numbers from what a search found."""

from __future__ import annotations

import math
import os

from tvm.target import Target

from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.layers import describe
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.choose import pareto
from adr_tvm.planner.clock import Clock
from adr_tvm.planner.cost import reuse_macs
from adr_tvm.planner.findings import Findings, Measured
from adr_tvm.planner.network_time import NetworkTimes
from adr_tvm.planner.options import SearchOptions
from adr_tvm.report.results import Candidate as Tried
from adr_tvm.report.results import LayerResult, NetworkResult


def network_result(
    findings: Findings,
    plan: ReusePlan,
    checked: CheckedModel,
    target: Target,
    metric: str,
    options: SearchOptions,
    times: NetworkTimes,
    clock: Clock,
) -> NetworkResult:
    """Everything the report shows.

    Args:
        times: of one run of the network.
        clock: where times come from.
    """
    lossy = any(s is not None and not s.lossless for s in plan.reused.values())
    notes = list(findings.notes)
    if any(s is not None and s.scope == "batch" for s in plan.reused.values()):
        notes.append("Layers with scope=batch: an image's result depends on the other images of its batch.")
    measured = findings.metric
    if findings.images_needed is not None:
        notes.append(
            f"The budget was the limit: about {findings.images_needed} held-back images would let a plan with more "
            "reuse pass it."
        )
    return NetworkResult(
        model=os.path.basename(str(checked.path)),
        model_sha256=checked.sha256,
        target=str(target.kind.name),
        cpu=clock.cpu,
        threads=clock.threads,
        seed=options.seed,
        metric=metric,
        budget=options.budget(metric) if measured is not None else None,
        drop=None if measured is None or not lossy else measured.drop(),
        bound=None if measured is None or not lossy else measured.bound(),
        n_images=0 if measured is None else measured.images,
        images_needed=findings.images_needed,
        dense_ms=times.dense * 1e3,
        reuse_ms=times.main * 1e3,
        layers=[_layer_result(c, findings, plan) for c in findings.candidates],
        notes=notes,
        predicted=clock.predicted,
    )


def _measured(value: float) -> float | None:
    """None for NaN, which stands for what was not measured."""
    return None if math.isnan(value) else value


def _predicted(seconds: float | None) -> float | None:
    """Milliseconds; None where nothing was predicted."""
    return seconds * 1e3 if seconds else None


def _layer_result(c: Candidate, findings: Findings, plan: ReusePlan) -> LayerResult:
    g, described, chosen = c.geometry, describe(c), findings.chosen.get(c.layer)
    tried = findings.measured.get(c.layer, [])
    decided = plan.layers.get(c.layer)
    first = chosen or (tried[0] if tried else None)
    r_c = None if chosen is None else _measured(chosen.short.r_c)
    return LayerResult(
        layer=c.layer,
        op=c.kind,
        geometry=described.geometry,
        decision="reuse" if chosen is not None else "dense",
        setting=chosen.short.setting if chosen is not None else None,
        reason=decided.reason if decided is not None else findings.reasons.get(c.layer, "dense"),
        macs_dense=described.macs,
        macs_reuse=None if g is None or r_c is None or chosen is None else reuse_macs(g, chosen.short.setting, r_c),
        time_dense_ms=None if first is None else _measured(first.dense * 1e3),
        time_reuse_ms=None if chosen is None else _measured(chosen.reuse * 1e3),
        predicted_ms=None if chosen is None else _predicted(chosen.short.predicted),
        predicted_dense_ms=None if first is None else _predicted(first.predicted_dense),
        clusters=None if chosen is None else _measured(chosen.clusters),
        vectors=None if g is None or chosen is None else g.vectors(chosen.short.setting),
        r_c=r_c,
        nmse_layer=None if chosen is None else chosen.nmse,
        output_error=None if chosen is None else chosen.error,
        candidates=_tried(tried, chosen),
    )


def _tried(tried: list[Measured], chosen: Measured | None) -> list[Tried]:
    front = pareto([(m.reuse, m.nmse if m.error is None else m.error) for m in tried])
    return [
        Tried(
            setting=m.short.setting,
            time_ms=m.reuse * 1e3,
            error=m.error,
            r_c=m.short.r_c,
            chosen=chosen is not None and m.short.setting == chosen.short.setting,
            pareto=kept,
            predicted_ms=_predicted(m.short.predicted),
        )
        for m, kept in zip(tried, front, strict=True)
    ]
