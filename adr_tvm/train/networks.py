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


def network_file(network: str | Path | None, seed: int, folder: Path, init: str | Path | None = None) -> Path:
    """The ONNX file that training starts from. What has no file of its own is written to ``folder``.

    Args:
        network: a name or an ONNX file; None: ``init`` itself.
        seed: of the weights of a network known by name.
        folder: of the run.
        init: ONNX file whose weights ``network`` starts with; None: its own.

    Raises:
        ModelError: there is neither such a file nor such a name, or the weights of ``init`` are not the network's.
    """
    named = NETWORKS.get(str(network))
    if network is None or (named is None and init is None):
        path = Path(init if network is None and init is not None else str(network))
        if not path.is_file():
            known = "" if network is None else f", and no network of that name: known are {', '.join(NETWORKS)}"
            raise ModelError(f"there is no file {path}{known}")
        return path
    import onnx

    proto = _loaded(network_file(network, seed, folder)) if named is None else named.build(seed)
    path = folder / f"{Path(network).stem}-initial.onnx"
    if init is not None:
        proto = _with_weights_of(proto, _loaded(network_file(None, seed, folder, init)), str(network), str(init))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
    return path


def _loaded(path: Path) -> onnx.ModelProto:
    from adr_tvm.frontend.onnx_limits import Limits
    from adr_tvm.frontend.onnx_load import load_proto

    return load_proto(path, Limits())[0]


def _with_weights_of(proto: onnx.ModelProto, other: onnx.ModelProto, network: str, init: str) -> onnx.ModelProto:
    """A model with the initializers of another, which must have all of its own, in their types and shapes."""
    found = {each.name: each for each in other.graph.initializer}
    wrong = []
    for each in proto.graph.initializer:
        given = found.get(each.name)
        if given is None:
            wrong.append(f"no {each.name}")
        elif (list(given.dims), given.data_type) != (list(each.dims), each.data_type):
            wrong.append(f"{each.name} {list(given.dims)}, not {list(each.dims)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(f"the weights of {init} are not those of {network}: it has {'; '.join(wrong[:3])}{more}")
    for each in proto.graph.initializer:
        each.CopyFrom(found[each.name])
    return proto
