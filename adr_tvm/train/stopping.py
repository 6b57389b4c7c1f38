"""Ctrl-C during training: the step in progress is finished and a checkpoint written, then training ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from adr_tvm.progress import get_log


class StopRequest:
    """Within the context the first SIGINT or SIGTERM only asks to stop; a second one ends the process as before.

    Attributes:
        asked: whether to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._handle) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]
        self._before = {}

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        get_log().warning("stopping after this step; once more to stop at once")
