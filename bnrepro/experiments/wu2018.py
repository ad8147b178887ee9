"""Wu & He, Group Normalization (2018), and Ioffe, Batch Renormalization (2017).

https://arxiv.org/abs/1803.08494

Differences from the paper
- The network of airbench at a quarter of its width on CIFAR-10, whose norms are all on maps, where the sources train
  ResNet-50 and Inception-v3 on ImageNet.
- As in the source, eight workers have some images each, and batch normalization's statistics come from one worker's:
  here parts of a batch eight times as large (ghost batches). The learning rate is proportional to the batch. One worker
  alone, whose few images are the whole batch, is measured beside.
- The momentum of the parts is such that together they weigh what the batch weighs in the running statistics; that of
  a worker alone such that as many images do.
- Group normalization has up to 32 groups of at least 8 channels; where the first maps have fewer, one group.
- Renorm's schedule (r = 1 and d = 0 for 5,000 steps, r up to 3 at 40,000, d up to 5 at 25,000, of about 130,000) is
  scaled to the number of our steps.
- SGD, by the number of images at one rate for all norms, as in the source. At the usual batch BN and group norm each
  have the rate of a sweep at which they do best on validation data, whose best must lie inside the sweep. A first look
  was seen before: at the one rate (0.4 for 256 images) group norm had 73%, and at smaller batches and rates 80%. LRN
  and no norm, which diverged at that rate, have a lower one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, greater, less, not_testable
from bnrepro.claims.gates import reaches
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, Split, derive_seed, epoch_plan, train_batch
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.statistics import batch_statistics
from bnrepro.norm.variants import BatchRenorm
from bnrepro.plots.panels import Look, legend, lines, looks, panels, ticks
from bnrepro.training.model import MakeNorm, build, norm_of
from bnrepro.training.optimizer import lr_factor
from bnrepro.training.trainer import Trainer, loss_and_accuracy

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
NAMES = {
    "bn": "BN",
    "renorm": "renorm",
    "group": "group norm",
    "none": "no norm",
    "lrn": "LRN",
}
PLAIN = {"none": "nobn", "lrn": "lrn"}
FEW = {"bn": "bn", "renorm": "renorm", "group": "groupnorm"}  # trained on batches of few classes, or of few images
WORKERS = 8
ASIDE = {"bn": 0.89, "group": 1.12}  # where single marks stand, beside those of as many images
POINTS = "percentage points of test accuracy"
AIRBENCH = "airbench's network at a quarter of its width, 8 epochs of CIFAR-10"


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every run; rates are of a batch of 256
        *("data=cifar10", "data.crop=2", "model=airbench", "model.width=0.25", "epochs=8", "channels_last=true"),
        *("optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=5e-4"),
        *("schedule=linear", "schedule.warmup_epochs=1", "eval_every=1000000"),  # at the end only
    ]
    rate: float = 0.4  # learning rate for 32 images a worker
    images: list[int] = [2, 4, 8, 16, 32]  # a worker's, from which BN's statistics come
    rates: dict[str, list[float]] = {"bn": [0.2, 0.4, 0.8], "group": [0.05, 0.1, 0.2, 0.4]}  # at the usual batch
    plain_rate: float = 0.05  # of LRN and no norm, at the usual batch
    alone: int = 4  # images of one worker without others, which are the whole batch
    renorm_images: list[int] = [4, 32]
    ghosts: list[int] = [16, 32, 64]  # T1: images in a ghost batch, beside the whole batch
    momentum: float = 0.1  # of running statistics, for a whole batch
    # Start of renorm's schedule, end of r's and of d's, of all steps: the source's 5,000, 40,000, 25,000 of 130,000.
    renorm_shares: list[float] = [0.04, 0.31, 0.19]
    trained: float = 80.0  # % test accuracy of BN at the usual batch
    trained_plain: float = 60.0  # N2: % test accuracy without a norm, of a network that learns at all
    margin_points: float = 1.0  # what counts as no difference: the sources call half a point to one and a half one
    ghost_margin: float = 0.25  # T1
    few_classes: list[str] = []  # R1.3 to R1.5: of runs on batches of few classes; none: they are not testable
    classes: int = 16  # R1.3 to R1.5: in a batch

    @property
    def usual(self) -> int:
        """Images a worker at the usual batch."""
        return max(self.images)

    @property
    def fewest(self) -> int:
        """Of images a worker."""
        return min(self.images)


paper = Paper(__name__, Settings, scale="reduced", scale_note=AIRBENCH, source=f"{GROUP}; {RENORM}")


@paper.design
def runs(s: Settings) -> Design:
    """Norms by the number of images that a worker has, among others and alone; rates of norms at the usual batch; BN
    over parts of it.
    """
    design = Design(s.seeds)

    def run(variant: str, batch: int, momentum: float = s.momentum, at_usual: float = s.rate) -> list[str]:
        rate = at_usual * batch / (WORKERS * s.usual)
        own = [f"variant={variant}", f"batch_size={batch}", f"optimizer.lr={rate}", f"norm.momentum={momentum}"]
        return [*s.common, *own]

    def workers(variant: str, images: int, at_usual: float = s.rate) -> list[str]:
        return run(variant, WORKERS * images, at_usual=at_usual)

    def ghosts(part: int, images: int, at_usual: float = s.rate) -> list[str]:
        momentum = momentum_of_part(s.momentum, part, WORKERS * images)
        return [*run("ghostbn", WORKERS * images, momentum, at_usual), f"norm.ghost_size={part}"]

    for images in s.images:
        design.train("workers", {"norm": "bn", "images": images}, ghosts(images, images))
        design.train("workers", {"norm": "group", "images": images}, workers("groupnorm", images))
    for norm in s.rates:
        momentum = momentum_of_part(s.momentum, s.alone, WORKERS * s.usual)
        design.train("alone", {"norm": norm, "images": s.alone}, run(FEW[norm], s.alone, momentum))
    for images in s.renorm_images:
        asked: Row = {"overrides": workers("renorm", images), "images": images, "renorm_shares": s.renorm_shares}
        of: Row = {"norm": "renorm", "images": images}
        design.measure("workers", of, trained, s.common, **asked)
    for rate in s.rates["bn"]:
        design.train("rates", {"norm": "bn", "rate": rate}, ghosts(s.usual, s.usual, rate))
    for rate in s.rates["group"]:
        design.train("rates", {"norm": "group", "rate": rate}, workers("groupnorm", s.usual, rate))
    for norm, variant in PLAIN.items():
        design.train("plain", {"norm": norm}, workers(variant, s.usual, s.plain_rate))
    design.train("whole", {"norm": "bn"}, workers("bn", s.usual))
    for norm, classes in product(FEW, (0, s.classes)) if s.few_classes else ():
        asked = {"overrides": [*s.few_classes, f"variant={FEW[norm]}"], "classes": classes}
        of = {"norm": norm, "classes": classes}
        design.measure("classes", of, on_few_classes, s.few_classes, **asked, renorm_shares=s.renorm_shares)
    for part in s.ghosts:
        design.train("ghosts", {"images": part}, ghosts(part, s.usual))
    return design


# --- training with renorm over parts of the batch ---


@measure("wu2018/renorm")
def trained(data: Dataset, seed: int, overrides: list[str], images: int, renorm_shares: list[float]) -> list[Row]:
    """Train as a run of ``overrides`` would, from the same weights and on the same batches, with renorm over parts.

    Args:
        data: the dataset.
        seed: of weights, order and augmentation.
        overrides: of the configuration.
        images: in a part of the batch, from which renorm's statistics come.
        renorm_shares: of the training's parts: start of renorm's schedule, end of r's, end of d's.

    Rows: ``test_accuracy`` in %, or ``diverged`` (the step) where the loss is no number.
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    norm = over_parts("renorm", images, momentum_of_part(cfg.norm.momentum or 0.1, images, cfg.batch_size))
    trainer = trainer_of(cfg, data, norm, cfg.batch_size // images, renorm_shares)
    for batch in trainer.batches():
        if not trainer.update(batch.x, batch.y, batch.lr)[0].isfinite():
            return [row("diverged", batch.step)]
    return [row("test_accuracy", 100 * trainer.measure(trainer.data.test)[1])]


def trainer_of(cfg: Config, data: Dataset, norm: MakeNorm, parts: int, renorm_shares: list[float]) -> Trainer:
    """A run's trainer with another norm; renorm's schedule goes over all ``parts`` of all batches."""
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    network = build(cfg.model, norm, data.channels, data.image_size, data.num_classes, weights)
    trainer = Trainer(cfg, data, network)
    for layer in trainer.network.modules():
        if isinstance(layer, BatchRenorm):
            steps = trainer.steps * parts
            layer.start, layer.r_steps, layer.d_steps = (round(share * steps) for share in renorm_shares)
    return trainer


@measure("wu2018/few_classes")
def on_few_classes(
    data: Dataset, seed: int, overrides: list[str], classes: int, renorm_shares: list[float]
) -> list[Row]:
    """Train as a run of ``overrides`` would, on batches of ``classes`` runs of images of one class; 0: on its own.

    Rows: ``test_accuracy`` in %, and for BN with ``classes`` ``batch_accuracy``: of test batches so composed, by their
    own statistics; or ``diverged`` (the step) where the loss is no number.
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    trainer, size = trainer_of(cfg, data, norm_of(cfg), 1, renorm_shares), cfg.batch_size
    for step in range(trainer.steps):
        epoch, position = divmod(step, trainer.steps_per_epoch)
        if position == 0:
            plan = epoch_plan(len(data.train.labels), cfg.data, seed, epoch)
            if classes:
                order = in_runs(data.train.labels, size // classes, derive_seed(seed, "order", epoch))
                plan = replace(plan, order=order)
        x, y = train_batch(data, plan, cfg.data, position * size, size)
        rate = cfg.optimizer.lr * lr_factor(cfg.schedule, step, trainer.steps, trainer.steps_per_epoch)
        if not trainer.update(x, y, rate)[0].isfinite():
            return [row("diverged", step)]
    rows = [row("test_accuracy", 100 * trainer.measure(data.test)[1])]
    if classes and cfg.variant == "bn":
        order = in_runs(data.test.labels, size // classes, derive_seed(0, "evaluation"))
        test = Split(data.test.images[order], data.test.labels[order])
        with batch_statistics(trainer.network):
            rows.append(row("batch_accuracy", 100 * loss_and_accuracy(trainer.network, data, test, cfg, size)[1]))
    return rows


def in_runs(labels: Tensor, size: int, seed: int) -> Tensor:
    """An order in which ``size`` images of one class follow one another; what is left of the classes comes last."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    pieces = [piece for label in labels.unique() for piece in order[labels[order] == label].split(size)]
    runs = [piece for piece in pieces if len(piece) == size]
    shuffled = [runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()]
    return torch.cat([*shuffled, *(piece for piece in pieces if len(piece) < size)])


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
        sizes = [end - start for start, end in pairwise([0, *starts, len(x)])]
        return torch.cat([self.norm(part) for part in x.split(sizes)])


def over_parts(variant: str, images: int, momentum: float) -> MakeNorm:
    """``variant`` over parts of ``images`` images."""

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        return Parts(NORMS[variant](features, shape, options=NormOptions(momentum=momentum)), images)

    return make


# --- claims: how many images statistics come from ---


def usual_has_trained(r: Results, s: Settings) -> Gate:
    """BN at the usual batch."""
    return reaches(accuracy(r, "bn", s.usual), s.trained, "test accuracy with BN at the usual batch, %")


def best_have_trained(r: Results, s: Settings) -> Gate:
    """BN at the usual batch and its best rate."""
    return reaches(at_best(r, "bn"), s.trained, "test accuracy with BN at the usual batch and its best rate, %")


def plain_has_trained(r: Results, s: Settings) -> Gate:
    """No norm: what is beside it is compared with a network that learns."""
    return reaches(r.test_accuracy(part="plain", norm="none"), s.trained_plain, "test accuracy without a norm, %")


def accuracies(r: Results) -> Values:
    """Test accuracy by norm and the images of a worker."""
    return r.test_accuracy(part="workers").without("variant") | r.measured("test_accuracy", part="workers")


def accuracy(r: Results, norm: str, images: int) -> Values:
    """Test accuracy of a norm with some images a worker."""
    where: Row = {"part": "workers", "norm": norm, "images": images}
    return r.measured("test_accuracy", **where) if norm == "renorm" else r.test_accuracy(**where).without("variant")


def alone(r: Results, norm: str) -> Values:
    """Test accuracy of a norm at a batch of one worker's few images."""
    return r.test_accuracy(part="alone", norm=norm).without("variant", "images")


def change(r: Results, first: tuple[str, int], second: tuple[str, int]) -> Values:
    """Test accuracy of one norm with some images a worker minus that of another."""
    return accuracy(r, *first) - accuracy(r, *second)


def best_rate(r: Results, norm: str) -> Any:
    """At the usual batch, the rate with the best mean validation accuracy."""
    return r.of_runs("val_accuracy", part="rates", norm=norm).without("variant").best("rate")


def at_best(r: Results, norm: str) -> Values:
    """Test accuracy at the usual batch and the best rate."""
    return r.test_accuracy(part="rates", norm=norm).without("variant").at(rate=best_rate(r, norm))


def each_at_best(r: Results, s: Settings, compare: Callable[[Values, Values], Evidence]) -> Evidence:
    """What ``compare`` says of BN and group norm, each at its best rate, if that lies inside its sweep."""
    best = {norm: best_rate(r, norm) for norm in s.rates}
    shown = {f"{NAMES[norm]} at {rate}": at_best(r, norm) for norm, rate in best.items()}
    one = {f"group norm minus BN, both at {s.rate:g}": change(r, ("group", s.usual), ("bn", s.usual))}
    evidence = compare(at_best(r, "bn"), at_best(r, "group")).showing(shown, "% test accuracy").showing(one, POINTS)
    remark = (
        "Both train for the same epochs, which are few for group norm: what it reaches in more steps stands in the "
        "table by images."
    )
    evidence = replace(evidence, remark=remark)
    return evidence.unless_at_edge({NAMES[norm]: (rate, s.rates[norm]) for norm, rate in best.items()})


group_norm = partial(
    paper.claim,
    source=GROUP,
    where="as listed in Switchable-Normalization's README",
    gate=usual_has_trained,
)
renormalization = partial(paper.claim, source=RENORM, gate=usual_has_trained)


@group_norm("G1.1", reported=TABLE + "BN 76.4 76.3 75.2 72.7 65.3")
def few_images_harm_bn(r: Results, s: Settings) -> Evidence:
    """Batch normalization's accuracy falls where its statistics come from few images."""
    estimand = f"test accuracy, BN with {s.usual} images a worker minus {s.fewest}"
    evidence = greater(change(r, ("bn", s.usual), ("bn", s.fewest)), estimand, POINTS, margin=s.margin_points)
    more = {f"minus {images}": change(r, ("bn", s.usual), ("bn", images)) for images in s.images[1:-1]}
    group = {f"group norm, {s.usual} minus {s.fewest}": change(r, ("group", s.usual), ("group", s.fewest))}
    return evidence.showing(more | group)


@group_norm("G1.2", reported=TABLE + "BN 65.3 and GN 75.9 at 2")
def group_norm_is_better_at_few(r: Results, s: Settings) -> Evidence:
    """With statistics from 2 images, group normalization is better than BN."""
    estimand = f"test accuracy, group norm minus BN, {s.fewest} images a worker"
    return greater(change(r, ("group", s.fewest), ("bn", s.fewest)), estimand, POINTS, margin=s.margin_points)


@paper.claim(
    "G1.3",
    source=GROUP,
    where="as listed in Switchable-Normalization's README",
    reported=TABLE + "BN 76.4 and GN 75.9 at 32",
    gate=best_have_trained,
)
def group_norm_is_as_good_at_the_usual_batch(r: Results, s: Settings) -> Evidence:
    """At the usual batch, group normalization is about as accurate as BN."""
    estimand = "test accuracy, group norm minus BN, each at its best rate"
    return each_at_best(r, s, lambda bn, group: equal(group - bn, estimand, POINTS, margin=s.margin_points))


@paper.claim(
    "G2",
    source="ppwwyyxx/GroupNorm-reproduce, https://github.com/ppwwyyxx/GroupNorm-reproduce",
    reported="GN 7.3% error, about 1.3 points more than BN",
    gate=best_have_trained,
)
def group_norm_is_worse_on_cifar(r: Results, s: Settings) -> Evidence:
    """On CIFAR-10 and at a usual batch, group normalization is less accurate than BN."""
    estimand = "test accuracy, BN minus group norm, each at its best rate"
    return each_at_best(r, s, lambda bn, group: greater(bn - group, estimand, POINTS, margin=s.margin_points))


@group_norm("G1.4", reported=TABLE + "BN 76.4 at 32, 72.7 at 4")
def a_small_batch_harms_bn(r: Results, s: Settings) -> Evidence:
    """Batch normalization's accuracy falls as well where the whole batch is few images, of one worker."""
    estimand = f"test accuracy, BN at a batch of {WORKERS * s.usual} minus {s.alone}"
    evidence = greater(accuracy(r, "bn", s.usual) - alone(r, "bn"), estimand, POINTS, margin=s.margin_points)
    group = {"group norm": accuracy(r, "group", s.usual) - alone(r, "group")}
    absolute = {f"{NAMES[norm]} at a batch of {s.alone}": alone(r, norm) for norm in s.rates}
    return evidence.showing(group).showing(absolute, "% test accuracy")


@group_norm("G1.5", reported=TABLE + "BN 72.7 and GN 75.8 at 4")
def group_norm_is_better_at_a_small_batch(r: Results, s: Settings) -> Evidence:
    """Where the whole batch is few images, group normalization is better than BN."""
    estimand = f"test accuracy, group norm minus BN, a batch of {s.alone}"
    evidence = greater(alone(r, "group") - alone(r, "bn"), estimand, POINTS, margin=s.margin_points)
    remark = f"The rate of both is scaled from {s.rate:g} at the usual batch, and was not swept for either at this one."
    return replace(evidence, remark=remark)


@renormalization("R1.1", reported="Inception-v3 on ImageNet, microbatches of 4: BN 74.2, renorm 76.5")
def renorm_is_better_at_few(r: Results, s: Settings) -> Evidence:
    """With statistics from 4 images, batch renormalization is better than BN."""
    few = min(s.renorm_images)
    difference = change(r, ("renorm", few), ("bn", few))
    return greater(difference, "test accuracy, renorm minus BN", POINTS, margin=s.margin_points)


@renormalization("R1.2", reported="BN 78.3, renorm 78.5")
def renorm_is_as_good_at_a_large_batch(r: Results, s: Settings) -> Evidence:
    """At a large batch, batch renormalization is as accurate as BN."""
    difference = change(r, ("renorm", s.usual), ("bn", s.usual))
    return equal(difference, "test accuracy, renorm minus BN", POINTS, margin=s.margin_points)


# --- claims: batches of few classes ---


few_classes = partial(paper.claim, source=RENORM, scale_note="ResNet-20 on CIFAR-100")
UNHAD = "The source's batches hold 2 images of each of 16 classes: CIFAR-100 could do that, and cannot be had here"


def composed(r: Results, s: Settings) -> Values:
    """Test accuracy by norm and composition of the training's batches, by running statistics or the test batch's."""
    accuracy, by_batch = (r.measured(f"{kind}_accuracy", part="classes") for kind in ("test", "batch"))
    few = {"few": accuracy.at(classes=s.classes), "few, by the batch": by_batch.at(classes=s.classes)}
    return accuracy.at(classes=0).join("batches", "shuffled", **few)


@few_classes("R1.3", reported="16 classes x 2 images: 67, against 78.3 with shuffled batches")
def few_classes_harm_bn(r: Results, s: Settings) -> Evidence:
    """BN fails where batches are of few classes."""
    if not s.few_classes:
        return not_testable(UNHAD)
    found = composed(r, s)
    lost = found.at(batches="shuffled") - found.at(batches="few")
    estimand = "test accuracy, BN trained on shuffled batches minus on few classes"
    evidence = greater(lost.at(norm="bn"), estimand, POINTS, margin=s.margin_points)
    return evidence.showing({NAMES[norm]: lost.at(norm=norm) for norm in ("group", "renorm")})


@few_classes("R1.4", reported="BN 67, renorm 78.5")
def renorm_is_better_with_few_classes(r: Results, s: Settings) -> Evidence:
    """Batch renormalization does not: it is better than BN there."""
    if not s.few_classes:
        return not_testable(UNHAD)
    few = composed(r, s).at(batches="few")
    estimand = "test accuracy after batches of few classes, renorm minus BN"
    return greater(few.at(norm="renorm") - few.at(norm="bn"), estimand, POINTS, margin=s.margin_points)


@few_classes("R1.5", reported="67 by the moving average, 76.5 by the batch")
def the_moving_average_fails(r: Results, s: Settings) -> Evidence:
    """What fails is the moving average: by the statistics of test batches so composed, the same BN is accurate."""
    if not s.few_classes:
        return not_testable(UNHAD)
    bn = composed(r, s).at(norm="bn")
    estimand = "test accuracy, by the statistics of test batches minus by running statistics"
    difference = bn.at(batches="few, by the batch") - bn.at(batches="few")
    evidence = greater(difference, estimand, POINTS, margin=s.margin_points)
    return replace(evidence, remark="The composition of such a batch reveals its classes.")


# --- claims of others ---


@paper.claim("T1", source=GHOST, reported="no number read in the text", gate=usual_has_trained)
def ghost_batches_regularize(r: Results, s: Settings) -> Evidence:
    """Statistics from parts of the batch (ghost batches) regularize: accuracy is higher than with the whole batch."""
    best = r.of_runs("val_accuracy", part="ghosts").without("variant").best("images") or 0
    whole, parts = r.test_accuracy(part="whole", norm="bn"), r.test_accuracy(part="ghosts", images=best)
    difference, condition = parts.without("variant") - whole.without("variant"), f"ghost batches of {best}"
    estimand = "test accuracy, BN with the ghost batches best on validation data minus whole"
    return greater(difference, estimand, POINTS, margin=s.ghost_margin, condition=condition)


@paper.claim(
    "N2",
    source=f"Ioffe & Szegedy (2015), section 4.2.1; {BENCHMARK}",
    where="section 4.2.1",
    reported="CaffeNet128 on ImageNet: with LRN .470, without .471; Inception with BN leaves it out",
    gate=plain_has_trained,
)
def lrn_does_not_help(r: Results, s: Settings) -> Evidence:
    """Local response normalization does not improve accuracy."""
    plain = r.test_accuracy(part="plain").without("variant")
    difference = plain.at(norm="lrn") - plain.at(norm="none")
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
    """Test accuracy by the number of images that each of eight workers has, from which BN's statistics come, and of one
    worker alone; the source's, by images per GPU, are one run each.
    """
    own = r.test_accuracy(part="alone").without("variant")
    here = {"airbench x 0.25, CIFAR-10": accuracies(r), "airbench x 0.25, CIFAR-10, one worker alone": own}
    return [
        {"network": network, "norm": NAMES[norm], "images": size, "test accuracy, %": found}
        for network, values in (here | {"ResNet-50, ImageNet": REPORTED}).items()
        for norm in values.levels("norm")
        for size, found in sorted(values.at(norm=norm).intervals("images").items())
    ]


@paper.table
def usual_batch(r: Results, s: Settings) -> list[Row]:
    """Test accuracy at a batch of 256, by the learning rate; of BN also over the batch as a whole and parts of it."""
    rows = [
        {"norm": NAMES[norm], "rate": rate, "test accuracy, %": found}
        for norm in s.rates
        for rate, found in r.test_accuracy(part="rates", norm=norm).without("variant").intervals("rate").items()
    ]
    others = {
        **{NAMES[norm]: (s.plain_rate, r.test_accuracy(part="plain", norm=norm)) for norm in PLAIN},
        "BN over the whole batch": (s.rate, r.test_accuracy(part="whole", norm="bn")),
        **{f"BN over parts of {n}": (s.rate, r.test_accuracy(part="ghosts", images=n)) for n in s.ghosts},
    }
    for name, (rate, values) in others.items():
        if values:
            found = values.without("variant", "norm").interval()
            rows.append({"norm": name, "rate": rate, "test accuracy, %": found})
    return rows


def one(axes: Axes, values: Values, at: float, look: Look, marker: str) -> None:
    """A hollow mark with its interval, if there are ``values``."""
    if values:
        mean, low, high, _ = astuple(values.interval())
        how: dict[str, Any] = {"color": look.color, "marker": marker, "markerfacecolor": "white", "capsize": 2}
        axes.errorbar([at], [mean], [[mean - low], [high - mean]], linestyle="none", zorder=5, **how)


@paper.figure
def accuracy_by_images(r: Results, s: Settings) -> Figure | None:
    """Left: test accuracy by the number of images that each of eight workers has, all norms at one learning rate,
    proportional to the batch; hollow, at the usual batch, BN and group norm at the best rate of their sweeps; crosses,
    one worker alone. Right: the source's, ResNet-50 on ImageNet, by images per GPU, one run each.
    """
    values, look = accuracies(r), looks(NAMES)
    if not values:
        return None
    figure, (left, right) = panels(2, height=2.8, width_ratios=(3, 2))
    lines(left, values, "images", "norm", look, bars=True)
    for norm in s.rates:
        one(left, at_best(r, norm), s.usual * ASIDE[norm], look[norm], look[norm].marker)
        one(left, alone(r, norm), s.alone * ASIDE[norm], look[norm], "x")
    lines(right, REPORTED, "images", "norm", look)
    left.set(xlabel="images a worker", ylabel="test accuracy, %", title="here (CIFAR-10)")
    right.set(xlabel="images per GPU", ylabel="top-1 accuracy, %", title="source (ImageNet)")
    for axes, sizes in ((left, s.images), (right, REPORTED.levels("images"))):
        axes.set_xscale("log", base=2)
        ticks(axes, sizes)
    legend(figure, columns=6, of=left)
    return figure
