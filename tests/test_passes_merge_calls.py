"""Kernel calls merged into one: same bytes as one by one, whatever leaves the run; the arena; the weights apart."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from relax_modules import TARGET, floats
from tvm import relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R

from adr_tvm.build import build_module
from adr_tvm.passes import pipeline
from adr_tvm.passes.arena import ALIGNMENT, Request, plan_arena
from adr_tvm.passes.weights import Weights

SCALE = relax.const(floats(6))
SHIFT = relax.const(floats(6, seed=1))
BLACK_BOX = "adr.test.black_box"


@tvm_ffi.register_global_func(BLACK_BOX, override=True)
def black_box(x, out):
    """A kernel that is no PrimFunc."""
    out.copyfrom(np.asarray(x.numpy()) + np.float32(1))


def network(finish):
    """``main(x [N, 2, 6])``; ``finish(bb, x, a, b)`` returns what it returns of two tensors of the run."""
    n = tirx.Var("N", "int64")
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([n, 2, 6], "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            a = bb.emit(relax.op.nn.softmax(relax.op.multiply(x, SCALE), axis=-1))
            flat = bb.emit(relax.op.reshape(a, relax.ShapeExpr([n, 12])))
            b = bb.emit(relax.op.nn.softmax(relax.op.exp(flat), axis=-1))
            out = bb.emit_output(finish(bb, x, a, b))
        bb.emit_func_output(out)
    return bb.get()


def reshaped(bb, tensor, *shape):
    return bb.emit(relax.op.reshape(tensor, relax.ShapeExpr([tensor.ty.shape[0], *shape])))


def after_black_box(bb, x, a, b):
    odd = bb.emit(relax.op.call_dps_packed(BLACK_BOX, [a], a.ty))
    c = bb.emit(relax.op.nn.softmax(relax.op.add(odd, SHIFT), axis=-1))
    return relax.Tuple([bb.emit(relax.op.nn.softmax(relax.op.exp(c), axis=-1)), b])


def sorted_parts(bb, x, a, b):
    parts = bb.emit(relax.op.split(a, 2, axis=1))
    halves = [bb.emit(relax.TupleGetItem(parts, i)) for i in range(2)]
    return bb.emit(relax.op.nn.softmax(relax.op.add(*halves), axis=-1))


CASES = {
    "one": lambda bb, x, a, b: b,
    "two": lambda bb, x, a, b: relax.Tuple([b, a]),
    "view": lambda bb, x, a, b: reshaped(bb, b, 3, 4),
    "view_and_whole": lambda bb, x, a, b: relax.Tuple([b, reshaped(bb, b, 3, 4), reshaped(bb, a, 4, 3)]),
    "view_of_the_input": lambda bb, x, a, b: relax.Tuple([reshaped(bb, x, 12), b]),
    "input_itself": lambda bb, x, a, b: relax.Tuple([x, b]),
    "tuple_between": sorted_parts,
    "other_calls_between": after_black_box,
}


def run(executable, x, *more):
    out = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x), *more)
    return [part.numpy() for part in ([out] if hasattr(out, "numpy") else out)]


@pytest.mark.parametrize("name", CASES)
def test_same_bytes_as_one_by_one(name):
    mod = network(CASES[name])
    merged, separate = build_module(mod, TARGET), build_module(mod, TARGET, merge=False)
    code, weights = merged.without_weights()
    for batch in (1, 3):
        x = floats(batch, 2, 6)
        expected = run(separate, x)
        for found in (run(merged, x), run(code, x, tvm.runtime.tensor(weights))):
            assert [part.shape for part in found] == [part.shape for part in expected]
            for part, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(part, other)


def calls(mod, function="main"):
    return [
        b.value
        for block in mod[function].body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.Call) and getattr(b.value.op, "name", "") == "relax.call_tir"
    ]


def test_a_run_is_one_call_and_a_call_alone_stays():
    passes = [*pipeline.lower(TARGET), pipeline.finish()[0]]
    whole = pipeline.run(passes, network(CASES["one"]), TARGET)
    (call,) = calls(whole)
    assert call.args[0].name_hint == "main_calls"
    assert [str(field.dtype) for field in call.ty.fields] == ["float32", "uint8"]

    @I.ir_module
    class Alone:
        @R.function
        def main(x: R.Tensor((4,), "float32")):
            with R.dataflow():
                y = R.exp(x)
                R.output(y)
            return y

    (call,) = calls(pipeline.run(passes, Alone, TARGET))
    assert "calls" not in call.args[0].name_hint


def test_equal_constants_of_entries_are_kept_once():
    mod = network(CASES["one"])
    mod["dense"] = relax.utils.copy_with_new_vars(mod["main"]).with_attr("global_symbol", "dense")
    _, weights = build_module(mod, TARGET).without_weights()
    assert weights.size == ALIGNMENT
    np.testing.assert_array_equal(weights[:24].view("float32"), SCALE.value.numpy())


def test_weights():
    weights = Weights()
    first, second = floats(5), np.arange(40, dtype="int32")
    assert [weights.offset(each) for each in (first, second, first.copy(), first.reshape(1, 5))] == [0, 64, 0, 0]
    block = weights.block()
    assert block.size == weights.size == 256
    np.testing.assert_array_equal(block[64:224].view("int32"), second)
    assert Weights().block().size == 0


def value(expr, n):
    analyzer = tvm.sym.Analyzer()
    for var in tirx.analysis.undefined_vars(expr):
        analyzer.bind(var, tirx.const(n, "int64"))
    return int(analyzer.simplify(expr))


@pytest.mark.parametrize("seed", range(5))
def test_arena_never_overlaps(seed):
    rng = np.random.default_rng(seed)
    n = tirx.Var("N", "int64")
    requests = []
    for call in range(20):
        size = tirx.const(int(rng.integers(1, 5000)), "int64")
        kind = rng.integers(3)
        if kind:
            size = n * size if kind == 1 else tirx.min(n * size, tirx.const(9999, "int64")) + 1
        requests.append(Request(size, call, min(19, call + int(rng.integers(1, 5)))))
    arena = plan_arena(requests)
    for batch in (1, 7, 300):
        places = [(value(o, batch), value(r.size, batch), r) for o, r in zip(arena.offsets, requests, strict=True)]
        total = value(arena.size, batch)
        for index, (start, size, request) in enumerate(places):
            assert start % ALIGNMENT == 0
            assert start + size <= total
            for other_start, other_size, other in places[:index]:
                if request.first <= other.last and other.first <= request.last:
                    assert start + size <= other_start or other_start + other_size <= start
        assert total < sum(size + ALIGNMENT for _, size, _ in places) * 0.7  # memory is shared


def test_a_chain_needs_two_tensors():
    n = tirx.Var("N", "int64")
    arena = plan_arena([Request(n * 6400, call, call + 1) for call in range(9)])
    assert tvm_ffi.structural_equal(arena.size, n * 12800, map_free_vars=True)
    assert value(plan_arena([]).size, 1) == 0
