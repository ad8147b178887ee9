"""What a shell offers when Tab is pressed: commands, options, keys and their values, norms, runs, experiments, claims.

The scripts of `SCRIPTS` hand over the line up to the cursor and get candidates for its last word, one a line. Nothing
heavy is imported, and nothing is ever said: whatever is wrong, there is no candidate.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from bnrepro.cli.mistakes import arguments_of, is_flag, options_of

LINE = "_BNREPRO_COMPLETE"
"""The environment variable that holds the line."""
MOST = 500  # runs that are offered
ACTIVATIONS = ("relu", "sigmoid", "tanh", "elu", "prelu")
SCRIPTS = {
    "bash": """_bnrepro() {
  local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
  local word="${line##* }"
  local kept="${word%"${word##*[=:]}"}"  # bash takes a word to begin after these
  COMPREPLY=($(_BNREPRO_COMPLETE="$line" "${COMP_WORDS[0]}" 2>/dev/null))
  COMPREPLY=("${COMPREPLY[@]#"$kept"}")
  [[ ${COMPREPLY[0]-} == *[=/] ]] && compopt -o nospace
  return 0
}
complete -o default -F _bnrepro bnrepro
""",
    "zsh": """_bnrepro() {
  local -a found
  found=("${(@f)$(_BNREPRO_COMPLETE="$LBUFFER" bnrepro 2>/dev/null)}")
  found=(${found:#})
  (( $#found )) || { _files; return }
  compadd -S '' -- ${(M)found:#*[=/]}
  compadd -- ${found:#*[=/]}
}
compdef _bnrepro bnrepro
""",
    "fish": """complete -c bnrepro -a '(_BNREPRO_COMPLETE=(commandline -cp) bnrepro 2>/dev/null)'
""",
}


def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a shell's completion script.

    It completes commands, options, keys and their values, norms, runs, experiments and claims.

    Example, in ~/.bashrc: eval "$(bnrepro completion bash)"
    """
    from bnrepro.errors import UserError, known_are

    if shell not in SCRIPTS:
        raise UserError(f"There is no completion for {shell!r}.{known_are(shell, SCRIPTS)}")
    typer.echo(SCRIPTS[shell], nl=False)


def installed_for() -> str:
    """The shells whose start-up files mention it."""
    files = {"bash": ".bashrc", "zsh": ".zshrc", "fish": ".config/fish/config.fish"}
    found = []
    for shell, file in files.items():
        with suppress(OSError, RuntimeError):
            if "bnrepro completion" in (Path.home() / file).read_text(errors="replace"):
                found.append(shell)
    return ", ".join(found) or 'none; in ~/.bashrc: eval "$(bnrepro completion bash)"'


def candidates(line: str, parser: Any) -> list[str]:
    """What the last word of ``line`` can become."""
    words = _words(line)[1:]
    current = words.pop() if words else ""
    command = parser
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]
    options = options_of(command)
    if current.startswith("-"):
        name, equals, value = current.partition("=")
        if equals:
            return [f"{name}={each}" for each in _values(options.get(name), value, words)]
        return _beginning(options, current)
    before = options.get(words[-1]) if words else None
    if before is not None and not is_flag(before):
        return _values(before, current, words)
    if commands := getattr(command, "commands", None):
        return _beginning(commands, current)
    return [each for argument in arguments_of(command) for each in _values(argument, current, words)]


def _words(line: str) -> list[str]:
    """The words of the last command of ``line``, of which the last one is what is being written."""
    for end in ("", "'", '"'):
        lexer = shlex.shlex(line + end, posix=True, punctuation_chars="|;&")
        lexer.whitespace_split, lexer.commenters = True, ""
        with suppress(ValueError):
            found = list(lexer)
            last = max((i for i, word in enumerate(found) if re.fullmatch(r"[|;&]+", word)), default=-1)
            return found[last + 1 :] + [""] * (line[-1:].isspace() and not end)
    return []


def _beginning(known: Iterable[str], current: str) -> list[str]:
    return [each for each in known if each.startswith(current)]


def _values(parameter: Any, current: str, words: Sequence[str]) -> list[str]:
    """What an option or argument takes."""
    name = getattr(parameter, "name", "")
    if name in ("overrides", "parts"):
        return _overrides(current, parts=name == "parts")
    if name == "where":
        return _beginning([f"{column}=" for column in _columns()], current)
    if name == "archive":
        return _beginning([f"{dataset}=" for dataset in _members("data")], current)
    if name in ("variants", "columns"):
        return _listed(_KNOWN[name](), current)
    if name in ("run", "other"):
        return _runs(current, _root(words))
    if name == "names":
        return _experiments(current)
    if name == "folders":
        return _experiments(current) + _comparisons(current, _root(words))
    if name == "folder":
        return _comparisons(current, _root(words))
    return _beginning(_KNOWN[name](), current) if name in _KNOWN else []


def _listed(known: Iterable[str], current: str) -> list[str]:
    """Names separated by commas, of which the last one is being written."""
    before, comma, last = current.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{each}" for each in known if each.startswith(last) and each not in taken]


def _overrides(current: str, parts: bool = False) -> list[str]:
    from bnrepro.config.overrides import groups, keys

    key, equals, text = current.partition("=")
    if equals:
        return [f"{key}={each}" for each in _listed(_of_key(key), text)]
    known = [*(f"{each}=" for each in groups()), *(f"{each}=" for each in keys())]
    own = ("layers", "grid", "memory", "epoch", "compare", "recipe", "throughput", "startup", "growth", "seeds")
    return _beginning([*(own if parts else ()), *known], current)


def _of_key(key: str) -> list[str]:
    """The values of a key, where they can be listed."""
    from bnrepro.config.overrides import groups, keys

    if key in groups():
        return groups()[key]
    named = {"variant": "variant", "model.name": "model", "data.name": "dataset", "model.activation": "activation"}
    if key in named:
        return list(_KNOWN[named[key]]())
    kind = keys().get(key)
    kinds = [each for each in get_args(kind) or [kind] if each is not NoneType]
    found = [
        member for each in kinds if isinstance(each, type) and issubclass(each, Enum) for member in each.__members__
    ]
    return found or (["true", "false"] if bool in kinds else [])


def _norms() -> Iterable[str]:
    from bnrepro.cli.norms import NORMS

    return NORMS


def _columns() -> Iterable[str]:
    from bnrepro.runs.index import columns

    return columns()


def _statuses() -> Iterable[str]:
    from bnrepro.runs.index import STATUSES

    return STATUSES


def _members(group: str) -> Iterable[str]:
    from bnrepro.config.overrides import groups

    return groups()[group]


_KNOWN: dict[str, Callable[[], Iterable[str]]] = {
    "variant": _norms,
    "variants": _norms,
    "columns": _columns,
    "sort": _columns,
    "status": _statuses,
    "model": lambda: _members("model"),
    "dataset": lambda: _members("data"),
    "activation": lambda: ACTIVATIONS,
    "preset": lambda: ("smoke", "quick", "full", "paper"),
    "launcher": lambda: ("local", "slurm"),
    "statistics": lambda: ("ema", "population", "batch"),
    "format": lambda: ("pdf", "svg", "png"),
    "shell": lambda: SCRIPTS,
    "name": lambda: _members("data"),
}


def _root(words: Sequence[str]) -> Path:
    """The folder of the runs that the line names, or the default."""
    for place, word in enumerate(words):
        if word.startswith(("--root=", "root=")):
            return Path(word.partition("=")[2])
        if word == "--root" and place + 1 < len(words):
            return Path(words[place + 1])
    return Path("runs")


def _runs(current: str, root: Path) -> list[str]:
    """Paths of runs; where what is written is the beginning of names or hashes, these."""
    places = [file.parent for file in sorted(root.glob("*/*/*/*/config.yaml"))][:MOST]
    paths = [str(place) for place in places if str(place).startswith(current)]
    names = [word for place in places for word in (place.name, place.name.rpartition("-")[2])]
    return paths or [name for name in dict.fromkeys(names) if name.startswith(current)]


def _comparisons(current: str, root: Path) -> list[str]:
    places = [str(place) for place in sorted(root.glob("*/*/compare-*"))]
    return _beginning(places, current) or _beginning([Path(place).name for place in places], current)


def _experiments(current: str) -> list[str]:
    """Names of experiments, and after one and a slash its claims, which are read from its source."""
    from bnrepro import experiments

    name, slash, claim = current.partition("/")
    if not slash:
        return _beginning(experiments.NAMES, current)
    home = Path(experiments.__file__).parent
    files = [home / f"{name}.py", *(home / name).glob("*.py")] if name in experiments.NAMES else []
    ids = [
        id
        for file in files
        if file.is_file()
        for id in re.findall(r'^@[\w.]+\(\s*"([A-Z]\w*(?:\.\w+)*)"', file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return [f"{name}/{id}" for id in ids if id.startswith(claim)]


def answer(parser: Any) -> bool:
    """Print the candidates if a shell asks for them; whether it does."""
    line = os.environ.get(LINE)
    if line is None:
        return False
    with suppress(Exception):
        found = list(dict.fromkeys(candidates(line, parser)))
        typer.echo("\n".join(found), nl=bool(found))
    return True
