"""Ids found once and carried: which pixels of an activation have equal bits, known without looking at it.

A lossless layer copies the product of one row to all rows with the same content, so its leaders (``lead``) tell equal
pixels of its output apart, and the next layer needs neither hash nor check of the data. The map goes on through
elementwise operators, max pooling (windows over names, like a convolution's) and concatenation of maps of which one is
finer than the others: of a 1x1 and a 3x3 convolution side by side, the latter's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax

from adr_tvm._tvm import is_op, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import units
from adr_tvm.schedules.combine_rows import combine_rows, one_to_one
from adr_tvm.settings import ReuseSetting

ELEMENTWISE = {"relax.nn.relu", "relax.nn.leakyrelu", "relax.clip", "relax.sigmoid", "relax.tanh", "relax.nn.relu6"}


@dataclass(frozen=True)
class PixelMap:
    """Leaders of an activation's pixels.

    Attributes:
        lead: int32 [U, G * H * W].
        stats: int32 [U, 2]; a unit whose second entry is 0 has no map.
        scope: what the leaders are found within.
        coarser: maps that this one refines: pixels with one leader here have one there.
    """

    lead: relax.Var
    stats: relax.Var
    scope: str
    coarser: tuple[relax.Var, ...] = ()

    def refines(self, other: PixelMap) -> bool:
        """Whether this map tells apart all that the other does."""
        return self.lead.same_as(other.lead) or any(lead.same_as(other.lead) for lead in self.coarser)


class CarriedIds:
    """The maps of one lowering, by the variable whose pixels they are about.

    Args:
        bb: builder of the lowering; maps that a consumer needs are emitted when it asks.
    """

    def __init__(self, bb: relax.BlockBuilder):
        self.bb = bb
        # The variable is kept beside its map: identities of freed variables are given out again.
        self._maps: dict[int, tuple[relax.Var, Callable[[], PixelMap | None]]] = {}

    def record(self, var: relax.Expr, found: PixelMap) -> None:
        """The pixels of ``var`` have this map."""
        self._maps[hash(var)] = (var, lambda: found)

    def of(self, expr: relax.Expr, scope: str) -> PixelMap | None:
        """The map of an activation, if it is known for this scope."""
        entry = self._maps.get(hash(self._source(expr)))
        found = None if entry is None else entry[1]()
        return found if found is not None and found.scope == scope else None

    def follow(self, call: relax.Call) -> relax.Expr:
        """``call`` (elementwise, pooling or anything else); bound, if a map goes on through it."""
        if not call.args or not isinstance(call.args[0], relax.Var):
            return call
        entry = self._maps.get(hash(self._source(call.args[0])))
        if entry is None:
            return call
        if call.op.name in ELEMENTWISE:
            return self._bound(call, entry[1])
        if is_op(call, "relax.nn.max_pool2d") and str(call.attrs.layout) == "NHWC":
            return self._bound(call, lambda: self._pooled(call, entry[1]()))
        return call

    def join(self, parts: Sequence[relax.Expr], result: relax.Expr) -> relax.Expr:
        """The concatenation ``result`` of ``parts`` along the channels; bound, if a map goes on through it."""
        entries = [self._maps.get(hash(self._source(part))) for part in parts]
        if any(entry is None for entry in entries):
            return result
        return self._bound(result, lambda: _finest([entry[1]() for entry in entries if entry is not None]))

    def rows_of(
        self, geometry: ConvGeometry, setting: ReuseSetting, x: relax.Expr, pixels: PixelMap
    ) -> tuple[PixelMap, relax.Var, PixelMap]:
        """Emit the rows of a convolution or pooling from the map of its input's pixels.

        Returns:
            (rows by leaders, rows to compute int32 [U, N], map of the output's pixels to carry on). The last is the
            input's own map where every window is one pixel, else the first.
        """
        U, G = units(setting, x.ty.shape[0])
        rows, stats = tensor_type([U, G * geometry.rows], "int32"), tensor_type([U, 2], "int32")
        kernel = self.bb.add_func(combine_rows(geometry, setting), "adr_row_combine")
        found = self.bb.emit(relax.call_tir(kernel, [x, pixels.lead, pixels.stats], [rows, rows, stats]))
        lead, reps, counts = (self.bb.emit(relax.TupleGetItem(found, i)) for i in range(3))
        coarser = (pixels.lead, *pixels.coarser) if _keeps_pixels(geometry) else ()
        own = PixelMap(lead, counts, pixels.scope, coarser)
        return own, reps, pixels if one_to_one(geometry) else own

    def _pooled(self, call: relax.Call, pixels: PixelMap | None) -> PixelMap | None:
        if pixels is None:
            return None
        x, y, a = static_shape(call.args[0]), static_shape(call), call.attrs
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
        setting = ReuseSetting(granularity="row", hash="exact", L=1, H=1, scope=pixels.scope)  # type: ignore[arg-type]
        return self.rows_of(geometry, setting, call.args[0], pixels)[2]

    def _bound(self, expr: relax.Expr, make: Callable[[], PixelMap | None]) -> relax.Var:
        var = self.bb.emit(expr)
        cached: list[PixelMap | None] = []

        def once() -> PixelMap | None:
            if not cached:
                cached.append(make())
            return cached[0]

        self._maps[hash(var)] = (var, once)
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


def _keeps_pixels(g: ConvGeometry) -> bool:
    """Whether every window holds the pixel that its output pixel lies at."""
    (top, left, _, _), (DH, DW) = g.padding, g.dilation
    centred = top % DH == 0 and left % DW == 0 and top // DH < g.KH and left // DW < g.KW
    return g.strides == (1, 1) and (g.OH, g.OW) == (g.H, g.W) and centred


def _finest(maps: Sequence[PixelMap | None]) -> PixelMap | None:
    for candidate in maps:
        if candidate is not None and all(other is not None and candidate.refines(other) for other in maps):
            return candidate
    return None
