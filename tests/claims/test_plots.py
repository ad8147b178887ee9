"""How levels are drawn."""

from __future__ import annotations

from bnrepro.claims import Values
from bnrepro.claims.plots import DOTTED, lines, looks, panels
from bnrepro.figures import STYLES


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


def test_lines_run_from_left_to_right_where_a_seed_lacks_a_level() -> None:
    _, (axes,) = panels()
    lines(axes, Values(("x",), {((1,), 0): 1.0, ((4,), 0): 2.0, ((2,), 1): 3.0}), "x")
    assert list(axes.get_lines()[0].get_xdata()) == [1, 2, 4]
