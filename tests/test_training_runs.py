"""``benchmarks.training_runs``: what is computed from logs and times. What is timed is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from adr_tvm.errors import DataError
from adr_tvm.train.history import gather
from benchmarks.training_runs import COMPILED, TORCH, Run, Times, read_runs, stage_key, summary, table

REUSE = {
    "setting": {"granularity": "pixel", "L": 16, "H": 8},
    "input_gradient": "averaged",
    "stream": False,
    "backward_only": False,
    "forward_only": False,
}
DENSE, SKIPPING, REUSED = stage_key({}, False), stage_key({}, True), stage_key({"conv2": REUSE}, True)
TIMES = Times(
    steps={DENSE: 200.0, SKIPPING: 150.0, REUSED: 90.0, TORCH: 800.0, COMPILED: 400.0},
    layers={DENSE: 150.0, SKIPPING: 100.0, REUSED: 50.0},
    planes={REUSED: 1000.0},
)


def _run(reuse: str, seed: int, switch: int, accuracies: tuple[float, float]) -> Run:
    """Two epochs of ten steps; reuse up to step ``switch``."""
    options = {"reuse": reuse, "stages": None, "seed": seed, "refresh_planes": 100}
    events = [{"event": "start", "network": "net", "data": "d", "options": options, "steps": 20}]
    for step in range(20):
        if step in (0, switch):
            layers = {"conv2": REUSE if step < switch else None}
            events.append({"event": "stage", "step": step, "layers": layers, "measured": {}})
        ratios = {"conv2": {"r_c": 0.02}} if step < switch else {}
        events.append({"event": "step", "step": step + 1, "loss": 1.0, "seconds": 9.0, "layers": ratios})
        if step % 10 == 9:
            events.append({"event": "epoch", "step": step + 1, "test_accuracy": accuracies[step // 10], "seconds": {}})
    return Run(Path("run"), gather(events))


def test_time_is_steps_times_their_medians():
    runs = [_run("adaptive", seed, 15, (0.5, 0.74 + seed / 100)) for seed in (0, 2)] + [_run("off", 0, 0, (0.6, 0.8))]
    dense, whole, coarse, fine = summary(runs, TIMES, accuracy=0.6)
    assert (dense.run_s, dense.layers_s, dense.time_to, dense.over_torch) == (4.0, 3.0, 2.0, 4.0)
    # A step with reuse: 90 ms and a hundredth of a fit.
    assert (coarse.steps, coarse.step_ms, coarse.r_c) == (15, 100.0, pytest.approx(0.02))
    assert (fine.steps, fine.step_ms) == (5, 150.0)  # its gradients skip zeros
    assert whole.run_s == pytest.approx(15 * 0.1 + 5 * 0.15)
    assert whole.run_saved == pytest.approx(1 - 2.25 / 4)
    assert whole.layers_saved == pytest.approx(1 - (15 * 0.05 + 5 * 0.1) / 3)
    assert whole.over_torch == pytest.approx(20 * 0.8 / 2.25) and whole.over_compiled == pytest.approx(20 * 0.4 / 2.25)
    assert whole.accuracies == (0.74, 0.76) and whole.time_to == pytest.approx(2.25)
    cells = table([dense, whole, coarse, fine])
    assert cells[1][11] == "75.00% (2: 74.00% to 76.00%)" and cells[2][0] == "  conv2 pixel L=16 H=8 averaged"


def test_time_to_an_accuracy_that_is_not_reached():
    runs = [_run("off", 0, 0, (0.6, 0.8)), _run("off", 1, 0, (0.6, 0.7))]
    assert summary(runs, TIMES, accuracy=0.75)[0].time_to is None


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_runs([tmp_path])
