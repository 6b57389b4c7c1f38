"""``adr-rpc-server``: an RPC server for a board, on which ``adr-compile --rpc`` measures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adr_tvm import __version__
from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.targets import TARGETS, find_target, read_target

DESCRIPTION = """\
Compile an RPC server for a board that has no Python: a folder to copy there.
adr-compile --rpc measures on the board while the server runs; it also answers
any other client of TVM's RPC."""

EPILOG = """\
examples:
  adr-rpc-server --target rpi4 --runtime-dir tvm-aarch64
  scp -r rpc-rpi4 pi@raspberrypi:
  ssh pi@raspberrypi rpc-rpi4/bin/adr_rpc_server --host 0.0.0.0 --port 9090
      then: adr-compile m.onnx --target rpi4 --rpc raspberrypi:9090 ...

options of the server:
  --host ADDRESS            to listen on (default: 127.0.0.1)
  --port N                  (default: 9090; 0: any that is free)
  --threads N               for kernels (default: TVM's choice)
  --tracker HOST:PORT       a tracker (python3 -m tvm.exec.rpc_tracker) to join,
  --key NAME                as one of the boards of this name
  --custom-addr ADDRESS     that clients reach the board at, if the tracker sees
                            another

Whoever can connect to the server can run any code on the board: let it listen
on a network that you trust, or on 127.0.0.1 behind ssh -L."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="adr-rpc-server",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--target", metavar="NAME", default="cpu", help=f"the board: {', '.join(TARGETS)} (default: cpu)"
    )
    parser.add_argument("--target-json", metavar="FILE", help="another board, as for adr-compile")
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="TVM's runtime for the board, or its wheels (default: this machine's, where it fits)",
    )
    parser.add_argument("-o", "--out", metavar="OUT", help="folder to write (default: rpc-TARGET)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_verbosity(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Compile the server."""
    from adr_tvm.remote.server_folder import PROGRAM, write_server

    given = arguments.target_json
    entry = find_target(arguments.target) if given is None else read_target(given)
    folder = Path(arguments.out or f"rpc-{entry.name}")
    write_server(folder, entry, arguments.runtime_dir)
    print(folder / PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(run, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
