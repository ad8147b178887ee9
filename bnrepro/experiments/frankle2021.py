"""Frankle, Schwab & Morcos, Training BatchNorm and Only BatchNorm (ICLR 2021).

https://arxiv.org/abs/2003.00152

Differences from the paper
- Residual networks of 8 and 26 layers at half the width, 8 epochs of 45,000 images of CIFAR-10; the source trains
  networks of 14 to 866 layers for 160 epochs (preset paper: 14 and 56 layers, at full width).
- As in the authors' code (facebookresearch/open_lth, models/cifar_resnet.py): gamma is drawn between 0 and 1, He's
  initial weights, SGD at rate 0.1 with momentum 0.9 and decay 1e-4, batches of 128, cropped and flipped images. In
  the source all arms have one rate, as here in part depth. Where random weights are trained there is no decay: it
  would move those that are frozen. Shortcuts to more channels are padded with zeros (theirs are convolutions with a
  norm of their own).
- In F1 each arm has a rate of its own: pilots of ResNet-8 (seed 1000) had 14.4, 17.9, 18.2, 21.8, 23.5 and 23.2% with
  as many other weights, at rates of 0.01, 0.1, 0.3, 1, 3 and 10, and 27.4, 29.7 and 26.4% with gamma and beta, at
  0.1, 1 and 3. An earlier design gave both the source's rate, at which three of ten networks of other weights were no
  better than a guess.
- The rate falls linearly to zero; theirs falls twice by ten. Pilots (seed 1000, which is outside the design) with falls
  had 74 and 76% of the validation images right after 6 of 8 epochs, and were stopped.
- With everything trained, ResNet-26 has 23.5 times the decay where it shows how well it trains (part reference). With
  1e-4 the first four of its runs came to 77.4% in 8 epochs, below the gate of 80; pilots then came to 79.7% with 1e-3
  and 80.6% with 2.35e-3, at which the sum of rate times decay over the steps is the source's.
- With a rate that falls at the end every loss stands still there. Whether training is long enough is asked of the
  smallest network, in both arms that F1 compares: what twice the epochs gain. It is not asked of the deeper one.
- Earlier designs had 22 to 23.5 times the decay everywhere: a gamma that no gradient holds then shrinks as far as in
  the source. With it, gamma and beta of the pilot gained 3.9 points by twice the epochs, and 1.3 with 1e-4; and 35% of
  its gammas were near 0 after 8 epochs, but 3.3% with 1e-4 and 7.5% after twice as many. So F1.3 is asked whether its
  share has settled.
- The equal number of other parameters is two weights per channel, drawn at random, for its gamma and beta; the
  classifier head is not among them.
- A feature counts as disabled where the size of its gamma is below the preset's threshold; the source's was not looked
  up. Whether the performance rests on them, as the source says, is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

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
)  # fmt: skip
from bnrepro.claims.evidence import equal, greater, not_testable
from bnrepro.plots.panels import ends, legend, lines, looks, panels, ticks
from bnrepro.plots.style import GREY
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.training.freezing import freeze_parameters, norms
from bnrepro.training.networks import resnet_layers
from bnrepro.training.optimizer import lr_factor
from bnrepro.training.train import trainer_again

TRAINED = {"norm": "gamma and beta", "random": "as many other weights", "all": "everything"}
POINTS = "percentage points of test accuracy"
FAR = (
    "sufficiently deep ResNets reach 82% (CIFAR-10) and 32% (ImageNet, top-5) accuracy in this configuration, far "
    "higher than when training an equivalent number of randomly chosen parameters elsewhere in the network"
)
DISABLED = (
    "BatchNorm achieves this performance in part by naturally learning to disable around a third of the random features"
)
THIRD = 100 / 3  # percent of the gammas
MOMENTUM = 0.9
SOURCE_RATES = 391 * (80 * 0.1 + 40 * 0.01 + 40 * 0.001)  # sum of the rates over the source's steps, 391 an epoch
LOWEST, HIGHEST, BINS = -1.5, 2.5, 40  # of the histogram


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = ["data=cifar10", "model.width=0.5", "channels_last=true", "epochs=8"]  # of every run
    longer: list[str] = ["epochs=16"]
    depths: dict[str, list[int]] = {  # by what is trained: blocks per stage, n for ResNet-(6 n + 2)
        "norm": [1, 4],
        "random": [1, 4],
        "all": [4],
    }
    decay: float = 1e-4  # weight decay where no random weights are trained
    rate: float = 0.1  # the source's
    tuned: dict[str, float] = {"norm": 1.0, "random": 3.0}  # F1: the best of pilots by what is trained
    reference_decay: float = 2.35e-3  # of the network that shows how well the deepest one trains, everything trained
    threshold: float = 0.01  # F1.3: a gamma of a smaller size counts as disabled
    learned: float = 2.2  # F1: training loss of as many other weights; that of a guess is log 10 = 2.303
    trained: float = 80.0  # % test accuracy with everything trained; at full width and length 91 to 93
    gained: float = 2.5  # points of test accuracy that twice the length may gain: half of what counts as far
    far_points: float = 5.0  # F1: "far higher" is ours, ten standard errors of the test set
    margin_points: float = 1.0  # F1.2: two standard errors of the test set, as networks differ
    around_points: float = 10  # F1.3: so far from a third is around a third
    margin_share: float = 2.0  # F1.3: percentage points of the gammas that count as none

    @property
    def deepest(self) -> int:
        """Blocks per stage."""
        return max(self.depths["norm"])

    @property
    def shallowest(self) -> int:
        """Blocks per stage."""
        return min(self.depths["norm"])


paper = Paper(
    __name__, Settings, scale="reduced", scale_note="8 of 160 epochs, half the width, 8 and 26 layers of up to 866"
)


@paper.design
def runs(s: Settings) -> Design:
    """Networks by what is trained, how deep they are, and their rate: the source's, or one for what is trained; the
    smallest of them for twice as long, too.
    """
    design = Design(s.seeds)
    source = ["model=resnet20", "variant=bn", "norm.gamma=uniform", "optimizer=sgd", "schedule=linear"]
    source += ["batch_size=128"]

    def train(part: str, trained: str, depth: int, rate: float, more: Sequence[str] = ()) -> None:
        own = [f"optimizer.lr={rate:g}", f"optimizer.weight_decay={decay_of(s, part, trained):g}"]
        own += [f"optimizer.train_only={trained}", f"model.depth={depth}", *more]
        factors: Row = {"depth": depth, "trained": trained, "rate": rate}
        design.train(part, factors, [*source, *s.common, *own], (gammas_of, {"threshold": s.threshold}))

    for trained, depths in s.depths.items():
        for rate in rates(s, trained):
            for depth in depths:
                train("depth", trained, depth, rate)
    train("reference", "all", s.deepest, s.rate)
    for trained in s.tuned:
        for rate in rates(s, trained):
            train("longer", trained, s.shallowest, rate, s.longer)
    return design


def rates(s: Settings, trained: str) -> list[float]:
    """The source's, and that of F1 if it is another."""
    return list(dict.fromkeys([s.rate, s.tuned.get(trained, s.rate)]))


def decay_of(s: Settings, part: str, trained: str) -> float:
    if trained == "random":
        return 0.0
    return s.reference_decay if part == "reference" else s.decay


# --- measurement ---


@measure("frankle2021/gammas", version=3)
def gammas_of(run: Run, seed: int, threshold: float) -> list[Row]:
    """The gammas of a run.

    Rows: ``trained``, the number of parameters that are; ``disabled``, the percentage of gammas with a size below
    ``threshold``; ``alone``, the percentage that decay alone would bring there; ``density``, their histogram (x =
    middle of the bin).
    """
    it, optimizer = trainer_again(run.config), run.config.optimizer
    network, steps = it.network, range(it.steps)
    rates = (optimizer.lr * lr_factor(run.config.schedule, step, it.steps, it.steps_per_epoch) for step in steps)
    counted = freeze_parameters(network, optimizer.train_only, torch.Generator().manual_seed(0))
    network.load_state_dict(checkpoint.load(run.path / record.CHECKPOINT)["network"])
    values = _gammas(network)
    edges = torch.linspace(LOWEST, HIGHEST, BINS + 1)
    density = torch.histogram(values.clamp(LOWEST, HIGHEST), edges).hist / values.numel() / float(edges[1] - edges[0])
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return [
        row("trained", counted),
        row("disabled", 100 * float((values.abs() < threshold).float().mean())),
        row("alone", by_decay_alone(sum(rates), optimizer.weight_decay, threshold)),
        *(row("density", y, round(x, 6)) for x, y in zip(middles, density.tolist(), strict=True)),
    ]


def _gammas(network: nn.Module) -> Tensor:
    found = [gamma for module in norms(network) if isinstance(gamma := getattr(module, "weight", None), Tensor)]
    return torch.cat([gamma.detach().flatten().cpu() for gamma in found])


# --- claims ---


def named(values: Values, depths: list[int]) -> dict[str, Values]:
    """By the name of the network."""
    return {f"ResNet-{resnet_layers(depth)}": values.at(depth=depth) for depth in depths}


def trains(r: Results, s: Settings) -> Gate:
    """The recipe trains the deepest network, and gamma and beta would gain little by twice the length."""
    how = f"with everything trained, weight decay {s.reference_decay:g}"
    what = f"test accuracy of ResNet-{resnet_layers(s.deepest)} {how}, %"
    return reaches(r.accuracy(part="reference"), s.trained, what) & gains_little(r, s, "norm", s.rate)


def both_train(r: Results, s: Settings) -> Gate:
    """At its own rate, each arm has learned, and would gain little by twice the length."""
    gate = trains(r, s)
    for trained, rate in s.tuned.items():
        depths = s.depths[trained]
        losses = named(r.of_runs("train_loss", part="depth", depth=depths, trained=trained, rate=rate), depths)
        gate &= stays_below(losses, s.learned, f"training loss, {TRAINED[trained]}")
        gate &= gains_little(r, s, trained, rate)
    return gate


def gains_little(r: Results, s: Settings, trained: str, rate: float) -> Gate:
    """Test accuracy of the smallest network after twice the epochs, minus that after the usual ones."""
    of: Row = {"trained": trained, "depth": s.shallowest, "rate": rate}
    gained = r.accuracy(part="longer", **of) - r.accuracy(part="depth", **of)
    name = f"ResNet-{resnet_layers(s.shallowest)}"
    what = f"gain of {name} by twice the epochs, {TRAINED[trained]} trained at rate {rate:g}, points"
    return stays_below(gained, s.gained, what)


@paper.claim("F1", where="abstract", quote=FAR, reported="no number in the abstract", gate=both_train)
def gamma_and_beta_are_better_than_other_weights(r: Results, s: Settings) -> Evidence:
    """Training only gamma and beta is far better than training an equal number of randomly chosen parameters elsewhere
    in the network.
    """
    both = s.depths["random"]
    of = {
        trained: {rate: r.accuracy(part="depth", depth=both, trained=trained, rate=rate) for rate in rates(s, trained)}
        for trained in s.tuned
    }
    norm, random = (of[trained][rate] for trained, rate in s.tuned.items())
    estimand = "gamma and beta minus as many weights, each at its rate"
    evidence = greater(named(norm - random, both), estimand, POINTS, bar=s.far_points)
    usual = named(of["norm"][s.rate] - of["random"][s.rate], both)
    evidence = evidence.showing({f"both at rate {s.rate:g}, {name}": each for name, each in usual.items()}, "points")
    for (trained, rate), values in zip(s.tuned.items(), (norm, random), strict=True):
        shown = {f"{TRAINED[trained]}, rate {rate:g}, {name}": each for name, each in named(values, both).items()}
        evidence = evidence.showing(shown, "%")
    return evidence


@paper.claim("F1.2", where="abstract", quote=FAR, reported="82% on CIFAR-10 (ResNet-866)", gate=trains)
def deeper_is_better(r: Results, s: Settings) -> Evidence:
    """With only gamma and beta trained, deeper networks reach a higher accuracy."""
    found = r.accuracy(part="depth", depth=s.depths["norm"], trained="norm", rate=s.rate)
    deepest, shallowest = found.at(depth=s.deepest), found.at(depth=s.shallowest)
    estimand = "test accuracy with gamma and beta trained, deepest minus shallowest network"
    evidence = greater(deepest - shallowest, estimand, POINTS, margin=s.margin_points)
    return evidence.showing({f"accuracy of {name}": each for name, each in named(found, s.depths["norm"]).items()}, "%")


def settles(r: Results, s: Settings) -> Gate:
    """The recipe trains, and twice the length would not disable, or enable, more than the margin."""
    of: Row = {"trained": "norm", "depth": s.shallowest, "rate": s.rate}
    more = r.measured("disabled", part="longer", **of) - r.measured("disabled", part="depth", **of)
    name = f"ResNet-{resnet_layers(s.shallowest)}"
    what = f"change of the gammas near 0 by twice the epochs, {name}, percentage points"
    return trains(r, s) & stays_below({"up": more, "down": -more}, s.margin_share, what)


@paper.claim("F1.3", where="abstract", quote=DISABLED, reported="around a third", gate=settles)
def features_are_disabled(r: Results, s: Settings) -> Evidence:
    """Trained alone, gamma and beta learn to disable around a third of the random features: more than where everything
    is trained, and more than decay would alone.
    """
    share = r.measured("disabled", part="depth", trained="norm", rate=s.rate)
    deep = share.at(depth=s.deepest)
    estimand, unit = "gammas near 0, only norms trained", "percentage points of the gammas"
    at: Row = {"part": "depth", "depth": s.deepest, "rate": s.rate}
    others = {
        "minus that with everything trained": r.measured("disabled", trained="all", **at),
        "minus what decay disables alone": r.measured("alone", trained="norm", **at),
    }
    evidence = greater({name: deep - v for name, v in others.items()}, estimand, unit, margin=s.margin_share)
    evidence &= equal(deep - THIRD, estimand, unit, margin=s.around_points, condition="minus a third")
    alone = by_decay_alone(SOURCE_RATES, s.decay, s.threshold)
    remark = (
        f"In the source's 160 epochs decay alone would bring {alone:.0f}% of gammas there that no gradient holds, and "
        "in few epochs next to none: after those, a share far from a third may be for want of more."
    )
    return replace(evidence.showing(named(share, s.depths["norm"]), "% of the gammas"), remark=remark)


def by_decay_alone(rates: float, decay: float, threshold: float) -> float:
    """% of gammas drawn between 0 and 1 that decay brings below the threshold if no gradient holds them: a step of SGD
    with momentum m shrinks them by the rate times the decay over 1 - m.

    Args:
        rates: their sum over the steps.
        decay: weight decay.
        threshold: of the size of a gamma.
    """
    return 100 * min(1.0, threshold * math.exp(rates * decay / (1 - MOMENTUM)))


@paper.claim(
    "F1.4",
    where="abstract",
    quote=FAR,
    reported="82% and 32%",
    scale="paper",
    scale_note="networks of 866 and 200 layers",
)
def the_deepest_networks(r: Results, s: Settings) -> Evidence:
    """ResNet-866 reaches 82% on CIFAR-10, and ResNet-200 32% (top 5) on ImageNet, with only gamma and beta trained."""
    reason = "A network of 866 layers, and ImageNet, are beyond two cores; the depths that are not are in F1.2"
    return not_testable(reason)


# --- tables and figures ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Residual networks by what is trained, the rest as drawn. A gamma is near 0 below {s.threshold:g} in size. Part
    longer has twice the epochs, and part reference more decay. The loss of a guess is log 10 = 2.303.
    """
    rows = []
    for (part, depth, trained, rate), diverged in r.diverged().by("part", "depth", "trained", "rate").items():
        of = {"part": part, "depth": depth, "trained": trained, "rate": rate}
        row: Row = {
            "part": part,
            "network": f"ResNet-{resnet_layers(depth)}",
            "trained": TRAINED[trained],
            "learning rate": rate,
            "weight decay": decay_of(s, part, trained),
        }
        counted = r.measured("trained", **of)
        row["parameters trained"] = int(max(counted)) if counted else None
        row["training loss"] = r.of_runs("train_loss", **of).interval()
        row["test accuracy, %"] = r.test_accuracy(**of).interval()
        row["gammas near 0, %"] = r.measured("disabled", **of).interval()
        rows.append(row | {"diverged": int(sum(diverged))})
    return rows


@paper.figure
def depths(r: Results, s: Settings) -> Figure | None:
    """Test accuracy of residual networks (6 n + 2 layers of n blocks per stage) by what is trained, the rest being as
    it was drawn, and by the learning rate. Weight decay is {s.decay:g}, and 0 where other weights are trained; with
    {s.reference_decay:g} and everything trained the deepest network is more accurate (part reference of the table).
    """
    accuracy = r.test_accuracy(part="depth")
    if not accuracy:
        return None
    arms = {f"{TRAINED[trained]}, rate {rate:g}": of for (trained, rate), of in accuracy.by("trained", "rate").items()}
    figure, (axes,) = panels(height=2.7)
    lines(axes, Values.stacked("arm", arms), "depth", "arm", looks(list(arms)), bars=True)
    axes.set_xscale("log", base=2)
    ticks(axes, s.depths["norm"])
    axes.xaxis.set_major_formatter(lambda depth, _: f"{resnet_layers(depth)}")
    axes.set(xlabel="layers", ylabel="test accuracy, %", ylim=(0, 100))
    legend(figure, columns=1)
    return figure


@paper.figure
def gammas(r: Results, s: Settings) -> Figure | None:
    """Histogram of the gammas of the deepest network at the end of training, which were uniform between 0 and 1. The
    few outside of the axis are left out. Near 0, as F1.3 counts, is below {s.threshold:g} in size: less than a bin.
    """
    density = r.measured("density", part="depth", depth=s.deepest, rate=s.rate)
    if not density:
        return None
    figure, (axes,) = panels(height=2.6)
    look, highest = looks(TRAINED), 0.1
    for trained in ("norm", "all"):
        bins = density.at(trained=trained).intervals("x")
        found = {x: bins[x] for x in sorted(bins)[1:-1]}  # the outermost two hold all beyond, too
        mean, low, high = ends(list(found.values()))
        highest = max(highest, *mean)
        color, dashes = look[trained].color, look[trained].dashes
        axes.step(list(found), mean, where="mid", color=color, linestyle=dashes, label=f"trained: {TRAINED[trained]}")
        axes.fill_between(list(found), np.maximum(low, 0), high, step="mid", color=color, alpha=0.15, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="gamma", ylabel="density")
    axes.set_ylim(0, min(axes.get_ylim()[1], 3 * highest))  # of two seeds, the band is all there would be
    legend(figure, columns=1)
    return figure
