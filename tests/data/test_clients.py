"""Clients: what each has at each skew, and what a step's batch holds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from bnrepro.data.clients import client_batches, label_skewed

LABELS = torch.arange(10).repeat(60)[torch.randperm(600, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize("skew", [0.0, 0.35, 0.8, 1.0])
def test_parts_are_of_one_size_and_share_no_image(skew: float) -> None:
    parts = label_skewed(LABELS, 5, skew)
    assert len({len(part) for part in parts}) == 1
    assert len(parts) == 5
    whole = torch.cat(parts)
    assert len(whole) == len(whole.unique()) >= len(LABELS) - 2 * 5


def test_each_client_has_two_classes_of_its_own() -> None:
    found = [set(LABELS[part].tolist()) for part in label_skewed(LABELS, 5, 1.0)]
    assert found == [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}]


def test_without_skew_all_have_all_classes_about_equally() -> None:
    for part in label_skewed(LABELS, 5, 0.0):
        counts = LABELS[part].bincount(minlength=10)
        assert counts.min() >= 4  # 12 on average
        assert counts.max() <= 22


def test_skew_is_the_share_that_is_sorted() -> None:
    own = {}
    for skew in (0.0, 0.5, 1.0):
        parts = label_skewed(LABELS, 5, skew, seed=1)
        own[skew] = sum(int((LABELS[part] // 2 == client).sum()) for client, part in enumerate(parts)) / 600
    assert own[1.0] == 1
    assert own[0.5] == pytest.approx(0.6, abs=0.05)
    assert own[0.0] == pytest.approx(0.2, abs=0.05)


def test_the_seed_draws() -> None:
    one, same, other = (label_skewed(LABELS, 5, 0.5, seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))


def test_a_step_has_so_many_of_each_client_in_their_order() -> None:
    parts = label_skewed(LABELS, 5, 1.0)
    steps = list(client_batches(parts, 25, seed=1))
    assert len(steps) == 120 // 25
    for step in steps:
        assert [set((LABELS[own] // 2).tolist()) for own in step.split(25)] == [{client} for client in range(5)]
    whole = torch.cat(steps)
    assert len(whole) == len(whole.unique())
    assert all(map(torch.equal, steps, client_batches(parts, 25, seed=1)))
    assert not torch.equal(steps[0], next(client_batches(parts, 25, seed=1, epoch=1)))


def test_what_cannot_be_divided_is_told() -> None:
    with pytest.raises(ValueError, match="from 0"):
        label_skewed(LABELS, 5, 1.5)
    with pytest.raises(ValueError, match="600 images cannot be divided among 601"):
        label_skewed(LABELS, 601, 0.0)


@pytest.mark.parametrize(
    ("labels", "clients", "error", "words"),
    [
        (torch.eye(10)[LABELS], 5, ValueError, r"\(N,\), got \(600, 10\)\. .* labels\.argmax\(1\)"),
        (LABELS.tolist(), 5, TypeError, r"got a list\. Convert it: torch\.as_tensor"),
        (LABELS.numpy(), 5, TypeError, r"got a ndarray\. Convert it"),
        (LABELS, 2.5, ValueError, "cannot be divided among 2.5 clients"),
        (LABELS, 0, ValueError, "cannot be divided among 0 clients"),
    ],
)
def test_what_labels_and_clients_must_be(labels: Any, clients: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        label_skewed(labels, clients, 0.5)


@pytest.mark.parametrize("size", [0, -1, 8, 2.5])
def test_a_size_that_gives_no_step_is_told_when_it_is_asked_for(size: Any) -> None:
    parts = [torch.arange(9), torch.arange(7), torch.arange(8)]
    with pytest.raises(ValueError, match=f"from 1 to the 7 images of client 1, who has the fewest; got {size}"):
        client_batches(parts, size)
    assert len(list(client_batches(parts, 7))) == 1
    with pytest.raises(ValueError, match="got no parts"):
        client_batches([], 1)


def test_torchs_defaults_change_nothing(torchs_defaults: Callable[[], AbstractContextManager[None]]) -> None:
    def found() -> list[torch.Tensor]:
        parts = label_skewed(LABELS, 5, 0.5)
        return [*parts, *client_batches(parts, 25)]

    wanted = found()
    with torchs_defaults():
        assert all(map(torch.equal, found(), wanted))
