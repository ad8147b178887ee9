"""Usage errors, described in our own words rather than Typer's or Click's."""

from __future__ import annotations

import os
import re
import sys
from shlex import quote
from typing import Any, get_args, get_type_hints

import typer

from bnrepro.errors import did_you_mean, known_are

UsageError: Any = typer.BadParameter.__bases__[0]
"""The parser's exception, which comes from Click or from the copy of it inside Typer, depending on the version."""


HELP = ("-h", "--help")


def sentence(error: Any, command: Any) -> str | None:
    """The message for a `UsageError`, or None if a command group was called without a command.

    Args:
        error: what the parser raised on ``sys.argv``.
        command: the parser of the whole command line.
    """
    root = command
    path, command, words = _reached(root)
    options = options_of(command)
    asked, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if asked in options:
        about = "takes no value" if is_flag(options[asked]) else "needs a value"
        return f"{asked} {about}. {options[asked].help}"
    if asked:
        others = getattr(command, "commands", root.commands)
        elsewhere = [name for name, each in others.items() if asked in options_of(each)]
        return _unknown(asked, words, options, path, _takes_keys(command), elsewhere)
    if commands := getattr(command, "commands", None):
        if not words:
            return None
        if words[0] == "help":
            return f"There is no command 'help'. Write: {path} --help"
        return f"There is no command {words[0]!r}.{known_are(words[0], commands)}"
    if parameter and parameter.opts[0].startswith("-"):
        return _bad_value(parameter, words, get_type_hints(command.callback, include_extras=True)[parameter.name])
    shown = " ".join(map(quote, words))
    if parameter:
        about = parameter.help[0].lower() + parameter.help[1:]
        return f"{path} {shown}".rstrip() + f" needs {parameter.metavar or parameter.name}: {about}"
    return f"{path}: too many arguments: {shown}. `{path} --help` says which it takes."


OLD_NAMES = {
    "bnrepro bench": {"--norms": "--variants"},
    **{f"bnrepro data {name}": {"--root": "--data-root"} for name in ("list", "fetch", "verify")},
}
"""Options by the names that they had, which are taken still."""


def take_old_names(command: Any) -> list[tuple[str, str]]:
    """Put today's names in place of `OLD_NAMES` in ``sys.argv``, and return the pairs that were replaced."""
    path, _, words = _reached(command)
    renamed, first, found = OLD_NAMES.get(path, {}), len(sys.argv) - len(words), []
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end], first):
        name, equals, value = word.partition("=")
        if name in renamed:
            sys.argv[place] = f"{renamed[name]}{equals}{value}"
            found.append((name, renamed[name]))
    return found


def said_twice(command: Any) -> str | None:
    """The message for an option given twice with different values, of which the parser would silently use the last."""
    _, command, words = _reached(command)
    options = options_of(command)
    given: dict[str, str] = {}
    for place, word in enumerate(words[: words.index("--")] if "--" in words else words):
        name, equals, value = word.partition("=")
        if name in options and not is_flag(options[name]) and not getattr(options[name], "multiple", False):
            value, first = value if equals else "".join(words[place + 1 : place + 2]), options[name].opts[0]
            if given.setdefault(first, value) != value:
                return f"{name} is given twice: {given[first]!r} and {value!r}. Leave one of them out."
    return None


def misplaced(command: Any) -> str | None:
    """The message for an option written like a configuration key (``preset=smoke``)."""
    path, command, words = _reached(command)
    options, before = options_of(command), ""
    for word in words[: words.index("--")] if "--" in words else words:
        key, equals, value = word.partition("=")
        key = {"root": "data_root", "norms": "variants"}.get(key, key) if path in OLD_NAMES else key
        option, before_has_value = f"--{key.replace('_', '-')}", before in options and not is_flag(options[before])
        before = word
        if not equals or option not in options or before_has_value:
            continue
        if _takes_keys(command):
            from bnrepro.config.overrides import groups, keys

            if key in keys() or key in groups():
                continue
        right = option if is_flag(options[option]) else quote(f"{option}={value}")
        return f"{word}: {path} has an option of this name but no key. Write {right}."
    return None


def _reached(command: Any) -> tuple[str, Any, list[str]]:
    """The command that ``sys.argv`` selects: its full name, its parser, and the remaining arguments."""
    path, words = "bnrepro", sys.argv[1:]
    while words and words[0] in getattr(command, "commands", ()):
        path, command = f"{path} {words[0]}", command.commands[words[0]]
        words = words[1:]
    return path, command, words


def options_of(command: Any) -> dict[str, Any]:
    """The options of a command, by all of their names."""
    return {name: each for each in command.params for name in each.opts if name.startswith("-")}


def arguments_of(command: Any) -> list[Any]:
    """The arguments of a command, in their order."""
    return [each for each in command.params if not each.opts[0].startswith("-")]


def is_flag(option: Any) -> bool:
    """Whether an option takes no value."""
    return bool(getattr(option, "is_flag", False))


def _takes_keys(command: Any) -> bool:
    return any(each.name in ("overrides", "parts") for each in command.params)


def _unknown(
    asked: str, words: list[str], options: dict[str, Any], path: str, overrides: bool, elsewhere: list[str]
) -> str:
    """The message for an unknown option: a key with dashes, a path, or an option of the commands ``elsewhere``."""
    # Of -h=3 the parser names "-=".
    inside = (word for word in words if re.match("-[^-]", word) and asked[1:] in word)
    typed = next((word for word in words if word.startswith(asked)), next(inside, asked))
    name, equals, value = typed.partition("=")
    if name in HELP:
        return f"{name} takes no value. It shows the help of {path}."
    if os.path.lexists(typed):
        return f"There is no option {typed}. To name the path, write {quote(f'./{typed}')}."
    key, near = name.lstrip("-").replace("-", "_"), did_you_mean(name, options)
    if overrides:
        from bnrepro.config.overrides import groups, keys

        longer = next((option for option in options if option.startswith(name) and key not in groups()), None)
        if longer:  # --seed: --seeds, of which the key of that name is another thing
            return f"There is no option {name}. Did you mean {longer}? {options[longer].help}"
        if not equals and typed in words[:-1] and not words[words.index(typed) + 1].startswith("--"):
            value = words[words.index(typed) + 1]
        value = value or "VALUE"
        if key in keys() or key in groups():
            return f"There is no option {name}. Write {quote(f'{key}={value}')}, without dashes."
        if not near and (near := did_you_mean(key, [*keys(), *groups()])):
            near += " Keys are written without dashes, as in epochs=5."
    if elsewhere:
        others = ", ".join(elsewhere)
        return f"{path} has no option {name}, which belongs to {others}. `{path} --help` lists its own."
    return f"There is no option {name}.{near or f' `{path} --help` lists the options.'}"


def _bad_value(parameter: Any, words: list[str], hint: Any) -> str:
    """The message for an invalid value of an option. ``hint`` is the type annotation of the parameter."""
    kind, about = get_args(hint)[0], get_args(hint)[1]
    value = ""
    for place, word in enumerate(words):
        for name in parameter.opts:
            if word.startswith(f"{name}="):
                value = word.removeprefix(f"{name}=")
            elif word == name and place + 1 < len(words):
                value = words[place + 1]
    ends = "" if about.min is None else f" of at least {about.min}"
    if about.max is not None:
        ends = f" between {about.min} and {about.max}"  # of ours, none has only a largest value
    kinds = (kind, *get_args(kind))  # of a union, its parts
    wanted = "an integer" if int in kinds else "a number" if float in kinds else "a text"
    return f"{parameter.opts[0]} must be {wanted}{ends}; got {value!r}. {parameter.help}"
