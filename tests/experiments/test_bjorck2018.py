"""Bjorck et al.'s experiment: measurements against closed forms, and how largest and best rates are found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.bjorck2018 import AGAIN, START, best_rates, growth, last_that_trains, paper
from bnrepro.experiments.bjorck2018.measurements import at_start, diverging, layer_rows, predicted, tails
from bnrepro.training.model import build, norm_of
from bnrepro.training.train import trainer_of

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")
MLP = ["data=mnist5k", "data.val_fraction=0.9", "model=paper_mlp", "model.activation=relu", "model.init=he"]
TINY = [*MLP, "model.depth=6", "model.width=0.3", "optimizer=sgd", "batch_size=40", "device=cpu"]
DATA = load(load_config(MLP).data, torch.device("cpu"))


def test_arms_are_what_their_factors_say_and_differ_in_nothing_else() -> None:
    made = paper.designed(SETTINGS).arms
    assert len(made) == 2 * 10 * 2 * 5
    for arm in made:
        assert arm.config.variant == arm.factors["variant"]
        assert arm.config.optimizer.lr == arm.factors["rate"]
        assert arm.config.optimizer.name == "sgd"
        assert arm.config.optimizer.momentum == 0.9
        network = build(arm.config.model, norm_of(arm.config), 1, (28, 28), 10, torch.Generator())
        assert len(network.norms) == arm.factors["layers"]
    same = {
        repr(replace(a.config, variant="", seed=0, optimizer=replace(a.config.optimizer, lr=1.0)))
        for a in made
        if a.factors["network"] == "ResNet-56 x 0.25"
    }
    assert len(same) == 1
    few = {a.factors["rate"] for a in paper.designed(paper.settings("quick")).arms}
    assert few == {0.001, 0.01, 0.1, 1.0}
    looked = [probe for probe in paper.designed(SETTINGS).probes if probe.part == "start"]
    assert {probe.factors["network"] for probe in looked} == {"ResNet-20", "ResNet-56", "ResNet-110"}
    assert all(probe.data and probe.data.name == "cifar10" for probe in looked)
    seeds = {part: {p.seed for p in paper.designed(SETTINGS).probes if p.part == part} for part in (START, AGAIN)}
    assert (len(seeds[START]), len(seeds[AGAIN])) == (5, 20)
    assert not seeds[START] & seeds[AGAIN]


# --- measurements ---


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def test_moments_are_those_of_the_channels() -> None:
    x = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + torch.arange(4).view(4, 1, 1)
    found = values(layer_rows([x, x[:, :, 0, 0]], "a/"))
    assert found["a/variance", 1] == pytest.approx(float(x.var((0, 2, 3), correction=0).mean()), rel=1e-5)
    assert found["a/mean", 1] == pytest.approx(float(x.mean((0, 2, 3)).abs().mean()), rel=1e-5)
    assert found["a/variance", 2] == pytest.approx(float(x[:, :, 0, 0].var(0, correction=0).mean()), rel=1e-5)


def test_kurtosis_of_known_distributions() -> None:
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found = values(tails(5 * normal + 2))
    assert found["kurtosis", None] == pytest.approx(3, abs=0.05)
    assert found["deviation", None] == pytest.approx(5, rel=0.01)
    assert found["density", 0.125] == pytest.approx(0.3959, abs=0.01)
    assert values(tails(normal**3))["kurtosis", None] > 20
    assert values(tails(torch.tensor([1.0, -1.0])))["kurtosis", None] == pytest.approx(1)


def test_initial_network_without_bn_has_the_variance_of_its_weights() -> None:
    # The first layer's outputs: sum over pixels of weight times pixel, by hand.
    found = values(at_start.function(DATA, seed=1, overrides=[*TINY, "variant=nobn"], images=100))
    trainer = trainer_of(load_config([*TINY, "variant=nobn", "seed=1"]))
    x = trainer.data.normalize(trainer.data.train.images[:100]).flatten(1)
    first = next(m for m in trainer.network.modules() if isinstance(m, torch.nn.Linear))
    expected = float((x @ first.weight.detach().T).var(0, correction=0).mean())
    assert found["variance", 1] == pytest.approx(expected, rel=1e-3)
    assert ("logit_gradient", 0) not in found
    assert 10 <= found["majority", None] <= 100
    rows = at_start.function(DATA, seed=0, overrides=[*TINY, "variant=bn"], images=100)
    gradients = torch.tensor([row["value"] for row in rows if row["quantity"] == "logit_gradient"]).view(50, 10)
    assert float(gradients.sum(1).abs().max()) < 1e-5  # softmax minus one-hot
    assert gradients.argmin(1).diff().min() >= 0  # sorted by class, which alone is negative


@pytest.mark.parametrize("variant", ["nobn", "bn"])
def test_share_of_the_most_frequent_class_is_that_of_the_longer_measurement(variant: str) -> None:
    asked: dict[str, Any] = {"seed": 1, "overrides": [*TINY, f"variant={variant}"], "images": 100}
    (found,) = predicted.function(DATA, **asked)
    assert found["value"] == values(at_start.function(DATA, **asked))["majority", None]


def test_diverging_update_lies_between_a_finite_loss_and_one_beyond_the_bound() -> None:
    asked: dict[str, Any] = {"seed": 0, "overrides": TINY, "loss": 1000.0, "shares": [0.0, 1.0]}
    rows = values(diverging.function(DATA, rates=[1e-4, 3.0, 30.0], steps=8, **asked))
    assert rows["rate", None] in (3.0, 30.0)
    update = int(rows["update", None])
    cfg = load_config([*TINY, "variant=nobn", f"optimizer.lr={rows['rate', None]}"])
    trainer = trainer_of(replace(cfg, epochs=9))
    losses = [float(trainer.update(batch.x, batch.y, cfg.optimizer.lr)[0]) for batch in trainer.batches(0, update + 1)]
    assert all(loss <= 1000 for loss in losses[:update])
    assert not losses[update] <= 1000
    layers = [x for quantity, x in rows if quantity == "nobn/1/variance"]
    assert layers == [1, 2, 3, 4, 5, 6] == [x for quantity, x in rows if quantity == "bn/0/mean"]
    assert rows["nobn/1/variance", 6] > 100 * rows["nobn/0/variance", 6]
    assert diverging.function(DATA, rates=[1e-4], steps=3, **asked) == []


# --- quantities ---


@pytest.mark.parametrize(
    ("train", "rate"),
    [
        ([1, 1, 0, 0], 0.1),
        ([0, 1, 0, 1], 0.1),  # what trains beyond the first that does not counts for nothing
        ([1, 1, 1, 1], 10.0),
        ([0, 0, 0, 0], 0.01),
    ],
)
def test_largest_rate_is_the_last_before_the_first_that_does_not_train(train: list[float], rate: float) -> None:
    assert last_that_trains([0.01, 0.1, 1.0, 10.0], train) == rate
    assert last_that_trains([10.0, 1.0, 0.1, 0.01], train[::-1]) == rate


def test_best_rate_is_by_validation_accuracy_and_trains_every_seed() -> None:
    def run(rate: float, seed: int, variant: str, status: str, val: float) -> dict[str, Any]:
        who = {"part": "rates", "network": "a", "layers": 3, "rate": rate, "seed": seed, "variant": variant}
        accuracy = {"train_accuracy": 0.9 if val > 0.5 else 0.3, "val_accuracy": val, "test_accuracy": 1 - val}
        return who | {"status": status} | accuracy

    found = {(0.1, 0): 0.8, (0.1, 1): 0.9, (1.0, 0): 0.7, (1.0, 1): 0.6, (3.0, 0): 0.99, (3.0, 1): 0.4}
    rows = [run(*at, "bn", "completed", val) for at, val in found.items()]
    rows += [run(*at, "nobn", "diverged" if at == (0.1, 1) else "completed", val) for at, val in found.items()]
    settings = SETTINGS.model_copy(update={"seeds": 2})
    results = Results("full", rows, [], [])
    assert best_rates(results, settings, "bn") == {"a": 0.1}
    assert best_rates(results, settings, "nobn") == {"a": 1.0}


def test_growth_is_the_slope_over_the_depth_without_layers_that_died() -> None:
    def grown(by_layer: dict[int, float]) -> dict[int, float]:
        who = {"part": "start", "network": "a", "variant": "nobn", "seed": 0, "quantity": "variance"}
        rows = [{**who, "x": layer, "value": value} for layer, value in by_layer.items()]
        return growth(Results("full", [], [], rows), "start").at(network="a", variant="nobn").seeds

    assert grown({layer: 10 ** (0.5 * layer + 3) for layer in range(1, 8)}) == {0: pytest.approx(3.0)}
    assert grown({1: 1.0, 2: 0.0, 3: 100.0}) == {0: pytest.approx(2.0)}
