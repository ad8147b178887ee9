#!/bin/sh
# How results/experiments, results/REPORT.md and results/report.html were made: some hours on two cores without a GPU.
#
#   scripts/experiments.sh [DATA_ROOT [CIFAR10_NPZ]]
#
# DATA_ROOT: folder of the datasets (default data; what is missing is downloaded). CIFAR10_NPZ: read CIFAR-10 from
# an archive with Keras's keys instead. What has finished is neither run nor measured again. PRESET=quick takes minutes.
set -eu
root=${1:-data}

bnrepro reproduce --preset "${PRESET:-full}" --data-root "$root" ${2:+"--archive=cifar10=$2"}
bnrepro report
