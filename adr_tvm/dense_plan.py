"""The plan where there is nothing to plan with: every layer stays dense."""

from __future__ import annotations

import tvm

from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.options import CompileOptions
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import LayerPlan, ReusePlan

NOT_SOUGHT = "no calibration data; equal rows are looked for with --lossless, since that takes memory"
HALF = "no calibration data; layers that reuse compute in fp32, so that in fp16 none is lossless"


def dense_plan(
    mod: tvm.IRModule, checked: CheckedModel, rules: CandidateRules, options: CompileOptions, threads: int, reason: str
) -> ReusePlan:
    """A plan without reuse.

    Args:
        mod: canonical.
        threads: that the network will run on.
        reason: why a layer that might reuse does not.
    """
    candidates = find_candidates(mod["main"], "main", rules)
    layers = {c.layer: LayerPlan(c.layer, "dense", None, c.reason or reason) for c in candidates}
    return ReusePlan(checked.sha256, options.entry.name, options.seed, "none", None, layers, threads=threads)
