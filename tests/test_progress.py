"""The logger and the progress helper: plain lines off a terminal, bars on one, nothing on stdout."""

from __future__ import annotations

import logging

import pytest

from adr_tvm import progress as module
from adr_tvm.progress import get_log, printable, progress, set_verbosity


@pytest.fixture(autouse=True)
def clean():
    """Leave no handler, level or cached console behind."""
    forget()
    yield
    log = get_log()
    log.handlers.clear()
    log.setLevel(logging.NOTSET)
    log.propagate = True
    forget()


def forget():
    module._console.cache_clear()
    module._bars.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_plain_lines_are_rare_and_the_last_one_is_shown(capsys, clock):
    set_verbosity(0)
    with progress("measuring layers", total=40) as step:
        for index in range(40):
            clock[0] += 0.5
            step.advance(1, f"conv{index}")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "[1/40] measuring layers: conv0"
    assert lines[-1] == "[40/40] measuring layers: conv39"
    assert len(lines) == 8  # one in 3 s of 20 s, and the last


def test_unknown_total(capsys, clock):
    set_verbosity(0)
    with progress("reading", total=None) as step:
        step.advance(5)
        step.advance(5)
    assert capsys.readouterr().err == "[5] reading\n"


def test_quiet(capsys):
    set_verbosity(-1)
    with progress("measuring", total=1) as step:
        step.advance(1, "conv1")
    get_log().info("nothing")
    get_log().warning("slow clock")
    assert capsys.readouterr().err == "warning: slow clock\n"


def test_levels(capsys):
    set_verbosity(0)
    get_log().debug("detail one")
    set_verbosity(1)
    get_log().debug("detail two")
    get_log().error("bad %s", "thing")
    assert capsys.readouterr().err == "detail two\nerror: bad thing\n"


def test_a_library_user_sees_nothing(capsys):
    with progress("measuring", total=1) as step:
        step.advance()
    assert capsys.readouterr() == ("", "")


def test_long_and_hostile_lines_stay_plain(capsys):
    set_verbosity(0)
    get_log().info("layer %s", "[red]x\x1b[31m" + "y" * 300)
    err = capsys.readouterr().err
    assert err == "layer [red]x\N{REPLACEMENT CHARACTER}[31m" + "y" * 300 + "\n"
    assert printable("a\nb\x07ü") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}ü"


def test_bars_on_a_terminal_nest_and_go_away(capsys, terminal):
    set_verbosity(0)
    with progress("outer [bold]", total=2) as outer:
        with progress("inner", total=3) as inner:
            inner.advance(3, "[red]\x1b[5m")
            get_log().info("between")
        outer.advance(2, "done")
        assert len(module._bars().tasks) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "outer [bold]" in err and "between" in err and "\x1b[5m" not in err
    assert module._bars().tasks == [] and not module._bars().live.is_started


def test_bar_is_removed_after_an_error(capsys, terminal):
    set_verbosity(0)
    with pytest.raises(KeyError), progress("outer", total=2):
        raise KeyError
    assert module._bars().tasks == [] and not module._bars().live.is_started
    with progress("again", total=1) as step:
        step.advance()
    assert "again" in capsys.readouterr().err
