"""The Linux bundle, made by adr-compile and run through its C API: here, and for AArch64 under emulation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from bundles import REUSE, images, make_bundle, two_by_two
from bundles import classifier as network

import adr_tvm
from adr_tvm.cli.compile import main
from adr_tvm.deploy.bundle import BUNDLE_FILES, staged
from adr_tvm.deploy.linux_bundle import LINUX_FILES, find_parts
from adr_tvm.deploy.tvm_runtime import LIBRARIES, find_runtime
from adr_tvm.errors import MissingDependencyError, UsageError
from adr_tvm.targets import TARGETS
from tests import aarch64

COUNT = 3
CC = shutil.which("gcc") or shutil.which("cc")
needs_emulator = pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))
RUNTIME = aarch64.runtime()
EMULATED = [aarch64.EMULATOR, "-L", aarch64.SYSROOT]
PLANS = {"reuse": REUSE, "lossless": {name: REUSE["conv1"] for name in ("conv1", "conv2")}, "dense": {}}


def emit(model: Path, plan: Path, folder: Path, *options: object) -> Path:
    argv = [model, "-o", folder, "--plan", plan / "plan.json", "--emit", "bundle", "-q", *options]
    assert main([str(each) for each in argv]) == 0
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A Linux bundle for this machine with reuse, and the library with the same plan."""
    folder = tmp_path_factory.mktemp("here") / "net"
    model = make_bundle(folder, network(), REUSE)
    return emit(model, folder, folder.with_name("linux")), folder


def run_model(bundle: Path, folder: Path, *arrays: np.ndarray, emulator=(), options=()):
    """(outputs, stdout) of the bundle's example."""
    paths = [folder / f"in{i}.npy" for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    command = [*emulator, bundle / "bin" / "run_model", bundle, *paths, "--repeat", "2", "--save", folder / "out"]
    environment = {**os.environ, "TVM_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return [np.load(path) for path in sorted(folder.glob("out*.npy"))], done.stdout


@needs_emulator
@pytest.mark.parametrize("name", PLANS)
def test_under_emulation(name, tmp_path):
    """What AArch64 computes is what this machine does: 1e-4, sums round differently; and the ids are equal there."""
    folder, bundle, entry = tmp_path / "net", tmp_path / "arm", TARGETS["rpi4"]
    make_bundle(folder, network(), PLANS[name])
    make_bundle(bundle, network(), PLANS[name], entry, find_parts(entry, RUNTIME))
    x, expected = images(COUNT), adr_tvm.load(folder)
    for options, y in (([], expected(images(COUNT))), (["--dense"], expected.dense(images(COUNT)))):
        (found,), printed = run_model(bundle, tmp_path, x, emulator=EMULATED, options=options)
        np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4 * float(np.abs(y).max()))
        best = int(y[0].argmax())
        assert printed.splitlines()[0] == "y [3x5]" and printed.splitlines()[1].split()[0] == str(best)
        assert "ms (median of 2 runs)" in printed
    with pytest.raises(adr_tvm.errors.ModelError, match="compiled for cortex-a72"):
        adr_tvm.load(bundle)


@needs_emulator
def test_of_another_machine_nothing_is_measured(here, tmp_path, capsys):
    bundle = emit(here[1].with_suffix(".onnx"), here[1], tmp_path / "arm", "--target", "rpi5", "--runtime-dir", RUNTIME)
    result = json.loads((bundle / "report.json").read_text())
    assert (result["target"], result["predicted"], result["cpu"], result["threads"]) == ("rpi5", True, "", 4)
    assert any("predicted, not measured: nothing ran on rpi5" in note for note in result["notes"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("predicted, not measured, 2 of 3 layers reused")
    assert json.loads((bundle / "bundle.json").read_text())["target"] == "rpi5"
    found, _ = run_model(bundle, tmp_path, images(COUNT), emulator=EMULATED)
    y = adr_tvm.load(here[1])(images(COUNT))
    np.testing.assert_allclose(found[0], y, rtol=1e-4, atol=1e-4 * float(np.abs(y).max()))


def test_here(here, tmp_path):
    bundle, folder = here
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert found == {*BUNDLE_FILES, *LINUX_FILES} - {"model.so"}
    y = adr_tvm.load(folder)(images(COUNT))
    np.testing.assert_array_equal(adr_tvm.load(bundle)(images(COUNT)), y)
    moved = shutil.copytree(bundle, tmp_path / "moved")
    (again,), _ = run_model(moved, tmp_path, images(COUNT))
    np.testing.assert_array_equal(again, y)
    assert "Apache License" in (bundle / "licences" / "tvm.txt").read_text()
    assert str(bundle) not in (bundle / "lib" / "libadr_model.so").read_bytes().decode("latin1")


def test_a_bundle_replaces_a_bundle_and_nothing_else(here, tmp_path):
    bundle = shutil.copytree(here[0], tmp_path / "net")
    with staged(bundle) as staging:
        shutil.copy(here[1] / "bundle.json", staging)
    assert sorted(os.listdir(bundle)) == ["bundle.json"]
    bundle = shutil.copytree(here[0], tmp_path / "other")
    (bundle / "lib" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds 'lib/mine\.txt'"), staged(bundle):
        pass
    assert (bundle / "lib" / "mine.txt").exists()


def test_several_inputs_and_outputs(tmp_path):
    model = make_bundle(tmp_path / "net", two_by_two(), {})
    bundle = emit(model, tmp_path / "net", tmp_path / "linux")
    a, b = np.random.default_rng(0).standard_normal((2, 4, 6)).astype("float32")
    (total, view), _ = run_model(bundle, tmp_path, a, b)
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(view, a.reshape(4, 2, 3))


def test_from_c_with_pkg_config(here, tmp_path):
    """A C99 program: shapes, results, every kind of error, and two threads with a model each."""
    bundle, folder = here
    source = Path(__file__).with_name("bundle_api.c")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{bundle}/include"]
    links = [f"-L{bundle}/lib", "-ladr_model", f"-Wl,-rpath,{bundle}/lib", f"-Wl,-rpath-link,{bundle}/lib", "-lpthread"]
    if shutil.which("pkg-config"):
        text = subprocess.run(
            ["pkg-config", "--cflags", "--libs", str(bundle / "lib" / "pkgconfig" / "adr_model.pc")],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert "-ladr_model" in text and f"-I{bundle}/lib/pkgconfig/../../include" in text
        links = [*text.split(), f"-Wl,-rpath,{bundle}/lib", "-lpthread"]
    program = tmp_path / "program"
    subprocess.run([str(CC), *flags, str(source), "-o", str(program), *links], check=True)
    x = images(COUNT)
    x.tofile(tmp_path / "x.bin")
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "weights.bin").write_bytes((broken / "weights.bin").read_bytes()[:-64])
    command = [str(program), str(bundle), str(broken), str(tmp_path / "x.bin"), str(COUNT), str(tmp_path / "y.bin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    y = np.fromfile(tmp_path / "y.bin", "float32").reshape(COUNT, 5)
    np.testing.assert_array_equal(y, adr_tvm.load(folder)(x))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_the_example_builds_with_cmake(here, tmp_path):
    bundle = here[0]
    for command in (["cmake", "-S", str(bundle / "example"), "-B", str(tmp_path)], ["cmake", "--build", str(tmp_path)]):
        subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([str(tmp_path / "run_model"), str(bundle)], capture_output=True, text=True)
    assert done.returncode == 1 and "the network takes 1 inputs: x" in done.stderr


class TestRuntime:
    """Where TVM's runtime for a target comes from."""

    def test_here(self):
        assert set(find_runtime(TARGETS["cpu"], None)) == set(LIBRARIES)

    def test_missing(self, tmp_path):
        with pytest.raises(MissingDependencyError, match=r"pip download .*manylinux_2_28_aarch64 .*--runtime-dir"):
            find_runtime(TARGETS["rpi4"], None)
        with pytest.raises(MissingDependencyError, match="not found in --runtime-dir"):
            find_runtime(TARGETS["rpi4"], tmp_path)
        with pytest.raises(UsageError, match="not a folder"):
            find_runtime(TARGETS["rpi4"], tmp_path / "nowhere")

    def test_of_another_system(self, tmp_path):
        for name, data in find_runtime(TARGETS["cpu"], None).items():
            (tmp_path / name).write_bytes(data)
        with pytest.raises(MissingDependencyError, match="is not for aarch64-linux-gnu"):
            find_runtime(TARGETS["rpi4"], tmp_path)

    def test_from_wheels(self, tmp_path):
        wanted = find_runtime(TARGETS["cpu"], None)
        for package, name, place in (
            ("apache-tvm", "libtvm_runtime.so", "tvm/lib"),
            ("apache-tvm-ffi", "libtvm_ffi.so", "tvm_ffi/lib"),
        ):
            stem = f"{package.replace('-', '_')}-{metadata.version(package)}"
            with zipfile.ZipFile(tmp_path / f"{stem}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{place}/{name}", wanted[name])
        assert find_runtime(TARGETS["cpu"], tmp_path) == wanted

    def test_is_checked_before_any_work(self, tmp_path, capsys):
        code = main([str(tmp_path / "none.onnx"), "--target", "rpi4", "--emit", "bundle"])
        assert code == 5 and "TVM's runtime" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_compiler_without_cxx(self, tmp_path, monkeypatch):
        parts = find_parts(TARGETS["cpu"], None)
        from adr_tvm.deploy import linux_bundle

        monkeypatch.setattr(linux_bundle, "tvm_includes", list)
        linux_bundle.write_runtime(tmp_path, parts)
        with pytest.raises(MissingDependencyError, match=r"cannot compile adr_model.cc; install g\+\+"):
            linux_bundle.write_linux_parts(tmp_path, parts)


def test_options(tmp_path, capsys):
    assert main(["m.onnx", "--emit", "d"]) == 2
    assert "--emit is 'd', expected one of library, bundle, c" in capsys.readouterr().err
    assert main(["m.onnx", "--runtime-dir", str(tmp_path)]) == 2
    assert "--runtime-dir is for --emit bundle" in capsys.readouterr().err
