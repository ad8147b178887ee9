"""How levels are drawn."""

from __future__ import annotations

from bnrepro.claims.plots import looks
from bnrepro.figures import STYLES


def test_looks_all_differ_and_those_of_variants_are_always_the_same() -> None:
    found = looks(["noisybn", *STYLES, "l1norm"])
    assert len({(str(look.color), str(look.dashes)) for look in found.values()}) == len(found)
    assert {level: found[level][:2] for level in STYLES} == STYLES
