"""Measure what the compiler promises, on public models and data that it has not seen.

    python -m benchmarks.validate --data DIR [--only NAME] [--json FILE]

from the root of the repository. ``DIR`` is laid out as ``benchmarks/validation/data_folder.py`` says. Prints a line
for each check: what was expected, what was measured, and whether it passed. The whole takes an hour on two cores;
``--only`` runs one part, ``--time-budget`` shortens the searches.

Exit codes: 0 all passed, 1 a check failed, and those of ``adr-compile`` where something is missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.deploy.threads import set_threads
from adr_tvm.errors import UsageError
from adr_tvm.jsonfile import write_json
from adr_tvm.progress import get_log
from adr_tvm.report.text_table import Heading, print_table, results_console
from benchmarks.validation.data_folder import DataFolder
from benchmarks.validation.dense import check_dense
from benchmarks.validation.repeatable import check_repeatable
from benchmarks.validation.row import Check, Row, Run
from benchmarks.validation.text_page import check_text_page
from benchmarks.validation.trec_cifarnet import check_trec
from benchmarks.validation.unseen import (
    check_keywords,
    check_resnet20,
    check_squeezenet,
    check_style_transfer,
    check_super_resolution,
)

CHECKS: dict[str, Check] = {
    "trec": check_trec,
    "resnet20": check_resnet20,
    "kws": check_keywords,
    "squeezenet": check_squeezenet,
    "style": check_style_transfer,
    "waifu2x": check_super_resolution,
    "text": check_text_page,
    "dense": check_dense,
    "repeat": check_repeatable,
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="folder with the models and data")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=list(CHECKS), help=f"one of {', '.join(CHECKS)}; repeatable"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every number to FILE")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compile and run with (default: all cores)")
    parser.add_argument("--time-budget", metavar="S", type=float, help="seconds for each search (default: no limit)")
    add_verbosity(parser)
    return parser


def checks(names: Sequence[str], arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of the named checks, as they come."""
    data = DataFolder(arguments.data)
    for name in names:
        start = time.monotonic()
        get_log().info("validate: %s", name)
        with tempfile.TemporaryDirectory(prefix="adr-validate-") as work:
            for row in CHECKS[name](Run(data, Path(work), arguments.threads, arguments.time_budget)):
                get_log().info("%s %s: %s", "pass" if row.passed else "FAIL", row.check, row.measured)
                yield row
        get_log().info("validate: %s took %.0f s", name, time.monotonic() - start)


def run(arguments: argparse.Namespace) -> int:
    """Run the checks; the table goes to stdout."""
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UsageError(f"--json {arguments.json} cannot be written")
    set_threads(arguments.threads)
    rows = list(checks(arguments.only or list(CHECKS), arguments))
    headings = [Heading(title, numeric=False) for title in ("check", "expected", "measured", "")]
    cells = [[row.check, row.expected, row.measured, "pass" if row.passed else "FAIL"] for row in rows]
    console = results_console()
    print_table(console, headings, cells, [None if row.passed else "red" for row in rows])
    failed = sum(not row.passed for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} checks passed", style="bold")
    if arguments.json is not None:
        write_json(arguments.json, [asdict(row) for row in rows])
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(run, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
