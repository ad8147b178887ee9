"""The source's network, optimiser and augmentation, and the five norms that are trained with them."""

from __future__ import annotations

from dataclasses import replace

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Settings

# models.py, model_ops.py and data_ops.py of the source; Keras's defaults where they say nothing.
SETUP = (
    "model=lenet",
    "model.keep_bias=true",
    "model.init=glorot",
    "optimizer=adam",
    "optimizer.lr=0.001",
    "optimizer.eps=1e-7",
    "batch_size=256",
    "data.rotate=20",
    "data.brightness=0.5",
    "data.samplewise=true",
)
FRAMEWORK = ("norm.eps=1e-3", "norm.momentum=0.01")  # Keras's BatchNormalization: momentum 0.99 in its own sense
OWN = ("norm.eps=1e-6", "norm.momentum=0.1")  # BatchNorm.py of the source: 0.9 in Keras's sense

ARMS: dict[str, tuple[str, ...]] = {
    "nobn": ("variant=nobn",),
    "bn": ("variant=bn", *FRAMEWORK),
    "custombn": ("variant=custombn", *FRAMEWORK),
    "custombn_own": ("variant=custombn", *OWN),
    "convbn": ("variant=convbn", *FRAMEWORK),
}
SOURCES = ("bn", "custombn_own")
"""The two arms with BN that the source compares: "Default" and "Custom"."""
FLIPS = ("with", "without")
CURVES = "curves"


def arms(settings: Settings) -> list[Arm]:
    """Each norm with and without the source's horizontal flips, for each seed."""
    common = [*SETUP, f"epochs={settings['epochs']}", f"eval_every={settings['eval_every']}", *settings["overrides"]]
    made = []
    for flips in FLIPS:
        for arm, overrides in ARMS.items():
            cfg = load_config([*common, *overrides, f"data.flip={flips == 'with'}"])
            seeds = range(settings["seeds"])
            made += [Arm(CURVES, {"arm": arm, "flips": flips}, replace(cfg, seed=seed)) for seed in seeds]
    return made
