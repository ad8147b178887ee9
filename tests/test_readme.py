"""What the README shows is there: its commands parse, its Python runs, its numbers are those in results/."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer

from bnrepro import cli
from bnrepro.config import load_config
from bnrepro.launch.sweep import expand
from bnrepro.norm import NORMS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    return re.findall(r"\bbnrepro [^&\n]*", "".join(blocks("sh", text)))


COMMANDS = commands(README)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_overrides_are_understood(command: str) -> None:
    understand(command)


def understand(command: str) -> None:
    words = shlex.split(command)[1:]
    current = typer.main.get_command(cli.app)
    while hasattr(current, "commands"):
        current = current.commands[words.pop(0)]
    context = current.make_context(current.name, words)
    given = [text for text in context.params.get("overrides") or [] if not text.startswith("launcher.")]
    for overrides in expand(given) if current.name == "sweep" else [given]:
        for override in overrides:
            if not override.startswith(("data.source", "data.path")):  # the two only make sense together
                load_config([override])
        load_config(overrides)


def test_every_command_has_an_example() -> None:
    shown = {command.split()[1] for command in commands((ROOT / "docs/howto/commands.md").read_text(encoding="utf-8"))}
    assert shown == set(typer.main.get_command(cli.app).commands)


@pytest.mark.parametrize("block", [b for b in blocks("python") if "Paper(" not in b])  # experiments/test_own_paper.py
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python([block])


def run_python(parts: list[str]) -> None:
    """One after the other, with the same names; the table of norms is then as it was."""
    torch.manual_seed(0)
    before, names = dict(NORMS), {"__name__": "__main__"}
    try:
        for part in parts:
            exec(compile(part, "block", "exec"), names)
    finally:
        NORMS.clear()
        NORMS.update(before)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_pictures_are_there(page: str) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    folders = {str(parent) for name in listed for parent in Path(name).parents}
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        name = target.split("#")[0].rstrip("/")
        if target.startswith(("https://", "#")):
            continue
        assert (ROOT / name).exists(), target
        assert not listed or name in listed or name in folders, f"{target} is there, but is not in the repository"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_are_those_of_the_results(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    text = (ROOT / page).read_text(encoding="utf-8")
    assert import_module("readme").with_tables(text, page) == text
