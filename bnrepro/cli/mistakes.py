"""What is wrong with a command line, in sentences of our own: none depends on Typer's words, or on Click's."""

from __future__ import annotations

import sys
from shlex import quote
from typing import Any, get_args, get_type_hints

import typer

from bnrepro.errors import did_you_mean

UsageError: Any = typer.BadParameter.__bases__[0]
"""What the parser raises; it is Click's, or Typer's own, as Typer's version is."""


def sentence(error: Any, command: Any) -> str | None:
    """What is wrong, where, and what to do, for a `UsageError`; None where a group of commands stands alone.

    Args:
        error: what the parser raised on ``sys.argv``.
        command: the parser of the whole command line.
    """
    path, words = "bnrepro", sys.argv[1:]
    while words and words[0] in getattr(command, "commands", ()):
        path, command = f"{path} {words[0]}", command.commands[words[0]]
        words = words[1:]
    options = {name: each for each in command.params for name in each.opts if name.startswith("-")}
    asked, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if asked in options:
        about = "takes no value" if getattr(options[asked], "is_flag", False) else "needs a value"
        return f"{asked} {about}. {options[asked].help}"
    if asked:
        return _unknown(asked, words, list(options), path, any(each.name == "overrides" for each in command.params))
    if commands := getattr(command, "commands", None):
        if not words:
            return None
        return f"There is no command {words[0]!r}.{did_you_mean(words[0], commands)} There are: {', '.join(commands)}."
    if parameter and parameter.opts[0].startswith("-"):
        return _bad_value(parameter, words, get_type_hints(command.callback, include_extras=True)[parameter.name])
    shown = " ".join(map(quote, words))
    if parameter:
        return f"{path} {shown}".rstrip() + f" lacks {parameter.metavar or parameter.name}: {parameter.help}"
    return f"{path} takes fewer arguments than these: {shown}. `{path} --help` says which."


def said_twice(command: Any) -> str | None:
    """Which option ``sys.argv`` gives twice with two values, of which the parser would take the last without a word."""
    words = sys.argv[1:]
    while words and words[0] in getattr(command, "commands", ()):
        command, words = command.commands[words[0]], words[1:]
    takes = {
        name: each.opts[0]
        for each in command.params
        for name in each.opts
        if name.startswith("-") and not (getattr(each, "is_flag", False) or getattr(each, "multiple", False))
    }
    given: dict[str, str] = {}
    for place, word in enumerate(words):
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name in takes:
            value = value if equals else "".join(words[place + 1 : place + 2])
            if given.setdefault(takes[name], value) != value:
                return f"{name} is given twice: {given[takes[name]]!r} and {value!r}. Leave one of them out."
    return None


def _unknown(asked: str, words: list[str], options: list[str], path: str, overrides: bool) -> str:
    """An option that there is not: perhaps a key of the configuration, which is written without dashes."""
    typed = next((word for word in words if word.startswith(asked)), asked)
    name, equals, value = typed.partition("=")
    key, near = name.lstrip("-").replace("-", "_"), did_you_mean(name, options)
    if overrides:
        from bnrepro.overrides import groups, keys

        if not equals and typed in words[:-1]:
            value = words[words.index(typed) + 1]
        if key in keys() or key in groups():
            return f"There is no option {name}. Write {quote(f'{key}={value}')}, without dashes."
        if not near and (near := did_you_mean(key, [*keys(), *groups()])):
            near += " Keys are written without dashes, as in epochs=5."
    return f"There is no option {name}.{near or f' `{path} --help` lists them.'}"


def _bad_value(parameter: Any, words: list[str], hint: Any) -> str:
    """A value that an option does not take. ``hint`` is its annotation, which says what it does."""
    kind, about = get_args(hint)[0], get_args(hint)[1]
    value = ""
    for place, word in enumerate(words):
        for name in parameter.opts:
            if word.startswith(f"{name}="):
                value = word.removeprefix(f"{name}=")
            elif word == name and place + 1 < len(words):
                value = words[place + 1]
    limits = {"at least": about.min, "at most": about.max}
    ends = "".join(f", {word} {end}" for word, end in limits.items() if end is not None)
    kinds = (kind, *get_args(kind))  # of a union, its parts
    wanted = "an integer" if int in kinds else "a number" if float in kinds else "a text"
    return f"{parameter.opts[0]} must be {wanted}{ends}; got {value!r}. {parameter.help}"
