"""Networks that ``adr-train`` knows by name; anything else is the path of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adr_tvm.errors import ModelError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class NamedNetwork:
    """A builder of `adr_tvm.models`: ``build(seed)`` gives the ONNX model with fresh weights."""

    description: str
    build: Callable[[int], onnx.ModelProto]


def _cifarnet(seed: int) -> onnx.ModelProto:
    from adr_tvm.models.cifarnet import build_cifarnet

    return build_cifarnet(seed=seed)


def _alexnet(cifar: bool) -> Callable[[int], onnx.ModelProto]:
    def build(seed: int) -> onnx.ModelProto:
        from adr_tvm.models.alexnet import build_alexnet

        return build_alexnet(cifar, seed=seed)

    return build


def _vgg(depth: int, cifar: bool) -> Callable[[int], onnx.ModelProto]:
    def build(seed: int) -> onnx.ModelProto:
        from adr_tvm.models.vgg import build_vgg

        return build_vgg(depth, cifar, seed=seed)

    return build


NETWORKS: dict[str, NamedNetwork] = {
    "cifarnet": NamedNetwork("2 convolutions 5x5x64, LRN, 3 dense layers; 32x32, 10 classes", _cifarnet),
    "alexnet-cifar10": NamedNetwork("AlexNet for 32x32, 10 classes", _alexnet(True)),
    "vgg11-cifar10": NamedNetwork("VGG-11 with batch norm for 32x32, 10 classes", _vgg(11, True)),
    "vgg16-cifar10": NamedNetwork("VGG-16 with batch norm for 32x32, 10 classes", _vgg(16, True)),
    "vgg19-cifar10": NamedNetwork("VGG-19 with batch norm for 32x32, 10 classes", _vgg(19, True)),
    "alexnet": NamedNetwork("227x227, 1000 classes", _alexnet(False)),
    "vgg19": NamedNetwork("224x224, 1000 classes", _vgg(19, False)),
}


def network_file(network: str | Path, seed: int, folder: Path) -> Path:
    """The ONNX file of a network; one known by name is built with the weights of ``seed`` and written to ``folder``.

    Raises:
        ModelError: there is neither such a file nor such a name.
    """
    named = NETWORKS.get(str(network))
    if named is None:
        path = Path(network)
        if not path.is_file():
            raise ModelError(f"there is no file {path}, and no network of that name: known are {', '.join(NETWORKS)}")
        return path
    import onnx

    path = folder / f"{network}-initial.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(named.build(seed), path)
    return path
