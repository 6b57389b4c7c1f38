"""Batches on their way to a GPU, whose memory is emulated: order, reuse of tensors, the end."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tvm
from cuda_emulator import emulated_cuda

from adr_tvm.errors import DataError
from adr_tvm.train.batches import Batch
from adr_tvm.train.prefetch import Prefetch


@pytest.fixture(autouse=True)
def emulated():
    with emulated_cuda():
        yield


def batches(count, failing=None):
    for step in range(count):
        if step == failing:
            raise DataError("image 7 is damaged")
        yield Batch(step, 0, np.full((4, 3, 2, 2), step, np.float32), np.zeros(4, np.int32))


def test_batches_come_in_order_and_only_when_the_step_before_was_launched():
    """Tensors take turns, so a batch must not be copied while a step that reads its tensor may run."""
    with Prefetch(batches(6), tvm.cuda()) as prefetch:
        seen = []
        for step, batch in enumerate(prefetch):
            assert batch.step == step and batch.given is batch.copy
            time.sleep(0.02)
            for earlier in seen[-1:]:
                np.testing.assert_array_equal(earlier.copy.numpy(), earlier.x)  # not overwritten yet
            np.testing.assert_array_equal(batch.copy.numpy(), batch.x)
            assert step == 5 or prefetch._ready.empty(), "nothing is copied before the launch"
            prefetch.launched()
            seen.append(batch)
    assert len(seen) == 6
    assert len({id(batch.copy) for batch in seen}) == 2


def test_the_next_batch_is_copied_while_a_step_runs():
    with Prefetch(batches(3), tvm.cuda()) as prefetch:
        next(iter(prefetch))
        prefetch.launched()
        deadline = time.monotonic() + 10
        while prefetch._ready.empty():
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_what_goes_wrong_reaches_whoever_waits():
    with Prefetch(batches(3, failing=1), tvm.cuda()) as prefetch:
        waiting = iter(prefetch)
        next(waiting)
        prefetch.launched()
        with pytest.raises(DataError, match="image 7"):
            next(waiting)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_closing_in_between_ends_the_thread(taken):
    with Prefetch(batches(100), tvm.cuda()) as prefetch:
        for _, _ in zip(range(taken), prefetch, strict=False):
            prefetch.launched()
    assert not prefetch._thread.is_alive()
