"""What every caption says."""

from __future__ import annotations

from typing import Any

import pytest

from bnrepro.claims import Paper, Preset, Results
from bnrepro.claims.judging import caption, tables
from bnrepro.claims.results import Read


def test_a_caption_speaks_of_seeds_where_there_are_some() -> None:
    paper = Paper(__name__, Preset)

    @paper.table
    def accuracies(r: Results, s: Preset) -> list[Any]:
        """Accuracy over {s.seeds} seeds."""
        return []

    @paper.table(over_seeds=False)
    def counts(r: Results, s: Preset) -> list[Any]:
        """Numbers of parameters."""
        return []

    nothing = Read("full", [], [], [])
    assert [caption(each, nothing, Preset(seeds=3)) for each in paper.tables] == [
        "Accuracy over 3 seeds. Means and 95% intervals over n = 3 seeds; preset full.",
        "Numbers of parameters. Preset full.",
    ]
    assert accuracies(nothing, Preset()) == counts(nothing, Preset()) == []


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [({"part": "many"}, "n = 10 seeds"), ({"arm": ["a", "b"]}, "n = 3 to 10 seeds"), ({"arm": "c"}, "one seed")],
)
def test_a_caption_counts_the_seeds_of_what_is_shown(asked: dict[str, Any], seeds: str) -> None:
    paper = Paper(__name__, Preset)

    @paper.table
    def shown(r: Results, s: Preset) -> list[Any]:
        """Loss."""
        return [{"values": len(r.measured("loss", **asked))}]

    arms = {("few", "a"): 3, ("many", "b"): 10, ("alone", "c"): 1}
    rows = [
        {"part": part, "arm": arm, "seed": seed, "quantity": "loss", "x": x, "value": seed + x}
        for (part, arm), count in arms.items()
        for seed in range(count)
        for x in (1.0, 2.0)
    ]
    ((_, caption_of_it, _),) = tables(paper, Results("full", [], [], rows), Preset(seeds=1, looks=[3, 10]))
    assert caption_of_it == f"Loss. Means and 95% intervals over {seeds}; preset full."
