"""``--weights blob``: constants in a file give the bytes that arrays give, and a wrong file a status code."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess

import numpy as np
import pytest
from bundles import REUSE, classifier, images, make_bundle
from onnx_graphs import save

from adr_tvm.bare_c.blob import ALIGNMENT, blob, checksum, offsets
from adr_tvm.cli.compile import main
from tests import mps2
from tests.bare_c import CC, FLAGS

needs_board = pytest.mark.skipif(mps2.missing() is not None, reason=str(mps2.missing()))
NULL, OF_ALIGNMENT, OF_WEIGHTS = 1, 3, 4  # MODEL_ERROR_...


def emit(model, folder, *options) -> int:
    return main([str(each) for each in (model, "-o", folder, "--emit", "c", "-q", *options)])


def test_the_file():
    constants = {"a": np.arange(5, dtype=np.int8), "b": np.ones((2, 3), np.float32), "c": np.array([-1], np.int32)}
    places, size = offsets(constants)
    content = blob(constants)
    assert places == {"a": 16, "b": 32, "c": 56 + 8} and len(content) == size == 80
    for name, array in constants.items():
        assert places[name] % ALIGNMENT == 0
        np.testing.assert_array_equal(np.frombuffer(content, array.dtype, array.size, places[name]), array.reshape(-1))
    assert np.frombuffer(content, "<u4", 3).tolist() == [0x57524441, 80, checksum(content)]


@needs_board
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_file_gives_what_arrays_give(dtype, tmp_path):
    model, given = make_bundle(tmp_path / "net", classifier(), REUSE), images(3)
    np.savez(tmp_path / "calib.npz", x=given)
    options = ["--plan", tmp_path / "net" / "plan.json", "--dtype", dtype, "--calib", tmp_path / "calib.npz"]
    for weights in ("arrays", "blob"):
        assert emit(model, tmp_path / weights, *options, "--weights", weights) == 0
    runs = [("run",), ("run-cortex-m4",), ("run-cortex-m7",)]
    if shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64"):
        runs.append(("run-aarch64", "CORE=cortex-a76"))
    for run in runs:
        (expected, counts), (found, counted) = (mps2.run(tmp_path / w, given, *run) for w in ("arrays", "blob"))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(counted, counts)
    arrays, blob_ = (json.loads((tmp_path / w / "model.json").read_text()) for w in ("arrays", "blob"))
    assert blob_["weights"] == "blob" and not (tmp_path / "blob" / "weights.c").exists()
    assert blob_["bytes"]["constants"] == (tmp_path / "blob" / "weights.bin").stat().st_size
    assert 0 < blob_["bytes"]["code"] - arrays["bytes"]["code"] < 512  # what checks the file
    (tmp_path / "blob" / "weights.bin").write_bytes((tmp_path / "blob" / "weights.bin").read_bytes()[:-1])
    done = subprocess.run(["./network"], cwd=tmp_path / "blob" / "example", capture_output=True, text=True)
    assert done.returncode == 1 and "weights.bin is missing, damaged" in done.stdout


@needs_board
def test_a_wrong_file(tmp_path):
    assert emit(save(classifier(), tmp_path), tmp_path / "c", "--weights", "blob") == 0
    sources = [str(tmp_path / "c" / "model.c"), *map(str, sorted((tmp_path / "c").glob("*_f32.c")))]
    command = [str(CC), *FLAGS, "-fPIC", "-shared", "-o", str(tmp_path / "model.so"), *sources, "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(tmp_path / "model.so"))
    content = np.fromfile(tmp_path / "c" / "weights.bin", np.uint8)
    size, memory = content.size, np.zeros(content.size + 32, np.uint8)
    start = -memory.ctypes.data % 16
    x, y, arena = images(1), np.zeros(5, np.float32), np.zeros(1 << 16, np.uint8)
    aligned = arena[-arena.ctypes.data % 16 :]

    def statuses(weights: np.ndarray, at: int = start, bytes_: int = size) -> tuple[int, int]:
        memory[at : at + size] = weights
        given = ctypes.c_void_p(memory.ctypes.data + at), ctypes.c_size_t(bytes_)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y)]
        ran = library.model_run(ctypes.c_void_p(aligned.ctypes.data), ctypes.c_size_t(60000), *given, *pointers, None)
        return library.model_check_weights(*given), ran

    assert statuses(content) == (0, 0) and y.any()
    damaged, other = content.copy(), content.copy()
    damaged[-40] ^= 1
    other[8] ^= 1
    assert statuses(damaged) == (OF_WEIGHTS, 0)  # a run looks at the header only
    assert statuses(other) == (OF_WEIGHTS, OF_WEIGHTS)
    assert statuses(content, bytes_=size - 1) == (OF_WEIGHTS, OF_WEIGHTS)
    assert statuses(content, at=start + 1) == (OF_ALIGNMENT, OF_ALIGNMENT)
    assert library.model_check_weights(None, ctypes.c_size_t(size)) == NULL


def test_what_it_is_for(capsys):
    assert main(["no-such-model.onnx", "--weights", "blob"]) == 2
    assert "--weights blob is for --emit c" in capsys.readouterr().err
