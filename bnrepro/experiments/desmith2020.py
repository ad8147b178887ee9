"""De & Smith, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks (NeurIPS 2020).

https://arxiv.org/abs/2002.10444

Differences from the paper
- Its abstract was read (proceedings.neurips.cc), and a summary that describes SkipInit, a scalar that starts at 0 or
  below one over the root of the number of blocks (dl.reviews/2020/03/07/bn-shallow-paths). A later paper on
  initialisation says that SkipInit "can usually not achieve equal performance" (jiubeiyun.com.cn/doc/34262.html); no
  public repetition of the training was found.
- He et al.'s residual networks for CIFAR, in which a ReLU follows each sum; the source's theory is of networks whose
  shortcuts have none. Three stages of n blocks each, whose shortcuts pad with zero channels.
- The depth is n, and the scale that of the last block: the root mean square of what the shortcut brings to its sum,
  over that of the residual branch. At full width on CIFAR-10, with He's initial weights, in one batch.
- D3 and D4 train networks of 56 layers at a quarter of the width on digits for 8 epochs, by SGD at the best rate on
  validation data of each arm's sweep. Without BN and SkipInit the sweep has three rates, two decades apart. Without BN
  the networks keep their biases; SkipInit's scalar is trained at the rate of the weights.
- What the source says of larger rates, which help at large batches alone, is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import equal, greater, not_lower
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.plots.panels import legend, lines, looks, panels, ticks
from bnrepro.training.model import Network, build, norm_of
from bnrepro.training.networks import ResidualBlock, add_skip_init, resnet_layers
from bnrepro.training.trainer import Trainer

ROOT = (
    "at initialization, batch normalization downscales the residual branch relative to the skip connection, by a "
    "normalizing factor on the order of the square root of the network depth"
)
IDENTITY = (
    "This ensures that, early in training, the function computed by normalized residual blocks in deep networks is "
    "close to the identity function (on average)"
)
SCHEME = (
    "We use this insight to develop a simple initialization scheme that can train deep residual networks without "
    "normalization"
)
WHERE = "abstract"
UNREAD = "no number in the abstract"
POINTS = "percentage points of test accuracy"
BN, PLAIN, SKIP = "bn", "nobn", "skipinit"
ARMS = {BN: "BN", PLAIN: "no BN", SKIP: "no BN, SkipInit"}
AT_START = "ResNets of 20 to 110 layers on CIFAR-10, as initialised"
CHANCE = 10.0  # %: a run that diverged


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    blocks: list[int] = [3, 5, 9, 18]  # D1, D2: n for ResNet-(6 n + 2)
    start: list[str] = ["data=cifar10", "model=resnet20"]
    images: int = 100  # D1, D2
    trained_blocks: int = 9  # D3, D4
    common: list[str] = [
        *("data=mnist", "data.val_fraction=0.02", "data.train_images=4500"),
        *("model=resnet20", "model.width=0.25", "channels_last=true", "optimizer=sgd"),
        *("schedule=cosine", "schedule.warmup_epochs=1", "batch_size=64", "epochs=8"),
    ]
    rates: list[float] = [0.01, 0.03, 0.1, 0.3]  # D3, D4: with BN, and with SkipInit
    plain_rates: list[float] = [1e-7, 1e-5, 1e-3]  # without either, whose gradients are larger by decades
    trained: float = 85.0  # D3, D4: % test accuracy with BN at its best rate; as low as what is not piloted asks for
    margin_exponent: float = 0.1  # D1, D2: a fifth of the root's exponent
    margin_ratio: float = 2.0  # D2: BN's scale over that without, at the deepest
    far_points: float = 20.0  # D3: a network that can be trained, over one that cannot
    margin_points: float = 0.5  # D4: 2.5 standard errors of 10,000 test images

    @property
    def deepest(self) -> int:
        """Blocks per stage."""
        return max(self.blocks)

    @property
    def name(self) -> str:
        """Of the network that is trained."""
        return f"ResNet-{resnet_layers(self.trained_blocks)}"


paper = Paper(
    __name__, Settings, scale="reduced", scale_note="ResNet-56 at a quarter of the width on 4,500 digits, 8 epochs"
)


@paper.design
def runs(s: Settings) -> Design:
    """Scales along networks as they are initialised, and one network that is trained."""
    design = Design(s.seeds)
    for blocks, norm in product(s.blocks, (BN, PLAIN)):
        overrides = [*s.start, f"model.depth={blocks}", f"variant={norm}"]
        design.measure(
            "start", {"norm": norm, "blocks": blocks}, at_start, s.start, overrides=overrides, images=s.images
        )
    for arm in ARMS:
        for rate in s.plain_rates if arm == PLAIN else s.rates:
            overrides = [*s.common, f"model.depth={s.trained_blocks}", f"optimizer.lr={rate}"]
            overrides.append(f"variant={BN if arm == BN else PLAIN}")
            asked: Row = {"overrides": overrides, "skip_init": arm == SKIP}
            design.measure("trained", {"arm": arm, "rate": rate}, trained, s.common, **asked)
    return design


# --- measurements ---


def network_of(data: Dataset, cfg: Config) -> Network:
    """As a run of ``cfg`` begins with it."""
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    return build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)


@torch.no_grad()
def sums(network: nn.Module, x: Tensor) -> list[tuple[float, float]]:
    """Of each residual block in order: mean squares of what the shortcut and what the branch bring to the sum."""
    found: list[tuple[float, float]] = []

    def look(block: ResidualBlock) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], branch: Tensor) -> None:
            entered, size = shortcuts.pop(), branch.double().square().mean()
            subsampled = entered[:, :, :: block.stride, :: block.stride].double()
            share = subsampled.shape[1] / branch.shape[1]  # the other channels are padded with zeros
            found.append((share * float(subsampled.square().mean()), float(size)))

        return keep

    shortcuts: list[Tensor] = []
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    handles = [block.register_forward_pre_hook(lambda _, inputs: shortcuts.append(inputs[0])) for block in blocks]
    handles += [block.before_sum.register_forward_hook(look(block)) for block in blocks]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


@measure("desmith2020/start")
def at_start(data: Dataset, seed: int, overrides: list[str], images: int) -> list[Row]:
    """``scale``: root mean square of the shortcut over that of the residual branch, for the first training images in
    training mode (x: block from 1).
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    network = network_of(data, cfg).train()
    pairs = sums(network, data.normalize(data.train.images[:images]))
    return [row("scale", math.sqrt(skip / branch), block) for block, (skip, branch) in enumerate(pairs, 1)]


@measure("desmith2020/trained")
def trained(data: Dataset, seed: int, overrides: list[str], skip_init: bool) -> list[Row]:
    """Train as a run of ``overrides`` would, with SkipInit or without.

    Rows, in %: ``val_accuracy``, ``test_accuracy``, and ``train_accuracy`` in eval mode; ``alpha``, the mean size of
    SkipInit's scalars at the end. Or ``diverged`` (the step), with accuracies of chance.
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    network = network_of(data, cfg)
    scales = add_skip_init(network) if skip_init else []
    trainer = Trainer(cfg, data, network)
    splits = {"val_accuracy": data.val, "test_accuracy": data.test, "train_accuracy": data.train}
    for batch in trainer.batches():
        if not trainer.update(batch.x, batch.y, batch.lr)[0].isfinite():
            return [row("diverged", batch.step), *(row(name, CHANCE) for name in splits)]
    rows = [row(name, 100 * trainer.measure(split)[1]) for name, split in splits.items()]
    sizes = [float(scale.alpha.detach().abs()) for scale in scales]
    return [*rows, row("alpha", sum(sizes) / len(sizes))] if sizes else rows


# --- claims ---


def scale(r: Results, s: Settings, norm: str) -> Values:
    """Of the last block, by the number of blocks."""
    of_each = {blocks: r.measured("scale", part="start", norm=norm, blocks=blocks, x=3 * blocks) for blocks in s.blocks}
    return Values.stacked("blocks", of_each)


def exponent(values: Values) -> Values:
    """The slope of the logarithm against that of the number of blocks."""

    def slope(blocks: list[int], found: list[float]) -> float:
        return float(np.polyfit(np.log(blocks), np.log(found), 1)[0]) if len(blocks) > 1 else math.nan

    return values.along("blocks", slope).where(math.isfinite)


@paper.claim("D1", quote=ROOT, where=WHERE, reported=UNREAD, scale="paper", scale_note=AT_START)
def by_the_root_of_depth(r: Results, s: Settings) -> Evidence:
    """At initialisation, batch normalization downscales the residual branch relative to the shortcut, by a factor that
    grows about as the root of the depth.
    """
    found = scale(r, s, BN)
    estimand = "exponent of the scale of the last shortcut over its branch in the depth, BN, minus 1/2"
    evidence = equal(exponent(found) - 0.5, estimand, "", margin=s.margin_exponent)
    each = {f"scale, ResNet-{resnet_layers(blocks)}": found.at(blocks=blocks) for blocks in s.blocks}
    evidence = evidence.showing(each, "", ratio=True)
    steps = {
        f"ResNet-{resnet_layers(fewer)} to {resnet_layers(more)} alone": exponent(found.at(blocks=[fewer, more])) - 0.5
        for fewer, more in pairwise(s.blocks)
    }
    remark = "Within the margin is not equal: whether the exponent approaches 1/2 is seen from each depth to the next."
    return replace(evidence.showing(steps), remark=remark)


@paper.claim("D2", quote=IDENTITY, where=WHERE, reported=UNREAD, scale="paper", scale_note=AT_START)
def normalization_is_the_cause(r: Results, s: Settings) -> Evidence:
    """So the blocks of deep networks are close to the identity with batch normalization, and without it they are not,
    at any depth.
    """
    with_bn, plain = scale(r, s, BN), scale(r, s, PLAIN)
    ratio = with_bn.at(blocks=s.deepest) / plain.at(blocks=s.deepest)
    name = f"ResNet-{resnet_layers(s.deepest)}, BN over none"
    estimand = "scale of the last shortcut over its branch"
    evidence = greater({name: ratio}, estimand, "", margin=s.margin_ratio, ratio=True)
    evidence &= equal({"exponent in the depth, no BN": exponent(plain)}, "", "", margin=s.margin_exponent)
    each = {f"no BN, ResNet-{resnet_layers(blocks)}": plain.at(blocks=blocks) for blocks in s.blocks}
    return evidence.showing(each, "", ratio=True)


def best_rate(r: Results, s: Settings, arm: str) -> Any:
    """The rate with the best mean validation accuracy."""
    return r.measured("val_accuracy", part="trained", arm=arm).best("rate", s.rates[0])


def at_best(r: Results, s: Settings, arm: str) -> Values:
    """Test accuracy at `best_rate`."""
    return r.measured("test_accuracy", part="trained", arm=arm, rate=best_rate(r, s, arm))


def best_rates(r: Results, s: Settings) -> dict[str, tuple[Any, list[float]]]:
    """The best rates of BN and SkipInit, and their sweep."""
    return {ARMS[arm]: (best_rate(r, s, arm), s.rates) for arm in (BN, SKIP)}


def with_bn_it_trains(r: Results, s: Settings) -> Gate:
    """The network with BN at its best rate."""
    return reaches(at_best(r, s, BN), s.trained, f"test accuracy of {s.name} with BN, %")


@paper.claim("D3", quote=SCHEME, where=WHERE, reported=UNREAD, gate=with_bn_it_trains)
def skip_init_trains(r: Results, s: Settings) -> Evidence:
    """A scalar that starts at 0 at the end of each residual branch (SkipInit) trains a deep network without
    normalization, which without the scalar is trained at none of the rates tried.
    """
    gain = at_best(r, s, SKIP) - at_best(r, s, PLAIN)
    estimand = f"test accuracy of {s.name} without BN, SkipInit minus none, best rates"
    evidence = greater(gain, estimand, POINTS, margin=s.far_points)
    evidence = evidence.showing({name: at_best(r, s, arm) for arm, name in ARMS.items()}, "%")
    each = r.measured("test_accuracy", part="trained", arm=SKIP).by("rate")
    evidence = evidence.showing({f"SkipInit, rate {rate:g}": values for rate, values in each.items()}, "%")
    remark = f"Without SkipInit the rates tried are {', '.join(f'{rate:g}' for rate in s.plain_rates)}"
    edge = best_rate(r, s, PLAIN) in (min(s.plain_rates), max(s.plain_rates))
    remark += ", and the best lies at the edge: another might do better." if edge else "."
    return replace(evidence.unless_at_edge(best_rates(r, s)), remark=remark)


@paper.claim(
    "D4",
    where="dl.reviews/2020/03/07/bn-shallow-paths, results",
    reported="similar performance to networks with batch normalization",
    gate=with_bn_it_trains,
)
def it_is_as_good(r: Results, s: Settings) -> Evidence:
    """After a short training, a network with SkipInit is about as accurate as one with batch normalization, or more
    accurate.
    """
    loss = at_best(r, s, SKIP) - at_best(r, s, BN)
    estimand = f"test accuracy of {s.name}, SkipInit minus BN, best rates"
    evidence = not_lower(loss, estimand, POINTS, margin=s.margin_points)
    fitted = {
        f"training accuracy, {ARMS[arm]}": r.measured(
            "train_accuracy", part="trained", arm=arm, rate=best_rate(r, s, arm)
        )
        for arm in (SKIP, BN)
    }
    remark = "The gate asks of BN alone that it has trained; the training accuracies tell how far each has come."
    return replace(evidence.showing(fitted, "%").unless_at_edge(best_rates(r, s)), remark=remark)


# --- tables and figures ---


@paper.table
def scales(r: Results, s: Settings) -> list[Row]:
    """Root mean square of the last shortcut over that of its residual branch, at initialisation."""
    found = {norm: scale(r, s, norm) for norm in (BN, PLAIN)}
    return [
        {"network": f"ResNet-{resnet_layers(blocks)}"}
        | {ARMS[norm]: values.at(blocks=blocks).interval() for norm, values in found.items()}
        for blocks in s.blocks
    ]


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """{s.name} on digits: accuracy by rate. A run that diverged counts as chance."""
    found = {name: r.measured(f"{name}_accuracy", part="trained") for name in ("val", "test", "train")}
    diverged = r.measured("diverged", part="trained")
    rows = []
    for arm, rate in found["test"].by("arm", "rate"):
        row: Row = {"network": ARMS[arm], "rate": rate}
        row |= {f"{name} accuracy, %": values.at(arm=arm, rate=rate).interval() for name, values in found.items()}
        rows.append(row | {"diverged": sum(label == (arm, rate) for label, _ in diverged.data)})
    return rows


@paper.figure
def identity(r: Results, s: Settings) -> Figure | None:
    """Left: root mean square of the last shortcut over that of its residual branch, as initialised. Right: test
    accuracy of {s.name} on digits by learning rate.
    """
    start, accuracy = (Values.stacked("norm", {n: scale(r, s, n) for n in (BN, PLAIN)}), r.measured("test_accuracy"))
    if not start or not accuracy:
        return None
    figure, (left, right) = panels(2, height=2.5)
    look = looks(ARMS)
    lines(left, start, "blocks", "norm", look)
    lines(right, accuracy.at(part="trained"), "rate", "arm", look, bars=True)
    left.set_xscale("log")
    left.set_yscale("log", base=2)
    ticks(left, s.blocks)
    left.xaxis.set_major_formatter(lambda blocks, _: f"{resnet_layers(blocks)}")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set(xlabel="layers", ylabel="shortcut / branch")
    right.set_xscale("log")
    right.set(xlabel="learning rate", ylabel="test accuracy, %", ylim=(0, 100))
    legend(figure, of=right)
    return figure
