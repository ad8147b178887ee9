"""Norms of weights and effective rates: trainings with weight decay on the weights that a norm follows, Hoffer et al.'s
arms side by side, and what the scale of these weights changes, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from statistics import fmean, geometric_mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.config.schema import Initialization, Model
from bnrepro.data.dataset import derive_seed
from bnrepro.norm import NORMS, NormOptions
from bnrepro.runs.record import Run
from bnrepro.training.model import build, weighted_layers
from bnrepro.training.train import trainer_again
from bnrepro.training.trainer import Batch, Trainer

ON, OFF, CORRECTED, REVERSE = "on", "off", "off, corrected", "on, corrected"
FOLLOWS = {ON: ON, OFF: OFF, CORRECTED: ON, REVERSE: OFF}  # whose effective rates an arm takes


def normed_weights(network: nn.Module) -> list[Tensor]:
    """The weights that a norm follows: those of all convolutions and linear layers but the last."""
    return [layer.weight for layer in weighted_layers(network)[:-1]]


def other_parameters(network: nn.Module) -> list[Tensor]:
    normed = set(map(id, normed_weights(network)))
    return [p for p in network.parameters() if id(p) not in normed]


def squares(network: nn.Module) -> list[float]:
    """|w|² of each of the weights that a norm follows."""
    return [float(w.detach().square().sum()) for w in normed_weights(network)]


def mean_square(network: nn.Module) -> float:
    """Geometric mean of the |w|²; 0 where weights have decayed to nothing."""
    found = squares(network)
    return geometric_mean(found) if min(found) > 0 else 0.0


# --- networks ---


@measure("vanlaarhoven2017/tuned")
def tuned(run: Run, seed: int, epochs: int, decay: float) -> list[Row]:
    """A training with weight decay on the weights that a norm follows, and on no others.

    Rows, at the end: ``val`` and ``test`` (accuracy, %), ``growth`` (mean of |w|² over that at the start) and
    ``effective_rate``, lr / |w|², averaged over the layers and over the steps after the warm-up, and left out where
    weights have decayed to 0. Of a training whose loss is no number, ``diverged`` (the step) alone. Means of squares
    and rates are geometric.
    """
    trainer = trainer_again(replace(run.config, epochs=epochs))
    trainer.optimizer = layerwise(trainer, decay)
    start, steps = mean_square(trainer.network), []
    for batch in trainer.batches():
        if batch.step >= trainer.steps_per_epoch * run.config.schedule.warmup_epochs:
            steps.append((batch.lr, mean_square(trainer.network)))
        if not math.isfinite(update(trainer, batch)):
            return [row("diverged", batch.step)]
    found = {"growth": mean_square(trainer.network) / start}
    if all(square > 0 for _, square in steps):
        found["effective_rate"] = geometric_mean(lr / square for lr, square in steps)
    found |= {"val": 100 * trainer.measure(trainer.data.val)[1], "test": 100 * trainer.measure(trainer.data.test)[1]}
    return [row(name, value) for name, value in found.items()]


@measure("vanlaarhoven2017/four_arms", version=2)
def four_arms(run: Run, seed: int, epochs: int, decay: float) -> list[Row]:
    """Weight decay on; off; off at the effective rates of on; on at the effective rates of off.

    In step t, layer l of a corrected arm takes lr |w_l|² / |v_l|², with v the weights of the arm that it follows.

    Rows by step, at the end of each epoch: ``<arm>: error`` (validation, %), ``: square`` (mean |w|²), ``: rate`` (mean
    effective rate); ``: test`` (accuracy, %) and ``: train`` (loss of the last epoch) at the end.
    """
    arms = {arm: trainer_again(replace(run.config, epochs=epochs)) for arm in FOLLOWS}
    for arm, trainer in arms.items():
        trainer.optimizer = layerwise(trainer, decay if arm in (ON, REVERSE) else 0.0)
    rows: list[Row] = []
    losses: dict[str, list[float]] = {arm: [] for arm in arms}
    for batch in arms[ON].batches():
        held = {arm: squares(trainer.network) for arm, trainer in arms.items()}
        for arm, trainer in arms.items():
            factors = [own / other for own, other in zip(held[arm], held[FOLLOWS[arm]], strict=True)]
            losses[arm].append(update(trainer, batch, factors))
            if not math.isfinite(losses[arm][-1]):
                return [*rows, row(f"{arm}: diverged", batch.step)]
            if (batch.step + 1) % trainer.steps_per_epoch == 0:
                rates = [batch.lr * factor / own for factor, own in zip(factors, held[arm], strict=True)]
                found = {"error": 100 * (1 - trainer.measure(trainer.data.val)[1])}
                found |= {"square": geometric_mean(squares(trainer.network)), "rate": geometric_mean(rates)}
                rows += [row(f"{arm}: {name}", value, batch.step + 1) for name, value in found.items()]
    for arm, trainer in arms.items():
        rows.append(row(f"{arm}: test", 100 * trainer.measure(trainer.data.test)[1]))
        rows.append(row(f"{arm}: train", fmean(losses[arm][-trainer.steps_per_epoch :])))
    return rows


def layerwise(trainer: Trainer, decay: float) -> torch.optim.Optimizer:
    """SGD with a group for each weight that a norm follows, decayed, and one for all other parameters, which are not.

    The rates are set at each step.
    """
    groups: list[dict[str, Any]] = [{"params": [w], "weight_decay": decay} for w in normed_weights(trainer.network)]
    groups.append({"params": other_parameters(trainer.network)})
    return torch.optim.SGD(groups, lr=0.0, momentum=trainer.cfg.optimizer.momentum)


def update(trainer: Trainer, batch: Batch, factors: Sequence[float] = ()) -> float:
    """A step with the batch's rate, times each layer's factor where there are factors; the loss."""
    for group, factor in zip(trainer.optimizer.param_groups, chain(factors, repeat(1.0)), strict=False):
        group["lr"] = batch.lr * factor
    return step(trainer.network.train(), trainer.optimizer, batch.x, batch.y)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


# --- identities: in float64 with eps = 0 ---


@measure("vanlaarhoven2017/invariance")
def invariance(seed: int, scale: float, steps: int, lr: float, decay: float) -> list[Row]:
    """A network of three normed layers at its initial weights w and at a w (``scale``), alone and in training.

    Rows, all relative errors unless said: ``loss`` of L(a w) from L(w); ``orthogonal``: cosine of w and its gradient;
    ``gradient`` of a dL/dw at a w from dL/dw at w; ``growth`` of |w|² + lr² |g|² from the next |w|² of plain SGD, and
    ``least_growth``, the smallest relative step of |w|². Then the largest difference of the losses of two trainings,
    from w and from a w: ``sgd`` with (lr, decay) and (a² lr, decay / a²); ``sgd_same`` with (lr, decay) both;
    ``adam`` with lr and a lr; ``adam_same`` with lr both; ``adam_squared`` with lr and a² lr.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "invariance"))
    x = torch.randn(96, 1, 6, 6, dtype=torch.float64, generator=generator)
    y = x.flatten(1)[:, :3].argmax(1)  # three classes, by the first pixels
    networks = normed_network(seed), normed_network(seed, scale)
    weights, larger = map(normed_weights, networks)
    loss, other = (F.cross_entropy(network(x), y) for network in networks)
    gradients, scaled = torch.autograd.grad(loss, weights), torch.autograd.grad(other, larger)
    pairs = zip(weights, gradients, strict=True)
    cosines = [F.cosine_similarity(w.detach().flatten(), g.flatten(), dim=0) for w, g in pairs]
    errors = [(scale * b - a).norm() / a.norm() for a, b in zip(gradients, scaled, strict=True)]
    growth, least_growth = growth_of_squares(networks[0], x, y, steps, lr)

    def losses(kind: str, factor: float, lr: float, decay: float) -> list[float]:
        """``lr`` and ``decay`` are of the weights that a norm follows, the others have a rate of their own."""
        network = normed_network(seed, factor)
        normed = {"params": normed_weights(network), "lr": lr, "weight_decay": decay}
        groups = [normed, {"params": other_parameters(network), "lr": 0.01}]
        sgd = kind == "sgd"
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9) if sgd else torch.optim.Adam(groups, lr=lr, eps=0.0)
        return [step(network, optimizer, x, y) for _ in range(steps)]

    def apart(kind: str, factor: float, decay: float = 0.0, decay_factor: float = 1.0) -> float:
        pairs = zip(losses(kind, 1.0, lr, decay), losses(kind, scale, lr * factor, decay * decay_factor), strict=True)
        return max(abs(p - q) / abs(p) for p, q in pairs)

    found = {
        "loss": abs(other.item() / loss.item() - 1),
        "orthogonal": max(abs(float(cosine)) for cosine in cosines),
        "gradient": max(map(float, errors)),
        "growth": growth,
        "least_growth": least_growth,
        "sgd": apart("sgd", scale**2, decay, scale**-2),
        "sgd_same": apart("sgd", 1, decay),
        "adam": apart("adam", scale),
        "adam_same": apart("adam", 1),
        "adam_squared": apart("adam", scale**2),
    }
    return [row(name, value) for name, value in found.items()]


def normed_network(seed: int, scale: float = 1.0) -> nn.Module:
    """A network with ``scale`` times its initial weights where a norm follows."""
    model = Model(name="paper_mlp", width=0.16, activation="tanh", init=Initialization.glorot)
    norm = partial(NORMS["custombn"], options=NormOptions(eps=0.0))  # torch refuses eps = 0
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    network = build(model, norm, 1, (6, 6), 3, generator).double().train()
    with torch.no_grad():
        for weight in normed_weights(network):
            weight.mul_(scale)
    return network


def growth_of_squares(network: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> tuple[float, float]:
    """Of plain SGD: the largest error of |w|² + lr² |g|² = next |w|², and the smallest relative growth."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    errors, growths = [], []
    for _ in range(steps):
        before = squares(network)
        step(network, optimizer, x, y)
        added = [lr**2 * float(w.grad.square().sum()) for w in normed_weights(network) if w.grad is not None]
        for b, g, a in zip(before, added, squares(network), strict=True):
            errors.append(abs((b + g) / a - 1))
            growths.append(a / b - 1)
    return max(errors), min(growths)
