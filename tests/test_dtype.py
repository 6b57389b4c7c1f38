"""``--dtype`` of CUDA targets: what is refused, what is recorded, and a network in each data type, emulated."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from cuda_emulator import emulated_cuda
from onnx_graphs import classifier, save
from relax_modules import floats
from test_passes_fuse_residual import network
from test_passes_lower_precision import branches
from tvm import relax

from adr_tvm._tvm import cpu_target, cuda_target
from adr_tvm.build import build_module, build_plan
from adr_tvm.cli.compile import main
from adr_tvm.cuda import code_objects
from adr_tvm.deploy.bundle import Manifest
from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.passes.emulate_precision import EmulatePrecision
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planner.gpu_cost import gpu_cost_model
from adr_tvm.precision import PRECISIONS
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--dtype", "bf16"], r"for CUDA targets \(cuda, .*h200\), not for cpu"),
        (["--target", "rpi4", "--dtype", "fp16"], "not for rpi4"),
        (["--target", "cuda", "--dtype", "tf32"], "tensor cores of sm_75: .*--arch sm_80,sm_86,sm_87,sm_89,sm_90"),
        (["--target", "t4", "--dtype", "bf16"], "tensor cores of sm_75: use --dtype fp16"),
        (["--target", "h200", "--dtype", "fp8"], "'fp8', expected one of float32, fp32, int8, tf32, bf16, fp16"),
        (["--target", "h200", "--dtype", "int8"], "for --emit c"),
        (["--target", "h200", "--dtype", "fp16", "--granularity", "pixel"], "--granularity pixel cannot go with"),
        (["--target", "h200", "--dtype", "fp16", "--L", "8"], "--L cannot go with --dtype fp16"),
        (["--target", "t4", "--arch", "sm_80", "--dtype", "tf32"], "tensor cores of t4: use --dtype fp16"),
        (["--target", "h200", "--rpc", "host:9090"], "--rpc measures on processors"),
    ],
)
def test_refused(given, words, capsys, monkeypatch):
    monkeypatch.setattr("adr_tvm.cuda.present.present_gpu", lambda: None)
    assert main(["no-such-model.onnx", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line


def test_names():
    assert CompileOptions(target="h200", dtype="fp32") == CompileOptions(target="h200")
    assert CompileOptions(dtype="fp32").precision is None
    assert CompileOptions(target="t4", dtype="fp16").precision == PRECISIONS["fp16"]
    assert CompileOptions(target="cuda", arch="sm_80,sm_90", dtype="bf16").precision == PRECISIONS["bf16"]
    with pytest.raises(UsageError, match="sm_75"):
        CompileOptions(target="cuda", arch="sm_75", dtype="tf32")


def test_predicted_times():
    """Tensor cores multiply faster, 16 bits move faster; hashing gains nothing, so reuse pays less."""
    big, entry = ConvGeometry(56, 56, 256, 3, 3, 512, padding=(1, 1, 1, 1)), TARGETS["a100"]
    models = {name: gpu_cost_model(entry, PRECISIONS.get(name)) for name in ("fp32", "tf32", "fp16")}
    dense = {name: model.dense_seconds(big, 32) for name, model in models.items()}
    assert dense["fp32"] > 4 * dense["tf32"] > 4 * dense["fp16"] > 0
    thin = ConvGeometry(56, 56, 64, 1, 1, 64)
    assert models["fp16"].dense_seconds(thin, 32) < 0.6 * models["tf32"].dense_seconds(thin, 32), "memory alone"
    setting = ReuseSetting("row", H=8)
    gains = {name: dense[name] / model.reuse_seconds(big, setting, 0.1, 32) for name, model in models.items()}
    assert gains["fp32"] > gains["tf32"] > gains["fp16"]
    assert "312 TFLOP/s in fp16" in models["fp16"].source
    assert len({model.sha256 for model in models.values()}) == 3


@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_a_network_emulated(name, tmp_path):
    """With its kernels for CUDA and with rounding on this processor; a lossless layer leaves the bits as they are."""
    loaded = LoadedNetwork(save(classifier(), tmp_path), CompileOptions(target="a100", dtype=name))
    images = np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype(np.float32)
    images[1] = 1
    reuse = LayerPlan("conv1", "reuse", ReuseSetting("row", L=1, H=1, hash="exact"), "a test")
    dense = [LayerPlan(c.layer, "dense", None, "a test") for c in loaded.layers if c.layer != "conv1"]
    layers = {plan.layer: plan for plan in (reuse, *dense)}
    plan = ReusePlan(loaded.checked.sha256, "a100", 0, "agreement", None, layers)
    precision = loaded.options.precision
    here = build_module(EmulatePrecision(precision)(loaded.mod), cpu_target())
    expected = relax.VirtualMachine(here, tvm.cpu())["main"](tvm.runtime.tensor(images)).numpy()
    with emulated_cuda():
        library = build_plan(loaded.mod, plan, loaded.target, precision=precision)
        machine = relax.VirtualMachine(library, tvm.cuda())
        x = tvm.runtime.tensor(images, tvm.cuda())
        found, alone = machine["main"](x).numpy(), machine["dense"](x).numpy()
        counts = machine["main_counts"](x)[1][0].numpy()
    # Where sums in another order round to another number of the data type, by one step of it.
    step = 2.0**-10
    np.testing.assert_allclose(found, expected, atol=2 * step * np.abs(expected).max())
    assert found.tobytes() == alone.tobytes(), "lossless"
    assert counts.tolist() == [[36, 1], [4, 1], [36, 1]], "of a constant image: inside, right, bottom, corner"


def test_data_that_are_moved_in_16_bits():
    """Maxima and concatenations of bf16, a chain in fp32, a sum with both."""
    mod, x = network(branches, 2), floats(2, 6, 5, 8)
    here = build_module(EmulatePrecision(PRECISIONS["bf16"])(mod), cpu_target())
    expected = relax.VirtualMachine(here, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
    with emulated_cuda() as sources:
        library = build_module(mod, cuda_target("sm_80"), precision=PRECISIONS["bf16"])
        found = relax.VirtualMachine(library, tvm.cuda())["main"](tvm.runtime.tensor(x, tvm.cuda())).numpy()
    # The processor has the sum and its rounding apart.
    np.testing.assert_allclose(found, expected, atol=2.0**-7 * np.abs(expected).max())
    (pool,) = re.findall(r"max_pool2d_kernel\(([^)]*)\) \{", sources[0])
    assert pool.count("nv_bfloat16*") == 2, "no cast around the maximum"


@pytest.mark.skipif(not code_objects.has_compiler(), reason="no NVRTC and no nvcc")
def test_from_end_to_end(tmp_path, capsys):
    out, path = tmp_path / "bundle", save(classifier(), tmp_path)
    assert main([str(path), "--target", "t4", "--dtype", "fp16", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "in fp32 with data and weights rounded to fp16" in said and "65 TFLOP/s in fp16" in said
    assert (Manifest.load(out).dtype, ReusePlan.load(out).dtype) == ("fp16", "fp16")
    assert b"sm_75" in (out / "model.so").read_bytes()
