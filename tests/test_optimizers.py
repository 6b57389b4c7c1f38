"""Optimizer updates against ``torch.optim``, and their options."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from adr_tvm._tvm import cpu_target
from adr_tvm.errors import UsageError
from adr_tvm.train.optimizers import SGD, Adam, AdamW

torch = pytest.importorskip("torch")

CASES = {
    "sgd": (SGD(), torch.optim.SGD, {}),
    "decay": (SGD(weight_decay=0.01), torch.optim.SGD, {"weight_decay": 0.01}),
    "momentum": (SGD(0.9, weight_decay=0.01), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (
        SGD(0.9, True, 0.01),
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": (Adam(weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    "adam_betas": (Adam(0.8, 0.95, 1e-4), torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-4}),
    "adamw": (AdamW(weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
}
SIZE = 16 * 1024 + 37  # two tasks, the last of them no multiple of a vector


def compiled(func):
    return tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), cpu_target())["main"]


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_torch(name):
    """Relative to the largest entry: each step rounds a few times, by 6e-8. A skipped step changes nothing."""
    optimizer, make, options = CASES[name]
    rng = np.random.default_rng(0)
    start = rng.standard_normal(SIZE).astype(np.float32)
    reference = torch.nn.Parameter(torch.tensor(start))
    other = make([reference], lr=1.0, **options)
    update = compiled(optimizer.kernel(SIZE))
    ours = tvm.runtime.tensor(start)
    slots = [tvm.runtime.tensor(np.zeros(SIZE, np.float32)) for _ in optimizer.slots]
    for step in range(1, 21):
        rate = 0.01 / step
        gradient = rng.standard_normal(SIZE).astype(np.float32)
        scale = 2.0 ** (step % 3)
        control = tvm.runtime.tensor(np.array([rate, step, 1 / scale, 1], np.float32))
        update(ours, *slots, tvm.runtime.tensor(scale * gradient), control)
        other.param_groups[0]["lr"] = rate
        reference.grad = torch.tensor(gradient)
        other.step()
    expected = reference.detach().numpy()
    assert np.abs(ours.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()
    kept = [tensor.numpy() for tensor in (ours, *slots)]
    skipped = tvm.runtime.tensor(np.array([0.01, 21, 1, 0], np.float32))
    update(ours, *slots, tvm.runtime.tensor(np.full(SIZE, np.inf, np.float32)), skipped)
    for before, tensor in zip(kept, (ours, *slots), strict=True):
        np.testing.assert_array_equal(before, tensor.numpy())


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(momentum=1.0),
        lambda: SGD(nesterov=True),
        lambda: SGD(weight_decay=-1.0),
        lambda: Adam(beta2=1.0),
        lambda: AdamW(epsilon=float("nan")),
    ],
)
def test_bad_values_are_refused(make):
    with pytest.raises(UsageError):
        make()
