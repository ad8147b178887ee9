"""Measures reach worker processes, decorated or not."""

from __future__ import annotations

import pickle

import torch

from bnrepro.claims import Row, measure, row


@measure("made_up/decorated", version=2)
def decorated(seed: int) -> list[Row]:
    return [row("seed", seed)]


def plain(seed: int) -> list[Row]:
    return decorated.function(seed=seed)


def test_a_row_is_a_quantity_where_and_a_number() -> None:
    assert row("loss", True, 3) == {"quantity": "loss", "x": 3, "value": 1.0}
    assert decorated.function(seed=2) == [{"quantity": "seed", "x": None, "value": 2.0}]


def test_measures_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    made = measure("made_up/plain")(plain)
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_row_holds_a_number_whatever_it_was() -> None:
    assert row("loss", torch.tensor(2), "layer 1") == {"quantity": "loss", "x": "layer 1", "value": 2.0}
    assert type(row("loss", 2)["value"]) is float
    assert row("loss", torch.tensor(2.0, requires_grad=True))["value"] == 2.0  # and warns of nothing
