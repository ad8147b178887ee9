"""Measures reach worker processes, decorated or not."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from bnrepro.claims import measure, row


@measure("made_up/decorated", version=2)
def decorated(seed: int) -> list[dict[str, Any]]:
    return [row("seed", seed)]


def plain(seed: int) -> list[dict[str, Any]]:
    return decorated.function(seed=seed)


def test_measures_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    made = measure("made_up/plain")(plain)
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_row_holds_a_number_whatever_it_was() -> None:
    assert row("loss", torch.tensor(2), "layer 1") == {"quantity": "loss", "x": "layer 1", "value": 2.0}
    assert type(row("loss", 2)["value"]) is float
