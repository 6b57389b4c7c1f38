"""Dense output of compiled networks against ONNX Runtime: max |a - b| / max |b| of each output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

import adr_tvm
from adr_tvm import CompileOptions, compile_model
from adr_tvm.models.light import LIGHT_NAMES, light_model
from benchmarks.validation.row import Row, Run

TOLERANCE = 1e-4
SMALL = (
    "mlperf_kws_dscnn",
    "mlperf_ic_resnet8_cifar10",
    "mlperf_vww_mobilenetv1_025_96",
    "resnet20_cifar10",
    "trec_cifarnet_cifar10",
    "squeezenet1_1_imagenet",
    "waifu2x_upconv7_photo_x2",
    "fst_wave",
)
SHAPES = {
    "fst_wave": {"image_0_255": (1, 3, 480, 640)},
    "waifu2x_upconv7_photo_x2": {"x": (1, 3, 256, 256)},
}
RANGES = {"fst_wave": 255, "mlperf_ic_resnet8_cifar10": 255}  # of their inputs; others take about 0 to 1


def check_dense(run: Run) -> Iterator[Row]:
    """All networks of the folder, then the ``light`` networks of the onnx wheel with He-normal weights."""
    for name in SMALL:
        yield dense_row(run, name, run.data.model(name))
    for name in LIGHT_NAMES:
        path = run.work / f"light_{name}.onnx"
        onnx.save(light_model(name), path)
        yield dense_row(run, f"light_{name}", path)
        path.unlink()


def dense_row(run: Run, name: str, path: Path) -> Row:
    """Compile one network without reuse and compare it on seeded uniform inputs."""
    # A pattern that every name matches: all layers dense, and no time spent on looking for reuse.
    options = CompileOptions(input_shapes=SHAPES.get(name, {}), skip=["."], threads=run.threads)
    model = adr_tvm.load(compile_model(path, run.work / f"{name}-dense", options).folder)
    rng = np.random.default_rng(1)
    inputs = {
        spec.name: (rng.random([2 if isinstance(d, str) else d for d in spec.shape]) * RANGES.get(name, 1)).astype(
            spec.dtype
        )
        for spec in model.inputs
    }
    found = model(**inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    error = max(_relative(np.asarray(a), b) for a, b in zip(outputs, _onnxruntime(path, inputs), strict=True))
    return Row(f"dense {name}", f"<= {TOLERANCE:.0e}", f"{error:.1e}", error <= TOLERANCE, {"error": error})


def _onnxruntime(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())
