"""Times of layers inside the network, and the number of clusters at which reuse stops paying."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork, seconds
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting
from adr_tvm.timing import fair_orders, take_turns

REPEATS, MOST_REPEATS = 7, 30
REPEAT_SECONDS = 0.1  # after which the least repeats are enough
GUARD_SHARE = 0.95  # of the dense time: where the guard stops a layer


def setting_key(setting: ReuseSetting) -> str:
    """A setting as part of a key in ``timings.json``."""
    gain = "+gain" if setting.gain else ""
    table = "" if setting.table == "float32" else f"+{setting.table}"
    return f"{setting.granularity}-{setting.hash}-L{setting.L}-H{setting.H}-{setting.scope}{gain}{table}"


KernelSampler = Callable[[Mapping[str, LayerKernel]], dict[str, list[float]]]
LayerSampler = Callable[[Mapping[str, LayerKernel]], dict[str, tuple[list[float], list[float]]]]


def time_kernels(
    layer: str, kernels: Mapping[str, LayerKernel], sample: KernelSampler, timings: Timings
) -> dict[str, float]:
    """Median seconds of some kernels of one layer on the input that the running network gives it.

    A time already in ``timings`` is taken from there; new ones are put there. Where the first kernel was timed before,
    the others' times are its time and the median ratio of neighbours, so that they stay comparable to those of then.

    Args:
        layer: where to measure.
        kernels: by the key that names them in ``timings``; the first is what the others are compared with.
        sample: measures some kernels in turn: seconds of each, of the rounds in order.
    """
    keys = {name: f"{layer}|{name}" for name in kernels}
    missing = [name for name, key in keys.items() if timings.get(key) is None]
    if missing:
        first = next(iter(kernels))
        samples = sample({name: kernels[name] for name in dict.fromkeys([first, *missing])})
        known = timings.get(keys[first])
        for name in missing:
            found = statistics.median(samples[name])
            if known is not None:
                found = known * statistics.median(a / b for a, b in zip(samples[name], samples[first], strict=True))
            timings.put(keys[name], found)
    return {name: timings.get(key) or 0.0 for name, key in keys.items()}


def sample_kernels(
    network: PlanningNetwork, layer: str, inputs: Mapping[str, np.ndarray], kernels: Mapping[str, LayerKernel]
) -> dict[str, list[float]]:
    """Seconds of kernels on this machine, while the network, dense elsewhere, is at their layer."""
    samples: dict[str, list[float]] = {}

    def hook(at: str, x: Any) -> None:
        if at != layer or samples:
            return
        for kernel in kernels.values():
            kernel(x)
        run = partial(_run, kernels, x)
        samples.update(take_turns(run, list(kernels), REPEATS, MOST_REPEATS, REPEAT_SECONDS))

    with network.watching(hook):
        network.run(inputs)
    return samples


def _run(kernels: Mapping[str, LayerKernel], x: Any, name: str) -> float:
    return seconds(kernels[name], x)


def time_in_place(
    chosen: Mapping[str, LayerKernel], sample: LayerSampler, timings: Timings
) -> dict[str, tuple[float, float]]:
    """(dense, reuse) median seconds of each chosen layer in whole runs of the network: all dense, all chosen.

    Unlike in `time_kernels`, each kernel runs once per network run, with the caches as the layer before leaves them.

    Args:
        sample: measures chosen layers: seconds of the dense and of the chosen kernel in the runs.
    """
    keys = {layer: (f"{layer}|in network|dense", f"{layer}|in network|{_name(k)}") for layer, k in chosen.items()}
    if any(timings.get(key) is None for pair in keys.values() for key in pair):
        samples = sample(chosen)
        for layer, pair in keys.items():
            for key, values in zip(pair, samples[layer], strict=True):
                if timings.get(key) is None:
                    timings.put(key, statistics.median(values))
    return {layer: (timings.get(a) or 0.0, timings.get(b) or 0.0) for layer, (a, b) in keys.items()}


def sample_in_place(
    network: PlanningNetwork, inputs: Mapping[str, np.ndarray], chosen: Mapping[str, LayerKernel]
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of layers on this machine, in runs of the network in alternating order; the first run does not count."""
    samples: dict[str, tuple[list[float], list[float]]] = {layer: ([], []) for layer in chosen}
    timed = [
        {layer: _Timed(network.dense[layer], samples[layer][0]) for layer in chosen},
        {layer: _Timed(kernel, samples[layer][1]) for layer, kernel in chosen.items()},
    ]
    orders = fair_orders(timed)
    for index in range(REPEATS + 1):
        for kernels in orders[index % len(orders)]:
            with network.using(kernels):  # type: ignore[arg-type]
                network.run(inputs)
    return {layer: (dense[1:], reuse[1:]) for layer, (dense, reuse) in samples.items()}


def _name(kernel: LayerKernel) -> str:
    return "dense" if kernel.setting is None else setting_key(kernel.setting)


class _Timed:
    """A kernel that notes its times."""

    def __init__(self, kernel: LayerKernel, samples: list[float]):
        self.kernel, self.samples = kernel, samples

    def __call__(self, x: Any) -> tuple[Any, Any]:
        out: list[Any] = []
        self.samples.append(seconds(lambda t: out.append(self.kernel(t)), x))
        return out[0]


def count_clusters(kernel: LayerKernel, x: Any) -> float:
    """Mean clusters of one unit of a reuse layer on an input tensor."""
    return float(np.mean(kernel(x)[1].numpy()[:, 0]))


def cluster_limit(
    geometry: ConvGeometry, setting: ReuseSetting, images: int, clusters: float, reuse: float, dense: float
) -> int:
    """Clusters of one unit up to which the layer stays under ``GUARD_SHARE`` of its dense time.

    One more cluster costs its products at the speed the dense layer runs at.

    Args:
        images: in the measured batch.
        clusters: of one unit when ``reuse`` was measured.
        reuse, dense: measured seconds of the batch.
    """
    taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
    macs = geometry.vector_length(setting) * taps * geometry.M
    per_cluster = dense * macs / (geometry.macs * images)
    units = images if setting.scope == "image" else 1
    spare = (GUARD_SHARE * dense - reuse) / units
    return max(0, int(clusters + spare / per_cluster))
