"""What a search learned about the layers, and the plan that it amounts to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from adr_tvm.deploy.threads import VARIABLE
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planner.accuracy import OutputMetric
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.shortlist import Shortlisted

WORTH = 0.95  # a layer is taken only at or below this share of its dense time, measured inside the network


@dataclass
class Measured:
    """One compiled and measured setting of one layer.

    Attributes:
        short: setting, planes, prediction.
        kernel: compiled, without the guard; None where layers are not measured one by one.
        dense, reuse: seconds of a batch inside the network.
        predicted_dense: what the cost model says of ``dense``; of ``reuse`` it is in ``short``.
        clusters: of one image (``batch`` scope: on average).
        nmse: of the layer's output.
        error: NMSE at the network's output; None until weighed.
    """

    short: Shortlisted
    kernel: LayerKernel | None
    dense: float
    reuse: float
    clusters: float
    nmse: float
    error: float | None = None
    predicted_dense: float | None = None

    @property
    def worth(self) -> bool:
        """Whether the layer is enough faster."""
        return self.reuse <= WORTH * self.dense


def kernels_of(measured: Mapping[str, Measured]) -> dict[str, LayerKernel]:
    """Kernels by layer."""
    return {layer: m.kernel for layer, m in measured.items() if m.kernel is not None}


@dataclass
class Findings:
    """What the search learned about the layers, for the plan and the report."""

    candidates: list[Candidate]
    reasons: dict[str, str]
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    chosen: dict[str, Measured] = field(default_factory=dict)
    metric: OutputMetric | None = None
    images_needed: int | None = None
    notes: list[str] = field(default_factory=list)


def threads_in_force() -> int:
    """The number of threads that kernels run on; 0 where nobody has fixed it."""
    return int(os.environ.get(VARIABLE, "0"))


def plan_of(
    findings: Findings,
    checked: CheckedModel,
    target: str,
    metric: str,
    budget: float,
    seed: int,
    threads: int,
    predicted: bool = False,
) -> ReusePlan:
    """The plan that findings amount to.

    Args:
        threads: that it is for.
        predicted: whether times are not measured.
    """
    faster = "predicted to be {:.2f}x faster" if predicted else "{:.2f}x faster inside the network"
    layers: dict[str, LayerPlan] = {}
    planes: dict[str, HashPlanes] = {}
    for c in findings.candidates:
        m = findings.chosen.get(c.layer)
        if m is None:
            layers[c.layer] = LayerPlan(c.layer, "dense", None, findings.reasons.get(c.layer, "dense is faster"))
            continue
        gain = f"{faster.format(m.dense / m.reuse)}, r_c {m.short.r_c:.3f}"
        if m.short.predicted == 0:
            gain = "lossless: rows with equal bits share a product"
        layers[c.layer] = LayerPlan(c.layer, "reuse", m.short.setting, gain)
        if m.short.planes is not None:
            planes[c.layer] = m.short.planes
    return ReusePlan(
        model_sha256=checked.sha256,
        target=target,
        seed=seed,
        metric=metric,
        budget=budget,
        layers=layers,
        planes=planes,
        threads=threads,
    )
