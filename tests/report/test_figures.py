"""Figures: from records alone, readable, and the same file for the same figure."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text

from bnrepro.claims import Results
from bnrepro.claims.conclusion import conclude
from bnrepro.claims.paper import Shown
from bnrepro.claims.records import Records
from bnrepro.plots import style
from bnrepro.report import figures
from bnrepro.report.compare import Comparison, save
from bnrepro.system import output
from tests.claims.made_up import Settings, varied
from tests.report.test_compare import ended, known, point

assert known  # a fixture


def all_figures(comparison: Comparison) -> dict[str, Figure]:
    drawn = {column: figures.curve(comparison, column) for column in style.CURVES}
    return drawn | {"overview": figures.overview(comparison), "test": figures.test_accuracy(comparison)}


def sixteen() -> Comparison:
    """More variants than styles, one seed each, one evaluation."""
    names = [*style.LABELS, *(f"other{i}" for i in range(9))]
    return Comparison([ended(n, 0, 0.9) for n in names], [point(n, 0, 1, 0.75) for n in names], {})


def one_diverged() -> Comparison:
    runs = [ended("nobn", 0, None, "diverged"), ended("bn", 0, 0.9), ended("bn", 1, 0.9)]
    return Comparison(runs, [point("bn", s, e, 0.8 + 0.05 * s * e) for s in (0, 1) for e in (1, 2)], {})


def texts(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("name", [*style.CURVES, "overview", "test"])
@pytest.mark.parametrize("which", ["known", "one_diverged"])
def test_no_text_is_cut_off_or_small(known: Comparison, name: str, which: str) -> None:
    figure = all_figures(known if which == "known" else one_diverged())[name]
    with style.style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = figure.get_tightbbox(canvas.get_renderer())  # inches
    assert drawn.x0 >= -0.01
    assert drawn.y0 >= -0.01
    assert drawn.x1 <= figure.get_figwidth() + 0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01
    assert min(text.get_fontsize() for text in texts(figure)) >= 5.5


@pytest.mark.slow
def test_every_comparison_can_be_drawn(tmp_path: Path) -> None:
    for name, comparison in (("many", sixteen()), ("diverged", one_diverged())):
        drawn = figures.draw(comparison, tmp_path / name)
        assert {file.stem for file in drawn} == {*style.CURVES, "overview", "test_accuracy"}
        for file in drawn:
            assert file.read_bytes()[:4] == b"\x89PNG"
            assert "<svg" in file.with_suffix(".svg").read_text()


def test_the_same_records_give_the_same_files(known: Comparison, tmp_path: Path) -> None:
    for name in ("a", "b"):
        figures.draw(known, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ioffe2015", "cohen2021", "desmith2020"])
def test_figures_do_not_depend_on_the_order_of_sets(name: str, tmp_path: Path) -> None:
    drawn = []
    for seed in ("1", "2"):
        folder = tmp_path / seed / name
        shutil.copytree(Path(__file__).parents[2] / "results/experiments" / name, folder)
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "bnrepro", "figures", str(folder)], env=environment, check=True)
        drawn.append({file.name: file.read_bytes() for file in folder.glob("figures/*")})
    assert drawn[0]
    assert drawn[0] == drawn[1]


def test_curve_shows_mean_and_interval_of_each_variant(known: Comparison) -> None:
    axes = figures.curve(known, "val_accuracy").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["no BN (n=3)", "framework BN (n=3)", "wild (2 of 3 finished)"]
    assert lines["framework BN (n=3)"].get_ydata() == pytest.approx([0.7, 0.9, 0.9])
    band = axes.collections[1].get_paths()[0].vertices
    half = 4.302652729911275 * 0.1 / 3**0.5
    at_one = np.unique(np.round(band[band[:, 0] == 1, 1], 6))
    assert at_one == pytest.approx([0.7 - half, 0.7 + half], abs=1e-5)


def test_losses_are_averaged_as_logarithms_on_a_logarithmic_axis(known: Comparison) -> None:
    axes = figures.curve(known, "val_loss").axes[0]
    assert axes.get_yscale() == "log"
    values = [0.4, 0.3, 0.2]
    assert axes.lines[1].get_ydata()[0] == pytest.approx(np.exp(np.mean(np.log(values))))


@pytest.mark.parametrize(
    "losses", [(1.5, 0.8), (0.3, 0.25), (1.0, 0.001), (0.09, 0.03), (1.5, 2e-6), (2.0, 1e-9), (2.0, 1e-30)], ids=str
)
def test_every_loss_axis_has_labels_to_read_it_by(losses: tuple[float, float]) -> None:
    curves = [{**point("bn", 0, epoch, 0.5), "val_loss": loss} for epoch, loss in enumerate(losses, 1)]
    comparison = Comparison([ended("bn", 0, 0.9)], curves, {})
    for figure in (figures.curve(comparison, "val_loss"), figures.overview(comparison)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        axes = figure.axes[-1]
        low, high = axes.get_ylim()
        ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        shown = [text for place, text in ticks if text.get_text() and low <= place <= high]
        assert 3 <= len(shown) <= 12
        boxes = sorted((text.get_window_extent(canvas.get_renderer()) for text in shown), key=lambda box: box.y0)
        assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_main_variants_differ_for_colour_blind_readers() -> None:
    """In grey and under the loss of each cone type, any two of the four differ in colour or in line style."""
    assert len({str(dashes) for _, dashes in style.STYLES.values()}) == 4
    # Viénot, Brettel & Mollon 1999, linear RGB, for protanopia and deuteranopia.
    losses = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    colors = [np.array(mpl.colors.to_rgb(color)) ** 2.2 for color, _ in style.STYLES.values()]
    for matrix in losses.values():
        seen = [np.clip(np.array(matrix) @ color, 0, 1) ** (1 / 2.2) for color in colors]
        gaps = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
        assert min(gaps) > 0.15


@pytest.mark.parametrize("count", [1, 5, 10, 30, 100])
def test_any_number_of_variants_can_be_told_apart(count: int) -> None:
    names = [*style.STYLES, *(f"norm{i}" for i in range(count))]
    looks = style.look(names)
    assert list(looks) == names
    assert len({str(look) for look in looks.values()}) == len(names)
    assert {name: looks[name] for name in style.STYLES} == style.STYLES


NAMES = [
    "_mine",
    "__",
    "$a$",
    "a$b",
    r"\frac{1}{2}$",
    "100%",
    "{x}",
    "a\nb\tc",
    "x" * 500,
    "ö",
    "\u5c42",
    "\x00",
    "\udc80",
    "&<",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_in_the_legend_and_can_be_drawn(name: str, tmp_path: Path) -> None:
    comparison = Comparison([ended(n, 0, 0.9) for n in ("bn", name)], [point(n, 0, 1, 0.75) for n in ("bn", name)], {})
    figure = figures.curve(comparison, "val_accuracy")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == 2
    assert shown[1].strip().removesuffix(" (n=1)") == style.plain(name).strip()
    assert len(shown[1]) < 60
    assert style.save(figure, tmp_path / "curve").is_file()
    ElementTree.parse(tmp_path / "curve.svg")
    style.save(figures.test_accuracy(comparison), tmp_path / "test")


@given(st.text(max_size=60))
def test_names_are_shown_as_they_are(name: str) -> None:
    shown = style.plain(name)
    assert not shown.startswith("_")
    assert not is_math_text(shown)
    if name.isprintable() and len(name) <= style.LONGEST:
        assert shown.replace(r"\$", "$") in (name, f" {name}")


@pytest.mark.slow
def test_nothing_depends_on_a_users_settings(known: Comparison, tmp_path: Path) -> None:
    figures.draw(known, tmp_path / "plain")
    hostile = {"text.usetex": True, "font.size": 30, "font.family": "NoSuch", "axes.facecolor": "red"}
    with mpl.rc_context(hostile | {"svg.fonttype": "path", "axes.prop_cycle": mpl.cycler(color=["k"])}):
        figures.draw(known, tmp_path / "hostile")
        assert mpl.rcParams["text.usetex"]  # a user's own figures are as before
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "hostile" / file.name).read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://no_such_module", "nonsense", "qtagg"])
def test_command_line_needs_no_backend(backend: str, known: Comparison, tmp_path: Path) -> None:
    save(known, tmp_path / "kept")
    (tmp_path / "theirs").write_bytes(b"text.usetex: True\nbackend: \xff\n")
    hostile = {"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "theirs")}
    command = [sys.executable, "-m", "bnrepro", "figures", str(tmp_path / "kept")]
    subprocess.run(command, env=os.environ | hostile, check=True, cwd=tmp_path)
    assert len(list((tmp_path / "kept" / "figures").iterdir())) == 12


def test_experiment_whose_figures_fail_has_its_verdicts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_told", set())

    def fail(r: Results, s: Settings) -> Figure:
        raise ModuleNotFoundError("No module named 'matplotlib'")

    def nothing(r: Results, s: Settings) -> None:
        return None

    def odd(r: Results, s: Settings) -> str:
        return "no figure"

    def right(r: Results, s: Settings) -> Figure:
        return Figure()

    shown = [Shown(make.__name__, "A figure.", make) for make in (fail, nothing, odd, right)]
    provenance = {"experiment": "made_up", "command": "", "seconds": {}, "failed": []}
    conclude(varied(figures=shown), Records("smoke", [], [], [], {}, provenance), tmp_path)
    assert [row["verdict"] for row in json.loads((tmp_path / "claims.json").read_text())] == [
        "inconclusive",
        "reproduced",
        "inconclusive",
    ]
    assert list(json.loads((tmp_path / "captions.json").read_text())["figures"]) == ["right"]
    assert [line.split(" cannot be shown")[0] for line in capsys.readouterr().err.splitlines()] == [
        "Figure fail",
        "Figure odd",
    ]


def test_font_is_text_in_svg(known: Comparison, tmp_path: Path) -> None:
    style.save(figures.curve(known, "val_accuracy"), tmp_path / "curve")
    assert re.search(r"<text[^>]*>validation accuracy</text>", (tmp_path / "curve.svg").read_text())


def test_slides_have_the_size_asked_for_and_their_fonts(known: Comparison, tmp_path: Path) -> None:
    figures.draw_slides(known, tmp_path, style.Slide(("pdf", "svg", "png"), (4.5, 3.0), only=("val_accuracy",)))
    pdf = (tmp_path / "val_accuracy.pdf").read_bytes()
    assert re.search(rb"/MediaBox \[ ?0 0 324 216 ?\]", pdf)  # in points
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    svg = ElementTree.parse(tmp_path / "val_accuracy.svg").getroot()
    assert (svg.get("width"), svg.get("height")) == ("324pt", "216pt")
    width, height = struct.unpack(">II", (tmp_path / "val_accuracy.png").read_bytes()[16:24])
    assert (width, height) == (4.5 * style.DPI, 3 * style.DPI)
