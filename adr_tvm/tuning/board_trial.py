"""A kernel under one schedule on a board: compiled here, run and timed there.

One call there makes all runs of a turn, between two looks at the board's clock (``schedules/stamp.py``), so that
neither the network between nor the time of a call is part of what is measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from adr_tvm.remote.board import Board
from adr_tvm.schedules.stamp import STAMP, seconds, timed_turn
from adr_tvm.tuning.race import Run
from adr_tvm.tuning.task import TuningTask
from adr_tvm.tuning.trial import Trial, copies_of, kernel_module


class BoardTrial(Trial):
    """Like ``Trial``, on a board.

    Args:
        board: where it runs.
        task, schedule, target, around: as there.

    Raises:
        BoardError: the board failed.
    """

    def __init__(self, board: Board, task: TuningTask, schedule: Any, target: Target, around: int):
        self.board, self.schedule, self._name = board, schedule, task.name
        arguments = task.arguments(schedule)
        copies = copies_of(arguments, around)
        tensors, kinds = [], []
        for index, array in enumerate(arguments.inputs):
            own = copies if index in arguments.weights else 1
            kinds.append((array.shape, str(array.dtype), own))
            tensors.append(board.tensor(np.stack([array] * own) if own > 1 else array))
        self._outputs = []
        for shape, dtype in arguments.outputs:
            kinds.append((shape, dtype, 1))
            self._outputs.append(board.tensor(np.full(shape, -1, dtype)))  # what a kernel leaves unwritten shows
        mod = kernel_module(task.function(schedule))
        mod["turn"] = timed_turn("kernel", kinds)
        self._turn = board.load(tvm.compile(mod, target), task.name)["turn"]
        self._stamps = board.tensor(np.zeros(2 * STAMP, np.int64))
        self._tensors, self._copies, self._next = [*tensors, *self._outputs], copies, 0

    def __call__(self) -> None:
        self.seconds(1)

    def seconds(self, count: int) -> float:
        """Time of one of ``count`` runs, on average."""
        with self.board.answers(f"running {self._name}"):
            self._turn(*self._tensors, self._stamps, self._next, count)
        self._next = (self._next + count) % self._copies
        return max(1e-9, seconds(self.board.array(self._stamps))) / count

    def outputs(self) -> list[np.ndarray]:
        """What the kernel left there last."""
        return [self.board.array(tensor) for tensor in self._outputs]


class BoardWatch:
    """A ``Stopwatch`` of trials on a board."""

    def seconds(self, run: Run, count: int) -> float:
        """Time of one of ``count`` runs, on average."""
        assert isinstance(run, BoardTrial)  # which is what the search was told to make
        return run.seconds(count)
