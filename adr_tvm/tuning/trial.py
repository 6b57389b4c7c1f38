"""A kernel under one schedule, compiled and ready to run on weights that are not in the caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.target import Target

from adr_tvm.passes.mark_no_alias import MarkNoAlias
from adr_tvm.tuning.task import Arguments, TuningTask

COLD_BYTES = 64 << 20  # copies of the weights together, at most: more than the caches hold
MOST_COPIES = 1024


def compiled(func: tirx.PrimFunc, target: Target) -> Callable[..., object]:
    """A kernel as the pipeline would compile it, alone."""
    return tvm.compile(kernel_module(func), target)["kernel"]


def kernel_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A kernel alone, as ``kernel``."""
    return MarkNoAlias()(tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")}))


def copies_of(arguments: Arguments, around: int) -> int:
    """Copies of the weights that calls take in turn.

    Args:
        around: bytes of weights that the network reads between two calls of the kernel; copies of the kernel's weights
            take as much memory, up to ``COLD_BYTES``.
    """
    size = sum(arguments.inputs[index].nbytes for index in arguments.weights)
    return max(1, min(min(around, COLD_BYTES) // max(1, size), MOST_COPIES))


class Trial:
    """Calling it runs the kernel once, on the next copy of its weights.

    Args:
        task: which kernel.
        schedule: how it works.
        target: what to compile for.
        around: see ``copies_of``.
    """

    def __init__(self, task: TuningTask, schedule: Any, target: Target, around: int):
        self.schedule = schedule
        arguments = task.arguments(schedule)
        copies = copies_of(arguments, around)
        inputs = [tvm.runtime.tensor(array) for array in arguments.inputs]
        self._outputs = [
            tvm.runtime.tensor(np.full(shape, -1, dtype))  # what a kernel leaves unwritten shows
            for shape, dtype in arguments.outputs
        ]
        self._calls = [[*inputs, *self._outputs]]
        for _ in range(copies - 1):
            own = list(inputs)
            for index in arguments.weights:
                own[index] = tvm.runtime.tensor(arguments.inputs[index])
            self._calls.append([*own, *self._outputs])
        self._run, self._next = compiled(task.function(schedule), target), 0

    def __call__(self) -> None:
        self._run(*self._calls[self._next])
        self._next = (self._next + 1) % len(self._calls)

    def outputs(self) -> list[np.ndarray]:
        """What the kernel left there last."""
        return [tensor.numpy() for tensor in self._outputs]

    def agrees(self, other: Trial) -> bool:
        """Whether both kernels write the same bytes."""
        self()
        other()
        return all(a.tobytes() == b.tobytes() for a, b in zip(self.outputs(), other.outputs(), strict=True))


MakeTrial = Callable[[TuningTask, Any, Target, int], Trial]
