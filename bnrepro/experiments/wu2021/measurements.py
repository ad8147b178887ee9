"""What is trained, and how it is looked at: every kind of statistics along one training; ghost batches; frozen ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro import train
from bnrepro.config import load_config
from bnrepro.data import Split, mix
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.norm import reestimate_statistics
from bnrepro.norm.statistics import batch_statistics, tracking_layers
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import Trainer, trainer_of

Row = dict[str, Any]
PATH, GHOST = "path", "ghost"
CUMULATIVE, POPULATION, BATCH, FROZEN = "cumulative", "population", "batch", "frozen"
POPULATION_BATCH = 100  # images a forward pass, so that 100 samples are one


def arms(settings: Settings) -> list[Arm]:
    """The first epoch of each training, as an ordinary run: it says where the data are, and is a check."""
    return [Arm(probe.part, probe.factors, probe.config) for probe in probes(settings) if probe.config]


def probes(settings: Settings) -> list[Probe]:
    """Every training of a preset."""
    made: list[Probe] = []
    path, ghost = settings["path"], settings["ghost"]
    for seed in range(settings["seeds"]):
        for variant in path["variants"]:
            for size, overrides in path["batches"].items():
                factors = {"variant": variant, "batch": size}
                cfg = _config(seed, *path["overrides"], *overrides, f"variant={variant}")
                arguments = {key: path[key] for key in ("epochs", "momenta", "points", "images", "samples")}
                arguments["used"] = settings["enough"]
                made.append(Probe(PATH, factors, seed, along_training, arguments, cfg))
        for size in ghost["sizes"]:
            cfg = _config(seed, *ghost["overrides"], "variant=ghostbn", f"norm.ghost_size={size}")
            arguments = {key: ghost[key] for key in ("epochs", "frozen_epochs", "images", "samples")} | {"size": size}
            made.append(Probe(GHOST, {"size": size}, seed, ghost_batches, arguments, cfg))
    return made


def _config(seed: int, *overrides: str) -> Config:
    return replace(_composed(*overrides, "epochs=1"), seed=seed)


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))  # takes a tenth of a second


# --- statistics ---


class Averages:
    """The running statistics of a network under several momenta at once, and their cumulative average.

    With a layer's momentum at 1 its buffers are those of the last batch; from them the averages are kept here, from
    mean 0 and variance 1 on, as torch keeps one. The cumulative one is torch's ``momentum=None``.
    """

    def __init__(self, layers: dict[str, _BatchNorm], momenta: list[float]) -> None:
        self.layers, self.steps = layers, 0
        for layer in layers.values():
            layer.momentum = 1.0
        start = [tensor.clone() for tensor in self._buffers()]
        kinds: list[float | str] = [*momenta, CUMULATIVE]
        self.kept = {kind: [tensor.clone() for tensor in start] for kind in kinds}

    def _buffers(self) -> Iterator[Tensor]:
        for layer in self.layers.values():
            assert layer.running_mean is not None and layer.running_var is not None
            yield layer.running_mean
            yield layer.running_var

    def update(self) -> None:
        """After a training step."""
        self.steps += 1
        for kind, averages in self.kept.items():
            weight = 1 / self.steps if isinstance(kind, str) else kind
            for average, last in zip(averages, self._buffers(), strict=True):
                average.lerp_(last, weight)

    def put(self, kind: float | str) -> None:
        """Into the layers' buffers, which the next training step overwrites."""
        for average, buffer in zip(self.kept[kind], self._buffers(), strict=True):
            buffer.copy_(average)


def population(trainer: Trainer, samples: int | None, size: int = POPULATION_BATCH) -> None:
    """Statistics of ``samples`` training images (None: all) into the network's layers, ``size`` at a time.

    Which images, is drawn by the run's seed. An incomplete last batch is left out.
    """
    data = trainer.data
    generator = torch.Generator().manual_seed(mix(trainer.cfg.seed, "population"))
    order = torch.randperm(len(data.train.labels), generator=generator)[:samples]
    size = min(size, len(order))
    starts = range(0, len(order) - size + 1, size)
    images = (data.train.images[order[start : start + size]] for start in starts)
    reestimate_statistics(trainer.network, (data.normalize(x, trainer.cfg.channels_last) for x in images))


def shuffled(split: Split, images: int | None = None) -> Split:
    """The first ``images`` of a split in an order drawn once: sets sorted by class make batches of one class."""
    generator = torch.Generator().manual_seed(mix(0, "evaluation"))
    order = torch.randperm(len(split.labels), generator=generator)[:images].to(split.labels.device)
    return Split(split.images[order], split.labels[order])


def percent(trainer: Trainer, split: Split, batch_size: int | None = None) -> float:
    """Accuracy in %, with what the layers hold; with ``batch_size``, with the statistics of each such batch."""
    if batch_size is None:
        return 100 * train.measure(trainer.network, trainer.data, split, trainer.cfg)[1]
    with batch_statistics(trainer.network):
        return 100 * train.measure(trainer.network, trainer.data, split, trainer.cfg, batch_size)[1]


# --- measurements ---


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

    def look(prefix: str, x: float | None, split: Split, count: int | None) -> None:
        for kind in averages.kept:
            averages.put(kind)
            rows.append({"quantity": f"{prefix}_{_name(kind)}", "x": x, "value": percent(trainer, split)})
        population(trainer, count)
        rows.append({"quantity": f"{prefix}_{POPULATION}", "x": x, "value": percent(trainer, split)})
        own = percent(trainer, split, min(run.config.batch_size, len(split.labels)))
        rows.append({"quantity": f"{prefix}_{BATCH}", "x": x, "value": own})

    wanted = places(trainer.steps, points)
    for batch in trainer.batches():
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        averages.update()
        if batch.step + 1 in wanted:
            if not bool(loss.isfinite()):
                return [*rows, {"quantity": "diverged", "x": None, "value": batch.step + 1}]
            look("accuracy", batch.step + 1, few, used)
    look("final", None, whole, None)
    for count in samples:
        population(trainer, count)
        rows.append({"quantity": "samples", "x": count, "value": percent(trainer, whole)})
    return rows


def _name(kind: float | str) -> str:
    return kind if isinstance(kind, str) else f"ema {kind:g}"


def places(steps: int, points: int) -> list[int]:
    """Steps to look at: half of them at equal distances in the first fifth of a training, the others up to its end."""
    early = max(1, round(0.2 * steps))
    first = -(-points // 2)
    marks = [early * (i + 1) / first for i in range(first)]
    marks += [early + (steps - early) * (i + 1) / (points - first) for i in range(points - first)]
    return sorted({max(1, round(mark)) for mark in marks})


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
    state = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    optimizer = _copied(trainer.optimizer.state_dict())
    for batch in trainer.batches(fork):
        trainer.update(batch.x, batch.y, batch.lr)

    def look(kind: str, batch_size: int | None = None) -> None:
        for name, split in (("test", test), ("train", trained)):
            rows.append({"quantity": name, "x": kind, "value": percent(trainer, split, batch_size)})

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


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    moments = {
        key: {name: value.clone() if isinstance(value, Tensor) else value for name, value in held.items()}
        for key, held in state["state"].items()
    }
    return {**state, "state": moments}
