"""Give every PrimFunc that still has schedulable blocks a CPU loop schedule (``schedules/cpu_loops.py``)."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from adr_tvm.schedules.cpu_loops import schedule_cpu_loops


@tvm.transform.module_pass(opt_level=0, name="ScheduleLoops")
class ScheduleLoops:
    """See the module; kernels of our own have no schedulable blocks and stay as they are."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Schedule every PrimFunc."""
        updated = {}
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and isinstance(func.body, s_tir.SBlockRealize):
                updated[gv] = schedule_cpu_loops(func)
        result = mod.clone()
        for gv, func in updated.items():
            result.update_func(gv, func)
        return result
