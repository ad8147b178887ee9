"""Training with norms whose statistics come from parts of the batch, or with batches of few classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnrepro.claims import measure
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed, load
from bnrepro.norm import BatchNorm1d, ConvBatchNorm2d
from bnrepro.norm.statistics import batch_statistics
from bnrepro.norm.variants import BatchRenorm, GhostBatchNorm
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.model import MakeNorm, build, norm_of
from bnrepro.training.optimizer import lr_factor
from bnrepro.training.train import Trainer

VARIANTS = {"bn": "bn", "group": "groupnorm"}
LOCAL_EPS = 1e-3  # local statistics' own, as in `bnrepro.norm.table`

if TYPE_CHECKING:
    _Layer = BatchNorm1d
else:
    _Layer = object


# --- norms over parts of the batch ---


class _Parts(_Layer):
    """In training, each part of ``images`` images goes through the layer by itself, in order (see GhostBatchNorm)."""

    images = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        starts = list(range(self.images, len(x) - self.images + 1, self.images))
        one = super().forward
        return torch.cat([one(part) for part in x.tensor_split(starts)])


class PartsRenorm(_Parts, BatchRenorm):
    """Batch renormalization over parts of the batch; its schedule counts parts."""


class PartsLocal(_Parts, ConvBatchNorm2d):
    """Statistics per channel and location over parts of the batch."""


def momentum_of_part(momentum: float, images: int, batch: int) -> float:
    """The momentum of a part so that the parts of one batch together weigh ``momentum``: 1 - (1 - m)^(images / batch).

    Running statistics then average over as many images whatever the size of a part, and what differs is training.
    """
    return 1 - (1 - momentum) ** (images / batch)


def renorm(images: int, momentum: float, shares: list[float], batches: int) -> MakeNorm:
    """`PartsRenorm`; ``shares`` of ``batches`` parts are its schedule's start, and the steps at which r and d end."""

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        layer = PartsRenorm(features, momentum=momentum)
        layer.images = images
        layer.start, layer.r_steps, layer.d_steps = (round(share * batches) for share in shares)
        return layer

    return make


def local(images: int, momentum: float) -> MakeNorm:
    """`PartsLocal`; after a linear layer, where there is one location, BN over parts."""

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        if not shape:
            ghost = GhostBatchNorm(features, LOCAL_EPS, momentum)
            ghost.ghost_size = images
            return ghost
        layer = PartsLocal(features, (shape[0], shape[1]), eps=LOCAL_EPS, momentum=momentum)
        layer.images = images
        return layer

    return make


# --- the loop ---


@measure("wu2018/trained")
def trained(
    run: Run, seed: int, norm: str, images: int, classes: int, momentum: float, renorm_shares: list[float]
) -> list[dict[str, Any]]:
    """Train as ``run`` was, from the same weights, with another norm or other batches.

    Args:
        run: whose configuration is followed.
        seed: the run's.
        norm: bn, group, renorm or local.
        images: in a part of the batch, from which renorm's and local statistics come.
        classes: 0: the run's own batches. Otherwise how many runs of images of one class a batch is made of.
        momentum: of the running statistics, for a whole batch.
        renorm_shares: of the training's batches: start of renorm's schedule, end of r's, end of d's.

    Rows: ``test_accuracy`` in %, and for BN with ``classes`` ``batch_accuracy``: of test batches so composed, by their
    own statistics. ``diverged`` (the step) in their place where the loss is no number.
    """
    cfg = train.resolve(run.config)
    data = load(cfg.data, torch.device(cfg.device.value))
    of_part = momentum_of_part(momentum, images, cfg.batch_size)
    if norm == "renorm":
        steps = cfg.epochs * (len(data.train.labels) // cfg.batch_size)
        make = renorm(images, of_part, renorm_shares, steps * max(1, cfg.batch_size // images))
    elif norm == "local":
        make = local(images, of_part)
    else:
        make = norm_of(replace(cfg, variant=VARIANTS[norm], norm=replace(cfg.norm, momentum=momentum)))
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    trainer = Trainer(cfg, data, build(cfg.model, make, data.channels, data.image_size, data.num_classes, weights))
    for step in range(trainer.steps):
        epoch, position = divmod(step, trainer.steps_per_epoch)
        if position == 0:
            order = epoch_order(data.train.labels, cfg, classes, epoch)
        index = order[position * cfg.batch_size : (position + 1) * cfg.batch_size]
        lr = cfg.optimizer.lr * lr_factor(cfg.schedule, step, trainer.steps, trainer.steps_per_epoch)
        loss, _ = trainer.update(data.normalize(data.train.images[index]), data.train.labels[index], lr)
        if not math.isfinite(float(loss)):
            return [{"quantity": "diverged", "x": None, "value": float(step)}]
    found = {"test_accuracy": train.measure(trainer.network, data, data.test, cfg)[1]}
    if norm == "bn" and classes:
        found["batch_accuracy"] = by_batches(trainer, data, classes)
    return [{"quantity": quantity, "x": None, "value": 100 * share} for quantity, share in found.items()]


def epoch_order(labels: Tensor, cfg: Config, classes: int, epoch: int) -> Tensor:
    """The order of an epoch's images: the run's own, or `in_runs` of batch / ``classes`` images."""
    generator = torch.Generator().manual_seed(derive_seed(cfg.seed, "order", epoch))
    if not classes:
        return torch.randperm(len(labels), generator=generator)
    return in_runs(labels, cfg.batch_size // classes, generator)


def in_runs(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """An order of all images in which ``size`` images of one class follow one another.

    Each class's images are shuffled and cut into runs, and the runs are shuffled. What is left of the classes, fewer
    than ``size`` of each, comes last, class by class.
    """
    order = torch.randperm(len(labels), generator=generator)
    runs: list[Tensor] = []
    rest: list[Tensor] = []
    for label in labels.unique():
        own = order[labels[order] == label]
        whole = len(own) // size * size
        runs += list(own[:whole].view(-1, size))
        rest.append(own[whole:])
    shuffled = torch.randperm(len(runs), generator=generator).tolist()
    return torch.cat([*(runs[i] for i in shuffled), *rest])


def by_batches(trainer: Trainer, data: Dataset, classes: int) -> float:
    """Test accuracy in batches of few classes, as those of training, by each batch's own statistics."""
    size = trainer.cfg.batch_size
    order = in_runs(data.test.labels, size // classes, torch.Generator().manual_seed(derive_seed(0, "evaluation")))
    whole = order[: len(order) // size * size].split(size)
    correct = 0
    trainer.network.eval()
    with torch.inference_mode(), batch_statistics(trainer.network):
        for index in whole:
            logits = trainer.network(data.normalize(data.test.images[index]))
            correct += int((logits.argmax(1) == data.test.labels[index]).sum())
    return correct / (len(whole) * size)
