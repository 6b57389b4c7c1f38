"""CUDA as a target: what is compiled, what it takes, what is refused; and a network with its kernels emulated."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import tvm
from cuda_emulator import emulated_cuda
from cuda_harness import TARGET
from kernel_harness import GEOMETRIES, Layer, layer_module, sample_tensors
from onnx_graphs import classifier, save
from tvm import relax

import adr_tvm
from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module, build_plan, code_objects_of
from adr_tvm.cli.compile import main
from adr_tvm.cuda import code_objects as code
from adr_tvm.cuda.code_objects import compile_code
from adr_tvm.deploy.bundle import Manifest, describe
from adr_tvm.deploy.device import OnCuda
from adr_tvm.deploy.runtime import ReuseModel
from adr_tvm.errors import MissingDependencyError, UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planner.gpu_cost import gpu_cost_model
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import ARCHITECTURES, TARGETS, find_target, with_architectures

CUDA = [name for name, entry in TARGETS.items() if entry.gpu is not None]
FAT_BINARY = b"\x50\xed\x55\xba"  # how one starts
KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] = x[threadIdx.x] * 2.0f + 1.0f; }'
needs_compiler = pytest.mark.skipif(not code.has_compiler(), reason="no NVRTC and no nvcc")


def test_the_presets():
    assert CUDA == ["cuda", "jetson-orin", "t4", "a100", "h100", "h200"]
    assert {TARGETS[name].gpu.architectures for name in CUDA[1:]} == {("sm_87",), ("sm_75",), ("sm_80",), ("sm_90",)}
    assert (TARGETS["cuda"].gpu.architectures, TARGETS["cuda"].gpu.ptx) == (ARCHITECTURES, "compute_90")
    target = find_target("jetson-orin").make(None)
    assert target.attrs["arch"] == "sm_87" and "aarch64" in str(target.host.attrs["mtriple"])


def test_architectures():
    entry = with_architectures(TARGETS["cuda"], "sm_90, sm_80")
    assert entry.gpu.architectures == ("sm_80", "sm_90") and entry.gpu.ptx is None
    assert entry.make(None).attrs["arch"] == "sm_80", "what the oldest can run"
    assert CompileOptions(target="cuda", arch="sm_89").entry.gpu.architectures == ("sm_89",)
    with pytest.raises(UsageError, match="'sm_70' is not known; there is sm_75"):
        with_architectures(TARGETS["cuda"], "sm_70")
    with pytest.raises(UsageError, match="not for rpi4"):
        CompileOptions(target="rpi4", arch="sm_80")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"emit": "bundle"}, "use library"),
        ({"cost_model": "x.json"}, "is of a processor"),
        ({"tune": 4}, "has no GPU that runs its code"),
    ],
)
def test_options_that_cuda_does_not_take(given, words):
    with pytest.raises(UsageError, match=words):
        CompileOptions(target="h100", **given)


def test_no_compiler(monkeypatch, capsys):
    monkeypatch.setattr(code, "_nvrtc_usable", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'adr-tvm\[cuda\]'.*nvcc"):
        compile_code(KERNEL, ["sm_80"])
    assert main(["none.onnx", "--target", "a100"]) == 5, "before the model is read"
    assert "pip install 'adr-tvm[cuda]'" in capsys.readouterr().err


@needs_compiler
def test_code_for_every_architecture():
    made = compile_code(KERNEL, ARCHITECTURES, "compute_90")
    assert made.data.startswith(FAT_BINARY) and made.data.count(b"\x7fELF") == len(ARCHITECTURES)
    assert [(r.kernel, r.architecture) for r in made.resources] == [("twice", name) for name in ARCHITECTURES]
    assert all(r.registers > 0 and r.spills == r.shared == 0 for r in made.resources)
    assert bytes([32])[0] == 32, "a log of one byte was written over the space that all of Python shares"
    with pytest.raises(RuntimeError, match="sm_80"):
        compile_code("not CUDA", ["sm_80"])


ROW_KERNELS = {"keys", "insert", "match", "guard", "count", "list", "means", "gemm", "copy"}
PIXEL_KERNELS = {"clear", "keys", "insert", "match", "count", "number", "ids", "means", "gains", "products", "gather"}


@needs_compiler
@pytest.mark.parametrize(
    ("setting", "kernels"),
    [
        (ReuseSetting("row", H=12), ROW_KERNELS),
        (ReuseSetting("pixel", H=12, gain=True, max_clusters=50), PIXEL_KERNELS | {"dense_units", "gemm"}),
    ],
    ids=["row", "pixel"],
)
def test_kernels_of_reuse_fit_their_registers(setting, kernels):
    """All kernels of a layer for one architecture; nothing spills."""
    layer = Layer(ConvGeometry(14, 14, 64, 3, 3, 96, padding=(1, 1, 1, 1)), setting, batch=8)
    with code_objects_of(with_architectures(TARGETS["cuda"], "sm_80")) as used:
        library = build_module(layer_module(layer, sample_tensors(layer), parameters=False), TARGET)
    prefix = f"adr_{setting.granularity}_"
    found = {r.kernel.removeprefix(prefix).removesuffix("_kernel").rstrip("12"): r for r in used}
    assert set(found) == kernels
    assert all(r.spills == r.stack == 0 and r.registers <= 128 for r in used), used
    assert 0 < found["gemm"].shared <= 48 << 10
    (host,) = library.mod.imports
    assert [module.kind for module in host.imports] == ["cuda"]


@needs_compiler
def test_a_network_from_end_to_end(tmp_path, capsys):
    out, path = tmp_path / "bundle", save(classifier(), tmp_path)
    assert main([str(path), "--target", "cuda", "--arch", "sm_80", "-o", str(out)]) == 0
    assert "predicted, not measured" in capsys.readouterr().out
    manifest, library = Manifest.load(out), (out / "model.so").read_bytes()
    assert (manifest.target, manifest.device) == ("cuda", "cuda") and manifest.cpu_features
    start = library.index(FAT_BINARY)
    assert b"sm_80" in library[start:] and b"__global__" not in library, "machine code, and no source"


@pytest.mark.parametrize(
    "setting",
    [ReuseSetting("row", L=1, H=1, hash="exact"), ReuseSetting("pixel", L=1, hash="exact")],
    ids=["row", "pixel"],
)
def test_a_network_emulated(setting, tmp_path, monkeypatch):
    """Host code, arena and kernels as they would run, with a lossless layer; compared with this processor's."""
    monkeypatch.setattr("adr_tvm.schedules.cuda.product_table.TABLE_BYTES", 1)  # a round for each segment
    network = LoadedNetwork(save(classifier(), tmp_path), CompileOptions(target="t4"))
    images = np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype(np.float32)
    images[1] = 1
    reuse = LayerPlan("conv1", "reuse", setting, "a test")
    dense = [LayerPlan(c.layer, "dense", None, "a test") for c in network.layers if c.layer != "conv1"]
    layers = {plan.layer: plan for plan in (reuse, *dense)}
    plan = ReusePlan(network.checked.sha256, "t4", 0, "agreement", None, layers)
    run = relax.VirtualMachine(build_module(network.mod, cpu_target()), tvm.cpu())["main"]
    expected = run(tvm.runtime.tensor(images)).numpy()
    with emulated_cuda():
        machine = relax.VirtualMachine(build_plan(network.mod, plan, network.target), tvm.cuda())
        x = tvm.runtime.tensor(images, tvm.cuda())
        found, alone = machine["main"](x).numpy(), machine["dense"](x).numpy()
        counts = machine["main_counts"](x)[1][0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(alone, expected, atol=1e-5 * np.abs(expected).max())
    if setting.granularity == "row":
        assert found.tobytes() == alone.tobytes(), "lossless"
        assert counts.tolist() == [[36, 1], [4, 1], [36, 1]], "of a constant image: inside, right, bottom, corner"
    else:
        assert counts.tolist() == [[432, 1], [3, 1], [432, 1]], "a constant image has a value in each channel"


def test_times_are_those_of_the_data_sheet():
    g, setting = GEOMETRIES["3x3"], ReuseSetting("row", H=8)
    big = ConvGeometry(56, 56, 256, 3, 3, 512, padding=(1, 1, 1, 1))
    t4, h200 = (gpu_cost_model(TARGETS[name]) for name in ("t4", "h200"))
    assert t4.dense_seconds(big, 32) > h200.dense_seconds(big, 32) > 0
    assert h200.reuse_seconds(g, setting, 0.1, 1) > h200.dense_seconds(g, 1), "launches alone take longer"
    assert h200.reuse_seconds(big, setting, 0.1, 32) < 0.5 * h200.dense_seconds(big, 32)
    assert h200.reuse_seconds(big, setting, 1.0, 32) > h200.dense_seconds(big, 32)
    assert "data sheet of t4" in t4.source and t4.sha256 != h200.sha256
    pixel, segment = ReuseSetting("pixel", L=32, H=8), ReuseSetting("segment", L=18, H=8)
    assert h200.reuse_seconds(big, pixel, 0.1, 32) < h200.reuse_seconds(big, segment, 0.1, 32), (
        "hashed once, not 9 times"
    )
    assert t4.reuse_seconds(big, pixel, 0.05, 32) < t4.dense_seconds(big, 32) < t4.reuse_seconds(big, pixel, 1.0, 32)
    assert h200.cluster_seconds(big, pixel) > 0
    narrow = ReuseSetting("pixel", L=32, H=8, table="bfloat16")
    assert h200.reuse_seconds(big, narrow, 0.1, 32) < h200.reuse_seconds(big, pixel, 0.1, 32)


def test_a_loaded_bundle_emulated(tmp_path, monkeypatch):
    """Inputs, weights and results go to the device and back; without a GPU loading says what is missing."""
    network = LoadedNetwork(save(classifier(), tmp_path), CompileOptions(target="t4"))
    layers = {c.layer: LayerPlan(c.layer, "dense", None, "a test") for c in network.layers}
    plan = ReusePlan(network.checked.sha256, "t4", 0, "agreement", None, layers)
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    with emulated_cuda():
        library = build_plan(network.mod, plan, network.target)
        expected = relax.VirtualMachine(library, tvm.cuda())["dense"](tvm.runtime.tensor(x, tvm.cuda())).numpy()
        code, weights = library.without_weights()
        (tmp_path / "model.so").write_bytes(b"")
        weights.tofile(tmp_path / "weights.bin")
        manifest = describe(network.checked, plan, network.mod, network.target, tmp_path)
        machine = relax.VirtualMachine(code, tvm.cuda())
        model = ReuseModel(manifest, plan, machine, weights, OnCuda(tvm.cuda()))
        np.testing.assert_array_equal(model(x), expected)
        np.testing.assert_array_equal(model.dense(torch.from_numpy(x)).numpy(), expected)
    assert manifest.device == "cuda"
    plan.save(tmp_path)
    manifest.save(tmp_path)
    monkeypatch.setattr("adr_tvm.cuda.tvm_runtime.DRIVER", "libcuda.so.none")
    with pytest.raises(MissingDependencyError, match="no NVIDIA driver"):
        adr_tvm.load(tmp_path)
