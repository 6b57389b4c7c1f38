#!/usr/bin/env bash
# All speed benchmarks into a folder: NAME.txt (command and table), NAME.json, NAME.log, and plots/.
#
#     benchmarks/all.sh DATA RESULTS [NAME ...]
#
# DATA is laid out as benchmarks/validation/data_folder.py says. About 25 minutes on two cores, which should have nothing
# else to do; NAME: only these steps. `python -m benchmarks.insert_tables RESULTS docs/performance.md` puts the tables
# into the documentation. CIFAR_TRAIN=FILE makes plans with training images of CIFAR-10; PYTHON=... is the interpreter.
set -uo pipefail
if (($# < 2)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
data=$(realpath "$1") && mkdir -p "$2/plots" && results=$(realpath "$2") || exit 2
shift 2
only=("$@")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
failed=0

step() { # NAME MODULE [ARGUMENT ...]
    local name=$1 module=$2 start=$SECONDS
    shift 2
    if ((${#only[@]})) && [[ ! " ${only[*]} " == *" $name "* ]]; then
        return
    fi
    local out=$results/$name
    if { echo "\$ python -m benchmarks.$module --data DIR ${*//$results/RESULTS}"; "$python" -m "benchmarks.$module" --data "$data" "$@" \
        --json "$out.json"; } >"$out.txt" 2>"$out.log"; then
        echo "$name: $((SECONDS - start)) s" >&2
    else
        echo "$name: FAILED after $((SECONDS - start)) s, see $out.log" >&2
        failed=1
    fi
}

step machine machine --seconds 2
step dense dense --seconds 2
step dense_layers dense_layers --seconds 0.5 --network squeezenet-b1 --network vgg19
step reuse_layers reuse_layers --seconds 1 --threads 1 --network fst_wave-224 --network waifu2x-128 --network vgg19
step reuse_layers_2 reuse_layers --seconds 1 --threads 2 --L 16 --H 8 --table float32 int8 --network fst_wave-224 \
    --network fst_wave-448 --network waifu2x-128 --network vgg19
step reuse_synthetic reuse_layers --seconds 1 --network synthetic
step reuse_lossless reuse_layers --seconds 1 --network squeezenet-text --network squeezenet-896
step reuse_gradients reuse_gradients --seconds 1 --threads 1
step reuse_gradients_layers reuse_gradients --seconds 1 --threads 1 --L 16 --H 8 --layer alexnet-conv2 \
    --layer alexnet-conv3 --layer vgg19-conv1_2 --layer vgg19-conv2_2 --layer vgg19-conv3_2 --layer vgg19-conv4_2 \
    --layer vgg19-conv5_2
step training_step training_step --seconds 5 --network cifarnet
step training_memory training_memory --network cifarnet
step plans plans --seconds 3 --time-budget 40 --network cifarnet --network cifarnet-batch-scope --network resnet20 \
    --network squeezenet-text --network squeezenet-lossless-photo --network fst_wave \
    --plot "$results/plots" ${CIFAR_TRAIN:+--cifar-train "$CIFAR_TRAIN"}
step plans_more plans --seconds 3 --time-budget 10 --network tiny-ic --network tiny-kws --network tiny-vww \
    --network trec-cifarnet --network waifu2x --network squeezenet-b8 --plot "$results/plots"
step growth growth --seconds 1 --threads 2 --batches 1 8 64 --sides 64 256 1024 --plot "$results/plots"
step memory memory --threads 1
step compile_time compile_time
exit $failed
