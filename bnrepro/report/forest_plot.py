"""All effects on one axis, as a figure: a line for each claim, by paper. `forest` has the geometry."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bnrepro.claims.evidence import Verdict
from bnrepro.plots import style
from bnrepro.report import forest, questions
from bnrepro.report.wording import Row, Rows

LINE, GAP = 0.08, 0.6  # inches of a claim's line; lines between two papers
COLORS = {Verdict.reproduced: style.BLUE, Verdict.partly: style.ORANGE, Verdict.not_reproduced: style.VERMILLION}
OTHERS = "open, or not testable"
FADED = 0.35  # opacity of what was measured under an earlier design
FILLED: dict[str, dict[str, Any]] = {  # by scale: half, or hollow; others are full
    "reduced": {"fillstyle": "bottom", "markerfacecoloralt": "white"},
    "toy": {"markerfacecolor": "white"},
}


def forest_plot(claims: Rows) -> Figure | None:
    """The deciding effect of each empirical claim and prediction, in units of its margin, with its interval.

    Claims without an effect that is random (identities, and those that were not measured) have no line. None where no
    claim has one.

    Args:
        claims: rows of claims.json.
    """
    drawn = [(row, strip) for row in claims if (strip := forest.overview(row, questions.reported(row)))]
    if not drawn:
        return None
    papers = {
        paper: sorted(mine, key=lambda each: _mean(each[1]), reverse=True)
        for paper, mine in groupby(drawn, key=lambda each: each[0]["paper"])
    }
    lines = len(drawn) + GAP * len(papers)
    with style.style():
        figure = Figure(figsize=(7.2, 1.1 + LINE * lines), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(forest.common(-1), forest.common(1), color="#eeeeee", lw=0, zorder=0)
        axes.axvline(forest.common(0), color=style.GREY, lw=0.8, zorder=1)
        y, places = 0.0, []
        for mine in papers.values():
            places.append(y + (len(mine) - 1) / 2)
            for row, strip in mine:
                _draw(axes, row, strip, y)
                axes.text(forest.WIDTH + 7, y, row["id"].partition("/")[2], size=5.5, va="center", color="#555555")
                y += 1
            axes.axhline(y - 0.5 + GAP / 2, color="#dddddd", lw=0.5, zorder=0)
            y += GAP
        axes.set_yticks(places, [style.plain(paper) for paper in papers])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(y - 0.5, -1)
        axes.set_xlim(-4, forest.WIDTH + 4)
        axes.set_xticks([at for at, _ in forest.common_ticks()], [text for _, text in forest.common_ticks()])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            "effect in units of its margin (shaded: negligible). As claimed: dots right of 0, or of the shade where a\n"
            "size is claimed; squares in the shade, or right of it where only a loss is excluded"
        )
        figure.legend(handles=_key(), loc="outside upper center", ncols=4)
    return figure


def _draw(axes: Axes, row: Row, strip: forest.Strip, y: float) -> None:
    color = COLORS.get(Verdict(row["verdict"]), style.GREY)
    filled = FILLED.get(row["scale"], {})
    low, mean, high = (float("nan") if end is None else end for end in (strip.low, strip.mean, strip.high))
    seen = FADED if row["withdrawn"] is not None or questions.stale(row) is not None else 1.0
    axes.plot([low, high], [y, y], color=color, lw=0.9, solid_capstyle="butt", zorder=2, alpha=seen)
    shape = "s" if _claims_no_difference(strip) else "o"
    marker = shape if not strip.over else ">" if strip.over > 0 else "<"
    axes.plot([mean], [y], marker, color=color, ms=3.2, mew=0.9, zorder=3, alpha=seen, **filled)


def _claims_no_difference(strip: forest.Strip) -> bool:
    """Equality, or no loss beyond the margin: what is claimed reaches to the left of no effect."""
    return strip.shade is not None and strip.shade[0] < forest.common(0)


def _mean(strip: forest.Strip) -> float:
    assert strip.mean is not None
    return strip.mean


def _key() -> list[Line2D]:
    """Colours of verdicts, and what marks say."""
    colors = {**{verdict.value: color for verdict, color in COLORS.items()}, OTHERS: style.GREY}
    key = [Line2D([], [], color=color, marker="o", ms=3.2, lw=0.9, label=name) for name, color in colors.items()]
    key += [
        Line2D([], [], color=style.BLACK, marker="o", ms=3.2, lw=0, label=f"{scale} scale", **filled)
        for scale, filled in FILLED.items()
    ]
    key.append(Line2D([], [], color=style.BLACK, marker="s", ms=3.2, lw=0, label="no difference (or loss) claimed"))
    return [*key, Line2D([], [], color=style.BLACK, marker="o", ms=3.2, lw=0.9, alpha=FADED, label="earlier design")]
