"""import_onnx: numbers against ONNX Runtime, node names on calls, unsupported operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import MODELS, classifier, make_model, weights_of
from tvm import relax

from adr_tvm._tvm import node_name
from adr_tvm.errors import ModelError
from adr_tvm.frontend.importer import import_onnx
from adr_tvm.frontend.onnx_model import check_model

TARGET = tvm.target.Target({"kind": "llvm", "num-cores": 1})


def load(model: onnx.ModelProto, folder, **kwargs) -> tvm.IRModule:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return import_onnx(check_model(path, **kwargs))


def run_tvm(module: tvm.IRModule, *inputs: np.ndarray) -> np.ndarray:
    module = relax.transform.DecomposeOpsForInference()(module)
    executable = tvm.compile(module, TARGET, relax_pipeline=relax.get_default_pipeline(TARGET))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(x) for x in inputs)).numpy()


def run_onnx(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def assert_same(model: onnx.ModelProto, folder, *shapes) -> None:
    """One compilation, every shape; 1e-5 is what different summation orders of float32 leave here."""
    module = load(model, folder)
    for shape in shapes:
        x = np.random.default_rng(1).standard_normal(shape).astype("float32")
        np.testing.assert_allclose(run_tvm(module, x), run_onnx(model, x), rtol=1e-5, atol=1e-5)


def calls(module: tvm.IRModule) -> list[relax.Call]:
    found: list[relax.Call] = []
    relax.analysis.post_order_visit(module["main"], lambda e: found.append(e) if isinstance(e, relax.Call) else None)
    return found


def named(module: tvm.IRModule, operator: str) -> list[str | None]:
    return [node_name(call) for call in calls(module) if getattr(call.op, "name", "") == operator]


@pytest.mark.parametrize("name", MODELS)
def test_small_models_with_dynamic_batch(name, tmp_path):
    shape = {"classifier": (3, 12, 12), "image_to_image": (3, 8, 8), "tokens": (6, 8)}[name]
    assert_same(MODELS[name](), tmp_path, (1, *shape), (3, *shape))


def test_split_into_one_part_is_the_identity(tmp_path):
    """TVM's layout conversion cannot read such a split: it must not reach it."""
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Split", ["r"], ["y"], "split", axis=1)]
    model = make_model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]})
    assert_same(model, tmp_path, (3, 4))
    assert named(load(model, tmp_path), "relax.split") == []


@pytest.mark.parametrize("opset", range(7, 24))
def test_opsets(opset, tmp_path):
    """A network whose operators mean the same in every supported opset."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", auto_pad="SAME_LOWER", strides=[2, 2]),
        node("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["n"], "norm"),
        node("Relu", ["n"], ["r"], "relu"),
        node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        node("Sum", ["r", "p"], ["s"], "sum"),
        node("GlobalAveragePool", ["s"], ["g"], "mean"),
        node("Flatten", ["g"], ["f"], "flatten"),
        node("Gemm", ["f", "v", "b"], ["d"], "fc", beta=0.5),
        node("Softmax", ["d"], ["y"], "softmax", axis=1),
    ]
    weights = weights_of(w=(4, 3, 3, 3), v=(4, 5), b=(5,))
    weights |= {"one": np.full(4, 1.5, "float32"), "zero": np.full(4, 0.1, "float32")}
    model = make_model(nodes, {"x": ["N", 3, 9, 9]}, {"y": ["N", 5]}, weights, opset)
    assert_same(model, tmp_path, (2, 3, 9, 9))


CASES = {
    "softmax_7": ("Softmax", 7, [], {"axis": 1}),
    "softmax_13": ("Softmax", 13, [], {"axis": 1}),
    "clip_6": ("Clip", 9, [], {"min": -0.5, "max": 0.5}),
    "clip_no_high": ("Clip", 13, [np.float32(-0.5)], {}),
    "dropout_mask": ("Dropout", 13, [], {}),
    "slice_1": ("Slice", 9, [], {"starts": [1, -3], "ends": [99, -1], "axes": [1, 3]}),
    "slice_10": ("Slice", 13, [np.array([1]), np.array([9]), np.array([2]), np.array([2])], {}),
    "upsample_7": ("Upsample", 7, [], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    "upsample_9": ("Upsample", 9, [np.array([1, 1, 2, 2], "f4")], {"mode": "linear"}),
    "resize_10": ("Resize", 10, [np.array([1, 1, 2, 3], "f4")], {"mode": "nearest"}),
    "resize_sizes": ("Resize", 11, [*[np.array([], "f4")] * 2, np.array([2, 4, 9, 5])], {"mode": "linear"}),
    "resize_cubic": ("Resize", 13, [None, np.array([1, 1, 1.5, 2], "f4")], {"mode": "cubic"}),
    "pad_2": ("Pad", 9, [], {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "value": 2.0}),
    "pad_edge": ("Pad", 13, [np.array([0, 0, 1, 2, 0, 0, 2, 1])], {"mode": "edge"}),
    "pool_ceil": ("MaxPool", 13, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "pool_same": ("AveragePool", 13, [], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}),
    "up_same": ("ConvTranspose", 13, ["w"], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "up_shape": ("ConvTranspose", 13, ["w"], {"strides": [2, 2], "output_shape": [12, 14]}),
    "norm": ("InstanceNormalization", 13, [np.ones(4, "f4"), np.arange(4, dtype="f4")], {}),
    "group_norm": ("GroupNormalization", 21, [np.ones(4, "f4"), np.ones(4, "f4")], {"num_groups": 2}),
    "expand": ("Expand", 13, [np.array([1, 4, 6, 7])], {}),
    "lrn": ("LRN", 13, [], {"size": 3, "alpha": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_operators(case, tmp_path):
    operator, opset, operands, attrs = CASES[case]
    weights, names = {}, ["x"]
    for index, value in enumerate(operands):
        names.append("" if value is None else f"w{index}")
        if value is not None:
            weights[names[-1]] = weights_of(w=(4, 3, 3, 3))["w"] if isinstance(value, str) else np.asarray(value)
    outputs = ["y", "mask"] if case == "dropout_mask" else ["y"]
    node = helper.make_node(operator, names, outputs, "layer", **attrs)
    shape = [1 if case in ("upsample_9", "resize_sizes", "resize_cubic") else "N", 4, 6, 7]
    shape[0] = 2 if case == "resize_sizes" else shape[0]
    model = make_model([node], {"x": shape}, {"y": [None] * 4}, weights, opset)
    assert_same(model, tmp_path, (shape[0] if isinstance(shape[0], int) else 3, 4, 6, 7))


def test_calls_carry_node_names(tmp_path):
    module = load(MODELS["classifier"](), tmp_path)
    assert named(module, "relax.nn.conv2d") == ["conv1", "conv2"]
    assert named(module, "relax.matmul") == ["fc"]
    assert None not in [node_name(call) for call in calls(module)]
    module = load(MODELS["image_to_image"](), tmp_path)
    assert named(module, "relax.nn.conv2d_transpose") == ["up"]
    module = load(MODELS["tokens"](), tmp_path)
    assert named(module, "relax.matmul") == ["qkv", "scores", "mix"]


def test_node_name_of_a_call_without_one():
    x = relax.Var("x", relax.TensorType((2, 2), "float32"))
    assert node_name(relax.op.matmul(x, x)) is None


def test_a_result_read_twice_is_computed_once(tmp_path):
    """TVM's importer duplicates it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Add", ["c", "r"], ["y"], "add"),
    ]
    model = make_model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 6, 6]}, weights_of(w=(4, 3, 3, 3)))
    assert named(load(model, tmp_path), "relax.nn.conv2d") == ["conv"]


def test_signature(tmp_path):
    """main takes the inputs only, in the order of the graph, and returns all outputs."""
    nodes = [
        helper.make_node("Add", ["b", "a"], ["s"], "add"),
        helper.make_node("Mul", ["a", "w"], ["m"], "mul"),
    ]
    weights = {"w": np.ones(3, "float32")}
    model = make_model(nodes, {"a": ["N", 3], "b": ["N", 3]}, {"m": ["N", 3], "s": ["N", 3]}, weights)
    main = load(model, tmp_path)["main"]
    assert [p.name for p in main.params] == ["a", "b"]
    assert isinstance(main.ret_ty, relax.TupleType) and len(main.ret_ty.fields) == 2
    batch = main.params[0].ty.shape.values[0]
    assert isinstance(batch, tvm.tirx.Var) and batch.same_as(main.params[1].ty.shape.values[0])


def test_constant_of_shape_is_a_weight(tmp_path):
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], "fill", value=numpy_helper.from_array(np.ones(1, "f4"))),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    weights = {"shape": np.array([64, 3, 3, 3])}
    module = load(make_model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 64, 6, 6]}, weights), tmp_path)
    (call,) = (call for call in calls(module) if call.op.name == "relax.nn.conv2d")
    assert isinstance(call.args[1], tvm.ir.GenericConst)


def test_unsupported_operators_are_named_at_once(tmp_path, capsys):
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["l"], "lstm", hidden_size=2),
        helper.make_node("Det", ["x"], ["d"], "det"),
        *(helper.make_node("Fancy", ["x"], [f"f{i}"], f"fancy{i}", domain="com.example") for i in range(5)),
    ]
    outputs = {"l": [None] * 4, "d": [None], **{f"f{i}": [None] * 3 for i in range(5)}}
    model = make_model(nodes, {"x": [2, 3, 3]}, outputs, weights_of(w=(1, 8, 3), r=(1, 8, 2)))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ModelError) as caught:
        load(model, tmp_path)
    text = str(caught.value)
    for word in ("Det ('det')", "LSTM ('lstm')", "Fancy of domain 'com.example'", "'fancy0'", "and 2 more"):
        assert word in text
    assert "\n" not in text and capsys.readouterr().out == ""


def test_attention_of_opset_23_is_refused(tmp_path):
    node = helper.make_node("Attention", ["q", "q", "q"], ["y"], "attention")
    shape = [1, 2, 4, 8]
    with pytest.raises(ModelError, match=r"Attention \('attention': .*com.microsoft"):
        load(make_model([node], {"q": shape}, {"y": shape}, opset=23), tmp_path)


@pytest.mark.parametrize(
    ("operator", "operands", "attrs", "word"),
    [
        ("Resize", [None, np.array([1, 1, 0.6, 0.6], "f4")], {"mode": "linear"}, "scale of 0.6 of 6 pixels"),
        ("Resize", [None, np.array([2, 1, 1, 1], "f4")], {}, "scale of 2 of a dimension"),
        ("Resize", [None, np.array([1, 1, 2, 2], "f4")], {"antialias": 1}, "antialias"),
        ("LayerNormalization", [np.ones(7, "f4")], {}, "ONNX says"),
        ("RMSNormalization", [np.ones((6, 7), "f4")], {"axis": 0}, "all dimensions"),
        ("Split", [np.array([0, 4])], {"axis": 1}, "empty"),
    ],
)
def test_what_tvm_converts_wrongly_is_refused(operator, operands, attrs, word, tmp_path):
    weights = {f"w{i}": value for i, value in enumerate(operands) if value is not None}
    names = ["x", *("" if value is None else f"w{i}" for i, value in enumerate(operands))]
    outputs = [f"y{i}" for i in range({"LayerNormalization": 3, "Split": 2}.get(operator, 1))]
    node = helper.make_node(operator, names, outputs, "layer", **attrs)
    model = make_model([node], {"x": ["N", 4, 6, 7]}, {name: [None] * 4 for name in outputs}, weights, 23)
    with pytest.raises(ModelError, match="node 'layer'") as caught:
        load(model, tmp_path)
    assert word in str(caught.value)


def test_shape_as_output(tmp_path):
    nodes = [helper.make_node("Shape", ["x"], ["y"], "shape")]
    model = make_model(nodes, {"x": ["N", 3]}, {"y": [2]})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert run_tvm(load(model, tmp_path), np.zeros((5, 3), "float32")).tolist() == [5, 3]


def test_control_flow_is_refused(tmp_path):
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "branch", [], [value])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], "max", keepdims=0),
        helper.make_node("Cast", ["m"], ["flag"], "cast", to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y"], "choice", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(ModelError, match=r"If \('choice': control flow\)"):
        load(make_model(nodes, {"x": [1]}, {"y": [1]}), tmp_path)


def test_conversion_errors_name_the_node(tmp_path, capsys):
    """Pads that are not constant: TVM raises, and prints to stdout."""
    node = helper.make_node("Pad", ["x", "p"], ["y"], "padding")
    model = make_model([node], {"x": [1, 2]}, {"y": [None, None]})
    model.graph.input.append(helper.make_tensor_value_info("p", TensorProto.INT64, [4]))
    with pytest.raises(ModelError, match=r"node 'padding' \(Pad\): .*Dynamic pads") as caught:
        load(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_batch_fixed_on_the_command_line(tmp_path):
    module = load(classifier(), tmp_path, input_shapes={"x": (2, 3, 12, 12)})
    assert [int(dim) for dim in module["main"].params[0].ty.shape.values] == [2, 3, 12, 12]
