"""One style for all figures: colours and dashes of variants, labels, axes, and how a figure is saved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.scale import LogTransform
from matplotlib.text import Text
from matplotlib.ticker import (
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from bnrepro.errors import UserError
from bnrepro.system.output import tell
from bnrepro.system.reading import printable
from bnrepro.system.writing import replace_own, write_whole

COLUMN = 3.4  # inches: a paper's column


DPI = 200


WIDE = 300  # times from the bottom to the top of a logarithmic axis, from which on only powers of ten are labelled


LONGEST = 40  # characters of a name


# Okabe & Ito's palette, which colour-blind readers can tell apart; line styles say it again for print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE = PALETTE
BLACK, GREY = "#000000", "#999999"
STYLES: dict[str, tuple[str, Any]] = {
    "nobn": (BLACK, (0, (1, 1))),
    "bn": (BLUE, "-"),
    "custombn": (ORANGE, (0, (4, 2))),
    "convbn": (VERMILLION, (0, (5, 1, 1, 1))),
}


SPARE = (GREEN, PURPLE, SKY, GREY)


LABELS = {
    "nobn": "no BN",
    "bn": "framework BN",
    "custombn": "custom BN",
    "convbn": "local-gain BN",
    "peractivationbn": "per-activation BN",
    "locationaffinebn": "BN, affine per location",
    "adaptive": "adaptive (pooled)",
}


CURVES = {
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures."""
    settings: Any = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        "lines.linewidth": 1.3,
        "svg.fonttype": "none",  # text stays text, to be searched and edited
        "pdf.fonttype": 42,  # whole TrueType outlines, as journals ask; the default, Type 3, is refused by some
        "svg.hashsalt": "bnrepro",  # the same figure gives the same file
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # not a user's matplotlibrc, which may ask for LaTeX, or fonts that are not there
        mpl.rcParams.update(settings)
        yield


def look(variants: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """A colour and a line style for each variant, no two alike; those of the four main ones are always the same."""
    spare = ((color, dashes) for dashes in _dashes() for color in SPARE)
    return {v: STYLES.get(v) or next(spare) for v in variants}


def _dashes() -> Iterator[Any]:
    """A solid line, and then dashes with one dot between them, two dots, ..."""
    yield "-"
    for dots in count(1):
        yield (0, (6, 1.5, *(1, 1.5) * dots))


_labels: dict[str, str] = {}


@contextmanager
def labelled(labels: Mapping[str, str]) -> Iterator[None]:
    """Within it, variants have these labels."""
    before = dict(_labels)
    _labels.update(labels)
    try:
        yield
    finally:
        _labels.clear()
        _labels.update(before)


def label(variant: str) -> str:
    """Legend label of a variant, on one line."""
    given = _labels.get(variant)
    return plain(given) if given else LABELS.get(variant) or plain(variant)


def plain(name: str) -> str:
    """A name escaped for matplotlib, which reads text between $ as a formula and omits _names from legends."""
    text = printable(name).replace("\n", " ").replace("\t", " ")
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}\N{HORIZONTAL ELLIPSIS}{text[-LONGEST // 2 + 1 :]}"
    return f" {text}".replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


def legend(figure: Figure, columns: int) -> None:
    """A legend above the axes, of the first of them; the figure becomes higher where it has more than two rows."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if max(map(len, labels), default=0) > 34:
        columns = 1
    more = -(-len(labels) // columns) - 2
    if more > 0:
        figure.set_figheight(figure.get_figheight() + 0.16 * more)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.2)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis of few decades: plain numbers at 1, 2 and 5 of each."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ticks(axes: Axes) -> None:
    """Ticks of a logarithmic y axis that has its limits: powers of ten over many decades, else plain numbers.

    Nothing changes on other axes, and where ticks were chosen already.
    """
    bottom, top = axes.get_ylim()
    scale, chosen = (
        axes.yaxis.get_transform(),
        not isinstance(axes.yaxis.get_major_formatter(), LogFormatterSciNotation),
    )
    if not isinstance(scale, LogTransform) or scale.base != 10 or chosen or top > WIDE * bottom:
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if top > 10 * bottom else MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
"""The formats of figures, and what is left out of their files, so that the same figure gives the same file."""


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("svg", "png")) -> Path:
    """``figure`` as ``stem``.svg, ``stem``.png and so on, whole; the last is returned."""
    FigureCanvasAgg(figure)
    for axes in figure.axes:
        log_ticks(axes)
    with style(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.draw_without_rendering()  # lays it out, once for all formats
        figure.set_layout_engine(None)
        for kind in formats:
            content = BytesIO()
            figure.savefig(content, format=kind, dpi=DPI, metadata=METADATA[kind])
            write_whole(stem.with_name(f"{stem.name}.{kind}"), content.getvalue())
    lacking = dict[str, None]()
    for each in told:
        if found := re.match(r"Glyph (\d+) ", str(each.message)):
            lacking[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lacking:
        tell(
            f"The figure {stem.name} has boxes in place of {', '.join(lacking)}, which its font lacks. As SVG it has "
            "them: there the text is drawn in the reader's fonts."
        )
    return stem.with_name(f"{stem.name}.{formats[-1]}")


@dataclass(frozen=True)
class Slide:
    """How figures for a slide or a paper differ from those that are drawn by default."""

    formats: tuple[str, ...] = ("pdf",)
    size: tuple[float, float] | None = None
    """Width and height in inches."""
    only: tuple[str, ...] | None = None
    """The figures to draw, by name; None: all of them."""
    variants: tuple[str, ...] | None = None
    """Of a comparison, like ``labels`` and ``xlim``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """By variant."""
    xlim: tuple[float, float] | None = None
    """Of the epochs."""


def save_slides(drawn: Mapping[str, Figure], folder: Path, slide: Slide, beside: Collection[str] = ()) -> list[Path]:
    """Save each figure of ``drawn`` in ``folder`` under its name, in the size and the formats of ``slide``.

    Figures whose labels overlap or are cut off in this size are named in a warning. ``beside``: other files that the
    caller will write there.

    Raises:
        UserError: labels and legend leave a figure no room in this size, or a file of the user's would be replaced;
            then none is saved.
    """
    for name, figure in drawn.items():
        if slide.size:
            usual, wanted = ("{:g}x{:g}".format(*size) for size in (figure.get_size_inches().round(1), slide.size))
            figure.set_size_inches(*slide.size)
            if not _has_room(figure):
                raise UserError(f"The figure {name} does not fit into --size={wanted}. Its usual size is {usual}.")
            if _is_crowded(figure):
                tell(f"The figure {name} is crowded at --size={wanted}. Its usual size is {usual}.")
    replace_own(folder, [*beside, *(f"{name}.{kind}" for name in drawn for kind in slide.formats)], "--to")
    return [save(figure, folder / name, slide.formats) for name, figure in drawn.items()]


def _has_room(figure: Figure) -> bool:
    """Whether labels and legend leave the panels any room."""
    FigureCanvasAgg(figure)
    with style(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.draw_without_rendering()
    return not any("constrained_layout not applied" in str(each.message) for each in told)


def _is_crowded(figure: Figure) -> bool:
    """Whether titles, tick labels or legends overlap or are cut off, after `_has_room`."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    titles = [axes.title for axes in figure.axes if axes.title.get_text()]
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.label.get_text()]
    frame = figure.bbox.padded(2)
    boxes = [each.get_window_extent() for each in (*legends, *titles, *labels) if each is not None]
    cut = any(box.x0 < frame.x0 or box.y0 < frame.y0 or box.x1 > frame.x1 or box.y1 > frame.y1 for box in boxes)
    return cut or any(map(_overlap, [titles, *(_tick_labels(axes) for axes in figure.axes)]))


def _tick_labels(axes: Axes) -> list[Text]:
    """The labels of the ticks of x that are seen."""
    low, high = sorted(axes.get_xlim())
    ticks = axes.xaxis.get_major_ticks() if axes.xaxis.get_visible() else []
    return [each.label1 for each in ticks if low <= each.get_loc() <= high and each.label1.get_text()]


def _overlap(texts: Sequence[Text]) -> bool:
    boxes = [text.get_window_extent() for text in texts if text.get_visible()]
    return any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
