"""What the site shows is there: commands parse, code runs, formulas are those of the code, sources are shown whole."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

from bnrepro.claims import Results
from bnrepro.experiments import experiment
from tests.test_readme import blocks, commands, run_python, understand

DOCS = Path(__file__).parent.parent / "docs"
GENERATED = {"papers", "notebooks", "_generated"}
PAGES = {
    page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8")
    for page in sorted(DOCS.rglob("*.md"))
    if page.parent.name not in GENERATED
}
COMMANDS = sorted({command for text in PAGES.values() for command in commands(text)})
ANNOTATED = sorted(re.findall(r"annotated:: (\S+)", "".join(p.read_text() for p in DOCS.glob("annotated/*.rst"))))


def of_pages(found: dict[str, list[str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("parts", [pytest.param(parts, id=name) for name, parts in found.items() if parts])


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_overrides_are_understood(command: str) -> None:
    understand(command)


@of_pages({name: [b for b in blocks("python", text) if "Paper(" not in b] for name, text in PAGES.items()})
def test_python_runs(parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(parts)


def executed(text: str) -> list[str]:
    return [re.sub(r"\A(:\S+:.*\n)+", "", block) for block in re.findall(r"^```{run}\n(.*?)^```$", text, re.M | re.S)]


@of_pages({name: executed(text) for name, text in PAGES.items()})
def test_what_a_page_executes_runs(parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_checkout(monkeypatch)
    run_python(parts)


@pytest.mark.parametrize("notebook", sorted(path.name for path in DOCS.glob("notebooks/*.py")))
@pytest.mark.filterwarnings("default")  # ONNX's exporter has some of its own
def test_notebook_runs(notebook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if notebook == "engineer.py" and torch.__version__ < "2.7":
        pytest.skip("torch's own exporter writes booleans that protobuf no longer takes")
    in_the_checkout(monkeypatch)
    run_python([(DOCS / "notebooks" / notebook).read_text(encoding="utf-8")])


def test_notebook_for_a_researcher_runs_outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "notebooks" / "researcher.py").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    with pytest.raises(SystemExit, match=r"There is no results.claims\.json\. Results are not part of the package: "):
        run_python([text])
    (tmp_path / "named").mkdir()
    shutil.copy(DOCS.parent / "results" / "claims.json", "named")
    monkeypatch.setenv("BNREPRO_RESULTS", "named")
    run_python([text])


def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    matplotlib.use("agg")


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "Paper(__name__" in text])
def test_a_paper_of_a_page_judges_tabulates_and_draws(page: str, tmp_path: Path) -> None:
    (text,) = (block for block in blocks("python", PAGES[page]) if "Paper(__name__" in block)
    file = tmp_path / f"{Path(page).stem.replace('-', '_')}.py"
    file.write_text(text)
    paper = experiment(str(file))
    settings = paper.settings("full")
    rows = [
        {"part": arm.part, **arm.factors, "seed": arm.config.seed, "status": "completed", "test_accuracy": 0.9}
        for arm in paper.designed(settings).arms
    ]
    results = Results("full", rows, [], [])
    for claim in paper.claims:
        assert claim.evidence(results, settings).effects[0].seeds
        assert claim.gate is None or claim.gate(results, settings).passed
    for shown in (*paper.tables, *paper.figures):
        assert shown.make(results, settings)


# --- formulas and annotated sources; these need the extra `docs` ---


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sphinx")
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return __import__


FORMULAS = [
    ("xhat = (x - mean) * rstd", r"\hat{x} = \left(x - \mu\right) \, r"),
    ("y = weight * xhat + bias", r"y = \gamma \, \hat{x} + \beta"),
    ("return (var + eps).sqrt().reciprocal()", r"\frac{1}{\sqrt{\sigma^2 + \epsilon}}"),
    ("dx = a - (x - mean)", r"\bar{x} = a - \left(x - \mu\right)"),
    ("y = torch.addcmul(bias, x, weight)", r"y = \beta + x \, \gamma"),
    ("y = y + bias", r"y \leftarrow y + \beta"),
    ("x = np.asarray(x, np.float64)", None),
    ("least = strides[axis] * sizes[axis]", None),
    ("y = [x + 1]", None),
    ("if x:", None),
    ("xhat = cache.xhat - total.mean", r"\hat{x} = \hat{x} - {\mu}_{\mathrm{total}}"),
    (
        "dx = dy if weight is None else dy * weight",
        r"\bar{x} = \begin{cases} \bar{y} & \text{if weight is None} \\ "
        r"\bar{y} \, \gamma & \text{otherwise} \end{cases}",
    ),
    ("y = b + a * x if fused else a * x + b", r"y = a \, x + \beta"),
    (
        "y = b - x if fused else x - b",
        r"y = \begin{cases} \beta - x & \text{if fused} \\ x - \beta & \text{otherwise} \end{cases}",
    ),
    (
        "running_mean.lerp_(mean, momentum)",
        r"\mu_{\mathrm{run}} \leftarrow \left(1 - \alpha\right) \mu_{\mathrm{run}} + \alpha \, \mu",
    ),
]


@pytest.mark.parametrize(("code", "tex"), FORMULAS)
def test_formula_of_a_statement(code: str, tex: str | None, extension) -> None:
    assert extension("formulas").formula(code) == tex


@pytest.mark.parametrize("file", ANNOTATED)
def test_an_annotated_source_shows_every_line_of_code_once(file: str, extension) -> None:
    annotated = extension("annotated")
    text = (DOCS.parent / file).read_text(encoding="utf-8")
    cpp = file.endswith(".cpp")
    _, rows = (annotated.cpp_rows if cpp else annotated.python_rows)(text, {})
    shown = [number for row in rows for number, line in row.code if line.strip()]
    mark = "//" if cpp else "#"
    gone = set() if cpp else docstrings(text)
    wanted = [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
        and number not in gone
        and (not line.strip().startswith(mark) or line.strip().startswith("#inc"))
    ]
    assert shown == wanted
    assert all(text.splitlines()[number - 1] == line for row in rows for number, line in row.code)


def docstrings(text: str) -> set[int]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds) and ast.get_docstring(node)]
    return {line for node in nodes for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
