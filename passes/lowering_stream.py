"""Clusters that persist over batches: the call between clustering and products that takes over earlier centroids."""

from __future__ import annotations

from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.schedules.stream_centroids import stream_centroids
from adr_tvm.stream_table import StreamTable


def take_over(
    bb: relax.BlockBuilder, call: relax.Call, keys: relax.Expr, counts: relax.Expr, centroids: relax.Expr
) -> list[relax.Expr]:
    """Centroids, changed in place; clusters taken over, int32 [S]; and the parts of the table, changed in place.

    Args:
        bb: builder that takes the bindings and the kernel.
        call: a reuse call with a table of centroids.
        keys: int32 [1, S, capacity], as clustering found them.
        counts: int32 [1, S, 2], likewise.
        centroids: float32 [1, S, rows, Lp], likewise.

    Raises:
        ValueError: the batch is symbolic.
    """
    setting, slots = ops.setting_of(call), int(call.attrs["stream_slots"])
    table = StreamTable.of(ops.geometry_of(call), setting, slots)
    rows, padded = static_shape(centroids)[2:]
    capacity = static_shape(keys)[2]
    if rows is None or capacity is None or padded is None:
        raise ValueError(f"{ops.layer_name(call)}: clusters that persist need a batch of known size")
    kernel = bb.add_func(stream_centroids(table, setting.H, rows, capacity, padded), "adr_stream_centroids")
    *parts, now = call.args[5:]
    changed = [centroids, *parts]
    found = bb.emit(
        relax.op.call_tir_inplace(
            kernel,
            [keys, counts, now, *changed],
            [*range(3, 3 + len(changed)), -1],
            [*(tensor.ty for tensor in changed), tensor_type([table.segments], "int32")],
        )
    )
    centroids, *parts, streamed = (bb.emit(relax.TupleGetItem(found, i)) for i in range(len(changed) + 1))
    return [centroids, streamed, *parts]
