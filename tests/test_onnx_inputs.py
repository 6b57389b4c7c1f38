"""Input shapes: which dimensions may be free, and --input-shapes."""

from __future__ import annotations

import pytest
from onnx import TensorProto
from onnx_graphs import conv, image_to_image, make_model, refused, save

from adr_tvm.errors import UsageError
from adr_tvm.frontend.onnx_model import TensorSpec, check_model, parse_input_shapes


def test_free_dimensions(tmp_path):
    path = save(conv(shape=("N", 3, "H", "W")), tmp_path)
    refused(path, "input 'x'", "dimension 2 ('H')", "--input-shapes x:1,3,224,224")
    assert check_model(path, {"x": (1, 3, 8, 9)}).outputs[0].shape == (1, 4, 6, 7)
    assert check_model(path, {"x": ("B", 3, 8, 9)}).outputs == (TensorSpec("y", ("B", 4, 6, 7), "float32"),)
    refused(path, "4 dimensions", "gives 3", input_shapes={"x": (3, 8, 9)})
    refused(path, "4 input channels do not fit", input_shapes={"x": (1, 4, 8, 8)})
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


def test_parse_input_shapes():
    assert parse_input_shapes("x:1,3,224,224;y:1,10") == {"x": (1, 3, 224, 224), "y": (1, 10)}
    assert parse_input_shapes(["x:N,3", " y:2 "]) == {"x": ("N", 3), "y": (2,)}
    assert parse_input_shapes("a:b:1,2") == {"a:b": (1, 2)}
    assert parse_input_shapes([]) == {}


@pytest.mark.parametrize("text", ["x", ":1,2", "x:1,a", "x:0,1", "x:1,-1", "x:1,,2", "x:1;x:2", "x:1.5", "x:²"])
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
