"""Targets: presets are what LLVM and schedules take them for, files are checked, the list says what is not there."""

from __future__ import annotations

import json
import shutil

import pytest
from tvm.target import codegen

from adr_tvm._tvm import target_threads
from adr_tvm.cli.compile import main
from adr_tvm.deploy.processor import vector_extensions
from adr_tvm.deploy.toolchain import toolchain_of
from adr_tvm.errors import MissingDependencyError, UsageError
from adr_tvm.options import CompileOptions
from adr_tvm.planner.core_cost import core_seconds
from adr_tvm.planner.cost import TERMS
from adr_tvm.schedules.register_tile import NEON, conv_tile, gemm_tile, isa_of
from adr_tvm.targets import AARCH64, TARGETS, find_target, read_target

FOREIGN = [name for name, entry in TARGETS.items() if entry.foreign and not entry.bare_metal and entry.gpu is None]
BARE_METAL = ["cortex-m4", "cortex-m7"]
A57 = {"kind": "llvm", "mtriple": AARCH64, "mcpu": "cortex-a57", "mattr": ["+neon"], "num-cores": 2}


def write(folder, content):
    path = folder / "board.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_presets():
    assert set(TARGETS) == {
        *("cpu", "rpi3", "rpi4", "rpi5", "jetson-cpu", "cortex-a53", "cortex-a72", "cortex-a76", "neoverse", "arm64"),
        *BARE_METAL,
        *("cuda", "jetson-orin", "t4", "a100", "h100", "h200"),
    }
    assert not TARGETS["cpu"].foreign and len(FOREIGN) == 9


@pytest.mark.parametrize("name", FOREIGN)
def test_a_preset_is_a_whole_target(name):
    entry = find_target(name)
    target = entry.make(None)
    assert isa_of(target) == NEON and "asimd" in vector_extensions(codegen.llvm_get_cpu_features(target))
    assert str(target.attrs["mtriple"]) == AARCH64 and target_threads(target) == entry.cores
    assert target_threads(entry.make(3)) == 3
    features = set(codegen.llvm_get_cpu_features(target))
    assert ("dotprod" in features) == ("+dotprod" in target.attrs["mattr"])
    assert not {"aes", "sha2"} & features or name not in ("rpi3", "rpi4"), "those boards lack them"


def test_tiles_fit_the_registers_of_neon():
    for rows, M in ((3136, 64), (196, 256), (49, 512), (1, 1000), (1024, 10)):
        tile = conv_tile(NEON, rows, M)
        assert tile.lanes == 4 and tile.NR % 4 == 0
        assert tile.MR * tile.vectors + tile.vectors + 1 <= NEON.registers
    assert conv_tile(NEON, 3136, 64).MR * conv_tile(NEON, 3136, 64).vectors >= 20, "enough to hide latency"
    packed = gemm_tile(NEON, 64)
    assert NEON.registers >= packed.MR * packed.NR // 4 + packed.NR // 4 + 1


def test_a_slower_core_takes_longer():
    for core in {TARGETS[name].core for name in FOREIGN}:
        seconds = core_seconds(core)
        assert set(seconds) == set(TERMS) and all(seconds[name] > TERMS[name] for name in TERMS)
    a53, a72 = (core_seconds(TARGETS[name].core) for name in ("rpi3", "rpi4"))
    assert all(a53[name] > a72[name] for name in TERMS)


def test_a_file(tmp_path):
    entry = read_target(write(tmp_path, A57))
    target = entry.make(None)
    assert (entry.name, entry.foreign, target_threads(target)) == ("board", True, 2)
    assert str(target.attrs["mcpu"]) == "cortex-a57" and isa_of(target) == NEON
    assert CompileOptions(target_json=write(tmp_path, A57)).entry.mcpu == "cortex-a57"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ([1], "expected an object"),
        ({**A57, "kind": "cuda"}, "only 'llvm'"),
        ({**A57, "mtriple": "armv7-none-eabi"}, "expected one of aarch64-linux-gnu"),
        ({**A57, "mattr": "+neon"}, "expected a list"),
        ({**A57, "mattr": ["neon"]}, "expected a list"),
        ({**A57, "num-cores": 0}, "expected 1 to"),
        ({**A57, "num-cores": True}, "expected 1 to"),
        ({**A57, "mcpu": "a b"}, "LLVM's name"),
        ({**A57, "keys": []}, "'keys' is not known"),
        ({key: value for key, value in A57.items() if key != "mcpu"}, "'mcpu' is missing"),
    ],
)
def test_bad_files(tmp_path, content, words):
    with pytest.raises(UsageError, match=words):
        read_target(write(tmp_path, content))


def test_a_processor_that_llvm_does_not_know(tmp_path):
    with pytest.raises(UsageError, match=r"no processor 'cortex-a5x' .*; there is cortex-a"):
        read_target(write(tmp_path, {**A57, "mcpu": "cortex-a5x"})).make(None)


def test_options_that_need_the_board():
    for given in ({"tune": 4}, {"tuning_db": "x.jsonl"}, {"timings": "t.json"}):
        with pytest.raises(UsageError, match="cannot go with target rpi4"):
            CompileOptions(target="rpi4", **given)
    with pytest.raises(UsageError, match="give one"):
        CompileOptions(target="rpi4", target_json="x.json")
    with pytest.raises(UsageError, match="cannot be read"):
        CompileOptions(target_json="nowhere.json")


def test_the_list(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["--list-targets"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and [line.split()[0] for line in lines[1:-1]] == list(TARGETS)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit):
        main(["--list-targets"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith("no: apt install g++-aarch64-linux-gnu") for line in lines[2 : 2 + len(FOREIGN)])
    needed = "no: apt install gcc-arm-none-eabi libnewlib-arm-none-eabi"
    assert all(line.endswith(needed) for line in lines[2 + len(FOREIGN) :][: len(BARE_METAL)])


@pytest.mark.parametrize("name", BARE_METAL)
def test_microcontrollers(name):
    entry = find_target(name)
    assert entry.foreign and entry.bare_metal and entry.cores == 1
    assert str(entry.make(None).attrs["mcpu"]) == name
    with pytest.raises(UsageError, match="add --emit c"):
        CompileOptions(target=name)
    with pytest.raises(UsageError, match="one core"):
        CompileOptions(target=name, emit="c", threads=2)


def test_bare_c_is_for_arm():
    for target in ("cpu", "cuda", "jetson-orin"):
        with pytest.raises(UsageError, match="arm64, cortex-m4, cortex-m7; the C compiles"):
            CompileOptions(target=target, emit="c")
    for target in FOREIGN:
        assert CompileOptions(target=target, emit="c").entry.takes_bare_c
        with pytest.raises(UsageError, match="--threads and --rpc cannot go with --emit c"):
            CompileOptions(target=target, emit="c", threads=2, rpc="board:9090")
    with pytest.raises(UsageError, match="--max-ram is for --emit c"):
        CompileOptions(max_ram=1000)


def test_a_missing_cross_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"aarch64-linux-gnu-g\+\+.*apt install g\+\+-aarch64-linux-gnu"):
        toolchain_of(TARGETS["rpi4"]).check()


def test_a_missing_cross_compiler_is_said_before_the_model_is_read(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["none.onnx", "--target", "arm64"]) == 5
    assert "apt install g++-aarch64-linux-gnu" in capsys.readouterr().err
