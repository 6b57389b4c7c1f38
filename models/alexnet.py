"""AlexNet (Krizhevsky, Sutskever, Hinton, NIPS 2012) in one tower, built as ONNX; full size, and one for CIFAR-10.

    full size          x (N, 3, 227, 227)                       CIFAR-10             x (N, 3, 32, 32)
    conv1  11x11 / 4   -> (N, 96, 55, 55), ReLU, LRN            5x5, pad 2           -> (N, 64, 32, 32), ReLU, LRN
    pool1  3x3 / 2     -> (N, 96, 27, 27)                       3x3 / 2, pad 1       -> (N, 64, 16, 16)
    conv2  5x5, pad 2  -> (N, 256, 27, 27), ReLU, LRN           5x5, pad 2           -> (N, 192, 16, 16), ReLU, LRN
    pool2  3x3 / 2     -> (N, 256, 13, 13)                      3x3 / 2, pad 1       -> (N, 192, 8, 8)
    conv3  3x3, pad 1  -> (N, 384, 13, 13), ReLU                                     -> (N, 384, 8, 8)
    conv4  3x3, pad 1  -> (N, 384, 13, 13), ReLU                                     -> (N, 256, 8, 8)
    conv5  3x3, pad 1  -> (N, 256, 13, 13), ReLU                                     -> (N, 256, 8, 8)
    pool5  3x3 / 2     -> (N, 256, 6, 6)                        3x3 / 2, pad 1       -> (N, 256, 4, 4)
    fc6, fc7           4096, ReLU, dropout 0.5                  1024
    logits             1000                                     10

LRN is the paper's: size 5, alpha 1e-4, beta 0.75, bias 2 (ONNX divides alpha by the size, so it is 5e-4 here).
"""

from typing import Any

import numpy as np
import onnx

from .chain import Layer, build_chain, he_normal

LRN: dict[str, Any] = {"size": 5, "alpha": 5e-4, "beta": 0.75, "bias": 2.0}

_CHANNELS = {False: (96, 256, 384, 384, 256), True: (64, 192, 384, 256, 256)}
_KERNELS = {False: (11, 5, 3, 3, 3), True: (5, 5, 3, 3, 3)}


def weight_shapes(cifar: bool, classes: int) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape; convolutions (M, C, KH, KW), dense layers (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {}
    inner = 3
    for index, (outer, kernel) in enumerate(zip(_CHANNELS[cifar], _KERNELS[cifar], strict=True), 1):
        shapes |= {f"conv{index}.weight": (outer, inner, kernel, kernel), f"conv{index}.bias": (outer,)}
        inner = outer
    width = 1024 if cifar else 4096
    inner *= 4 * 4 if cifar else 6 * 6
    for name, outer in (("fc6", width), ("fc7", width), ("logits", classes)):
        shapes |= {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}
        inner = outer
    return shapes


def build_alexnet(
    cifar: bool = False, classes: int | None = None, seed: int = 0, dropout: float = 0.5
) -> onnx.ModelProto:
    """AlexNet with He-normal weights; input `x`, output `logits`, N symbolic.

    Args:
        cifar: the variant for 32x32 images.
        classes: None: 10 for `cifar`, else 1000.
        dropout: rate after fc6 and fc7; 0 leaves the dropout out.
    """
    classes = classes or (10 if cifar else 1000)
    weights: dict[str, np.ndarray] = he_normal(weight_shapes(cifar, classes), seed)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]} | ({"pads": [1, 1, 1, 1]} if cifar else {})
    layers: list[Layer] = []
    for index, kernel in enumerate(_KERNELS[cifar], 1):
        large = index == 1 and not cifar
        conv = {
            "kernel_shape": [kernel] * 2,
            "strides": [4 if large else 1] * 2,
            "pads": [0 if large else kernel // 2] * 4,
        }
        layers += [("Conv", f"conv{index}", conv), ("Relu", f"relu{index}", {})]
        layers += [("LRN", f"norm{index}", LRN)] if index <= 2 else []
        layers += [("MaxPool", f"pool{index}", pool)] if index in (1, 2, 5) else []
    layers.append(("Flatten", "flatten", {"axis": 1}))
    for name in ("fc6", "fc7"):
        layers += [("Gemm", name, {"transB": 1}), ("Relu", f"relu{name[2:]}", {})]
        layers += [("Dropout", f"drop{name[2:]}", {"ratio": dropout})] if dropout else []
    layers.append(("Gemm", "logits", {"transB": 1}))
    size = 32 if cifar else 227
    return build_chain("alexnet_cifar10" if cifar else "alexnet", layers, weights, (3, size, size), classes)
