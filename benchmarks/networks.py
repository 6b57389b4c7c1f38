"""The networks that speed is measured on, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from adr_tvm.models.bundled import cifar10_sample, cifarnet_path
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


Prepare = Callable[[np.ndarray], np.ndarray]
Samples = Callable[[DataFolder, int], np.ndarray]


def photos(size: tuple[int, int], prepare: Prepare) -> Samples:
    """The first photographs of the folder, scaled to (height, width)."""
    return lambda data, count: prepare(data.photos(size)[:count])


def _cifar(prepare: Prepare) -> Samples:
    return lambda data, count: prepare(data.cifar10(0, count)[0])


def _unit(images: np.ndarray) -> np.ndarray:
    return for_style_transfer(images) / np.float32(255)


def _small(images: np.ndarray) -> np.ndarray:
    return for_squeezenet(images) / np.float32(64)


def _bundled(_: DataFolder, count: int) -> np.ndarray:
    return cifar10_sample()[0][:count]


SQUEEZENET, RESNET20, WAIFU2X = "squeezenet1_1_imagenet", "resnet20_cifar10", "waifu2x_upconv7_photo_x2"
CIFARNET = ""  # comes with the package
# name: (model, samples, batch). The images of waifu2x get 14 pixels of border.
SHARED: dict[str, tuple[str, Samples, int]] = {
    "squeezenet-b1": (SQUEEZENET, photos((224, 224), for_squeezenet), 1),
    "squeezenet-b8": (SQUEEZENET, photos((224, 224), for_squeezenet), 8),
    "squeezenet-896": (SQUEEZENET, photos((896, 896), for_squeezenet), 1),
    "squeezenet-text": (SQUEEZENET, lambda data, _: for_squeezenet(data.text_page()), 1),
    "squeezenet-text-448": (SQUEEZENET, lambda data, _: for_squeezenet(data.text_page()[:, :448, :448]), 1),
    "squeezenet-text-224": (SQUEEZENET, lambda data, _: for_squeezenet(data.text_page()[:, 224:448, 224:448]), 1),
    "resnet20-b1": (RESNET20, _cifar(for_resnet20), 1),
    "resnet20-b128": (RESNET20, _cifar(for_resnet20), 128),
    "fst_wave": ("fst_wave", photos((480, 640), for_style_transfer), 1),
    "fst_wave-224": ("fst_wave", photos((224, 224), for_style_transfer), 1),
    "fst_wave-448": ("fst_wave", photos((448, 448), for_style_transfer), 1),
    "waifu2x": (WAIFU2X, photos((256, 256), for_waifu2x), 1),
    "waifu2x-128": (WAIFU2X, photos((128, 128), for_waifu2x), 1),
    "tiny-ic": ("mlperf_ic_resnet8_cifar10", _cifar(for_style_transfer), 1),
    "tiny-kws": ("mlperf_kws_dscnn", lambda data, count: data.keywords()[0][:count], 1),
    "tiny-vww": ("mlperf_vww_mobilenetv1_025_96", photos((96, 96), _unit), 1),
    "trec-cifarnet-b1": ("trec_cifarnet_cifar10", _cifar(for_trec), 1),
    "trec-cifarnet-b100": ("trec_cifarnet_cifar10", _cifar(for_trec), 100),
    "cifarnet-b1": (CIFARNET, _bundled, 1),
    "cifarnet-b128": (CIFARNET, _bundled, 128),
}
# Architectures with random weights, on photographs.
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
    """One of ``NAMES`` with its input.

    Args:
        data: the models and images.
        work: folder for models that are made here.
    """
    path, batch = model_path(name, data, work), SHARED[name][2] if name in SHARED else 1
    x = samples(name, data, batch)
    return Network(name, of_shape(path, x.shape, work), x, input_name(path))


def samples(name: str, data: DataFolder, count: int) -> np.ndarray:
    """At most ``count`` inputs of one of ``NAMES``, float32 [n, ...]; a network's own input is the first of them."""
    prepared = SHARED[name][1] if name in SHARED else photos((224, 224), _small)
    return prepared(data, count)


def model_path(name: str, data: DataFolder, work: Path) -> Path:
    """The ONNX file of one of ``NAMES``."""
    if name in SHARED:
        model = SHARED[name][0]
        return cifarnet_path() if model == CIFARNET else data.model(model)
    path = work / f"{name}.onnx"
    if not path.exists():
        onnx.save(light_model(LIGHT[name]), path)
    return path


def of_shape(path: Path, shape: tuple[int, ...], work: Path) -> Path:
    """The model itself if its input may have this shape, else a copy in ``work`` whose input has it."""
    model, name = onnx.load(path), input_name(path)
    declared = next(value for value in model.graph.input if value.name == name).type.tensor_type.shape
    if all(not axis.dim_value or axis.dim_value == size for axis, size in zip(declared.dim, shape, strict=True)):
        return path
    for axis, size in zip(declared.dim, shape, strict=True):
        axis.dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    resized = work / f"{path.stem}-{'x'.join(map(str, shape))}.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), resized)
    return resized


def input_name(path: Path) -> str:
    """The first input of a model that is no weight."""
    return input_names(onnx.load(path, load_external_data=False).graph)[0]


def input_names(graph: onnx.GraphProto) -> list[str]:
    """The inputs of a model that are no weights."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in weights]
