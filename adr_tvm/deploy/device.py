"""Tensors on their way to a GPU and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm_ffi import from_dlpack

from adr_tvm.errors import MissingDependencyError

if TYPE_CHECKING:
    import tvm


def cuda_device() -> tvm.runtime.Device:
    """This machine's first GPU.

    Raises:
        MissingDependencyError: there is none, no driver, or no CUDA runtime library.
    """
    import tvm

    from adr_tvm.cuda.tvm_runtime import load_cuda_runtime

    load_cuda_runtime(driver_needed=True)
    if not tvm.cuda().exist:
        raise MissingDependencyError("no NVIDIA GPU: the driver is there and finds none")
    return tvm.cuda()


class OnCpu:
    """Kernels read and write this machine's memory: nothing is copied."""

    def send(self, tensors: Iterable[Any]) -> list[Any]:
        """Tensors where kernels read them."""
        return list(tensors)

    def fetch(self, tensors: Iterable[Any]) -> list[Any]:
        """Results as tensors in this machine's memory."""
        return list(tensors)


class OnCuda:
    """Kernels read and write the memory of a GPU, ``device``."""

    def __init__(self, device: tvm.runtime.Device) -> None:
        self.device = device

    def send(self, tensors: Iterable[Any]) -> list[Any]:
        """See ``OnCpu``."""
        import tvm

        return [tvm.runtime.tensor(np.from_dlpack(tensor), self.device) for tensor in tensors]

    def fetch(self, tensors: Iterable[Any]) -> list[Any]:
        """See ``OnCpu``; waits until the GPU is done."""
        return [from_dlpack(np.array(tensor.numpy())) for tensor in tensors]
