"""Points of categories."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from matplotlib.figure import Figure

from bnrepro.plots.panels import dots, lines, looks, panels
from bnrepro.stats import Values


def test_dots_stand_side_by_side_in_their_category() -> None:
    data = {((at, v), seed): at + seed for at in (1.0, 2.0) for v in ("bn", "convbn") for seed in (0, 1)}
    axes, look = Figure().subplots(), looks(["bn", "convbn"])
    dots(axes, Values(("data", "variant"), data), "data", "variant", look, width=0.5)
    markers = {each.marker for each in look.values()}
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() in markers]
    assert points == [[[-0.25, 1.5], [0.75, 2.5]], [[0.25, 1.5], [1.25, 2.5]]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert axes.get_xlim() == pytest.approx((-0.6, 1.6))


@pytest.mark.parametrize("draw", [partial(lines, by="by", bars=True), partial(dots, by="by", look=looks(["a"]))])
def test_a_seed_that_its_interval_leaves_out_is_inside_of_the_axes(draw: Callable[..., None]) -> None:
    rows = [{"x": x, "by": "a", "seed": seed, "value": 10.0 * (seed == 4)} for x in (1, 2) for seed in range(5)]
    values = Values.of_rows(rows, "value")
    assert values.at(x=1, by="a").interval().high < 10
    _, (axes,) = panels()
    draw(axes, values, x="x")
    assert axes.get_ylim()[1] > 10
