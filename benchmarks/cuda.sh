#!/usr/bin/env bash
# Checks and times a pack on a machine with an NVIDIA GPU; needs no network and compiles nothing.
#
#     benchmarks/cuda.sh PACK [RESULTS] [RUNNER OPTION ...]
#
# PACK: the folder that benchmarks/cuda_pack.sh made. RESULTS: a folder (default: results) for results.jsonl, one JSON
# object a line, written as it goes, and tables.txt. Ends by itself within 8 minutes. PYTHON=... is the interpreter,
# of a version the pack has wheels for; PyTorch is compared with where that interpreter has it.
set -uo pipefail
if (($# < 1)) || [[ ! -f $1/manifest.json ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
pack=$(realpath "$1")
results=${2:-results}
shift $(($# < 2 ? 1 : 2))
mkdir -p "$results" && results=$(realpath "$results") || exit 2
python=${PYTHON:-python3}
site=$results/site
if [[ -d $pack/wheels && ! -d $site ]]; then
    wanted=(apache-tvm-ffi ml_dtypes)
    "$python" -c 'import numpy' 2>/dev/null || wanted+=(numpy)
    if ! "$python" -m pip install --quiet --no-index --find-links "$pack/wheels" --target "$site" "${wanted[@]}"; then
        echo "the pack's wheels are not for $("$python" --version): make it with --python of that version" >&2
        rm -rf "$site"
        exit 5
    fi
fi
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export LD_LIBRARY_PATH=$pack/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
timeout --signal=INT --kill-after=5 470 "$python" "$pack/cuda_runner.py" "$pack" "$results/results.jsonl" "$@" \
    >"$results/tables.txt"
status=$?
if ((status >= 124)); then # cut off: print what is there
    timeout 10 "$python" "$pack/cuda_runner.py" --print "$pack" "$results/results.jsonl" >"$results/tables.txt"
fi
cat "$results/tables.txt"
exit "$status"
