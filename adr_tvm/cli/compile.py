"""``adr-compile``: an ONNX model in, a verified library with reuse out.

Only ``run`` imports what compiles: ``--help`` must answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from adr_tvm import __version__
from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.cli.list_targets import ListTargets
from adr_tvm.errors import GoalUnmetError, UsageError
from adr_tvm.options import DEFAULT_C_TARGET, DTYPES, EMITTED, METRIC_NAMES, WEIGHTS, CompileOptions
from adr_tvm.settings import GRANULARITIES, HASH_FAMILIES, MAX_BITS, SCOPES
from adr_tvm.targets import TARGETS

DESCRIPTION = """\
Compile an ONNX network into a library whose layers reuse the products of
similar input vectors (Adaptive Deep Reuse) wherever that measures faster and
the whole stays within an accuracy budget. The other layers stay dense, and the
report says why."""

EPILOG = """\
examples:
  adr-compile m.onnx --dry-run
      what could be rewritten, and why not the rest
  adr-compile m.onnx
      dense, with lossless reuse where looking for it costs next to nothing
  adr-compile m.onnx --calib images.npz --max-drop 0.005
      with reuse, at most 0.5 % of the answers other than the dense network's
  adr-compile m.onnx --calib images.npz --labels-name labels
      with reuse, at most 1 % (the default) of top-1 accuracy lost
  adr-compile denoise.onnx --calib images.npz --min-psnr 40
      an image network, no further than 40 dB from its dense output
  adr-compile m.onnx --plan m-adr/plan.json
      an earlier plan, without a search
  adr-compile m.onnx --target rpi4 --calib images.npz
      for a Raspberry Pi 4; times are predicted, nothing runs there
  adr-compile m.onnx --target rpi4 --calib images.npz --rpc 192.168.0.7:9090
      the same, measured on the board, where an RPC server runs
  adr-compile m.onnx --target rpi4 --emit bundle --runtime-dir tvm-aarch64
      a folder that runs there without Python; how to get the runtime is told
  adr-compile m.onnx --target cortex-m7 --emit c --max-ram 256K
      C files for a microcontroller: no runtime, no heap
  adr-compile m.onnx --target cortex-m4 --emit c --dtype int8 --calib images.npz
      the same in integers, for a quarter of the memory
  adr-compile m.onnx --target h200 --dtype bf16 --calib images.npz
      for an NVIDIA GPU, on its tensor cores; times are predicted
  adr-compile m.onnx --tune 32 --tuning-db my-machine.jsonl
      with kernels tuned for this machine; the file serves later runs

Calibration data are an .npz file whose arrays [n, ...] are named like the
model's inputs, or a folder of .npy files, prepared exactly as the network takes
them: nothing is scaled or converted. Half of them choose the plan, the other
half verify it.

exit codes:
  0 done, also when all layers stay dense    4 --min-speedup, --max-ram or
  1 internal error                             --max-flash missed; all written
  2 wrong use                                5 a dependency is missing, or
                                               the board failed
  3 bad or unsupported model or data       130 interrupted"""


def make_parser() -> argparse.ArgumentParser:
    """The command line; option names are the fields of ``CompileOptions``."""
    parser = Parser(
        prog="adr-compile",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="the network")
    parser.add_argument(
        "--emit",
        metavar="|".join(EMITTED),
        help="library: for adr_tvm.load; bundle: also C and C++ API, TVM's runtime and an example for the target, a "
        "folder that runs without Python; c: self-contained C99 for microcontrollers and Arm boards (default: library)",
    )
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="for --emit bundle: TVM's runtime for the target, or its wheels (default: this machine's, where it fits)",
    )
    parser.add_argument(
        "--dtype",
        metavar="|".join(DTYPES),
        help="what it computes in; for --emit c also int8, quantised with the data of --calib; for CUDA also tf32, "
        "bf16 and fp16, on tensor cores with fp32 sums; for Arm cores that compute in it fp16 (default: float32)",
    )
    parser.add_argument(
        "--weights",
        metavar="|".join(WEIGHTS),
        help="for --emit c: constants as arrays in the sources, or as one file, weights.bin, that a program loads or "
        "links (default: arrays)",
    )
    for flag, what in (("--max-ram", "arena, inputs and outputs"), ("--max-flash", "constants and code")):
        parser.add_argument(
            flag,
            metavar="BYTES",
            type=byte_count,
            help=f"goal for --emit c: {what}, as 65536 or 64K; exit code 4 and what would help if missed",
        )
    parser.add_argument("-o", "--out", metavar="OUT", help="folder of the bundle (default: MODEL-adr)")
    parser.add_argument(
        "--list-targets",
        action=ListTargets,
        help="what can be compiled for, and what that takes; nothing else is done",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_verbosity(parser)
    _add_model_options(parser.add_argument_group("model and target"))
    _add_board_options(parser.add_argument_group("measuring on a board"))
    _add_accuracy_options(parser.add_argument_group("accuracy"))
    _add_search_options(parser.add_argument_group("search"))
    _add_output_options(parser.add_argument_group("looking inside"))
    return parser


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target",
        metavar="NAME",
        help=f"what to compile for: {', '.join(TARGETS)} (default: cpu, this machine; "
        f"for --emit c: {DEFAULT_C_TARGET})",
    )
    group.add_argument(
        "--target-json",
        metavar="FILE",
        help='another target, in TVM\'s words: {"kind": "llvm", "mtriple": "aarch64-linux-gnu", '
        '"mcpu": "cortex-a57", "mattr": ["+neon"], "num-cores": 4}',
    )
    group.add_argument(
        "--arch",
        metavar="SM,...",
        help="architectures to compile a CUDA target for, such as sm_80,sm_90 (default: its own)",
    )
    group.add_argument(
        "--input-shapes",
        metavar="NAME:DIMS",
        action="append",
        help="shapes of inputs whose size is free, as x:1,3,224,224; several with ';' or by repeating the "
        "option; the first dimension may stay a name, as x:N,3,224,224",
    )
    group.add_argument(
        "--threads", metavar="N", type=int, help="threads to measure with (default: all physical cores), or of a board"
    )


def _add_board_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rpc",
        metavar="HOST:PORT",
        help="measure on the board whose RPC server (adr-rpc-server, or TVM's) is there, or on one of the "
        "tracker there",
    )
    group.add_argument("--key", metavar="NAME", help="the board's key: which of a tracker's boards to take")
    group.add_argument(
        "--rpc-timeout",
        metavar="S",
        type=float,
        help="seconds that the board may take to become free, or for any call (default: 60)",
    )


def _add_accuracy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--calib", metavar="DATA", help="calibration data: .npz file or folder of .npy files")
    group.add_argument("--labels-name", metavar="NAME", help="array of DATA with the class labels, from 0")
    group.add_argument(
        "--metric",
        metavar="|".join(METRIC_NAMES),
        help="what the budget is measured in; auto: top1 with labels, else agreement with the dense "
        "network for classifiers, else nmse (default: auto)",
    )
    group.add_argument(
        "--max-drop",
        metavar="X",
        type=float,
        help="budget: largest drop of top1 or agreement, as a fraction; for nmse its largest value (default: 0.01)",
    )
    group.add_argument(
        "--min-psnr", metavar="DB", type=float, help="budget for psnr: its smallest value, in dB (default: 40)"
    )
    group.add_argument(
        "--lossless", action="store_true", default=None, help="bit-identical reuse only: no accuracy is spent"
    )
    group.add_argument("--batch-size", metavar="N", type=int, help="samples in a calibration batch (default: 32)")


def _add_search_options(group: argparse._ArgumentGroup) -> None:
    for flag, effect in (("--skip", "found in"), ("--only", "not found in")):
        group.add_argument(
            flag,
            metavar="PATTERN",
            action="append",
            help=f"leave layers dense if this regular expression is {effect} their name; may be repeated"
            + ("; wins over --only" if flag == "--skip" else ""),
        )
    group.add_argument("--plan", metavar="FILE", help="apply and measure this plan.json in place of a search")
    group.add_argument("--timings", metavar="FILE", help="use the times of this timings.json: repeats a search exactly")
    group.add_argument(
        "--cost-model",
        metavar="FILE",
        help="prune the search by this cost model (default: this machine's, if adr-bench --fit-machine made one)",
    )
    group.add_argument(
        "--tune",
        metavar="N",
        type=int,
        help="try N schedules for each kernel, keep the fastest; on the GPU at hand for CUDA",
    )
    group.add_argument(
        "--tuning-db",
        metavar="FILE",
        help="use the schedules of this file; --tune adds to it (default: with --tune one in the cache folder)",
    )
    group.add_argument("--granularity", metavar="|".join(GRANULARITIES), help="search only this granularity")
    group.add_argument("--L", metavar="N", type=int, help="search only neuron vectors of this length")
    group.add_argument("--H", metavar="N", type=int, help=f"search only this number of hash bits, 1 to {MAX_BITS}")
    group.add_argument("--hash", metavar="|".join(HASH_FAMILIES), help="search only this hash family")
    group.add_argument(
        "--scope",
        metavar="|".join(SCOPES),
        help="search only this scope; with batch an image's result depends on its batch (default: image)",
    )
    group.add_argument("--seed", metavar="N", type=int, help="of everything random (default: 0)")
    group.add_argument("--time-budget", metavar="S", type=float, help="seconds the search may take")
    group.add_argument(
        "--min-speedup",
        metavar="X",
        type=float,
        help="goal for dense time / reuse time; exit code 4 if missed",
    )


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="list the layers and whether they may reuse; build and write nothing",
    )
    group.add_argument("--dump-ir", metavar="DIR", help="write the module to DIR after each pass")


def byte_count(text: str) -> int:
    """A number of bytes, such as 65536, 64K or 2M.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    units = {"K": 2**10, "M": 2**20}
    unit = units.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 65536, 64K or 2M")
    return int(digits) * unit


def options_of(arguments: argparse.Namespace) -> CompileOptions:
    """The options that the command line gives; the rest keep their defaults.

    Raises:
        UsageError: they make no sense.
    """
    given = {field.name: getattr(arguments, field.name) for field in fields(CompileOptions)}
    given = {name: value for name, value in given.items() if value is not None}
    if "min_psnr" in given and "max_drop" in given:
        raise UsageError("--max-drop and --min-psnr are budgets of different metrics: give one")
    if "input_shapes" in given:
        from adr_tvm.frontend.onnx_inputs import parse_input_shapes

        given["input_shapes"] = parse_input_shapes(given["input_shapes"])
    return CompileOptions(**given)


def run(arguments: argparse.Namespace) -> None:
    """Compile, or with ``--dry-run`` list; results go to stdout."""
    options = options_of(arguments)
    from adr_tvm.report.terminal import print_candidates, print_result

    if arguments.dry_run:
        from adr_tvm.loaded_network import LoadedNetwork

        network = LoadedNetwork(arguments.model, options)
        print_candidates(network.checked.path.stem, network.layers)
        return
    from adr_tvm.compiler import compile_model

    try:
        compiled = compile_model(arguments.model, arguments.out, options, arguments.calib)
    except GoalUnmetError as error:
        print_result(error.result.result)
        raise
    print_result(compiled.result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(run, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
