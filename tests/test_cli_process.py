"""Signals that end a command in order, and native code that stays quiet; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adr_tvm.cli.process import native_stderr

COMMAND = """
import argparse, os, signal, sys
from adr_tvm.cli.common import add_verbosity, run_cli
parser = argparse.ArgumentParser(prog="command")
add_verbosity(parser)
def command(arguments):
{body}
code = run_cli(command, parser, sys.argv[1:])
os.write(2, b"after\\n")
sys.exit(code)
"""


def run(*lines: str, argv: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    code = COMMAND.format(body="\n".join(f"    {line}" for line in lines))
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_signals(number):
    lines = (f"os.kill(os.getpid(), signal.{number})", "print('survived')")
    assert run(*lines) == (130, ["command: error: interrupted", "after"])


def test_an_interrupt_in_disguise():
    """What TVM makes of a KeyboardInterrupt below its C++."""
    lines = (
        "try:",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "except KeyboardInterrupt:",
        "    raise RuntimeError('something else') from None",
    )
    assert run(*lines) == (130, ["command: error: interrupted", "after"])
    assert run("raise RuntimeError('something else')")[0] == 1


def test_a_swallowed_interrupt_comes_again():
    """And spares what cleans up."""
    lines = (
        "import time",
        "try:",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "except KeyboardInterrupt:",
        "    pass",
        "try:",
        "    time.sleep(20)",
        "finally:",
        "    time.sleep(1.2)",
        "    print('cleaned up', file=sys.stderr)",
    )
    assert run(*lines) == (130, ["cleaned up", "command: error: interrupted", "after"])


def test_native_code_is_heard_only_with_v():
    lines = ("os.write(2, b'native\\n')", "print('python ä', file=sys.stderr)")
    assert run(*lines) == (0, ["python ä", "after"])
    assert run(*lines, argv=("-v",)) == (0, ["native", "python ä", "after"])


def test_a_stderr_that_is_no_descriptor_stays(capsys):
    before = sys.stderr
    with native_stderr(shown=False):
        assert sys.stderr is before
        print("heard", file=sys.stderr)
    assert capsys.readouterr().err == "heard\n"
