"""The dense network against ONNX Runtime: the error of importing and of the kernels, apart from reuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.frontend.onnx_limits import one_line
from adr_tvm.frontend.onnx_model import CheckedModel, TensorSpec

TOLERANCE = 1e-4
"""Largest relative error that rounding explains; the light ImageNet networks stay below 1e-5."""
SAMPLES = 4

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DenseCheck:
    """What the comparison found.

    Attributes:
        error: max |a - b| / max |b| over the outputs, the largest of them; None where it could not be made.
        note: for the report: why not, or that the error is large; empty if all is well.
    """

    error: float | None
    note: str = ""


def check_dense(executable: Any, checked: CheckedModel, inputs: Inputs) -> DenseCheck:
    """Run ``main`` of a dense library and the ONNX file under ONNX Runtime on the same inputs.

    Args:
        executable: built from the canonical module.
        checked: the model; its file is read again, so that our own normalisation is under test too.
        inputs: by name, [b, ...] each.
    """
    expected = _onnxruntime(checked, inputs)
    if isinstance(expected, str):
        return DenseCheck(None, f"not compared with ONNX Runtime, which cannot run this model: {expected}")
    import tvm
    from tvm import relax

    tensors = [tvm.runtime.tensor(inputs[spec.name]) for spec in checked.inputs]
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](*tensors)
    outputs = [found] if len(checked.outputs) == 1 else list(found)
    errors = [relative_error(a.numpy(), b) for a, b in zip(outputs, expected, strict=True)]
    error = max(errors)
    if error <= TOLERANCE:
        return DenseCheck(error)
    worst = checked.outputs[errors.index(error)].name
    return DenseCheck(
        error,
        f"output {worst!r} of the dense network differs from ONNX Runtime's by {error:.2g} of its largest "
        "value, more than rounding explains: check the results before use",
    )


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max |a - b| / max |b|; infinite if shapes differ, or one is finite where the other is not."""
    if a.shape != b.shape:
        return float("inf")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    difference, scale = (float(np.abs(v[finite]).max(initial=0.0)) for v in (a - b, b))
    return difference / scale if scale else float("inf") if difference else 0.0


def some_inputs(specs: Sequence[TensorSpec], calibration: CalibrationSet | None, seed: int) -> Inputs:
    """A few samples to compare on: calibration data where there are any, else seeded random numbers.

    A free batch becomes ``SAMPLES``; samples are repeated where a fixed one is larger than what there is.
    """
    batch = next((s.shape[0] for s in specs if s.shape and isinstance(s.shape[0], int)), SAMPLES)
    if calibration is not None:
        samples, _ = next(iter(calibration))
        return {name: array[np.arange(int(batch)) % len(array)] for name, array in samples.items()}
    return random_inputs(specs, int(batch), seed)


def random_inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> dict[str, np.ndarray]:
    """Seeded random numbers for every input; a free batch becomes ``batch``."""
    rng = np.random.default_rng(seed)
    return {spec.name: _random(spec, batch, rng) for spec in specs}


def _random(spec: TensorSpec, batch: int, rng: np.random.Generator) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else batch for dim in spec.shape]
    if spec.dtype == "float32":
        return rng.standard_normal(shape, np.float32)
    return rng.integers(0, 2, shape).astype(spec.dtype)  # whatever they index has an entry 0 and 1, nearly always


def _onnxruntime(checked: CheckedModel, inputs: Inputs) -> list[np.ndarray] | str:
    """Its outputs, or why it has none.

    A file that fixes another input size than was asked for runs in the form that we normalised.
    """
    try:
        return _session_outputs(str(checked.path), checked, inputs)
    except Exception as error:  # its own classes, one for each status, derive from Exception alone
        if type(error).__name__ != "InvalidArgument":
            return one_line(error, 200)
    try:
        return _session_outputs(checked.proto.SerializeToString(), checked, inputs)
    except Exception as error:
        return one_line(error, 200)


def _session_outputs(model: str | bytes, checked: CheckedModel, inputs: Inputs) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run_options = onnxruntime.RunOptions()
    run_options.log_severity_level = 4
    return session.run([spec.name for spec in checked.outputs], dict(inputs), run_options)
