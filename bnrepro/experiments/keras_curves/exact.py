"""K3 and K6 without chance: two networks in step, and the layer against its four operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.config import load_config
from bnrepro.data import Dataset, epoch_plan, load, mix, train_batch
from bnrepro.experiments.base import Probe, Settings
from bnrepro.experiments.keras_curves.grid import FRAMEWORK, SETUP
from bnrepro.model import Network, build, norm_of
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.optimizer import make_optimizer
from bnrepro.schema import Config

LOCKSTEP, OPERATIONS = "lockstep", "operations"

# What the custom layer is given; the framework's has eps 1e-3 and momentum 0.01 throughout.
PAIRS: dict[str, tuple[str, list[str]]] = {
    "same settings": ("float64", [*FRAMEWORK]),
    "same settings, float32": ("float32", [*FRAMEWORK]),
    "momentum 0.1": ("float64", ["norm.eps=1e-3", "norm.momentum=0.1"]),
    "eps 1e-6": ("float64", ["norm.eps=1e-6", "norm.momentum=0.01"]),
}
LOOK = 5  # steps between looks at the loss in eval mode
Row = dict[str, Any]


def probes(settings: Settings) -> list[Probe]:
    """The lockstep of each pair for a few seeds, and the operations once."""
    common = [*SETUP, "data.flip=true", *settings["lockstep_overrides"]]
    made = [
        Probe(
            LOCKSTEP,
            {"pair": pair},
            seed,
            lockstep,
            {"steps": settings["lockstep_steps"], "precision": precision, "overrides": [*common, *theirs]},
        )
        for seed in range(settings["lockstep_seeds"])
        for pair, (precision, theirs) in PAIRS.items()
    ]
    return [*made, Probe(OPERATIONS, {}, 0, operations, {"batch": 32, "channels": 6, "height": 13, "width": 13})]


class _Walker:
    """A network on its way down."""

    def __init__(self, cfg: Config, data: Dataset, dtype: torch.dtype) -> None:
        weights = torch.Generator().manual_seed(mix(cfg.seed, "weights"))
        self.network: Network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, 10, weights).to(dtype)
        self.optimizer = make_optimizer(cfg, self.network)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step of training; the loss before it."""
        self.network.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> float:
        """In eval mode."""
        self.network.eval()
        return float(F.cross_entropy(self.network(x), y))

    @property
    def cancelled_biases(self) -> Tensor:
        """Biases that a norm directly after them cancels: of all layers but the last."""
        layers = [m for m in self.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return torch.cat([m.bias.detach() for m in layers[:-1] if m.bias is not None])


def lockstep(seed: int, steps: int, precision: str, overrides: list[str]) -> list[Row]:
    """Framework BN (eps 1e-3, momentum 0.01) and custom BN as ``overrides`` say: same weights, same batches.

    Gives the absolute difference of the training losses at each step (``training``, x the step), that of the losses in
    eval mode on the validation images now and then (``eval``), the framework's own loss (``loss``), and how far the
    biases that BN cancels have moved in the framework's network (``bias``): their gradient is zero but for rounding.
    """
    dtype = getattr(torch, precision)
    theirs = load_config([*overrides, "variant=custombn", f"seed={seed}"])
    ours = load_config([*overrides, "variant=bn", *FRAMEWORK, f"seed={seed}"])
    data = load(ours.data, torch.device("cpu"))
    framework, custom = _Walker(ours, data, dtype), _Walker(theirs, data, dtype)
    held_out = data.normalize(data.val.images).to(dtype)
    in_epoch = len(data.train.labels) // ours.batch_size
    rows = []
    for step in range(steps):
        epoch, position = divmod(step, in_epoch)
        if position == 0:
            plan = epoch_plan(len(data.train.labels), ours.data, seed, epoch)
        x, y = train_batch(data, plan, ours.data, position * ours.batch_size, ours.batch_size)
        loss, other = framework.step(x.to(dtype), y), custom.step(x.to(dtype), y)
        rows += [row("training", abs(loss - other), step + 1), row("loss", loss, step + 1)]
        if (step + 1) % LOOK == 0:
            apart = framework.loss(held_out, data.val.labels) - custom.loss(held_out, data.val.labels)
            rows.append(row("eval", abs(apart), step + 1))
    return [*rows, row("bias", float(framework.cancelled_biases.abs().max()))]


def operations(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """The custom layer against the source's four operations in NumPy, the moving averages and inference, in float64.

    1 and 2: mean and deviation of the mini-batch; 3: ``(x - mean) / deviation``; 4: ``gamma * . + beta``. Largest
    absolute differences (``error``, x what); and what the text's formula, which has no eps, makes of a channel that is
    constant in the batch (``without eps``: 1 if it is not finite).
    """
    draw = np.random.default_rng(seed)
    momentum, eps = 0.1, 1e-6
    layer = NORMS["custombn"](channels, (height, width), options=NormOptions(eps=eps, momentum=momentum)).double()
    gamma, beta = draw.normal(1, 0.5, channels), draw.normal(0, 0.5, channels)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(torch.from_numpy(gamma))
        layer.get_parameter("bias").copy_(torch.from_numpy(beta))

    def spread(values: np.ndarray) -> np.ndarray:
        return values[:, None, None]

    mean_ema, var_ema, errors = np.zeros(channels), np.ones(channels), {"training": 0.0, "oracle": 0.0}
    for _ in range(3):
        x = draw.normal(spread(draw.normal(0, 3, channels)), 2.0, (batch, channels, height, width))
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        want = spread(gamma) * (x - spread(mean)) / np.sqrt(spread(var) + eps) + spread(beta)
        got = layer(torch.from_numpy(x)).detach().numpy()
        errors["training"] = max(errors["training"], float(np.abs(got - want).max()))
        oracle = batch_norm_forward(x, gamma, beta, (0, 2, 3), eps)[0]
        errors["oracle"] = max(errors["oracle"], float(np.abs(got - oracle).max()))
        count = batch * height * width
        mean_ema = (1 - momentum) * mean_ema + momentum * mean
        var_ema = (1 - momentum) * var_ema + momentum * var * count / (count - 1)
    buffers = dict(layer.named_buffers())
    errors["moving mean"] = float(np.abs(buffers["running_mean"].numpy() - mean_ema).max())
    errors["moving variance"] = float(np.abs(buffers["running_var"].numpy() - var_ema).max())
    layer.eval()
    want = spread(gamma) * (x - spread(mean_ema)) / np.sqrt(spread(var_ema) + eps) + spread(beta)
    errors["inference"] = float(np.abs(layer(torch.from_numpy(x)).detach().numpy() - want).max())
    one = layer(torch.from_numpy(x[:1])).detach().numpy()
    errors["inference, image alone"] = float(np.abs(one - want[:1]).max())
    layer.train()
    layer(torch.from_numpy(x)).square().sum().backward()
    learned = all(float(p.grad.abs().min()) > 0 for p in layer.parameters() if p.grad is not None)
    with np.errstate(invalid="ignore"):
        constant = np.float64(0) / np.sqrt(np.float64(0))
    return [
        *(row("error", value, what) for what, value in errors.items()),
        row("learned", learned),
        row("without eps", not np.isfinite(constant)),
    ]


def row(quantity: str, value: float, x: float | str | None = None) -> Row:
    """One measured value."""
    return {"quantity": quantity, "x": x, "value": float(value)}
