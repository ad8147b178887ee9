"""What the README shows is there: its commands parse, its Python runs, its numbers are those in results/."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
import typer

from bnrepro import cli
from bnrepro.claims.evidence import Verdict
from bnrepro.config import load_config
from bnrepro.launch.sweep import expand
from bnrepro.norm import NORMS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = re.findall(r"\bbnrepro [^&\n]*", "".join(blocks("sh")))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_overrides_are_understood(command: str) -> None:
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
    shown = {command.split()[1] for command in COMMANDS}
    assert shown == set(typer.main.get_command(cli.app).commands)


@pytest.mark.parametrize("block", [b for b in blocks("python") if "Paper(" not in b])  # experiments/test_own_paper.py
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = dict(NORMS)
    try:
        exec(compile(block, "README.md", "exec"), {})
    finally:
        NORMS.clear()
        NORMS.update(before)


def test_links_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target.split("#")[0]).exists(), target


def test_table_is_that_of_the_results() -> None:
    assert results_table() == README.split("<!-- results -->\n")[1].split("<!-- end of results -->")[0].strip()


def results_table() -> str:
    """The README's table, from the tables in results/."""
    lines = [
        "| data | network | variant | n | test accuracy, % | minus `nobn` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title, network in RESULTS:
        with (ROOT / "results" / name / "table.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                accuracy, difference = (_between(row, column) for column in ("test_accuracy", "minus_nobn"))
                lines.append(f"| {title} | {network} | `{row['variant']}` | {row['n']} | {accuracy} | {difference} |")
                title = network = ""
    return "\n".join(lines)


def test_table_of_other_sizes_is_that_of_the_results() -> None:
    assert sizes_table() == README.split("<!-- other sizes -->\n")[1].split("<!-- end of other sizes -->")[0].strip()


def sizes_table() -> str:
    """The README's table of other sizes, from the one in results/."""
    with (ROOT / "results/other_sizes/table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    sizes = [size for size in dict.fromkeys(row["size"] for row in rows) if 20 <= int(size) <= 40]
    lines = [f"| variant | statistics | {' | '.join(sizes)} |", "| --- " * (2 + len(sizes)) + "|"]
    for variant, statistics in dict.fromkeys((row["variant"], row["statistics"]) for row in rows):
        mine = {row["size"]: row for row in rows if (row["variant"], row["statistics"]) == (variant, statistics)}
        cells = []
        for size in sizes:
            mean, low, high = (100 * float(mine[size][f"test_accuracy_{end}"]) for end in ("mean", "low", "high"))
            cells.append(f"{mean:.0f} [{low:.0f}, {high:.0f}]")
        lines.append(f"| `{variant}` | `{statistics}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_verdicts_are_those_of_the_claims() -> None:
    assert verdicts_table() == README.split("<!-- verdicts -->\n")[1].split("<!-- end of verdicts -->")[0].strip()


def verdicts_table() -> str:
    """The README's table of verdicts by paper, from results/claims.json."""
    claims = json.loads((ROOT / "results/claims.json").read_text(encoding="utf-8"))
    counts = Counter((claim["paper"], claim["verdict"]) for claim in claims)
    lines = [f"| paper | {' | '.join(Verdict)} |", "| --- " * (1 + len(Verdict)) + "|"]
    for paper in dict.fromkeys(claim["paper"] for claim in claims):
        numbers = (str(counts[paper, verdict] or "") for verdict in Verdict)
        lines.append(f"| [`{paper}`](results/REPORT.md#{paper}) | {' | '.join(numbers)} |")
    totals = (str(sum(counts[paper, v] for paper in {c["paper"] for c in claims})) for v in Verdict)
    return "\n".join([*lines, f"| all | {' | '.join(totals)} |"])


RESULTS = [
    ("mnist5k", "MNIST-5k, 10 epochs", "`labml_cnn`"),
    ("mnist", "MNIST, 3 epochs", "`labml_cnn`"),
    ("cifar10", "CIFAR-10 (97 of 60,000 images JPEG stand-ins), 6 epochs", "`vgg_small`, half width"),
]


def _between(row: dict[str, str], column: str) -> str:
    if not row[f"{column}_mean"]:
        return ""
    mean, low, high = (100 * float(row[f"{column}_{end}"]) for end in ("mean", "low", "high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def test_every_norm_is_named() -> None:
    assert [name for name in NORMS if f"`{name}`" not in README] == []
