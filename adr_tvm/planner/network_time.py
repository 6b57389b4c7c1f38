"""Time of a run of the whole compiled network: with reuse, dense, and whether reuse is slower beyond the noise."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tvm
from tvm import relax

from adr_tvm.frontend.dense_check import random_inputs
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.plan import ReusePlan
from adr_tvm.report.results import Timings
from adr_tvm.timing import median_at_least, take_turns, warm_up

LEAST_ROUNDS, MOST_ROUNDS = 11, 31
ROUNDS_SECONDS = 1.0  # after which the least rounds are enough


@dataclass(frozen=True)
class NetworkTimes:
    """Seconds of a run of the whole network.

    Attributes:
        dense: median without reuse.
        main: as compiled; ``dense`` times the median ratio of a run with reuse to the dense run beside it.
        main_at_least: what ``main`` truly is at least, with 95 % confidence.
    """

    dense: float
    main: float
    main_at_least: float

    def slower(self, bar: float) -> bool:
        """Whether it is certain that the network as compiled takes more than ``bar`` times its dense time."""
        return self.main_at_least > bar * self.dense


EntrySampler = Callable[[Sequence[str]], dict[str, list[float]]]


def time_network(plan: ReusePlan, sample: EntrySampler, timings: Timings) -> NetworkTimes:
    """Time the entries ``main`` and ``dense`` of a library.

    Times already in ``timings`` are taken from there; new ones are put there.

    Args:
        sample: runs entries in turn: seconds by entry; the n-th of all are neighbours in time.
    """
    dense_key = "network|dense"
    settings = "\n".join(f"{layer} {setting}" for layer, setting in plan.reused.items())
    main_key = f"network|main {hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    keys = [dense_key, *([main_key, f"{main_key}|at least"] if plan.reused else [])]
    if any(timings.get(key) is None for key in keys):
        samples = sample(["main", "dense"] if plan.reused else ["dense"])
        dense = timings.get(dense_key) or statistics.median(samples["dense"])
        found = [dense]
        if plan.reused:
            ratios = [a / b for a, b in zip(samples["main"], samples["dense"], strict=True)]
            found += [dense * statistics.median(ratios), dense * median_at_least(ratios)]
        for key, value in zip(keys, found, strict=True):
            if timings.get(key) is None:
                timings.put(key, value)
    times = [timings.get(key) or 0.0 for key in keys]
    return NetworkTimes(*times) if plan.reused else NetworkTimes(*times * 3)


def example(checked: CheckedModel, batch: Mapping[str, np.ndarray] | None, seed: int) -> list[np.ndarray]:
    """Inputs of a batch in the network's order (None: random numbers)."""
    arrays = random_inputs(checked.inputs, 1, seed) if batch is None else batch
    return [arrays[spec.name] for spec in checked.inputs]


def sample_entries(
    executable: tvm.runtime.Executable, inputs: Sequence[np.ndarray], entries: Sequence[str]
) -> dict[str, list[float]]:
    """Seconds of entries on this machine, A B, B A, A B, ..."""
    machine = relax.VirtualMachine(executable, tvm.cpu())
    tensors = [tvm.runtime.tensor(array) for array in inputs]
    runs = {entry: partial(machine[entry], *tensors) for entry in entries}
    for run in runs.values():
        warm_up(run)

    def timed(entry: str) -> float:
        start = time.perf_counter()
        runs[entry]()
        return time.perf_counter() - start

    return take_turns(timed, entries, LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS)
