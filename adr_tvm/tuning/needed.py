"""The kernels that a network needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import tvm
from tvm.target import Target

from adr_tvm.passes import pipeline
from adr_tvm.precision import Precision
from adr_tvm.schedules.tuned import KernelShape, ScheduleSource, tuned_schedules


class _Recorder:
    """A ``ScheduleSource`` that counts what it is asked for."""

    def __init__(self, source: ScheduleSource | None):
        self.source = source
        self.asked: Counter[KernelShape] = Counter()

    def schedule(self, kernel: KernelShape, target: Target) -> Any | None:
        self.asked[kernel] += 1
        return None if self.source is None else self.source.schedule(kernel, target)


def needed_kernels(
    mod: tvm.IRModule, target: Target, source: ScheduleSource | None = None, precision: Precision | None = None
) -> Counter[KernelShape]:
    """Kernels that can be tuned, and how many calls of each a run of the module makes.

    Args:
        mod: canonical module, rewritten for reuse or not.
        source: what schedules the kernels are made with meanwhile.
        precision: data type that they run in; None: fp32.
    """
    recorder = _Recorder(source)
    with tuned_schedules(recorder):
        pipeline.run(pipeline.lower(target, precision), mod, target)
    return recorder.asked
