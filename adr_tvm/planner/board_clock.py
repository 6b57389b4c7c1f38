"""Times of code that runs on a board: measured there, over RPC, by the board's own clock.

What is measured is what the board will run, compiled for it. Clusters and accuracy are those of a build of the same
network for this machine: which vectors are equal follows from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from adr_tvm.build import build_module, build_plan
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes import pipeline
from adr_tvm.passes.adaptive_deep_reuse import AdaptiveDeepReuse
from adr_tvm.passes.stamp_layers import ENTRY, StampLayers
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planner.clock import Batch, with_threads
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import MOST_REPEATS, REPEAT_SECONDS, REPEATS, time_in_place, time_kernels
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.network_time import (
    LEAST_ROUNDS,
    MOST_ROUNDS,
    ROUNDS_SECONDS,
    NetworkTimes,
    example,
    time_network,
)
from adr_tvm.planner.predicted_clock import inputs_of
from adr_tvm.remote.board import Board
from adr_tvm.report.results import Timings
from adr_tvm.schedules.stamp import seconds
from adr_tvm.timing import fair_orders, take_turns


class BoardClock:
    """See the module.

    Args:
        board: where things run.
        mod: the canonical module.
        target: the board's.
        timings: those known already; new ones are put there.

    Raises:
        BoardError: (methods) the board failed; ``timings`` hold what was measured until then.
    """

    predicted = False

    def __init__(self, board: Board, mod: tvm.IRModule, target: Target, timings: Timings):
        self.board, self.mod, self.target, self.timings = board, mod, target, timings
        self.cpu, self.threads = board.name, board.threads

    def kernels(
        self, network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, float]:
        """See ``Clock``."""
        return time_kernels(layer, kernels, partial(self._kernels, network, layer, batch), self.timings)

    def layers(
        self, network: PlanningNetwork, chosen: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, tuple[float, float]]:
        """See ``Clock``."""
        arrays = [batch[name] for name in network.inputs]
        return time_in_place(chosen, partial(self._layers, arrays), self.timings)

    def network(
        self,
        executable: tvm.runtime.Executable,
        checked: CheckedModel,
        batch: Batch | None,
        plan: ReusePlan,
        seed: int,
    ) -> NetworkTimes:
        """See ``Clock``; ``executable``, which is of this machine, is built anew for the board."""
        return time_network(plan, partial(self._entries, plan, example(checked, batch, seed)), self.timings)

    def note(self, images: int) -> str:
        """See ``Clock``."""
        return (
            f"Times are of one run on a batch of {images}{with_threads(self.threads)}, measured on {self.cpu} at "
            f"{self.board.address}. Accuracy and clusters are measured with a build for this machine."
        )

    def _kernels(
        self, network: PlanningNetwork, layer: str, batch: Batch, kernels: Mapping[str, LayerKernel]
    ) -> dict[str, list[float]]:
        x = self.board.tensor(inputs_of(network, [layer], batch)[layer].numpy())
        runs = {}
        for name, kernel in kernels.items():
            machine = self.board.machine(kernel.build(self.target), f"{layer} ({name})")
            runs[name] = self._run(machine, "main", [x])
        return take_turns(lambda name: runs[name](), list(runs), REPEATS, MOST_REPEATS, REPEAT_SECONDS)

    def _layers(
        self, arrays: Sequence[np.ndarray], chosen: Mapping[str, LayerKernel]
    ) -> dict[str, tuple[list[float], list[float]]]:
        rewritten = AdaptiveDeepReuse(_plan(chosen), function="main")(self.mod)
        inputs = [self.board.tensor(array) for array in arrays]
        machines: list[relax.VirtualMachine] = []
        for mod, what in ((self.mod, "the dense network"), (rewritten, "the network with reuse")):
            stamped = pipeline.run([StampLayers(list(chosen))], mod, self.target)
            machines.append(self.board.machine(build_module(stamped, self.target), what))
            with self.board.answers("taking the inputs"):
                machines[-1].set_input(ENTRY, *inputs)
        samples: dict[str, tuple[list[float], list[float]]] = {layer: ([], []) for layer in chosen}
        orders = fair_orders([0, 1])
        for index in range(REPEATS + 1):
            for which in orders[index % len(orders)]:
                found = self._stamped(machines[which])
                for layer, time in zip(chosen, found, strict=True):
                    samples[layer][which].append(time)
        return {layer: (dense[1:], reuse[1:]) for layer, (dense, reuse) in samples.items()}

    def _stamped(self, machine: relax.VirtualMachine) -> list[float]:
        """Seconds of the layers in one run."""
        with self.board.answers("running the network"):
            machine.invoke_stateful(ENTRY)
            stamps = [each.numpy() for each in machine.get_outputs(ENTRY)[1]]
        return [seconds([*a, *b]) for a, b in zip(stamps[::2], stamps[1::2], strict=True)]

    def _entries(self, plan: ReusePlan, arrays: Sequence[np.ndarray], entries: Sequence[str]) -> dict[str, list[float]]:
        machine = self.board.machine(build_plan(self.mod, plan, self.target), "the network")
        inputs = [self.board.tensor(array) for array in arrays]
        runs = {entry: self._run(machine, entry, inputs) for entry in entries}
        return take_turns(lambda name: runs[name](), entries, LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS)

    def _run(self, machine: relax.VirtualMachine, entry: str, inputs: Sequence[Any]) -> Callable[[], float]:
        """What runs an entry there twice and returns the seconds of the second run."""
        with self.board.answers("taking the inputs"):
            machine.set_input(entry, *inputs)
            timed = machine.time_evaluator("invoke_stateful", self.board.device, number=1, repeat=1)

        def run() -> float:
            with self.board.answers("running"):
                return float(timed(entry).results[0])

        return run


def _plan(chosen: Mapping[str, LayerKernel]) -> ReusePlan:
    """A plan of chosen layers alone."""
    layers, planes = {}, {}
    for layer, kernel in chosen.items():
        layers[layer] = LayerPlan(layer, "reuse", kernel.setting, "chosen")
        if kernel.planes is not None and kernel.thresholds is not None:
            planes[layer] = HashPlanes(kernel.planes, kernel.thresholds, np.zeros(0, np.float32))
    return ReusePlan("", "", 0, "none", 0.0, layers, planes)
