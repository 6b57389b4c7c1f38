"""The made-up layers that the first prototypes of the reuse kernels were timed on, and what these reached.

3x3 convolutions at batch 1 on smooth inputs with some noise, `pixel` with L = 16 and random planes centred on the input
itself, one core with AVX-512. Two prototypes: C++ with intrinsics, its times against a dense layer at 220 GFLOP/s; and
plain TIR, of which the ratio to the same dense time is known for some shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

WAVES = 3.0  # largest number of radians per image side is 6 times this
NOISE = 0.3


@dataclass(frozen=True)
class Prototype:
    """One layer: input size x size x C, M output channels, H hash bits.

    Attributes:
        clusters: of a segment, in C++.
        ms, speedup: in C++.
        tir_speedup: of plain TIR.
    """

    size: int
    C: int
    M: int
    H: int
    clusters: int | None = None
    ms: float | None = None
    speedup: float | None = None
    tir_speedup: float | None = None

    @property
    def name(self) -> str:
        """ "56x56x128 -> 128"."""
        return f"{self.size}x{self.size}x{self.C} -> {self.M}"


PROTOTYPES = (
    Prototype(56, 64, 64, 8, 172, 0.261, 4.0),
    Prototype(56, 128, 128, 8, 155, 1.02, 4.1, 4.1),
    Prototype(112, 64, 64, 8, tir_speedup=3.5),
    Prototype(112, 128, 128, 8, 186, 3.30, 5.1),
    Prototype(224, 64, 64, 8, 199, 4.00, 4.2),
    Prototype(28, 256, 256, 8, 134, 1.87, 2.2, 2.5),
    Prototype(56, 256, 256, 6, 59, 3.23, 5.2, 3.7),
    Prototype(28, 512, 512, 7, 91, 6.75, 2.5),
    Prototype(14, 512, 512, 6, 45, 2.53, 1.7),
)


def smooth_image(size: int, channels: int, seed: int = 0) -> np.ndarray:
    """float32 [1, size, size, channels]: in each channel a wave down and one across, noise, and what ReLU leaves."""
    rng = np.random.default_rng(seed)
    down, across, phase = rng.uniform(0, 2 * WAVES, (3, channels))
    place = np.arange(size) / size
    rows = np.sin(WAVES * np.outer(place, down) + phase)[:, None, :]
    columns = np.cos(WAVES * np.outer(place, across))[None, :, :]
    noise = rng.uniform(-NOISE / 2, NOISE / 2, (size, size, channels))
    return np.maximum(rows + columns + noise, 0).astype(np.float32)[None]


def convolution(layer: Prototype, seed: int = 0) -> onnx.ModelProto:
    """The layer as a model: 3x3, padded by 1, normal weights."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((layer.M, layer.C, 3, 3), np.float32) / np.float32(np.sqrt(9 * layer.C))
    node = helper.make_node("Conv", ["x", "w"], ["y"], name=layer.name, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    size = (layer.size, layer.size)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, channels, *size))
        for name, channels in (("x", layer.C), ("y", layer.M))
    ]
    graph = helper.make_graph([node], "layer", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
