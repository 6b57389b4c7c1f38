"""``adr-bench``: a bundle side by side with ONNX Runtime, time and accuracy; or this machine, for the cost model.

Only ``run`` imports what measures: ``--help`` must answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adr_tvm import __version__
from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.errors import UsageError

if TYPE_CHECKING:
    from adr_tvm.bench.results import BenchResult, Speedup
    from adr_tvm.bench.run import BenchOptions

DESCRIPTION = """\
Measure a bundle that adr-compile wrote against other ways to run the same
model, on your data: the time of a run and the accuracy. Or, with --fit-machine,
measure this machine once, so that adr-compile knows what is worth trying."""
USAGE = """\
adr-bench OUT --model MODEL.onnx --input DATA [options]
       adr-bench --fit-machine [--threads N]"""

EPILOG = """\
What it is compared with:
  onnxruntime        ONNX Runtime, fp32
  onnxruntime-int8   its static quantisation (QDQ, weights per channel), made
                     from the data of --calib
  dense              the bundle without reuse
ONNX Runtime has as many intra-op threads as the bundle and its defaults
otherwise, so its threads spin for a while after a run.

All take turns, a timed run each in every round, each turn after a pause of 50 ms
and untimed runs of the same engine; the order changes from round to round, so
that none gains by its place. Ratios are of medians, with a 95 % bootstrap
interval over the rounds (from 10 on). Each number of threads is measured in a
process of its own.

The speedup is that of the bundle over the engine in the row; rel. diff is the
largest difference from ONNX Runtime in fp32 over the largest output.
Accuracy is measured on all samples of --input, against ONNX Runtime in fp32:
top1 with labels, else agreement for classifiers, else nmse.

exit codes:
  0 done                                     5 a dependency is missing
  1 internal error                         130 interrupted
  2 wrong use
  3 bad model, bundle or data"""


def make_parser() -> argparse.ArgumentParser:
    """The command line; option names are the fields of ``BenchOptions``."""
    parser = Parser(
        prog="adr-bench",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="OUT", type=Path, nargs="?", help="folder that adr-compile wrote")
    parser.add_argument("--model", metavar="MODEL.onnx", type=Path, help="what it was compiled from")
    parser.add_argument(
        "--input",
        dest="samples",
        metavar="DATA",
        type=Path,
        help="samples to run on: .npz with arrays named like the inputs, .npy, or a folder of .npy files",
    )
    parser.add_argument("--labels-name", metavar="NAME", help="array of class labels among them")
    parser.add_argument("--calib", dest="calibration", metavar="DATA", type=Path, help="data for onnxruntime-int8")
    parser.add_argument(
        "--against",
        metavar="NAME,...",
        type=_names,
        help="what to compare with, see below (default: onnxruntime,dense)",
    )
    parser.add_argument("--threads", metavar="N,...", type=_numbers, help="numbers of threads (default: all cores)")
    parser.add_argument("--batch", metavar="N", type=int, help="images of a run (default: the model's, or 1)")
    parser.add_argument("--runs", metavar="N", type=int, help="timed runs of each (default: 36)")
    parser.add_argument("--metric", metavar="NAME", help="auto, top1, agreement, nmse or psnr (default: auto)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every number to FILE")
    parser.add_argument(
        "--fit-machine",
        action="store_true",
        help="measure kernels for a minute and fit the planner's cost model, kept in the user's cache folder",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_verbosity(parser)
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2") from None


def options_of(arguments: argparse.Namespace) -> BenchOptions:
    """The options that the command line gives; the rest keep their defaults.

    Raises:
        UsageError: they make no sense.
    """
    from dataclasses import fields

    from adr_tvm.bench.run import BenchOptions

    given = {field.name: getattr(arguments, field.name, None) for field in fields(BenchOptions)}
    given["verbosity"] = arguments.verbose - arguments.quiet
    return BenchOptions(**{name: value for name, value in given.items() if value is not None})


def run(arguments: argparse.Namespace) -> None:
    """Measure; the table goes to stdout."""
    if arguments.fit_machine:
        _fit_machine(arguments)
        return
    named = {"OUT": arguments.bundle, "--model": arguments.model, "--input": arguments.samples}
    missing = [name for name, value in named.items() if value is None]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)} (see adr-bench --help)")
    options = options_of(arguments)
    if arguments.json is not None:
        _check_writable(arguments.json)
    from dataclasses import asdict

    from adr_tvm.bench.run import bench
    from adr_tvm.jsonfile import write_json

    result = bench(options)
    if arguments.json is not None:
        write_json(arguments.json, asdict(result))
    print_bench(result)


def _fit_machine(arguments: argparse.Namespace) -> None:
    """Fit the cost model to this machine; prints what was measured beside what the model says."""
    others = {
        "OUT": "bundle",
        "--model": "model",
        "--input": "samples",
        "--labels-name": "labels_name",
        "--calib": "calibration",
        "--against": "against",
        "--batch": "batch",
        "--runs": "runs",
        "--metric": "metric",
    }
    given = [flag for flag, name in others.items() if getattr(arguments, name) is not None]
    if given:
        raise UsageError(f"{' and '.join(given)} cannot go with --fit-machine, which measures kernels of its own")
    threads = arguments.threads or [None]
    if len(threads) > 1:
        raise UsageError("--fit-machine fits one number of threads at a time: give --threads one number")
    if arguments.json is not None:
        _check_writable(arguments.json)
    from dataclasses import asdict

    from adr_tvm.bench.fit_machine import fit_machine
    from adr_tvm.jsonfile import write_json
    from adr_tvm.report.fitted_model import print_fitted

    fitted, path = fit_machine(threads[0])
    if arguments.json is not None:
        write_json(arguments.json, asdict(fitted))
    print_fitted(fitted, path)


def _check_writable(path: Path) -> None:
    """See that the result can be written, before minutes of measuring."""
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise UsageError(f"--json {path} cannot be written")


def print_bench(result: BenchResult) -> None:
    """Print a row for each number of threads and engine, the notes and one summary line."""
    from adr_tvm.bench.results import OURS
    from adr_tvm.progress import printable
    from adr_tvm.report.formats import MISSING, factor, milliseconds, number
    from adr_tvm.report.text_table import Heading, print_table, results_console

    console, accuracy = results_console(), {each.engine: each for each in result.accuracy}
    rows, styles = [], []
    for at in result.times:
        for engine in at.engines:
            found = accuracy.get(engine.engine)
            rows.append(
                [
                    str(at.threads),
                    engine.engine,
                    milliseconds(engine.median_ms),
                    factor(engine.speedup.ratio) if engine.speedup else MISSING,
                    _interval(engine.speedup) if engine.speedup else MISSING,
                    number(found.max_relative_difference) if found else MISSING,
                    _metric(result.metric, found.value) if found else MISSING,
                ]
            )
            styles.append("green" if engine.engine == OURS else None)
    headings = [
        Heading("threads"),
        Heading("engine", numeric=False),
        Heading("median ms"),
        Heading("speedup"),
        Heading("95 %"),
        Heading("rel. diff"),
        Heading(result.metric),
    ]
    print_table(console, headings, rows, styles)
    for note in result.notes:
        console.print(f"note: {printable(note)}", soft_wrap=True)
    console.print(printable(summary(result)), style="bold", soft_wrap=True)


def summary(result: BenchResult) -> str:
    """One line: how much faster than each engine with the first number of threads, and how accurate."""
    from adr_tvm.bench.results import OURS
    from adr_tvm.report.formats import factor, milliseconds

    at = result.times[0]
    ours = next(each for each in at.engines if each.engine == OURS)
    ratios = [f"{factor(each.speedup.ratio)} over {each.engine}" for each in at.engines if each.speedup]
    plural = "" if at.threads == 1 else "s"
    words = [f"{result.model}, batch {result.batch}, {at.threads} thread{plural}: {milliseconds(ours.median_ms)} ms"]
    found = next(each for each in result.accuracy if each.engine == OURS)
    words += [f"speedup {', '.join(ratios)}"] if ratios else []
    words += [f"{result.metric} {_metric(result.metric, found.value)} on {result.samples} samples"]
    return ", ".join(words)


def _interval(speedup: Speedup) -> str:
    return "-" if speedup.low is None else f"{speedup.low:.2f}-{speedup.high:.2f}"


def _metric(metric: str, value: float | None) -> str:
    """The value of a metric; that of a perfect psnr is infinite, and not in JSON."""
    from adr_tvm.report.formats import metric_value

    return "inf dB" if metric == "psnr" and value is None else metric_value(metric, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(run, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
