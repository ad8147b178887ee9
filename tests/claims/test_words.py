"""Numbers with the digits that they have."""

from __future__ import annotations

import pytest

from bnrepro.claims.words import numbers
from bnrepro.stats import t_interval


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([6912.0], "6,912"),
        ([-1000.0000000001], "-1,000"),
        ([0.0], "0"),
        ([0.7512], "0.751"),
        ([1.0, 2.0, 3.0], "2.0 [-0.5, 4.5]"),
    ],
)
def test_counts_are_whole_and_intervals_have_two_digits(values: list[float], text: str) -> None:
    assert numbers(t_interval(values)) == text
