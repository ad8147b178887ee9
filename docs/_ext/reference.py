"""Reference from the code itself: commands from Typer, keys from the schema, norms from the table, the layout.

A page says where each part goes by a line such as ``<!-- commands -->``.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_type_hints

import yaml
from papers import plain, said, sentences, table, verdicts
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]


def commands() -> str:
    """Every command: what it does, how it is called, its arguments and options."""
    import typer

    from bnrepro import cli

    return "\n\n".join(_command(typer.main.get_command(cli.app), "bnrepro"))


def _command(command: Any, name: str) -> list[str]:
    if hasattr(command, "commands"):
        return [part for key, each in command.commands.items() for part in _command(each, f"{name} {key}")]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    usage = " ".join([name, *["[OPTIONS]"] * bool(options), *map(_in_usage, arguments)])
    parts = [f"## {name}", *_help(command.help or ""), f"```text\n{usage}\n```", f"```{{program}} {name}\n```"]
    for each in arguments:
        parts.append(f"```{{option}} {_metavar(each)}\n{plain(getattr(each, 'help', '') or '')}\n```")
    for each in options:
        takes = "" if getattr(each, "is_flag", False) else f" <{_metavar(each).strip('<>').lower()}>"
        spelt = ", ".join(f"{opt}{takes}" for opt in each.opts)
        default = each.default
        known = default not in (None, False, "") and not callable(default) and default != []
        otherwise = f" Default: `{default}`." if known else ""
        parts.append(f"```{{option}} {spelt}\n{said(each.help or '')}{otherwise}\n```")
    return parts


def _in_usage(argument: Any) -> str:
    """An argument as usage lines have it: in brackets where it can be left out, with dots where it can be repeated."""
    name = _metavar(argument) if argument.required else f"[{_metavar(argument)}]"
    return f"{name}..." if argument.nargs != 1 else name


def _metavar(param: Any) -> str:
    """What a parameter takes; Typer says it in another attribute since it has no Click beneath it."""
    kind = getattr(param, "type", None) or getattr(getattr(param, "type_descriptor", None), "annotation", None)
    return str(param.metavar or getattr(kind, "name", None) or getattr(kind, "__name__", None) or param.name).upper()


def _help(text: str) -> list[str]:
    """The paragraphs of a help text; what is a command is code."""
    found = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        words = " ".join(paragraph.split())
        if example := re.match(r"(.*?: )((?:bnrepro|torchrun) .*)$", words):
            found.append(f"{said(example[1].strip())}\n\n```sh\n{example[2]}\n```")
        else:
            found.append(said(words))
    return found


def configuration() -> str:
    """Every key of the configuration: type, default, meaning."""
    from bnrepro.config.schema import Config

    return "\n\n".join(_keys(Config, "", "Keys of a run"))


def launcher() -> str:
    """Every key of the launcher."""
    from bnrepro.launch.options import Options

    return "\n\n".join(_keys(Options, "launcher.", "Keys of `launcher`"))


def _keys(kind: type, prefix: str, title: str) -> list[str]:
    about, hints = _documented(kind), get_type_hints(kind)
    parts, nested = [f"## {title}"], []
    for each in fields(kind):
        hint = hints[each.name]
        if is_dataclass(hint):
            group = f"{prefix}{each.name}"
            meaning = inspect.cleandoc(hint.__doc__ or "").partition(": ")[2]
            nested += _keys(hint, f"{group}.", f"`{group}`: {said(meaning)}")
            continue
        text = f"```{{confval}} {prefix}{each.name}\n:type: {plain(_type(hint))}\n:default: `{_default(each)}`\n\n"
        parts.append(f"{text}{said(about.get(each.name, '').replace('``', '`'))}\n```")
    return parts + nested


def _documented(kind: type) -> dict[str, str]:
    """The string below each field."""
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _type(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(each.value for each in hint)
    return str(hint).replace("<class '", "").replace("'>", "").replace("typing.", "")


def _default(field: Any) -> str:
    value = field.default if field.default is not MISSING else field.default_factory()
    value = value.value if isinstance(value, Enum) else value
    return "set by the group" if value == "???" else json.dumps(value)


def groups() -> str:
    """The files of configs/: what each choice of a group sets."""
    parts = []
    for folder in sorted(path for path in (ROOT / "configs").iterdir() if path.is_dir()):
        if folder.name in ("experiment", "registered", "launcher"):
            continue
        parts.append(f"### `{folder.name}=`")
        for file in sorted(folder.glob("*.yaml")):
            parts.append(f"`{folder.name}={file.stem}`\n\n```yaml\n{file.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts)


def norms() -> str:
    """The norms by name, as `bnrepro norms` tells them, with their layer on maps and how many numbers it holds."""
    from bnrepro.cli.norms import NORMS as TOLD
    from bnrepro.norm import NORMS

    rows = []
    for name, make in NORMS.items():
        layer, told = make(8, (14, 14)), TOLD[name]
        numbers = [sum(t.numel() for t in each()) for each in (layer.parameters, layer.buffers)]
        made = f"`{type(layer).__module__.partition('.')[0]}`: `{type(layer).__name__}`"
        what = [f"`{told.formula}`", told.statistics, told.parameters, said(told.source)]
        rows.append([f"`{name}`", *what, made, ", ".join(map(str, numbers))])
    columns = ["name", "formula", "statistics over", "gamma, beta per", "source", "layer", "numbers"]
    return table(columns, rows)


def claim_fields() -> str:
    """The fields of claims.json: those that the file has, with the types that occur in it."""
    about = yaml.safe_load((ROOT / "docs/reference/claims_fields.yaml").read_text(encoding="utf-8"))
    rows, every = [], list(verdicts().values())
    names = list(dict.fromkeys(key for row in every for key in row))
    for name in names:
        values = [row.get(name) for row in every]
        kinds = dict.fromkeys("null" if v is None else _JSON[type(v)] for v in values)
        rows.append([f"`{name}`", ", ".join(kinds), plain(about.get(name, ""))])
    if gone := [name for name in about if every and name not in names]:
        raise ValueError(f"claims_fields.yaml describes {', '.join(gone)}, which claims.json has not")
    effect = next((each for row in every for each in row["effects"]), {})
    inner = ", ".join(f"`{key}`" for key in effect)
    return f"{table(['field', 'type', 'what it is'], rows)}\n\nAn effect has {inner}."


_JSON = {str: "string", int: "number", float: "number", bool: "boolean", list: "list", dict: "object"}


def layers() -> str:
    """The packages from the highest to the lowest, as import-linter holds them, with their first sentence."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        contracts = tomllib.load(stream)["tool"]["importlinter"]["contracts"]
    order = next(each["layers"] for each in contracts if each["type"] == "layers")
    rows = [[str(number), f"`{name}`", _told(name)] for number, line in enumerate(order) for name in line.split(" | ")]
    others = "\n".join(
        f"- {each['name']}: {', '.join(f'`{m}`' for m in each['source_modules'])} may not import "
        f"{', '.join(f'`{m}`' for m in each['forbidden_modules'])}."
        for each in contracts
        if each["type"] == "forbidden"
    )
    return f"{table(['layer', 'package', 'what it is'], rows)}\n\nFurther contracts:\n\n{others}"


def modules() -> str:
    """Every module with its first sentence."""
    rows = []
    for package in iter_modules([str(ROOT / "bnrepro")]):
        names = [package.name]
        if package.ispkg:
            names += [f"{package.name}.{each.name}" for each in iter_modules([str(ROOT / "bnrepro" / package.name)])]
        rows += [[f"`{name}`", _told(name)] for name in names]
    return table(["module of `bnrepro`", "what it is"], rows)


def _told(module: str) -> str:
    """The first sentence of a module's docstring."""
    place = ROOT / "bnrepro" / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<=[.?])\s", " ".join(text.split()))[0]
    return said(re.sub(r":\w+:", "", first).rstrip(":").replace("``", "`"))


def wrong() -> str:
    """What is not reproduced: identities first, which are errors in a source; then what networks contradict."""
    parts = []
    for title, kinds in (
        ("Identities that do not hold", ("identity",)),
        ("Networks that contradict a source", ("empirical",)),
    ):
        rows = [
            [f"{{claim}}`{id}`", said(sentences()[id]), said(row["answer"])]
            for id, row in verdicts().items()
            if row["verdict"] == "not reproduced" and row["kind"] in kinds and id in sentences()
        ]
        parts.append(f"### {title}\n\n{table(['claim', 'what the source says', 'what was found'], rows)}")
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": configuration,
    "launcher": launcher,
    "groups": groups,
    "norms": norms,
    "claim fields": claim_fields,
    "layers": layers,
    "modules": modules,
    "wrong": wrong,
}


def _filled(app: Sphinx, docname: str, text: list[str]) -> None:
    text[0] = re.sub(r"^<!-- (.*?) -->$", lambda found: _part(found), text[0], flags=re.MULTILINE)


def _part(found: re.Match[str]) -> str:
    return PARTS[found[1]]() if found[1] in PARTS else found[0]


def _without_backlinks(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Viewcode's links back to the reference miss what a package exports from several modules."""
    if pagename.startswith("_modules/"):
        context["body"] = re.sub(r'<a class="viewcode-back".*?</a>', "", context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Fill pages in when they are read."""
    app.connect("source-read", _filled)
    app.connect("html-page-context", _without_backlinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
