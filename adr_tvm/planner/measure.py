"""Times of layers inside the network, and the number of clusters at which reuse stops paying."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork, seconds
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting
from adr_tvm.timing import fair_orders

REPEATS, MOST_REPEATS = 7, 30
REPEAT_SECONDS = 0.1  # after which the least repeats are enough
GUARD_SHARE = 0.95  # of the dense time: where the guard stops a layer


def setting_key(setting: ReuseSetting) -> str:
    """A setting as part of a key in ``timings.json``."""
    gain = "+gain" if setting.gain else ""
    table = "" if setting.table == "float32" else f"+{setting.table}"
    return f"{setting.granularity}-{setting.hash}-L{setting.L}-H{setting.H}-{setting.scope}{gain}{table}"


def time_kernels(
    network: PlanningNetwork,
    layer: str,
    kernels: Mapping[str, LayerKernel],
    inputs: Mapping[str, np.ndarray],
    timings: Timings,
) -> dict[str, float]:
    """Median seconds of some kernels of one layer on the input that the running network gives it.

    They take turns, in orders that favour none, while the network is at that layer. A time already in ``timings`` is
    taken from there; new ones are put there. Where the first kernel was timed before, the others' times are its time
    and the median ratio of neighbours, so that they stay comparable to those of then.

    Args:
        network: the network, dense elsewhere.
        layer: where to measure.
        kernels: by the key that names them in ``timings``; the first is what the others are compared with.
        inputs: one batch.
    """
    keys = {name: f"{layer}|{name}" for name in kernels}
    missing = [name for name, key in keys.items() if timings.get(key) is None]
    if missing:
        first = next(iter(kernels))
        samples = _samples(network, layer, {name: kernels[name] for name in dict.fromkeys([first, *missing])}, inputs)
        known = timings.get(keys[first])
        for name in missing:
            found = statistics.median(samples[name])
            if known is not None:
                found = known * statistics.median(a / b for a, b in zip(samples[name], samples[first], strict=True))
            timings.put(keys[name], found)
    return {name: timings.get(key) or 0.0 for name, key in keys.items()}


def _samples(
    network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], inputs: Mapping[str, np.ndarray]
) -> dict[str, list[float]]:
    """Seconds of each kernel, of the rounds in order."""
    samples: dict[str, list[float]] = {name: [] for name in kernels}
    orders = fair_orders(list(kernels))

    def hook(at: str, x: Any) -> None:
        if at != layer or samples[next(iter(kernels))]:
            return
        for kernel in kernels.values():
            kernel(x)
        begin = time.perf_counter()
        for index in range(MOST_REPEATS):
            if index >= REPEATS and time.perf_counter() - begin > REPEAT_SECONDS:
                break
            for name in orders[index % len(orders)]:
                samples[name].append(seconds(kernels[name], x))

    with network.watching(hook):
        network.run(inputs)
    return samples


def time_in_place(
    network: PlanningNetwork,
    chosen: Mapping[str, LayerKernel],
    inputs: Mapping[str, np.ndarray],
    timings: Timings,
) -> dict[str, tuple[float, float]]:
    """(dense, reuse) median seconds of each chosen layer in whole runs of the network: all dense, all chosen, in
    alternating order.

    Unlike in `time_kernels`, each kernel runs once per network run, with the caches as the layer before leaves them.
    """
    keys = {layer: (f"{layer}|in network|dense", f"{layer}|in network|{_name(k)}") for layer, k in chosen.items()}
    if any(timings.get(key) is None for pair in keys.values() for key in pair):
        samples: dict[str, list[float]] = {key: [] for pair in keys.values() for key in pair}
        timed = [
            {layer: _Timed(network.dense[layer], samples[keys[layer][0]]) for layer in chosen},
            {layer: _Timed(kernel, samples[keys[layer][1]]) for layer, kernel in chosen.items()},
        ]
        orders = fair_orders(timed)
        for index in range(REPEATS + 1):
            for kernels in orders[index % len(orders)]:
                with network.using(kernels):  # type: ignore[arg-type]
                    network.run(inputs)
        for key, values in samples.items():
            if timings.get(key) is None:
                timings.put(key, statistics.median(values[1:]))
    return {layer: (timings.get(a) or 0.0, timings.get(b) or 0.0) for layer, (a, b) in keys.items()}


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
