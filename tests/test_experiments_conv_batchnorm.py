"""conv-batchnorm: exact checks, measurements of networks, the grid, and the verdicts on made-up records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from bnrepro.config import config_hash, load_config
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.conv_batchnorm import EXPERIMENT, exact, networks
from bnrepro.experiments.conv_batchnorm.arms import CELLS, LIGHTS, arms, probes
from bnrepro.experiments.conv_batchnorm.family import across, combined
from bnrepro.experiments.conv_batchnorm.findings import findings
from bnrepro.experiments.conv_batchnorm.pictures import pictures
from bnrepro.experiments.reproduce import settings
from bnrepro.model import build, norm_of
from bnrepro.norm import NORMS
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import run

CLAIM = EXPERIMENT.claims[0]


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


# --- exact checks ---


def test_counts_are_those_of_the_source() -> None:
    found = values(exact.counts(0, CELLS, 6, 24, 24))
    assert [found["parameters", v] for v in CELLS] == [12, 12, 6912, 6912]
    assert [found["buffers", v] for v in CELLS] == [12, 6912, 6912, 12]


def test_factor_of_the_source_is_unbiased_for_no_n() -> None:
    found = values(exact.bessel(0, 1e-3, [1, 2, 100]))
    assert found["source", 1] == pytest.approx(-1000)
    assert found["source", 2] == pytest.approx(2 / 0.999)
    assert found["unbiased", 100] == pytest.approx(100 / 99) == found["ours", 100]
    assert ("ours", 1) not in found


class Detached(nn.Module):
    """Local gain whose statistics are outside the gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean(0).detach(), x.var(0, correction=0).detach()
        return (x - mean) / (var + exact.EPS).sqrt() * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def test_gradients_are_told_from_those_of_detached_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"batch": 3, "channels": 2, "height": 2, "width": 2}
    right = values(exact.gradients(0, **small))
    monkeypatch.setitem(NORMS, "convbn", lambda channels, shape, options: Detached(channels))
    rows = exact.gradients(0, **small)
    wrong = values(rows)
    assert right["error", "closed formula"] < 1e-12 < 1e-2 < wrong["error", "closed formula"]
    assert right["passes", "gradcheck"] == right["passes", "gradgradcheck"] == 1
    assert wrong["passes", "gradcheck"] == 0
    assert verdict("L3", records(exact_rows={"L3": rows})) is Verdict.not_reproduced


def test_statistics_are_told_from_those_per_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(values(exact.flattened(0, 4, 2, 3, 2)).values()) < 1e-12
    ends = values(exact.window_ends(0, 4, 2, 4))
    assert ends["train minus eval", None] == 0 < ends["depends on its batch", None]
    assert max(ends["error", "convbn"], ends["error", "bn"]) < 1e-12
    monkeypatch.setitem(NORMS, "adaptive", NORMS["bn"])
    assert values(exact.window_ends(0, 4, 2, 4))["error", "convbn"] > 0.1


def test_refusals_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert values(exact.other_sizes(0, ["bn", "convbn"], 2, 4, 3)) == {("takes", "bn"): 1, ("takes", "convbn"): 0}
    assert values(exact.one_image(0, 2, 3)) == {("largest output", None): 0, ("refused", None): 1}
    monkeypatch.setitem(NORMS, "convbn", lambda channels, shape: nn.Identity())
    assert values(exact.one_image(0, 2, 3))["refused", None] == 0


# --- networks ---


@pytest.mark.parametrize("model", ["lenet", "vgg_small"])
def test_rows_that_see_one_half_are_those_that_the_other_does_not_change(
    tiny: Callable[..., Config], model: str
) -> None:
    cfg = tiny(f"model={model}", "model.width=0.3", "variant=nobn")
    network = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator().manual_seed(0))
    halves = networks.sides(list(network.layers), 28)
    assert len(halves) == {"lenet": 2, "vgg_small": 6}[model]
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
        assert not (above & by_lower).any() and not (below & by_upper).any()
        assert ((~above) >= by_lower).all() and (above | by_lower).float().mean() > 0.9


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
    found = {v: values(networks.statistics(r, 0, [8, 100])) for v, r in trained.items()}
    for variant, numbers in found.items():
        assert numbers["accuracy", "running"] == trained[variant].summary["test_accuracy"]
    assert found["bn"]["shift error", "eval"] < 1e-5 < 0.05 < found["convbn"]["shift error", "eval"]
    assert found["convbn"]["shift error", "training"] < 1e-5 < found["peractivationbn"]["shift error", "training"]
    assert found["peractivationbn"]["gap", 8] > 3 * found["bn"]["gap", 8] > 0
    assert found["convbn"]["gap", 100] < found["convbn"]["gap", 8]


def test_gap_is_as_computed_by_hand(trained: dict[str, Run]) -> None:
    it = networks.Opened(trained["convbn"])
    with torch.no_grad():
        u = it.entering(it.normalized(it.some(it.data.test, networks.IMAGES)))
        norm = it.network.norms["norm1"]
        in_eval = (u - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
        parts = [(p - p.mean(0)) / (p.var(0, correction=0) + 1e-3).sqrt() for p in u.split(50)]
        by_hand = (torch.cat(parts) - in_eval).square().mean().sqrt()
        (row,) = networks.gap(it, [50])
    assert row["value"] == pytest.approx(float(by_hand), rel=1e-4)
    largest = values(networks.extremes(trained["convbn"], 0, [8]))["largest", None]
    assert largest == pytest.approx(float(in_eval.abs().max()), rel=1e-4)


def test_positions_without_variance_are_the_black_ones(trained: dict[str, Run]) -> None:
    found = values(networks.extremes(trained["bn"], 0, [200]))
    images = networks.Opened(trained["bn"]).data.test.images
    black = (images.amax(0) == images.amin(0)).float().mean()
    assert found["constant pixels", 200] == pytest.approx(float(black))
    assert 0 < found["constant", 200] < found["constant pixels", 200]


def test_horizon_measures_each_light(trained: dict[str, Run]) -> None:
    found = values(networks.horizon(trained["bn"], 0, [0.1, 1.0]))
    own = {key[0]: value for key, value in found.items() if key[1] == "own"}
    same = {key[0]: value for key, value in found.items() if key[1] == 1.0}
    dark = {key[0]: value for key, value in found.items() if key[1] == 0.1}
    assert own == same
    assert own["accuracy"] == trained["bn"].summary["test_accuracy"]
    for layer in "12":
        assert dark[f"active above {layer}"] == own[f"active above {layer}"]  # they do not see the dark
        assert dark[f"active below {layer}"] != own[f"active below {layer}"]
        assert own[f"silent below {layer}"] + own[f"switching below {layer}"] <= 1


def test_maps_have_a_value_for_each_location(trained: dict[str, Run]) -> None:
    rows = networks.maps(trained["convbn"], 0, whole=True)
    deviation = [row["value"] for row in rows if row["quantity"] == "deviation map"]
    assert [row["x"] for row in rows if row["quantity"] == "mean map"] == list(range(26 * 26))
    expected = networks.Opened(trained["convbn"]).network.norms["norm1"].running_var.sqrt().mean(0)
    assert deviation == pytest.approx(expected.flatten().tolist())
    found = values(networks.maps(trained["convbn"], 0, whole=False))
    assert found["deviation", "above"] == pytest.approx(float(expected[:12].mean()))  # row 11 sees rows 11 to 13
    assert found["deviation", "below"] == pytest.approx(float(expected[14:].mean()))
    assert len(found) == 2


def test_window_leads_from_local_to_channel_statistics(trained: dict[str, Run]) -> None:
    found = values(networks.window(trained["bn"], 0, [1, 5, 999], 60))
    assert found["to local", 1] < 1e-5 < found["to local", 5] < found["to local", 999]
    assert found["to channel", 999] < 1e-5 < found["to channel", 5] < found["to channel", 1]


# --- the grid ---


@pytest.mark.parametrize("preset", EXPERIMENT.presets)
def test_arms_are_as_the_parts_say(preset: str) -> None:
    chosen = settings(EXPERIMENT, preset)
    grid = arms(chosen)
    for arm in grid:
        norm, data = arm.config.norm, arm.config.data
        assert arm.config.variant == arm.factors["variant"]
        assert norm.eps == arm.factors.get("eps", 1e-3)
        assert norm.kernel_size == arm.factors.get("kernel")
        assert arm.config.batch_size == arm.factors.get("batch_size", arm.config.batch_size)
        light = arm.factors.get("light", "plain")
        assert (data.shade, data.shade_batches) == {"plain": (1, False), "static": (0.25, False)}.get(
            light, (0.25, True)
        )
    parts = {arm.part for arm in grid}
    assert parts == {"table", "horizon", "window", "eps", "batch"}
    assert {arm.factors["light"] for arm in grid if arm.part == "horizon"} == set(LIGHTS)
    assert {arm.config.seed for arm in grid} == set(range(chosen["seeds"]))
    # Plain images are trained on once for all the parts.
    shared = {p: {config_hash(a.config) for a in grid if a.part == p and a.config.seed == 0} for p in parts}
    assert all(shared["table"] & shared[part] for part in ("horizon", "window", "eps")) or preset == "full"
    assert all(probe.config is None or probe.config in [a.config for a in grid] for probe in probes(chosen)[:40])


# --- verdicts ---

Number = Callable[[dict[str, Any], int], float]


def wobble(seed: int) -> float:
    return (0.0, 0.0004, -0.0004, 0.0002, -0.0002)[seed]


def records(
    accuracy: Number = lambda factors, seed: 0.9 + wobble(seed),
    measured: Callable[[str, dict[str, Any], int], list[dict[str, Any]]] = lambda part, factors, seed: [],
    exact_rows: dict[str, list[dict[str, Any]]] | None = None,
    **changed: Any,
) -> Records:
    """Records of five seeds with the structure of the smoke preset, and numbers as the arguments say."""
    chosen = settings(EXPERIMENT, "smoke") | {"seeds": 5} | changed
    runs, rows = [], []
    for arm in arms(chosen):
        who = {"part": arm.part, **arm.factors, "seed": arm.config.seed}
        noise = {"status": "completed", "parameters": 100, "buffers": 10}
        runs.append(noise | who | {"test_accuracy": accuracy(arm.factors, arm.config.seed)})
        rows += [who | row for row in measured(arm.part, arm.factors, arm.config.seed)]
    for claim, found in (exact_rows or {}).items():
        rows += [{"part": "exact", "claim": claim, "seed": 0, **row} for row in found]
    return Records("smoke", chosen, runs, [], rows, {})


def finding(claim: str, found: Records) -> Finding:
    (one,) = (f for f in findings(found) if f.claim.id == claim)
    return one


def verdict(claim: str, found: Records) -> Verdict:
    return finding(claim, found).verdict


@pytest.mark.parametrize(
    ("gain", "expected"),
    [(0.02, Verdict.reproduced), (-0.02, Verdict.not_reproduced), (0.0, Verdict.not_reproduced)],
)
def test_poor_constraint_is_judged_by_accuracy(gain: float, expected: Verdict) -> None:
    def accuracy(factors: dict[str, Any], seed: int) -> float:
        return 0.9 + (gain + wobble(seed) if factors["variant"] == "convbn" else 0)

    assert verdict("L1b", records(accuracy)) is expected


def test_noise_decides_nothing() -> None:
    def accuracy(factors: dict[str, Any], seed: int) -> float:
        return 0.9 + (100 * wobble(seed) if factors["variant"] == "convbn" else 0)

    assert verdict("L1b", records(accuracy)) is Verdict.inconclusive
    assert verdict("L-batch", records(accuracy)) is Verdict.not_reproduced  # the same at both sizes: no difference


def shifts(eval_error: float, training_error: float) -> Callable[..., list[dict[str, Any]]]:
    def measured(part: str, factors: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        if part != "table" or factors["variant"] in ("nobn", "bn"):
            return []
        tied = 0.0 if factors["variant"] == "convbn" else 0.05
        return [
            exact.row("shift error", eval_error * (1 + wobble(seed)), "eval"),
            exact.row("shift error", training_error + tied, "training"),
        ]

    return measured


def test_equivariance_is_judged_in_eval_and_in_training() -> None:
    seen = records(measured=shifts(0.2, 1e-7))
    assert verdict("L4a", seen) is Verdict.reproduced
    assert verdict("L4b", seen) is Verdict.partly  # in training it keeps its promise
    assert verdict("L4b", records(measured=shifts(0.2, 0.1))) is Verdict.not_reproduced
    assert verdict("L4b", records(measured=shifts(1e-7, 1e-7))) is Verdict.reproduced
    assert verdict("L4a", records(measured=shifts(1e-7, 1e-7))) is Verdict.not_reproduced


def horizons(
    active: Callable[[str, str], float], accuracy: Callable[[str, str, Any], float], contrast: float = 0.3
) -> Callable[..., list[dict[str, Any]]]:
    """Measurements of the horizon: share of active ReLUs below it, accuracy, local deviation below over above."""

    def measured(part: str, factors: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        if part != "horizon":
            return []
        variant, light = factors["variant"], factors["light"]
        rows = [exact.row("active below 1", active(variant, light) + wobble(seed), "own")]
        rows += [exact.row("accuracy", accuracy(variant, light, x) + wobble(seed) / 10, x) for x in ("own", 0.25, 1.0)]
        if variant == "convbn":
            below = contrast if light == "static" else 1.0
            rows += [exact.row("deviation", below + wobble(seed), "below"), exact.row("deviation", 1.0, "above")]
        return rows

    return measured


def level(variant: str, light: str, x: Any = "own") -> float:
    return 0.5


def test_below_threshold_means_all_of_them() -> None:
    def with_left(left: float) -> Records:
        return records(measured=horizons(lambda v, light: left if (v, light) == ("bn", "static") else 0.5, level))

    for left, expected in ((0.01, Verdict.reproduced), (0.3, Verdict.partly), (0.7, Verdict.not_reproduced)):
        assert verdict("L6a", with_left(left)) is expected
        kept = Verdict.not_reproduced if left > 0.5 else Verdict.reproduced  # the local layer's share does not move
        assert verdict("L6b", with_left(left)) is kept
    assert verdict("L6a", with_left(0.5)) is Verdict.not_reproduced  # negligible


def test_light_is_judged_by_accuracy_and_by_what_darkness_costs() -> None:
    def with_gains(plain: float, dark: float) -> Records:
        gains = {"plain": plain, "static": dark, "frames": plain}
        return records(measured=horizons(level, lambda v, light, x: 0.5 + gains[light] * (v == "convbn")))

    for plain, dark, expected in (
        (0.0, 0.03, Verdict.reproduced),
        (-0.05, -0.01, Verdict.partly),
        (0.0, -0.03, Verdict.not_reproduced),
    ):
        found = with_gains(plain, dark)
        assert verdict("L6c", found) is expected
        assert verdict("L6d", found) is Verdict.not_reproduced


def test_another_light_at_test_is_judged_there() -> None:
    def accuracy(variant: str, light: str, x: Any) -> float:
        changed = {"adaptive": 0.1, "convbn": -0.1}.get(variant, 0.0)
        return 0.5 + (changed if (light, x) == ("plain", 0.25) else 0.0)

    found = records(measured=horizons(level, accuracy))
    assert verdict("L6e", found) is Verdict.not_reproduced
    assert verdict("L6f", found) is Verdict.reproduced
    assert "adaptive from 50.0% to 60.0%" in finding("L6f", found).found


def test_adaptation_shows_in_the_deviations() -> None:
    assert verdict("L7", records(measured=horizons(level, level))) is Verdict.reproduced
    assert "0.30 times" in finding("L7", records(measured=horizons(level, level))).found
    assert verdict("L7", records(measured=horizons(level, level, contrast=3.0))) is Verdict.not_reproduced


def test_window_must_have_its_ends_and_lead_from_one_to_the_other() -> None:
    def path(local: dict[int, float]) -> Callable[..., list[dict[str, Any]]]:
        def measured(part: str, factors: dict[str, Any], seed: int) -> list[dict[str, Any]]:
            if part != "window" or factors["variant"] != "bn":
                return []
            rows = [exact.row("to local", d, k) for k, d in local.items()]
            return rows + [exact.row("to channel", 1 - d, k) for k, d in local.items()]

        return measured

    def ends(error: float) -> dict[str, list[dict[str, Any]]]:
        return {"L8": [exact.row("error", error, end) for end in ("convbn", "bn")]}

    steady, back = path({1: 0.0, 5: 0.5, 999: 1.0}), path({1: 0.0, 5: 1.0, 999: 0.5})
    assert verdict("L8b", records(measured=steady, exact_rows=ends(1e-15))) is Verdict.reproduced
    assert verdict("L8b", records(measured=back, exact_rows=ends(1e-15))) is Verdict.partly
    assert verdict("L8b", records(measured=steady, exact_rows=ends(0.1))) is Verdict.not_reproduced
    assert verdict("L8b", records(exact_rows=ends(0.0))) is Verdict.inconclusive


def test_unbiased_means_n_over_n_minus_1() -> None:
    def with_factor(factor: Callable[[int], float]) -> Records:
        rows = exact.bessel(0, 1e-3, [1, 2, 8])
        rows = [row | {"value": factor(row["x"])} if row["quantity"] == "source" else row for row in rows]
        return records(exact_rows={"L9": rows})

    assert verdict("L9", with_factor(lambda n: n / (n - 1.001))) is Verdict.partly
    assert verdict("L9", with_factor(lambda n: n / (n - 1) if n > 1 else 1.0)) is Verdict.reproduced
    assert verdict("L9", with_factor(lambda n: 1.0)) is Verdict.not_reproduced


@pytest.mark.parametrize(("ratio", "expected"), [(9.0, Verdict.reproduced), (2.0, Verdict.not_reproduced)])
def test_gap_is_judged_by_its_ratio(ratio: float, expected: Verdict) -> None:
    def measured(part: str, factors: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        local = ratio if factors["variant"] == "convbn" else 1.0
        return [exact.row("gap", local * 0.1 + wobble(seed), size) for size in (8, 128)] if part == "table" else []

    assert verdict("L-gap", records(measured=measured)) is expected


def test_eps_and_batch_size_are_judged_against_channel_statistics() -> None:
    def measured(part: str, factors: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        large = factors["variant"] == "convbn" and factors.get("eps") == 1e-5
        return [exact.row("largest", (60 if large else 6) + wobble(seed))] if part == "eps" else []

    def accuracy(factors: dict[str, Any], seed: int) -> float:
        lost = 0.05 if factors["variant"] == "convbn" and factors.get("batch_size") == 20 else 0.0
        return 0.9 - lost + (wobble(seed) if factors["variant"] == "bn" else 0)

    found = records(accuracy, measured)
    assert verdict("L-eps", found) is verdict("L-batch", found) is Verdict.reproduced
    assert finding("L-eps", found).effect.mean == pytest.approx(1, abs=0.01)
    assert finding("L-batch", found).effect.mean == pytest.approx(5)


def test_a_family_is_corrected_where_its_members_differ() -> None:
    clear, weak, none = [0.5, 0.51, 0.49], [0.1, 0.5, 0.35], [0.2, -0.2, 0.01]
    assert across(CLAIM, {"a": clear, "b": weak}, "", "").verdict is Verdict.partly
    assert across(CLAIM, {"b": weak}, "", "").verdict is Verdict.inconclusive
    assert across(CLAIM, {"a": clear, "b": clear}, "", "").verdict is Verdict.reproduced
    just = [0.1, 0.2, 0.16]  # p = 0.035: enough alone, and too little for one of two
    assert across(CLAIM, {"a": just}, "", "").verdict is Verdict.reproduced
    assert across(CLAIM, {"a": just, "b": none}, "", "").verdict is Verdict.inconclusive
    assert across(CLAIM, {"a": just, "b": clear}, "", "").verdict is Verdict.reproduced  # both had to say so
    one = across(CLAIM, {"a": clear, "b": clear}, "points", "It is {effects}.")
    assert one.found == "It is a: 0.500 [0.475, 0.525]; b: 0.500 [0.475, 0.525] points (95% intervals, n=3)."
    assert combined([Verdict.reproduced, Verdict.not_reproduced], [Verdict.inconclusive] * 2) is Verdict.inconclusive


def test_analysis_of_what_little_there_is_neither_fails_nor_claims_anything() -> None:
    found = records()
    analysis = EXPERIMENT.analyse(replace(found, runs=[r | {"status": "diverged"} for r in found.runs]))
    assert [f.claim for f in analysis.findings] == list(EXPERIMENT.claims)
    assert Verdict.reproduced not in {f.verdict for f in analysis.findings}
    for table in analysis.tables:
        assert all(row.keys() == table.rows[0].keys() for row in table.rows), table.name


def test_figures_draw_from_records_alone() -> None:
    def with_maps(part: str, factors: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        rows = horizons(level, level)(part, factors, seed)
        if part == "horizon" and factors["variant"] == "convbn" and seed == 0:
            rows += [exact.row("width", 3)]
            rows += [exact.row(name, place, place) for name in ("deviation map", "mean map") for place in range(6)]
        return rows

    drawn = {picture.name: picture for picture in pictures(records(measured=with_maps))}
    assert list(drawn) == ["cells", "horizon", "maps", "window", "eps", "batch_size"]
    for picture in drawn.values():
        FigureCanvasAgg(picture.figure).draw()
        assert "n=5" in picture.caption or picture.name == "maps"
    upper = drawn["maps"].figure.axes[0].images[0].get_array()
    assert upper.tolist() == [[0, 1, 2], [3, 4, 5]]
