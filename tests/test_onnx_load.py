"""Reading the file: not ONNX, truncated, too large, inconsistent weights, external data."""

from __future__ import annotations

import os

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import classifier, conv, refused, save

from adr_tvm.frontend.onnx_model import Limits, check_model


def test_file_errors(tmp_path):
    refused(tmp_path / "none.onnx", "none.onnx", "no such file")
    refused(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
    refused(save(b"", tmp_path), "empty")
    refused(save(b"\x89PNG\r\n" * 50, tmp_path), "not an ONNX model")
    refused(save(b"hello, this is text", tmp_path), "not an ONNX model")
    refused(save(classifier(), tmp_path), "limit is 100 B", limits=Limits(file_bytes=100))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_truncated_file(part, tmp_path):
    data = classifier().SerializeToString()
    refused(save(data[: int(len(data) * part)], tmp_path), "model.onnx")


@pytest.mark.parametrize("opset", [6, 24, 2**40])
def test_opset_out_of_range(opset, tmp_path):
    refused(save(conv(opset=opset), tmp_path), f"opset {opset}", "from 7 to 23")


def test_limits(tmp_path):
    path = save(classifier(), tmp_path)
    refused(path, "more than 5 nodes", limits=Limits(nodes=5))
    refused(path, "initializer 'w1'", "limit is 256 B", limits=Limits(tensor_bytes=256))
    refused(path, "weights take more than", limits=Limits(initializer_bytes=1000))
    refused(path, "4 dimensions", limits=Limits(rank=3))
    refused(path, "inputs or outputs", limits=Limits(node_inputs=4))
    refused(path, "kernel", "expected 1 to 2", limits=Limits(window=2))


def test_inconsistent_weights(tmp_path):
    model = classifier()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    refused(save(model, tmp_path), "initializer 'w1'", "860 bytes", "864")
    model = classifier()
    model.graph.initializer[0].dims[0] = -8
    refused(save(model, tmp_path), "initializer 'w1'", "dimension of -8")
    model = classifier()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, "f4"), "w1"))
    refused(save(model, tmp_path), "initializer 'w1' holds NaN")
    model = classifier()
    model.graph.initializer[0].data_type = TensorProto.COMPLEX64
    refused(save(model, tmp_path), "complex64")


def test_initializers_among_the_inputs_are_weights(tmp_path):
    model = conv()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    assert [spec.name for spec in check_model(save(model, tmp_path)).inputs] == ["x"]


def test_name_that_is_not_text(tmp_path):
    for name in (b"w1", b"conv1", b"c1", b"graph", b"Relu", b"strides"):
        refused(save(classifier().SerializeToString().replace(name, b"\xff" * len(name)), tmp_path), "model.onnx")


def external(folder, location: str, length: int | None = None) -> str:
    model = conv()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return save(model, folder)


def test_external_data_inside_the_folder(tmp_path):
    data = np.arange(108, dtype="float32").tobytes()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w.bin").write_bytes(data)
    checked = check_model(external(tmp_path, "deep/w.bin"))
    assert checked.proto.graph.initializer[0].raw_data == data
    assert checked.sha256 != check_model(save(conv(), tmp_path)).sha256


def test_external_data_outside_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(432))
    refused(external(folder, "../w.bin"), "'w'", "'../w.bin'", "not inside")
    refused(external(folder, str(tmp_path / "w.bin")), "not inside")
    refused(external(folder, "..\\w.bin"), "not inside")
    refused(external(folder, "C:\\w.bin"), "not inside")
    refused(external(folder, ""), "not inside")
    refused(external(folder, "w.bin"), "missing")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    refused(external(folder, "link.bin"), "outside")
    (folder / "up").symlink_to(tmp_path)
    refused(external(folder, "up/w.bin"), "outside")
    refused(external(folder, "up"), "outside")


def test_external_data_of_wrong_length(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(400))
    refused(external(tmp_path, "w.bin"), "400 bytes", "432")
    refused(external(tmp_path, "w.bin", 432), "cannot be read")
    refused(external(tmp_path, "w.bin", -1), "432")
    (tmp_path / "w.bin").unlink()
    os.mkfifo(tmp_path / "w.bin")
    refused(external(tmp_path, "w.bin"), "not a regular file")
