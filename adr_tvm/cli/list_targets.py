"""``adr-compile --list-targets``: what can be compiled for, what that takes, and whether it is there."""

from __future__ import annotations

import argparse
from typing import Any

from adr_tvm.cuda.code_objects import has_compiler
from adr_tvm.deploy.toolchain import toolchain_of
from adr_tvm.report.text_table import Heading, print_table, results_console
from adr_tvm.targets import TARGETS, Gpu, TargetEntry

_HEADINGS = (
    Heading("target", numeric=False),
    Heading("what it is", numeric=False),
    Heading("core or architecture", numeric=False),
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
    core, cores, needs = entry.mcpu or "this machine's", "" if entry.cores is None else str(entry.cores), tools.package
    missing = [] if tools.command is not None else [f"apt install {tools.package}"]
    if entry.gpu is not None:
        core, cores, needs = _architectures(entry.gpu), "", f"{needs}, NVRTC or nvcc"
        missing += [] if has_compiler() else ["pip install 'adr-tvm[cuda]'"]
    return [entry.name, entry.description, core, cores, needs, f"no: {', '.join(missing)}" if missing else "yes"]


def _architectures(gpu: Gpu) -> str:
    first, *others = gpu.architectures
    return ", ".join([first, *(name.removeprefix("sm_") for name in others), *([gpu.ptx] if gpu.ptx else [])])
