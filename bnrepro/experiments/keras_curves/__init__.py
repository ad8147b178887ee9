"""dksakkos/BatchNorm: a Keras layer of one's own beside the framework's and none, on augmented digits."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.keras_curves.analysis import analyse
from bnrepro.experiments.keras_curves.claims import CLAIMS, SOURCE
from bnrepro.experiments.keras_curves.exact import probes
from bnrepro.experiments.keras_curves.grid import arms

EXPERIMENT = Experiment(
    name="keras_curves",
    title="Curves with no, the framework's and a custom BN",
    source=SOURCE,
    deviations=(
        "A fixed number of epochs at a constant learning rate. The source stops early (patience 10) and halves the "
        "rate on plateaus (patience 3), for each arm at another time, so that its arms cannot be compared after that.",
        "Several seeds, all arms of a seed with the same initial weights and batches; the source has one.",
        "Validation images are not augmented and are the same for everyone; the source draws them from the generator "
        "that augments, so that its validation accuracy is that of turned, mirrored and brightened digits.",
        "An epoch's incomplete last batch is left out; Keras trains on it.",
        "PyTorch in place of Keras: Keras's momentum m is 1 - m here, Adam's epsilon is Keras's 1e-7, and moving "
        "variances are unbiased throughout (the source's are biased, by 1 part in 256 at most).",
        "Local-gain BN (convbn) and runs without horizontal flips are additions.",
    ),
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
