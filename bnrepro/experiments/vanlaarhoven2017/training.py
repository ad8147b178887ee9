"""Norms of weights and effective rates; Hoffer et al.'s arms, trained side by side on the same batches."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.training.train import Batch, Trainer, trainer_of

Row = dict[str, Any]
ON, OFF, CORRECTED, REVERSE = "on", "off", "off, corrected", "on, corrected"
FOLLOWS = {CORRECTED: ON, REVERSE: OFF}  # whose effective rates an arm takes
DECAYED = (ON, REVERSE)


def normed_weights(network: nn.Module) -> list[Tensor]:
    """The weights that a norm follows: those of all convolutions and linear layers but the last."""
    return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]


def squares(network: nn.Module) -> list[float]:
    """|w|² of each of them."""
    return [float(w.detach().square().sum()) for w in normed_weights(network)]


def mean_square(network: nn.Module) -> float:
    """Their geometric mean."""
    return math.exp(fmean(map(math.log, squares(network))))


@measure("vanlaarhoven2017/norms")
def norms(run: Run, seed: int) -> list[Row]:
    """At the end of a run: the mean of |w|² over that at its start, and the mean effective rate lr / |w|²."""
    network = trainer_of(run.config).network
    start = mean_square(network)
    network.load_state_dict(checkpoint.load(run.path / record.CHECKPOINT)["network"])
    end = mean_square(network)
    return [
        {"quantity": "growth", "x": None, "value": end / start},
        {"quantity": "effective_rate", "x": None, "value": run.config.optimizer.lr / end},
    ]


@measure("vanlaarhoven2017/four_arms")
def four_arms(run: Run, seed: int, epochs: int, decay: float) -> list[Row]:
    """Weight decay on; off; off at the effective rates of on; on at the effective rates of off.

    In step t, layer l of a corrected arm takes lr |w_l|² / |v_l|², with v the weights of the arm that it follows.

    Rows by step, at the end of each epoch: ``<arm>: error`` (validation, %), ``: square`` (mean |w|²), ``: rate`` (mean
    effective rate); ``: test`` (accuracy, %) and ``: train`` (loss of the last epoch) at the end.
    """
    cfg = replace(run.config, epochs=epochs)
    arms = {arm: trainer_of(cfg) for arm in (ON, OFF, CORRECTED, REVERSE)}
    for arm, trainer in arms.items():
        trainer.optimizer = layerwise(trainer, decay if arm in DECAYED else 0.0)
    rows: list[Row] = []
    losses: dict[str, list[float]] = {arm: [] for arm in arms}

    def note(arm: str, quantity: str, step: int | None, value: float) -> None:
        rows.append({"quantity": f"{arm}: {quantity}", "x": step, "value": value})

    for batch in arms[ON].batches():
        held = {arm: squares(trainer.network) for arm, trainer in arms.items()}
        for arm, trainer in arms.items():
            follows = held[FOLLOWS.get(arm, arm)]
            factors = [own / other for own, other in zip(held[arm], follows, strict=True)]
            losses[arm].append(update(trainer, batch, factors))
            if not math.isfinite(losses[arm][-1]):
                return [*rows, {"quantity": f"{arm}: diverged", "x": None, "value": batch.step}]
            if (batch.step + 1) % trainer.steps_per_epoch == 0:
                _, accuracy = trainer.measure(trainer.data.val)
                note(arm, "error", batch.step + 1, 100 * (1 - accuracy))
                note(arm, "square", batch.step + 1, mean_square(trainer.network))
                rates = [batch.lr * f / own for f, own in zip(factors, held[arm], strict=True)]
                note(arm, "rate", batch.step + 1, math.exp(fmean(map(math.log, rates))))
    for arm, trainer in arms.items():
        note(arm, "test", None, 100 * trainer.measure(trainer.data.test)[1])
        note(arm, "train", None, fmean(losses[arm][-trainer.steps_per_epoch :]))
    return rows


def layerwise(trainer: Trainer, decay: float) -> torch.optim.Optimizer:
    """SGD with a group for each weight that a norm follows, decayed, and one for all other parameters, which are not.

    The rates are set at each step.
    """
    weights = normed_weights(trainer.network)
    held = set(map(id, weights))
    rest = [p for p in trainer.network.parameters() if id(p) not in held]
    groups: list[dict[str, Any]] = [{"params": [w], "weight_decay": decay} for w in weights]
    return torch.optim.SGD([*groups, {"params": rest}], lr=0.0, momentum=trainer.cfg.optimizer.momentum)


def update(trainer: Trainer, batch: Batch, factors: list[float]) -> float:
    """A step with the batch's rate times each layer's factor; the loss."""
    trainer.network.train()
    for group, factor in zip(trainer.optimizer.param_groups, [*factors, 1.0], strict=True):
        group["lr"] = batch.lr * factor
    trainer.optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(trainer.network(batch.x), batch.y)
    loss.backward()
    trainer.optimizer.step()
    return float(loss.detach())
