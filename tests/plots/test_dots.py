"""Points of categories."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from bnrepro.plots.panels import dots, looks
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
