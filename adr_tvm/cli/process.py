"""What a command does to its process: signals that end it in order, and no chatter of native code."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS_BETWEEN_TRIES = 0.5


class Interrupts:
    """Within the context SIGINT and SIGTERM raise ``KeyboardInterrupt`` and are remembered.

    Below TVM's C++ an exception may become a ``RuntimeError``, of which ``except Exception`` makes something else
    again (only ``seen`` tells that it began as Ctrl-C), or be swallowed: so it is raised again until it gets through,
    which whoever catches it says by ``over``.
    """

    seen, over = False, False

    def __enter__(self) -> Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
            self._before = {each: signal.signal(each, self._handle) for each in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.over:
            return
        if number == signal.SIGALRM and sys.exc_info()[0] is not None:
            return  # an exception is on its way out: leave those who clean up behind it alone
        self.seen = True
        signal.setitimer(signal.ITIMER_REAL, SECONDS_BETWEEN_TRIES, SECONDS_BETWEEN_TRIES)
        raise KeyboardInterrupt


@contextmanager
def native_stderr(shown: bool) -> Iterator[None]:
    """Within the context what native code writes to file descriptor 2 is dropped; Python's stderr still works.

    TVM warns there of things that no user can act on ("Scope Saving", once for each constant).

    Args:
        shown: leave everything as it is.
    """
    stream = sys.stderr
    if shown or not (has_descriptor(stream) and stream.fileno() == 2):
        yield
        return
    stream.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    os.close(sink)
    encoding = getattr(stream, "encoding", None)
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=encoding, errors="backslashreplace")
    try:
        yield
    finally:
        gc.collect()  # what an error left behind warns when it goes
        ours, sys.stderr = sys.stderr, stream
        ours.flush()
        os.dup2(kept, 2)
        ours.close()


def has_descriptor(stream: object) -> bool:
    """Whether a stream is one that another process can write to."""
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined]
    except (AttributeError, ValueError, io.UnsupportedOperation):
        return False
