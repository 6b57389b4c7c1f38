"""Runs the forward and backward pass of one reused layer for tests, and compares it with the reference."""

from __future__ import annotations

import functools

import numpy as np
import tvm
from kernel_harness import Layer, Tensors, close, sample_input, sample_tensors
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, is_cuda, tensor_type
from adr_tvm.build import build_module
from adr_tvm.gradients import register_all, reuse
from adr_tvm.reference_gradients import activation_gradient, reuse_conv2d_gradients
from adr_tvm.reference_ids import units_of

BATCH = 3


@functools.cache
def _machine(
    layer: Layer,
    input_gradient: str,
    batch: int,
    backward_only: bool = False,
    forward_only: bool = False,
    target: tvm.target.Target | None = None,
) -> relax.VirtualMachine:
    """``main(x, w, bias, planes, thresholds, dy)`` -> (y, ids, dx, dw, dbias), and ``dense(x, w, bias)`` -> y."""
    mod = training_module(layer, input_gradient, batch, backward_only, forward_only)
    target = target or cpu_target(layer.mcpu)
    return relax.VirtualMachine(build_module(mod, target), _device(target))


def _device(target: tvm.target.Target | None) -> tvm.runtime.Device:
    return tvm.cuda() if is_cuda(target) else tvm.cpu()


def training_module(
    layer: Layer, input_gradient: str, batch: int, backward_only: bool = False, forward_only: bool = False
) -> tvm.IRModule:
    """What ``_machine`` runs."""
    register_all()
    g, setting = layer.geometry, layer.setting
    S, L = g.segments(setting), g.vector_length(setting)
    dense = layer.rank < 4
    shapes = {
        "x": {2: [batch, g.C], 3: [batch, g.H, g.C], 4: [batch, g.H, g.W, g.C]}[layer.rank],
        "w": [g.C, g.M] if dense else [g.KH, g.KW, g.C, g.M],
        "bias": [g.M],
        "planes": [1, 1, 1] if setting.hash == "exact" else [S, L, setting.H],
        "thresholds": [1, 1] if setting.hash == "exact" else [S, setting.H],
    }
    shapes["dy"] = [*shapes["x"][:-1], g.M] if dense else [batch, g.OH, g.OW, g.M]
    variables = {name: relax.Var(name, tensor_type(shape)) for name, shape in shapes.items()}
    x, w, bias, planes, thresholds, dy = variables.values()
    bb = relax.BlockBuilder()
    with bb.function("main", list(variables.values())):
        call = ops.with_reuse(
            _dense_call(layer, x, w, bias),
            setting,
            planes,
            thresholds,
            training=True,
            input_gradient=input_gradient,
            backward_only=backward_only,
            forward_only=forward_only,
        )
        result = bb.emit(call)
        others = [bb.emit(relax.op.zeros(t.shape, t.dtype)) for t in result.ty.fields[1:]]
        gradients = reuse._gradient(result, call, relax.Tuple([dy, *others]), bb)
        y, ids = (bb.emit(relax.TupleGetItem(result, i)) for i in (0, 2))
        bb.emit_func_output(relax.Tuple([y, ids, *gradients[:3]]))
    x, w, bias = (relax.Var(name, tensor_type(shapes[name])) for name in ("x", "w", "bias"))
    with bb.function("dense", [x, w, bias]):
        bb.emit_func_output(bb.emit(_dense_call(layer, x, w, bias)))
    return bb.get()


def _dense_call(layer: Layer, x: relax.Var, w: relax.Var, bias: relax.Var) -> relax.Call:
    g = layer.geometry
    if layer.rank < 4:
        return ops.dense(x, w, bias, name="layer", activation=layer.activation)
    shape = {"strides": g.strides, "padding": g.padding, "dilation": g.dilation}
    return ops.conv2d(x, w, bias, name="layer", activation=layer.activation, **shape)


def run_dense(layer: Layer, tensors: Tensors, x: np.ndarray, target: tvm.target.Target | None = None) -> np.ndarray:
    """y of the dense layer, in four dimensions."""
    g, dense = layer.geometry, layer.rank < 4
    arrays = [
        x.reshape({2: (len(x), g.C), 3: (len(x), g.H, g.C), 4: x.shape}[layer.rank]),
        tensors.w.reshape(g.C, g.M) if dense else tensors.w,
        tensors.bias,
    ]
    machine, device = _machine(layer, "averaged", len(x), False, False, target), _device(target)
    y = machine["dense"](*(tvm.runtime.tensor(a, device) for a in arrays))
    return y.numpy().reshape(len(x), g.OH, g.OW, g.M)


def run(
    layer: Layer,
    tensors: Tensors,
    x: np.ndarray,
    dy: np.ndarray,
    input_gradient: str = "averaged",
    backward_only: bool = False,
    forward_only: bool = False,
    target: tvm.target.Target | None = None,
) -> tuple[np.ndarray, ...]:
    """y, ids and gradients of the kernels; x and dy in four dimensions. ``target``: None is this processor."""
    g, dense = layer.geometry, layer.rank < 4
    hashing = [tensors.planes, tensors.thresholds]
    if layer.setting.hash == "exact":
        hashing = [np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)]
    arrays = [
        x.reshape({2: (len(x), g.C), 3: (len(x), g.H, g.C), 4: x.shape}[layer.rank]),
        tensors.w.reshape(g.C, g.M) if dense else tensors.w,
        tensors.bias,
        *hashing,
        dy.reshape({2: (len(x), g.M), 3: (len(x), g.H, g.M), 4: dy.shape}[layer.rank]),
    ]
    machine = _machine(layer, input_gradient, len(x), backward_only, forward_only, target)
    found = machine["main"](*(tvm.runtime.tensor(a, _device(target)) for a in arrays))
    y, ids, dx, dw, dbias = (t.numpy() for t in found)
    return y.reshape(dy.shape), ids, dx.reshape(x.shape), dw.reshape(tensors.w.shape), dbias


def ids_of(layer: Layer, ids: np.ndarray, batch: int) -> np.ndarray:
    """The kernels' ids in the shape of the reference's."""
    g, setting = layer.geometry, layer.setting
    if setting.granularity != "pixel":
        return ids.reshape(units_of(batch, setting), g.segments(setting), -1)
    top, left, bottom, right = g.padding
    maps = ids.reshape(*ids.shape[:2], -1, g.H + top + bottom, g.W + left + right)
    return maps[..., top : top + g.H, left : left + g.W].transpose(0, 2, 1, 3, 4)


def check(
    layer: Layer,
    input_gradient: str = "averaged",
    x: np.ndarray | None = None,
    tensors: Tensors | None = None,
    batch: int = BATCH,
    backward_only: bool = False,
    target: tvm.target.Target | None = None,
) -> tuple[np.ndarray, ...]:
    """Run a layer and compare its gradients with the reference; returns what ``run`` does."""
    g, tensors = layer.geometry, tensors or sample_tensors(layer)
    x = sample_input(g, batch, seed=5) if x is None else x
    dy = np.random.default_rng(6).standard_normal((batch, g.OH, g.OW, g.M)).astype(np.float32)
    found = run(layer, tensors, x, dy, input_gradient, backward_only, target=target)
    y, ids, dx, dw, dbias = found
    dz = activation_gradient(y, dy, layer.activation)
    own = ids_of(layer, ids, batch)
    expected = reuse_conv2d_gradients(x, tensors.w, dz, g, layer.setting, own, input_gradient)
    close(dx, expected.x)
    close(dw, expected.w)
    close(dbias, expected.bias)
    return found
