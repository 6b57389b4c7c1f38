"""TVMScript's parser without its slowest steps, which were five sixths of the time that a kernel took to parse.

- ``T.inline`` looks for the parser on the stack; TVM does so with ``inspect.getouterframes``, which reads the source of
  every frame (0.02-0.15 s for each call of an inline function).
- ``T.prim_func`` takes the whole stack likewise, of which it needs the source of one frame.
- The source of an inline function is parsed anew for each call. Here the tree is kept, by its text: all that the parser
  changes in it is to give slices their step of 1.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

from tvm.script.parser.core import doc
from tvm.script.parser.core.diagnostics import Source
from tvm.script.parser.core.parser import ScriptMacro
from tvm.tirx.script.parser import entry

_CLASS_FRAME = 2  # of ``T.prim_func``'s stack: may be the line that decorates a class


def install() -> None:
    """Replace them; doing so again changes nothing."""
    ScriptMacro._find_parser_def = _find_parser
    Source.as_ast = lambda self: _tree(self.source)
    entry.inspect = SimpleNamespace(**vars(inspect) | {"stack": _stack})


def _find_parser(_macro: ScriptMacro) -> Any:
    """The parser that is at work; it is a global of the frames that evaluate an expression of the script."""
    for frame in _frames(sys._getframe(1)):
        parser = frame.f_globals.get(ScriptMacro.parser_object_name)
        if parser is not None:
            return parser
    raise RuntimeError("a T.inline function was called outside of a T.prim_func")


def _stack() -> list[inspect.FrameInfo]:
    """``inspect.stack`` with the source line of one frame."""
    return [
        inspect.FrameInfo(frame, *inspect.getframeinfo(frame, int(place == _CLASS_FRAME)))
        for place, frame in enumerate(_frames(sys._getframe(1)))
    ]


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


@functools.cache
def _tree(source: str) -> doc.AST:
    return doc.parse(source)
