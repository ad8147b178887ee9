"""What every caption says."""

from __future__ import annotations

from typing import Any

from bnrepro.claims import Paper, Preset, Results
from bnrepro.claims.judging import caption


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

    nothing = Results("full", [], [], [])
    assert [caption(each, nothing, Preset(seeds=3)) for each in paper.tables] == [
        "Accuracy over 3 seeds. Means and 95% intervals over n = 3 seeds; preset full.",
        "Numbers of parameters. Preset full.",
    ]
    assert accuracies(nothing, Preset()) == counts(nothing, Preset()) == []
