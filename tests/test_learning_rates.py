"""Learning rates against torch's schedulers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from adr_tvm.errors import UsageError
from adr_tvm.train.learning_rates import learning_rates

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler

PEAK = 0.3


def of_torch(make, steps, start=PEAK):
    """The learning rate of each step of a scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=start)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer steps in between
        scheduler = make(optimizer)
        for step in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            if step < steps - 1:
                scheduler.step()
    return found


CASES = {
    "constant": lambda n: lambda o: schedulers.ConstantLR(o, 1.0),
    "step": lambda n: lambda o: schedulers.StepLR(o, -(-n // 3), 0.1),
    "cosine": lambda n: lambda o: schedulers.CosineAnnealingLR(o, n),
    "one-cycle": lambda n: lambda o: schedulers.OneCycleLR(o, PEAK, total_steps=n),
    "stable-decay": lambda n: lambda o: schedulers.LambdaLR(o, lambda step: np.interp(step, [0.8 * n, n], [1, 0])),
}


@pytest.mark.parametrize("steps", [2, 30, 101])
@pytest.mark.parametrize("name", CASES)
def test_schedules_are_those_of_torch(name, steps):
    rate = learning_rates(name, PEAK, steps)
    expected = of_torch(CASES[name](steps), steps)
    assert [rate(step) for step in range(steps)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_warm_up_goes_before(name):
    """torch: LinearLR from 1 / (w + 1), then the schedule."""
    steps, warmup = 40, 7
    rate = learning_rates(name, PEAK, steps, warmup)

    def make(optimizer):
        rise = schedulers.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        rest = CASES[name](steps - warmup)(optimizer)
        return schedulers.SequentialLR(optimizer, [rise, rest], [warmup])

    assert [rate(step) for step in range(steps)] == pytest.approx(of_torch(make, steps), rel=1e-6)


def test_bad_values_are_refused():
    with pytest.raises(UsageError, match="no learning rate schedule 'linear'"):
        learning_rates("linear", 0.1, 10)
    with pytest.raises(UsageError, match="warm-up of 11 steps"):
        learning_rates("cosine", 0.1, 10, 11)


@pytest.mark.parametrize("name", CASES)
def test_runs_of_one_step(name):
    assert 0 < learning_rates(name, 0.1, 1)(0) <= 0.1
    assert learning_rates(name, 0.1, 3, 3)(2) < 0.1
