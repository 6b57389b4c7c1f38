"""AlexNet and VGG built as ONNX: shapes, valid models, weights that keep activations in range."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from adr_tvm.errors import ModelError
from adr_tvm.models.alexnet import build_alexnet
from adr_tvm.models.alexnet import weight_shapes as alexnet_shapes
from adr_tvm.models.vgg import build_vgg
from adr_tvm.models.vgg import weight_shapes as vgg_shapes
from adr_tvm.train.networks import NETWORKS, network_file


def logits(model: onnx.ModelProto, size: int) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "build",
    [lambda: build_alexnet(cifar=True), lambda: build_vgg(11, cifar=True), lambda: build_vgg(16, cifar=True)],
    ids=["alexnet", "vgg11", "vgg16"],
)
def test_cifar_variants_run(build):
    found = logits(build(), 32)
    assert found.shape == (2, 10) and np.isfinite(found).all()
    assert 0.05 < found.std() < 20  # He-normal weights neither vanish nor explode


def test_full_size_alexnet_runs():
    assert logits(build_alexnet(), 227).shape == (2, 1000)


def test_parameters_of_the_papers():
    count = sum(int(np.prod(shape)) for shape in vgg_shapes(19, False, 1000).values())
    assert count == 143_667_240  # VGG-19 has 144 M
    one_tower = sum(int(np.prod(shape)) for shape in alexnet_shapes(False, 1000).values())
    assert one_tower == 62_378_344  # 61 M with the grouped convolutions of two towers


def test_seeds_and_dropout():
    first, again, other = (build_vgg(11, True, seed=seed).SerializeToString() for seed in (0, 0, 1))
    assert first == again != other
    kinds = {node.op_type for node in build_alexnet(True, dropout=0).graph.node}
    assert "Dropout" not in kinds and "LRN" in kinds
    with pytest.raises(ValueError, match="VGG-12"):
        build_vgg(12)


def test_networks_by_name(tmp_path):
    path = network_file("cifarnet", 3, tmp_path)
    assert path == tmp_path / "cifarnet-initial.onnx" and path.is_file()
    assert network_file(path, 0, tmp_path) == path
    with pytest.raises(ModelError, match=f"known are {', '.join(NETWORKS)}"):
        network_file("resnet", 0, tmp_path)
