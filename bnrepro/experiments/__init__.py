"""The sources' claims as experiments: one module for each source. `base` says what an experiment is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bnrepro.errors import UserError, known_are

if TYPE_CHECKING:
    from bnrepro.claims.paper import Paper
    from bnrepro.experiments.base import Experiment

NAMES = (
    "conv_batchnorm",
    "keras_curves",
    "labml",
    "placement",
    "numpynet",
    "ioffe2015",
    "vanlaarhoven2017",
    "bjorck2018",
    "santurkar2018",
    "wu2018",
    "li2019",
    "luo2019",
    "frankle2021",
    "wu2021",
)


def experiment(name: str) -> Experiment | Paper[Any]:
    """The experiment called ``name``; its module is imported now and not before.

    Raises:
        UserError: there is none.
    """
    if name not in NAMES:
        raise UserError(f"There is no experiment {name!r}.{known_are(name, NAMES)}")
    module = import_module(f"bnrepro.experiments.{name}")
    found: Experiment | Paper[Any] = getattr(module, "paper", None) or module.EXPERIMENT
    return found
