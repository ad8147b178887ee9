"""Bjorck et al.'s experiment: probes against closed forms, and verdicts that follow the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from bnrepro.config import configs_dir
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.bjorck2018 import EXPERIMENT, analysis, effects, moments
from bnrepro.train import trainer_of

FOLDER = configs_dir() / "experiment" / "bjorck2018"
PRESETS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets
}
SETTINGS = PRESETS["full"]
SMOKE = PRESETS["smoke"]
TINY = [*SMOKE["common"], *SMOKE["networks"]["6 layers"]["overrides"]]


# --- presets and arms ---


def test_presets_say_the_same_keys_and_look_into_networks_that_they_train() -> None:
    assert all(preset.keys() == SETTINGS.keys() for preset in PRESETS.values())
    assert all(set(preset["inside"]) <= set(preset["networks"]) for preset in PRESETS.values())
    assert SETTINGS["seeds"] >= 5
    for preset in PRESETS.values():
        assert preset["rates"] == sorted(preset["rates"])
        assert preset["shares"][0] == 0 and preset["shares"][-1] == 1


def test_arms_are_what_their_factors_say_and_differ_in_nothing_else() -> None:
    made = EXPERIMENT.arms(SETTINGS)
    assert len(made) == 5 * 9 * 2 * 5
    for arm in made:
        assert arm.config.variant == arm.factors["variant"]
        assert arm.config.optimizer.lr == arm.factors["rate"]
        assert arm.config.optimizer.name == "sgd" and arm.config.optimizer.momentum == 0.9
        if arm.config.model.name == "paper_mlp":
            assert arm.config.model.depth == arm.factors["layers"]
            assert (arm.config.model.activation, arm.config.model.init) == ("relu", "he")
    same = {
        repr(replace(a.config, variant="", seed=0, optimizer=replace(a.config.optimizer, lr=1.0)))
        for a in made
        if a.factors["network"] == "24 layers"
    }
    assert len(same) == 1
    few = {a.factors["rate"] for a in EXPERIMENT.arms(PRESETS["quick"]) if a.config.model.name == "resnet20"}
    assert few == {0.01, 0.1, 1.0}  # a network's own rates


# --- probes ---


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def test_moments_are_those_of_the_channels() -> None:
    x = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + torch.arange(4).view(4, 1, 1)
    found = values(moments.layer_rows({"norm1": x, "norm2": x[:, :, 0, 0]}, "a/"))
    assert found["a/variance", 1] == pytest.approx(float(x.var((0, 2, 3), correction=0).mean()), rel=1e-5)
    assert found["a/mean", 1] == pytest.approx(float(x.mean((0, 2, 3)).abs().mean()), rel=1e-5)
    assert found["a/variance", 2] == pytest.approx(float(x[:, :, 0, 0].var(0, correction=0).mean()), rel=1e-5)


def test_kurtosis_of_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, generator=generator)
    found = values(moments.tails(5 * normal + 2))
    assert found["kurtosis", None] == pytest.approx(3, abs=0.05)
    assert found["deviation", None] == pytest.approx(5, rel=0.01)
    assert found["density", 0.125] == pytest.approx(0.3959, abs=0.01)
    assert values(moments.tails(normal**3))["kurtosis", None] > 20
    assert values(moments.tails(torch.tensor([1.0, -1.0])))["kurtosis", None] == pytest.approx(1)


def test_initial_network_without_bn_has_the_variance_of_its_weights() -> None:
    # The first layer's outputs: sum over pixels of weight times pixel, by hand.
    found = values(moments.at_start(1, TINY, "nobn", 100))
    trainer = trainer_of(moments.configured(TINY, "nobn", 1))
    x = trainer.data.normalize(trainer.data.train.images[:100]).flatten(1)
    first = next(m for m in trainer.network.modules() if isinstance(m, torch.nn.Linear))
    assert found["variance", 1] == pytest.approx(
        float((x @ first.weight.detach().T).var(0, correction=0).mean()), rel=1e-3
    )
    assert ("logit_gradient", 0) not in found and 10 <= found["majority", None] <= 100
    shown = [row["value"] for row in moments.at_start(0, TINY, "bn", 100) if row["quantity"] == "logit_gradient"]
    assert len(shown) == 500
    rows = torch.tensor(shown).view(50, 10)
    assert float(rows.sum(1).abs().max()) < 1e-5  # softmax less one-hot
    assert rows.argmin(1).diff().min() >= 0  # sorted by class, which alone is negative


def test_diverging_update_lies_between_a_finite_loss_and_one_beyond_the_bound() -> None:
    rows = values(moments.diverging(0, TINY, [1e-4, 3.0, 30.0], 8, 1000.0, [0.0, 1.0]))
    assert rows["rate", None] in (3.0, 30.0)
    update = int(rows["update", None])
    cfg = moments.configured(TINY, "nobn", 0, rows["rate", None])
    losses = []
    trainer = trainer_of(replace(cfg, epochs=9))
    for batch in trainer.batches(0, update + 1):
        losses.append(float(trainer.update(batch.x, batch.y, cfg.optimizer.lr)[0]))
    assert all(loss <= 1000 for loss in losses[:update]) and not losses[update] <= 1000
    layers = [x for quantity, x in rows if quantity == "nobn/1/variance"]
    assert layers == [1, 2, 3, 4, 5, 6] == [x for quantity, x in rows if quantity == "bn/0/mean"]
    assert rows["nobn/1/variance", 6] > 100 * rows["nobn/0/variance", 6]
    assert moments.diverging(0, TINY, [1e-4], 3, 1000.0, [0.0, 1.0]) == []


# --- verdicts ---

NETWORKS = list(SETTINGS["networks"])
RATES = SETTINGS["rates"]


def made_up(
    top: Callable[[str, str], float] = lambda network, variant: 1.0,
    accuracy: Callable[[str, float], float] = lambda variant, rate: 90.0,
    start: Callable[[str], float] = lambda variant: 0.0,
    diverged: Callable[[str], float] = lambda variant: 0.0,
    majority: Callable[[str], float] = lambda variant: 50.0,
    kurtosis: Callable[[str], float] = lambda variant: 3.0,
) -> Records:
    """Five seeds: networks that train up to a rate, with accuracies by rate; growth of variances in decades a layer."""
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        wobble = 0.1 * (seed - 2)
        for network in NETWORKS:
            for variant in ("nobn", "bn"):
                for rate in RATES:
                    good = rate <= top(network, variant)
                    value = (accuracy(variant, rate) + wobble * (1 if variant == "bn" else 0.5)) / 100
                    who = {"part": "rates", "network": network, "variant": variant, "rate": rate, "seed": seed}
                    who |= {
                        "status": "completed" if good or seed else "diverged",
                        "train_accuracy": 0.9 if good else 0.1,
                    }
                    runs.append({**who, "test_accuracy": value, "val_accuracy": value})
        for network in SETTINGS["inside"]:

            def add(part: str, quantity: str, x: Any, value: float, **factors: Any) -> None:
                rows.append({"part": part, "quantity": quantity, "x": x, "value": value, "seed": seed, **factors})  # noqa: B023

            for variant in ("nobn", "bn"):
                who = {"network": network, "variant": variant}
                add("start", "majority", None, majority(variant) + wobble, **who)
                add("start", "kurtosis", None, kurtosis(variant) * (1 + wobble / 10), **who)
                add("start", "deviation", None, 1.0, **who)
                add("start", "density", 0.0, 0.4, **who)
                for layer in range(1, 11):
                    add("start", "variance", layer, 10 ** (start(variant) * layer + wobble), **who)
                    add("start", "mean", layer, 1.0, **who)
                    for share in SETTINGS["shares"]:
                        value = 10 ** (diverged(variant) * layer * share + wobble)
                        for quantity in ("mean", "variance"):
                            add("diverging", f"{variant}/{share:g}/{quantity}", layer, value, network=network)
            add("diverging", "rate", None, 1.0, network=network)
    return Records("full", SETTINGS, runs, [], rows, {})


def found(records: Records) -> dict[str, Finding]:
    findings = analysis.judged(records)
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def test_largest_rate_is_the_last_before_the_first_that_does_not_train() -> None:
    def records(trains: list[bool]) -> Records:
        rows = [
            {"part": "rates", "network": "a", "variant": "bn", "rate": rate, "seed": 0, "status": "completed"}
            | {"train_accuracy": 0.9 if good else 0.2}
            for rate, good in zip((0.01, 0.1, 1.0, 10.0), trains, strict=True)
        ]
        return Records("full", SETTINGS, rows, [], [], {})

    cases = {
        (True, True, False, False): (-1, 0, 0),
        (False, True, False, True): (-1, 0, 0),  # what trains beyond the first that does not counts for nothing
        (True, True, True, True): (1, 0, 1),
        (False, False, False, False): (-2, 1, 0),
    }
    for trains, (rate, none, top) in cases.items():
        assert effects.largest_rates(records(list(trains)), "a", "bn") == ({0: pytest.approx(rate)}, none, top)


@pytest.mark.parametrize(
    ("with_bn", "without", "verdict"),
    [
        (1.0, 0.01, Verdict.reproduced),
        (0.01, 1.0, Verdict.not_reproduced),
        (0.1, 0.1, Verdict.inconclusive),
    ],
)
def test_b1_1_compares_largest_rates(with_bn: float, without: float, verdict: Verdict) -> None:
    records = made_up(top=lambda network, variant: with_bn if variant == "bn" else without)
    finding = found(records)["B1.1"]
    assert finding.verdict is verdict
    some = made_up(top=lambda network, variant: 1.0 if variant == "bn" or network != NETWORKS[0] else 0.01)
    assert found(some)["B1.1"].verdict is Verdict.inconclusive  # larger in one of five, the same elsewhere


@pytest.mark.parametrize(
    ("gap", "gain", "alike", "from_rate"),
    [
        (0.0, 3.0, Verdict.reproduced, Verdict.reproduced),
        (4.0, 3.0, Verdict.not_reproduced, Verdict.reproduced),
        (0.0, 0.0, Verdict.reproduced, Verdict.not_reproduced),
        (1.0, 0.4, Verdict.inconclusive, Verdict.partly),
    ],
)
def test_b1_2_and_b1_3_split_bns_gain(gap: float, gain: float, alike: Verdict, from_rate: Verdict) -> None:
    def accuracy(variant: str, rate: float) -> float:
        if variant == "nobn":
            return 90.0 if rate == 0.01 else 80.0
        return 90.0 + gap + (gain if rate == 0.1 else 0.0) - (5.0 if rate not in (0.01, 0.1) else 0.0)

    top: Callable[[str, str], float] = lambda network, variant: 1.0 if variant == "bn" else 0.01  # noqa: E731
    findings = found(made_up(top=top, accuracy=accuracy))
    assert (findings["B1.2"].verdict, findings["B1.3"].verdict) == (alike, from_rate)


@pytest.mark.parametrize(
    ("plain", "normed", "verdict"),
    [
        (0.3, 0.0, Verdict.reproduced),  # 2.7 decades over 10 layers
        (0.05, 0.0, Verdict.not_reproduced),  # less than one
        (0.3, 0.3, Verdict.not_reproduced),
        (0.0, 0.3, Verdict.not_reproduced),
    ],
)
def test_b2_asks_for_growth_that_bn_has_not(plain: float, normed: float, verdict: Verdict) -> None:
    rate: Callable[[str], float] = lambda variant: plain if variant == "nobn" else normed  # noqa: E731
    assert found(made_up(start=rate))["B2.1"].verdict is verdict
    assert found(made_up(diverged=rate))["B2.2"].verdict is verdict
    assert found(made_up(start=rate))["B2.2"].verdict is Verdict.not_reproduced


def test_growth_is_the_slope_over_the_depth() -> None:
    assert effects.growth({layer: 0.5 * layer + 3 for layer in range(1, 8)}) == pytest.approx(3.0)
    rows = [{"quantity": "variance", "seed": 0, "x": x, "value": v} for x, v in ((1, 1.0), (2, 0.0), (3, 100.0))]
    found = effects.layers(Records("full", SETTINGS, [], [], rows, {}), "variance")
    assert found == {0: {1: 0.0, 3: 2.0}}  # a dead layer is left out
    assert effects.growth(found[0]) == pytest.approx(2.0)


def test_b2_3_and_b2_4_follow_the_gradients() -> None:
    more: Callable[[str], float] = lambda variant: 90.0 if variant == "nobn" else 30.0  # noqa: E731
    less: Callable[[str], float] = lambda variant: 30.0 if variant == "nobn" else 90.0  # noqa: E731
    right, wrong = found(made_up(majority=more, kurtosis=more)), found(made_up(majority=less, kurtosis=less))
    for claim in ("B2.3", "B2.4"):
        assert right[claim].verdict is Verdict.reproduced
        assert wrong[claim].verdict is Verdict.not_reproduced


def test_no_records_are_no_error_and_tables_are_whole() -> None:
    nothing = Records("full", SETTINGS, [], [], [], {})
    assert {finding.verdict for finding in found(nothing).values()} == {Verdict.inconclusive}
    assert EXPERIMENT.analyse(nothing).pictures == []
    whole = EXPERIMENT.analyse(made_up())
    assert all(len({tuple(row) for row in table.rows}) == 1 for table in whole.tables)
    assert [len(table.rows) for table in whole.tables] == [5, 45, 4]
    assert [picture.name for picture in whole.pictures] == ["rates", "depth", "diverging", "gradients"]
