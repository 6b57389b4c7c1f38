"""NumPy arrays and torch tensors on their way into compiled code and back.

Nothing is copied unless it must be: kernels take C-contiguous, writeable memory at a multiple of 64 bytes.
Torch allocates such memory, NumPy usually at 16 bytes: then the input is copied once.

A small network runs for 20 microseconds, so what this costs for each call counts: ``str`` of a dtype takes 1.8,
``array.ctypes`` 0.7, an address through DLPack 0.2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tvm_ffi import from_dlpack

from adr_tvm.data.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import torch
    import tvm_ffi

Array: TypeAlias = "np.ndarray | torch.Tensor"

ALIGNMENT = 64  # the compiler assumes it of every tensor; aligned vector loads crash on less


def check_inputs(arrays: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    """Refuse inputs that do not fit the network; nothing is converted silently.

    Raises:
        TypeError: not an array, or of another type.
        ValueError: of another shape or on another device, or symbolic dimensions that contradict each other.
    """
    symbols: dict[str, tuple[int, str]] = {}
    for array, spec in zip(arrays, specs, strict=True):
        label = f"input {spec.name!r}"
        if isinstance(array, np.ndarray):
            dtype = str(array.dtype)
        elif is_torch(array):
            dtype = str(array.dtype).removeprefix("torch.")
            if array.device.type != "cpu":
                raise ValueError(f"{label} is on {array.device}, expected cpu: call .cpu() first")
        else:
            kind = type(array).__name__
            raise TypeError(f"{label} is a {kind}, expected a NumPy array or a torch tensor of {spec.dtype}")
        if dtype != spec.dtype:
            raise TypeError(f"{label} is {dtype}, expected {spec.dtype}: convert it first")
        _check_shape(label, tuple(array.shape), spec, symbols)


def _check_shape(label: str, shape: tuple[int, ...], spec: TensorSpec, symbols: dict[str, tuple[int, str]]) -> None:
    wanted = f"[{', '.join(str(dim) for dim in spec.shape)}]"
    if len(shape) != len(spec.shape):
        raise ValueError(f"{label} has shape {list(shape)}, expected {wanted}")
    for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise ValueError(f"{label} has shape {list(shape)}, expected {wanted}: see dimension {axis}")
            continue
        if size < 1:
            raise ValueError(f"{label} has shape {list(shape)}: it is empty")
        first, name = symbols.setdefault(dim, (size, spec.name))
        if size != first:
            raise ValueError(f"{label} has {dim} = {size}, but input {name!r} has {dim} = {first}")


def is_torch(value: Any) -> bool:
    """Whether a value is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Feed:
    """Puts the inputs of one network where its kernels can read them.

    Memory for copies is kept from call to call, as long as shapes stay the same.

    Args:
        specs: of the inputs, in order.

    Attributes:
        shapes: the different ones that came; whoever reads it may empty it.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._accepted: list[Any] = []  # what ``check_inputs`` has seen last
        self._copies: list[Any] = []  # memory for a copy of each input; None where none was needed yet
        self.shapes: set[tuple[Any, ...]] = set()

    def __call__(self, arrays: Sequence[Any]) -> list[tvm_ffi.Tensor]:
        """The inputs as tensors of TVM; arguments and errors as for ``check_inputs``."""
        kinds = [_kind(array) for array in arrays]
        if kinds != self._accepted:
            check_inputs(arrays, self._specs)
            self._accepted, self._copies = kinds, [None] * len(kinds)
            self.shapes.add(tuple(tuple(array.shape) for array in arrays))
        return [self._tensor(place, array) for place, array in enumerate(arrays)]

    def _tensor(self, place: int, array: Any) -> tvm_ffi.Tensor:
        if is_torch(array):
            array = array.detach()
            readable = array.is_contiguous() and array.data_ptr() % ALIGNMENT == 0
        else:
            flags = array.flags
            readable = flags.c_contiguous and flags.writeable
        if readable:
            tensor = from_dlpack(array)
            if tensor.data_ptr() % ALIGNMENT == 0:
                return tensor
        if self._copies[place] is None:
            self._copies[place] = _aligned_like(array)
        copy, tensor = self._copies[place]
        copy[...] = array
        return tensor


def _kind(array: Any) -> tuple[Any, ...]:
    """All that ``check_inputs`` looks at."""
    return type(array), getattr(array, "dtype", None), getattr(array, "shape", None), getattr(array, "device", None)


def aligned(size: int) -> np.ndarray:
    """Memory that kernels can read: uint8 [size], not initialised. NumPy asks for huge pages from 4 MiB on."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _aligned_like(array: Any) -> tuple[Any, tvm_ffi.Tensor]:
    """Memory for a copy that kernels can read, and the same as a tensor of TVM."""
    if is_torch(array):
        copy = sys.modules["torch"].empty(array.shape, dtype=array.dtype)  # torch aligns to 64 bytes
    else:
        copy = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
    return copy, from_dlpack(copy)


def own_outputs(outputs: Iterable[tvm_ffi.Tensor], inputs: Sequence[tvm_ffi.Tensor], to_torch: bool) -> list[Any]:
    """Results as arrays of the caller's: no two share memory, and none shares it with an input.

    Args:
        outputs: as compiled code returns them; an output may be a view of an input or of another output.
        inputs: what was passed.
        to_torch: torch tensors in place of NumPy arrays.
    """
    convert: Callable[[Any], Any] = sys.modules["torch"].from_dlpack if to_torch else np.from_dlpack
    taken = [_span(tensor, np.from_dlpack(tensor).nbytes) for tensor in inputs]
    owned = []
    for output in outputs:
        array = convert(output)
        start, end = _span(output, array.nbytes)
        if any(start < other_end and other_start < end for other_start, other_end in taken):
            array = array.clone() if to_torch else array.copy()
        else:
            taken.append((start, end))
        owned.append(array)
    return owned


def _span(tensor: tvm_ffi.Tensor, size: int) -> tuple[int, int]:
    """First address, and the one after the last, of a contiguous tensor of some bytes."""
    start = tensor.data_ptr()
    return start, start + size
