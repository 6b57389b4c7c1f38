"""fp16 on 64-bit Arm, emulated: the dense kernel, networks against fp32, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import onnxruntime
import pytest
import tvm
from bundles import REUSE, classifier, images, make_bundle
from onnx_graphs import save
from tvm import relax

from adr_tvm._tvm import tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_plan, compile_lowered
from adr_tvm.cli.compile import main
from adr_tvm.geometry import ConvGeometry
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.passes import pipeline
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.core_cost import foreign_cost_model
from adr_tvm.reference import conv2d
from adr_tvm.schedules.dense_conv2d import Destination, dense_conv2d
from adr_tvm.schedules.packing import pack_weights, pad_channels
from adr_tvm.schedules.tuned import half_conv_schedule
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import find_target
from tests import aarch64
from tests.test_int8_network import residual_network, smooth_images

needs_arm = pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))
TARGET = find_target("rpi5").make(1)
GEOMETRIES = {
    "3x3": ConvGeometry(7, 6, 20, 3, 3, 10, padding=(1, 1, 1, 1)),
    "long": ConvGeometry(4, 4, 70, 3, 3, 40, padding=(1, 1, 1, 1)),  # several steps of K
    "1x1": ConvGeometry(5, 7, 300, 1, 1, 33),
    "strided": ConvGeometry(9, 8, 5, 3, 2, 6, strides=(2, 2), padding=(1, 0, 1, 1), dilation=(2, 1)),
    "dense": ConvGeometry(1, 1, 700, 1, 1, 21),  # of one row
    "residual": ConvGeometry(6, 5, 24, 3, 3, 24, padding=(1, 1, 1, 1)),
}
# An output is a chain of up to 192 multiply-adds of 11 bits, of which roundings are as likely up as down.
TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """All kernels in one library, each behind casts of its inputs and before one of its output."""
    rng, bb, arrays = np.random.default_rng(0), relax.BlockBuilder(), {}
    for i, (name, g) in enumerate(GEOMETRIES.items()):
        to = Destination(residual=name == "residual")
        w = (rng.standard_normal((g.KH, g.KW, g.C, g.M)) / np.sqrt(g.K)).astype(np.float16)
        bias, x = rng.standard_normal(g.M).astype(np.float32), rng.standard_normal((1, g.H, g.W, g.C))
        given = [x.astype(np.float32)]
        if to.residual:
            given.append(rng.standard_normal((1, g.OH, g.OW, g.M)).astype(np.float32))
        arrays[name] = given, w.astype(np.float32), bias
        schedule = half_conv_schedule(TARGET, g, 1)
        kernel = dense_conv2d(g, Activation.relu(), schedule, to, "float16")
        args = [relax.Var(f"x{j}", tensor_type(list(v.shape))) for j, v in enumerate(given)]
        with bb.function(f"entry{i}", args):
            half = [bb.emit(relax.op.astype(v, "float16")) for v in args]
            NR = schedule.tile.NR
            packed = [relax.const(pack_weights(w, NR)), relax.const(pad_channels(bias, NR))]
            out = tensor_type([1, g.OH, g.OW, g.M], "float16")
            y = bb.emit(relax.call_tir(bb.add_func(kernel, "conv2d"), [half[0], *packed, *half[1:]], out))
            bb.emit_func_output(bb.emit(relax.op.astype(y, "float32")))
    passes = [relax.transform.LegalizeOps(), *pipeline.finish()]
    library = compile_lowered(pipeline.run(passes, bb.get(), TARGET), TARGET)
    return aarch64.Emulated(library, tmp_path_factory.mktemp("half")), arrays


@needs_arm
@pytest.mark.parametrize("name", GEOMETRIES)
def test_dense(name, networks):
    emulated, arrays = networks
    given, w, bias = arrays[name]
    _, (y,) = emulated(f"entry{list(GEOMETRIES).index(name)}", given)
    x, *residual = (v.astype(np.float16).astype(np.float32) for v in given)
    expected = conv2d(x, w, bias, GEOMETRIES[name], Activation())
    expected = np.maximum(expected + (residual[0] if residual else 0), 0)
    assert np.abs(y - expected).max() < TOLERANCE * np.abs(expected).max()
    np.testing.assert_array_equal(y, y.astype(np.float16))


def in_fp16(model, folder, plan=None):
    """A network compiled for a Raspberry Pi 5 under a plan (None: dense), ready to run."""
    loaded = LoadedNetwork(model, CompileOptions(target="rpi5", dtype="fp16"))
    plan = plan or ReusePlan(loaded.checked.sha256, "rpi5", 0, "none", None, {}, dtype="fp16")
    library = build_plan(loaded.mod, plan, loaded.target, precision=loaded.options.precision)
    return aarch64.Emulated(library, folder)


@needs_arm
def test_a_dense_network(tmp_path):
    """A residual, depthwise and strided convolutions, pools, a concatenation."""
    model, x = save(residual_network(), tmp_path), smooth_images(1, 3, 10, 12)
    (expected,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})
    _, (y,) = in_fp16(model, tmp_path)("main", [x])
    assert y.dtype == np.float32
    assert 0 < np.abs(y - expected).max() < 1e-2 * np.abs(expected).max()


@needs_arm
def test_a_network_with_reuse(tmp_path):
    """A lossless layer and one of centroids; the first image is noise, which runs dense."""
    model, x = make_bundle(tmp_path / "net", classifier(), REUSE), images(4)
    loaded = LoadedNetwork(model, CompileOptions())
    plan = ReusePlan.load(tmp_path / "net" / "plan.json")
    here = relax.VirtualMachine(build_plan(loaded.mod, plan, loaded.host), tvm.cpu())
    emulated = in_fp16(model, tmp_path, plan)
    expected = here["main_counts"](tvm.runtime.tensor(x))[0]
    _, found = emulated("main_counts", [x])
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=0, atol=1e-2 * np.abs(expected.numpy()).max())
    np.testing.assert_array_equal(found[2][:, 1], [0, 1, 1, 1])
    _, (y,) = emulated("dense", [x])
    (dense,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})
    np.testing.assert_allclose(y, dense, rtol=0, atol=1e-2 * np.abs(dense).max())


@needs_arm
def test_the_command(tmp_path):
    argv = [save(classifier(), tmp_path), "--target", "rpi5", "--dtype", "fp16", "-o", tmp_path / "net", "-q"]
    assert main([str(each) for each in argv]) == 0
    plan = json.loads((tmp_path / "net" / "plan.json").read_text())
    assert plan["dtype"] == "fp16" and all(layer["decision"] == "dense" for layer in plan["layers"])


@pytest.mark.parametrize(
    "options, said",
    [
        (["--target", "rpi4"], r"Arm cores that compute in it \(rpi5, jetson-cpu, .*neoverse\), not for rpi4"),
        (["--target", "rpi5", "--lossless"], "--lossless cannot go with --dtype fp16 for rpi5"),
        (["--target", "rpi5", "--emit", "c"], "not for --emit c"),
        (["--target", "rpi5", "--rpc", "board:9090"], "--rpc cannot go with --dtype fp16: boards measure in fp32"),
    ],
)
def test_refused(options, said, capsys):
    assert main(["no-such-model.onnx", "--dtype", "fp16", *options]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_predicted_times():
    g, entry = GEOMETRIES["3x3"], find_target("rpi5")
    full, half = (foreign_cost_model(entry, None, 4, 4, half) for half in (False, True))
    assert half.dense_seconds(g, 1) < full.dense_seconds(g, 1) < 2 * half.dense_seconds(g, 1)
    assert half.source.endswith("dense layers in fp16")
    setting = ReuseSetting("row", H=6)
    assert half.reuse_seconds(g, setting, 0.5, 1) == full.reuse_seconds(g, setting, 0.5, 1)
