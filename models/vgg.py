"""VGG (Simonyan, Zisserman, ICLR 2015) built as ONNX; full size, and variants for CIFAR-10 with batch norm.

3x3 convolutions with pad 1 and ReLU in five blocks of 64, 128, 256, 512 and 512 channels, each with a 2x2 / 2 max pool:

    depth   convolutions in the blocks
    11      1, 1, 2, 2, 2
    16      2, 2, 3, 3, 3
    19      2, 2, 4, 4, 4

Full size: x (N, 3, 224, 224) -> (N, 512, 7, 7) -> fc6 4096, fc7 4096, each ReLU and dropout 0.5, logits 1000. For
CIFAR-10: x (N, 3, 32, 32) -> (N, 512, 1, 1) -> logits 10, with a batch norm before each ReLU in place of biases, as is
usual there: without it the deeper ones hardly train from scratch.
"""

import onnx

from .chain import Layer, build_chain, he_normal

BLOCKS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


def weight_shapes(depth: int, cifar: bool, classes: int) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape; convolutions (M, C, KH, KW), dense layers (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {}
    inner = 3
    for name, outer in _convolutions(depth):
        shapes[f"conv{name}.weight"] = (outer, inner, 3, 3)
        if cifar:
            shapes |= {f"bn{name}.{part}": (outer,) for part in ("scale", "bias", "mean", "variance")}
        else:
            shapes[f"conv{name}.bias"] = (outer,)
        inner = outer
    if not cifar:
        inner *= 7 * 7
    for layer, outer in (*(() if cifar else (("fc6", 4096), ("fc7", 4096))), ("logits", classes)):
        shapes |= {f"{layer}.weight": (outer, inner), f"{layer}.bias": (outer,)}
        inner = outer
    return shapes


def build_vgg(
    depth: int = 19, cifar: bool = False, classes: int | None = None, seed: int = 0, dropout: float = 0.5
) -> onnx.ModelProto:
    """VGG with He-normal weights; input `x`, output `logits`, N symbolic. VGG-19 has 575 MB of them at full size.

    Args:
        depth: 11, 16 or 19.
        cifar: the variant for 32x32 images.
        classes: None: 10 for `cifar`, else 1000.
        dropout: rate after fc6 and fc7; 0 leaves the dropout out.

    Raises:
        ValueError: another depth.
    """
    if depth not in BLOCKS:
        raise ValueError(f"VGG-{depth}: expected a depth of {', '.join(map(str, BLOCKS))}")
    classes = classes or (10 if cifar else 1000)
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    layers: list[Layer] = []
    for block, count in enumerate(BLOCKS[depth], 1):
        for name in (f"{block}_{index + 1}" for index in range(count)):
            layers.append(("Conv", f"conv{name}", conv))
            layers += [("BatchNormalization", f"bn{name}", {"epsilon": 1e-5, "momentum": 0.9})] if cifar else []
            layers.append(("Relu", f"relu{name}", {}))
        layers.append(("MaxPool", f"pool{block}", {"kernel_shape": [2, 2], "strides": [2, 2]}))
    layers.append(("Flatten", "flatten", {"axis": 1}))
    for name in () if cifar else ("6", "7"):
        layers += [("Gemm", f"fc{name}", {"transB": 1}), ("Relu", f"relu{name}", {})]
        layers += [("Dropout", f"drop{name}", {"ratio": dropout})] if dropout else []
    layers.append(("Gemm", "logits", {"transB": 1}))
    size = 32 if cifar else 224
    weights = he_normal(weight_shapes(depth, cifar, classes), seed)
    return build_chain(f"vgg{depth}" + ("_cifar10" if cifar else ""), layers, weights, (3, size, size), classes)


def _convolutions(depth: int) -> list[tuple[str, int]]:
    """(block_index, channels) of each convolution, in order."""
    return [
        (f"{block}_{index + 1}", channels)
        for block, (count, channels) in enumerate(zip(BLOCKS[depth], CHANNELS, strict=True), 1)
        for index in range(count)
    ]
