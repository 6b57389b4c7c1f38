"""Give every PrimFunc that is not bound to blocks and threads yet the schedule of one of TVM's rules (dlight).

A thread makes an output where that takes a short sum, as in pooling: TVM's rules for reductions would start a block for
each, most of whose threads had nothing to add. Long sums, such as means over an image, get such a block.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, dlight

SHORT_SUM = 128  # terms
REDUCTION = 2  # value of IterVar.iter_type


@tvm.transform.module_pass(opt_level=0, name="ScheduleGpu")
class ScheduleGpu:
    """See the module; in the scope of the target. Kernels of our own are bound when they are made."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Schedule every PrimFunc; the last rule takes whatever the others do not."""
        result = mod.clone()
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and "tirx.is_scheduled" not in (func.attrs or {}):
                result.update_func(gv, _scheduled(func))
        return result


def _scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    gpu = dlight.gpu
    products, sums = (gpu.Matmul(), gpu.GEMV()), (gpu.Reduction(), gpu.GeneralReduction(), gpu.Transpose())

    def applied(*rules: dlight.ScheduleRule) -> tirx.PrimFunc:
        name = "main"
        return dlight.ApplyDefaultSchedule(*rules, gpu.Fallback())(tvm.IRModule({name: func}))[name]

    if _longest_sum(func) <= SHORT_SUM:
        return applied()
    try:
        return applied(*products, *sums)
    except AssertionError:  # that is how the rule for matrix-vector products declines a sum over images and pixels
        return applied(*sums)


def _longest_sum(func: tirx.PrimFunc) -> float:
    """Terms of the longest reduction of a function; infinite where it depends on a symbolic dimension."""
    sch = Schedule(tvm.IRModule({"main": func}))
    longest = 1.0
    for block in sch.get_child_blocks(sch.get_sblock("root", "main")):
        extents = [v.dom.extent for v in sch.get(block).iter_vars if int(v.iter_type) == REDUCTION]
        terms = [float(int(e)) if isinstance(e, tirx.IntImm) else math.inf for e in extents]
        longest = max(longest, math.prod(terms))
    return longest
