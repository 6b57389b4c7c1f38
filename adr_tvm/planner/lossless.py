"""Lossless reuse as a whole: every layer with enough rows matches bit-identical rows.

Ids are found once, at the input, and carried (``passes/carried_ids.py``), so layers cannot be judged one by one: alone,
each would pay for a search that in the network only the first pays for. The whole network is timed instead, and
reverted if it is slower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.passes.expose_counts import ENTRY
from adr_tvm.passes.mark_candidates import Candidate, CandidateRules, find_candidates
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.findings import Findings, Measured
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.shortlist import Shortlisted
from adr_tvm.settings import ReuseSetting

REUSED_ROWS = 0.85  # share of distinct rows above which a unit runs dense
FEWEST_ROWS = 64  # rows of a unit below which repetition is not worth looking for


def lossless_setting(candidate: Candidate, scope: str = "image") -> ReuseSetting:
    """`exact` rows; an image runs dense where hardly any of its rows repeat."""
    assert candidate.geometry is not None
    limit = int(REUSED_ROWS * candidate.geometry.rows) if scope == "image" else None
    return ReuseSetting("row", L=1, H=1, hash="exact", scope=scope, max_clusters=limit)  # type: ignore[arg-type]


def lossless_findings(mod: tvm.IRModule, rules: CandidateRules, options: SearchOptions) -> Findings:
    """Every layer that may match rows does."""
    candidates = find_candidates(mod["main"], "main", rules)
    findings = Findings(candidates, {c.layer: c.reason for c in candidates if c.reason})
    for c in candidates:
        if c.reason:
            continue
        assert c.geometry is not None
        if c.geometry.rows < FEWEST_ROWS and options.scope != "batch":
            findings.reasons[c.layer] = f"{c.geometry.rows} rows in an image are too few for repetition to pay"
            continue
        short = Shortlisted(lossless_setting(c, options.scope or "image"), None, math.nan, 0.0, 0.0)
        findings.chosen[c.layer] = Measured(short, None, math.nan, math.nan, math.nan, 0.0, 0.0)
    return findings


def with_counts(
    findings: Findings,
    executable: tvm.runtime.Executable,
    checked: CheckedModel,
    plan: ReusePlan,
    batch: Mapping[str, np.ndarray],
) -> Findings:
    """The findings with the clusters that each layer counts on a batch."""
    inputs = [tvm.runtime.tensor(batch[spec.name]) for spec in checked.inputs]
    counts = relax.VirtualMachine(executable, tvm.cpu())[ENTRY](*inputs)[1]
    rows = {c.layer: c.geometry.rows for c in findings.candidates if c.geometry is not None}
    images = len(next(iter(batch.values())))
    chosen: dict[str, Measured] = {}
    for layer, stats in zip(plan.reused, counts, strict=True):
        m, found = findings.chosen[layer], stats.numpy().astype(np.float64)
        unit = rows[layer] * (images if m.short.setting.scope == "batch" else 1)
        clusters = float(np.where(found[:, 1] != 0, found[:, 0], unit).mean())
        per_image = clusters * rows[layer] / unit
        chosen[layer] = replace(m, short=replace(m.short, r_c=clusters / unit), clusters=per_image)
    return replace(findings, chosen=chosen)
