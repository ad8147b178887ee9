#!/bin/sh
# How the tables and figures in results/ were made: about an hour on two cores without a GPU.
#
#   scripts/results.sh [DATA_ROOT [CIFAR10_NPZ]]
#
# DATA_ROOT: folder of the datasets (default data; what is missing is downloaded). CIFAR10_NPZ: read CIFAR-10 from
# an archive with Keras's keys instead. Hyperparameters are torch's defaults for Adam, the same for every variant, and
# were not tuned. What has finished is not run again.
set -eu
root=${1:-data}
archive=${2:+data.source=npz data.path=$2}

bnrepro compare --seeds 5 --out results/mnist5k channels_last=false

bnrepro compare --seeds 3 --out results/mnist data=mnist "data.root=$root" epochs=3 channels_last=false

# shellcheck disable=SC2086  # two words on purpose
bnrepro compare --seeds 3 --out results/cifar10 data=cifar10 "data.root=$root" $archive model=vgg_small model.width=0.5 \
    batch_size=128 epochs=6 schedule=cosine channels_last=true
