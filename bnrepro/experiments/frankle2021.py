"""Frankle, Schwab & Morcos, Training BatchNorm and Only BatchNorm (ICLR 2021).

https://arxiv.org/abs/2003.00152

Differences from the paper
- Residual networks of 8 to 26 layers at a fraction of the width, on digits for a few epochs; the source trains up to
  866 layers on CIFAR-10 for 160 epochs.
- As in the authors' code (facebookresearch/open_lth, models/cifar_resnet.py): gamma is drawn between 0 and 1, He's
  initial weights, SGD at rate 0.1 with momentum 0.9 that falls twice by ten, batches of 128. All arms have one rate.
  There is no weight decay (1e-4 there).
- The equal number of other parameters is two weights per channel, drawn at random, for its gamma and beta; the
  classifier head is not among them.
- A feature counts as disabled where the size of its gamma is below the preset's threshold, which is ours.
- The classifier head alone is trained too, as a baseline beside the claims.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, greater, not_testable
from bnrepro.plots.panels import ends, legend, lines, looks, panels, ticks
from bnrepro.plots.style import GREY
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.training.freezing import freeze_parameters, norms
from bnrepro.training.train import trainer_of

TRAINED = {"norm": "gamma and beta", "all": "everything", "random": "as many other weights", "last": "classifier head"}
POINTS = "percentage points of test accuracy"
NONE = "no number in the abstract"
THIRD = 100 / 3  # percent of the gammas
LOWEST, HIGHEST, BINS = -1.5, 2.5, 40  # of the histogram


class Settings(Preset):
    common: list[str] = ["data=mnist5k", "epochs=5"]  # of every run
    # Blocks per stage (n for ResNet-(6 n + 2)) and width, where the other is varied.
    network: dict[str, int | float] = {"depth": 1, "width": 0.5}
    depths: list[int] = [1, 2, 4]
    widths: list[float] = [0.125, 0.25, 0.5]
    threshold: float = 0.01  # F1.3: a gamma of a smaller size counts as disabled
    around_points: float = 10  # F1.3: so far from a third is around a third
    margin_points: float = 1.0  # F1, F1.2: differences of test accuracy below this are negligible
    margin_share: float = 2.0  # F1.3: percentage points of the gammas that count as none

    @property
    def shapes(self) -> list[tuple[str, float, float, float]]:
        """Of each network: what is varied, its size, blocks per stage, width."""
        by_depth = [("depth", depth, depth, self.network["width"]) for depth in self.depths]
        return [*by_depth, *(("width", width, self.network["depth"], width) for width in self.widths)]

    @property
    def networks(self) -> dict[str, Row]:
        """Part and size of each network by its name; the one that is in both parts, once."""
        found: dict[str, Row] = {}
        for part, size, depth, width in self.shapes:
            found.setdefault(f"ResNet-{layers(depth)}, width {width:g}", {"part": part, "size": size})
        return found


paper = Paper(__name__, Settings, scale="toy", scale_note="ResNets of 8 to 26 layers, 5 epochs on 4,000 digits")


def layers(depth: float) -> int:
    """He et al.'s count: two in each block of three stages, the first, and the last."""
    return int(6 * depth + 2)


@paper.design
def runs(s: Settings) -> Design:
    """Everything that may be trained, by depth at the preset's width, and by width at the preset's depth."""
    design = Design(s.seeds)
    source = ["model=resnet20", "variant=bn", "norm.gamma=uniform", "optimizer=sgd", "optimizer.lr=0.1"]
    source += ["schedule=step", "batch_size=128"]
    for part, size, depth, width in s.shapes:
        shaped = [*source, *s.common, f"model.depth={depth}", f"model.width={width}"]
        for trained in TRAINED:
            overrides = [*shaped, f"optimizer.train_only={trained}"]
            design.train(part, {"size": size, "trained": trained}, overrides, (gammas_of, {"threshold": s.threshold}))
    return design


# --- measurement ---


@measure("frankle2021/gammas")
def gammas_of(run: Run, seed: int, threshold: float) -> list[Row]:
    """The gammas of a run.

    Rows: ``trained``, the number of parameters that are; ``disabled`` and ``disabled_at_start``, the percentage of
    gammas with a size below ``threshold``; ``density``, their histogram at the end (x = middle of the bin).
    """
    network = trainer_of(run.config).network
    counted = freeze_parameters(network, run.config.optimizer.train_only, torch.Generator().manual_seed(0))
    start = _gammas(network)
    network.load_state_dict(checkpoint.load(run.path / record.CHECKPOINT)["network"])
    end = _gammas(network)
    rows: list[Row] = [row("trained", counted)]
    for name, values in (("disabled", end), ("disabled_at_start", start)):
        rows.append(row(name, 100 * float((values.abs() < threshold).float().mean())))
    edges = torch.linspace(LOWEST, HIGHEST, BINS + 1)
    density = torch.histogram(end.clamp(LOWEST, HIGHEST), edges).hist / end.numel() / float(edges[1] - edges[0])
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return rows + [row("density", y, round(x, 6)) for x, y in zip(middles, density.tolist(), strict=True)]


def _gammas(network: nn.Module) -> Tensor:
    found = [gamma for module in norms(network) if isinstance(gamma := getattr(module, "weight", None), Tensor)]
    return torch.cat([gamma.detach().flatten().cpu() for gamma in found])


# --- claims ---


def better_than(r: Results, s: Settings, other: str) -> dict[str, Values]:
    """Test accuracy with gamma and beta trained minus that with ``other``, by network."""
    accuracy = r.test_accuracy()
    difference = accuracy.at(trained="norm") - accuracy.at(trained=other)
    return {name: difference.at(**who) for name, who in s.networks.items()}


@paper.claim("F1", where="abstract", reported=NONE)
def gamma_and_beta_are_better_than_other_weights(r: Results, s: Settings) -> Evidence:
    """Training only gamma and beta is far better than training an equal number of randomly chosen parameters elsewhere
    in the network.
    """
    estimand = "gamma and beta minus as many weights"
    evidence = greater(better_than(r, s, "random"), estimand, POINTS, bar=s.margin_points)
    alone = {f"minus the classifier head alone, {name}": values for name, values in better_than(r, s, "last").items()}
    return evidence.showing(alone, "points")


@paper.claim("F1.2", where="abstract", reported="82% on CIFAR-10 (ResNet-866)")
def deeper_is_better(r: Results, s: Settings) -> Evidence:
    """Sufficiently deep networks reach a high accuracy with only gamma and beta trained: the deeper, the better."""
    accuracy = r.test_accuracy(part="depth", trained="norm")
    deepest, shallowest = (accuracy.at(size=depth) for depth in (max(s.depths), min(s.depths)))
    estimand = "test accuracy with gamma and beta trained, deepest minus shallowest network"
    evidence = greater(deepest - shallowest, estimand, POINTS, margin=s.margin_points)
    return evidence.showing({f"accuracy of ResNet-{layers(max(s.depths))}": deepest}, "%")


@paper.claim("F1.3", where="abstract", reported="around a third")
def features_are_disabled(r: Results, s: Settings) -> Evidence:
    """It does so in part by learning to disable a third of the random features."""
    deepest = {"part": "depth", "size": max(s.depths)}
    disabled, before = r.measured("disabled", **deepest), r.measured("disabled_at_start", trained="norm", **deepest)
    share = disabled.at(trained="norm")
    estimand, unit = "gammas near 0, only norms trained", "percentage points of the gammas"
    more, third = "minus that with everything trained", "minus a third"
    evidence = greater(share - disabled.at(trained="all"), estimand, unit, margin=s.margin_share, condition=more)
    evidence &= equal(share - THIRD, estimand, unit, margin=s.around_points, condition=third)
    return evidence.showing({"the share": share, "before training": before}, "%")


@paper.claim(
    "F1.4", where="abstract", reported="82% and 32%", scale="paper", scale_note="networks of 866 and 200 layers"
)
def the_deepest_networks(r: Results, s: Settings) -> Evidence:
    """ResNet-866 reaches 82% on CIFAR-10, and ResNet-200 32% (top 5) on ImageNet, with only gamma and beta trained."""
    reason = "A network of 866 layers, and ImageNet, are beyond two cores; the depths that are not are in F1.2"
    return not_testable(reason)


# --- tables and figures ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Residual networks by what is trained, the rest as drawn. A gamma is near 0 below {s.threshold:g} in size."""
    columns = {"test accuracy, %": r.test_accuracy(), "gammas near 0, %": r.measured("disabled")}
    rows = []
    for name, network in s.networks.items():
        for trained, diverged in r.diverged(**network).by("trained").items():
            count = r.measured("trained", **network, trained=trained)
            found = {column: values.at(**network, trained=trained).interval() for column, values in columns.items()}
            row: Row = {"network": name, "trained": TRAINED[trained], "parameters trained": int(max(count, default=0))}
            rows.append({**row, **found, "diverged": int(sum(diverged))})
    return rows


@paper.figure
def sizes(r: Results, s: Settings) -> Figure | None:
    """Test accuracy of residual networks by what is trained, the rest being as it was drawn: by depth (6 n + 2 layers
    of n blocks per stage) at {s.network[width]:g} of the usual width, and by width at n = {s.network[depth]}.
    """
    accuracy = r.test_accuracy()
    if not accuracy:
        return None
    figure, (left, right) = panels(2, height=2.7, sharey=True)
    for axes, part, varied in ((left, "depth", s.depths), (right, "width", s.widths)):
        lines(axes, accuracy.at(part=part), "size", "trained", looks(TRAINED), bars=True)
        axes.set_xscale("log", base=2)
        ticks(axes, varied)
    left.xaxis.set_major_formatter(lambda depth, _: f"{layers(depth)}")
    left.set(xlabel="layers", ylabel="test accuracy, %")
    right.set(xlabel="width, as a share of the usual")
    legend(figure, of=left)
    return figure


@paper.figure
def gammas(r: Results, s: Settings) -> Figure | None:
    """Histogram of the gammas of the deepest network at the end of training, which were uniform between 0 and 1."""
    density = r.measured("density", part="depth", size=max(s.depths))
    if not density:
        return None
    figure, (axes,) = panels(height=2.6)
    look, highest = looks(TRAINED), 0.1
    for trained in ("norm", "all"):
        found = density.at(trained=trained).intervals("x")
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
