"""Measures reach worker processes, decorated or not."""

from __future__ import annotations

import pickle
from typing import Any

from bnrepro.claims import measure


@measure("made_up/decorated", version=2)
def decorated(seed: int) -> list[dict[str, Any]]:
    return [{"quantity": "seed", "x": None, "value": float(seed)}]


def plain(seed: int) -> list[dict[str, Any]]:
    return decorated.function(seed=seed)


def test_measures_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    made = measure("made_up/plain")(plain)
    assert pickle.loads(pickle.dumps(made)) == made
