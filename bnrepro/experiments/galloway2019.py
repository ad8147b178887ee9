"""Galloway et al., Batch Normalization is a Cause of Adversarial Vulnerability (2019).

https://arxiv.org/abs/1905.02161

What the public says of it: D. Stutz (https://davidstutz.de/batch-normalization-is-a-cause-of-adversarial-vulnerability-
galloway-et-al/) finds that "On noise, all networks perform worse with batch normalization, even though batch
normalization increases clean accuracy slightly", and of the attacks that they "only include 20 iterations and do not
manage to reduce the adversarial accuracy to near zero, as is commonly reported. Thus, it is questionable whether batch
normalization makes indeed a significant difference". Benz et al. (https://arxiv.org/abs/2010.03316, abstract)
and Awais et al. (https://arxiv.org/abs/2006.11007, abstract) observe the same as the source; the latter say that it
disappears with the statistics of the batch at test, which is not tested here.

Differences from the paper
- A quarter-width airbench, 5 epochs of CIFAR-10; the source has five datasets, and VGG and residual networks.
- BN and none each have the rate of a sweep at which they do best on validation data, which must lie inside the sweep;
  weight decay is the same for both. Networks, recipe and most runs are those of placement.
- Noise is Gaussian with a standard deviation of 0.1 of the pixels' range, the highest severity of CIFAR-10-C, with
  pixels cut off to their range; others are shown beside.
- The attack answers Stutz: 40 steps on the margin of the logits, from 3 random places, and an image counts as right
  only if no step of any of them fools the network. The source's attacks are on the cross-entropy. Its size is 1 and 2
  of 255 levels, where networks are not yet at 0; that it brings all networks near 0 at 8 levels is a gate.
- 500 test images are attacked; noise is on all of them.
- That weight decay in place of BN nullifies the relation to the input's dimension is not tested.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bnrepro.claims import (
    Design,
    Evidence,
    Gate,
    Paper,
    Preset,
    Results,
    Row,
    Values,
    measure,
    reaches,
    row,
    stays_below,
)
from bnrepro.claims.evidence import less
from bnrepro.config.schema import in_channels_last
from bnrepro.data.corruptions import corrupt_by
from bnrepro.data.dataset import Split, derive_seed
from bnrepro.plots.panels import legend, lines, looks, panels, ticks
from bnrepro.runs.record import Run
from bnrepro.training import evaluation
from bnrepro.training.attacks import pgd
from bnrepro.training.trainer import loss_and_accuracy

POINTS = "points of test accuracy"
NORMS = {"bn": "BN", "nobn": "no BN"}
REDUCES = (
    "However, it also reduces robustness to small adversarial input perturbations and noise by double-digit "
    "percentages, as we show on five standard datasets."
)
TOGETHER = 100  # images that are attacked at a time


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every run; placement's, so that the runs are those
        *("data=cifar10", "data.crop=2", "model=airbench", "model.width=0.25", "channels_last=true", "batch_size=256"),
        *("optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=5e-4", "eval_every=1000000"),
        *("schedule=linear", "schedule.warmup_epochs=1", "epochs=5"),
    ]
    rates: dict[str, list[float]] = {"bn": [0.1, 0.4, 1.6], "nobn": [0.0125, 0.05, 0.2]}  # the sweep of each
    deviations: list[float] = [0.02, 0.05, 0.1, 0.2]  # of the noise, in shares of the pixels' range
    noise: float = 0.1  # that of G1
    sizes: list[float] = [1, 2, 4, 8]  # of the attack, in levels of 255
    attacks: list[float] = [1, 2]  # those of G2
    images: int = 10_000  # test images
    attacked: int = 500  # test images
    steps: int = 40
    restarts: int = 3
    trained: dict[str, float] = {"bn": 75.0, "nobn": 60.0}  # % test accuracy
    strong: float = 5.0  # % accuracy under the largest attack, at most: a weaker attack shows nothing
    margin_points: float = 10.0  # the source's "double-digit"

    def middle(self, norm: str) -> float:
        """The sweep's middle, at which attacks are made."""
        return self.rates[norm][len(self.rates[norm]) // 2]


paper = Paper(__name__, Settings, scale="reduced", scale_note="a quarter-width airbench, 5 epochs of CIFAR-10")


@paper.design
def runs(s: Settings) -> Design:
    """BN and none at the rates of a sweep, under noise; at its middle, under attack."""
    design = Design(s.seeds)
    noisy = {"deviations": s.deviations, "images": s.images}
    attacks = s.model_dump(include={"sizes", "steps", "restarts"}) | {"images": s.attacked}
    for norm, rates in s.rates.items():
        for rate in rates:
            more = [(under_attack, attacks)] if rate == s.middle(norm) else []
            overrides = [*s.common, f"variant={norm}", f"optimizer.lr={rate}"]
            design.train("main", {"norm": norm, "rate": rate}, overrides, (under_noise, noisy), *more)
    return design


# --- measurements ---


@measure("galloway2019/under_noise")
def under_noise(run: Run, seed: int, deviations: list[float], images: int) -> list[Row]:
    """Test accuracy (%) under Gaussian noise (x: its standard deviation, 0 without)."""
    cfg, data, network = evaluation.restore(run)
    split = evaluation.shuffled(data.test, images)
    rows = [row("noise", 100 * loss_and_accuracy(network, data, split, cfg)[1], 0.0)]
    for deviation in deviations:
        generator = torch.Generator().manual_seed(derive_seed(seed, f"noise {deviation:g}"))
        noisy = Split(corrupt_by(split.images, "noise", deviation, generator), split.labels)
        rows.append(row("noise", 100 * loss_and_accuracy(network, data, noisy, cfg)[1], deviation))
    return rows


@measure("galloway2019/under_attack")
def under_attack(run: Run, seed: int, sizes: list[float], images: int, steps: int, restarts: int) -> list[Row]:
    """Test accuracy (%) under `pgd` (x: its size in levels of 255, 0 without).

    ``attack``: with ``steps`` and ``restarts``; ``weak``: with a quarter of the steps from one place.
    """
    cfg, data, network = evaluation.restore(run)
    split, channels_last = evaluation.shuffled(data.test, images), in_channels_last(cfg)
    network.eval().requires_grad_(False)

    def logits_of(x: Tensor) -> Tensor:
        logits: Tensor = network(data.normalize(x, channels_last))
        return logits

    def accuracy(size: float, steps: int, restarts: int) -> float:
        fooled = [
            pgd(logits_of, x, y, size, steps=steps, restarts=restarts, seed=derive_seed(seed, f"attack {place}"))[1]
            for place, (x, y) in enumerate(zip(split.images.split(TOGETHER), split.labels.split(TOGETHER), strict=True))
        ]
        return 100 - 100 * float(torch.cat(fooled).double().mean())

    rows = [row("attack", accuracy(0.0, 1, 0), 0.0)]
    for size in sizes:
        rows.append(row("attack", accuracy(size, steps, restarts), float(size)))
        rows.append(row("weak", accuracy(size, max(1, steps // 4), 1), float(size)))
    return rows


# --- claims ---


def under(r: Results, s: Settings, quantity: str, x: float | list[float]) -> Values:
    """Accuracy by norm, each at the middle of its sweep."""
    found = r.measured(quantity, part="main")
    each = {norm: found.at(norm=norm, rate=s.middle(norm), x=x) for norm in s.rates}
    return Values.stacked("norm", each)


def cost(r: Results, s: Settings, quantity: str, x: float | list[float]) -> Values:
    """Accuracy with BN minus that without."""
    found = under(r, s, quantity, x)
    return found.at(norm="bn") - found.at(norm="nobn")


def lost(r: Results, s: Settings, quantity: str, x: float) -> dict[str, Values]:
    """By norm, the accuracy on clean images minus that under noise or an attack."""
    without, found = under(r, s, quantity, 0.0), under(r, s, quantity, x)
    return {name: without.at(norm=norm) - found.at(norm=norm) for norm, name in NORMS.items()}


def best_rates(r: Results, s: Settings) -> dict[str, tuple[Any, list[float]]]:
    """By norm, the rate with the best mean validation accuracy (that of chance where a run diverged), and its sweep."""
    found = {norm: r.accuracy("val_accuracy", part="main", norm=norm).without("variant") for norm in NORMS}
    return {name: (found[norm].best("rate"), s.rates[norm]) for norm, name in NORMS.items()}


def trained(r: Results, s: Settings) -> Gate:
    """Both, without noise."""
    clean = under(r, s, "noise", 0.0)
    bn, none = (
        reaches(clean.at(norm=norm), s.trained[norm], f"test accuracy with {NORMS[norm]}, %") for norm in ("bn", "nobn")
    )
    return bn & none


def attacked(r: Results, s: Settings) -> Gate:
    """And the attack is strong: where it is large, hardly anything is left of either."""
    largest = under(r, s, "attack", float(max(s.sizes)))
    return trained(r, s) & stays_below(largest, s.strong, f"accuracy under an attack of {max(s.sizes):g} levels, %")


@paper.claim("G1", where="abstract", quote=REDUCES, reported="double-digit percentages", gate=trained)
def bn_costs_robustness_to_noise(r: Results, s: Settings) -> Evidence:
    """Batch normalization reduces the accuracy under Gaussian noise with a standard deviation of 0.1 of the pixels'
    range.
    """
    estimand = f"under noise of {s.noise:g}, BN minus none, each at its best rate"
    evidence = less(cost(r, s, "noise", s.noise), estimand, POINTS, margin=-s.margin_points)
    others = [0.0, *(each for each in s.deviations if each != s.noise)]
    evidence = evidence.showing({f"noise of {each:g}": cost(r, s, "noise", each) for each in others})
    own = lost(r, s, "noise", s.noise)
    evidence = evidence.showing({f"lost to noise of {s.noise:g}, {name}": values for name, values in own.items()})
    return replace(evidence.unless_at_edge(best_rates(r, s)), remark=shortfall(s, "amounts of noise"))


def shortfall(s: Settings, others: str) -> str:
    """A remark on what the bar of 0 leaves out."""
    return (
        f"A loss of {s.margin_points:g} points must not be excluded, and need not be shown. The difference includes "
        f"that on clean images; other {others} are not judged."
    )


@paper.claim("G2", where="abstract", quote=REDUCES, reported="double-digit percentages", gate=attacked)
def bn_costs_robustness_to_attacks(r: Results, s: Settings) -> Evidence:
    """Batch normalization reduces the accuracy under small adversarial perturbations, of 1 and of 2 of 255 levels."""
    sizes = {f"{size:g} of 255": float(size) for size in s.sizes}
    costs = {name: cost(r, s, "attack", size) for name, size in sizes.items()}
    deciding = {name: costs[name] for name, size in sizes.items() if size in s.attacks}
    estimand = "under attack, BN minus none, each at its best rate"
    evidence = less(deciding, estimand, POINTS, margin=-s.margin_points)
    evidence = evidence.showing({name: values for name, values in costs.items() if name not in deciding})
    weak = {f"{name}, weak attack": cost(r, s, "weak", size) for name, size in sizes.items() if name in deciding}
    own = {
        f"lost to an attack of {name}, {norm}": values
        for name, size in sizes.items()
        if name in deciding
        for norm, values in lost(r, s, "attack", size).items()
    }
    evidence = evidence.showing(weak).showing(own).unless_at_edge(best_rates(r, s))
    return replace(evidence, remark=shortfall(s, "sizes of the attack"))


# --- tables and figures ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Accuracy in percent by norm and learning rate: validation, test, and test under noise of {s.noise:g} and under
    attacks of {s.attacks} of 255 levels, which are made at the middle rate alone.
    """
    validation, noise = r.accuracy("val_accuracy", part="main").without("variant"), r.measured("noise", part="main")
    rows = []
    for norm, rates in s.rates.items():
        for rate in rates:
            of: dict[str, Any] = {"norm": norm, "rate": rate}
            shown: Row = {"norm": NORMS[norm], "rate": rate, "validation": validation.at(**of).interval()}
            shown |= {"test": noise.at(**of, x=0.0).interval(), "noise": noise.at(**of, x=s.noise).interval()}
            for size in s.attacks:
                attack = r.measured("attack", part="main", x=float(size)).at(**of) if rate == s.middle(norm) else None
                shown[f"attack of {size:g}"] = attack.interval() if attack else None
            rows.append(shown)
    return rows


@paper.figure
def robustness(r: Results, s: Settings) -> Figure | None:
    """Test accuracy with and without BN, each at the middle rate of its sweep. Left: under Gaussian noise. Right: under
    attacks of {s.steps} steps from {s.restarts} random places. Bands are the intervals.
    """
    noise = under(r, s, "noise", [0.0, *s.deviations])
    if not noise:
        return None
    figure, (left, right) = panels(2, height=2.7, sharey=True)
    look = looks(NORMS)
    lines(left, noise, "x", "norm", look)
    lines(right, under(r, s, "attack", [0.0, *map(float, s.sizes)]), "x", "norm", look)
    ticks(left, [0, *s.deviations])
    ticks(right, [0, *s.sizes])
    left.set(xlabel="standard deviation of the noise (pixels from 0 to 1)", ylabel="test accuracy, %", ylim=(0, 100))
    right.set(xlabel="largest change of a pixel (of 255 levels)")
    legend(figure, of=left)
    return figure
