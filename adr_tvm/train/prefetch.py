"""Batches on their way to a GPU: the next one is copied while a step runs.

A thread takes each batch into page-locked memory, which the GPU reads by itself, and from there into one of two tensors
on the GPU, which take turns. TVM's copies are all on the default stream, so it is the step's kernels that get a stream
of their own, and copy and kernels run side by side. A batch's copy is begun when the step before it has been launched:
what that step needed to copy is not held up then, and the step before, which read the tensor, has ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import tvm

from adr_tvm.train.batches import Batch

if TYPE_CHECKING:
    from types import TracebackType

CUDA_HOST = 3  # DLPack's number of page-locked memory, for which TVM has no name


class Prefetch:
    """See the module. Iterate over it; close it (``with``) to end the thread.

    Args:
        batches: in order; all of one shape.
        device: the GPU.
    """

    def __init__(self, batches: Iterable[Batch], device: tvm.runtime.Device) -> None:
        self._device = device
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue()
        self._permits = threading.Semaphore(1)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), daemon=True)
        self._thread.start()

    def launched(self) -> None:
        """A step's kernels wait for the GPU: the next batch may be copied. Call it once for each batch taken."""
        self._permits.release()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._permits.release()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self, batches: Iterable[Batch]) -> None:
        last: BaseException | None = None
        tensors: list[tuple[tvm.runtime.Tensor, tvm.runtime.Tensor]] = []
        try:
            for index, batch in enumerate(batches):
                if len(tensors) < 2:
                    tensors.append(self._pair(batch.x))
                pinned, copy = tensors[index % 2]
                pinned.copyfrom(np.ascontiguousarray(batch.x))
                self._permits.acquire()
                if self._closing.is_set():
                    return
                pinned.copyto(copy)
                self._device.sync()  # of the default stream: the kernels are on another
                self._ready.put(replace(batch, copy=copy))
        except BaseException as error:  # handed on to whoever waits for the batch
            last = error
        self._ready.put(last)

    def _pair(self, x: np.ndarray) -> tuple[tvm.runtime.Tensor, tvm.runtime.Tensor]:
        host = tvm.runtime.device(CUDA_HOST, self._device.index)
        made = [tvm.runtime.empty(x.shape, str(x.dtype), place) for place in (host, self._device)]
        return made[0], made[1]
