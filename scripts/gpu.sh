#!/bin/sh
# What only a GPU can show, in about ten minutes on one: the tests, the layers' speed, an epoch of ResNet-20, and one
# paper that takes hours on two cores. results/gpu/README.md says what it printed, and where.
#
#   scripts/gpu.sh OUT [DATA_ROOT [CIFAR10_NPZ]]
#
# OUT: folder for tables and records. DATA_ROOT, CIFAR10_NPZ: as in scripts/results.sh. PARTS: which of "tests layers
# epoch claim" (default: all). SECONDS_LEFT: when the claim is given up (default: 400). What has finished
# is not run again.
set -eu
out=${1:?Give a folder for the tables.}
root=${2:-data}
cifar="data=cifar10 data.root=$root ${3:+data.source=npz data.path=$3}"
mkdir -p "$out"

part() { case " ${PARTS:-tests layers epoch claim} " in *" $1 "*) printf '\n== %s (%s)\n' "$1" "$(date +%T)" ;; *) false ;; esac }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo 'No GPU: all parts run on the CPU, which takes hours.'

if part tests; then
    python3 -m pytest -q -n 4 -p no:benchmark -W default tests/training/test_cuda.py
fi

if part layers; then
    bnrepro bench layers memory --out "$out/bench"
fi

if part epoch; then # the third of three epochs, evaluation included; nothing else runs
    for norm in bn custombn convbn; do
        for arithmetic in "precision=fp32 channels_last=false" "precision=fp32 channels_last=true" "precision=bf16 channels_last=true"; do
            # shellcheck disable=SC2086  # words on purpose
            run=$(bnrepro train --variant "$norm" $cifar model=resnet20 batch_size=128 epochs=3 optimizer=sgd \
                optimizer.lr=0.1 tensorboard=false $arithmetic "root=$out/runs" 2>/dev/null | sed -n 's/^Run: //p')
            python3 -c '
import pathlib, sys
from bnrepro.runs.record import Run
(*_, second, third) = Run(pathlib.Path(sys.argv[1])).metrics
print(sys.argv[2], round(third["seconds"] - second["seconds"], 2), "s an epoch; test accuracy", third["test_accuracy"])
' "$run" "ResNet-20, batch 128, $norm, $arithmetic:"
        done
    done
fi

# Santurkar et al. (2018) under its registered design. In float32, not cuDNN's TF32: a change of the gradient over a short
# step is the difference of two that are nearly equal. Processes share the GPU through MPS where it can be started.
if part claim; then
    nvidia-cuda-mps-control -d 2>/dev/null || echo 'Without MPS.'
    # shellcheck disable=SC2086
    NVIDIA_TF32_OVERRIDE=0 timeout -s INT "${SECONDS_LEFT:-400}" bnrepro reproduce santurkar2018 --preset full --jobs 16 \
        --data-root "$root" ${3:+--archive "cifar10=$3"} --root "$out/runs" --out "$out/experiments" ||
        echo 'Given up: the same command goes on.'
    echo quit | nvidia-cuda-mps-control 2>/dev/null || true
fi
