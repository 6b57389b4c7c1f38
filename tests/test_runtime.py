"""``adr_tvm.load``: what goes in and comes out, the counts, and bundles that must not be loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import REUSE, classifier, images, make_bundle, two_by_two

import adr_tvm
from adr_tvm.data.tensor_spec import TensorSpec
from adr_tvm.deploy.runtime import LayerCounts
from adr_tvm.deploy.tensors import ALIGNMENT, Feed, aligned
from adr_tvm.errors import ModelError

VECTORS = {"conv1": 64, "conv2": 128}  # of one image: 8x8 rows, 8x8 pixels in 2 segments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reuse") / "out"
    make_bundle(folder, classifier(), REUSE)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return adr_tvm.load(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "out"
    make_bundle(folder, two_by_two(), {})
    return adr_tvm.load(folder)


def readable(shape):
    """Memory that kernels read in place."""
    return aligned(4 * int(np.prod(shape))).view("float32").reshape(shape)


def torch_or_skip():
    return pytest.importorskip("torch")


def test_describes_itself(model):
    assert [str(spec) for spec in model.inputs] == ["x float32 [N, 4, 8, 8]"]
    assert [str(spec) for spec in model.outputs] == ["y float32 [N, 5]"]
    assert {layer.layer: layer.vectors for layer in model.manifest.reuse_layers} == VECTORS
    assert not model.manifest.lossless
    assert list(model.plan.reused) == list(VECTORS)


def test_dense_is_onnxruntime(folder, model):
    x = images(3)
    session = onnxruntime.InferenceSession(str(folder.with_suffix(".onnx")))
    np.testing.assert_allclose(model.dense(x), session.run(None, {"x": x})[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_and_images_do_not_depend_on_each_other(model, batch):
    x = images(7)
    found = model(x[:batch])
    assert found.shape == (batch, 5)
    np.testing.assert_array_equal(found, model(x)[:batch])
    np.testing.assert_array_equal(found, model(x=x[:batch]))


def test_counts(model):
    x = images(4)
    result, counts = model.run_with_counts(x)
    np.testing.assert_array_equal(result, model(x))
    assert list(counts) == list(VECTORS)
    for name, count in counts.items():
        assert count.vectors == VECTORS[name]
        assert count.clusters.shape == count.reused.shape == (4,)
        assert count.reused.dtype == bool
        assert (count.clusters <= count.vectors).all()
    # Image 0 is noise: no rows repeat, and the guard of conv2 (40 of 128) stops it. The others repeat.
    assert [count.reused.tolist() for count in counts.values()] == [[False, True, True, True]] * 2
    assert counts["conv2"].clusters[0] > 40
    assert counts["conv1"].r_c < 1


def test_what_ran_dense_equals_dense(model):
    x = images(1)
    np.testing.assert_array_equal(model(x), model.dense(x))


def test_uncounted_units_save_nothing():
    counts = LayerCounts(np.array([0, 25]), np.array([False, True]), 100)
    assert counts.r_c == pytest.approx((1 + 0.25) / 2)


def test_without_reuse(pair):
    a, b = np.ones((2, 6), "float32"), np.full((2, 6), 2, "float32")
    result, counts = pair.run_with_counts(a, b=b)
    assert counts == {}
    assert isinstance(result, tuple)
    np.testing.assert_array_equal(result[0], a + b)
    np.testing.assert_array_equal(result[1], a.reshape(2, 2, 3))
    np.testing.assert_array_equal(pair(b=b, a=a)[0], pair.dense(a, b)[0])
    assert pair.manifest.lossless


def test_results_are_the_callers(model, pair):
    x = images(2)
    first = model(x)
    kept = first.copy()
    model(x[::-1])
    np.testing.assert_array_equal(first, kept)
    a = readable((2, 6))  # passed in place, and the second output is a view of it
    a[...] = 1
    view = pair(a, a)[1]
    view[:] = 7
    assert (a == 1).all()


def test_memory_does_not_grow_with_every_new_batch_size(model):
    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    x = np.tile(images(2), (1000, 1, 1, 1))  # a call takes 10 MiB; if all were kept, 60 would take 600
    model.dense(x)
    before = resident()
    for fewer in range(1, 61):
        model.dense(x[fewer:])
    assert resident() - before < 200


def test_a_model_for_each_thread(folder, model):
    inputs = [images(5)[i:] for i in range(4)]
    expected = [model(x) for x in inputs]

    def work(x):
        own = adr_tvm.load(folder)
        return [own(x) for _ in range(20)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for found, one in zip(pool.map(work, inputs), expected, strict=True):
            for each in found:
                np.testing.assert_array_equal(each, one)


def test_arrays_that_kernels_cannot_read_in_place(model):
    x = images(3)
    expected = model(x)
    memory = np.zeros(x.size + 1, "float32")
    shifted = memory[1:].reshape(x.shape)
    shifted[...] = x
    frozen = readable(x.shape)
    frozen[...] = x
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    transposed = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for array in (shifted, frozen, strided, transposed):
        np.testing.assert_array_equal(model(array), expected)


def test_only_what_must_be_copied_is():
    feed = Feed([TensorSpec("x", ("N", 64), "float32")])
    array = readable((4, 64))
    assert feed([array])[0].data_ptr() == array.ctypes.data
    array.flags.writeable = False
    copy = feed([array])[0]
    assert copy.data_ptr() != array.ctypes.data
    assert copy.data_ptr() % ALIGNMENT == 0
    torch = torch_or_skip()
    tensor = torch.ones(64, 64)
    assert feed([tensor])[0].data_ptr() == tensor.data_ptr()
    wide = torch.ones(64, 65)[:, 1:]
    assert feed([wide])[0].data_ptr() % ALIGNMENT == 0
    assert feed([wide])[0].data_ptr() not in (wide.data_ptr(), tensor.data_ptr())


def test_every_call_is_checked(pair):
    """What was accepted once is remembered; it must not let anything else pass."""
    good = np.ones((2, 6), "float32")
    for bad in (np.ones((2, 6)), np.ones((3, 6), "float32"), [[1.0] * 6] * 2):
        pair(good, good)
        with pytest.raises((TypeError, ValueError), match="input 'b'"):
            pair(good, bad)
    for batch in (1, 2, 3):
        a = np.full((batch, 6), batch, "float32")
        np.testing.assert_array_equal(pair(a, a)[0], 2 * a)


def test_torch_in_torch_out(model):
    torch = torch_or_skip()
    x = images(3)
    expected = model(x)
    tensor = torch.from_numpy(x).requires_grad_()
    for given in (tensor, tensor.to(memory_format=torch.channels_last), torch.cat([tensor, tensor])[3:]):
        found = model(given)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)
    result, _ = model.run_with_counts(tensor)
    assert isinstance(result, torch.Tensor)


@pytest.mark.parametrize(
    ("arrays", "by_name", "error", "message"),
    [
        ([], {}, TypeError, "input 'a' is missing, expected 'a', 'b'"),
        (["a", "b", "a"], {}, TypeError, "3 inputs given, expected 2"),
        (["a"], {"a": "a", "b": "b"}, TypeError, "input 'a' is given twice"),
        (["a"], {"c": "b"}, TypeError, "input 'c' is not known, expected 'a', 'b'"),
        (["a", "double"], {}, TypeError, "input 'b' is float64, expected float32"),
        (["a", "swapped"], {}, TypeError, "input 'b' is >f4, expected float32"),
        (["a", "list"], {}, TypeError, "input 'b' is a list, expected a NumPy array or a torch tensor of float32"),
        (["a", "wide"], {}, ValueError, r"input 'b' has shape \[2, 7\], expected \[N, 6\]: see dimension 1"),
        (["a", "flat"], {}, ValueError, r"input 'b' has shape \[6\], expected \[N, 6\]"),
        (["a", "empty"], {}, ValueError, r"input 'b' has shape \[0, 6\]: it is empty"),
        (["a", "three"], {}, ValueError, "input 'b' has N = 3, but input 'a' has N = 2"),
    ],
)
def test_wrong_inputs(pair, arrays, by_name, error, message):
    values = {
        "a": np.ones((2, 6), "float32"),
        "b": np.ones((2, 6), "float32"),
        "double": np.ones((2, 6)),
        "swapped": np.ones((2, 6), ">f4"),
        "list": [[1.0] * 6] * 2,
        "wide": np.ones((2, 7), "float32"),
        "flat": np.ones(6, "float32"),
        "empty": np.ones((0, 6), "float32"),
        "three": np.ones((3, 6), "float32"),
    }
    with pytest.raises(error, match=message):
        pair(*(values[name] for name in arrays), **{name: values[value] for name, value in by_name.items()})


def test_wrong_torch_type(pair):
    torch = torch_or_skip()
    with pytest.raises(TypeError, match="input 'b' is bfloat16, expected float32"):
        pair(torch.ones(2, 6), torch.ones(2, 6, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="input 'a' is on meta, expected cpu"):
        pair(torch.ones(2, 6, device="meta"), torch.ones(2, 6))


def damaged(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def edit(name, **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.so").write_bytes((f / "model.so").read_bytes()[:5000]), "model.so is damaged"),
        (lambda f: (f / "model.so").unlink(), "cannot read .*model.so"),
        (lambda f: (f / "weights.bin").unlink(), "cannot read .*weights.bin"),
        (lambda f: (f / "weights.bin").write_bytes(bytes(640)), "weights.bin is damaged"),
        (lambda f: (f / "plan.json").unlink(), "cannot read .*plan.json"),
        (edit("plan.json", model_sha256="0" * 64), "plan and manifest are not of one bundle"),
        (edit("bundle.json", reuse_layers=[]), "plan and manifest are not of one bundle"),
        (edit("bundle.json", cpu="z99", cpu_features=["avx512x"]), "compiled for z99, which has avx512x"),
    ],
)
def test_bundles_that_must_not_be_loaded(folder, tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        adr_tvm.load(damaged(folder, tmp_path, change))


def test_import_of_the_package_is_light():
    code = "import adr_tvm, sys; assert not {'tvm', 'numpy', 'torch', 'onnx'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=900).returncode == 0
