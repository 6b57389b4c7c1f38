"""Instance normalisation as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

from adr_tvm._tvm import is_op, static_shape, tensor_type
from adr_tvm.passes.norm_patterns import Chains, InstanceNormChain
from adr_tvm.schedules.instance_norm import NormShape, instance_norm
from adr_tvm.schedules.register_tile import Isa

Visit = Callable[[relax.Expr], relax.Expr]


def lower_instance_norm(
    bb: relax.BlockBuilder, chain: InstanceNormChain, chains: Chains, visit: Visit, isa: Isa
) -> relax.Expr:
    """The normalisation of a chain; of an image whose pixels a transposed convolution has yet to put in place, both.

    Args:
        visit: gives the expressions of the chain as they are in the new function.
    """
    batch, H, W, C = chain.x.ty.shape
    x, shape = chain.x, NormShape(int(H), int(W), int(C))
    phases = _before_pixel_shuffle(x, chains)
    if phases is not None:
        x, rows, cols, steps = phases
        shape = NormShape(rows, cols, int(C), steps)
    flat = relax.ShapeExpr([batch, shape.pixels * shape.C])
    args = [bb.emit(relax.op.reshape(visit(x), flat)), relax.const(chain.scale), relax.const(chain.shift)]
    if chain.residual is not None:
        args.append(bb.emit(relax.op.reshape(visit(chain.residual), flat)))
    kernel = instance_norm(shape, chain.epsilon, chain.activation, chain.residual is not None, isa)
    out = tensor_type(flat.values)
    y = bb.emit(relax.call_tir(bb.add_func(kernel, "adr_instance_norm"), args, out))
    return relax.op.reshape(y, relax.ShapeExpr([batch, H, W, C]))


def _before_pixel_shuffle(x: relax.Expr, chains: Chains) -> tuple[relax.Expr, int, int, tuple[int, int]] | None:
    """(source, rows, cols, phases) where x is what ``ConvTransposeToConv`` makes of [B, rows, cols, py, px, C]."""
    merged = chains.value(x)
    moved: Any = chains.value(merged.args[0]) if is_op(merged, "relax.reshape") else None
    if not is_op(moved, "relax.permute_dims") or [int(a) for a in moved.attrs.axes or ()] != [0, 1, 3, 2, 4, 5]:
        return None
    shape, target = static_shape(moved.args[0]), static_shape(x)
    _, rows, cols, py, px, C = shape
    if None in shape[1:] or target[1:] != (rows * py, cols * px, C) or px == 1:
        return None
    return moved.args[0], rows, cols, (py, px)
