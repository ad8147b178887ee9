"""Where to put batch normalization and dropout, and what gamma, beta and the noise do."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.placement.analysis import analyse
from bnrepro.experiments.placement.claims import BENCHMARK, CLAIMS, NOTES
from bnrepro.experiments.placement.exact import probes
from bnrepro.experiments.placement.grid import arms

EXPERIMENT = Experiment(
    name="placement",
    title="Before or after the activation, and dropout beside it",
    source=f"{NOTES}; {BENCHMARK}",
    deviations=(
        "Small networks on digits and CIFAR-10 for a few epochs, where the benchmark trains CaffeNet and GoogLeNet on "
        "ImageNet at 128 pixels. The benchmark's numbers stand beside ours, and are not held to be the same.",
        "He's initial weights for all activations, Adam, and one learning rate with a cosine schedule; the benchmark "
        "has LSUV or orthogonal weights and SGD. Another learning rate for each arm could change their order.",
        "BN has gamma and beta unless it says otherwise; the benchmark's main table is without them (P6 has both).",
        "The benchmark has dropout 0.5 in its two fully connected layers throughout. Here there is none but where "
        "dropout is the question, and there it stands at every layer, or before the last.",
        "Activations are ReLU, ELU, PReLU, tanh and sigmoid; RReLU and Maxout are left out.",
        "In the residual network, after means that each norm follows an activation: the second of a block follows the "
        "sum.",
    ),
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
