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


class Interrupts:
    """Within the context SIGINT and SIGTERM raise ``KeyboardInterrupt`` and are remembered.

    TVM turns whatever is raised below its C++ into a ``RuntimeError``, and ``except Exception`` elsewhere makes
    something else of that: only ``seen`` tells that it began as Ctrl-C.
    """

    seen = False

    def __enter__(self) -> Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._handle) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


@contextmanager
def native_stderr(shown: bool) -> Iterator[None]:
    """Within the context what native code writes to file descriptor 2 is dropped; Python's stderr still works.

    TVM warns there of things that no user can act on ("Scope Saving", once for each constant).

    Args:
        shown: leave everything as it is.
    """
    stream = sys.stderr
    if shown or not _is_descriptor_2(stream):
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


def _is_descriptor_2(stream: object) -> bool:
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined]
    except (AttributeError, ValueError, io.UnsupportedOperation):
        return False
