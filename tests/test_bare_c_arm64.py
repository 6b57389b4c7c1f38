"""Bare C for 64-bit Arm boards, emulated: the bytes of the host build in int8, and in fp32 its results."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from bundles import REUSE, classifier, images, make_bundle
from onnx_graphs import save

from adr_tvm.bare_c.footprint import compiler_flags
from adr_tvm.cli.compile import main
from adr_tvm.targets import find_target
from tests import mps2

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64", "make")
needs_arm = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason="needs g++-aarch64-linux-gnu, qemu-user and make"
)


def emit(model, folder, target, *options) -> int:
    return main([str(each) for each in (model, "-o", folder, "--target", target, "--emit", "c", "-q", *options)])


@pytest.fixture(scope="module")
def reusing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "net"
    return make_bundle(folder, classifier(), REUSE), folder / "plan.json"


@needs_arm
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_boards_and_host_give_the_same(dtype, reusing, tmp_path):
    model, plan = reusing
    given = images(6)  # the first is noise: too many clusters
    np.savez(tmp_path / "calib.npz", x=given)
    options = ["--plan", plan, "--dtype", dtype, "--calib", tmp_path / "calib.npz"]
    assert emit(model, tmp_path / "c", "rpi5", *options) == 0
    expected, counts = mps2.run(tmp_path / "c", given, "run")
    assert counts[0, 1, 1] == 0 and counts[1:, :, 1].all()
    for core in ("cortex-a72", "cortex-a76"):
        found, counted = mps2.run(tmp_path / "c", given, "run-aarch64", f"CORE={core}")
        np.testing.assert_array_equal(counted, counts)
        if dtype == "int8":
            np.testing.assert_array_equal(found, expected)
        else:  # fused multiply-adds there, two roundings here
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
    manifest = json.loads((tmp_path / "c" / "model.json").read_text())
    assert manifest["target"] == "rpi5" and manifest["bytes"]["code"] > 0
    source = json.loads((tmp_path / "c" / "report.json").read_text())
    assert re.search("estimated for bare C.* on a cortex-a76 at 2400 MHz", json.dumps(source))


def test_a_missing_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert emit(save(classifier(), tmp_path), tmp_path / "c", "rpi4") == 5
    assert "compiled by aarch64-linux-gnu-gcc, which is not installed: apt install g++-aarch" in capsys.readouterr().err


def test_flags():
    assert compiler_flags(find_target("rpi4"))[-1] == "-mcpu=cortex-a72"
    assert compiler_flags(find_target("rpi5"))[-1] == "-mcpu=cortex-a76+fp16+dotprod"
