"""What papers draw with: panels, lines of means with their intervals, one palette.

A paper's figure function calls `panels`, then `lines` (or matplotlib) for each panel, then `legend`. The style is set
by whoever calls the function.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from bnrepro.plots import style as figures
from bnrepro.plots.style import BLACK, GREY
from bnrepro.stats import Interval, Values

DOTTED = (0, (1, 1))
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (5, 1, 1, 1)), DOTTED, (0, (6, 1.5, 1, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "^", "v", "D", "P")
NONE = ("none", "nobn", "no BN")
"""Levels that are drawn as the absence of something: black and dotted."""


class Look(NamedTuple):
    """How a line is drawn."""

    color: str
    dashes: Any
    marker: str
    label: str


def looks(levels: Sequence[Hashable] | Mapping[Any, str]) -> dict[Any, Look]:
    """A look for each level, all different; that of a variant is the same in every figure. A mapping gives labels."""
    names = dict(levels) if isinstance(levels, Mapping) else {level: figures.label(str(level)) for level in levels}
    styled = zip(figures.STYLES, _MARKERS, strict=False)
    fixed: dict[Any, Look] = {
        level: Look(*figures.STYLES[level], marker, names[level]) for level, marker in styled if level in names
    }
    fixed |= {level: Look(BLACK, DOTTED, "x", names[level]) for level in NONE if level in names and level not in fixed}
    colors, dashes, markers = (
        [each for each in every if each not in {look[place] for look in fixed.values()}]
        for place, every in enumerate((figures.PALETTE, _DASHES, _MARKERS))
    )
    if len(dashes) < 3:  # colours tell them apart
        dashes += [each for each in _DASHES if each not in (*dashes, DOTTED)]
    free = zip(cycle(colors), cycle(dashes), cycle(markers), strict=False)
    return {level: fixed.get(level) or Look(*next(free), name) for level, name in names.items()}


def panels(
    columns: int = 1, rows: int = 1, *, height: float = 2.6, width: float | None = None, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of one column of a paper (or two, where there are several panels), and its panels by rows.

    ``height`` is that of one row in inches; ``shared``: sharex, sharey.
    """
    wide = (figures.COLUMN if columns == 1 else 2 * figures.COLUMN) if width is None else width
    figure = Figure(figsize=(wide, height * rows + 0.3 * (rows > 1)), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def lines(
    axes: Axes,
    values: Values,
    x: str,
    by: str | None = None,
    look: Mapping[Any, Look] | Look | None = None,
    *,
    bars: bool = False,
    apart: float = 0.0,
    log: bool = False,
    marks: bool = True,
    seeds: bool = False,
) -> None:
    """Means over seeds against ``x``, with 95% intervals as bands, or ``bars`` and a point for each seed; a line for
    each level of ``by``.

    Args:
        axes: where to draw.
        values: with the factors ``x`` and ``by`` and no others.
        x: the factor on the horizontal axis.
        by: the factor that tells the lines apart; None: there is one line.
        look: of the levels, from `looks`; levels that it lacks are not drawn. Of a single line, its `Look`.
        bars: error bars and seeds in place of a band.
        apart: how far levels are moved apart along x, so that bars do not hide one another.
        log: mean and interval are those of the logarithm.
        marks: whether points have markers.
        seeds: a thin line for each seed in place of the interval.
    """
    groups = values.by(by) if by else {None: values}
    if isinstance(look, Look):
        look = {None: look}
    look = look or looks(list(groups))
    drawn = [level for level in look if level in groups]
    for place, level in enumerate(drawn):
        found = (groups[level].log() if log else groups[level]).intervals(x)
        if all(isinstance(at, int | float) for at in found):
            found = dict(sorted(found.items()))  # a level that the first seed lacks is the last of the records
        shift = apart * (place - (len(drawn) - 1) / 2)
        if seeds:
            found = {at: Interval(each.mean, math.nan, math.nan, each.n) for at, each in found.items()}
            _thin(axes, groups[level], list(found), look[level], shift)
        elif bars:
            _points(axes, groups[level].by(x), {at: at + shift if shift else at for at in found}, look[level])
        curve(axes, found, look[level], bars=bars, shift=shift, log=log, marks=marks)


def _thin(axes: Axes, values: Values, at: list[Any], look: Look, shift: float) -> None:
    """A thin line for each seed of values with one factor."""
    for seed in sorted({seed for _, seed in values.data}):
        path = {x: values.data[(x,), seed] for x in at if ((x,), seed) in values.data}
        how: dict[str, Any] = {"color": look.color, "linewidth": 0.5, "alpha": 0.45, "zorder": 1.5}
        axes.plot([x + shift for x in path] if shift else list(path), list(path.values()), **how)


def _points(axes: Axes, groups: Mapping[Any, Values], places: Mapping[Any, float], look: Look) -> None:
    """A small point for each seed, right of the bar: an interval of few may reach where none of them is."""
    found = [(place, value) for level, place in places.items() for value in groups[level]]
    xs, ys = [at for at, _ in found], [value for _, value in found]
    beside = axes.transData + ScaledTranslation(4 / 72, 0, axes.figure.dpi_scale_trans)
    axes.plot(xs, ys, ".", color=look.color, markersize=3, markeredgewidth=0, alpha=0.6, transform=beside)
    axes.update_datalim([(0, y) for y in ys if math.isfinite(y)], updatex=False)  # which moved points do not


def curve(
    axes: Axes,
    found: Mapping[Any, Interval],
    look: Look,
    *,
    bars: bool = False,
    shift: float = 0.0,
    log: bool = False,
    marks: bool = True,
) -> None:
    """One line of means at the keys of ``found``, with bands or bars; ``log``: they are logarithms."""
    mean, low, high = ends(list(found.values()))
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
    at = [x + shift for x in found] if shift else list(found)
    about: dict[str, Any] = {"color": look.color, "linestyle": look.dashes, "label": look.label}
    if marks:
        about |= {"marker": look.marker, "markersize": 3.5}
    if bars:
        axes.errorbar(at, mean, yerr=np.stack([mean - low, high - mean]), capsize=2, **about)
    else:
        axes.plot(at, mean, **about)
        axes.fill_between(at, low, high, color=look.color, alpha=0.15, linewidth=0)


def dots(
    axes: Axes, values: Values, x: str, by: str, look: Mapping[Any, Look], *, width: float = 0.6, shift: float = 0.0
) -> None:
    """Means over seeds with bars of their 95% intervals, and a small point for each seed: levels of ``x`` are
    categories, those of ``by`` stand side by side in each.

    Args:
        axes: where to draw.
        values: with the factors ``x`` and ``by`` and no others.
        x: the factor on the horizontal axis, in the order of its levels.
        by: the factor that tells points of a category apart.
        look: of the levels of ``by``, from `looks`; levels that it lacks are not drawn.
        width: of a category; 1 is the distance between two.
        shift: how far all points are moved to the right.
    """
    places = {level: place for place, level in enumerate(values.levels(x))}
    groups = values.by(by)
    drawn = [level for level in look if level in groups]
    for i, level in enumerate(drawn):
        found = {places[at]: interval for at, interval in groups[level].intervals(x).items()}
        offset = shift + (width * (i / (len(drawn) - 1) - 0.5) if len(drawn) > 1 else 0.0)
        seeds = groups[level].by(x)
        _points(axes, seeds, {at: places[at] + offset for at in seeds}, look[level])
        curve(axes, found, look[level]._replace(dashes="none"), bars=True, shift=offset)
    axes.set_xticks(range(len(places)), [_name(level) for level in places])
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.grid(axis="x", visible=False)


def ends(found: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and ends of intervals; where there is no interval, the ends are the mean."""
    mean, low, high = (np.array([getattr(i, end) for i in found], dtype=float) for end in ("mean", "low", "high"))
    return mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)


def zero(axes: Axes, at: float = 0.0) -> None:
    """A thin line where there is no effect."""
    axes.axhline(at, color=GREY, linewidth=0.8)


def ticks(axes: Axes, values: Sequence[float], axis: str = "x") -> None:
    """Ticks at the values that were measured, and no others."""
    of = axes.xaxis if axis == "x" else axes.yaxis
    of.set_major_locator(FixedLocator(list(values)))
    of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    of.set_minor_locator(NullLocator())


def same_limits(axes: Sequence[Axes]) -> None:
    """One range of y for all."""
    low, high = min(a.get_ylim()[0] for a in axes), max(a.get_ylim()[1] for a in axes)
    for each in axes:
        each.set_ylim(low, high)


def as_high_as_lines(axes: Axes, room: float | None = None) -> None:
    """A logarithmic y axis that leaves out bands: those of few seeds that differ by decades would flatten the lines.

    ``room`` is a factor below and above; None: 0.15 of the lines' decades, at least 1.2.
    """
    values = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata()) if 0 < y < np.inf]
    axes.set_yscale("log")
    if values:
        room = room or max(1.2, (max(values) / min(values)) ** 0.15)
        axes.set_ylim(min(values) / room, max(values) * room)


def heat_map(
    axes: Axes,
    cells: Mapping[tuple[Any, Any], Interval],
    *,
    cmap: str = "RdBu",
    norm: Any = None,
    form: str = "{:+.2f}",
    starred: Collection[tuple[Any, Any]] = (),
) -> Any:
    """Means as colours with the numbers in them, by (row, column); returns the image, for a colour bar.

    Those of ``starred`` are bold and have a star: what was found significant.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    none = Interval(np.nan, np.nan, np.nan, 0)
    grid = np.array([[cells.get((row, column), none).mean for column in columns] for row in rows], dtype=float)
    image = axes.imshow(grid, cmap=cmap, norm=norm, aspect="auto")
    scale: Any = image.norm
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            found = cells.get((row, column), none)
            if np.isnan(found.mean):
                continue
            star = (row, column) in starred
            text = form.format(found.mean) + "*" * star
            if not np.isnan(found.low):
                text += f"\n[{form.format(found.low)}, {form.format(found.high)}]"
            red, green, blue, _ = image.cmap(float(scale(found.mean)))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5  # as bright as it looks
            about: dict[str, Any] = {"weight": "bold" if star else "normal", "color": "white" if dark else "black"}
            axes.text(x, y, text, ha="center", va="center", size=6, **about)
    for axis, levels in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks(range(len(levels)), [_name(level) for level in levels])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def legend(figure: Figure | SubFigure, columns: int = 4, of: Axes | None = None) -> None:
    """A legend above the panels, of ``of`` or of all of them, each label once."""
    found: dict[str, Any] = {}
    for axes in [of] if of else figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in found}
    if found:
        about = {"handlelength": 2.6, "columnspacing": 1.2}
        figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns, **about)


def _name(level: Any) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)
