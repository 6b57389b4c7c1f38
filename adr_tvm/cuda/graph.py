"""CUDA graphs: kernels that are started on a stream are recorded, and started again together with one call.

By CUDA's runtime library, which TVM's has loaded. What is recorded keeps its addresses, so all memory that the kernels
read and write must stay where it is. This file stands alone: ``benchmarks/cuda_pack.py`` takes it along.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

RUNTIME = "libcudart.so.13"
HELD = "_held"  # ends the names of entries that also return the memory they work in
_NON_BLOCKING = 1  # cudaStreamNonBlocking: apart from the default stream, which other threads may use meanwhile
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: memory may be allocated meanwhile, by this thread and others


class GraphDriver(Protocol):
    """Makes graphs, and starts them."""

    def capture(self, run: Callable[[int], object]) -> Any:
        """The graph of what ``run`` starts on a stream, whose address it gets."""

    def launch(self, graph: Any) -> None:
        """Start a graph on the default stream, without waiting for it."""

    def drop(self, graph: Any) -> None:
        """Forget a graph; what still runs of it ends first."""


class CudaGraphs:
    """The driver of the GPU at hand.

    Raises:
        RuntimeError: of any method, a call of CUDA's failed.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(RUNTIME)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def capture(self, run: Callable[[int], object]) -> int:
        """See ``GraphDriver``; where ``run`` fails, nothing is left of the capture."""
        stream, graph, ready = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        try:
            self._call("cudaStreamBeginCapture", stream, ctypes.c_int(_RELAXED))
            try:
                run(int(stream.value or 0))
            except BaseException:
                self._library.cudaStreamEndCapture(stream, ctypes.byref(graph))  # its own failure would hide this
                raise
            self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
            self._call("cudaGraphInstantiate", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
            return int(ready.value or 0)
        finally:
            if graph.value:
                self._library.cudaGraphDestroy(graph)
            self._library.cudaStreamDestroy(stream)

    def launch(self, graph: int) -> None:
        """See ``GraphDriver``."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(0))

    def drop(self, graph: int) -> None:
        """See ``GraphDriver``."""
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(graph))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {self._library.cudaGetErrorString(ctypes.c_int(status)).decode()}")
