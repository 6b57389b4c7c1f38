"""CifarNet, the small CIFAR-10 network of the Deep Reuse papers, built as ONNX from NumPy weights.

The form is TF-slim's: two 5x5 convolutions of 64 channels with local response normalisation, then three
dense layers.  Shapes for a batch of N images:

    x      (N, 3, 32, 32)   float32, normalised: x = (rgb / 255 - MEAN) / STD
    conv1  (N, 64, 32, 32)  5x5, pad 2; ReLU; pool1 3x3 / 2 -> (N, 64, 16, 16); norm1 (LRN)
    conv2  (N, 64, 16, 16)  5x5, pad 2; ReLU; norm2 (LRN); pool2 3x3 / 2 -> (N, 64, 8, 8)
    fc1    (N, 384) ReLU,  fc2 (N, 192) ReLU,  logits (N, 10)

LRN is TF-slim's `lrn(4, bias=1, alpha=0.001 / 9, beta=0.75)`.  ONNX divides alpha by the window size, so
that is size 9 (4 channels either side), alpha 0.001.  Needs onnx only, no torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from .chain import Layer, build_chain

MEAN = (0.4914, 0.4822, 0.4465)
"""Per-channel mean (R, G, B) of CIFAR-10's training images, in units of rgb / 255."""

STD = (0.2470, 0.2435, 0.2616)
"""Per-channel standard deviation (R, G, B) of CIFAR-10's training images, in units of rgb / 255."""

LRN: dict[str, Any] = {"size": 9, "alpha": 0.001, "beta": 0.75, "bias": 1.0}
"""Attributes of both local response normalisations, in ONNX's meaning of alpha."""

WEIGHT_SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (64, 3, 5, 5),
    "conv1.bias": (64,),
    "conv2.weight": (64, 64, 5, 5),
    "conv2.bias": (64,),
    "fc1.weight": (384, 64 * 8 * 8),
    "fc1.bias": (384,),
    "fc2.weight": (192, 384),
    "fc2.bias": (192,),
    "logits.weight": (10, 192),
    "logits.bias": (10,),
}
"""Every parameter's name and shape; convolutions (M, C, KH, KW), dense layers (out, in)."""


def initial_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """He-normal float32 weights (std = sqrt(2 / fan_in)) and zero biases, in the order of `WEIGHT_SHAPES`."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in WEIGHT_SHAPES.items():
        std = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.0
        weights[name] = (rng.standard_normal(shape) * std).astype(np.float32)
    return weights


def build_cifarnet(weights: Mapping[str, np.ndarray] | None = None, seed: int = 0) -> onnx.ModelProto:
    """Build CifarNet with input `x` (N, 3, 32, 32) and output `logits` (N, 10), both float32, N symbolic.

    `weights` maps the names of `WEIGHT_SHAPES` to arrays of those shapes (cast to float32); without it the
    weights are `initial_weights(seed)`.  Opset 17, IR version 8; nodes are named conv1, relu1, pool1, ...

    Raises:
        ValueError: a weight is missing, unknown, of the wrong shape, or not finite.
    """
    weights = initial_weights(seed) if weights is None else _checked(weights)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    conv = {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}
    layers: list[Layer] = [
        ("Conv", "conv1", conv),
        ("Relu", "relu1", {}),
        ("MaxPool", "pool1", pool),
        ("LRN", "norm1", LRN),
        ("Conv", "conv2", conv),
        ("Relu", "relu2", {}),
        ("LRN", "norm2", LRN),
        ("MaxPool", "pool2", pool),
        ("Flatten", "flatten", {"axis": 1}),
        ("Gemm", "fc1", {"transB": 1}),
        ("Relu", "relu3", {}),
        ("Gemm", "fc2", {"transB": 1}),
        ("Relu", "relu4", {}),
        ("Gemm", "logits", {"transB": 1}),
    ]
    return build_chain("cifarnet", layers, {name: weights[name] for name in WEIGHT_SHAPES}, (3, 32, 32), 10)


def _checked(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if missing := WEIGHT_SHAPES.keys() - weights.keys():
        raise ValueError(f"CifarNet weights are missing: {', '.join(sorted(missing))}")
    if unknown := weights.keys() - WEIGHT_SHAPES.keys():
        raise ValueError(f"CifarNet has no such weights: {', '.join(sorted(unknown))}")
    checked = {}
    for name, shape in WEIGHT_SHAPES.items():
        array = np.ascontiguousarray(weights[name], dtype=np.float32)
        if array.shape != shape:
            raise ValueError(f"CifarNet weight {name} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"CifarNet weight {name} holds NaN or Inf")
        checked[name] = array
    return checked
