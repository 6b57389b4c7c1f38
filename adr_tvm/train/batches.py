"""Batches of a run, from any step on: the order of an epoch follows from (seed, epoch), so nothing else need be kept.

Step t is batch t mod n of epoch t div n, with n = samples div batch: the samples left over by an epoch's order sit that
epoch out. Batches are made ahead in one thread; their order does not change.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adr_tvm.data.training_data import Samples
from adr_tvm.errors import DataError
from adr_tvm.train.augmentation import Preparation

AHEAD = 2  # batches kept ready


@dataclass(frozen=True)
class Batch:
    """What a step takes: ``x`` float32 [B, C, H, W], ``labels`` int32 [B]; ``copy`` is x on a GPU, if it is there."""

    step: int
    epoch: int
    x: np.ndarray
    labels: np.ndarray
    copy: Any = None

    @property
    def given(self) -> Any:
        """x where the step reads it."""
        return self.x if self.copy is None else self.copy


class Batches:
    """The batches of a training run.

    Args:
        samples: to train on.
        preparation: of the images.
        batch: images of a step.
        seed: of order and augmentation.

    Raises:
        DataError: there is less than a batch.
    """

    def __init__(self, samples: Samples, preparation: Preparation, batch: int, seed: int) -> None:
        self._samples, self._preparation, self._batch, self._seed = samples, preparation, batch, seed
        self.steps_per_epoch = len(samples.labels) // batch
        if self.steps_per_epoch == 0:
            raise DataError(f"{len(samples.labels)} training images are less than a batch of {batch}: lower --batch")
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def make(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            shuffled = np.random.default_rng([self._seed, epoch]).permutation(len(self._samples.labels))
            self._order = (epoch, shuffled)
        order = self._order[1]
        chosen = order[place * self._batch : (place + 1) * self._batch]
        x = self._preparation.training(self._samples.read(chosen), self._seed, epoch, chosen)
        return Batch(step, epoch, x, np.ascontiguousarray(self._samples.labels[chosen]))

    def ahead(self, start: int, stop: int) -> Ahead:
        """The batches of the steps from ``start`` to ``stop``, made ahead; a context manager."""
        return Ahead(self, start, stop)


class Ahead:
    """Batches that a thread makes ahead of their use. Close it (``with``) to end the thread."""

    def __init__(self, batches: Batches, start: int, stop: int) -> None:
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, start, stop), daemon=True)
        self._thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self, batches: Batches, start: int, stop: int) -> None:
        last: Batch | BaseException | None = None
        try:
            for step in range(start, stop):
                if self._closing.is_set():
                    return
                self._queue.put(batches.make(step))
        except BaseException as error:  # handed on to whoever waits for the batch
            last = error
        if not self._closing.is_set():
            self._queue.put(last)
