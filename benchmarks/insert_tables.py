"""Put the tables of a results folder into a document.

    python -m benchmarks.insert_tables RESULTS DOCUMENT

In the document, a line ``<!-- NAME.txt -->`` in front of a block fenced by three backticks says which file of RESULTS
the block shows; ``<!-- NAME.txt: TEXT -->`` shows its first line and those that hold TEXT alone, and the headings.
Blocks whose file is not in RESULTS stay as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from adr_tvm.cli.common import Parser, run_cli
from adr_tvm.errors import UsageError

_BLOCK = re.compile(r"(<!-- (?P<file>[\w-]+\.txt)(?:: (?P<text>[^>]+?))? -->\n```\n)(?P<shown>.*?)(?=```\n)", re.DOTALL)
_HEAD = 2  # lines: the command and the headings


def insert(document: str, results: Path) -> tuple[str, list[str]]:
    """The document with the tables, and the names of the files that it shows."""
    names: list[str] = []

    def block(found: re.Match[str]) -> str:
        path = results / found["file"]
        if not path.is_file():
            return found[0]
        names.append(found["file"])
        return found[1] + shown(path.read_text(encoding="utf-8"), found["text"])

    return _BLOCK.sub(block, document), names


def shown(content: str, text: str | None) -> str:
    """The lines of a file that hold ``text``, behind its head; all without one."""
    lines = content.splitlines()
    kept = [line for index, line in enumerate(lines) if text is None or index < _HEAD or text in line]
    return "".join(f"{line}\n" for line in kept)


def run(arguments: argparse.Namespace) -> int:
    """Rewrite the document."""
    for path, exists in ((arguments.results, Path.is_dir), (arguments.document, Path.is_file)):
        if not exists(path):
            raise UsageError(f"{path} does not exist")
    text, names = insert(arguments.document.read_text(encoding="utf-8"), arguments.results)
    arguments.document.write_text(text, encoding="utf-8")
    print(f"{arguments.document}: {', '.join(names) or 'nothing'} from {arguments.results}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.insert_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", metavar="RESULTS", type=Path)
    parser.add_argument("document", metavar="DOCUMENT", type=Path)
    return run_cli(run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
