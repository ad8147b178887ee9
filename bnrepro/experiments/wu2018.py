"""Wu & He, Group Normalization (2018), and Ioffe, Batch Renormalization (2017).

https://arxiv.org/abs/1803.08494

Differences from the paper
- A small LeNet on 5,000 images of CIFAR-10, where the sources train ResNet-50 and Inception-v3 on ImageNet.
- Statistics come from parts of the batch of gradient descent, whose size and rate stay. Wu & He shrink the batch per
  GPU and scale the rate with it.
- The momentum of the parts is such that together they weigh what the batch weighs in the running statistics.
- Group normalization has up to 32 groups of at least 8 channels; where the first maps have fewer, one group.
- Renorm's schedule (r = 1 and d = 0 for 5,000 steps, r up to 3 at 40,000, d up to 5 at 25,000, of about 130,000) is
  scaled to the number of our steps.
- Batches of few classes are made of runs of one class; their running statistics move by 0.01 per step, as in the
  source. The source's batches have 16 of 1,000 classes.
- Adam at one rate for all norms. Another rate for each could change their order.
- Found after the runs: local-gain BN and batch renormalization, which a loop of this file trains, see the images as
  they are; BN, ghost BN and group norm are trained with crops and flips in the preset full.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, greater, less, not_testable
from bnrepro.config import load_config
from bnrepro.data.dataset import Split, derive_seed
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.statistics import batch_statistics
from bnrepro.norm.variants import BatchRenorm
from bnrepro.plots.panels import curve, dots, legend, lines, looks, panels, ticks
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.model import MakeNorm
from bnrepro.training.optimizer import lr_factor

GROUP = "Wu & He, Group Normalization (2018), https://arxiv.org/abs/1803.08494"
RENORM = "Ioffe, Batch Renormalization (2017), https://arxiv.org/abs/1702.03275"
BENCHMARK = "ducha-aiki/caffenet-benchmark, https://github.com/ducha-aiki/caffenet-benchmark"
GHOST = "Summers & Dinneen, Four Things Everyone Should Know to Improve Batch Normalization (2020)"
EVAL = "Singh & Shrivastava, EvalNorm: Estimating Batch Normalization Statistics for Evaluation (2019)"
DIVISIVE = "Ren et al., Normalizing the Normalizers: Comparing and Extending Network Normalization Schemes (2017)"
CONTEXT = "Ortiz et al., Local Context Normalization (2020); Li et al., Positional Normalization (2019)"
STOCHASTIC = "Atanov et al., Uncertainty Estimation via Stochastic Batch Normalization (2018)"


def published(factor: str, numbers: dict[str, dict[Any, float]]) -> Values:
    """A source's numbers, of one run each, by norm and another factor."""
    return Values(("norm", factor), {((norm, at), 0): v for norm, found in numbers.items() for at, v in found.items()})


TABLE = "ResNet-50 on ImageNet, top-1 % at 32, 16, 8, 4, 2 images per GPU: "
BN_REPORTED = {2: 65.3, 4: 72.7, 8: 75.2, 16: 76.3, 32: 76.4}
GROUP_REPORTED = {2: 75.9, 4: 75.8, 8: 76.0, 16: 75.8, 32: 75.9}
REPORTED = published("images", {"bn": BN_REPORTED, "group": GROUP_REPORTED})
"""Top-1 accuracy of ResNet-50 on ImageNet by images per GPU, as Switchable-Normalization's README lists it."""
SHUFFLED, FEW, BY_BATCH = "shuffled", "few classes", "few, by the batch"
REPORTED_COMPOSED = published("batches", {"bn": {SHUFFLED: 78.3, FEW: 67.0, BY_BATCH: 76.5}, "renorm": {FEW: 78.5}})
"""Top-1 accuracy of Inception-v3 on ImageNet with batches of 16 classes, 2 images each (Ioffe 2017)."""

NAMES = {
    "bn": "BN",
    "local": "local statistics",
    "renorm": "renorm",
    "group": "group norm",
    "none": "no norm",
    "lrn": "LRN",
}
WHOLE = {"bn": "bn", "group": "groupnorm", "none": "nobn", "lrn": "lrn"}  # variants: over the batch, or each image
OWN = {"local": "convbn", "renorm": "renorm"}  # variants: over parts of the batch, trained by a loop of our own
COMPOSED = ("bn", "renorm", "group")  # trained on batches of few classes
POINTS = "percentage points of test accuracy"
LENET = "10 epochs of a LeNet on 5,000 images"
AUGMENTED = "the runs of BN crop and flip images, and those of renorm do not"
LINEAR = "LeNet normalizes hidden linear layers too, where a batch of two turns every unit into a sign"


class Settings(Preset):
    common: list[str] = [  # of every run: 5,000 images to train on; the other 45,000 choose T1's size
        *("data=cifar10", "data.val_fraction=0.9", "model=lenet", "schedule=cosine", "batch_size=128", "epochs=10"),
        "eval_every=1000000",  # at the end only
    ]
    images: list[int] = [2, 4, 8, 16, 32]  # that BN's statistics come from, beside the whole batch
    few_images: list[int] = [4, 16]  # the same for local statistics and renorm
    fewest: int = 2  # G1: of images
    microbatch: int = 4  # R1: of images
    classes: int = 2  # R1: runs of one class that a batch is made of
    momentum: float = 0.1  # of running statistics, for a whole batch
    sorted_momentum: float = 0.01  # the same where batches of few classes are compared: the source's
    # Start of renorm's schedule, end of r's and of d's, of all steps: the source's 5,000, 40,000, 25,000 of 130,000.
    renorm_shares: list[float] = [0.04, 0.31, 0.19]
    margin_points: float = 1.0  # what counts as no difference: the sources call half a point to one and a half one

    @cached_property
    def batch(self) -> int:
        """Images in a batch of gradient descent."""
        return load_config(self.common).batch_size


paper = Paper(__name__, Settings, scale="toy", scale_note=LENET, source=f"{GROUP}; {RENORM}")
group_norm = partial(paper.claim, source=GROUP, where="as listed in Switchable-Normalization's README")
renormalization = partial(paper.claim, source=RENORM)


@paper.design
def runs(s: Settings) -> Design:
    """Norms over the whole batch and over parts of it; batches of few classes."""
    design = Design(s.seeds)

    def run(variant: str, momentum: float, *more: str) -> list[str]:
        return [*s.common, f"variant={variant}", f"norm.momentum={momentum}", *more]

    def own(part: str, factors: Row, **arguments: Any) -> None:
        made = (trained, {**factors, **arguments, "renorm_shares": s.renorm_shares})
        design.train(part, factors, run("bn", s.momentum), made, record=False)

    for norm, variant in WHOLE.items():
        design.train("parts", {"norm": norm, "images": s.batch}, run(variant, s.momentum))
    for images in s.images:
        ghost = run("ghostbn", momentum_of_part(s.momentum, images, s.batch), f"norm.ghost_size={images}")
        design.train("parts", {"norm": "bn", "images": images}, ghost)
    for norm in OWN:
        for images in (*s.few_images, s.batch):
            own("parts", {"norm": norm, "images": images}, classes=0, momentum=s.momentum)
    for norm in COMPOSED:
        for classes in (0, s.classes):
            own("sorted", {"norm": norm, "classes": classes}, images=s.batch, momentum=s.sorted_momentum)
    return design


# --- training with norms over parts of the batch, or on batches of few classes ---


@measure("wu2018/trained")
def trained(
    run: Run, seed: int, norm: str, images: int, classes: int, momentum: float, renorm_shares: list[float]
) -> list[Row]:
    """Train as ``run`` was, from the same weights, with another norm or other batches, and images as they are.

    Args:
        norm: bn, group, renorm or local.
        images: in a part of the batch, from which renorm's and local statistics come.
        classes: 0: the run's own batches. Otherwise how many runs of images of one class a batch is made of.
        momentum: of the running statistics, for a whole batch.
        renorm_shares: of the training's parts: start of renorm's schedule, end of r's, end of d's.

    Rows: ``test_accuracy`` in %, and for BN with ``classes`` ``batch_accuracy``: of test batches so composed, by their
    own statistics. ``diverged`` (the step) in their place where the loss is no number.
    """
    cfg, size = run.config, run.config.batch_size
    cfg = replace(cfg, variant=WHOLE.get(norm, cfg.variant), norm=replace(cfg.norm, momentum=momentum))
    own = over_parts(OWN[norm], images, momentum_of_part(momentum, images, size)) if norm in OWN else None
    trainer = train.trainer_of(cfg, norm=own)
    data, parts = trainer.data, trainer.steps * (size // images)
    for layer in trainer.network.modules():
        if isinstance(layer, BatchRenorm):
            layer.start, layer.r_steps, layer.d_steps = (round(share * parts) for share in renorm_shares)
    length = size // classes if classes else 0
    for step in range(trainer.steps):
        epoch, position = divmod(step, trainer.steps_per_epoch)
        if position == 0:
            batches = in_runs(data.train.labels, length, derive_seed(cfg.seed, "order", epoch)).split(size)
        x, y = data.normalize(data.train.images[batches[position]]), data.train.labels[batches[position]]
        lr = cfg.optimizer.lr * lr_factor(cfg.schedule, step, trainer.steps, trainer.steps_per_epoch)
        if not trainer.update(x, y, lr)[0].isfinite():
            return [row("diverged", step)]
    rows = [row("test_accuracy", 100 * trainer.measure(data.test)[1])]
    if norm == "bn" and classes:
        order = in_runs(data.test.labels, length, derive_seed(0, "evaluation"))
        order = order[: len(order) // size * size]
        test = Split(data.test.images[order], data.test.labels[order])
        with batch_statistics(trainer.network):
            rows.append(row("batch_accuracy", 100 * train.measure(trainer.network, data, test, trainer.cfg, size)[1]))
    return rows


def in_runs(labels: Tensor, size: int, seed: int) -> Tensor:
    """An order of all images in which ``size`` images of one class follow one another; with 0, any order.

    Each class's images are shuffled and cut into runs, and the runs are shuffled. What is left of the classes, fewer
    than ``size`` of each, comes last, class by class.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if size == 0:
        return order
    pieces = [piece for label in labels.unique() for piece in order[labels[order] == label].split(size)]
    runs = [piece for piece in pieces if len(piece) == size]
    rest = [piece for piece in pieces if len(piece) < size]
    shuffled = torch.randperm(len(runs), generator=generator).tolist()
    return torch.cat([*(runs[i] for i in shuffled), *rest])


def momentum_of_part(momentum: float, images: int, batch: int) -> float:
    """Of running statistics, so that the parts of a batch together weigh ``momentum``: 1 - (1 - m)^(images / batch)."""
    return 1 - (1 - momentum) ** (images / batch)


class Parts(nn.Module):
    """In training, each part of ``images`` images goes through ``norm`` by itself, in order (see GhostBatchNorm)."""

    def __init__(self, norm: nn.Module, images: int) -> None:
        super().__init__()
        self.norm, self.images = norm, images

    @property
    def bias(self) -> Any:
        """That of ``norm``, which tells the network that the layer before needs none."""
        return self.norm.bias

    def forward(self, x: Tensor) -> Tensor:
        starts = range(self.images, len(x) - self.images + 1, self.images) if self.training else ()
        return torch.cat([self.norm(part) for part in x.tensor_split([*starts])])


def over_parts(variant: str, images: int, momentum: float) -> MakeNorm:
    """``variant`` over parts of ``images`` images; after a linear layer, local statistics are BN's."""

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        if variant == OWN["local"] and not shape:
            options = NormOptions(eps=1e-3, momentum=momentum, ghost_size=images)  # eps as on maps
            return NORMS["ghostbn"](features, shape, options=options)
        return Parts(NORMS[variant](features, shape, options=NormOptions(momentum=momentum)), images)

    return make


# --- claims: how many images statistics come from ---


def accuracies(r: Results) -> Values:
    """Test accuracy by norm and the number of images that its statistics come from, smallest first."""
    found, own = r.test_accuracy(part="parts").without("variant"), r.measured("test_accuracy", part="parts")
    assert not (found and own) or found.factors == own.factors
    return Values(found.factors or own.factors, dict(sorted({**found.data, **own.data}.items())))


def change(r: Results, first: tuple[str, int], second: tuple[str, int]) -> Values:
    """Test accuracy of one norm with statistics from some images minus that of another."""
    values = accuracies(r)
    return values.at(norm=first[0], images=first[1]) - values.at(norm=second[0], images=second[1])


@group_norm("G1.1", reported=TABLE + "BN 76.4 76.3 75.2 72.7 65.3", withdrawn=LINEAR)
def few_images_harm_bn(r: Results, s: Settings) -> Evidence:
    """Batch normalization's accuracy falls where its statistics come from few images."""
    estimand = "test accuracy, BN with statistics from all images minus from fewest"
    evidence = greater(change(r, ("bn", s.batch), ("bn", s.fewest)), estimand, POINTS, margin=s.margin_points)
    four = {NAMES[norm]: change(r, (norm, s.batch), (norm, s.microbatch)) for norm in ("bn", "local")}
    return evidence.showing({f"{name}, from {s.microbatch}": values for name, values in four.items()})


@group_norm("G1.2", reported=TABLE + "BN 65.3 and GN 75.9 at 2", withdrawn=LINEAR)
def group_norm_is_better_at_few(r: Results, s: Settings) -> Evidence:
    """With statistics from 2 images, group normalization is better than BN."""
    estimand = "test accuracy, group norm minus BN with statistics from fewest images"
    return greater(change(r, ("group", s.batch), ("bn", s.fewest)), estimand, POINTS, margin=s.margin_points)


@group_norm("G1.3", reported=TABLE + "BN 76.4 and GN 75.9 at 32")
def group_norm_is_as_good_at_the_usual_batch(r: Results, s: Settings) -> Evidence:
    """At the usual batch, group normalization is about as accurate as BN."""
    difference = change(r, ("group", s.batch), ("bn", s.batch))
    return equal(difference, "test accuracy, group norm minus BN", POINTS, margin=s.margin_points)


@paper.claim(
    "G2",
    source="ppwwyyxx/GroupNorm-reproduce, https://github.com/ppwwyyxx/GroupNorm-reproduce",
    reported="GN 7.3% error, about 1.3 points more than BN",
    scale="reduced",
    scale_note=f"{LENET}, for 400 epochs",
)
def group_norm_is_worse_on_cifar(r: Results, s: Settings) -> Evidence:
    """On CIFAR-10 and at a usual batch, group normalization is less accurate than BN."""
    difference = change(r, ("bn", s.batch), ("group", s.batch))
    return greater(difference, "test accuracy, BN minus group norm", POINTS, margin=s.margin_points)


@renormalization("R1.1", reported="Inception-v3 on ImageNet, microbatches of 4: BN 74.2, renorm 76.5", withdrawn=LINEAR)
def renorm_is_better_at_few(r: Results, s: Settings) -> Evidence:
    """With statistics from 4 images, batch renormalization is better than BN."""
    difference = change(r, ("renorm", s.microbatch), ("bn", s.microbatch))
    return greater(difference, "test accuracy, renorm minus BN", POINTS, margin=s.margin_points)


@renormalization("R1.2", reported="BN 78.3, renorm 78.5", withdrawn=AUGMENTED)
def renorm_is_as_good_at_a_large_batch(r: Results, s: Settings) -> Evidence:
    """At a large batch, batch renormalization is as accurate as BN."""
    difference = change(r, ("renorm", s.batch), ("bn", s.batch))
    return equal(difference, "test accuracy, renorm minus BN", POINTS, margin=s.margin_points)


# --- claims: batches of few classes ---


def composed(r: Results, s: Settings) -> Values:
    """Test accuracy by norm and composition of the training's batches, by running statistics or the test batch's."""
    accuracy, by_batch = (r.measured(f"{kind}_accuracy", part="sorted") for kind in ("test", "batch"))
    few = {FEW: accuracy.at(classes=s.classes), BY_BATCH: by_batch.at(classes=s.classes)}
    return accuracy.at(classes=0).join("batches", SHUFFLED, **few)


few_classes = partial(
    renormalization,
    withdrawn="the source's batches are of 16 classes with 2 images each; 2 classes of 64 are another claim",
)


@few_classes("R1.3", reported="16 classes x 2 images: 67, against 78.3 with shuffled batches")
def few_classes_harm_bn(r: Results, s: Settings) -> Evidence:
    """BN fails where batches are of few classes."""
    found = composed(r, s)
    lost = found.at(batches=SHUFFLED) - found.at(batches=FEW)
    estimand = "test accuracy, BN trained on shuffled batches minus on few classes"
    evidence = greater(lost.at(norm="bn"), estimand, POINTS, margin=s.margin_points)
    return evidence.showing({NAMES[norm]: lost.at(norm=norm) for norm in ("group", "renorm")})


@few_classes("R1.4", reported="BN 67, renorm 78.5")
def renorm_is_better_with_few_classes(r: Results, s: Settings) -> Evidence:
    """Batch renormalization does not: it is better than BN there."""
    few = composed(r, s).at(batches=FEW)
    difference = few.at(norm="renorm") - few.at(norm="bn")
    estimand = "test accuracy after batches of few classes, renorm minus BN"
    return greater(difference, estimand, POINTS, margin=s.margin_points)


@few_classes("R1.5", reported="67 by the moving average, 76.5 by the batch")
def the_moving_average_fails(r: Results, s: Settings) -> Evidence:
    """What fails is the moving average: by the statistics of test batches so composed, the same BN is accurate."""
    bn = composed(r, s).at(norm="bn")
    difference = bn.at(batches=BY_BATCH) - bn.at(batches=FEW)
    estimand = "test accuracy, by the statistics of test batches minus by running statistics"
    evidence = greater(difference, estimand, POINTS, margin=s.margin_points)
    return replace(evidence, remark="The composition of such a batch reveals its classes.")


# --- claims of others ---


@paper.claim("T1", source=GHOST, reported="no number read in the text")
def ghost_batches_regularize(r: Results, s: Settings) -> Evidence:
    """Statistics from parts of the batch (ghost batches) regularize: accuracy is higher than with the whole batch."""
    validation = r.of_runs("val_accuracy", part="parts", norm="bn", images=s.images)
    found = validation.without("variant").intervals("images")
    best = max(found, key=lambda images: found[images].mean, default=0)
    difference, condition = change(r, ("bn", best), ("bn", s.batch)), f"ghost batches of {best}"
    estimand = "test accuracy, BN with the ghost batches best on validation data minus whole"
    return greater(difference, estimand, POINTS, margin=s.margin_points, condition=condition)


@paper.claim(
    "N2",
    source=f"Ioffe & Szegedy (2015), section 4.2.1; {BENCHMARK}",
    where="section 4.2.1",
    reported="CaffeNet128 on ImageNet: with LRN .470, without .471; Inception with BN leaves it out",
)
def lrn_does_not_help(r: Results, s: Settings) -> Evidence:
    """Local response normalization does not improve accuracy."""
    difference = change(r, ("lrn", s.batch), ("none", s.batch))
    return less(difference, "test accuracy, LRN (AlexNet's constants) minus no norm", POINTS, bar=s.margin_points)


@paper.claim("E1", source=EVAL, where="abstract", reported="+6.18 points on ImageNet")
def corrected_statistics(r: Results, s: Settings) -> Evidence:
    """Statistics corrected for evaluation repair BN at batches of 2."""
    reason = "The corrected statistics are learned in training by a loss of their own, which is not built here"
    remark = "What population statistics do for one network is measured with Wu & Johnson's claims."
    return replace(not_testable(reason), remark=remark)


@paper.claim("Z1", source=STOCHASTIC, reported="ResNet-18, CIFAR-10: .9407 to .9415 and .9422")
def averaged_predictions(r: Results, s: Settings) -> Evidence:
    """Averaging predictions over the statistics of random training batches improves accuracy."""
    return not_testable("The effect is about 0.1 point of one run, less than five seeds tell apart on our test sets")


@paper.claim("N1", source=DIVISIVE, reported="numbers not read again")
def divisive_norm(r: Results, s: Settings) -> Evidence:
    """Batch and layer normalization are cases of a divisive norm, and smoothing its denominator improves them."""
    remark = "What smoothing does to local statistics is measured as eps with conv-batchnorm's claims."
    return replace(not_testable("The smoothed divisive norm is not among the norms here"), remark=remark)


@paper.claim("N3", source=CONTEXT, reported="numbers not read again")
def norms_within_an_image(r: Results, s: Settings) -> Evidence:
    """Other things called local: statistics of a window of one image, or over the channels at one location."""
    remark = "A window over the batch is measured with conv-batchnorm's claims; layer and instance norms are variants."
    reason = "These take their statistics from one image, not from the batch, and are not built here"
    return replace(not_testable(reason), remark=remark)


# --- tables and figures ---


@paper.table
def images(r: Results, s: Settings) -> list[Row]:
    """Test accuracy by the number of images of a batch of {s.batch} that statistics come from; the source's, by images
    per GPU, are one run each.
    """
    return [
        {"network": network, "norm": NAMES[norm], "images": size if norm in sized else "any"}
        | {"test accuracy, %": found}
        for network, values, sized in (
            ("LeNet, here", accuracies(r), ("bn", *OWN)),
            ("ResNet-50, ImageNet", REPORTED, ("bn", "group")),
        )
        for norm in NAMES
        for size, found in values.at(norm=norm).intervals("images").items()
    ]


@paper.table
def composition(r: Results, s: Settings) -> list[Row]:
    """Test accuracy after training on shuffled batches, and on few classes ({s.classes} runs of one class), by running
    statistics or by those of test batches so composed. The source's are one run each, with 16 classes.
    """
    return [
        {"norm": NAMES[norm], "batches": batches, "test accuracy, %": values.interval()}
        | {"source (Inception-v3, ImageNet), %": REPORTED_COMPOSED.at(norm=norm, batches=batches).only()}
        for (norm, batches), values in composed(r, s).by("norm", "batches").items()
    ]


@paper.figure
def accuracy_by_images(r: Results, s: Settings) -> Figure | None:
    """Left: test accuracy by the number of images of a batch that the statistics come from; norms that know no batch
    are level. Right: the source's, ResNet-50 on ImageNet, by images per GPU, one run each.
    """
    values, look = accuracies(r), looks(NAMES)
    if not values:
        return None
    figure, (left, right) = panels(2, height=2.8, width_ratios=(3, 2))
    lines(left, values.at(norm=["bn", *OWN]), "images", "norm", look, bars=True)
    for norm in ("group", "none", "lrn"):
        level = values.at(norm=norm, images=s.batch).interval()
        curve(left, {s.fewest: level, s.batch: level}, look[norm], marks=False)
    lines(right, REPORTED, "images", "norm", look)
    left.set(xlabel="images that statistics come from", ylabel="test accuracy, %", title="here")
    right.set(xlabel="images per GPU", ylabel="top-1 accuracy, %", title="source (ImageNet)")
    for axes, sizes in ((left, [*s.images, s.batch]), (right, REPORTED.levels("images"))):
        axes.set_xscale("log", base=2)
        ticks(axes, sizes)
    legend(figure, columns=6, of=left)
    return figure


@paper.figure
def accuracy_by_composition(r: Results, s: Settings) -> Figure | None:
    """Left: test accuracy after training on shuffled batches, and on few classes ({s.classes} runs of one class), by
    running statistics or by those of test batches so composed. Right: the source's, Inception-v3 on ImageNet, 16
    classes with 2 images each, one run each.
    """
    ours, look = composed(r, s), looks(NAMES)
    if not ours:
        return None
    figure, (left, right) = panels(2, height=2.6)
    dots(left, ours, "batches", "norm", look, width=0.4)
    dots(right, REPORTED_COMPOSED, "batches", "norm", look, width=0.4)
    left.set(ylabel="test accuracy, %", title="here")
    right.set(ylabel="top-1 accuracy, %", title="source (ImageNet)")
    legend(figure, of=left)
    return figure
