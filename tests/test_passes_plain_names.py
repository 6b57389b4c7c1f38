"""PlainNames: odd names of parameters and symbolic dimensions become names of C, all others stay."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from adr_tvm._tvm import tensor_type
from adr_tvm.passes.plain_names import PlainNames


def renamed(names, dimension):
    N = tirx.Var(dimension, "int64")
    params = [relax.Var(name, tensor_type([N, 4])) for name in names]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(relax.op.add(params[0], params[-1]))
        builder.emit_func_output(out)
    before = builder.get()
    return before, PlainNames()(before)


def test_odd_names():
    _, after = renamed(["gpu_0/data_0", "gpu_0_data_0", "0x"], "batch size")
    main = after["main"]
    relax.analysis.well_formed(after)  # raises
    assert [p.name for p in main.params] == ["gpu_0_data_0_", "gpu_0_data_0", "_0x"]
    assert str(main.params[0].ty.shape[0].name) == "batch_size"
    assert len(relax.analysis.free_vars(main)) == 0


def test_plain_names_stay():
    before, after = renamed(["x", "y1"], "N")
    tvm.ir.assert_structural_equal(before, after)
    assert [p.name for p in after["main"].params] == ["x", "y1"]
