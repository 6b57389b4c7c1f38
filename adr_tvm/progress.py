"""One logger and one progress helper; both write to stderr, so that stdout holds results only.

On a terminal progress is a bar; elsewhere it is plain lines such as ``[12/40] measuring layers: conv2``, the
first and the last one always, and between them one every few seconds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 3.0


def printable(text: str) -> str:
    """``text`` on one line without control characters: a node name must not steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def get_log() -> logging.Logger:
    """The project's logger: ``info`` by default, ``debug`` with ``-v``, ``warning`` even with ``-q``."""
    return logging.getLogger("adr_tvm")


def set_verbosity(level: int) -> None:
    """Send the log to stderr; the command line calls this once.

    Args:
        level: number of ``-v`` less number of ``-q``: below 0 warnings only, no progress; above 0 all.
    """
    log = get_log()
    log.setLevel(logging.WARNING if level < 0 else logging.INFO if level == 0 else logging.DEBUG)
    log.propagate = False
    if not any(isinstance(handler, _ConsoleHandler) for handler in log.handlers):
        log.addHandler(_ConsoleHandler())


class Step(Protocol):
    """What ``progress`` hands out."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more are done; ``note`` says what the last one was."""


def wants_traceback(level: int) -> bool:
    """Whether errors are shown with their traceback: with ``-v``, or ``ADR_DEBUG=1`` in the environment."""
    return level > 0 or os.environ.get("ADR_DEBUG", "0") not in ("", "0")


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Step]:
    """Show how far a loop has come, for as long as the context lasts. Contexts may nest.

    Nothing is shown where the log shows no ``info`` (``-q``, or a program that never asked for output).

    Args:
        title: what is being done, such as "measuring layers".
        total: number of steps; None if not known.
    """
    if not get_log().isEnabledFor(logging.INFO):
        yield _Silent()
    elif not _console().is_terminal:
        yield _Lines(title, total)
    else:
        bars = _bars()
        outermost = not bars.task_ids
        task = bars.add_task(printable(title), total=total, note="")
        if outermost:
            bars.start()
        try:
            yield _Bar(bars, task)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()


class _Silent:
    def advance(self, count: int = 1, note: str = "") -> None:
        pass


class _Lines:
    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total, self._done, self._last = title, total, 0, float("-inf")

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        now = monotonic()
        if self._done != self._total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        position = f"{self._done}/{self._total}" if self._total is not None else f"{self._done}"
        get_log().info("[%s] %s%s", position, self._title, f": {note}" if note else "")


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, count: int = 1, note: str = "") -> None:
        self._bars.update(self._task, advance=count, note=printable(note))


class _ConsoleHandler(logging.Handler):
    """Prints above the bars: a plain stream handler would tear them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            text = "\n".join(printable(line) for line in self.format(record).splitlines())
            style = "yellow" if record.levelno == logging.WARNING else "red" if level else None
            _console().print(f"{level}{text}", style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@cache
def _bars() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=_console(),
        transient=True,
    )
