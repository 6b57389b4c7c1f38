"""From options to what trains: the compiled network with its optimizer, and the learning rates of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adr_tvm.train.options import TrainOptions

if TYPE_CHECKING:
    from adr_tvm.plan import ReusePlan
    from adr_tvm.train.compiled_engine import CompiledEngine
    from adr_tvm.train.fine_tuning import TunedEngine
    from adr_tvm.train.optimizers import Optimizer


def compiled_engine(path: Path, options: TrainOptions, name: str) -> CompiledEngine:
    """The network of an ONNX file, compiled for this machine's processor or GPU.

    Raises:
        ModelError: the file is bad, or has operators without a gradient.
        MissingDependencyError, UsageError: as ``training_entry``.
    """
    from adr_tvm.precision import PRECISIONS
    from adr_tvm.train.compiled_engine import CompiledEngine
    from adr_tvm.train.training_target import training_entry

    return CompiledEngine(
        path,
        optimizer(options),
        options.batch,
        training_entry(options.target, options.amp).make(None),
        options.label_smoothing,
        name,
        options.seed,
        None if options.amp is None else PRECISIONS[options.amp],
        options.pin_memory,
    )


def tuned_engine(path: Path, options: TrainOptions, name: str, plan: ReusePlan) -> TunedEngine:
    """The same, to be trained under a plan.

    Raises:
        ModelError: as above, or the plan does not fit the network.
    """
    from adr_tvm.targets import find_target
    from adr_tvm.train.fine_tuning import TunedEngine

    return TunedEngine(
        plan,
        options.hash_planes,
        options.input_gradient,
        path,
        optimizer(options),
        options.batch,
        find_target("cpu").make(None),
        options.label_smoothing,
        name,
        options.seed,
    )


def optimizer(options: TrainOptions) -> Optimizer:
    """How parameters are updated."""
    from adr_tvm.train.optimizers import SGD, Adam, AdamW

    if options.optimizer == "sgd":
        return SGD(options.momentum, options.nesterov, options.weight_decay)
    return (Adam if options.optimizer == "adam" else AdamW)(weight_decay=options.weight_decay)


def learning_rate(options: TrainOptions) -> Callable[[int, int], Callable[[int], float]]:
    """From the steps of the run and of an epoch to the learning rate of a step (from 0)."""
    from adr_tvm.train.learning_rates import learning_rates

    def made(steps: int, steps_per_epoch: int) -> Callable[[int], float]:
        return learning_rates(options.lr_schedule, options.peak_lr, steps, round(options.warmup * steps_per_epoch))

    return made
