"""How levels are drawn, and cells of heat maps."""

from __future__ import annotations

from matplotlib.figure import Figure

from bnrepro.claims import Values
from bnrepro.plots.panels import DOTTED, heat_map, lines, looks, panels
from bnrepro.plots.style import STYLES
from bnrepro.stats import Interval, t_interval


def test_looks_all_differ_and_those_of_variants_are_always_the_same() -> None:
    for others in (["noisybn"], ["noisybn", "noise", "l1norm", "l2norm", "linfnorm"]):
        found = looks([*STYLES, *others])
        assert len({(str(look.color), str(look.dashes)) for look in found.values()}) == len(found)
        assert {level: found[level][:2] for level in STYLES} == STYLES


def test_only_what_is_absent_is_dotted() -> None:
    for none in ("nobn", "none"):
        found = looks([none, *"abcdefghi"])
        assert [level for level, look in found.items() if look.dashes == DOTTED] == [none]
        assert len({(str(look.color), str(look.dashes)) for look in found.values()}) == len(found)


def test_starred_cells_of_a_heat_map_are_bold() -> None:
    axes = Figure().subplots()
    cells = {(row, column): Interval(1.0, 0.5, 1.5, 5) for row in "ab" for column in "xy"}
    heat_map(axes, cells, starred=[("a", "y")])
    shown = [(text.get_text().split("\n")[0], text.get_weight()) for text in axes.texts]
    assert shown == [("+1.00", "normal"), ("+1.00*", "bold"), ("+1.00", "normal"), ("+1.00", "normal")]


def test_numbers_in_a_heat_map_can_be_read_on_dark_and_on_bright_cells() -> None:
    _, (axes,) = panels()
    heat_map(axes, {(0.0, "a"): t_interval([0.0, 0.0]), (0.0, "b"): t_interval([1.0, 1.0])}, cmap="viridis")
    assert [text.get_color() for text in axes.texts] == ["white", "black"]  # viridis ends in yellow
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0"]


def test_lines_run_from_left_to_right_where_a_seed_lacks_a_level() -> None:
    _, (axes,) = panels()
    lines(axes, Values(("x",), {((1,), 0): 1.0, ((4,), 0): 2.0, ((2,), 1): 3.0}), "x")
    assert list(axes.get_lines()[0].get_xdata()) == [1, 2, 4]
