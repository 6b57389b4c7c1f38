"""A bundle side by side with ONNX Runtime: time and accuracy, for some numbers of threads.

Each number of threads has a process of its own (``adr_tvm.bench.worker``); this one checks everything first, makes
the 8-bit model, and puts the answers together.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import adr_tvm
from adr_tvm.bench.results import OURS, BenchResult, ThreadTimes, engine_times
from adr_tvm.bench.worker import Answer, Job
from adr_tvm.cli.common import INTERRUPTED
from adr_tvm.cli.process import has_descriptor
from adr_tvm.data.tensor_spec import TensorSpec
from adr_tvm.deploy.bundle import Manifest
from adr_tvm.deploy.processor import processor_name
from adr_tvm.deploy.threads import VARIABLE, check_threads, physical_cores
from adr_tvm.errors import AdrError, DataError, MissingDependencyError, ModelError, UsageError
from adr_tvm.jsonfile import read_json, write_json
from adr_tvm.options import METRIC_NAMES
from adr_tvm.progress import get_log

if TYPE_CHECKING:
    from adr_tvm.data.calibration import CalibrationSet
    from adr_tvm.frontend.onnx_model import CheckedModel

AGAINST = ("onnxruntime", "onnxruntime-int8", "dense")
INT8 = "onnxruntime-int8"
CALIBRATION_BATCH = 8
_ERRORS = {error.exit_code: error for error in (UsageError, ModelError, MissingDependencyError)}


@dataclass(frozen=True)
class BenchOptions:
    """What to compare.

    Attributes:
        bundle: folder that ``adr-compile`` wrote.
        model: the ONNX file it was compiled from.
        samples: inputs, as ``adr_tvm.data.calibration.open_calibration`` takes a path.
        labels_name: name of the class labels among them.
        calibration: likewise, to quantise with.
        against: some of ``AGAINST``.
        threads: numbers of threads; empty: all physical cores.
        batch: images of a run; None: the model's own, 1 where it is free.
        runs: timed rounds.
        metric: ``auto``, or as in ``adr_tvm.metrics.metrics``.
        verbosity: of the log.

    Raises:
        UsageError: a value out of range, or options that contradict each other.
    """

    bundle: Path
    model: Path
    samples: Path
    labels_name: str | None = None
    calibration: Path | None = None
    against: Sequence[str] = ("onnxruntime", "dense")
    threads: Sequence[int] = ()
    batch: int | None = None
    runs: int = 36  # whole cycles of orders of 2, 3 or 4 engines
    metric: str = "auto"
    verbosity: int = 0

    def __post_init__(self) -> None:
        for name in self.against:
            if name not in AGAINST:
                raise UsageError(f"--against {name!r} is not known; there is {', '.join(AGAINST)}")
        for flag, values in (("--against", self.against), ("--threads", self.threads)):
            if len(set(values)) != len(values):
                raise UsageError(f"{flag} names one thing twice")
        if self.metric not in METRIC_NAMES:
            raise UsageError(f"--metric is {self.metric!r}, expected one of {', '.join(METRIC_NAMES)}")
        if INT8 in self.against and self.calibration is None:
            raise UsageError(f"--against {INT8} needs data to quantise with: add --calib")
        for count in self.threads:
            check_threads(count)
        for flag, value in (("--batch", self.batch), ("--runs", self.runs)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} is {value}, expected 1 or more")


def bench(options: BenchOptions) -> BenchResult:
    """Measure a bundle against other engines.

    Raises:
        ModelError: the bundle or the model cannot be used, or they do not belong together.
        DataError: the data do not fit the model.
        UsageError: options that do not fit the model.
    """
    from adr_tvm.frontend.onnx_model import check_model

    manifest = Manifest.load(options.bundle)
    shapes = {spec.name: spec.shape for spec in manifest.inputs}
    checked = check_model(options.model, shapes)
    if checked.sha256 != manifest.model_sha256:
        raise ModelError(
            f"{options.bundle} was compiled from another model ({manifest.model}, SHA-256 "
            f"{manifest.model_sha256[:12]}...) than {options.model} ({checked.sha256[:12]}...)"
        )
    batch = _batch(manifest.inputs, options.batch)
    samples = open_samples(options.samples, manifest.inputs, options.labels_name, batch)
    if len(samples) < batch:
        raise DataError(f"{options.samples} holds {len(samples)} samples, --batch asks for {batch}")
    threads = list(options.threads) or [physical_cores()]
    with tempfile.TemporaryDirectory(prefix="adr-bench-") as temporary:
        folder = Path(temporary)
        model = _model_of_size(options.model, checked, folder)
        job = Job(
            bundle=str(options.bundle),
            model=str(model),
            samples=str(options.samples),
            labels_name=options.labels_name,
            engines=[OURS, *options.against],
            int8_model=_quantised(options, model, manifest, folder) if INT8 in options.against else None,
            threads=threads[0],
            batch=batch,
            runs=options.runs,
            metric=options.metric,
            verbosity=options.verbosity,
        )
        first = _in_process(job, folder)
        others = [_in_process(replace(job, threads=count, metric=None), folder) for count in threads[1:]]
    return BenchResult(
        model=options.model.name,
        model_sha256=manifest.model_sha256,
        bundle=str(options.bundle),
        processor=processor_name(),
        cores=physical_cores(),
        versions=_versions(),
        batch=batch,
        runs=options.runs,
        metric=first.metric,
        samples=first.samples,
        accuracy=first.accuracy,
        times=[ThreadTimes(n, engine_times(a.times)) for n, a in zip(threads, [first, *others], strict=True)],
        notes=_notes(manifest, threads),
    )


def open_samples(path: str | Path, inputs: Sequence[TensorSpec], labels_name: str | None, batch: int) -> CalibrationSet:
    """Data in batches of one size; a fixed batch leaves out what does not fill one.

    Raises:
        DataError: the data are missing, damaged, or do not fit the model.
    """
    from adr_tvm.data.calibration import open_calibration

    fixed = _fixed_batch(inputs) is not None
    return open_calibration(path, inputs, labels_name, batch, whole_batches=fixed, halves=False)


def _fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    return next((spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)), None)


def _batch(inputs: Sequence[TensorSpec], asked: int | None) -> int:
    fixed = _fixed_batch(inputs)
    if fixed is not None and asked not in (None, fixed):
        raise UsageError(f"--batch is {asked}, but the model's batch is fixed to {fixed}")
    return fixed or asked or 1


def _model_of_size(path: Path, checked: CheckedModel, folder: Path) -> Path:
    """The file, or a copy in our normalised form where the bundle takes another input size than the file states."""
    import onnx

    from adr_tvm.frontend.onnx_inputs import contradicts

    shapes = {spec.name: spec.shape for spec in checked.inputs}
    declared = onnx.load(path, load_external_data=False).graph.input
    if not any(contradicts(value, shapes.get(value.name)) for value in declared):
        return path
    resized = folder / "resized.onnx"
    onnx.save(checked.proto, resized)
    return resized


def _quantised(options: BenchOptions, model: Path, manifest: Manifest, folder: Path) -> str:
    from adr_tvm.bench.onnxruntime_engine import quantise

    get_log().info("quantising %s with ONNX Runtime", options.model.name)
    size = _fixed_batch(manifest.inputs) or CALIBRATION_BATCH
    samples = _calibration(options, manifest.inputs, size)
    return str(quantise(model, folder, (feed for feed, _ in samples)))


def _calibration(options: BenchOptions, inputs: Sequence[TensorSpec], size: int) -> CalibrationSet:
    """The data to quantise with; they need no labels, but may hold some."""
    path = options.calibration or ""
    try:
        return open_samples(path, inputs, None, size)
    except DataError:
        with suppress(DataError):
            return open_samples(path, inputs, options.labels_name, size)
        raise


def _in_process(job: Job, folder: Path) -> Answer:
    job_file, answer_file = folder / f"job-{job.threads}.json", folder / f"answer-{job.threads}.json"
    write_json(job_file, asdict(job))
    environment = os.environ | {VARIABLE: str(job.threads)}
    # -P: modules of the current folder are not imported.
    command = [sys.executable, "-P", "-m", "adr_tvm.bench.worker", str(job_file), str(answer_file)]
    # Where the command line has silenced descriptor 2, Python's stderr is another one.
    stderr = sys.stderr if has_descriptor(sys.stderr) else None
    code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr).returncode
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if not answer_file.is_file():
        reason = (
            f"was killed by signal {-code}, perhaps for lack of memory" if code < 0 else f"failed, exit code {code}"
        )
        raise AdrError(f"the process that measures with {job.threads} threads {reason}")
    answer = read_json(answer_file, Answer, None, UsageError)
    if answer.error is None:
        return answer
    if answer.exit_code in _ERRORS:
        raise _ERRORS[answer.exit_code](answer.error)
    raise RuntimeError(answer.error)


def _versions() -> dict[str, str]:
    packages = {"onnxruntime": "onnxruntime", "numpy": "numpy", "tvm": "apache-tvm", "onnx": "onnx"}
    versions = {name: metadata.version(package) for name, package in packages.items()}
    return {"adr_tvm": adr_tvm.__version__, "python": platform.python_version(), **versions}


def _notes(manifest: Manifest, threads: Sequence[int]) -> list[str]:
    notes = []
    if not manifest.reuse_layers:
        notes.append("no layer of this bundle reuses: adr and dense are the same")
    if any(layer.scope == "batch" for layer in manifest.reuse_layers):
        notes.append("some layers cluster over the whole batch: their results depend on the batch")
    cores = physical_cores()
    notes += [f"{count} threads are more than the {cores} physical cores" for count in threads if count > cores]
    return notes
