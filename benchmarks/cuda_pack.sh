#!/usr/bin/env bash
# Makes a pack for benchmarks/cuda.sh, on any machine: a GPU is not needed. Options are those of benchmarks/cuda_pack.py.
#
#     benchmarks/cuda_pack.sh PACK [--arch SM,...] [--python VERSION ...] [--batch N] [--layer NAME ...] ...
#
# PYTHON=... is the interpreter.
set -euo pipefail
if (($# < 1)); then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
folder=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.cuda_pack "$folder" "$@"
