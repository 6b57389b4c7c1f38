"""``adr-compile --list-targets``: what can be compiled for, what that takes, and whether it is there."""

from __future__ import annotations

import argparse
from typing import Any

from adr_tvm.deploy.toolchain import toolchain_of
from adr_tvm.report.text_table import Heading, print_table, results_console
from adr_tvm.targets import TARGETS, TargetEntry

_HEADINGS = (
    Heading("target", numeric=False),
    Heading("what it is", numeric=False),
    Heading("core", numeric=False),
    Heading("cores"),
    Heading("needs", numeric=False),
    Heading("there", numeric=False),
)


class ListTargets(argparse.Action):
    """Prints the table and ends the command."""

    def __init__(self, option_strings: Any, dest: str, **words: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **words)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Called by argparse."""
        print_targets()
        parser.exit()


def print_targets() -> None:
    """Print a row for each target."""
    print_table(results_console(), _HEADINGS, [_row(entry) for entry in TARGETS.values()], [None] * len(TARGETS))
    print("Others: --target-json FILE, in TVM's words. --emit bundle also takes TVM's runtime for the target.")


def _row(entry: TargetEntry) -> list[str]:
    tools = toolchain_of(entry)
    cores = "" if entry.cores is None else str(entry.cores)
    there = "yes" if tools.command is not None else f"no: apt install {tools.package}"
    return [entry.name, entry.description, entry.mcpu or "this machine's", cores, tools.package, there]
