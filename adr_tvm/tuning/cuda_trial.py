"""A kernel under one schedule on the GPU at hand, timed by its own clock: CUDA events around all runs of a turn."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm._tvm import CUDA_CONFIG
from adr_tvm.build import code_objects_of
from adr_tvm.schedules.stamp import plain_turn
from adr_tvm.targets import TargetEntry
from adr_tvm.tuning.race import Run, Stopwatch
from adr_tvm.tuning.task import TuningTask
from adr_tvm.tuning.trial import COLD_BYTES, MakeTrial, Trial, copies_of, kernel_module


class CudaTrial(Trial):
    """Like ``Trial``, on the GPU at hand.

    Args:
        entry: which code is made.
        task, schedule, target, around: as there.
    """

    def __init__(self, entry: TargetEntry, task: TuningTask, schedule: Any, target: Target, around: int):
        self.schedule, device = schedule, tvm.cuda()
        arguments = task.arguments(schedule)
        copies = copies_of(arguments, around)
        tensors, kinds = [], []
        for index, array in enumerate(arguments.inputs):
            own = copies if index in arguments.weights else 1
            kinds.append((array.shape, str(array.dtype), own))
            tensors.append(tvm.runtime.tensor(np.stack([array] * own) if own > 1 else array, device))
        self._outputs = []
        for shape, dtype in arguments.outputs:
            kinds.append((shape, dtype, 1))  # what a kernel leaves unwritten shows
            self._outputs.append(tvm.runtime.tensor(np.full(shape, -1, np.dtype(dtype)), device))
        mod = kernel_module(task.function(schedule))
        mod["turn"] = plain_turn("kernel", kinds)
        with code_objects_of(entry), target, tvm.transform.PassContext(config=CUDA_CONFIG):
            built = tvm.compile(mod, target)
        self._turn = built["turn"]
        # What a turn before has left in the caches goes, where in a network other weights would be there.
        flushed = COLD_BYTES if copies > 1 else 0
        self._timed = built.mod.time_evaluator("turn", device, number=1, repeat=1, cache_flush_bytes=flushed)
        self._tensors, self._copies, self._next = [*tensors, *self._outputs], copies, 0

    def __call__(self) -> None:
        self._turn(*self._tensors, 0, 1)

    def seconds(self, count: int) -> float:
        """Time of one of ``count`` runs, on average."""
        taken = float(self._timed(*self._tensors, self._next, count).results[0])
        self._next = (self._next + count) % self._copies
        return max(1e-9, taken) / count


class CudaWatch:
    """A ``Stopwatch`` of trials on a GPU."""

    def seconds(self, run: Run, count: int) -> float:
        """Time of one of ``count`` runs, on average."""
        assert isinstance(run, CudaTrial)  # which is what the search was told to make
        return run.seconds(count)


def tuning_on_gpu(entry: TargetEntry) -> tuple[Stopwatch, MakeTrial]:
    """What measures kernels of a CUDA target on the GPU at hand, and what makes them."""
    return CudaWatch(), partial(CudaTrial, entry)
