"""The dense network against ONNX Runtime: what the number means, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx_graphs import classifier, tokens

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module, canonical_module
from adr_tvm.data.calibration import open_calibration
from adr_tvm.frontend.dense_check import SAMPLES, check_dense, relative_error, some_inputs
from adr_tvm.frontend.onnx_model import CheckedModel, TensorSpec, check_model


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> CheckedModel:
    path = tmp_path_factory.mktemp("dense") / "net.onnx"
    path.write_bytes(tokens().SerializeToString())
    return check_model(path)


@pytest.fixture(scope="module")
def executable(checked):
    return build_module(canonical_module(checked, cpu_target()), cpu_target())


def test_small_error(checked, executable):
    found = check_dense(executable, checked, some_inputs(checked.inputs, None, seed=0))
    assert found.error is not None and found.error < 1e-5 and found.note == ""


def test_another_network_is_noticed(checked, executable, tmp_path):
    model = tokens()
    weight = next(t for t in model.graph.initializer if t.name == "bqkv")
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) + 1).tobytes()
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    other = replace(checked, path=tmp_path / "other.onnx")
    found = check_dense(executable, other, some_inputs(checked.inputs, None, seed=0))
    assert found.error is not None and found.error > 1e-3
    assert "output 'y' of the dense network differs from ONNX Runtime's" in found.note


def test_what_onnxruntime_cannot_run_is_a_note(checked, executable, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    broken = replace(checked, path=tmp_path / "bad.onnx")
    found = check_dense(executable, broken, some_inputs(checked.inputs, None, seed=0))
    assert found.error is None and "ONNX Runtime, which cannot run this model" in found.note


def test_relative_error():
    a = np.array([1.0, -4.0, np.nan], np.float32)
    assert relative_error(a, a) == 0
    assert relative_error(np.array([1.0, -3.0, np.nan]), a) == 0.25
    assert relative_error(np.array([1.0, np.nan, np.nan]), a) == np.inf
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.zeros(3)) == np.inf
    assert relative_error(np.ones(3), np.ones((3, 1))) == np.inf


def test_inputs_fit_the_batch():
    specs = (TensorSpec("x", ("N", 3), "float32"), TensorSpec("i", ("N",), "int64"))
    inputs = some_inputs(specs, None, seed=3)
    assert inputs["x"].shape == (SAMPLES, 3) and inputs["x"].dtype == np.float32
    assert inputs["i"].shape == (SAMPLES,) and inputs["i"].dtype == np.int64
    np.testing.assert_array_equal(inputs["x"], some_inputs(specs, None, seed=3)["x"])
    data = np.arange(12, dtype=np.float32).reshape(4, 3)
    fixed = (TensorSpec("x", (6, 3), "float32"),)
    calibration = open_calibration(data, fixed, None, 4)
    np.testing.assert_array_equal(some_inputs(fixed, calibration, 0)["x"], data[[0, 1, 2, 3, 0, 1]])


def test_classifier_with_calibration(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(classifier(batch=2).SerializeToString())
    checked = check_model(path)
    data = np.random.default_rng(0).standard_normal((4, 3, 12, 12), np.float32)
    calibration = open_calibration(data, checked.inputs, None, 2, whole_batches=True)
    executable = build_module(canonical_module(checked, cpu_target()), cpu_target())
    found = check_dense(executable, checked, some_inputs(checked.inputs, calibration, 0))
    assert found.error is not None and found.error < 1e-5
