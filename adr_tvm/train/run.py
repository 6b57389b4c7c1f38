"""A whole training run: network and data in; checkpoints, metrics, report and the trained ONNX file out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adr_tvm.deploy.threads import set_threads
from adr_tvm.errors import AdrError, UsageError
from adr_tvm.progress import get_log
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.training_target import training_entry

if TYPE_CHECKING:
    from adr_tvm.train.engine import Engine
    from adr_tvm.train.fine_tuning import TunedEngine
    from adr_tvm.train.trainer import Trained

MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        folder: with ``model.onnx``, ``report.html``, ``metrics.jsonl``, ``last.safetensors``, ``best.safetensors``;
            after fine-tuning ``plan.json`` and ``planes.npz`` for the trained network.
        network: its name.
        trained: what it came to.
    """

    folder: Path
    network: str
    trained: Trained


def default_output(network: str | Path) -> Path:
    """Where a run goes if the user does not say: ``NETWORK-run`` in the current folder."""
    return Path(f"{Path(network).stem}-run")


def train_model(
    network: str | Path | None,
    data: str | Path,
    out: str | Path | None = None,
    options: TrainOptions | None = None,
    make_engine: Callable[[Path, TrainOptions, str], Engine] | None = None,
) -> TrainResult:
    """Train a network.

    Args:
        network: one of ``adr_tvm.train.networks`` by name, or an ONNX file: one float32 input [N, C, H, W], one
            output, logits [N, classes]; None: ``options.init``.
        data: whatever ``adr_tvm.data.training_data.open_training_data`` takes.
        out: folder of the run; None: ``NETWORK-run``.
        options: the defaults if None.
        make_engine: makes what trains from file, options and name; None: the compiled network. Not with a plan.

    Raises:
        ModelError: the network is bad, or has operators without a gradient: all are named; the plan is of another
            model, or cannot be trained under.
        DataError: the data are missing, bad or do not fit the network, or a checkpoint is damaged.
        UsageError: the folder holds another run, or cannot be written; neither network nor ``options.init`` is given.
        TrainingDivergedError: the loss became NaN.
        MissingDependencyError: there is no GPU, or nothing to compile for it with.
        KeyboardInterrupt: after Ctrl-C; a checkpoint was written.
    """
    options = options or TrainOptions()
    named = options.init if network is None else network
    if named is None:
        raise UsageError("there is no network: give NETWORK or --init MODEL.onnx")
    folder = default_output(named) if out is None else Path(out)
    set_threads(options.threads)
    entry = training_entry(options.target, options.amp)
    _check_folder(folder, options)
    from adr_tvm.build import code_objects_of

    with code_objects_of(entry):
        return _trained(network, str(named), data, folder, options, make_engine)


def _trained(
    network: str | Path | None,
    named: str,
    data: str | Path,
    folder: Path,
    options: TrainOptions,
    make_engine: Callable[[Path, TrainOptions, str], Engine] | None,
) -> TrainResult:
    from adr_tvm.data.training_data import check_classes, open_training_data
    from adr_tvm.jsonfile import write_bytes
    from adr_tvm.train.augmentation import Preparation
    from adr_tvm.train.networks import network_file
    from adr_tvm.train.recipe import compiled_engine, learning_rate, tuned_engine
    from adr_tvm.train.report import write_training_report
    from adr_tvm.train.starting_plan import starting_plan
    from adr_tvm.train.trainer import Trainer

    samples = open_training_data(data)
    name, path = Path(named).stem, network_file(network, options.seed, folder, options.init)
    tuned: TunedEngine | None = None
    if options.fine_tuning:
        plan = starting_plan(Path(options.init or path), samples, options, folder)
        tuned = tuned_engine(path, options, name, plan)
    engine: Engine = tuned or (make_engine or compiled_engine)(path, options, name)
    channels, height, width = engine.input_shape
    mean, std = (samples.mean, samples.std) if options.mean is None else (options.mean, options.std)
    preparation = Preparation(height, width, mean, std, options.augment, options.padding)
    preparation.check(samples.shape, channels, samples.source)
    check_classes(samples, engine.classes)

    def report() -> None:
        write_training_report(folder)

    trainer = Trainer(engine, samples, preparation, options, folder, learning_rate(options), report, tuned)
    try:
        trained = trainer.run()
    except (KeyboardInterrupt, AdrError):
        _report_if_begun(folder)
        raise
    report()
    model = engine.export(trainer.state)
    if mean is not None and std is not None:
        for key, values in (("adr_tvm.mean", mean), ("adr_tvm.std", std)):
            model.metadata_props.add(key=key, value=",".join(map(str, values)))
    content = model.SerializeToString()
    write_bytes(folder / MODEL_FILE, content)
    if tuned is not None:
        tuned.tuned_plan(trainer.state, hashlib.sha256(content).hexdigest()).save(folder)
    get_log().info("wrote %s", folder)
    return TrainResult(folder, engine.name, trained)


def _check_folder(folder: Path, options: TrainOptions) -> None:
    from adr_tvm.train.checkpoint import LAST
    from adr_tvm.train.metrics_log import METRICS_FILE

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    held = [name for name in (LAST, METRICS_FILE) if (folder / name).exists()]
    if held and not options.resume:
        raise UsageError(f"{folder} holds a run already ({held[0]}): add --resume, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error


def _report_if_begun(folder: Path) -> None:
    """The report of a run that ended early, if there is anything to report."""
    from adr_tvm.train.metrics_log import METRICS_FILE
    from adr_tvm.train.report import write_training_report

    if (folder / METRICS_FILE).exists():
        write_training_report(folder)
