"""check_model: what it refuses and how it says so, and what it rewrites."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import MODELS, classifier, image_to_image, make_model, weights_of

from adr_tvm.errors import ModelError, UsageError
from adr_tvm.onnx_model import Limits, TensorSpec, check_model, parse_input_shapes


def save(model: onnx.ModelProto | bytes, folder) -> str:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(path, *words: str, **kwargs) -> str:
    with pytest.raises(ModelError) as caught:
        check_model(path, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def conv(shape=("N", 3, 8, 8), weight=(4, 3, 3, 3), opset=13, bias=None, **attrs) -> onnx.ModelProto:
    weights = weights_of(w=weight) | ({} if bias is None else {"b": np.zeros(bias, "float32")})
    node = helper.make_node("Conv", ["x", *weights], ["y"], "conv", **attrs)
    return make_model([node], {"x": shape}, {"y": [None] * len(shape)}, weights, opset)


@pytest.mark.parametrize("name", MODELS)
def test_small_models_pass(name, tmp_path):
    checked = check_model(save(MODELS[name](), tmp_path))
    assert checked.inputs[0].name == "x" and checked.inputs[0].shape[0] == "N"
    names = [node.name for node in checked.proto.graph.node]
    assert len(set(names)) == len(names)
    assert len(checked.sha256) == 64


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


def test_invalid_graph(tmp_path):
    node = helper.make_node("Relu", ["nowhere"], ["y"], "relu")
    refused(save(make_model([node], {"x": [1]}, {"y": [1]}), tmp_path), "not a valid ONNX model", "nowhere")
    node = helper.make_node("Relu", ["x"], ["y"], "relu", bogus=1)
    refused(save(make_model([node], {"x": [1]}, {"y": [1]}), tmp_path), "bogus")
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    refused(save(make_model([node], {"x": [1, 2]}, {"y": [1, 3]}), tmp_path), "dimension 1: (2) vs (3)")


def test_limits(tmp_path):
    path = save(classifier(), tmp_path)
    refused(path, "more than 5 nodes", limits=Limits(nodes=5))
    refused(path, "initializer 'w1'", "limit is 256 B", limits=Limits(tensor_bytes=256))
    refused(path, "weights take more than", limits=Limits(initializer_bytes=1000))
    refused(path, "4 dimensions", limits=Limits(rank=3))
    refused(path, "inputs or outputs", limits=Limits(node_inputs=4))
    refused(path, "kernel", "expected 1 to 2", limits=Limits(window=2))


def test_inferred_tensor_too_large(tmp_path):
    """Only shape inference shows that the middle of this network needs 3.8 GB."""
    nodes = [
        helper.make_node("Tile", ["x", "n"], ["t"], "tile"),
        helper.make_node("ReduceMean", ["t"], ["y"], "mean", axes=[0, 1], keepdims=0),
    ]
    weights = {"n": np.array([31000, 31000], "int64")}
    refused(
        save(make_model(nodes, {"x": [1, 1]}, {"y": []}, weights), tmp_path), "node 'tile' (Tile)", "3.6 GiB"
    )


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


@pytest.mark.parametrize(
    ("attrs", "word"),
    [
        ({"strides": [0, 1]}, "strides"),
        ({"strides": [1, -1]}, "strides"),
        ({"dilations": [1, 2**40]}, "dimension"),
        ({"pads": [0, -1, 0, 0]}, "pads"),
        ({"pads": [0, 2**62, 0, 2**62]}, ""),
        ({"kernel_shape": [3, 5]}, "kernel"),
        ({"kernel_shape": [3]}, "kernel"),
        ({"group": 0}, "0 groups"),
        ({"group": 3}, "3 groups"),
        ({"bias": 3}, "bias"),
        ({"weight": (4, 2, 3, 3)}, "fit"),
        ({"weight": (4, 3, 9, 9)}, "y"),
        ({"auto_pad": "SAME"}, "auto_pad"),
    ],
)
def test_convolution_attributes(attrs, word, tmp_path):
    refused(save(conv(**attrs), tmp_path), "conv", word)


@pytest.mark.parametrize(
    ("op", "attrs", "word"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, "padding"),
        ("MaxPool", {"kernel_shape": [0, 2]}, "kernel_shape"),
        ("LRN", {"size": 4}, "odd"),
        ("LRN", {"size": 2**40 + 1}, "odd"),
        ("LeakyRelu", {"alpha": float("nan")}, "alpha is NaN"),
        ("Resize", {"mode": "square"}, "mode"),
    ],
)
def test_other_attributes(op, attrs, word, tmp_path):
    inputs = ["x", "", "s"] if op == "Resize" else ["x"]
    node = helper.make_node(op, inputs, ["y"], "layer", **attrs)
    weights = {"s": np.ones(4, "float32")} if op == "Resize" else {}
    model = make_model([node], {"x": ["N", 3, 8, 8]}, {"y": [None] * 4}, weights)
    refused(save(model, tmp_path), "layer", word)


def test_free_dimensions(tmp_path):
    path = save(conv(shape=("N", 3, "H", "W")), tmp_path)
    refused(path, "input 'x'", "dimension 2 ('H')", "--input-shapes x:1,3,224,224")
    assert check_model(path, {"x": (1, 3, 8, 9)}).outputs[0].shape == (1, 4, 6, 7)
    assert check_model(path, {"x": ("B", 3, 8, 9)}).outputs == (TensorSpec("y", ("B", 4, 6, 7), "float32"),)
    refused(path, "4 dimensions", "gives 3", input_shapes={"x": (3, 8, 9)})
    refused(path, "dimension 1 is 3", "gives 4", input_shapes={"x": (1, 4, 8, 8)})
    refused(path, "'z'", "the inputs are 'x'", input_shapes={"z": (1,)})
    refused(path, "y", input_shapes={"x": (1, 3, 2, 2)})


@pytest.mark.parametrize("batch", ["batch size", "N+1", "?", -1, 0])
def test_batch_names_of_exporters(batch, tmp_path):
    assert check_model(save(conv(shape=(batch, 3, 8, 8)), tmp_path)).inputs[0].shape == ("batch", 3, 8, 8)


def test_input_without_shape(tmp_path):
    model = conv()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = save(model, tmp_path)
    refused(path, "no shape", "--input-shapes")
    assert check_model(path, {"x": (1, 3, 8, 8)}).inputs[0].shape == (1, 3, 8, 8)


def test_input_types(tmp_path):
    model = conv()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    refused(save(model, tmp_path), "input 'x' is float16", "float32")
    refused(save(make_model([], {}, {}), tmp_path), "no input")


def test_initializers_among_the_inputs_are_weights(tmp_path):
    model = conv()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    assert [spec.name for spec in check_model(save(model, tmp_path)).inputs] == ["x"]


def test_node_names_are_unique(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "same"),
        helper.make_node("Relu", ["b"], ["c"], "same"),
        helper.make_node("Relu", ["c"], ["y"], "Relu_0"),
    ]
    checked = check_model(save(make_model(nodes, {"x": [1]}, {"y": [1]}), tmp_path))
    assert [node.name for node in checked.proto.graph.node] == ["Relu_0_2", "same", "same_2", "Relu_0"]


def test_auto_pad_becomes_pads(tmp_path):
    pads = {}
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"):
        checked = check_model(save(conv(auto_pad=mode, strides=[2, 2]), tmp_path))
        attrs = {a.name: helper.get_attribute_value(a) for a in checked.proto.graph.node[0].attribute}
        assert "auto_pad" not in attrs
        pads[mode] = attrs["pads"]
    assert pads["SAME_UPPER"] == [0, 0, 1, 1] and pads["SAME_LOWER"] == [1, 1, 0, 0]
    assert pads["VALID"] == pads["NOTSET"] == [0, 0, 0, 0]


def test_shape_arithmetic_is_folded(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "one", "three"], ["hw"]),
        helper.make_node("Concat", ["first", "hw"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"], "reshape"),
    ]
    weights = {"one": np.array([1]), "three": np.array([3]), "first": np.array([-1])}
    checked = check_model(save(make_model(nodes, {"x": ["N", 4, 5]}, {"y": [None] * 3}, weights), tmp_path))
    assert [node.op_type for node in checked.proto.graph.node] == ["Reshape"]
    assert [t.name for t in checked.proto.graph.initializer] == ["target"]


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


def test_names_cannot_break_the_line(tmp_path):
    model = conv(strides=[-1, 1])
    model.graph.node[0].name = "evil\n\x1b[31mname"
    assert "\x1b" not in refused(save(model, tmp_path))
    model = conv()
    model.graph.node[0].name = "two\nlines"
    assert check_model(save(model, tmp_path)).proto.graph.node[0].name == "two lines"


def test_parse_input_shapes():
    assert parse_input_shapes("x:1,3,224,224;y:1,10") == {"x": (1, 3, 224, 224), "y": (1, 10)}
    assert parse_input_shapes(["x:N,3", " y:2 "]) == {"x": ("N", 3), "y": (2,)}
    assert parse_input_shapes("a:b:1,2") == {"a:b": (1, 2)}
    assert parse_input_shapes([]) == {}


@pytest.mark.parametrize(
    "text", ["x", ":1,2", "x:1,a", "x:0,1", "x:1,-1", "x:1,,2", "x:1;x:2", "x:1.5", "x:²"]
)
def test_malformed_input_shapes(text):
    with pytest.raises(UsageError, match="--input-shapes"):
        parse_input_shapes(text)


def test_image_to_image_shapes_after_fixing_the_batch(tmp_path):
    checked = check_model(save(image_to_image(), tmp_path), {"x": (1, 3, 8, 8)})
    assert checked.outputs[0].shape == (1, 4, 16, 16)
    assert all(
        dim.HasField("dim_value")
        for value in checked.proto.graph.value_info
        for dim in value.type.tensor_type.shape.dim
    )
