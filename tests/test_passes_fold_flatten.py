"""The transpose before a flattened dense layer moves into the weights."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from relax_modules import TARGET, close, floats, operators
from tvm import relax, tirx

from adr_tvm import ops
from adr_tvm._tvm import tensor_type
from adr_tvm.build import build_module
from adr_tvm.passes.fold_flatten import FoldFlatten


def network(axes=(0, 3, 1, 2), again=False, shape=(3, 4, 5)):
    """dense(flatten(permute(x))); with ``again`` the permuted tensor has another reader."""
    x = relax.Var("x", tensor_type([tirx.Var("B", "int64"), *shape]))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            turned = builder.emit(relax.op.permute_dims(x, list(axes)))
            flat = builder.emit(relax.op.reshape(turned, relax.ShapeExpr([x.ty.shape[0], int(np.prod(shape))])))
            w, bias = relax.const(floats(int(np.prod(shape)), 6)), relax.const(floats(6))
            y = builder.emit(ops.dense(flat, w, bias, name="fc"))
            out = builder.emit_output(relax.Tuple([y, turned]) if again else y)
        builder.emit_func_output(out)
    return builder.get()


def run(mod, x):
    return relax.VirtualMachine(build_module(mod, TARGET), tvm.cpu())["main"](tvm.runtime.tensor(x))


def test_the_transpose_vanishes_and_values_stay():
    mod, x = network(), floats(2, 3, 4, 5)
    folded = FoldFlatten()(mod)
    assert operators(folded) == ["reshape", "adr.dense"]
    close(run(folded, x).numpy(), run(mod, x).numpy())


def test_another_reader_keeps_its_transpose():
    mod, x = network(again=True), floats(2, 3, 4, 5)
    folded = FoldFlatten()(mod)
    assert sorted(operators(folded)) == ["adr.dense", "permute_dims", "reshape"]
    for a, b in zip(run(folded, x), run(mod, x), strict=True):
        close(a.numpy(), b.numpy())


@pytest.mark.parametrize("axes", [(0, 2, 1, 3), (0, 1, 2, 3)])
def test_other_transposes_stay(axes):
    mod = network(axes)
    tvm.ir.assert_structural_equal(FoldFlatten()(mod), mod)
