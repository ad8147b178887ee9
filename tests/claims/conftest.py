"""The made-up paper, with presets, where the engine and the command line find it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bnrepro import experiments
from bnrepro.claims import Paper
from tests.claims import made_up

Listed = Callable[..., None]
"""``listed(paper, other)``: the papers that the command line knows."""


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the made-up paper's presets."""
    file = tmp_path / "configs" / "experiment" / "made_up.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(made_up.PRESETS)
    monkeypatch.setattr("bnrepro.claims.paper.configs_dir", lambda: tmp_path / "configs")
    return file


@pytest.fixture
def listed(presets: Path, monkeypatch: pytest.MonkeyPatch) -> Listed:
    """See `Listed`. Papers of one name are told apart by their place in the list."""

    def make(*papers: Paper[made_up.Settings]) -> None:
        known = {"made_up" if not place else f"made_up{place}": paper for place, paper in enumerate(papers)}
        monkeypatch.setattr(experiments, "NAMES", tuple(known))
        monkeypatch.setattr(experiments, "experiment", known.__getitem__)

    return make
