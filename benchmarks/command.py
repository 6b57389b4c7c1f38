"""What the speed benchmarks have in common: a command line, a table on stdout, JSON with the machine's name, plots."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.deploy.processor import processor_name
from adr_tvm.deploy.threads import check_threads, physical_cores
from adr_tvm.errors import UsageError
from adr_tvm.jsonfile import write_json
from adr_tvm.progress import get_log
from adr_tvm.report.text_table import Heading, print_table, results_console
from benchmarks.no_data import NoData
from benchmarks.validation.data_folder import DataFolder

PACKAGES = ("adr-tvm", "apache-tvm", "onnxruntime", "numpy")
BUSY = 0.5  # runnable programs for each core, above which times are not to be trusted


@dataclass(frozen=True)
class Settings:
    """What a benchmark is asked for.

    Attributes:
        data: the models and images.
        threads: numbers of threads, a process each.
        seconds: about how long the turns of one comparison may take.
        chosen: what to measure; empty: what the benchmark takes by itself.
        options: the command's own options.
    """

    data: DataFolder
    threads: Sequence[int]
    seconds: float
    chosen: Sequence[str] = ()
    options: argparse.Namespace = field(default_factory=argparse.Namespace)


@dataclass(frozen=True)
class Command:
    """A benchmark as a command.

    Attributes:
        name: of the module.
        description: help text.
        headings: of the table; the first column is text.
        run: the measurement; its rows are dataclasses.
        table: rows as cells.
        choices, choice: what may be chosen, and its option's name; empty: there is no choice.
        seconds: default of ``--seconds``.
        add_options: adds options of its own.
        plot: draws rows into a folder and returns the files; None: there is no ``--plot``.
    """

    name: str
    description: str
    headings: Sequence[str]
    run: Callable[[Settings], list[Any]]
    table: Callable[[list[Any]], list[list[str]]]
    choices: Sequence[str] = ()
    choice: str = "network"
    seconds: float = 8.0
    add_options: Callable[[argparse.ArgumentParser], None] | None = None
    plot: Callable[[list[Any], Path], list[Path]] | None = None

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
        parser.add_argument(
            "--data", metavar="DIR", type=Path, help="folder with the models and data; the bundled network needs none"
        )
        if self.choices:
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
        parser.add_argument(
            "--seconds",
            metavar="S",
            type=float,
            default=self.seconds,
            help=f"for each comparison (default: {self.seconds:g})",
        )
        parser.add_argument("--json", metavar="FILE", type=Path, help="write every number to FILE")
        if self.plot is not None:
            parser.add_argument("--plot", metavar="DIR", type=Path, help="draw into DIR (needs matplotlib)")
        if self.add_options is not None:
            self.add_options(parser.add_argument_group("of this benchmark"))  # type: ignore[arg-type]
        add_verbosity(parser)
        return parser

    def _run(self, arguments: argparse.Namespace) -> int:
        plots: Path | None = getattr(arguments, "plot", None)
        self._check(arguments, plots)
        before = os.getloadavg()[0]
        if before > BUSY * physical_cores():
            get_log().warning("the machine is busy (load %.1f): times will be off", before)
        threads = arguments.threads or sorted({1, physical_cores()})
        data = NoData() if arguments.data is None else DataFolder(arguments.data)
        chosen = getattr(arguments, "chosen", [])
        rows = self.run(Settings(data, threads, arguments.seconds, chosen, arguments))
        headings = [Heading(title, numeric=i > 0) for i, title in enumerate(self.headings)]
        cells = self.table(rows)
        print_table(results_console(), headings, cells, [None] * len(cells))
        if arguments.json is not None:
            content = {"benchmark": self.name, "machine": machine(before), "rows": [asdict(row) for row in rows]}
            write_json(arguments.json, content)
        if plots is not None and self.plot is not None:
            for path in self.plot(rows, plots):
                get_log().info("wrote %s", path)
        return 0

    def _check(self, arguments: argparse.Namespace, plots: Path | None) -> None:
        """See that results can be written, before minutes of measuring."""
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            raise UsageError(f"--json {arguments.json} cannot be written")
        if arguments.seconds <= 0:
            raise UsageError(f"--seconds is {arguments.seconds:g}, expected more than 0")
        for count in arguments.threads or ():
            check_threads(count)
        if plots is not None:
            from benchmarks.plots import prepare_folder

            prepare_folder(plots)


def machine(load: float) -> dict[str, Any]:
    """What the numbers belong to.

    Args:
        load: runnable programs as the benchmark began.
    """
    return {
        "processor": processor_name(),
        "cores": physical_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "load": load,
    }
