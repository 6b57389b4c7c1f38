"""Kernels of operators that are no layers, on odd shapes with a symbolic batch, against ONNX Runtime."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model, save, weights_of
from relax_modules import TARGET, bound, close, floats
from tvm import relax

from adr_tvm.build import build_module, canonical_module
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.passes.fuse_lrn import FuseLrn
from adr_tvm.passes.lower_tensor_ops import LowerTensorOps
from adr_tvm.passes.reshape_views import KEPT

node = helper.make_node
OPSET = 18


def compiled(model, tmp_path):
    """(runner of the compiled model: array -> list of arrays, names of its kernels)."""
    mod = canonical_module(check_model(save(model, tmp_path)), TARGET)
    with TARGET:
        lowered = relax.transform.LegalizeOps(skip_ops=KEPT)(LowerTensorOps(TARGET)(FuseLrn()(mod)))
    names = [gv.name_hint for gv in lowered.get_global_vars()]
    machine = relax.VirtualMachine(build_module(mod, TARGET), tvm.cpu())

    def run(x):
        found = machine["main"](tvm.runtime.tensor(x))
        return [found.numpy()] if hasattr(found, "numpy") else [y.numpy() for y in found]

    return run, [name.rstrip("0123456789") for name in names]


def agrees(model, shape, tmp_path, kernel, count=1, batches=(1, 3), inputs=floats):
    """The model computes what ONNX Runtime does, with ``count`` different kernels of a name."""
    run, names = compiled(model, tmp_path)
    assert names.count(kernel) == count, names
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in batches:
        x = inputs(batch, *shape)
        for y, expected in zip(run(x), session.run(None, {"x": x}), strict=True):
            close(y, expected)


def network(nodes, shape, weights=None, outputs=("y",)):
    """A model of [N, *shape]; its outputs are of the same rank."""
    unknown = [None] * (len(shape) + 1)
    return make_model(nodes, {"x": ["N", *shape]}, dict.fromkeys(outputs, unknown), weights, opset=OPSET)


def behind_conv(branches, shape, weights=None):
    """Branches of nodes behind a 1x1 convolution, which makes their tensors NHWC.

    Each branch reads "a"; the last of its nodes is an output.
    """
    weights = (weights or {}) | weights_of(first=(shape[0], shape[0], 1, 1))
    nodes = [node("Conv", ["x", "first"], ["a"], "conv"), *(n for branch in branches for n in branch)]
    return network(nodes, shape, weights, [branch[-1].output[0] for branch in branches])


POOLS = [
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [0, 2, 1, 0]}),
    ("MaxPool", {"kernel_shape": [7, 7], "pads": [3, 3, 3, 3]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 1, 1, 0], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
]


@pytest.mark.parametrize(("C", "H", "W"), [(37, 9, 20), (3, 13, 8)])
def test_pooling(C, H, W, tmp_path):
    branches = [[node(op, ["a"], [f"p{i}"], f"pool{i}", **attrs)] for i, (op, attrs) in enumerate(POOLS)]
    agrees(behind_conv(branches, (C, H, W)), (C, H, W), tmp_path, "adr_pool2d", len(POOLS))


@pytest.mark.parametrize(("C", "H", "W"), [(300, 13, 11), (5, 1, 3)])
def test_global_average_pooling(C, H, W, tmp_path):
    model = behind_conv([[node("GlobalAveragePool", ["a"], ["p"], "pool")]], (C, H, W))
    agrees(model, (C, H, W), tmp_path, "adr_spatial_mean")


def test_a_mean_of_a_large_image_keeps_its_digits(tmp_path):
    model = behind_conv([[node("GlobalAveragePool", ["a"], ["p"], "pool")]], (1, 500, 400))
    run, _ = compiled(model, tmp_path)
    x = (100 + floats(1, 1, 500, 400)).astype("float32")
    expected = x.astype("float64").mean() * weights_of(first=(1, 1, 1, 1))["first"].item()
    np.testing.assert_allclose(run(x)[0].item(), expected, rtol=2e-6)


TAILS: list[list[tuple[str, dict | None]]] = [  # operators behind the norm; None: adds its input
    [],
    [("Relu", {})],
    [("LeakyRelu", {"alpha": 0.1})],
    [("Add", None), ("Relu", {})],
]


def test_instance_norm(tmp_path):
    branches = []
    for b, tail in enumerate(TAILS):
        norm = node("InstanceNormalization", ["a", "scale", "shift"], [f"n{b}.0"], f"norm{b}", epsilon=1e-3)
        branches.append([norm])
        for i, (op, attrs) in enumerate(tail):
            inputs = [f"n{b}.{i}", "a"] if attrs is None else [f"n{b}.{i}"]
            branches[b].append(node(op, inputs, [f"n{b}.{i + 1}"], f"tail{b}.{i}", **(attrs or {})))
    weights = {"scale": floats(7, seed=1), "shift": floats(7, seed=2)}
    agrees(behind_conv(branches, (7, 13, 11), weights), (7, 13, 11), tmp_path, "adr_instance_norm", len(TAILS))


@pytest.mark.parametrize("C", [3, 32, 70])
def test_instance_norm_over_several_chunks(C, tmp_path):
    weights = {"scale": floats(C, seed=1), "shift": floats(C, seed=2)}
    shape = (C, 1000 // C + 40, 90)
    model = behind_conv([[node("InstanceNormalization", ["a", "scale", "shift"], ["n"], "norm")]], shape, weights)
    agrees(model, shape, tmp_path, "adr_instance_norm", batches=(2,))


def test_instance_norm_of_a_large_mean():
    """Deviations are summed from each chunk's own mean: a mean of 1000 deviations costs three digits, no more."""
    from adr_tvm.activation import Activation
    from adr_tvm.schedules.instance_norm import NormShape, instance_norm
    from adr_tvm.schedules.register_tile import isa_of

    shape = NormShape(50, 41, 12)
    kernel = instance_norm(shape, 1e-5, Activation(), False, isa_of(TARGET)).with_attr("global_symbol", "main")
    x = (1000 + floats(2, shape.pixels, 12)).astype("float32")
    y = tvm.runtime.tensor(np.full((2, shape.pixels * 12), np.nan, "float32"))
    ones, zeros = np.ones(12, "float32"), np.zeros(12, "float32")
    arguments = [tvm.runtime.tensor(v) for v in (x.reshape(2, -1), ones, zeros)]
    tvm.compile(tvm.IRModule({"main": kernel}), TARGET)["main"](*arguments, y)
    wide = x.astype("float64")
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.numpy().reshape(x.shape), expected, atol=5e-4)


def test_a_norm_behind_a_transposed_convolution_places_the_pixels(tmp_path):
    weights = weights_of(w=(4, 6, 3, 3)) | {"scale": floats(6, seed=1), "shift": floats(6, seed=2)}
    attrs = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    nodes = [
        node("ConvTranspose", ["x", "w"], ["c"], "up", **attrs),
        node("InstanceNormalization", ["c", "scale", "shift"], ["n"], "norm"),
        node("Relu", ["n"], ["y"], "relu"),
    ]
    agrees(network(nodes, (4, 9, 7), weights), (4, 9, 7), tmp_path, "adr_instance_norm")


def test_a_norm_of_batches_is_none_of_images(tmp_path):
    """A mean over the rows alone is not taken for the mean of the image."""
    nodes = [
        node("ReduceMean", ["a", "axes"], ["m"], "mean", keepdims=1),
        node("Sub", ["a", "m"], ["d"], "centred"),
        node("Mul", ["d", "d"], ["s"], "square"),
        node("ReduceMean", ["s", "axes"], ["v"], "variance", keepdims=1),
        node("Add", ["v", "epsilon"], ["e"], "add"),
        node("Sqrt", ["e"], ["r"], "sqrt"),
        node("Div", ["d", "r"], ["b"], "div"),
    ]
    constants = {"axes": np.array([2], "int64"), "epsilon": np.array(1e-3, "float32")}
    agrees(behind_conv([nodes], (6, 5, 9), constants), (6, 5, 9), tmp_path, "adr_instance_norm", count=0)


@pytest.mark.parametrize("C", [37, 6])
def test_lrn(C, tmp_path):
    """Four of these exponents need no logarithm, the last does."""
    settings = [(5, 0.75), (7, 0.5), (3, 1.0), (1, 0.75), (3, 0.6)]
    branches = [
        [node("LRN", ["a"], [f"l{i}"], f"lrn{i}", size=size, alpha=0.1, beta=beta, bias=1.5)]
        for i, (size, beta) in enumerate(settings)
    ]
    agrees(behind_conv(branches, (C, 9, 8)), (C, 9, 8), tmp_path, "adr_lrn", len(settings))


PADS = [  # (pads, mode, value)
    ([0, 0, 2, 1, 0, 0, 0, 3], "constant", 0.5),
    ([0, 4, 0, 0, 0, 7, 0, 0], "constant", 0.0),
    ([0, 0, 4, 4, 0, 0, 4, 6], "reflect", 0.0),
    ([0, 0, 6, 1, 0, 0, 2, 9], "edge", 0.0),
    ([0, 0, -2, 1, 0, 0, 1, -3], "constant", 0.0),
]


@pytest.mark.parametrize("C", [3, 37])
def test_padding(C, tmp_path):
    weights, branches = {}, []
    for i, (pads, mode, value) in enumerate(PADS):
        weights |= {f"pads{i}": np.array(pads, "int64"), f"value{i}": np.array(value, "float32")}
        branches.append([node("Pad", ["a", f"pads{i}", f"value{i}"], [f"p{i}"], f"pad{i}", mode=mode)])
    agrees(behind_conv(branches, (C, 9, 7), weights), (C, 9, 7), tmp_path, "adr_pad2d", len(PADS))


def test_slices_before_padding_are_one_copy(tmp_path):
    """The shortcut of CIFAR's residual networks: every second pixel, and zeros for the new channels."""
    weights = {
        "from": np.array([1, 0], "int64"), "to": np.array([2**62, 2**62], "int64"),
        "axes": np.array([2, 3], "int64"), "steps": np.array([2, 3], "int64"),
        "pads": np.array([0, 3, 0, 0, 0, 2, 0, 0], "int64"),
    }  # fmt: skip
    branch = [
        node("Slice", ["a", "from", "to", "axes", "steps"], ["s"], "slice"),
        node("Pad", ["s", "pads"], ["p"], "pad"),
    ]
    agrees(behind_conv([branch], (8, 9, 10), weights), (8, 9, 10), tmp_path, "adr_pad2d")


@pytest.mark.parametrize("shape", [(10,), (7, 37)])
def test_softmax(shape, tmp_path):
    model = network([node("Softmax", ["x"], ["y"], "softmax", axis=-1)], shape)
    agrees(model, shape, tmp_path, "adr_softmax", inputs=lambda *s: 10 * floats(*s))


FUNCTIONS = {
    "Exp": np.exp,
    "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "Tanh": np.tanh,
    "Erf": np.vectorize(math.erf),
}


def test_functions(tmp_path):
    """Relative errors; ONNX Runtime's own sigmoid is off by 100 % far below 0."""
    nodes = [node(op, ["x"], [op], op) for op in FUNCTIONS]
    run, _ = compiled(network(nodes, (1 << 14,), outputs=list(FUNCTIONS)), tmp_path)
    x = np.concatenate([np.linspace(-90, 90, 1 << 14), np.linspace(-1, 1, 1 << 14)]).astype("float32").reshape(2, -1)
    special = np.zeros((1, 1 << 14), "float32")
    special[0, :3] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        for function, y, limits in zip(FUNCTIONS.values(), run(x), run(special), strict=True):
            expected = function(x.astype("float64"))
            normal = (np.abs(expected) > 2e-38) & (np.abs(expected) < 3e38)
            np.testing.assert_allclose(y[normal], expected[normal], rtol=5e-7)
            np.testing.assert_array_equal(limits[0, :3], function(special[0, :3]))


def test_resize(tmp_path):
    attrs = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    branches = [
        [node("Resize", ["a", "", "scales"], [mode], f"resize_{mode}", mode=mode, **attrs)]
        for mode in ("nearest", "linear")
    ]
    model = behind_conv(branches, (20, 7, 5), {"scales": np.array([1, 1, 2, 3], "float32")})
    agrees(model, (20, 7, 5), tmp_path, "adr_permute", count=2)


@pytest.mark.parametrize(("groups", "width"), [(4, 34), (3, 7)])
def test_channel_shuffle_keeps_to_the_channels(groups, width, tmp_path):
    C, H, W = groups * width, 6, 5
    weights = {"split": np.array([0, groups, width, H, W], "int64"), "joined": np.array([0, C, H, W], "int64")}
    branch = [
        node("Reshape", ["a", "split"], ["r"], "split"),
        node("Transpose", ["r"], ["t"], "shuffle", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "joined"], ["b"], "join"),
    ]
    model = behind_conv([branch], (C, H, W), weights)
    mod = canonical_module(check_model(save(model, tmp_path)), TARGET)
    axes = [[int(a) for a in call.attrs.axes] for call in bound(mod, "permute_dims")]
    assert axes == [[0, 2, 3, 1], [0, 1, 2, 4, 3], [0, 3, 1, 2]]
    agrees(model, (C, H, W), tmp_path, "adr_permute", count=3)
