"""The network with the time before and after some of its layers as further outputs, to measure them where they are.

Code on a board cannot be watched from here, so it reads its own clock (``schedules/stamp.py``). A stamp reads the
tensor that the layer takes, or makes, so that it stays behind what makes that, and keeps it from being fused with its
reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import relax, tirx

from adr_tvm import ops
from adr_tvm._tvm import is_op, tensor_type
from adr_tvm.schedules.stamp import STAMP, stamp_behind

ENTRY = "main_stamps"


@tvm.transform.module_pass(opt_level=0, name="StampLayers")
class StampLayers:
    """Replace all Relax functions by an entry ``main_stamps``, which returns (what ``main`` returns, (stamps...)).

    There are two stamps, int64 [2], of each layer, in the order of ``layers``.

    Args:
        layers: names.
        kernel: what makes the stamp of a number, from 1 on.
    """

    def __init__(self, layers: Sequence[str], kernel: Callable[[int], tirx.PrimFunc] = stamp_behind) -> None:
        self.layers, self.kernel = list(layers), kernel

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Make the entry."""
        main = relax.utils.copy_with_new_vars(mod["main"]).with_attr("global_symbol", ENTRY)
        main = relax.transform.ToNonDataflow()(tvm.IRModule({ENTRY: main}))[ENTRY]
        builder = relax.BlockBuilder()
        stamps: dict[str, list[relax.Var]] = {}
        bindings: list[relax.Binding] = []

        def stamp(layer: str, tensor: relax.Expr) -> None:
            type_ = tensor_type([STAMP], "int64")
            number = 2 * self.layers.index(layer) + 1 + len(stamps.get(layer, ()))
            kernel = builder.add_func(self.kernel(number), "adr_stamp")
            var = relax.Var("stamp", type_)
            bindings.append(relax.VarBinding(var, relax.call_tir(kernel, [tensor], type_)))
            stamps.setdefault(layer, []).append(var)

        for binding in (b for block in main.body.blocks for b in block.bindings):
            value = binding.value
            layer = ops.layer_name(value) if any(is_op(value, op) for op in ops.DENSE_OPS + ops.REUSE_OPS) else None
            if layer not in self.layers:
                bindings.append(binding)
                continue
            stamp(layer, value.args[0])
            bindings.append(binding)
            made = binding.var
            if isinstance(made.ty, relax.TupleType):
                made = relax.Var("made", made.ty.fields[0])
                bindings.append(relax.VarBinding(made, relax.TupleGetItem(binding.var, 0)))
            stamp(layer, made)
        extra = relax.Tuple([var for layer in self.layers for var in stamps[layer]])
        result = relax.Tuple([main.body.body, extra])
        type_ = relax.TupleType([main.ret_ty, relax.TupleType([var.ty for var in extra.fields])])
        body = relax.SeqExpr([relax.BindingBlock(bindings)], result)
        entry = relax.Function(main.params, body, type_, main.is_pure, main.attrs)
        builder.update_func(builder.add_func(entry, ENTRY), entry)
        return relax.transform.ConvertToDataflow()(relax.transform.Normalize()(builder.get()))
