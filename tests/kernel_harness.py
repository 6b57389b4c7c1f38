"""Runs single operators for tests: kernel by kernel, with every intermediate visible, or through the Relax VM.

``run`` lowers one call and then plays the lowered function binding by binding. Each kernel gets its buffers between
margins: around inputs they hold NaN, so that a stray read shows in the result; outputs start as NaN (int32: POISON),
so that nothing can rely on what the memory held; and all margins must come back as they were. ``run_vm`` compiles
the same function as a user's model would be and returns what the VM does. Equal kernels are compiled once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.script.parser.core.parser import ScriptMacro

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, is_op, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.passes.lower_operators import LowerOperators
from adr_tvm.reference import LINEAR, ReuseResult, reuse_conv2d, reuse_conv2d_given_ids, rounding_band, same_ids
from adr_tvm.reference_ids import number
from adr_tvm.schedules.conv_schedule import ConvSchedule, schedule_for_tile
from adr_tvm.schedules.register_tile import RegisterTile, gemm_tile
from adr_tvm.schedules.tuned import conv_schedule
from adr_tvm.settings import ReuseSetting

POISON = -(2**30)
MARGIN = 256  # bytes on each side of a buffer
ALIGNMENT = 64
# Sums of up to some 1000 products of order 1 / sqrt(K) in fp32: about sqrt(1000) roundings of 6e-8, with room.
TOLERANCE = 1e-5
HAS_FMA = any(tvm.target.codegen.target_has_features(name, cpu_target()) for name in ("fma", "neon"))

GEOMETRIES = {
    "3x3": ConvGeometry(7, 6, 20, 3, 3, 10, padding=(1, 1, 1, 1)),
    "1x1": ConvGeometry(5, 7, 19, 1, 1, 33),
    "1x1_stride2": ConvGeometry(7, 8, 16, 1, 1, 6, strides=(2, 2)),
    "stride_over_kernel": ConvGeometry(11, 8, 9, 2, 3, 5, strides=(3, 4), padding=(0, 1, 1, 0)),
    "5x5_stride2": ConvGeometry(12, 11, 3, 5, 5, 17, strides=(2, 2), padding=(2, 2, 2, 2)),
    "7x7_stride2": ConvGeometry(15, 15, 3, 7, 7, 8, strides=(2, 2), padding=(3, 3, 3, 3)),
    "11x11_stride4": ConvGeometry(31, 27, 3, 11, 11, 4, strides=(4, 4), padding=(2, 2, 2, 2)),
    "asymmetric": ConvGeometry(6, 9, 5, 3, 2, 12, strides=(1, 2), padding=(0, 2, 3, 1)),
    "dilation2": ConvGeometry(9, 8, 6, 3, 3, 16, padding=(2, 1, 2, 3), dilation=(2, 2)),
    "wide_padding": ConvGeometry(3, 3, 4, 2, 2, 3, padding=(3, 3, 3, 3)),
    "one_row": ConvGeometry(3, 3, 8, 3, 3, 7),
}


def _find_parser_def(macro: ScriptMacro):
    """What TVM's does, without reading the source of all frames: 0.1 of the 0.3 s that a kernel took to parse."""
    frame = sys._getframe()
    while frame and macro.parser_object_name not in frame.f_globals:
        frame = frame.f_back
    return frame.f_globals[macro.parser_object_name]


ScriptMacro._find_parser_def = _find_parser_def


@dataclass(frozen=True)
class Layer:
    """One operator.

    Attributes:
        geometry: its shapes.
        setting: how it reuses, None for dense.
        batch: images where the function knows them, None for a symbolic batch.
        tile: register tile in place of the target's own.
        schedule: of a dense convolution, in place of the target's own.
        mcpu: processor to compile for in place of this one.
        rank: rank of X: 4 is ``conv2d``, 2 and 3 are ``dense`` over [B, K] and [B, T, K].
    """

    geometry: ConvGeometry
    setting: ReuseSetting | None = None
    activation: Activation = LINEAR
    batch: int | None = None
    tile: RegisterTile | None = None
    schedule: ConvSchedule | None = None
    mcpu: str | None = None
    rank: int = 4


@dataclass(frozen=True, eq=False)
class Tensors:
    """Weights [KH, KW, C, M], bias [M], planes [S, L, H], thresholds [S, H] of a layer and their centre mu [S, L]."""

    w: np.ndarray
    bias: np.ndarray
    planes: np.ndarray | None = None
    thresholds: np.ndarray | None = None
    mu: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """What a layer returned: y [B, OH, OW, M], stats [U, 2] (None: dense) and the outputs of each kernel."""

    y: np.ndarray
    stats: np.ndarray | None
    kernels: dict[str, list[np.ndarray]] = field(default_factory=dict)


def sample_input(geometry: ConvGeometry, batch: int, seed: int = 0, zeros: float = 0.25) -> np.ndarray:
    """X [B, H, W, C] like activations: few kinds of pixels with noise, exact repeats among them, some all zero."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((12, geometry.C))
    x = kinds[rng.integers(12, size=(batch, geometry.H, geometry.W))]
    noisy = rng.random(x.shape[:3]) < 0.5
    x[noisy] += 0.2 * rng.standard_normal(x[noisy].shape)
    x[rng.random(x.shape[:3]) < zeros] = 0
    return x.astype(np.float32)


def sample_tensors(layer: Layer, seed: int = 0) -> Tensors:
    """Weights of order 1 / sqrt(K), and planes fitted to a sample of inputs (``learned``: made up)."""
    geometry, setting = layer.geometry, layer.setting
    rng = np.random.default_rng(seed + 1)
    w = rng.standard_normal((geometry.KH, geometry.KW, geometry.C, geometry.M)) / np.sqrt(geometry.K)
    tensors = Tensors(w.astype(np.float32), rng.standard_normal(geometry.M).astype(np.float32))
    if setting is None or setting.hash == "exact":
        return tensors
    S, L = geometry.segments(setting), geometry.vector_length(setting)
    if setting.hash == "learned":
        planes, thresholds = rng.standard_normal((S, L, setting.H)), 0.3 * rng.standard_normal((S, setting.H))
        return replace(
            tensors,
            planes=planes.astype(np.float32),
            thresholds=thresholds.astype(np.float32),
            mu=np.zeros((S, L), np.float32),
        )
    statistics = VectorStatistics(S, L, seed)
    statistics.update(neuron_vectors(sample_input(geometry, 2, seed), geometry, setting))
    made = make_planes(setting.hash, setting.H, statistics, seed)
    assert made is not None
    return replace(tensors, planes=made.planes, thresholds=made.thresholds, mu=made.mu)


def input_shape(layer: Layer, batch) -> list:
    g = layer.geometry
    return {2: [batch, g.C], 3: [batch, g.H, g.C], 4: [batch, g.H, g.W, g.C]}[layer.rank]


def layer_module(layer: Layer, tensors: Tensors, parameters: bool) -> tvm.IRModule:
    """``main(x)``, or with ``parameters`` ``main(x, w, bias[, planes, thresholds])``, calling one operator."""
    g, setting = layer.geometry, layer.setting
    batch = tirx.Var("B", "int64") if layer.batch is None else layer.batch
    x = relax.Var("x", tensor_type(input_shape(layer, batch)))
    arrays = _arguments(layer, tensors)
    variables = [relax.Var(f"p{i}", tensor_type(a.shape)) for i, a in enumerate(arrays)] if parameters else []
    w, bias, *hashing = variables or [relax.const(a) for a in arrays]
    bb = relax.BlockBuilder()
    with bb.function("main", [x, *variables]):
        if layer.rank == 4:
            call = ops.conv2d(
                x,
                w,
                bias,
                name="layer",
                activation=layer.activation,
                strides=g.strides,
                padding=g.padding,
                dilation=g.dilation,
            )
        else:
            call = ops.dense(x, w, bias, name="layer", activation=layer.activation)
        if setting is not None:
            call = ops.with_reuse(call, setting, tensors.planes, tensors.thresholds)
            if hashing:
                call = relax.Call(call.op, [*call.args[:3], *hashing], call.attrs)
        bb.emit_func_output(bb.emit(call))
    return bb.get()


def _module(layer: Layer, tensors: Tensors, parameters: bool) -> tvm.IRModule:
    with _forced(layer):
        return LowerOperators(cpu_target(layer.mcpu))(layer_module(layer, tensors, parameters))


@contextmanager
def _forced(layer: Layer) -> Iterator[None]:
    """The kernels get what the layer says, if it says something."""

    def schedule(target: tvm.target.Target, geometry: ConvGeometry, batch: int | None) -> ConvSchedule:
        if layer.schedule is not None:
            return layer.schedule
        if layer.tile is not None:
            return schedule_for_tile(layer.tile, geometry, geometry.rows * (batch or 1))
        return conv_schedule(target, geometry, batch)

    with (
        mock.patch("adr_tvm.passes.lowering.gemm_tile", lambda isa, M: layer.tile or gemm_tile(isa, M)),
        mock.patch("adr_tvm.passes.lowering_dense.conv_schedule", schedule),
        mock.patch("adr_tvm.passes.lowering_lossless.conv_schedule", schedule),
    ):
        yield


def _arguments(layer: Layer, tensors: Tensors) -> list[np.ndarray]:
    w = tensors.w if layer.rank == 4 else tensors.w.reshape(layer.geometry.C, layer.geometry.M)
    hashing = [a for a in (tensors.planes, tensors.thresholds) if a is not None]
    return [w, tensors.bias, *hashing]


_lowered: dict[Layer, tuple[Tensors, tvm.IRModule]] = {}


def _lower(layer: Layer, tensors: Tensors) -> tvm.IRModule:
    """The lowered module; the last one of each layer is kept."""
    known = _lowered.get(layer)
    if known is None or known[0] is not tensors:
        _lowered[layer] = tensors, _module(layer, tensors, parameters=False)
    return _lowered[layer][1]


_compiled: dict[tuple[tvm_ffi.StructuralKey, str | None], tvm.runtime.Executable] = {}


@functools.cache
def _kernels(layer: Layer) -> dict[str, tvm.runtime.Executable]:
    """The kernels of a layer, compiled; they do not depend on the tensors, and layers share equal ones."""
    found = {}
    for gv, func in _lowered[layer][1].functions_items():
        if isinstance(func, tirx.PrimFunc):
            key = tvm_ffi.StructuralKey(func), layer.mcpu
            if key not in _compiled:
                module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
                _compiled[key] = tvm.compile(module, cpu_target(layer.mcpu))
            found[gv.name_hint] = _compiled[key]
    return found


class Guarded:
    """An array between margins."""

    def __init__(self, shape: tuple[int, ...], dtype: str, value: np.ndarray | None = None):
        poison = np.array(np.nan if "float" in dtype else POISON).astype(dtype)
        items = int(np.prod(shape))
        skip = MARGIN // poison.itemsize
        memory = np.empty(items + 2 * skip + ALIGNMENT, dtype)
        shift = -memory.ctypes.data % ALIGNMENT // poison.itemsize
        self.memory = memory[shift : shift + items + 2 * skip]
        self.memory[:] = poison
        self._clean = self.memory[:skip].tobytes()
        self.array = self.memory[skip : skip + items].reshape(shape)
        if value is not None:
            self.array[:] = value

    @property
    def tensor(self) -> tvm.runtime.Tensor:
        return tvm.runtime.from_dlpack(self.array)

    def intact(self) -> bool:
        """Whether the margins are as they were."""
        size = len(self._clean)
        data = self.memory.view(np.uint8)
        return data[:size].tobytes() == self._clean == data[-size:].tobytes()


class Player:
    """Plays the bindings of a lowered function on NumPy arrays, with compiled kernels by name."""

    memory = Guarded

    def __init__(self, executables: dict[str, tvm.runtime.Executable], func: relax.Function, x: np.ndarray):
        self.executables = executables
        parameter = func.params[0]
        self.values: dict[int, object] = {hash(parameter): x}
        self.analyzer = tvm.sym.Analyzer()
        if isinstance(parameter.ty.shape[0], tirx.Var):
            self.analyzer.bind(parameter.ty.shape[0], tirx.IntImm("int64", len(x)))
        self.kernels: dict[str, list[np.ndarray]] = {}
        for block in func.body.blocks:
            for binding in block.bindings:
                self.values[hash(binding.var)] = self.value(binding.value)
        self.result = self.value(func.body.body)

    def _shape(self, ty: relax.TensorType) -> tuple[int, ...]:
        return tuple(int(self.analyzer.simplify(d)) for d in ty.shape)

    def value(self, expr: relax.Expr):
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(e) for e in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value)[expr.index]
        if is_op(expr, "relax.reshape"):
            return self.value(expr.args[0]).reshape(self._shape(expr.ty))
        if is_op(expr, "relax.astype"):
            return self.value(expr.args[0]).astype(str(expr.ty.dtype))
        if is_op(expr, "relax.call_tir") or is_op(expr, "relax.call_tir_inplace"):
            return self._call(expr)
        return self.values[hash(expr)]

    def _call(self, call: relax.Call):
        name = call.args[0].name_hint
        inputs = [self.memory(a.shape, str(a.dtype), a) for a in map(self.value, call.args[1].fields)]
        types = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
        inplace = call.attrs.inplace_indices if call.op.name == "relax.call_tir_inplace" else [-1] * len(types)
        fresh = [int(i) < 0 for i in inplace]
        outputs = [
            self.memory(self._shape(t), str(t.dtype)) if new else inputs[int(i)]
            for i, t, new in zip(inplace, types, fresh, strict=True)
        ]
        arguments = inputs + [out for out, new in zip(outputs, fresh, strict=True) if new]
        self.executables[name]["main"](*(a.tensor for a in arguments))
        assert all(a.intact() for a in arguments), f"{name} wrote outside of its buffers"
        arrays = [o.array for o in outputs]
        self.kernels[name.removeprefix("adr_")] = arrays
        return tuple(arrays) if isinstance(call.ty, relax.TupleType) else arrays[0]


def as_run(layer: Layer, batch: int, result, kernels: dict[str, list[np.ndarray]]) -> Run:
    y, stats = result if layer.setting is not None else (result, None)
    g = layer.geometry
    return Run(y.reshape(batch, g.OH, g.OW, g.M), stats, kernels)


def run(layer: Layer, tensors: Tensors, x: np.ndarray) -> Run:
    """Run a layer kernel by kernel on x [B, H, W, C]."""
    mod = _lower(layer, tensors)
    player = Player(_kernels(layer), mod["main"], x.reshape(input_shape(layer, len(x))))
    return as_run(layer, len(x), player.result, player.kernels)


@functools.cache
def _vm(layer: Layer, tensors: Tensors, parameters: bool) -> relax.VirtualMachine:
    target = cpu_target(layer.mcpu)
    return relax.VirtualMachine(tvm.compile(_module(layer, tensors, parameters), target), tvm.cpu())


def run_vm(layer: Layer, tensors: Tensors, x: np.ndarray, parameters: bool = False) -> Run:
    """Run a layer as a compiled Relax function, its tensors constants or (``parameters``) arguments."""
    arrays = [x.reshape(input_shape(layer, len(x)))] + (_arguments(layer, tensors) if parameters else [])
    result = _vm(layer, tensors, parameters)["main"](*map(tvm.runtime.tensor, arrays))
    result = result.numpy() if layer.setting is None else tuple(r.numpy() for r in result)
    return as_run(layer, len(x), result, {})


def _as_ids(layer: Layer, found: np.ndarray) -> np.ndarray:
    """Id maps (or gains) [U, S, _] of the kernels, ``row`` apart, in the shape of ``ReuseResult.ids``."""
    g = layer.geometry
    if layer.setting.granularity == "segment":
        return found
    top, left, bottom, right = g.padding
    maps = found.reshape(*found.shape[:2], -1, g.H + top + bottom, g.W + left + right)
    return maps[..., top : top + g.H, left : left + g.W].transpose(0, 2, 1, 3, 4)


def kernel_ids(layer: Layer, x: np.ndarray, result: Run) -> np.ndarray:
    """The ids that the kernels found, in the shape of ``ReuseResult.ids``.

    ``row`` + ``exact`` numbers rows that hold NaN or Inf too; its ids are known only for units that reuse, the others
    get 0.
    """
    g, setting = layer.geometry, layer.setting
    assert setting is not None
    found = result.kernels[f"{setting.granularity}_cluster"]
    U = len(result.stats)
    if setting.granularity != "row":
        return _as_ids(layer, found[0])
    if setting.hash != "exact":
        return found[0][:, None]
    finite = np.isfinite(neuron_vectors(x, g, setting)).all(axis=(1, 2)).reshape(U, -1)
    ids = np.zeros(found[0].shape, np.int32)
    for u in np.flatnonzero(result.stats[:, 1]):
        numbers, first, sizes = np.unique(found[0][u], return_index=True, return_counts=True)
        assert numbers.tolist() == list(range(len(numbers))) and (np.diff(first) > 0).all()
        np.testing.assert_array_equal(found[1][u, : len(first)], first)
        assert (sizes[found[0][u, ~finite[u]]] == 1).all()
        ids[u] = -2
        ids[u, finite[u]] = number(found[0][u, finite[u]])
    return ids[:, None]


def close(
    found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE, slack: np.ndarray | float = 0.0
) -> None:
    """Equal up to ``tolerance`` relative to the largest finite |expected|, plus ``slack``; NaN and Inf in the same
    places.
    """
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    nearest = np.clip(found, expected - slack, expected + slack) if np.any(slack) else expected
    np.testing.assert_allclose(found, nearest, rtol=0, atol=tolerance * max(scale, 1e-30), equal_nan=True)


def check(
    layer: Layer, tensors: Tensors, x: np.ndarray, runner: Callable[[Layer, Tensors, np.ndarray], Run] = run
) -> tuple[Run, ReuseResult]:
    """Run a reuse layer and compare ids, counts, centroids, gains and values with the reference.

    Ids must be the reference's outside the rounding band; the rest is what follows from the kernel's own ids.
    """
    g, setting = layer.geometry, layer.setting
    assert setting is not None
    result = runner(layer, tensors, x)
    expected = reuse_conv2d(
        x, tensors.w, tensors.bias, g, setting, tensors.planes, tensors.thresholds, layer.activation
    )
    matched = setting.lossless
    unseen = matched & (result.stats[:, 1] == 0)
    ids = kernel_ids(layer, x, result)
    ids = np.where(unseen.reshape(-1, *[1] * (ids.ndim - 1)), expected.ids, ids)
    if setting.hash == "exact":
        np.testing.assert_array_equal(ids, expected.ids)
    else:
        band = rounding_band(x, g, setting, tensors.planes, tensors.mu, tensors.thresholds)
        assert same_ids(expected.ids, ids, band, setting)
        assert band.mean() < 0.01
    given = reuse_conv2d_given_ids(x, tensors.w, tensors.bias, g, setting, ids, layer.activation)
    seen = ~unseen
    np.testing.assert_array_equal(result.stats[seen, 0], given.clusters.sum(axis=1)[seen])
    np.testing.assert_array_equal(result.stats[seen, 1], given.reused[seen])
    close(result.y, given.y, slack=given.slack)
    if not matched:
        _check_clusters(layer, x, result, given)
    return result, given


def _check_clusters(layer: Layer, x: np.ndarray, result: Run, given: ReuseResult) -> None:
    g, setting = layer.geometry, layer.setting
    found = result.kernels[f"{setting.granularity}_cluster"]
    if setting.granularity == "row":
        for u in np.flatnonzero(result.stats[:, 1]):
            expected = given.centroids[u][0]
            by_tap = expected.reshape(-1, g.C, g.KH * g.KW).transpose(0, 2, 1).reshape(expected.shape)
            close(found[4][u, : len(expected)], by_tap)
        return
    _, gains, centroids, counts, *_ = found
    L = g.vector_length(setting)
    for u, s in np.ndindex(*given.clusters.shape):
        expected = given.centroids[u][s]
        close(centroids[u, s, : len(expected), :L], expected)
        assert counts[u, s].tolist() == [len(expected), given.clusters[u, s] - len(expected)]
    if setting.gain:
        shared = given.ids >= 0
        close(_as_ids(layer, gains)[shared], given.gains[shared])
