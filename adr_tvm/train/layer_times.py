"""Time of a training step of one layer, forward and gradients, dense and with reuse, on data it sees.

The two take turns in one process; the medians over turns are what counts. The gradients are those of a step: without
the input's where nothing before the layer is trained.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import device_of
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import register_all
from adr_tvm.passes.fuse_epilogue_gradient import FuseEpilogueGradient
from adr_tvm.passes.skip_zeros import SkipZeros
from adr_tvm.stream_table import StreamTable
from adr_tvm.train.controller import LayerTimes
from adr_tvm.train.stage import LayerReuse
from adr_tvm.train.state import tensor_of

TURNS = 7


def gradient_module(
    call: relax.Call, reuse: LayerReuse | None, batch: int, input_gradient: bool, skip_zeros: bool = False
) -> tvm.IRModule:
    """``main(x, w, bias, dy[, planes, thresholds[, table and step]]) -> (y, dw, dbias[, dx])`` of one layer.

    Args:
        call: the dense call of ``adr.conv2d`` or ``adr.dense``.
        reuse: how it reuses; None: dense.
        batch: images.
        input_gradient: whether dx is wanted.
        skip_zeros: as in the training step.
    """
    register_all()
    geometry = ops.geometry_of(call)
    shape = [batch, *[int(dim) for dim in list(call.args[0].ty.shape)[1:]]]
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    w, bias = (relax.Var(name, arg.ty) for name, arg in zip(("w", "bias"), call.args[1:3], strict=True))
    output = [batch, *[int(dim) for dim in list(call.ty.shape)[1:]]]
    dy = relax.Var("dy", relax.TensorType(output, "float32"))
    parameters, forward = [x, w, bias, dy], relax.Call(call.op, [x, w, bias], call.attrs)
    if reuse is not None:
        S, L, H = geometry.segments(reuse.setting), geometry.vector_length(reuse.setting), reuse.setting.H
        planes = relax.Var("planes", relax.TensorType([S, L, H], "float32"))
        thresholds = relax.Var("thresholds", relax.TensorType([S, H], "float32"))
        parameters += [planes, thresholds]
        kept = _stream(geometry, reuse).items()
        stream = [relax.Var(name, relax.TensorType(list(dims), dtype)) for name, (dims, dtype) in kept]
        parameters += stream
        forward = ops.with_reuse(
            forward,
            reuse.setting,
            planes,
            thresholds,
            training=True,
            input_gradient=reuse.input_gradient,
            backward_only=reuse.backward_only,
            forward_only=reuse.forward_only,
            stream=stream,
        )
    builder = relax.BlockBuilder()
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit(forward)
            y, given = result, dy
            if reuse is not None:
                y = builder.emit(relax.TupleGetItem(result, 0))
                others = [relax.op.zeros(relax.ShapeExpr(list(t.shape)), t.dtype) for t in result.ty.fields[1:]]
                given = relax.Tuple([dy, *others])
            gradients = forward.op.get_attr("FPrimalGradient")(result, forward, given, builder)
            wanted = [*gradients[1:3], *(gradients[:1] if input_gradient else [])]
            returned = builder.emit_output(relax.Tuple([y, *[builder.emit(g) for g in wanted]]))
        builder.emit_func_output(returned)
    mod = relax.transform.DeadCodeElimination()(builder.get())
    if not input_gradient:
        mod = FuseEpilogueGradient()(mod)
    return SkipZeros()(mod) if skip_zeros else mod


def _stream(geometry: ConvGeometry, reuse: LayerReuse) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of the table of centroids and of the number of the step, where clusters persist."""
    if not reuse.stream:
        return {}
    return StreamTable.of(geometry, reuse.setting, reuse.slots).parts | {"now": ((1,), "int32")}


def time_layer(
    call: relax.Call,
    reuse: LayerReuse,
    data: tuple[np.ndarray, ...],
    planes: tuple[np.ndarray, np.ndarray],
    target: tvm.target.Target,
    input_gradient: bool,
    skip_zeros: bool,
) -> LayerTimes:
    """Seconds of a layer's part in a training step.

    Args:
        call: the dense call.
        data: float32: what the layer sees [B, H, W, C], its weights and bias, and the gradient of its output.
        planes: float32 [S, L, H] and thresholds [S, H].
        skip_zeros: as in the training step.
    """
    (x, *others), device = data, device_of(target)
    shape = (len(x), *[int(dim) for dim in list(call.args[0].ty.shape)[1:]])
    dense = [tensor_of(each, device) for each in (x.reshape(shape), *others)]
    table = {name: np.zeros(*each) for name, each in _stream(ops.geometry_of(call), reuse).items()}
    if table:
        table["now"][:] = 1  # the first turn fills the table, those that count find all clusters in it
    tables = [tensor_of(part, device) for part in (*planes, *table.values())]
    runs: list[Callable[[], object]] = []
    for each, arguments in ((None, dense), (reuse, [*dense, *tables])):
        library = build_module(gradient_module(call, each, len(x), input_gradient, skip_zeros), target)
        main = relax.VirtualMachine(library, device)["main"]
        runs.append(functools.partial(main, *arguments))
    times: list[list[float]] = [[], []]
    for turn in range(-1, TURNS):
        for run, kept in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            device.sync()
            if turn >= 0:
                kept.append(time.perf_counter() - start)
    return LayerTimes(*(float(np.median(each)) for each in times))
