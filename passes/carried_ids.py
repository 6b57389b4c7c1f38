"""Lossless layers hand each other compact activations: a table of the distinct pixels, and their ids.

The first lossless layer numbers its rows by their data, computes one of each content and leaves the products in a
table. From there on nothing looks at data or copies products to equal pixels: a 1x1 convolution and an operator of
single pixels work on the table as on a shorter activation; a larger window, a convolution's or a pooling's, is known by
the ids it names; and of concatenated activations one is finer than the others: of a 1x1 and a 3x3 convolution side by
side, the latter's. The sum of two activations is known by the pairs of their ids. What is not understood here gets the
ordinary activation, expanded where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tvm
from tvm import relax

from adr_tvm._tvm import constant, is_op, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients.lrn import LRN
from adr_tvm.schedules.cluster import units
from adr_tvm.schedules.combine_rows import combine_rows, one_to_one
from adr_tvm.schedules.compact_rows import concat_distinct, expand_rows, max_pool_distinct
from adr_tvm.schedules.gemm_distinct import Layer, Source, gemm_distinct
from adr_tvm.schedules.match_rows import match_rows
from adr_tvm.schedules.pair_rows import PAIRED, pair_rows, paired
from adr_tvm.settings import ReuseSetting

PER_PIXEL = {
    "relax.nn.relu",
    "relax.nn.leakyrelu",
    "relax.nn.relu6",
    "relax.clip",
    "relax.sigmoid",
    "relax.tanh",
    "relax.abs",
    "relax.negative",
    "relax.sqrt",
    "relax.exp",
    LRN,
}
DISTINCT_ROWS = 0.85  # share of distinct windows or sums above which an operator hands on an ordinary activation
BY_CHANNEL = {"relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.maximum", "relax.minimum"}


@dataclass(frozen=True)
class Ids:
    """Which pixels of an activation are equal.

    Attributes:
        ids: int32 [U, G * H * W], the row of the table that holds a pixel.
        reps: int32 [U, G * H * W], the first pixel of each row.
        stats: int32 [U, 2]: rows, and 1; a unit whose second entry is 0 has no ids, its table is the activation.
        scope: of the units.
        coarser: ids that these refine: pixels with one id here have one there.
    """

    ids: relax.Var
    reps: relax.Var
    stats: relax.Var
    scope: str
    coarser: tuple[relax.Var, ...] = ()

    def same_as(self, other: Ids) -> bool:
        """Whether the tables of both have the same rows."""
        return self.ids.same_as(other.ids)

    def refines(self, other: Ids) -> bool:
        """Whether these tell apart all that the others do."""
        return self.same_as(other) or any(ids.same_as(other.ids) for ids in self.coarser)


class CarriedIds:
    """The compact activations of one lowering, by the variable of their table.

    Args:
        bb: builder of the lowering; it takes the kernels and what they are called with.
    """

    def __init__(self, bb: relax.BlockBuilder):
        self.bb = bb
        # The variable is kept beside its ids: identities of freed variables are given out again.
        self._known: dict[int, tuple[relax.Var, Ids]] = {}
        self._expanded: dict[int, relax.Var] = {}

    def of(self, expr: relax.Expr) -> Ids | None:
        """The ids of an activation that is compact."""
        entry = self._known.get(hash(self._source(expr)))
        return None if entry is None else entry[1]

    def expanded(self, expr: relax.Expr) -> relax.Expr:
        """The ordinary form of an activation, or of the fields of a tuple; anything else as it is."""
        if isinstance(expr, relax.Tuple):
            fields = [self.expanded(field) for field in expr.fields]
            changed = any(not a.same_as(b) for a, b in zip(fields, expr.fields, strict=True))
            return relax.Tuple(fields) if changed else expr
        found = self.of(expr) if isinstance(expr, relax.Var) else None
        if found is None:
            return expr
        key = hash(self._source(expr))
        if key not in self._expanded:
            _, *image, channels = static_shape(expr)
            kernel = expand_rows(tuple(image), channels, found.scope)
            self._expanded[key] = self._call("expand", kernel, [expr, found.ids, found.stats], expr.ty)
        return self._expanded[key]

    def with_ordinary_arguments(self, call: relax.Call) -> relax.Call:
        """The call with its activations in their ordinary form."""
        args = [self.expanded(arg) for arg in call.args]
        if all(a.same_as(b) for a, b in zip(args, call.args, strict=True)):
            return call
        return relax.Call(call.op, args, call.attrs, list(call.ty_args), call.span)

    def convolved(
        self,
        layer: Layer,
        setting: ReuseSetting,
        x: relax.Expr,
        weights: tuple[relax.Expr, relax.Expr],
        out: relax.TensorType,
    ) -> tuple[relax.Var, relax.Var]:
        """Emit a lossless layer.

        Args:
            x: float32 [B, H, W, C], compact or not.
            weights: packed weights and padded bias.
            out: type of the result.

        Returns:
            The result, compact, and its stats int32 [U, 2].
        """
        geometry, known = layer.geometry, self.of(x)
        if known is not None and known.scope != setting.scope:
            x, known = self.expanded(x), None
        source: Source = "ids"
        if known is None:
            source, given = (
                "pixels",
                self._numbered(geometry, setting, [x], "row_cluster", match_rows(geometry, setting)),
            )
        elif one_to_one(geometry):
            source, given = "rows", known
        else:
            given = self._combined(geometry, setting, x, known)
        pixels = given if known is None else known
        kernel = gemm_distinct(layer, setting.scope, source)
        args = [x, pixels.ids, pixels.stats, *weights, given.reps, given.stats]
        return self._record(self._call("row_gemm", kernel, args, out), given), given.stats

    def follow(self, call: relax.Call) -> relax.Expr | None:
        """The form of an operator on compact activations; None where it has none."""
        if is_op(call, "relax.concat"):
            return self._joined(call)
        found = [self.of(arg) if isinstance(arg, relax.Var) else None for arg in call.args]
        first = next((ids for ids in found if ids is not None), None)
        if first is None:
            return None
        if is_op(call, "relax.nn.max_pool2d"):
            return self._pooled(call, first)
        if is_op(call, "relax.reshape"):
            return self._reshaped(call, first)
        if call.op.name in PER_PIXEL or (call.op.name in BY_CHANNEL and self._by_channel(call, found)):
            return self._record(self.bb.emit(call), first)
        return self._paired(call, found) if call.op.name in PAIRED else None

    def reshaped(self, x: relax.Expr, shape: Sequence[relax.PrimExpr]) -> relax.Var:
        """Emit another arrangement of the same pixels: the same batch, and the same channels in each pixel."""
        var, found = self.bb.emit(relax.op.reshape(x, relax.ShapeExpr(list(shape)))), self.of(x)
        return var if found is None else self._record(var, found)

    def _reshaped(self, call: relax.Call, found: Ids) -> relax.Expr | None:
        before, after = static_shape(call.args[0]), static_shape(self.bb.normalize(call))
        if len(after) < 3 or before[-1] != after[-1] or None in after[1:] or before[0] != after[0]:
            return None
        return self._record(self.bb.emit(call), found) if math.prod(before[1:]) == math.prod(after[1:]) else None

    def _by_channel(self, call: relax.Call, found: Sequence[Ids | None]) -> bool:
        """Whether a binary operator treats pixels alone: two activations with the same ids, or one and a constant."""
        shapes = [static_shape(arg) for arg in call.args]
        if all(ids is not None for ids in found):
            return shapes[0] == shapes[1] and found[0].same_as(found[1])  # type: ignore[union-attr, arg-type]
        other = 1 if found[0] is not None else 0
        value = constant(call.args[other])
        channels = shapes[1 - other][-1]
        return (
            value is not None and value.size == (value.shape[-1] if value.ndim else 1) and value.size in (1, channels)
        )

    def _paired(self, call: relax.Call, found: Sequence[Ids | None]) -> relax.Expr | None:
        """The operator on two compact activations with different ids."""
        shapes, (a, b) = [static_shape(arg) for arg in call.args], found
        if a is None or b is None or a.scope != b.scope or shapes[0] != shapes[1] or len(shapes[0]) != 4:
            return None
        _, H, W, C = shapes[0]
        geometry = ConvGeometry(H, W, C, 1, 1, C)
        setting = _setting(geometry, a.scope)
        args = [[arg, ids.ids, ids.stats] for arg, ids in zip(call.args, (a, b), strict=True)]
        numbered = self._numbered(geometry, setting, args[0] + args[1][1:], "row_pair", pair_rows(H, W, C, setting))
        given = replace(numbered, coarser=(a.ids, b.ids, *a.coarser, *b.coarser))
        kernel = paired(H, W, C, a.scope, call.op.name)
        out = self.bb.normalize(call).ty
        return self._record(self._call("row_paired", kernel, [*args[0], *args[1], given.reps, given.stats], out), given)

    def _pooled(self, call: relax.Call, found: Ids) -> relax.Expr | None:
        x, y, a = static_shape(call.args[0]), static_shape(self.bb.normalize(call)), call.attrs
        if str(a.layout) != "NHWC" or len(x) != 4:
            return None
        ints = {k: tuple(int(v) for v in getattr(a, k)) for k in ("pool_size", "strides", "padding", "dilation")}
        geometry = ConvGeometry(
            H=x[1],
            W=x[2],
            C=x[3],
            KH=ints["pool_size"][0],
            KW=ints["pool_size"][1],
            M=x[3],
            strides=(ints["strides"][0], ints["strides"][1]),
            padding=(ints["padding"][0], ints["padding"][1], ints["padding"][2], ints["padding"][3]),
            dilation=(ints["dilation"][0], ints["dilation"][1]),
        )
        if (y[1], y[2]) != (geometry.OH, geometry.OW):
            return None  # ceil mode: windows that reach over the edge
        given = self._combined(geometry, _setting(geometry, found.scope), call.args[0], found)
        args = [call.args[0], found.ids, found.stats, given.reps, given.stats]
        out = self._call("row_max_pool", max_pool_distinct(geometry, found.scope), args, call.ty)
        return self._record(out, given)

    def _joined(self, call: relax.Call) -> relax.Expr | None:
        tensors = call.args[0]
        if not isinstance(tensors, relax.Tuple):
            return None
        found = [self.of(field) for field in tensors.fields]
        finest = _finest(found)
        call = self.bb.normalize(call)
        shapes = [static_shape(field) for field in tensors.fields]
        if finest is None or int(call.attrs.axis) % len(shapes[0]) != len(shapes[0]) - 1:
            return None
        image, channels = tuple(shapes[0][1:-1]), tuple(shape[-1] for shape in shapes)
        aligned = tuple(finest.same_as(ids) for ids in found if ids is not None)
        args = [finest.reps, finest.stats]
        for field, ids in zip(tensors.fields, found, strict=True):
            assert ids is not None
            args += [field, ids.ids, ids.stats]
        kernel = concat_distinct(image, channels, aligned, finest.scope)
        return self._record(self._call("row_concat", kernel, args, call.ty), finest)

    def _combined(self, geometry: ConvGeometry, setting: ReuseSetting, x: relax.Expr, known: Ids) -> Ids:
        kernel = combine_rows(geometry, setting)
        found = self._numbered(geometry, setting, [x, known.ids, known.stats], "row_combine", kernel)
        return replace(found, coarser=(known.ids, *known.coarser)) if _keeps_pixels(geometry) else found

    def _numbered(
        self,
        geometry: ConvGeometry,
        setting: ReuseSetting,
        args: list[relax.Expr],
        name: str,
        kernel: tvm.tirx.PrimFunc,
    ) -> Ids:
        U, G = units(setting, args[0].ty.shape[0])
        rows, stats = tensor_type([U, G * geometry.rows], "int32"), tensor_type([U, 2], "int32")
        found = self._call(name, kernel, args, [rows, rows, stats])
        ids, reps, counts = (self.bb.emit(relax.TupleGetItem(found, i)) for i in range(3))
        return Ids(ids, reps, counts, setting.scope)

    def _call(self, name: str, kernel: tvm.tirx.PrimFunc, args: list[relax.Expr], out: object) -> relax.Var:
        return self.bb.emit(relax.call_tir(self.bb.add_func(kernel, f"adr_{name}"), args, out))

    def _record(self, var: relax.Var, ids: Ids) -> relax.Var:
        self._known[hash(var)] = (var, ids)
        return var

    def _source(self, expr: relax.Expr) -> relax.Expr:
        """The variable behind aliases and tuples."""
        while isinstance(expr, relax.Var):
            value = self.bb.lookup_binding(expr)
            if isinstance(value, relax.TupleGetItem):
                fields = value.tuple_value
                fields = self.bb.lookup_binding(fields) if isinstance(fields, relax.Var) else fields
                value = fields.fields[value.index] if isinstance(fields, relax.Tuple) else None
            if not isinstance(value, relax.Var):
                return expr
            expr = value
        return expr


def _setting(geometry: ConvGeometry, scope: str) -> ReuseSetting:
    """How operators without a setting of their own go on."""
    limit = int(DISTINCT_ROWS * geometry.rows) if scope == "image" else None
    return ReuseSetting("row", L=1, H=1, hash="exact", scope=scope, max_clusters=limit)  # type: ignore[arg-type]


def _keeps_pixels(g: ConvGeometry) -> bool:
    """Whether every window holds the pixel that its output pixel lies at."""
    (top, left, _, _), (DH, DW) = g.padding, g.dilation
    centred = top % DH == 0 and left % DW == 0 and top // DH < g.KH and left // DW < g.KW
    return g.strides == (1, 1) and (g.OH, g.OW) == (g.H, g.W) and centred


def _finest(found: Sequence[Ids | None]) -> Ids | None:
    for candidate in found:
        if candidate is not None and all(
            other is not None and other.scope == candidate.scope and candidate.refines(other) for other in found
        ):
            return candidate
    return None


def returned_calls(func: relax.Function) -> set[int]:
    """Identities of the calls whose activations a function returns, itself or in tuples."""
    values = {hash(b.var): b.value for block in func.body.blocks for b in block.bindings}
    found: set[int] = set()

    def visit(expr: relax.Expr, index: int | None = None) -> None:
        if isinstance(expr, relax.Var):
            if hash(expr) in values:
                visit(values[hash(expr)], index)
        elif isinstance(expr, relax.Tuple):
            for i, field in enumerate(expr.fields):
                if index in (None, i):
                    visit(field)
        elif isinstance(expr, relax.TupleGetItem):
            visit(expr.tuple_value, expr.index)
        elif isinstance(expr, relax.Call) and index in (None, 0):
            found.add(hash(expr))

    visit(func.body.body)
    return found
