"""What the speed benchmarks have in common: a command line, a table on stdout, JSON with the machine's name."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.deploy.processor import processor_name
from adr_tvm.deploy.threads import physical_cores
from adr_tvm.errors import UsageError
from adr_tvm.jsonfile import write_json
from adr_tvm.report.text_table import Heading, print_table, results_console
from benchmarks.validation.data_folder import DataFolder


@dataclass(frozen=True)
class Settings:
    """What a benchmark is asked for.

    Attributes:
        data: the models and images.
        threads: numbers of threads, a process each.
        seconds: about how long the turns of one comparison may take.
        chosen: what to measure; empty: what the benchmark takes by itself.
    """

    data: DataFolder
    threads: Sequence[int]
    seconds: float
    chosen: Sequence[str]


@dataclass(frozen=True)
class Command:
    """A benchmark as a command.

    Attributes:
        name: of the module.
        description: help text.
        headings: of the table; the first column is text.
        choices, choice: what may be chosen, and its option's name.
        run: the measurement; its rows are dataclasses.
        table: rows as cells.
    """

    name: str
    description: str
    headings: Sequence[str]
    choices: Sequence[str]
    choice: str
    run: Callable[[Settings], list[Any]]
    table: Callable[[list[Any]], list[list[str]]]

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run the command and exit."""
        sys.exit(run_cli(self._run, self._parser(), argv))

    def _parser(self) -> argparse.ArgumentParser:
        parser = Parser(
            prog=f"python -m benchmarks.{self.name}",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="folder with the models and data")
        parser.add_argument(
            f"--{self.choice}",
            metavar="NAME",
            dest="chosen",
            action="append",
            default=[],
            choices=self.choices,
            help=f"repeatable; one of {', '.join(self.choices)}",
        )
        parser.add_argument("--threads", metavar="N", type=int, nargs="+", help="default: 1 and all physical cores")
        parser.add_argument("--seconds", metavar="S", type=float, default=8.0, help="for each comparison (default: 8)")
        parser.add_argument("--json", metavar="FILE", type=Path, help="write every number to FILE")
        add_verbosity(parser)
        return parser

    def _run(self, arguments: argparse.Namespace) -> int:
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            raise UsageError(f"--json {arguments.json} cannot be written")
        threads = arguments.threads or sorted({1, physical_cores()})
        rows = self.run(Settings(DataFolder(arguments.data), threads, arguments.seconds, arguments.chosen))
        headings = [Heading(title, numeric=i > 0) for i, title in enumerate(self.headings)]
        cells = self.table(rows)
        print_table(results_console(), headings, cells, [None] * len(cells))
        if arguments.json is not None:
            machine = {"processor": processor_name(), "cores": physical_cores(), "system": platform.platform()}
            write_json(arguments.json, {"machine": machine, "rows": [asdict(row) for row in rows]})
        return 0
