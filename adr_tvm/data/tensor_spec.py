"""What a network takes and returns: name, shape and type of a tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network.

    Attributes:
        name: its ONNX name.
        shape: integers; a string is a symbolic dimension (of an input only the first: the batch).
        dtype: NumPy name of the element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(str(dim) for dim in self.shape)}]"
