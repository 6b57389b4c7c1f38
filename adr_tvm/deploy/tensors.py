"""NumPy arrays and torch tensors on their way into compiled code and back.

Nothing is copied unless it must be: kernels take C-contiguous, writeable memory at a multiple of 64 bytes.
Torch allocates such memory, NumPy usually at 16 bytes: then the input is copied once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from adr_tvm.data.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import torch

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


def fit_for_kernels(array: Any) -> Any:
    """The array itself where kernels can read it, else a copy that they can."""
    if is_torch(array):
        array = array.detach()
        good = array.is_contiguous() and array.data_ptr() % ALIGNMENT == 0
        return array if good else _aligned_torch(array)
    good = array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0
    return array if good else _aligned_numpy(array)


def _aligned_torch(array: Any) -> Any:
    copy = sys.modules["torch"].empty(array.shape, dtype=array.dtype)
    return copy.copy_(array)


def _aligned_numpy(array: np.ndarray) -> np.ndarray:
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def own_outputs(outputs: Iterable[Any], inputs: Sequence[Any], to_torch: bool) -> list[Any]:
    """Results as arrays of the caller's: no two share memory, and none shares it with an input.

    Args:
        outputs: as compiled code returns them; an output may be a view of an input or of another output.
        inputs: what was passed.
        to_torch: torch tensors in place of NumPy arrays.
    """
    taken = [_span(array) for array in inputs]
    owned = []
    for output in outputs:
        array = _from_dlpack(output, to_torch)
        start, end = _span(array)
        if any(start < other_end and other_start < end for other_start, other_end in taken):
            array = array.clone() if to_torch else array.copy()
        taken.append(_span(array))
        owned.append(array)
    return owned


def _from_dlpack(output: Any, to_torch: bool) -> Any:
    if is_torch(output):
        return output if to_torch else output.numpy()
    return sys.modules["torch"].from_dlpack(output) if to_torch else np.from_dlpack(output)


def _span(array: Any) -> tuple[int, int]:
    """First address, and the one after the last, of a contiguous array."""
    if is_torch(array):
        start, size = array.data_ptr(), array.numel() * array.element_size()
    else:
        start, size = array.ctypes.data, array.nbytes
    return int(start), int(start) + int(size)
