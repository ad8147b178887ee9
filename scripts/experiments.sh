#!/bin/sh
# Makes results/experiments, results/REPORT.md and results/report.html: hours on two cores without a GPU. What lies there
# says in each provenance.json by which command and from which revisions it was made, one experiment at a time so far.
#
#   scripts/experiments.sh [DATA_ROOT [CIFAR10_NPZ]]
#
# DATA_ROOT: folder of the datasets (default data; what is missing is downloaded). CIFAR10_NPZ: read CIFAR-10 from
# an archive with Keras's keys instead. What has finished is neither run nor measured again. PRESET=quick takes minutes.
set -eu
root=${1:-data}

bnrepro reproduce --preset "${PRESET:-full}" --data-root "$root" ${2:+"--archive=cifar10=$2"}
bnrepro report
