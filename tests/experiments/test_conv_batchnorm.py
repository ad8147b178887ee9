"""conv-batchnorm: exact checks, measurements of networks, and the design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict, judge
from bnrepro.config import config_hash, load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, Split, derive_seed
from bnrepro.experiments.conv_batchnorm import CELLS, checks, networks, paper, start
from bnrepro.norm import NORMS
from bnrepro.runs.record import Run
from bnrepro.training.model import build, norm_of
from bnrepro.training.train import run

Row = dict[str, Any]


def values(rows: list[Row]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def verdict(id: str, part: str, rows: list[Row], **factors: Any) -> Verdict:
    """Of one claim, from measurements alone."""
    found = Results("full", [], [], [{"part": part, "seed": 0, **factors, **row} for row in rows])
    return verdict_of(id, found)


def verdict_of(id: str, found: Results) -> Verdict:
    """Of one claim, from records of a part of what it reads."""
    claim = next(each for each in paper.claims if each.id == id)
    return judge(claim.evidence(found, paper.settings("full"))).verdict


# --- exact checks ---


def test_counts_are_those_of_the_source() -> None:
    found = values(checks.counts.function(0, CELLS, 6, 24, 24))
    both = {variant: (found["parameters", variant], found["buffers", variant]) for variant in CELLS}
    channel, location = 12, 6912
    assert both["bn"] == (channel, channel)
    assert both["convbn"] == (channel, location)
    assert both["peractivationbn"] == (location, location)
    assert both["locationaffinebn"] == (location, channel)


def test_factor_of_the_source_is_unbiased_for_no_n() -> None:
    rows = checks.bessel.function(0, 1e-3, [1, 2, 100])
    found = values(rows)
    assert found["source", 1] == pytest.approx(-1000)
    assert found["source", 2] == pytest.approx(2 / 0.999)
    assert found["unbiased", 100] == pytest.approx(100 / 99) == found["ours", 100]
    assert ("ours", 1) not in found
    assert verdict("L9", "exact", rows, claim="L9") is Verdict.partly
    mended = [row | {"value": abs(row["value"])} for row in rows]
    assert verdict("L9", "exact", mended, claim="L9") is Verdict.reproduced


class Detached(nn.Module):
    """Local gain whose statistics are outside the gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean(0).detach(), x.var(0, correction=0).detach()
        return (x - mean) / (var + checks.EPS).sqrt() * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def test_gradients_are_told_from_those_of_detached_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"batch": 3, "channels": 2, "height": 2, "width": 2}
    right = values(checks.gradients.function(0, **small))
    monkeypatch.setitem(NORMS, "convbn", lambda channels, shape, options: Detached(channels))
    rows = checks.gradients.function(0, **small)
    wrong = values(rows)
    assert right["error", "closed formula"] < 1e-12 < 1e-2 < wrong["error", "closed formula"]
    assert right["passes", "gradcheck"] == right["passes", "gradgradcheck"] == 1
    assert wrong["passes", "gradcheck"] == 0
    assert verdict("L3", "exact", rows, claim="L3") is not Verdict.reproduced


def test_statistics_are_told_from_those_per_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(values(checks.flattened.function(0, 4, 2, 3, 2)).values()) < 1e-12
    ends = values(checks.window_ends.function(0, 4, 2, 4))
    assert ends["train minus eval", None] == 0 < ends["depends on its batch", None]
    assert max(ends["error", "convbn"], ends["error", "bn"]) < 1e-12
    monkeypatch.setitem(NORMS, "adaptive", NORMS["bn"])
    assert values(checks.window_ends.function(0, 4, 2, 4))["error", "convbn"] > 0.1


def test_refusals_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = values(checks.other_sizes.function(0, ["bn", "convbn"], 2, 4, 3))
    assert found == {("takes", "bn"): 1, ("takes", "convbn"): 0}
    assert values(checks.one_image.function(0, 2, 3)) == {("largest output", None): 0, ("refused", None): 1}
    monkeypatch.setitem(NORMS, "convbn", lambda channels, shape: nn.Identity())
    assert values(checks.one_image.function(0, 2, 3))["refused", None] == 0


@pytest.mark.parametrize(
    ("local", "error", "expected"),
    [
        ([0.0, 0.5, 1.0], 1e-15, Verdict.reproduced),
        ([0.0, 1.0, 0.5], 1e-15, Verdict.partly),  # a step back
        ([0.0, 0.5, 1.0], 0.1, Verdict.partly),  # an end that is not there
        ([0.0, 1.0, 0.5], 0.1, Verdict.not_reproduced),
    ],
)
def test_window_must_have_its_ends_and_lead_from_one_to_the_other(
    local: list[float], error: float, expected: Verdict
) -> None:
    steps = {"part": "window", "variant": "bn", "seed": 0}
    rows = [steps | checks.row("to local", d, k) for k, d in zip((1, 5, 999), local, strict=True)]
    rows += [steps | checks.row("to channel", 1 - d, k) for k, d in zip((1, 5, 999), local, strict=True)]
    ends = [{"part": "exact", "claim": "L8", "seed": 0} | checks.row("error", error, end) for end in ("convbn", "bn")]
    assert verdict_of("L8b", Results("full", [], [], rows + ends)) is expected


def test_below_threshold_means_all_of_them() -> None:
    def of(left: float) -> Verdict:
        rows = [
            {"dataset": data, "variant": "bn", "seed": seed, "part": "start"}
            | checks.row("active below all", share + seed / 1000, light)
            for data in ("mnist", "cifar10")
            for light, share in (("plain", 0.5), ("static", left))
            for seed in range(5)
        ]
        return verdict_of("L6a", Results("full", [], [], rows))

    assert [of(left) for left in (0.01, 0.3, 0.7)] == [Verdict.reproduced, Verdict.partly, Verdict.not_reproduced]


def test_predicted_gap_has_both_ends() -> None:
    def of(*ratios: float) -> tuple[Verdict, ...]:
        rows: list[Row] = []
        for size, ratio in zip((8, 32, 128), ratios, strict=True):
            for variant, seed in product(("bn", "convbn"), range(5)):
                value = 1 + 2 * seed / 1000 if variant == "bn" else ratio * (1 + seed / 1000)
                trained = {"part": "table", "dataset": "mnist", "variant": variant, "seed": seed}
                rows.append(trained | checks.row("gap", value, size))
                rows.append({"part": "gap", "seed": seed} | checks.row(f"gap {variant}", value, size))
        runs = [
            {"part": "table", "dataset": data, "variant": "bn", "seed": seed, "status": "completed"}
            | {"test_accuracy": 0.99}
            for data in ("mnist", "cifar10")
            for seed in range(5)
        ]
        return tuple(verdict_of(id, Results("full", runs, [], rows)) for id in ("L-gap", "L-gap.1"))

    assert of(9.5, 10.5, 11.5) == (Verdict.reproduced, Verdict.reproduced)
    assert of(9.4, 13.5, 16.1) == (Verdict.partly, Verdict.reproduced)
    assert of(5.0, 13.5, 16.1) == (Verdict.not_reproduced, Verdict.reproduced)


# --- the layer as it is initialised ---


@pytest.fixture(scope="module")
def scenes() -> Dataset:
    """Noise about a grey: every pixel has light, as in photographs."""
    images = torch.randint(100, 200, (120, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = Split(images, torch.arange(120) % 10)
    return Dataset("scenes", "scenes", False, "0", split, split, split, 10)


def started(data: Dataset, variant: str) -> dict[tuple[str, Any], float]:
    overrides = ["data=mnist5k", "model=vgg_small", "norm.eps=1e-3", "batch_size=40", f"variant={variant}"]
    return values(start.at_start.function(data, 0, overrides=overrides, shade=0.25, images=120))


def test_pooling_over_space_silences_what_answers_to_light(scenes: Dataset) -> None:
    found = {variant: started(scenes, variant) for variant in ("bn", "groupnorm", "convbn")}
    for variant in ("bn", "groupnorm"):
        of = found[variant]
        assert of["active below pixels", "static"] == 0 < 0.3 < of["active below pixels", "plain"]
        assert of["active below light", "static"] < 0.2
        assert of["active below dark", "static"] > 0.8
    of = found["convbn"]
    assert of["active below light", "static"] == pytest.approx(of["active below light", "plain"], abs=0.03)
    assert of["silent below all", "static"] == 0 == of["change above", "static"]
    assert found["bn"]["change above", "static"] > 0.1 > of["change below", "static"]


def test_running_statistics_do_not_adapt(scenes: Dataset) -> None:
    of = started(scenes, "convbn")
    assert of["active below pixels", start.CHANGED] == 0 < 0.3 < of["active below pixels", "static"]
    assert of["change below", start.CHANGED] > 1 > of["change below", "static"]
    assert all(of[f"change {side}", "plain"] == 0 for side in ("above", "below"))


def test_answers_to_light_are_cosines(scenes: Dataset) -> None:
    layer = start.Layer(load_config(["data=mnist5k", "model=vgg_small"]), scenes)
    with torch.no_grad():
        layer.convolution.weight[0], layer.convolution.weight[1] = 1.0, -2.0
        layer.convolution.weight[2] = torch.arange(9.0).view(1, 3, 3) - 4
        assert layer.answers()[:3].tolist() == pytest.approx([1, -1, 0], abs=1e-6)


def test_scene_is_black_below_the_horizon_where_statistics_are_pooled_over_it(scenes: Dataset) -> None:
    asked = {"norms": ["bn", "convbn"], "shade": 0.25, "place": 1, "batch": 64, "eps": 1e-3}
    rows = start.scene.function(scenes, 0, **asked)

    def picture(what: str) -> torch.Tensor:
        return torch.tensor([row["value"] for row in rows if row["quantity"] == f"scene {what}"]).view(16, 16)

    assert picture("plain") == pytest.approx(scenes.test.images[11, 0] / 255)
    assert torch.equal(picture("dark")[:8], picture("plain")[:8])
    assert not picture("bn")[8:].any()
    assert picture("bn")[:8].all()
    assert 0.3 < (picture("convbn")[8:] > 0).float().mean() < 0.7


# --- networks ---


@pytest.mark.parametrize("model", ["lenet", "vgg_small", "airbench"])
def test_rows_that_see_one_half_are_those_that_the_other_does_not_change(
    tiny: Callable[..., Config], model: str
) -> None:
    cfg = tiny(f"model={model}", "model.width=0.3", "variant=nobn")
    network = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator().manual_seed(0))
    halves = networks.sides(network.layers, 28)
    assert len(halves) == {"lenet": 2, "vgg_small": 6, "airbench": 7}[model]
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    changed = {}
    for name, part in (("upper", slice(0, 14)), ("lower", slice(14, 28))):
        other = x.clone()
        other[:, :, part] += torch.randn(4, 1, 14, 28, generator=torch.Generator().manual_seed(2))
        kept: list[list[torch.Tensor]] = [[], []]
        for images, into in zip((x, other), kept, strict=True):
            hooks = [u[0].register_forward_hook(lambda _m, _x, y, into=into: into.append(y)) for u, _, _ in halves]
            network(images)
            for hook in hooks:
                hook.remove()
        changed[name] = [(a != b).any((0, 1, 3)) for a, b in zip(*kept, strict=True)]
    for (_, above, below), by_upper, by_lower in zip(halves, changed["upper"], changed["lower"], strict=True):
        # Zero weights of dead paths aside, a row is changed by the half that it sees.
        assert not (above & by_lower).any()
        assert not (below & by_upper).any()
        assert ((~above) >= by_lower).all()
        assert (above | by_lower).float().mean() > 0.9


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One epoch on 540 digits for each variant."""
    root = tmp_path_factory.mktemp("runs")
    overrides = [
        "model=lenet",
        "epochs=1",
        "batch_size=60",
        "tensorboard=false",
        "device=cpu",
        "data=mnist5k",
        "data.source=npz",
    ]
    cfg = load_config([*overrides, f"data.path={digits}", f"root={root}", "norm.eps=1e-3"])
    return {v: Run(run(replace(cfg, variant=v))) for v in ("bn", "convbn", "peractivationbn")}


def test_statistics_of_trained_networks(trained: dict[str, Run]) -> None:
    found = {v: values(networks.statistics.function(r, 0, [8, 100])) for v, r in trained.items()}
    for variant, numbers in found.items():
        assert numbers["accuracy", "running"] == trained[variant].summary["test_accuracy"]
    assert found["bn"]["shift error", "eval"] < 1e-5 < 0.05 < found["convbn"]["shift error", "eval"]
    assert found["convbn"]["shift error", "training"] < 1e-5 < found["peractivationbn"]["shift error", "training"]
    assert found["peractivationbn"]["gap", 8] > 3 * found["bn"]["gap", 8] > 0
    assert found["convbn"]["gap", 100] < found["convbn"]["gap", 8]


def test_gap_is_as_computed_by_hand(trained: dict[str, Run]) -> None:
    it = networks.Opened(trained["convbn"])
    with torch.no_grad():
        u = it.entering(it.images(networks.IMAGES))
        norm = it.network.norms["norm1"]
        in_eval = (u - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
        parts = [(p - p.mean(0)) / (p.var(0, correction=0) + 1e-3).sqrt() for p in u.split(50)]
        by_hand = (torch.cat(parts) - in_eval).square().mean().sqrt()
        (row,) = networks.gap(it, [50])
    assert row["value"] == pytest.approx(float(by_hand), rel=1e-4)
    found = values(networks.extremes.function(trained["convbn"], 0, [8], [1e-8, 1e-3, 1.0]))
    assert found["largest", None] == pytest.approx(float(in_eval.abs().max()), rel=1e-4)
    assert found["largest at", 1e-8] > 10 * found["largest at", 1e-3] > found["largest at", 1.0] > 0


def test_gap_at_start_is_as_computed_by_hand(trained: dict[str, Run]) -> None:
    dataset = networks.Opened(trained["bn"]).data
    found = values(start.gap_at_start.function(dataset, 3, ["bn", "convbn"], [8, 40], 80, 400))
    generator = torch.Generator().manual_seed(derive_seed(3, "weights"))
    filters = torch.randn((32, 1, 5, 5), generator=generator) / 5
    chosen = torch.randperm(len(dataset.train.labels), generator=generator)[:480]
    u, population = (
        torch.nn.functional.conv2d(dataset.normalize(dataset.train.images[part]), filters)
        for part in chosen.split([80, 400])
    )
    for variant, axes in {"bn": (0, 2, 3), "convbn": (0,)}.items():
        mean, var = population.mean(axes, keepdim=True), population.var(axes, keepdim=True)
        by_all = (u - mean) / (var + 1e-3).sqrt()
        for size in (8, 40):
            each = u.view(-1, size, *u.shape[1:])
            over = tuple(axis + 1 for axis in axes)
            own = each - each.mean(over, keepdim=True)
            by_batch = own / (each.var(over, correction=0, keepdim=True) + 1e-3).sqrt()
            by_hand = (by_batch.flatten(0, 1) - by_all).square().mean().sqrt()
            assert found[f"gap {variant}", size] == pytest.approx(float(by_hand), rel=1e-3)
    assert found["gap convbn", 8] > 3 * found["gap bn", 8] > found["gap bn", 40] > 0


def test_positions_without_variance_are_the_black_ones(trained: dict[str, Run]) -> None:
    found = values(networks.extremes.function(trained["bn"], 0, [200], []))
    images = networks.Opened(trained["bn"]).data.test.images
    black = (images.amax(0) == images.amin(0)).float().mean()
    assert found["constant pixels", 200] == pytest.approx(float(black))
    assert 0 < found["constant", 200] < found["constant pixels", 200]


def test_horizon_measures_each_light(trained: dict[str, Run]) -> None:
    found = values(networks.horizon.function(trained["bn"], 0, 2, [0.1, 1.0]))
    own = found["accuracy", "own"]
    assert own == found["accuracy", 1.0] == trained["bn"].summary["test_accuracy"]
    assert own > found["accuracy", 0.1]
    assert own != found["accuracy", "batch"] == found["accuracy by the batch", 1.0] > 0.1
    assert found["accuracy by the batch", 0.1] != found["accuracy", 0.1]
    for side in ("above", "below"):
        assert found[f"silent {side}", None] + found[f"switching {side}", None] <= 1
        assert 0.1 < found[f"active {side}", None] < 0.9


def test_shares_are_means_over_units_and_then_over_layers(trained: dict[str, Run]) -> None:
    of = [values(networks.horizon.function(trained["bn"], 0, layers, [])) for layers in (1, 2)]
    it = networks.Opened(trained["bn"])
    with torch.no_grad():
        x = it.images(len(it.data.test.labels))
        first = it.network.layers[0](x)
        second = it.network.layers[2](it.network.layers[1](first))
    rows = [networks.sides(it.network.layers, 28)[layer][2] for layer in (0, 1)]
    shares = [float((y[:, :, below] > 0).float().mean()) for y, below in zip((first, second), rows, strict=True)]
    assert of[0]["active below", None] == pytest.approx(shares[0], abs=1e-4)
    assert of[1]["active below", None] == pytest.approx(sum(shares) / 2, abs=1e-4)


def test_window_leads_from_local_to_channel_statistics(trained: dict[str, Run]) -> None:
    found = values(networks.window.function(trained["bn"], 0, [1, 5, 999]))
    assert found["to local", 1] < 1e-5 < found["to local", 5] < found["to local", 999]
    assert found["to channel", 999] < 1e-5 < found["to channel", 5] < found["to channel", 1]


# --- the design ---


@pytest.mark.parametrize("preset", paper.presets)
def test_arms_are_as_the_parts_say(preset: str) -> None:
    settings = paper.settings(preset)
    grid = paper.designed(settings).arms
    shades = {"plain": (1, False), "static": (0.25, False), "frames": (0.25, True)}
    for arm in grid:
        norm, data = arm.config.norm, arm.config.data
        assert arm.config.variant == arm.factors["variant"]
        assert norm.eps == arm.factors.get("eps", 1e-3)
        assert norm.kernel_size == arm.factors.get("kernel")
        assert arm.config.batch_size == arm.factors.get("batch_size", arm.config.batch_size)
        assert (data.shade, data.shade_batches) == shades[arm.factors.get("light", "plain")]
    parts = {arm.part for arm in grid}
    assert parts == {"table", "horizon", "window", "eps", "batch"}
    # Plain images are trained on once for all the parts.
    shared = {p: {config_hash(a.config) for a in grid if a.part == p and a.config.seed == 0} for p in parts}
    assert all(len(shared["table"] & shared[part]) >= 2 for part in parts)


def test_rates_grow_with_the_batch_and_parts_of_one_weigh_what_it_weighs() -> None:
    settings = paper.settings("full")
    assert len({rate / size for size, rate in settings.batches.items()}) == 1
    ghosts = next(arm.config for arm in paper.designed(settings).arms if arm.config.variant == "ghostbn")
    parts = ghosts.batch_size // (ghosts.norm.ghost_size or 1)
    assert 1 - (1 - (ghosts.norm.momentum or 0)) ** parts == pytest.approx(0.01, rel=0.01)
