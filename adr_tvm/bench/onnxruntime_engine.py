"""ONNX Runtime on the CPU, as a user would run it, and its static 8-bit quantisation: what a bundle is compared with.

Sessions have a given number of intra-op threads, one inter-op thread, and ONNX Runtime's defaults otherwise; among
them ``session.intra_op.allow_spinning``: its threads spin for a while after each run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tvm.target import codegen

from adr_tvm._tvm import cpu_target
from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_limits import one_line

Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], list[np.ndarray]]

CALIBRATION_SAMPLES = 512
QDQ_OPSET = 13  # the first with scales for each channel
_ERRORS_ONLY = 3


def onnxruntime_engine(path: Path, outputs: Sequence[str], threads: int) -> Run:
    """A function that runs an ONNX file: arrays by input name to the named outputs.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    with _as_model_error(path, "load"):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = list(outputs)

    def run(feed: Feed) -> list[np.ndarray]:
        return list(session.run(names, feed))

    return run


def quantise(path: Path, folder: Path, batches: Iterable[Feed]) -> Path:
    """Make the 8-bit model (QDQ, MinMax ranges, uint8 activations, int8 weights per channel); returns its path.

    Args:
        path: the fp32 model.
        folder: for temporary files.
        batches: calibration data by input name.

    Raises:
        ModelError: ONNX Runtime cannot quantise the model.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantised = folder / "prepared.onnx", folder / "int8.onnx"
    with _as_model_error(path, "quantise"), _quiet():
        # Symbolic shape inference is for transformers and needs sympy.
        quant_pre_process(_with_opset(path, folder), prepared, skip_symbolic_shape=True)
        # Its fast kernels for x86 (VNNI) multiply unsigned activations by signed weights: on ResNet20 0.43x the fp32
        # time, where its default, signed by signed, takes 1.3x.
        quantize_static(
            prepared,
            quantised,
            _Reader(batches),
            QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=_saturates(),
        )
    return quantised


def _saturates() -> bool:
    """Whether this machine multiplies 8-bit numbers as AVX2 does: sums of two products in 16 bits.

    They saturate unless weights keep to 7 bits.
    """
    avx2, *vnni = (codegen.target_has_features(name, cpu_target()) for name in ("avx2", "avx512vnni", "avxvnni"))
    return avx2 and not any(vnni)


def _with_opset(path: Path, folder: Path) -> Path:
    import onnx

    model = onnx.load(path)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), QDQ_OPSET)
    if opset >= QDQ_OPSET:
        return path
    raised = folder / "opset.onnx"
    onnx.save(onnx.version_converter.convert_version(model, QDQ_OPSET), raised)
    return raised


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterable[Feed]) -> None:
        self._batches = _first_samples(batches)

    def get_next(self) -> Feed | None:
        return next(self._batches, None)


def _first_samples(batches: Iterable[Feed]) -> Iterator[Feed]:
    seen = 0
    for feed in batches:
        yield feed
        seen += len(next(iter(feed.values())))
        if seen >= CALIBRATION_SAMPLES:
            return


@contextmanager
def _as_model_error(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its own classes, one for each status, derive from Exception alone
        raise ModelError(f"ONNX Runtime cannot {verb} {path}: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice on standard error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
