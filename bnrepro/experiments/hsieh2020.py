"""Hsieh et al., The Non-IID Data Quagmire of Decentralized Machine Learning (ICML 2020).

https://arxiv.org/abs/1910.00189

What attempts to repeat it found: Zhong et al. (https://arxiv.org/abs/2303.06530, abstract) find that BN outperforms GN
in many federated settings; "The exceptions are high-frequency communication and extreme non-IID regimes", which is the
setting here. Another study (https://arxiv.org/abs/2303.10630, abstract) finds that "Group and Layer Normalization
consistently outperform Batch Normalization". Practitioners replace BN by GN for this reason (https://github.com/NVIDIA/NVFlare/issues/1718).

Differences from the paper
- An eighth-width airbench on CIFAR-10 for 3 epochs; the source trains LeNet, ResNet-20 and others for many more.
- Five clients are one process. Their gradients are averaged at every step (the source's BSP), so that their weights are
  always the same. This is what one network does on their joint batch, each client's part of which is a ghost batch to
  BN: N6 is this, exactly. All skews and norms have the same initial weights of a seed.
- At test, BN has the average over clients of their running statistics, by one moving average over all clients' batches
  in turn, whose momentum is such that a step weighs 0.1; a client that comes later in a step weighs up to 8% more.
- The group normalization is that of our table, at least 8 channels a group.
- Each norm has, with and without skew, the rate of a sweep at which it does best on validation data, and that must lie
  inside the sweep. What is between the two is at rate 0.1.
- 20 images a client and step. Validation and test images have all classes.
- N5's divergence is the deviation over clients of their means, relative to that of single values; the source has
  another formula.
- One pilot was seen before (seed 1000, BN, two classes each, rate 0.1): 80% in training, 26% on test images.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import exact, greater, less, not_lower
from bnrepro.claims.results import CHANCE
from bnrepro.config import load_config
from bnrepro.data.clients import client_batches, label_skewed
from bnrepro.data.dataset import Dataset, epoch_plan, train_batch
from bnrepro.experiments.wu2018 import momentum_of_part
from bnrepro.experiments.wu2021 import percent, trainer_of
from bnrepro.norm import reestimate_statistics
from bnrepro.plots.panels import legend, lines, looks, panels, ticks
from bnrepro.training.evaluation import shuffled
from bnrepro.training.model import at_norms, build, norm_of
from bnrepro.training.optimizer import lr_factor
from bnrepro.training.trainer import Trainer

POINTS = "points of test accuracy"
NORMS = {"bn": "batch normalization", "gn": "group normalization"}
SKEWS = {0.0: "all classes", 1.0: "two classes"}
ABSTRACT = (
    "(ii) the problem is particularly challenging for DNN models with batch normalization; and (iii) the degree of "
    "data skew is a key determinant of the difficulty of the problem"
)
RECOVERS = "group normalization can recover much of the accuracy loss of batch normalization"
UNREAD = "no number read"
JOINT = (
    "By N6 the step with group normalization is that on the joint batch: the skew changes only how these batches are "
    "sampled."
)
TOLERANCE = 1e-10  # N6: of gradients of size 0.1 to 1 in float64
STEPS = 10  # steps of an epoch over whose batches N5 is averaged
POPULATION_STEPS = 50  # steps whose joint batches give the pooled statistics


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every training
        *("data=cifar10", "data.crop=2", "model=airbench", "model.width=0.125", "channels_last=true", "epochs=3"),
        *("optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=5e-4"),
        *("schedule=linear", "schedule.warmup_epochs=0.5"),
    ]
    clients: int = 5
    size: int = 20  # images a client and step
    rates: list[float] = [0.02, 0.1, 0.5, 2.0]  # the sweep
    rate: float = 0.1  # for N4's skews in between, and for N5
    between: list[float] = [0.8]  # skews with BN, for N4
    images: int = 10_000  # at most, of the validation set and of the test set
    momentum: float = 0.1  # of running statistics, for a step
    trained: dict[str, float] = {"bn": 60.0, "gn": 55.0}  # % test accuracy without skew
    margin_points: float = 3.0  # N1, N2: ours; three standard errors of a difference on 10,000 images, times two
    small_points: float = 1.0  # N3, N4: two standard errors
    margin_ratio: float = 2.0  # N5


paper = Paper(__name__, Settings, scale="reduced", scale_note="an eighth-width airbench, 3 epochs of CIFAR-10")


@paper.design
def runs(s: Settings) -> Design:
    """Five clients by norm, skew and rate; and N6 on random networks."""
    design = Design(s.seeds)
    ghosts = momentum_of_part(s.momentum, 1, s.clients)
    norms = {
        "bn": ["variant=ghostbn", f"norm.ghost_size={s.size}", f"norm.momentum={ghosts}"],
        "gn": ["variant=groupnorm"],
    }

    def train(norm: str, skew: float, rate: float) -> None:
        overrides = [*s.common, *norms[norm], f"optimizer.lr={rate}", f"batch_size={s.clients * s.size}"]
        given: Row = {"overrides": overrides, "clients": s.clients, "skew": skew, "images": s.images}
        design.measure("clients", {"norm": norm, "skew": skew, "rate": rate}, by_clients, data=s.common, **given)

    for norm, skew, rate in product(NORMS, SKEWS, s.rates):
        train(norm, skew, rate)
    for skew in s.between:
        train("bn", skew, s.rate)
    design.measure("averaging", {}, averaging, clients=s.clients, size=s.size)
    return design


# --- measurements ---


def steps(trainer: Trainer, parts: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The joint batches of an epoch, augmented and normalised, and their labels."""
    cfg, data = trainer.cfg, trainer.data
    joint = list(client_batches(parts, cfg.batch_size // len(parts), cfg.seed, epoch))
    plan = replace(epoch_plan(len(data.train.labels), cfg.data, cfg.seed, epoch), order=torch.cat(joint))
    for step in range(len(joint)):
        start, size = step * cfg.batch_size, cfg.batch_size
        yield train_batch(data, plan, cfg.data, start, size, channels_last=trainer.channels_last)


@measure("hsieh2020/by_clients")
def by_clients(data: Dataset, seed: int, overrides: list[str], clients: int, skew: float, images: int) -> list[Row]:
    """Accuracy (%) of a network that clients train together, averaging their gradients at every step.

    Rows: ``test`` and ``val``; ``train``, of the last epoch's batches, each client's normalised by itself; ``pooled``
    (with BN), ``test`` with statistics over the values of all clients together; ``divergence`` at the end (x: first and
    last norm), see `divergence`. Or ``diverged`` (the step) where a loss is no number.
    """
    trainer = trainer_of(data, overrides, seed)
    cfg, rows = trainer.cfg, list[Row]()
    parts = label_skewed(data.train.labels, clients, skew, seed)
    each = len(parts[0]) // (cfg.batch_size // clients)
    right = torch.zeros((), dtype=torch.int64)
    for epoch in range(cfg.epochs):
        right.zero_()
        for place, (x, y) in enumerate(steps(trainer, parts, epoch)):
            step = epoch * each + place
            lr = cfg.optimizer.lr * lr_factor(cfg.schedule, step, cfg.epochs * each, each)
            loss, correct = trainer.update(x, y, lr)
            right += correct
            if not loss.isfinite():
                return [row("diverged", step)]
    rows.append(row("train", 100 * float(right) / (each * cfg.batch_size)))
    val, test = shuffled(data.val, images), shuffled(data.test, images)
    rows += [row("val", percent(trainer, val)), row("test", percent(trainer, test))]
    joint = [
        x for x, _ in zip((x for x, _ in steps(trainer, parts, cfg.epochs)), range(POPULATION_STEPS), strict=False)
    ]
    rows += [row("divergence", value, x) for x, value in divergence(trainer, joint[:STEPS], clients).items()]
    if cfg.variant == "ghostbn":
        reestimate_statistics(trainer.network, joint)
        rows.append(row("pooled", percent(trainer, test)))
    return rows


@torch.no_grad()
def divergence(trainer: Trainer, joint: list[Tensor], clients: int) -> dict[str, float]:
    """How far clients' means of what enters the first and the last norm are apart, the mean over channels and steps.

    Per channel: the standard deviation over clients of the mean over a client's batch, over that of all values of the
    joint batch. With the statistics of inference, so that nothing is changed.
    """
    trainer.network.eval()
    found: dict[str, list[Tensor]] = {"first": [], "last": []}
    for x in joint:
        with at_norms(trainer.network) as inputs:
            trainer.network(x)
        for name, values in zip(found, (next(iter(inputs.values())), list(inputs.values())[-1]), strict=True):
            means = torch.stack([part.mean((0, 2, 3)) for part in values.chunk(clients)])
            alone = values.std((0, 2, 3), correction=0).clamp(min=1e-12)
            found[name].append((means.std(0, correction=0) / alone).mean())
    return {name: float(torch.stack(values).mean()) for name, values in found.items()}


@measure("hsieh2020/averaging")
def averaging(seed: int, clients: int, size: int) -> list[Row]:
    """N6. Largest difference, in float64, between the average of the clients' gradients and that of a joint batch.

    Rows: ``error``, x: "bn, parts" (the joint batch's parts are normalised by themselves, as ghost batches), "gn"; and
    "bn, whole" (the joint batch is normalised as one), which is another gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((clients * size, 3, 32, 32), dtype=torch.float64, generator=generator)
    x += torch.arange(clients).repeat_interleave(size).view(-1, 1, 1, 1)  # clients differ
    y = torch.randint(10, (clients * size,), generator=generator)

    def network(*norm: str) -> nn.Module:
        cfg = load_config(["model=airbench", "model.width=0.1", *norm])
        weights = torch.Generator().manual_seed(seed)
        return build(cfg.model, norm_of(cfg), 3, (32, 32), 10, weights).double().train()

    def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    def averaged(net: nn.Module) -> Tensor:
        each = zip(x.chunk(clients), y.chunk(clients), strict=True)
        return torch.stack([gradient(deepcopy(net), *own) for own in each]).mean(0)

    joint = {
        "bn, parts": (["variant=bn"], ["variant=ghostbn", f"norm.ghost_size={size}"]),
        "gn": (["variant=groupnorm"], ["variant=groupnorm"]),
        "bn, whole": (["variant=bn"], ["variant=bn"]),
    }
    return [
        row("error", (averaged(network(*own)) - gradient(network(*together), x, y)).abs().max(), name)
        for name, (own, together) in joint.items()
    ]


# --- claims ---


def accuracy(r: Results, split: str = "test", **at: Any) -> Values:
    """Accuracy by norm, skew and rate; that of chance where the training diverged."""
    ends, diverged = r.measured(split, part="clients", **at), r.measured("diverged", part="clients", **at)
    return diverged.map(lambda _: CHANCE) | ends


def best_rate(r: Results, s: Settings, norm: str, skew: float) -> Any:
    """The rate of the sweep with the best mean validation accuracy."""
    return accuracy(r, "val", norm=norm, skew=skew).best("rate", s.rate)


def at_best(r: Results, s: Settings, norm: str, skew: float) -> Values:
    """Test accuracy at that rate."""
    return accuracy(r, norm=norm, skew=skew, rate=best_rate(r, s, norm, skew))


def best_rates(r: Results, s: Settings, *norms: str) -> dict[str, tuple[Any, list[float]]]:
    """By arm of ``norms``, its best rate and the sweep."""
    arms = product(norms, SKEWS)
    return {f"{NORMS[norm]}, {SKEWS[skew]},": (best_rate(r, s, norm, skew), s.rates) for norm, skew in arms}


def trained(r: Results, s: Settings) -> Gate:
    """Both norms, without skew, at their best rates."""
    bn, gn = (
        reaches(at_best(r, s, norm, 0.0), s.trained[norm], f"test accuracy without skew, {name}, %")
        for norm, name in NORMS.items()
    )
    return bn & gn


about = partial(paper.claim, where="abstract", reported=UNREAD, gate=trained)


@about("N1", quote=ABSTRACT)
def bn_fails(r: Results, s: Settings) -> Evidence:
    """Where clients have labels of their own, batch normalization loses accuracy even though they average at every
    step.
    """
    skewed, alike = (at_best(r, s, "bn", skew) for skew in (1.0, 0.0))
    estimand = "two classes a client minus all classes, each at its best rate"
    evidence = less(skewed - alike, estimand, POINTS, margin=-s.margin_points)
    rate = best_rate(r, s, "bn", 1.0)
    pooled = r.measured("pooled", part="clients", norm="bn", skew=1.0, rate=rate)
    evidence = evidence.showing({"with statistics over all clients' values": pooled - alike})
    fitted = {
        f"training accuracy with each client's own statistics, {name}": accuracy(
            r, "train", norm="bn", skew=skew, rate=best_rate(r, s, "bn", skew)
        )
        for skew, name in SKEWS.items()
    }
    evidence = evidence.showing(fitted, "%")
    return evidence.unless_at_edge(best_rates(r, s, "bn"))


@about("N2", quote=RECOVERS)
def group_normalization_recovers_much(r: Results, s: Settings) -> Evidence:
    """Group normalization recovers much, more than half, of the accuracy that batch normalization loses."""
    skewed, alike, other = at_best(r, s, "bn", 1.0), at_best(r, s, "bn", 0.0), at_best(r, s, "gn", 1.0)
    estimand = "group normalization, two classes a client, minus the middle between BN's accuracies with and without"
    evidence = greater(other - 0.5 * (skewed + alike), estimand, POINTS, margin=s.margin_points)
    evidence = evidence.showing({"minus BN, two classes a client": other - skewed})
    return replace(evidence.unless_at_edge(best_rates(r, s, "bn", "gn")), remark=JOINT)


@about("N3", quote=RECOVERS)
def group_normalization_does_not_fail(r: Results, s: Settings) -> Evidence:
    """Group normalization loses no accuracy where clients have labels of their own."""
    difference = at_best(r, s, "gn", 1.0) - at_best(r, s, "gn", 0.0)
    estimand = "two classes a client minus all classes, each at its best rate"
    evidence = not_lower(difference, estimand, POINTS, margin=s.small_points)
    return replace(evidence.unless_at_edge(best_rates(r, s, "gn")), remark=JOINT)


@about("N4", quote=ABSTRACT)
def the_degree_of_skew_decides(r: Results, s: Settings) -> Evidence:
    """With batch normalization, the more labels are skewed, the more accuracy is lost."""
    skews = sorted([*SKEWS, *s.between])
    found = {skew: accuracy(r, norm="bn", skew=skew, rate=s.rate) for skew in skews}
    steps = {f"skew {more:g} minus {fewer:g}": found[more] - found[fewer] for fewer, more in pairwise(skews)}
    return less(steps, f"at rate {s.rate:g}", POINTS, margin=-s.small_points)


@about("N5", quote=None, where="the source's explanation; sentence not read")
def means_of_clients_are_apart(r: Results, s: Settings) -> Evidence:
    """Where clients have labels of their own, the means of their batches are farther apart than where they have all."""
    found = r.measured("divergence", part="clients", norm="bn", rate=s.rate)
    ratio = found.at(skew=1.0) / found.at(skew=0.0)
    named = {f"{x} norm": ratio.at(x=x) for x in ("first", "last")}
    estimand = "distance of clients' means, two classes a client over all classes"
    return greater(named, estimand, "times", margin=s.margin_ratio, ratio=True)


@paper.claim("N6", kind="identity", where="ours", reported="no number")
def clients_are_ghost_batches(r: Results, s: Settings) -> Evidence:
    """The average of clients' gradients is the gradient of their joint batch: with group normalization as it is, with
    batch normalization where each client's part is normalised by itself.
    """
    found = r.measured("error", part="averaging")
    names = {"gn": "group normalization", "bn, parts": "BN, parts normalised by themselves"}
    errors = {name: found.at(x=x) for x, name in names.items()}
    evidence = exact(errors, "largest difference of the gradients", tolerance=TOLERANCE)
    return evidence.showing({"BN, normalised as one": found.at(x="bn, whole")})


# --- tables and figures ---


@paper.table
def sweep(r: Results, s: Settings) -> list[Row]:
    """Accuracy in percent of five clients that average at every step, by norm, skew of the labels (0: all classes; 1:
    two classes each) and learning rate. In training, BN has each client's own statistics.
    """
    return [
        {"norm": NORMS[norm], "skew": skew, "rate": rate}
        | {
            f"{name}, %": accuracy(r, split, norm=norm, skew=skew, rate=rate).interval()
            for split, name in (("train", "training"), ("val", "validation"), ("test", "test"))
        }
        | {"test, statistics over all clients, %": pooled(r, norm, skew, rate)}
        for norm, skew, rate in accuracy(r).by("norm", "skew", "rate")
    ]


def pooled(r: Results, norm: str, skew: float, rate: float) -> Any:
    """Interval of the accuracy with statistics over all clients; None with group normalization, which has none."""
    return r.measured("pooled", part="clients", norm=norm, skew=skew, rate=rate).interval() if norm == "bn" else None


@paper.figure
def clients(r: Results, s: Settings) -> Figure | None:
    """Test accuracy of five clients that average their gradients at every step, by norm and learning rate, where each
    has all classes and where each has two of its own; bars are the intervals.
    """
    if not accuracy(r):
        return None
    figure, axes = panels(2, height=2.7, sharey=True)
    look = looks({skew: f"each client has {name}" for skew, name in SKEWS.items()})
    for panel, (norm, title) in zip(axes, NORMS.items(), strict=True):
        lines(panel, accuracy(r, norm=norm, skew=list(SKEWS)), "rate", "skew", look, bars=True)
        panel.set(xscale="log", xlabel="learning rate", title=title, ylim=(0, 100))
        ticks(panel, s.rates)
    axes[0].set_ylabel("test accuracy, %")
    legend(figure, of=axes[0])
    return figure
