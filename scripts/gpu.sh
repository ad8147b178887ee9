#!/bin/sh
# What only a GPU can show, in about ten minutes on one: the tests, the layers' speed, an epoch of ResNet-20, and one
# claim at the scale of its paper. results/gpu/README.md says what it printed, and where.
#
#   scripts/gpu.sh OUT [DATA_ROOT [CIFAR10_NPZ]]
#
# OUT: folder for tables and records. DATA_ROOT, CIFAR10_NPZ: as in scripts/results.sh. PARTS: which of "tests layers
# epoch claim" (default: all). SECONDS_LEFT: when the claim's last seeds are given up (default: 400). What has finished
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

# Santurkar et al. (2018), Figure 1a, b and section 2: "VGG", CIFAR-10, plain SGD, batch 128, 15,000 steps, no
# augmentation, Glorot's initial weights, rate 0.1: 83% test accuracy with BN, 80% without. Here vgg_small at double width
# (64, 128, 256), 40 epochs of 382 steps. Registered before its runs: seeds 0 to 2, then 3 to 5 if time is left, paired
# over seeds; it holds if the 95% interval of the difference in test accuracy lies above 0.
if part claim; then
    for seeds in 3 6; do
        # shellcheck disable=SC2086
        timeout "${SECONDS_LEFT:-400}" bnrepro compare --variants nobn,bn --seeds "$seeds" --jobs 6 \
            --out "$out/santurkar2018_figure1" $cifar data.crop=0 data.flip=false data.val_fraction=0.02 model=vgg_small \
            model.width=2 model.init=glorot batch_size=128 epochs=40 eval_every=764 optimizer=sgd optimizer.momentum=0 \
            optimizer.lr=0.1 channels_last=true "root=$out/runs" || echo "$seeds seeds: given up"
    done
fi
