"""Entries of a network as CUDA graphs: captured at the first call with inputs of some shapes, then started at once.

Inputs are copied to where they were at the first call. Results stay where they are, until the next call overwrites
them. Each thread captures graphs of its own: memory that TVM's kernels work in may be the thread's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from adr_tvm.cuda.graph import HELD, GraphDriver
from adr_tvm.errors import ModelError

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, eq=False)
class _Captured:
    """A graph and all the memory that its kernels use beside the weights."""

    graph: Any
    inputs: list[Any]
    result: Any
    arena: Any


class CapturedEntries(threading.local):
    """Runs entries; call ``clear`` to give back their memory.

    Args:
        machine: of a library with the entries of ``passes/hold_memory.py``.
        device: the GPU.
        weights: on the GPU.
        driver: makes graphs.
        names: the entries.

    Raises:
        ModelError: an entry cannot be captured.
    """

    def __init__(
        self,
        machine: tvm.runtime.vm.VirtualMachine,
        device: tvm.runtime.Device,
        weights: Any,
        driver: GraphDriver,
        names: Sequence[str],
    ):
        self._device, self._weights, self._driver = device, weights, driver
        self._entries: dict[str, Any] = {}
        self._graphs: dict[tuple[Any, ...], _Captured] = {}
        for name in names:
            try:
                self._entries[name] = machine[f"{name}{HELD}"]
            except (AttributeError, ValueError) as error:
                raise ModelError(
                    f"no CUDA graph can be made of this network's entry {name!r}: it is not one sequence of kernels, "
                    "or was compiled by an earlier version; load it without cuda_graph"
                ) from error

    def __call__(self, name: str, given: Sequence[Any]) -> Any:
        """What an entry returns for tensors of this machine's memory; the next call overwrites it."""
        key = name, tuple((tuple(tensor.shape), str(tensor.dtype)) for tensor in given)
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._graphs[key] = self._capture(name, given)
        else:
            for place, tensor in zip(captured.inputs, given, strict=True):
                place.copyfrom(np.from_dlpack(tensor))
        self._driver.launch(captured.graph)
        return captured.result

    def clear(self) -> None:
        """Drop this thread's graphs."""
        self._graphs.clear()

    def _capture(self, name: str, given: Sequence[Any]) -> _Captured:
        import tvm

        entry, inputs = self._entries[name], [tvm.runtime.tensor(np.from_dlpack(x), self._device) for x in given]
        entry(*inputs, self._weights)  # loads the code, and leaves memory to be taken again
        self._device.sync()
        made: list[Any] = []

        def run(stream: int) -> None:
            with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", self._device.index), stream):
                made.append(entry(*inputs, self._weights))

        graph = self._driver.capture(run)
        result, arena = made[0]
        captured = _Captured(graph, inputs, result, arena)
        weakref.finalize(captured, self._driver.drop, graph).atexit = False  # when CUDA itself may be gone
        return captured
