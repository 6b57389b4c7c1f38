"""Which layers of a compiled network have a tuned schedule, for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import relax_functions, static_shape
from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import Precision
from adr_tvm.report.results import LayerResult, NetworkResult
from adr_tvm.schedules.cuda.tuned_tile import gemm_shape
from adr_tvm.schedules.tuned import KernelShape
from adr_tvm.tuning.database import TuningDatabase


def with_tuning(
    result: NetworkResult, mod: tvm.IRModule, database: TuningDatabase, precision: Precision | None = None
) -> NetworkResult:
    """The result with what tuning brought to each layer.

    Args:
        mod: the canonical module.
        database: the schedules that the network was built with.
        precision: data type that it runs in; None: fp32.
    """
    gpu = database.machine.is_gpu
    kernels = _dense_kernels(mod, partial(gemm_shape, precision=precision) if gpu else partial(KernelShape, "conv2d"))
    layers = [_with_speedup(layer, kernels.get(layer.layer), database) for layer in result.layers]
    count = sum(layer.tuned_speedup is not None for layer in layers)
    note = f"{count} of {len(layers)} layer{'' if len(layers) == 1 else 's'} run tuned schedules"
    where = "" if database.path is None else f" (from {database.path.name})"
    if gpu:
        where += f", found on {database.machine.cpu}; tiles of the others are those of an estimate"
    return replace(result, layers=layers, notes=[*result.notes, f"{note}{where}."])


def _with_speedup(layer: LayerResult, dense: KernelShape | None, database: TuningDatabase) -> LayerResult:
    """A layer with what tuning brought to the kernel that it runs; ``dense``: the one without reuse."""
    kernel = dense
    if dense is not None and layer.setting is not None:
        setting = replace(layer.setting, max_clusters=None)
        if database.machine.is_gpu:
            kernel = replace(dense, setting=setting) if setting.granularity == "row" else None
        elif not setting.lossless:  # such layers are made with the schedule of the dense kernel
            kernel = replace(dense, kind="reuse", setting=setting)
    record = None if kernel is None else database.find(kernel)
    if record is None or record.schedule is None:
        return layer
    return replace(layer, tuned_speedup=record.speedup)


def _dense_kernels(
    mod: tvm.IRModule, shape_of: Callable[[ConvGeometry, int | None], KernelShape]
) -> dict[str, KernelShape]:
    """What the dense kernel of each convolution and dense layer is looked up by."""
    found = {}

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name in ops.DENSE_OPS:
            batch = static_shape(expr.args[0])[0]
            found[ops.layer_name(expr)] = shape_of(ops.geometry_of(expr), batch)

    for _, func in relax_functions(mod):
        relax.analysis.post_order_visit(func, visit)
    return found
