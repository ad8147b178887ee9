"""The sources' claims: one paper a module, found by being here. `bnrepro.claims` says what a paper is."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from bnrepro.errors import UserError, known_are

if TYPE_CHECKING:
    from bnrepro.claims import Paper


def _order(name: str) -> tuple[str, str]:
    """Tutorials and code first, then papers by their year."""
    year = re.search(r"[0-9]{4}$", name)
    return (year[0] if year else "", name)


NAMES: tuple[str, ...] = tuple(sorted((module.name for module in iter_modules(__path__)), key=_order))
"""The package's papers, by their modules."""
COMPARISON = "compare"
"""The experiment that a comparison's records name: one without claims."""


def experiment(name: str) -> Paper[Any]:
    """The paper called ``name``, or the one in a file of a user's own; it is imported now and not before.

    Raises:
        UserError: there is none.
    """
    head, _, claim = name.rpartition("/")
    if head in NAMES or head.endswith(".py"):
        raise UserError(f"{name}: this takes a whole experiment, and not its claim {claim!r}. Write {head}.")
    if name.endswith(".py"):
        return _in_file(Path(name).expanduser().absolute())
    if name not in NAMES:
        raise UserError(f"There is no experiment {name!r}.{known_are(name, NAMES)}")
    found: Paper[Any] = import_module(f"bnrepro.experiments.{name}").paper
    return found


def _in_file(file: Path) -> Paper[Any]:
    from bnrepro.claims import Paper
    from bnrepro.config import user_files

    module = user_files.load_module(file)
    papers = list({id(value): value for value in vars(module).values() if isinstance(value, Paper)}.values())
    if len(papers) != 1:
        raise UserError(
            f"{file} must define one paper, as in `paper = Paper(__name__, Settings)`; it defines {len(papers)}."
        )
    if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", file.stem) or file.stem in (*NAMES, COMPARISON):
        raise UserError(
            f"{file}: results are kept under the file's name. Use letters, digits and underscores, and not "
            f"{COMPARISON!r} or the name of one of the package's experiments."
        )
    return papers[0]
