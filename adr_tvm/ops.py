"""The Relax operators of this project, channels last.

- ``adr.conv2d(x, w, bias)``: dense convolution with its epilogue.
- ``adr.conv2d_add(x, w, bias, residual)``: the same, with a tensor added before the activation; made after planning.
- ``adr.dense(x, w, bias)``: dense layer with its epilogue.
- ``adr.grouped_conv2d(x, w, bias)``: grouped or depthwise convolution with its epilogue; never reuses.
- ``adr.reuse_conv2d(x, w, bias, planes, thresholds)`` and ``adr.reuse_dense(...)``: the same with reuse; they return
  ``(y, stats)``, stats int32 [units, 2] = clusters, 1 if the unit reused and 0 if it ran dense.

Attribute ``precision``, if there is one, names the data type that products are made in (``adr_tvm/precision.py``); x,
w, the residual and y are then of its storage type, all else is as below.

Shapes: x float32 [B, H, W, C] (dense: [B, K] or [B, T, K]); w float32 [KH, KW, C, M] (dense: [K, M]); bias float32 [M];
planes float32 [S, L, H], thresholds float32 [S, H] (``exact``: [1, 1, 1] and [1, 1], not read). A bit whose threshold
is +inf is off, so one compiled operator serves any H up to its attribute. Semantics: ``docs/algorithm.md``.

In training (attribute ``training`` = 1) the reuse operators also return what their gradient needs, the cluster ids and
the centroids as the clustering kernels write them; attribute ``input_gradient`` says how x gets its gradient
(``adr_tvm/gradients/reuse.py``). Where clusters persist over batches (attribute ``stream_slots`` > 0) they take further
the table of centroids and the number of the step (``adr_tvm/stream_table.py``), and return the number of clusters taken
over, int32 [S], and the table, which is the one given, changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from adr_tvm._tvm import dict_attrs, static_shape, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import PRECISIONS, Precision
from adr_tvm.settings import INPUT_GRADIENTS, ReuseSetting
from adr_tvm.stream_table import StreamTable, check_streaming

CONV2D, DENSE = "relax.adr.conv2d", "relax.adr.dense"
CONV2D_ADD = "relax.adr.conv2d_add"
GROUPED_CONV2D = "relax.adr.grouped_conv2d"
REUSE_CONV2D, REUSE_DENSE = "relax.adr.reuse_conv2d", "relax.adr.reuse_dense"
DENSE_OPS, REUSE_OPS = (CONV2D, DENSE), (REUSE_CONV2D, REUSE_DENSE)


def attributes(call: relax.Call) -> dict[str, Any]:
    """Attributes of a call of ours, by name."""
    names = call.attrs.keys()
    return {name: call.attrs[name] for name in names}


def layer_name(call: relax.Call) -> str:
    """Key of the layer: its ONNX node name, or what the pass that made the call chose."""
    return str(call.attrs["name"])


def activation_of(call: relax.Call) -> Activation:
    """Activation in the attributes of a call of ours."""
    a = call.attrs
    return Activation(str(a["activation"]), float(a["low"]), float(a["high"]), float(a["slope"]))  # type: ignore[arg-type]


def setting_of(call: relax.Call) -> ReuseSetting:
    """Reuse setting in the attributes of a reuse call."""
    a = call.attrs
    limit = int(a["max_clusters"])
    return ReuseSetting(
        granularity=str(a["granularity"]),  # type: ignore[arg-type]
        L=int(a["L"]),
        H=int(a["H"]),
        hash=str(a["hash"]),  # type: ignore[arg-type]
        scope=str(a["scope"]),  # type: ignore[arg-type]
        gain=bool(int(a["gain"])),
        max_clusters=None if limit < 0 else limit,
        table=str(a["table"]),  # type: ignore[arg-type]
    )


def precision_of(call: relax.Call) -> Precision | None:
    """Data type that a call's products are made in; None: fp32."""
    name = attributes(call).get("precision")
    return None if name is None else PRECISIONS[str(name)]


def geometry_of(call: relax.Call) -> ConvGeometry:
    """Geometry of a call of ours; a dense layer is a 1x1 convolution over [B, T, 1, K], of a grouped one it is that of
    one group.

    Raises:
        ValueError: a dimension other than the batch is symbolic.
    """
    x, w = static_shape(call.args[0]), static_shape(call.args[1])
    if None in x[1:] or None in w:
        raise ValueError(f"{layer_name(call)}: only the batch may be symbolic, input {x}, weight {w}")
    if call.op.name in (DENSE, REUSE_DENSE):
        return ConvGeometry(H=x[1] if len(x) == 3 else 1, W=1, C=x[-1], KH=1, KW=1, M=w[1])
    a = call.attrs
    ints: dict[str, Any] = {k: tuple(int(v) for v in a[k]) for k in ("strides", "padding", "dilation")}
    return ConvGeometry(H=x[1], W=x[2], C=w[2], KH=w[0], KW=w[1], M=w[3] // groups_of(call), **ints)


def groups_of(call: relax.Call) -> int:
    """Groups of a convolution of ours."""
    return int(call.attrs["groups"]) if call.op.name == GROUPED_CONV2D else 1


def activation_attrs(activation: Activation) -> dict[str, Any]:
    """An activation as operator attributes."""
    return {
        "activation": activation.kind,
        "low": float(activation.low),
        "high": float(activation.high),
        "slope": float(activation.slope),
    }


def setting_attrs(setting: ReuseSetting) -> dict[str, Any]:
    """A reuse setting as operator attributes."""
    return {
        "granularity": setting.granularity,
        "L": setting.L,
        "H": setting.H,
        "hash": setting.hash,
        "scope": setting.scope,
        "gain": int(setting.gain),
        "max_clusters": -1 if setting.max_clusters is None else setting.max_clusters,
        "table": setting.table,
    }


_SETTING_ATTRS = frozenset(
    [*setting_attrs(ReuseSetting()), "training", "input_gradient", "backward_only", "forward_only", "stream_slots"]
)


def conv2d(
    x: relax.Expr,
    w: relax.Expr,
    bias: relax.Expr,
    *,
    name: str,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: Activation | None = None,
) -> relax.Call:
    """A call of ``adr.conv2d``, or of ``adr.grouped_conv2d``; padding is (top, left, bottom, right)."""
    attrs = dict_attrs(
        name=name,
        strides=list(strides),
        padding=list(padding),
        dilation=list(dilation),
        **({} if groups == 1 else {"groups": groups}),
        **activation_attrs(activation or Activation()),
    )
    return relax.Call(tvm.ir.Op.get(CONV2D if groups == 1 else GROUPED_CONV2D), [x, w, bias], attrs)


def dense(
    x: relax.Expr, w: relax.Expr, bias: relax.Expr, *, name: str, activation: Activation | None = None
) -> relax.Call:
    """A call of ``adr.dense``."""
    return relax.Call(
        tvm.ir.Op.get(DENSE),
        [x, w, bias],
        dict_attrs(name=name, **activation_attrs(activation or Activation())),
    )


Tensor: TypeAlias = "np.ndarray | relax.Expr"


def with_reuse(
    call: relax.Call,
    setting: ReuseSetting,
    planes: Tensor | None,
    thresholds: Tensor | None,
    *,
    training: bool = False,
    input_gradient: str = "averaged",
    backward_only: bool = False,
    forward_only: bool = False,
    stream: Sequence[relax.Expr] = (),
) -> relax.Call:
    """The reuse form of a call of ``adr.conv2d`` or ``adr.dense``.

    Args:
        call: the dense call.
        setting: how to reuse.
        planes: float32 [S, L, H], an array or an expression; None for ``exact``.
        thresholds: float32 [S, H], likewise.
        training: whether the call also returns ids and centroids, and has a gradient.
        input_gradient: one of ``settings.INPUT_GRADIENTS``.
        backward_only: y is that of the dense layer, only the gradients reuse; only in training.
        forward_only: the gradients are those of the dense layer; only in training.
        stream: the table's parts (``StreamTable.parts``) and the step int32 [1]; only in training.

    Raises:
        ValueError: planes, thresholds or table do not fit the layer, or a layer of this setting cannot be trained.
    """
    geometry, name = geometry_of(call), layer_name(call)
    if setting.hash == "exact":
        planes, thresholds = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
    else:
        expected = (geometry.segments(setting), geometry.vector_length(setting), setting.H)
        if planes is None or thresholds is None:
            raise ValueError(f"{name}: hash={setting.hash} needs planes and thresholds")
        found = _shape(planes), _shape(thresholds)
        if found != (expected, (expected[0], expected[2])):
            raise ValueError(f"{name}: planes {found[0]} and thresholds {found[1]} do not fit [S, L, H] = {expected}")
    if training:
        check_trainable(name, setting, input_gradient)
    elif backward_only or forward_only:
        raise ValueError(f"{name}: reuse in one of the passes alone is for training")
    op = REUSE_DENSE if call.op.name == DENSE else REUSE_CONV2D
    attrs = attributes(call) | setting_attrs(setting) | {"training": int(training), "input_gradient": input_gradient}
    attrs |= {"backward_only": int(backward_only), "forward_only": int(forward_only)}
    attrs |= {"stream_slots": _stream_slots(name, geometry, setting, stream)}
    tensors = [t if isinstance(t, relax.Expr) else relax.const(np.asarray(t, np.float32)) for t in (planes, thresholds)]
    return relax.Call(tvm.ir.Op.get(op), [*call.args, *tensors, *stream], dict_attrs(**attrs))


def _stream_slots(name: str, geometry: ConvGeometry, setting: ReuseSetting, stream: Sequence[relax.Expr]) -> int:
    """Places of a segment in the table that a call is given; 0 without one."""
    if not stream:
        return 0
    slots = static_shape(stream[1])[1]
    if slots is None:
        raise ValueError(f"{name}: the table of centroids has a symbolic shape")
    check_streaming(setting, slots)
    expected = [shape for shape, _ in StreamTable.of(geometry, setting, slots).parts.values()]
    found = [static_shape(part) for part in stream]
    if found != [*expected, (1,)]:
        raise ValueError(f"{name}: a table of centroids {found} does not fit {expected}")
    return slots


def _shape(tensor: Tensor) -> tuple[int | None, ...]:
    return static_shape(tensor) if isinstance(tensor, relax.Expr) else tensor.shape


def check_trainable(name: str, setting: ReuseSetting, input_gradient: str) -> None:
    """See that a layer has a gradient.

    Raises:
        ValueError: it has none; says which option is to blame.
    """
    if input_gradient not in INPUT_GRADIENTS:
        raise ValueError(f"{name}: input_gradient is {input_gradient!r}, expected one of {', '.join(INPUT_GRADIENTS)}")
    if setting.gain:
        raise ValueError(f"{name}: gain has no gradient; train without it")
    if setting.max_clusters is not None:
        raise ValueError(f"{name}: max_clusters={setting.max_clusters} may run units dense, which has no gradient")
    if setting.lossless:
        raise ValueError(f"{name}: hash=exact with granularity=row has no gradient; train the layer dense")


def without_reuse(call: relax.Call) -> relax.Call:
    """The dense form of a call of ``adr.reuse_conv2d`` or ``adr.reuse_dense``."""
    attrs = {name: value for name, value in attributes(call).items() if name not in _SETTING_ATTRS}
    op = DENSE if call.op.name == REUSE_DENSE else CONV2D
    return relax.Call(tvm.ir.Op.get(op), list(call.args[:3]), dict_attrs(**attrs))


def output_type(call: relax.Call) -> relax.TensorType:
    """Type of the dense result of a call of ours."""
    x = call.args[0].ty
    geometry = geometry_of(call)
    dtype = str(x.dtype)
    if call.op.name in (DENSE, REUSE_DENSE):
        return tensor_type([*list(x.shape)[:-1], geometry.M], dtype)
    return tensor_type([x.shape[0], geometry.OH, geometry.OW, geometry.M * groups_of(call)], dtype)


def _reuse_type(call: relax.Call) -> relax.TupleType:
    units = 1 if setting_of(call).scope == "batch" else call.args[0].ty.shape[0]
    saved = saved_types(call) if is_training(call) else []
    if is_streaming(call):
        saved += [tensor_type([geometry_of(call).segments(setting_of(call))], "int32"), *(t.ty for t in call.args[5:8])]
    return relax.TupleType([output_type(call), tensor_type([units, 2], "int32"), *saved])


def is_training(call: relax.Call) -> bool:
    """Whether a reuse call returns what its gradient needs."""
    return bool(int(call.attrs["training"]))


def is_backward_only(call: relax.Call) -> bool:
    """Whether the result of a reuse call is the dense one."""
    return bool(int(call.attrs["backward_only"]))


def is_streaming(call: relax.Call) -> bool:
    """Whether the clusters of a reuse call persist over batches."""
    return int(call.attrs["stream_slots"]) > 0


def saved_types(call: relax.Call) -> list[relax.TensorType]:
    """Types of the ids and centroids of a reuse call, as the clustering kernels write them."""
    from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
    from adr_tvm.schedules.neuron_vectors import vector_source

    g, setting = geometry_of(call), setting_of(call)
    U, G = units(setting, call.args[0].ty.shape[0])
    if setting.granularity == "row":
        N = G * g.rows
        return [tensor_type([U, N], "int32"), tensor_type([U, capacity(setting, N), g.K])]
    source = vector_source(g, setting)
    rows = capacity(setting, G * source.per_image) + SPARE_CENTROIDS
    return [
        tensor_type([U, source.segments, G * source.map_size], "int32"),
        tensor_type([U, source.segments, rows, source.Lp]),
    ]


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    from adr_tvm.passes.lowering import lower_call

    return lower_call(bb, call, tvm.target.Target.current(allow_none=True))


def register_operator(
    name: str,
    arguments: tuple[str, ...],
    infer: Callable[[relax.Call], relax.Type],
    legalize: Callable[[relax.BlockBuilder, relax.Call], relax.Expr] = _legalize,
) -> None:
    """Make an operator known to Relax; once per process, later calls change nothing.

    Args:
        name: with the ``relax.`` prefix.
        arguments: names of its tensors.
        infer: type of a call.
        legalize: its lowered form; ``LegalizeOps`` calls it in the scope of the target.
    """
    if name in tvm.ir.Op.list_op_names():
        return
    tvm.ir._ffi_api.RegisterOp(name, f"{name}; see the operators of adr_tvm")
    op = tvm.ir.Op.get(name)
    op.set_num_inputs(len(arguments))
    for argument in arguments:
        op.add_argument(argument, "Tensor", "")
    op.set_attr("FPurity", True)
    op.set_attr("FInferType", tvm_ffi.convert(lambda call, _ctx: infer(call)))
    op.set_attr("FLegalize", tvm_ffi.convert(legalize))


def register() -> None:
    """Register the operators; importing this module does it once per process."""
    for name in (*DENSE_OPS, GROUPED_CONV2D):
        register_operator(name, ("data", "weight", "bias"), output_type)
    register_operator(CONV2D_ADD, ("data", "weight", "bias", "residual"), output_type)
    for name in REUSE_OPS:
        register_operator(name, ("data", "weight", "bias", "planes", "thresholds"), _reuse_type)


register()
