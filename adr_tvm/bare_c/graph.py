"""The graph that bare C is generated from: one image a call, channels last, every shape known.

A ``Graph`` is a list of ``Operator`` in the order they run, and the ``Tensor`` they read and write, by name. Constants
(weights, planes) are arrays of the operator that reads them, in the layout of ``docs/algorithm.md``; how a kernel wants
them packed is the kernel's affair (``kernel_calls.py``). Kinds of operators, with what they read and their attributes:

| kind | inputs | constants | attributes |
|---|---|---|---|
| ``conv2d`` | x [, residual] | ``weight`` [KH, KW, C, M], ``bias`` [M] | ``geometry``, ``activation`` |
| ``grouped_conv2d`` | x | ``weight`` [KH, KW, C / groups, M], ``bias`` | the same, of a group, and ``groups`` |
| ``dense`` | x [1, K] or [1, T, K] | ``weight`` [K, M], ``bias`` [M] | ``geometry`` (1x1), ``activation`` |
| ``reuse_conv2d``, ``reuse_dense`` | x | the same, ``planes`` [S, L, H], ``thresholds`` [S, H] | also ``setting`` |
| ``max_pool2d``, ``avg_pool2d`` | x | | ``window`` (``Window``), ``count_pads`` |
| ``lrn`` | x | | ``before``, ``after``, ``factor``, ``beta``, ``bias`` |
| ``softmax``, ``log_softmax`` | x | | over the last axis |
| ``unary`` | x | | ``function``; ``activation`` where that is the function |
| ``binary`` | a, b of one shape, or a alone | ``operand`` that b is, or that a is (``swapped``) | ``function`` |
| ``mean`` | x [1, ..., C] | | over all axes but the first and the last |
| ``concat_part`` | x | | ``axis``, ``start``: where in the output x goes; one operator for each input of a ``Concat`` |
| ``strided_slice`` | x | | ``begin``, ``strides`` of each axis |
| ``pad`` | x | | ``before`` of each axis, ``value`` |
| ``transpose`` | x | | ``axes`` |
| ``view`` | x | | none: the same elements in the same order under another shape |

A residual is added after the bias and before the activation. Tensors of activations are float32; after quantisation
int8 with a ``Quantisation``. Kernels are chosen by kind and dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ITEM_BYTES = {"float32": 4, "int32": 4, "int8": 1}


@dataclass(frozen=True)
class Quantisation:
    """What the integers of a tensor stand for: real = scale * (integer - zero_point).

    Attributes:
        scale: of the whole tensor.
        zero_point: the integer of 0.0.
    """

    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class Tensor:
    """An activation.

    Attributes:
        name: unique in the graph; a C identifier.
        shape: with the batch, which is 1.
        dtype: ``float32``, ``int8`` or ``int32``.
        quantisation: of integers that stand for reals; None otherwise.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    quantisation: Quantisation | None = None

    @property
    def elements(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Window:
    """A sliding window over [1, H, W, C].

    Attributes:
        size, strides, dilation: (rows, columns).
        padding: (top, left, bottom, right).
    """

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
class Operator:
    """One step of the network; see the module for the kinds.

    Attributes:
        kind: what it does.
        name: the ONNX node name of a layer, else one made from the kind; unique, for reports.
        inputs: names of the tensors that it reads.
        output: name of the tensor that it writes.
        constants: arrays, by their part.
        attributes: by name.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        tensors: all activations, by name.
        operators: in the order they run.
        inputs, outputs: names of tensors, in the model's order; no operator writes an input.
    """

    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def readers(self, tensor: str) -> Iterator[int]:
        """Positions of the operators that read a tensor."""
        return (i for i, operator in enumerate(self.operators) if tensor in operator.inputs)

    @property
    def reuse_layers(self) -> list[Operator]:
        """Operators that reuse, in order: one row of the counts each."""
        return [operator for operator in self.operators if operator.kind.startswith("reuse_")]
