"""Lossless reuse without calibration data: a layer is taken where looking for repetition costs next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm.passes.mark_candidates import Candidate, CandidateRules, find_candidates
from adr_tvm.planner.findings import Findings, Measured
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import REPEATS, setting_key
from adr_tvm.planner.network import seconds
from adr_tvm.planner.shortlist import Shortlisted
from adr_tvm.progress import progress
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting

MOST_OVERHEAD = 0.02  # of the dense time, on data that never repeat
REUSED_ROWS = 0.85  # share of distinct rows above which a unit runs dense
FEWEST_ROWS = 64  # rows of a unit below which repetition is not worth looking for


@dataclass(frozen=True)
class Probe:
    """What looking for repetition costs a layer: seconds dense, and with a probe that finds nothing."""

    setting: ReuseSetting
    dense: float
    probed: float

    @property
    def cheap(self) -> bool:
        """Whether the layer may be rewritten without knowing its data."""
        return self.probed <= (1 + MOST_OVERHEAD) * self.dense


def lossless_setting(candidate: Candidate) -> ReuseSetting:
    """`exact` rows of one image, dense where hardly any repeat."""
    assert candidate.geometry is not None
    limit = int(REUSED_ROWS * candidate.geometry.rows)
    return ReuseSetting(granularity="row", hash="exact", L=1, H=1, scope="image", max_clusters=limit)


def probe_costs(candidates: Sequence[Candidate], target: Target, seed: int, timings: Timings) -> dict[str, Probe]:
    """The cost of the probe on seeded random data, which never repeat, for each layer with enough rows."""
    costs: dict[str, Probe] = {}
    rng = np.random.default_rng(seed)
    with progress("measuring what lossless reuse costs", len(candidates)) as step:
        for c in candidates:
            step.advance(1, c.layer)
            if c.geometry is None or c.geometry.rows < FEWEST_ROWS:
                continue
            setting = lossless_setting(c)
            keys = [f"{c.layer}|random|{name}" for name in ("dense", setting_key(setting))]
            if any(timings.get(key) is None for key in keys):
                kernels = [LayerKernel(c.call, target), LayerKernel(c.call, target, setting)]
                shape = [int(d) if isinstance(d, tvm.tirx.IntImm) else 1 for d in c.call.args[0].ty.shape]
                x = tvm.runtime.tensor(rng.standard_normal(shape).astype(np.float32))
                samples: list[list[float]] = [[], []]
                for _ in range(REPEATS + 1):
                    for kernel, sample in zip(kernels, samples, strict=True):
                        sample.append(seconds(kernel, x))
                for key, sample in zip(keys, samples, strict=True):
                    timings.put(key, float(np.median(sample[1:])))
            dense, probed = (timings.get(key) or 0.0 for key in keys)
            costs[c.layer] = Probe(setting, dense, probed)
    return costs


def lossless_findings(
    mod: tvm.IRModule, rules: CandidateRules, target: Target, seed: int, timings: Timings
) -> Findings:
    """Without calibration data: `exact` rows wherever looking for repetition costs next to nothing."""
    candidates = find_candidates(mod["main"], "main", rules)
    findings = Findings(candidates, {c.layer: c.reason for c in candidates if c.reason})
    probes = probe_costs([c for c in candidates if not c.reason], target, seed, timings)
    for c in candidates:
        if c.reason:
            continue
        probe = probes.get(c.layer)
        if probe is None:
            findings.reasons[c.layer] = "too few rows in an image for repetition to pay"
        elif not probe.cheap:
            findings.reasons[c.layer] = (
                f"looking for repetition would cost up to {probe.probed / probe.dense - 1:.0%}, more than "
                f"{MOST_OVERHEAD:.0%} (calibration data would show whether it pays)"
            )
        else:
            kernel = LayerKernel(c.call, target, probe.setting)
            short = Shortlisted(probe.setting, None, 1.0, 0.0, 0.0)
            findings.chosen[c.layer] = Measured(short, kernel, probe.dense, probe.probed, 0.0, 0.0, 0.0)
    return findings
