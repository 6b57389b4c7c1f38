"""The four operators: types, lowering to visible subgraphs, LegalizeOps, JSON; and loops without kernels of ours."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from relax_modules import TARGET, close, floats
from tvm import relax, tirx

from adr_tvm import ops
from adr_tvm._tvm import tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_module
from adr_tvm.passes import pipeline
from adr_tvm.passes.dump_ir import DumpIR
from adr_tvm.passes.lower_operators import LowerOperators
from adr_tvm.settings import ReuseSetting

HASHED = {"pixel": (1, 4, 3), "segment": (9, 4, 3), "row": (1, 36, 3)}
SETTINGS = [
    *(ReuseSetting(granularity, L=4, H=3, hash="gaussian") for granularity in HASHED),
    *(ReuseSetting(granularity, L=4, H=1, hash="exact") for granularity in HASHED),
]
KERNELS = {
    ("pixel", False): ["adr_pixel_cluster", "adr_pixel_gemm_scatter"],
    ("segment", False): ["adr_segment_cluster", "adr_segment_gemm_scatter"],
    ("row", False): ["adr_row_cluster", "adr_row_gemm", "adr_row_scatter"],
    ("row", True): ["adr_row_cluster", "adr_row_gemm", "adr_expand"],
}
CONV, DENSE = (3, 3, 4, 6), (36, 6)


def module(setting=None, kind="conv2d", batch=None) -> tvm.IRModule:
    """One operator on [B, 5, 6, 4] (dense: [B, 7, 36])."""
    B = tirx.Var("B", "int64") if batch is None else batch
    x = relax.Var("x", tensor_type([B, 5, 6, 4] if kind == "conv2d" else [B, 7, 36]))
    w, bias = relax.const(floats(*(CONV if kind == "conv2d" else DENSE))), relax.const(floats(6))
    if kind == "conv2d":
        call = ops.conv2d(x, w, bias, name="layer", padding=(1, 0, 1, 2), strides=(2, 1), activation=Activation.relu())
    else:
        call = ops.dense(x, w, bias, name="layer")
    if setting is not None:
        shape = HASHED[setting.granularity] if kind == "conv2d" else (1, 36, 3)
        call = ops.with_reuse(call, setting, floats(*shape), floats(shape[0], shape[2]))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(call)
        builder.emit_func_output(out)
    return builder.get()


def call_tirs(mod: tvm.IRModule) -> list[str]:
    return [
        b.value.args[0].name_hint
        for block in mod["main"].body.blocks
        for b in block.bindings
        if getattr(getattr(b.value, "op", None), "name", "").startswith("relax.call_tir")
    ]


@pytest.mark.parametrize("setting", [None, *SETTINGS], ids=str)
@pytest.mark.parametrize("batch", [None, 3])
def test_types(setting, batch):
    func = module(setting, batch=batch)["main"]
    B = func.params[0].ty.shape[0]
    y = tensor_type([B, 3, 6, 6])
    stats = tensor_type([B, 2], "int32")
    assert func.ret_ty == (y if setting is None else relax.TupleType([y, stats]))


def test_types_of_dense_and_batch_scope():
    func = module(ReuseSetting("row", H=3, scope="batch"), kind="dense")["main"]
    B = func.params[0].ty.shape[0]
    assert func.ret_ty == relax.TupleType([tensor_type([B, 7, 6]), tensor_type([1, 2], "int32")])


def test_symbolic_channels_are_refused():
    x = relax.Var("x", tensor_type([1, 5, 6, tirx.Var("c", "int64")]))
    call = ops.conv2d(x, relax.const(floats(*CONV)), relax.const(floats(6)), name="layer")
    with pytest.raises(ValueError, match="layer: only the batch may be symbolic"):
        ops.geometry_of(call)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_subgraph_is_visible(setting):
    assert call_tirs(LowerOperators(TARGET)(module(setting))) == KERNELS[setting.granularity, setting.lossless]


@pytest.mark.parametrize("kind", ["conv2d", "dense"])
def test_dense_operators_are_one_kernel(kind):
    assert call_tirs(LowerOperators(TARGET)(module(kind=kind))) == ["adr_conv2d"]


@pytest.mark.parametrize("setting", [None, SETTINGS[0], SETTINGS[-1]], ids=str)
def test_legalize_ops_lowers_likewise(setting):
    """TVM's own pass lowers the operators too, for a compiler that knows nothing of this one."""
    mod = module(setting)
    with TARGET:
        legal = relax.transform.LegalizeOps()(mod)
    assert call_tirs(legal) == call_tirs(LowerOperators(TARGET)(mod))


@pytest.mark.parametrize("setting", [None, SETTINGS[0]], ids=str)
def test_json_round_trip(setting):
    mod = module(setting)
    loaded = tvm.ir.load_json(tvm.ir.save_json(mod))
    tvm.ir.assert_structural_equal(loaded, mod)
    assert call_tirs(LowerOperators(TARGET)(loaded)) == call_tirs(LowerOperators(TARGET)(mod))


def test_dumps_are_numbered_on(tmp_path):
    mod = module()
    pipeline.run([LowerOperators(TARGET), relax.transform.DeadCodeElimination()], mod, TARGET, tmp_path)
    pipeline.run([relax.transform.ToNonDataflow()], mod, TARGET, tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["00-LowerOperators.py", "01-DeadCodeElimination.py", "02-ToNonDataflow.py"]
    assert "adr_conv2d" in (tmp_path / files[0]).read_text(encoding="utf-8")
    tvm.ir.assert_structural_equal(DumpIR(tmp_path / "deeper", 7, "same")(mod), mod)
    assert (tmp_path / "deeper" / "07-same.py").exists()


def _lrn(x):
    square = relax.op.square(x)
    padded = relax.op.nn.pad(square, [0, 0, 0, 0, 0, 0, 2, 2])
    total = relax.op.strided_slice(padded, [3], [0], [7])
    for i in range(1, 5):
        total = relax.op.add(total, relax.op.strided_slice(padded, [3], [i], [7 + i]))
    return relax.op.divide(x, relax.op.power(total * relax.const(0.2) + relax.const(2.0), relax.const(0.75)))


LOOPS = {
    "softmax": lambda x: relax.op.nn.softmax(x, -1),
    "softmax of channels first": lambda x: relax.op.nn.softmax(x, 1),
    "max pool": lambda x: relax.op.nn.max_pool2d(x, (3, 2), (2, 1), (1, 0, 1, 1), layout="NHWC"),
    "average pool": lambda x: relax.op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1), layout="NHWC", count_include_pad=False),
    "mean": lambda x: relax.op.mean(x, [1, 2]),
    "mean of channels": lambda x: relax.op.mean(x, [3], keepdims=True),
    "sum of all": lambda x: relax.op.sum(x),
    "lrn": _lrn,
    "depthwise": lambda x: relax.op.nn.conv2d(
        x, relax.const(floats(3, 3, 1, 7)), padding=1, groups=7, data_layout="NHWC", kernel_layout="HWIO"
    ),
    "elementwise": lambda x: relax.op.sigmoid(relax.op.exp(x) * x - relax.const(0.5)),
    "broadcast": lambda x: x + relax.const(floats(7)),
    "argmax": lambda x: relax.op.argmax(x, 3),
    "transpose": lambda x: relax.op.permute_dims(x, [0, 3, 1, 2]),
    "concat": lambda x: relax.op.concat([x, relax.op.exp(x)], 3),
}


def _looped(shape) -> tvm.IRModule:
    """A function for each of LOOPS."""
    mod = tvm.IRModule()
    for i, make in enumerate(LOOPS.values()):
        x = relax.Var("x", tensor_type(shape))
        builder = relax.BlockBuilder()
        with builder.function(f"f{i}", [x]):
            with builder.dataflow():
                out = builder.emit_output(builder.normalize(make(x)))
            builder.emit_func_output(out)
        mod[f"f{i}"] = builder.get()[f"f{i}"]
    return mod


@pytest.mark.parametrize("shape", [(2, 5, 9, 7), (1, 64, 40, 7)], ids=["odd", "parallel"])
def test_scheduled_loops_compute_the_same(shape):
    """Against TVM's own pipeline, without any schedule."""
    mod = _looped(shape)
    ours = relax.VirtualMachine(build_module(mod, TARGET), tvm.cpu())
    plain = relax.VirtualMachine(tvm.compile(mod, TARGET, relax_pipeline=relax.get_default_pipeline(TARGET)), tvm.cpu())
    x = tvm.runtime.tensor(floats(*shape))
    for i, name in enumerate(LOOPS):
        found, expected = ours[f"f{i}"](x).numpy(), plain[f"f{i}"](x).numpy()
        try:
            close(found, expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("kind", ["conv2d", "dense"])
def test_symbolic_batch(kind):
    setting = ReuseSetting("row", hash="exact", L=1, H=1)
    mod = module(setting, kind=kind)
    mod["dense"] = module(kind=kind)["main"].with_attr("global_symbol", "dense")
    machine = relax.VirtualMachine(build_module(mod, TARGET), tvm.cpu())
    for batch in (1, 3):
        x = tvm.runtime.tensor(floats(batch, *((5, 6, 4) if kind == "conv2d" else (7, 36))))
        y, stats = machine["main"](x)
        np.testing.assert_array_equal(y.numpy(), machine["dense"](x).numpy())
        assert stats.numpy().shape == (batch, 2)
