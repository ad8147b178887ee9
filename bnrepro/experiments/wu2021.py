"""Wu & Johnson, Rethinking "Batch" in BatchNorm (2021).

https://arxiv.org/abs/2105.07576

Differences from the paper
- Small networks on digits and CIFAR-10 for a few epochs, where the source trains ResNet-50 on ImageNet for 100; the
  large batch is hundreds of images, not 8,192.
- The momentum does not change what is trained, so one training gives the moving averages of all momenta, the cumulative
  average and the population's statistics at once; differences between them are of one network.
- Small batches of normalization are ghost batches: parts of one SGD batch, so that steps and rates stay.
- The population's variance is that of the pooled values; the source averages over batches.
- All accuracies are of test images, and nothing is chosen. Points before the last are of the first of them.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from statistics import stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, greater, not_lower
from bnrepro.data.dataset import Split, derive_seed
from bnrepro.norm import reestimate_statistics
from bnrepro.norm.statistics import batch_statistics, tracking_layers
from bnrepro.plots.panels import dots, legend, lines, looks, panels, zero
from bnrepro.plots.style import label
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.evaluation import shuffled
from bnrepro.training.train import Trainer, trainer_of

POINTS = "points of test accuracy"
UNREAD = "no number read in the text"
PATHS = "4 epochs of a quarter-width ResNet-20 on a fifth of CIFAR-10, for 100 of ResNet-50 on ImageNet"
GHOSTS = "4 epochs of a quarter-width ResNet-20 on 2,000 digits, for 100 of ResNet-50 on ImageNet"
CUMULATIVE, POPULATION, BATCH, FROZEN = "cumulative", "population", "batch", "frozen"
USUAL = "ema 0.1"  # torch's momentum, and 1 - 0.9 of the source
EARLY = 0.2  # share of a training that is its beginning
SMALL = [2, 4]  # images per ghost batch that the source calls small
POPULATION_BATCH = 100  # images in a forward pass, so that 100 samples are one
REPORTED = {"ema 0.01": 8.35, USUAL: 8.29, "ema 1": 8.63}
"""gcr's errors, %: ResNet-20 on CIFAR-10."""
KINDS = {
    USUAL: "moving average (0.1)",
    CUMULATIVE: "cumulative average",
    POPULATION: "population",
    BATCH: "the batch's own",
    FROZEN: "frozen at the end",
    "train": "the batch's own, training images",
}


RESNET = ("model=resnet20", "model.width=0.25", "optimizer=sgd", "schedule=cosine")


class Path(BaseModel, extra="forbid", frozen=True):
    """W1 to W1.3, W2: one training under every kind of statistics."""

    variants: list[str] = ["bn", "convbn"]  # statistics per channel, and per channel and location
    batches: dict[str, list[str]] = {  # the rate grows with the batch
        "small": ["batch_size=64", "optimizer.lr=0.05"],
        "large": ["batch_size=500", "optimizer.lr=0.1"],
    }
    overrides: list[str] = ["data=cifar10", "data.val_fraction=0.8", *RESNET, "channels_last=true"]  # 10,000 images
    epochs: int = 4
    momenta: list[float] = [0.01, 0.1, 0.5, 1.0]
    points: int = 8  # of a training at which it is looked at, half of them in its first fifth
    images: int = 500  # test images at those points; at the end, all
    samples: list[int] = [100, 300, 1000, 3000]  # images in the population's statistics


class Ghost(BaseModel, extra="forbid", frozen=True):
    """W1.4, W1.5: training normalises over parts of the batch."""

    # 2,000 images; no hidden linear layer, where two images would be normalised to their signs
    overrides: list[str] = ["data=mnist5k", "data.val_fraction=0.5", *RESNET, "batch_size=64", "optimizer.lr=0.05"]
    sizes: list[int] = [2, 4, 16, 64]
    epochs: int = 4  # including those with frozen statistics
    frozen_epochs: int = 1  # the source: 20 of 100
    images: int = 1000  # test and training images that are classified
    samples: int = 1000  # images in the population's statistics


class Settings(Preset):
    path: Path = Path()
    ghost: Ghost = Ghost()
    enough: int = 1000  # W1.3: the number of samples that is held against all; also used at the points
    # Test accuracies of one network that count as alike: 50 of 10,000 images. Since the port of W1.4 and W1.5 too.
    margin_points: float = 0.5


paper = Paper(__name__, Settings, scale="toy", scale_note=PATHS)


@paper.design
def runs(s: Settings) -> Design:
    """Trainings under every kind of statistics, and on ghost batches.

    The run itself is the first epoch of what is measured: it says where the data are, and is a check.
    """
    design = Design(s.seeds)
    for variant in s.path.variants:
        for size, batch in s.path.batches.items():
            run = [*s.path.overrides, *batch, f"variant={variant}", "epochs=1"]
            asked = s.path.model_dump(include={"epochs", "momenta", "points", "images", "samples"}) | {"used": s.enough}
            design.train("path", {"variant": variant, "batch": size}, run, (along_training, asked))
    for images in s.ghost.sizes:
        run = [*s.ghost.overrides, "variant=ghostbn", f"norm.ghost_size={images}", "epochs=1"]
        asked = s.ghost.model_dump(include={"epochs", "frozen_epochs", "images", "samples"}) | {"size": images}
        design.train("ghost", {"size": images}, run, (ghost_batches, asked))
    return design


# --- statistics ---


class Averages:
    """The running statistics of a network under several momenta at once, and their cumulative average.

    With a layer's momentum at 1 its buffers are those of the last batch; from them the averages are kept here, from
    mean 0 and variance 1 on, as torch keeps one. The cumulative one is torch's ``momentum=None``.
    """

    def __init__(self, layers: dict[str, _BatchNorm], momenta: list[float]) -> None:
        self.layers, self.steps = list(layers.values()), 0
        for layer in self.layers:
            layer.momentum = 1.0
        self.momenta = {**{ema(momentum): momentum for momentum in momenta}, CUMULATIVE: None}
        self.kept = {kind: [buffer.clone() for buffer in self.buffers()] for kind in self.momenta}

    def buffers(self) -> list[Tensor]:
        """Each layer's running mean and variance."""
        return [each for layer in self.layers for each in (layer.running_mean, layer.running_var) if each is not None]

    def update(self) -> None:
        """After a training step."""
        self.steps += 1
        for kind, momentum in self.momenta.items():
            for average, last in zip(self.kept[kind], self.buffers(), strict=True):
                average.lerp_(last, 1 / self.steps if momentum is None else momentum)

    def put(self, kind: str) -> None:
        """Into the layers' buffers, which the next training step overwrites."""
        for average, buffer in zip(self.kept[kind], self.buffers(), strict=True):
            buffer.copy_(average)


def ema(momentum: float) -> str:
    """The name of a moving average."""
    return f"ema {momentum:g}"


def population(trainer: Trainer, samples: int | None, size: int = POPULATION_BATCH) -> None:
    """Statistics of ``samples`` training images (None: all) into the network's layers, ``size`` at a time.

    Which images, is drawn by the run's seed. An incomplete last batch is left out.
    """
    data, channels_last = trainer.data, trainer.channels_last
    generator = torch.Generator().manual_seed(derive_seed(trainer.cfg.seed, "population"))
    order = torch.randperm(len(data.train.labels), generator=generator)[:samples]
    size = min(size, len(order))
    batches = order[: len(order) // size * size].split(size)
    reestimate_statistics(trainer.network, (data.normalize(data.train.images[each], channels_last) for each in batches))


def percent(trainer: Trainer, split: Split, batch_size: int | None = None) -> float:
    """Accuracy in %, with what the layers hold; with ``batch_size``, with the statistics of each such batch."""
    with batch_statistics(trainer.network) if batch_size else nullcontext():
        return 100 * train.measure(trainer.network, trainer.data, split, trainer.cfg, batch_size)[1]


# --- measurements ---


@measure("wu2021/along_training")
def along_training(
    run: Run, seed: int, epochs: int, momenta: list[float], points: int, images: int, samples: list[int], used: int
) -> list[Row]:
    """Test accuracy (%) by the kind of statistics at ``points`` steps of a training, half of them in its first fifth.

    Rows: ``accuracy_<kind>`` by step, on ``images`` test images and with ``used`` training images in the population's
    statistics; ``final_<kind>`` at the end, on and with all; ``samples`` at the end, by the number of training images.
    """
    trainer = trainer_of(replace(run.config, epochs=epochs))
    averages = Averages(tracking_layers(trainer.network), momenta)
    few, whole = shuffled(trainer.data.test, images), shuffled(trainer.data.test)
    rows: list[Row] = []

    def look(prefix: str, x: int | None, split: Split, count: int | None) -> None:
        for kind in averages.kept:
            averages.put(kind)
            rows.append(row(f"{prefix}_{kind}", percent(trainer, split), x))
        population(trainer, count)
        rows.append(row(f"{prefix}_{POPULATION}", percent(trainer, split), x))
        rows.append(row(f"{prefix}_{BATCH}", percent(trainer, split, trainer.cfg.batch_size), x))

    wanted = places(trainer.steps, points)
    for batch in trainer.batches():
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        averages.update()
        if batch.step + 1 in wanted:
            if not loss.isfinite():
                return [*rows, row("diverged", batch.step + 1)]
            look("accuracy", batch.step + 1, few, used)
    look("final", None, whole, None)
    for count in samples:
        population(trainer, count)
        rows.append(row("samples", percent(trainer, whole), count))
    return rows


def places(steps: int, points: int) -> list[int]:
    """Steps to look at: half of them at equal distances in the first fifth of a training, the others up to its end."""
    early = max(1, round(EARLY * steps))
    first = -(-points // 2)
    marks = [early * (i + 1) / first for i in range(first)]
    marks += [early + (steps - early) * (i + 1) / (points - first) for i in range(points - first)]
    return sorted({max(1, round(mark)) for mark in marks})


@measure("wu2021/ghost_batches")
def ghost_batches(
    run: Run, seed: int, epochs: int, frozen_epochs: int, images: int, samples: int, size: int
) -> list[Row]:
    """Test accuracy (%) of a network that was trained on ghost batches of ``size``, by the statistics at test.

    Rows (x: the kind): ``test`` and ``train`` under the moving average of the layer's own momentum, the population of
    ghost batches, and each ghost batch's own; ``frozen``: the same training with the population's statistics
    frozen in the last ``frozen_epochs``.
    """
    trainer = trainer_of(replace(run.config, epochs=epochs))
    trained, test = shuffled(trainer.data.train, images), shuffled(trainer.data.test, images)
    rows: list[Row] = []
    fork = (epochs - frozen_epochs) * trainer.steps_per_epoch
    for batch in trainer.batches(0, fork):
        trainer.update(batch.x, batch.y, batch.lr)
    state, optimizer = deepcopy(trainer.network.state_dict()), deepcopy(trainer.optimizer.state_dict())
    for batch in trainer.batches(fork):
        trainer.update(batch.x, batch.y, batch.lr)

    def look(kind: str, batch_size: int | None = None) -> None:
        for name, split in (("test", test), ("train", trained)):
            rows.append(row(name, percent(trainer, split, batch_size), kind))

    look("ema")
    population(trainer, samples, size)
    look(POPULATION)
    look(BATCH, size)
    trainer.network.load_state_dict(state)
    trainer.optimizer.load_state_dict(optimizer)
    population(trainer, samples, size)
    for layer in tracking_layers(trainer.network).values():
        setattr(layer, "frozen", True)  # noqa: B010  (ours have it; torch's type does not)
    for batch in trainer.batches(fork):
        trainer.update(batch.x, batch.y, batch.lr)
    look(FROZEN)
    return rows


# --- claims ---


def of_path(r: Results, quantity: str, **at: Any) -> Values:
    """What was measured along a training, by the name of the network."""
    networks = r.measured(quantity, part="path", **at).by("variant", "batch").items()
    return Values.stacked("network", {f"{label(variant)}, {batch} batch": of for (variant, batch), of in networks})


def at_end(r: Results, kind: str) -> Values:
    """Test accuracy at the end of a training under a kind of statistics."""
    return of_path(r, f"final_{kind}")


@paper.claim("W1", where="section 3", reported=UNREAD)
def the_population_is_as_good(r: Results, s: Settings) -> Evidence:
    """Statistics of the population computed after training (PreciseBN) are as good as the moving average or better."""
    difference = at_end(r, POPULATION) - at_end(r, USUAL)
    return not_lower(difference, "population minus moving average at the end", POINTS, margin=s.margin_points)


@paper.claim("W1.2", where="section 3", reported=UNREAD)
def the_moving_average_is_unstable_early(r: Results, s: Settings) -> Evidence:
    """With a large batch the moving average is unstable early in training, where the population's statistics are
    not.
    """
    found = {"population": early(r, POPULATION), "moving average": early(r, USUAL)}
    lost = found["population"].mean("x") - found["moving average"].mean("x")
    evidence = greater(lost, "population minus moving average, first fifth", POINTS, bar=s.margin_points)
    spreads = {name: values.reduce(lambda of: stdev(of) if len(of) > 1 else 0.0, "x") for name, values in found.items()}
    return evidence.showing({f"standard deviation there, {name}": each for name, each in spreads.items()}, "points")


def early(r: Results, kind: str) -> Values:
    """Accuracies at the points in the first fifth of a training with a large batch."""
    values = of_path(r, f"accuracy_{kind}", batch=["large"])
    steps = values.levels("x")
    return values.at(x=[step for step in steps if step <= EARLY * max(steps) + 0.5])  # the points are whole steps


@paper.claim("W1.3", where="section 3", reported="10^3 to 10^4 samples (ResNet-50, ImageNet)")
def a_thousand_samples_are_enough(r: Results, s: Settings) -> Evidence:
    """1,000 to 10,000 samples are enough for the population's statistics."""
    difference = of_path(r, "samples", x=s.enough) - at_end(r, POPULATION)
    return equal(difference, f"statistics of {s.enough:,} images minus all", POINTS, margin=s.margin_points)


@paper.claim(
    "W2",
    source="gcr, a public comparison of momenta: ResNet-20 on CIFAR-10",
    reported="error 8.35% with momentum 0.01, 8.29% with 0.1, 8.63% with 1, 8.22% with one that changes",
    scale="reduced",
    scale_note="4 epochs on a fifth of CIFAR-10, a quarter of the width",
)
def momentum_does_not_matter(r: Results, s: Settings) -> Evidence:
    """The momentum of the moving average has no significant effect on the error."""
    others = [momentum for momentum in s.path.momenta if ema(momentum) != USUAL]
    difference = by_momentum(r, others) - at_end(r, USUAL)
    return equal(difference.by("network"), "moving average minus momentum 0.1", POINTS, margin=s.margin_points)


def by_momentum(r: Results, momenta: list[float]) -> Values:
    """Test accuracy at the end under the moving averages."""
    return Values.stacked("momentum", {momentum: at_end(r, ema(momentum)) for momentum in momenta})


def after_small(r: Results, split: str, kind: str) -> Values:
    """Accuracy on a split under a kind of statistics, after training on small ghost batches."""
    return r.measured(split, part="ghost", size=SMALL, x=kind)


@paper.claim("W1.4", where="section 3", reported=UNREAD, scale_note=GHOSTS)
def the_batch_is_better_after_small_batches(r: Results, s: Settings) -> Evidence:
    """Where training normalises over 2 to 4 images, the batch's own statistics at test are better than the
    population's.
    """
    test = {kind: after_small(r, "test", kind) for kind in (POPULATION, BATCH)}
    estimand = "each ghost batch's statistics minus the population's"
    evidence = greater(test[BATCH] - test[POPULATION], estimand, POINTS, margin=s.margin_points)
    gaps = {KINDS[kind]: after_small(r, "train", BATCH) - values for kind, values in test.items()}
    return evidence.showing({f"training minus test accuracy, {kind}": gap for kind, gap in gaps.items()}, "points")


@paper.claim("W1.5", where="section 3", reported=UNREAD, scale_note=GHOSTS)
def freezing_helps_after_small_batches(r: Results, s: Settings) -> Evidence:
    """Where training normalises over 2 to 4 images, frozen statistics (FrozenBN) in the last epochs help."""
    difference = after_small(r, "test", FROZEN) - after_small(r, "test", POPULATION)
    return greater(difference, "frozen in the last epochs minus never frozen", POINTS, margin=s.margin_points)


# --- tables and figures ---


@paper.table
def final(r: Results, s: Settings) -> list[Row]:
    """Test error at the end of training by the statistics at test."""
    return [
        {"statistics": kind, "source's error, %": REPORTED.get(kind)}
        | {f"{name}, error, %": found for name, found in (100 - at_end(r, kind)).intervals("network").items()}
        for kind in [*map(ema, s.path.momenta), CUMULATIVE, POPULATION, BATCH]
    ]


@paper.table
def samples(r: Results, s: Settings) -> list[Row]:
    """Test accuracy by the number of training images in the population's statistics."""
    some = {count: of_path(r, "samples", x=count) for count in s.path.samples}
    return [
        {"samples": count} | {f"{name}, %": found for name, found in values.intervals("network").items()}
        for count, values in [*some.items(), ("all", at_end(r, POPULATION))]
    ]


@paper.table
def ghost(r: Results, s: Settings) -> list[Row]:
    """Accuracy after training on ghost batches, by the statistics at test."""
    splits = {f"{split}, %": r.measured(split, part="ghost") for split in ("test", "train")}
    return [
        {"images per ghost batch": size, "statistics at test": kind}
        | {name: values.at(size=size, x=kind).interval() for name, values in splits.items()}
        for size in s.ghost.sizes
        for kind in ("ema", POPULATION, BATCH, FROZEN)
    ]


@paper.figure
def along(r: Results, s: Settings) -> Figure | None:
    """Test error of one network by what stands for mean and variance at test, along its training; {s.path.images} test
    images. The population's statistics are of {s.enough:,} training images.
    """
    kinds = (USUAL, CUMULATIVE, POPULATION, BATCH)
    error = 100 - Values.stacked("kind", {kind: of_path(r, f"accuracy_{kind}") for kind in kinds})
    if not error:
        return None
    figure, axes = panels(len(s.path.batches), len(s.path.variants), height=1.9, sharey=True)
    for each, (name, values) in zip(axes, error.by("network").items(), strict=True):
        lines(each, values, "x", "kind", looks(KINDS))
        each.set(title=name, xlabel="step", ylabel="test error, %", ylim=(0, 100))
        each.label_outer(remove_inner_ticks=False)
    legend(figure, of=axes[0])
    return figure


@paper.figure
def against(r: Results, s: Settings) -> Figure | None:
    """Test accuracy at the end minus that with the statistics of all training images. Left: by the number of training
    images in the population's statistics. Right: by the momentum of the moving average.
    """
    whole = at_end(r, POPULATION)
    if not whole:
        return None
    figure, (left, right) = panels(2, height=2.9)
    look = looks(whole.levels("network"))
    for axes, what in ((left, "training images in the statistics"), (right, "momentum of the moving average")):
        zero(axes)
        axes.set(xlabel=what, ylabel="points of test accuracy")
    dots(left, of_path(r, "samples") - whole, "x", "network", look)
    dots(right, by_momentum(r, s.path.momenta) - whole, "momentum", "network", look)
    legend(figure, 2, of=left)
    return figure


@paper.figure
def ghost_batches_at_test(r: Results, s: Settings) -> Figure | None:
    """Error after training on ghost batches, by the statistics at test."""
    test, trained = (r.measured(split, part="ghost") for split in ("test", "train"))
    if not test:
        return None
    kinds = {kind: test.at(x=kind) for kind in (POPULATION, BATCH, FROZEN)} | {"train": trained.at(x=BATCH)}
    figure, (axes,) = panels(height=2.6, width=5.0)
    dots(axes, 100 - Values.stacked("kind", kinds), "size", "kind", looks(KINDS))
    axes.set(xlabel="images per ghost batch in training", ylabel="error, %", ylim=(0, None))
    legend(figure, 2)
    return figure
