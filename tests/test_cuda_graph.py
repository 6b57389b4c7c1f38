"""CUDA graphs: what is captured, what is started again, whose memory it is; the driver by recorded launches."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import tvm
from cuda_emulator import EmulatedGraphs, emulated_cuda
from onnx_graphs import classifier, save
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import adr_tvm
from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_plan, compile_lowered
from adr_tvm.cuda.graph import CudaGraphs
from adr_tvm.cuda.tvm_runtime import load_cuda_runtime
from adr_tvm.deploy.bundle import describe
from adr_tvm.deploy.captured import CapturedEntries
from adr_tvm.deploy.device import OnCuda
from adr_tvm.deploy.runtime import MOST_SHAPES, ReuseModel
from adr_tvm.errors import MissingDependencyError, ModelError, UsageError
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.passes import pipeline
from adr_tvm.passes.hold_memory import HoldMemory
from adr_tvm.passes.merge_calls import MergeCalls
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.settings import ReuseSetting

LOSSLESS = ReuseSetting("row", L=1, H=1, hash="exact")


def images(batch, seed):
    x = np.random.default_rng(seed).standard_normal((batch, 3, 12, 12)).astype(np.float32)
    x[0] = seed  # which repeats
    return x


def test_replays(tmp_path):
    """A graph gives what plain calls give, for data that it was not captured with, whatever else ran in between."""
    network = LoadedNetwork(save(classifier(), tmp_path), CompileOptions(target="t4"))
    layers = {c.layer: LayerPlan(c.layer, "dense", None, "a test") for c in network.layers}
    layers["conv1"] = LayerPlan("conv1", "reuse", LOSSLESS, "a test")
    plan, driver = ReusePlan(network.checked.sha256, "t4", 0, "agreement", None, layers), EmulatedGraphs()
    with emulated_cuda():
        code, weights = build_plan(network.mod, plan, network.target).without_weights()
        (tmp_path / "model.so").write_bytes(b"")
        weights.tofile(tmp_path / "weights.bin")
        manifest = describe(network.checked, plan, network.mod, network.target, tmp_path)
        machine = relax.VirtualMachine(code, tvm.cuda())
        given = (manifest, plan, machine, weights, OnCuda(tvm.cuda()))
        plain, model = ReuseModel(*given), ReuseModel(*given, driver)
        first = model(images(2, 1))
        assert len(driver.graphs) == 1 and driver.launched == [1], "captured, then started"
        assert len(driver.graphs[1]) > 8, "all kernels of all layers"
        np.testing.assert_array_equal(first, plain(images(2, 1)))
        for seed in (2, 3):
            found, expected = model(images(2, seed)), plain(images(2, seed))
            plain.dense(images(2, seed + 10))  # takes the memory that is free now
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(first, plain(images(2, 1)), "results are the caller's")
        assert driver.launched == [1, 1, 1] and len(driver.graphs) == 1
        (captured,) = model._captured._graphs.values()
        (held,), fresh = captured.arena, machine["main_held"](*captured.inputs, plain._weights)[1][0]
        words = [args[i : i + 8] for _, args in driver.graphs[1] for i in range(8, len(args), 16)]
        addresses = {int.from_bytes(word, "little") for word in words}
        assert any(0 <= address - held.data_ptr() < held.shape[0] for address in addresses), "kernels work there"
        assert not 0 <= fresh.data_ptr() - held.data_ptr() < held.shape[0], "and nothing else does"
        found, counts = model.run_with_counts(images(2, 4))
        expected, counted = plain.run_with_counts(images(2, 4))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(counts["conv1"].clusters, counted["conv1"].clusters)
        np.testing.assert_array_equal(model.dense(images(1, 5)), plain.dense(images(1, 5)))
        assert len(driver.graphs) == 3, "entries and shapes have their own"
        other = threading.Thread(target=lambda: model(images(2, 6)))
        other.start()
        other.join()
        del other
        gc.collect()
        assert driver.launched[-1] == 4 and len(driver.graphs) == 3, "a thread's graphs end with it"
        for batch in range(3, 3 + MOST_SHAPES):
            np.testing.assert_array_equal(model(images(batch, 7)), plain(images(batch, 7)))
        assert 0 < len(driver.graphs) <= MOST_SHAPES
        np.testing.assert_array_equal(model(images(2, 8)), plain(images(2, 8)))


def test_a_failed_capture_leaves_nothing():
    driver = EmulatedGraphs()
    with pytest.raises(RuntimeError, match="a kernel"):
        driver.capture(lambda stream: (_ for _ in ()).throw(RuntimeError("a kernel")))
    assert not driver.graphs


@I.ir_module
class Merged:
    @T.prim_func(private=True)
    def twice(x: T.Buffer((T.int64(4),), "float32"), y: T.Buffer((T.int64(4),), "float32")):
        T.func_attr({"tirx.is_scheduled": True})
        for i in range(T.int64(4)):
            y[i] = x[i] * T.float32(2)

    @R.function
    def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        cls = Merged
        with R.dataflow():
            a = R.call_tir(cls.twice, (x,), out_ty=R.Tensor((4,), "float32"))
            b = R.call_tir(cls.twice, (a,), out_ty=R.Tensor((4,), "float32"))
            R.output(b)
        return b

    @R.function
    def broken(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        cls = Merged
        with R.dataflow():
            a = R.call_tir(cls.twice, (x,), out_ty=R.Tensor((4,), "float32"))
            b = R.call_tir(cls.twice, (a,), out_ty=R.Tensor((4,), "float32"))
            c = R.call_dps_packed("outside", (b,), out_ty=R.Tensor((4,), "float32"))
            R.output(c)
        return c


def test_which_entries_hold_their_memory():
    """One merged call, with what lies between its kernels; nothing that is no kernel."""
    mod = HoldMemory()(MergeCalls()(Merged))
    names = {gv.name_hint for gv, func in mod.functions_items() if isinstance(func, relax.Function)}
    assert names == {"main", "broken", "main_held"}
    result, (arena,) = mod["main_held"].ret_ty.fields[0], mod["main_held"].ret_ty.fields[1].fields
    assert str(result.dtype) == "float32" and str(arena.dtype) == "uint8" and int(arena.shape[0]) >= 16
    plain = MergeCalls()(Merged)
    tvm.ir.assert_structural_equal(mod["main"], plain["main"], map_free_vars=True)


def test_what_cannot_be_captured():
    alone = tvm.IRModule({gv: func for gv, func in Merged.functions_items() if gv.name_hint != "broken"})
    lowered = pipeline.run(pipeline.finish(), alone, cpu_target())
    machine = relax.VirtualMachine(compile_lowered(lowered, cpu_target()), tvm.cpu())
    with pytest.raises(ModelError, match=r"no CUDA graph .* 'main'.*without cuda_graph"):
        CapturedEntries(machine, tvm.cuda(), None, EmulatedGraphs(), ["main"])


def test_cuda_says_what_is_wrong():
    """The true driver's functions are there; without a GPU the first call fails, in words."""
    try:
        load_cuda_runtime()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    if tvm.cuda().exist:
        pytest.skip("a GPU is at hand")
    driver = CudaGraphs()
    for name in ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"):
        assert getattr(driver._library, name)
    for name in ("cudaGraphDestroy", "cudaGraphExecDestroy", "cudaStreamDestroy"):
        assert getattr(driver._library, name)
    with pytest.raises(RuntimeError, match=r"cudaStreamCreateWithFlags: .*(device|driver)"):
        driver.capture(lambda stream: None)


def test_only_for_cuda(tmp_path):
    network = LoadedNetwork(save(classifier(), tmp_path), CompileOptions())
    layers = {c.layer: LayerPlan(c.layer, "dense", None, "a test") for c in network.layers}
    plan = ReusePlan(network.checked.sha256, "cpu", 0, "agreement", None, layers)
    for name in ("model.so", "weights.bin"):
        (tmp_path / name).write_bytes(b"")
    describe(network.checked, plan, network.mod, network.target, tmp_path).save(tmp_path)
    plan.save(tmp_path)
    with pytest.raises(UsageError, match="cuda_graph is for bundles for CUDA"):
        adr_tvm.load(tmp_path, cuda_graph=True)
