"""The sources' claims as experiments: one module for each source. `base` says what an experiment is."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnrepro import user_files
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
    """The experiment called ``name``, or the paper in a file of a user's own; it is imported now and not before.

    Raises:
        UserError: there is none.
    """
    if name.endswith(".py"):
        return _in_file(Path(name).expanduser().absolute())
    if name not in NAMES:
        raise UserError(f"There is no experiment {name!r}.{known_are(name, NAMES)}")
    module = import_module(f"bnrepro.experiments.{name}")
    found: Experiment | Paper[Any] = getattr(module, "paper", None) or module.EXPERIMENT
    return found


def _in_file(file: Path) -> Paper[Any]:
    from bnrepro.claims.paper import Paper

    module = user_files.load_module(file)
    papers = [value for value in vars(module).values() if isinstance(value, Paper)]
    if len(papers) != 1:
        raise UserError(f"{file} must hold one paper, as in `paper = Paper(__name__, Settings)`; it has {len(papers)}.")
    if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", file.stem) or file.stem in NAMES:
        raise UserError(
            f"{file}: results are kept under the file's name. Use letters, digits and underscores, and not "
            "the name of one of the package's experiments."
        )
    return papers[0]
