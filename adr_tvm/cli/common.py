"""What the commands share: errors turned into one line and an exit code, and the flags for the log.

Importing this module is cheap; it is on the path of ``--help``.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from adr_tvm.cli.process import Interrupts, native_stderr
from adr_tvm.errors import AdrError
from adr_tvm.progress import printable, set_verbosity, wants_traceback

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others of the commands are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong; exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``-v`` and ``-q``."""
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more; tracebacks of errors")
    parser.add_argument("-q", "--quiet", action="count", default=0, help="log warnings only, no progress")


def run_cli(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line and run a command; nothing it raises gets past here.

    The traceback of an error is shown only with ``-v`` or where the environment has ``ADR_DEBUG=1``.

    Args:
        main: the command; takes the parsed arguments, returns the exit code (None is 0).
        parser: of the command line; with ``add_verbosity``.
        argv: the arguments; None: the process's.

    Returns:
        The exit code: the command's own, the error's (``adr_tvm.errors``), 1 after an unexpected error, 130
        after Ctrl-C or SIGTERM.
    """
    arguments = parser.parse_args(argv)
    level = getattr(arguments, "verbose", 0) - getattr(arguments, "quiet", 0)
    set_verbosity(level)
    debug = wants_traceback(level)
    with native_stderr(shown=debug), Interrupts() as interrupts:
        try:
            code = main(arguments) or 0
            sys.stdout.flush()  # here, so that a reader who has gone is met here
            return code
        except BrokenPipeError:
            # Whoever read our results (``| head``) has had enough; Python would complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (KeyboardInterrupt, Exception) as error:
            interrupts.over = True
            code, message = _verdict(error, interrupts.seen)
            _tell(parser.prog, message, debug)
            return code


def _verdict(error: BaseException, interrupted: bool) -> tuple[int, str]:
    """Exit code and message of what ended a command."""
    if interrupted or isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, AdrError):
        return error.exit_code, str(error)
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return 1, f"internal error: {what} (run again with -v for the traceback)"


def _tell(prog: str, message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"{prog}: error: {printable(' '.join(message.split()))}", file=sys.stderr)
