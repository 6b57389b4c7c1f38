"""Calibration data: every way to give them, streaming, the split, and refusal of what does not fit."""

from __future__ import annotations

import tracemalloc
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest

from adr_tvm.data.calibration import open_calibration
from adr_tvm.errors import DataError, UsageError


@dataclass
class Spec:
    name: str
    shape: tuple
    dtype: str = "float32"


IMAGE = Spec("x", ("N", 3, 4, 5))
COUNT = 11
SAMPLES = np.arange(COUNT * 60, dtype=np.float32).reshape(COUNT, 3, 4, 5)
LABELS = np.arange(COUNT) % 3


def gather(data):
    """All inputs by name, all labels, and the sizes of the batches."""
    batches = list(data)
    names = batches[0][0]
    inputs = {name: np.concatenate([batch[0][name] for batch in batches]) for name in names}
    labels = None if batches[0][1] is None else np.concatenate([batch[1] for batch in batches])
    return inputs, labels, [len(batch[0][next(iter(names))]) for batch in batches]


def npz(folder, writer=np.savez, **arrays):
    path = folder / "calib.npz"
    writer(path, **arrays)
    return path


def npy_folder(folder, arrays, labels=None):
    for index, array in enumerate(arrays):
        np.save(folder / f"img_{index:03}.npy", array)
    if labels is not None:
        np.save(folder / "y.npy", labels)
    return folder


def sources(folder):
    """Every form of the same labelled samples."""
    yield "npz", npz(folder, x=SAMPLES, y=LABELS)
    (folder / "z").mkdir()
    yield "compressed npz", npz(folder / "z", np.savez_compressed, x=SAMPLES, y=LABELS.astype(np.uint8))
    (folder / "one").mkdir()
    yield "a sample a file", npy_folder(folder / "one", SAMPLES, LABELS)
    (folder / "many").mkdir()
    yield "samples a file", npy_folder(folder / "many", [SAMPLES[:7], SAMPLES[7], SAMPLES[8:]], LABELS)
    yield "dict", {"x": SAMPLES, "y": LABELS}
    yield "list of samples", [{"x": x, "y": y} for x, y in zip(SAMPLES, LABELS, strict=True)]
    yield "iterator", ({"x": SAMPLES[i : i + 3], "y": LABELS[i : i + 3]} for i in range(0, COUNT, 3))


@pytest.mark.parametrize("form", range(7))
def test_every_form_gives_the_same_samples(tmp_path, form):
    _, source = list(sources(tmp_path))[form]
    data = open_calibration(source, [IMAGE], "y", 4)
    assert len(data) == COUNT
    for _ in range(2):
        inputs, labels, sizes = gather(data)
        assert np.array_equal(inputs["x"], SAMPLES) and inputs["x"].dtype == np.float32
        assert np.array_equal(labels, LABELS) and labels.dtype == np.int64
        assert sizes == [4, 4, 3]
    planning, held_back = data.split(seed=3)
    assert len(planning) == 6 and len(held_back) == 5
    for half in (planning, held_back):
        inputs, labels, sizes = gather(half)
        indices = (inputs["x"][:, 0, 0, 0] / 60).astype(int)
        assert np.array_equal(labels, LABELS[indices]) and np.array_equal(half.labels, labels)
        assert sizes == [4, len(half) - 4]
        assert np.array_equal(gather(half)[0]["x"], inputs["x"])
    both = np.concatenate([gather(half)[0]["x"][:, 0, 0, 0] for half in (planning, held_back)])
    assert np.array_equal(np.sort(both), SAMPLES[:, 0, 0, 0])


def test_split_depends_on_the_seed_only():
    data = open_calibration(SAMPLES, [IMAGE], None, 2)
    first, again, other = (gather(data.split(seed)[0])[0]["x"][:, 0, 0, 0].tolist() for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(DataError, match="cannot be split"):
        open_calibration(SAMPLES[:2], [IMAGE], None, 2).split(0)[0].split(0)


def test_whole_batches():
    """For models of a fixed batch: what does not fill one is left out, of the whole and of each half."""
    data = open_calibration({"x": SAMPLES, "y": LABELS}, [IMAGE], "y", 4, whole_batches=True)
    inputs, labels, sizes = gather(data)
    assert sizes == [4, 4] and len(data) == 8
    assert np.array_equal(inputs["x"], SAMPLES[:8]) and np.array_equal(labels, LABELS[:8])
    assert [gather(half)[2] for half in data.split(0)] == [[4], [4]]
    with pytest.raises(DataError, match="hold 7 samples: give at least 8"):
        open_calibration(SAMPLES[:7], [IMAGE], None, 4, whole_batches=True)


def test_batches_belong_to_the_caller(tmp_path):
    for source in (SAMPLES.copy(), npz(tmp_path, x=SAMPLES), iter(list(SAMPLES))):
        data = open_calibration(source, [IMAGE], None, 16)
        for inputs, labels in data:
            assert labels is None
            inputs["x"][:] = -1
        assert np.array_equal(gather(data)[0]["x"], SAMPLES)


def test_several_inputs(tmp_path):
    specs = [IMAGE, Spec("ids", (1, None), "int64")]
    ids = np.arange(COUNT * 2).reshape(COUNT, 2)
    for source in (npz(tmp_path, ids=ids, x=SAMPLES, extra=np.zeros(3)), {"x": SAMPLES, "ids": ids}):
        inputs, _, _ = gather(open_calibration(source, specs, None, 4))
        assert np.array_equal(inputs["ids"], ids) and np.array_equal(inputs["x"], SAMPLES)
    with pytest.raises(DataError, match="differ in their number of samples"):
        open_calibration(npz(tmp_path, ids=ids[:5], x=SAMPLES), specs, None, 4)
    with pytest.raises(DataError, match=r"\.npy files give one input.*use an \.npz"):
        open_calibration(npy_folder(tmp_path, SAMPLES), specs, None, 4)
    with pytest.raises(DataError, match="item 0 is a ndarray: expected a dict of arrays x, ids"):
        open_calibration(SAMPLES, specs, None, 4)


def test_only_array_may_have_any_name(tmp_path):
    data = open_calibration(npz(tmp_path, images=SAMPLES, y=LABELS), [IMAGE], "y", 4)
    assert list(next(iter(data))[0]) == ["x"]
    with pytest.raises(DataError, match=r"no array 'x': it has images, y; the model takes x float32 \[N, 3, 4, 5\]"):
        open_calibration(npz(tmp_path, images=SAMPLES, y=LABELS), [IMAGE], None, 4)


def test_single_npy_file(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(SAMPLES))
    assert np.array_equal(gather(open_calibration(str(tmp_path / "a.npy"), [IMAGE], None, 3))[0]["x"], SAMPLES)


def test_dynamic_dimensions_are_fixed_by_the_first_array(tmp_path):
    spec = Spec("x", (None, 3, "height", -1))
    assert len(open_calibration(SAMPLES, [spec], None, 4)) == COUNT
    with pytest.raises(DataError, match=r"item 1: input 'x' has shape \[1, 3, 4, 6\]: dimension 3 is 6, expected 5"):
        open_calibration([SAMPLES[0], np.zeros((3, 4, 6), np.float32)], [spec], None, 4)


def test_npz_streams(tmp_path):
    big = np.zeros((64, 3, 128, 128), np.float32)
    path = npz(tmp_path, np.savez_compressed, x=big)
    tracemalloc.start()
    data = open_calibration(path, [Spec("x", ("N", 3, 128, 128))], None, 4)
    assert sum(len(inputs["x"]) for inputs, _ in data.split(0)[0]) == 32
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < big.nbytes / 3  # a batch is a 16th; reading and joining hold a few at a time


NAN, INF = SAMPLES.copy(), SAMPLES.copy()
NAN[7, 1, 2, 3], INF[9, 0, 0, 0] = np.nan, -np.inf


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (SAMPLES.astype(np.uint8), "is uint8, the model takes float32: convert.*never scaled silently"),
        (SAMPLES.astype(np.float64), "is float64, the model takes float32"),
        (SAMPLES.astype(">f4"), "is >f4, the model takes float32"),
        (
            SAMPLES.transpose(0, 2, 3, 1),
            "dimension 1 is 4, expected 3; dimension 2 is 5, expected 4; dimension 3 is 3",
        ),
        (SAMPLES.reshape(COUNT, -1), r"has 2 dimensions \[11, 60\], expected x float32 \[N, 3, 4, 5\]"),
        (NAN, "sample 7.* holds NaN or Inf"),
        (INF, "sample 9.* holds NaN or Inf"),
        (SAMPLES[:0], "hold no sample: give at least 2"),
        (SAMPLES[:1], "hold one sample: give at least 2"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "npy", "array", "iterator"])
def test_bad_samples(tmp_path, array, message, form):
    if form == "npz":
        source = npz(tmp_path, x=np.ascontiguousarray(array))
    elif form == "npy":
        source = npy_folder(tmp_path, [array])
    else:
        source = array if form == "array" else iter([array])
    with pytest.raises(DataError, match=message) as caught:
        open_calibration(source, [IMAGE], None, 4)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_nan_in_a_folder_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"sample 7 \(file img_007.npy\)"):
        open_calibration(npy_folder(tmp_path, NAN), [IMAGE], None, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], "number of samples|shape"),
        (LABELS.astype(np.float32), "float32, expected whole numbers"),
        (LABELS - 1, "label of sample 0 is negative"),
        (LABELS[:, np.newaxis], "labels"),
        (np.array([None] * COUNT), "labels|object|pickle"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "npy", "dict"])
def test_bad_labels(tmp_path, labels, message, form):
    if form == "npz":
        source = npz(tmp_path, x=SAMPLES, y=labels)
    else:
        source = npy_folder(tmp_path, SAMPLES, labels) if form == "npy" else {"x": SAMPLES, "y": labels}
    with pytest.raises(DataError, match=message):
        open_calibration(source, [IMAGE], "y", 4)


def test_missing_labels(tmp_path):
    for source in (npz(tmp_path, x=SAMPLES), {"x": SAMPLES}, npy_folder(tmp_path, SAMPLES)):
        with pytest.raises(DataError, match=r"no labels 'y'|has no 'y'|cannot read .*y\.npy"):
            open_calibration(source, [IMAGE], "y", 4)


def test_pickled_objects_are_refused(tmp_path):
    objects = np.array([{"a": 1}, {"b": 2}], dtype=object)
    with pytest.raises(DataError, match="pickled Python objects"):
        open_calibration(npz(tmp_path, x=objects), [IMAGE], None, 4)
    with pytest.raises(DataError, match="not a plain"):
        open_calibration(npy_folder(tmp_path, [objects]), [IMAGE], None, 4)


def test_damaged_files(tmp_path):
    path = npz(tmp_path, np.savez_compressed, x=np.random.default_rng(0).random(SAMPLES.shape, np.float32))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (b"", b"PK\x03\x04 no", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"calib\.npz is damaged"):
            open_calibration(path, [IMAGE], None, 4)
    file = tmp_path / "a.npy"
    np.save(file, SAMPLES)
    for content in (b"", b"text", file.read_bytes()[:500], whole):
        file.write_bytes(content)
        with pytest.raises(DataError, match="not a plain"):
            open_calibration(file, [IMAGE], None, 4)


def test_npz_header_must_match_its_data(tmp_path):
    path = tmp_path / "calib.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3, 4, 5)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(DataError, match="says shape"):
        open_calibration(path, [IMAGE], None, 4)


def test_fortran_order_in_npz(tmp_path):
    with pytest.raises(DataError, match="ascontiguousarray"):
        open_calibration(npz(tmp_path, x=np.asfortranarray(SAMPLES)), [IMAGE], None, 4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.npz", "do not exist"),
        (3, "are a int"),
        ([1, 2], "item 0 is a int"),
        ([[1.0, 2.0]], "item 0 is a list"),
        ([{"x": [1.0]}], "'x' is a list, expected a NumPy array"),
        ([{"z": SAMPLES}], "item 0 has no 'x': it has z"),
        ([{}], "it has nothing"),
        ([], "no sample"),
        (iter([]), "no sample"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(DataError, match=message):
        open_calibration(source, [IMAGE], None, 4)


def test_bad_paths_and_arguments(tmp_path):
    with pytest.raises(DataError, match=r"has no \.npy files"):
        open_calibration(tmp_path, [IMAGE], None, 4)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"expected an \.npz file"):
        open_calibration(tmp_path / "a.png", [IMAGE], None, 4)
    with pytest.raises(UsageError, match="batch size is 0"):
        open_calibration(SAMPLES, [IMAGE], None, 0)
    with pytest.raises(DataError, match="no batch dimension"):
        open_calibration(SAMPLES, [Spec("x", ())], None, 4)
    with pytest.raises(DataError, match="float9, which NumPy does not have"):
        open_calibration(SAMPLES, [Spec("x", ("N",), "float9")], None, 4)
