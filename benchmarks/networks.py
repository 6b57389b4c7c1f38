"""The networks that speed is measured on, with an input each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from adr_tvm.models.bundled import cifarnet_path
from adr_tvm.models.cifar10 import normalise
from adr_tvm.models.light import LIGHT_NAMES, light_model
from benchmarks.validation.data_folder import (
    DataFolder,
    for_resnet20,
    for_squeezenet,
    for_style_transfer,
    for_trec,
    for_waifu2x,
)


@dataclass(frozen=True)
class Network:
    """A model and what goes in.

    Attributes:
        name: of the model, batch and size.
        path: the ONNX file.
        x: float32 input.
        input_name: of ``x`` in the model.
    """

    name: str
    path: Path
    x: np.ndarray
    input_name: str


Inputs = Callable[[DataFolder], np.ndarray]


def _photos(batch: int, size: tuple[int, int], prepare: Callable[[np.ndarray], np.ndarray]) -> Inputs:
    return lambda data: prepare(data.photos(size)[:batch])


def _cifar(batch: int, prepare: Callable[[np.ndarray], np.ndarray]) -> Inputs:
    return lambda data: prepare(data.cifar10(0, batch)[0])


def _unit(images: np.ndarray) -> np.ndarray:
    return for_style_transfer(images) / np.float32(255)


# name: (model, input)
SHARED: dict[str, tuple[str, Inputs]] = {
    "squeezenet-b1": ("squeezenet1_1_imagenet", _photos(1, (224, 224), for_squeezenet)),
    "squeezenet-b8": ("squeezenet1_1_imagenet", _photos(8, (224, 224), for_squeezenet)),
    "squeezenet-896": ("squeezenet1_1_imagenet", _photos(1, (896, 896), for_squeezenet)),
    "resnet20-b1": ("resnet20_cifar10", _cifar(1, for_resnet20)),
    "resnet20-b128": ("resnet20_cifar10", _cifar(128, for_resnet20)),
    "fst_wave": ("fst_wave", _photos(1, (480, 640), for_style_transfer)),
    "waifu2x": ("waifu2x_upconv7_photo_x2", _photos(1, (256, 256), for_waifu2x)),
    "tiny-ic": ("mlperf_ic_resnet8_cifar10", _cifar(1, for_style_transfer)),
    "tiny-kws": ("mlperf_kws_dscnn", lambda data: data.keywords()[0][:1]),
    "tiny-vww": ("mlperf_vww_mobilenetv1_025_96", _photos(1, (96, 96), _unit)),
    "trec-cifarnet-b1": ("trec_cifarnet_cifar10", _cifar(1, for_trec)),
    "trec-cifarnet-b100": ("trec_cifarnet_cifar10", _cifar(100, for_trec)),
    "cifarnet-b1": ("", _cifar(1, normalise)),
    "cifarnet-b128": ("", _cifar(128, normalise)),
}
LIGHT = {"alexnet": "bvlc_alexnet", "vgg19": "vgg19", "resnet50": "resnet50"} | {
    name: name for name in LIGHT_NAMES if name not in ("bvlc_alexnet", "vgg19", "resnet50", "squeezenet")
}
# What the dense path is judged on.
JUDGED = (
    "squeezenet-b1", "squeezenet-b8", "resnet20-b1", "resnet20-b128", "alexnet", "vgg19", "resnet50",
    "fst_wave", "waifu2x", "tiny-ic", "tiny-kws", "tiny-vww",
)  # fmt: skip
NAMES = (*SHARED, *LIGHT)


def network(name: str, data: DataFolder, work: Path) -> Network:
    """One of ``NAMES``.

    Args:
        data: the models and images.
        work: folder for models that are made here.
    """
    if name in SHARED:
        model, inputs = SHARED[name]
        path, x = data.model(model) if model else cifarnet_path(), inputs(data)
    else:
        path, x = work / f"{name}.onnx", for_squeezenet(data.photos((224, 224))[:1]) / np.float32(64)
        if not path.exists():
            onnx.save(light_model(LIGHT[name]), path)
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return Network(name, path, x, next(i.name for i in graph.input if i.name not in weights))
