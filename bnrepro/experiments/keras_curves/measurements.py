"""Two networks in step, and the custom layer against its four operations: K3 and K6 without chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed, epoch_plan, train_batch
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.training.model import build, norm_of
from bnrepro.training.optimizer import make_optimizer

FRAMEWORK = ("norm.eps=1e-3", "norm.momentum=0.01")  # Keras's BatchNormalization: momentum 0.99 in its own sense
LOOK = 5  # steps between looks at the loss in eval mode
Row = dict[str, Any]


class _Walker:
    """A network on its way down."""

    def __init__(self, cfg: Config, data: Dataset, dtype: torch.dtype) -> None:
        weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
        self.network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, 10, weights).to(dtype)
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

    def largest_cancelled_bias(self) -> float:
        """Of the biases that a norm directly after them cancels: those of all layers but the last."""
        layers = [m for m in self.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return max(float(m.bias.detach().abs().max()) for m in layers[:-1] if m.bias is not None)


@measure("keras_curves/lockstep")
def in_lockstep(data: Dataset, seed: int, steps: int, precision: str, overrides: list[str]) -> list[Row]:
    """Framework BN (eps 1e-3, momentum 0.01) and custom BN as ``overrides`` say: same weights, same batches.

    Rows: ``training`` (x = step), the absolute difference of the training losses; ``eval``, that of the losses in eval
    mode on the validation images; ``loss``, the framework's own; and ``bias``, how far the biases that BN cancels have
    moved in the framework's network: their gradient is zero but for rounding.
    """
    dtype = getattr(torch, precision)
    theirs = load_config([*overrides, "variant=custombn", f"seed={seed}"])
    ours = load_config([*overrides, "variant=bn", *FRAMEWORK, f"seed={seed}"])
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
    return [*rows, row("bias", framework.largest_cancelled_bias())]


@measure("keras_curves/operations")
def operations(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """The custom layer against the source's four operations in NumPy, moving averages and inference, in float64.

    Rows: ``error`` (x = of what), the largest absolute difference; ``learned``, 1 if gamma and beta have gradients; and
    ``without eps``, 1 if the text's formula, which has no eps, is not finite where a channel is constant in the batch.
    """
    draw = np.random.default_rng(seed)
    momentum, eps = 0.1, 1e-6
    layer = NORMS["custombn"](channels, (height, width), options=NormOptions(eps=eps, momentum=momentum)).double()
    gamma, beta = draw.normal(1, 0.5, channels), draw.normal(0, 0.5, channels)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(torch.from_numpy(gamma))
        layer.get_parameter("bias").copy_(torch.from_numpy(beta))
    errors: dict[str, float] = {}

    def compare(what: str, got: Any, want: np.ndarray) -> None:
        errors[what] = max(errors.get(what, 0.0), float(np.abs(got.detach().numpy() - want).max()))

    def normalized(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        mean, var, scale, shift = (each[:, None, None] for each in (mean, var, gamma, beta))
        return scale * (x - mean) / np.sqrt(var + eps) + shift

    mean_ema, var_ema, count = np.zeros(channels), np.ones(channels), batch * height * width
    for _ in range(3):
        x = draw.normal(draw.normal(0, 3, channels)[:, None, None], 2.0, (batch, channels, height, width))
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        got = layer(torch.from_numpy(x))
        compare("training", got, normalized(x, mean, var))
        compare("oracle", got, batch_norm_forward(x, gamma, beta, (0, 2, 3), eps)[0])
        mean_ema = (1 - momentum) * mean_ema + momentum * mean
        var_ema = (1 - momentum) * var_ema + momentum * var * count / (count - 1)
    compare("moving mean", layer.get_buffer("running_mean"), mean_ema)
    compare("moving variance", layer.get_buffer("running_var"), var_ema)
    layer.eval()
    want = normalized(x, mean_ema, var_ema)
    compare("inference", layer(torch.from_numpy(x)), want)
    compare("inference, image alone", layer(torch.from_numpy(x[:1])), want[:1])
    layer.train()
    layer(torch.from_numpy(x)).square().sum().backward()
    learned = all(float(p.grad.abs().min()) > 0 for p in layer.parameters() if p.grad is not None)
    with np.errstate(invalid="ignore"):
        constant = np.float64(0) / np.sqrt(np.float64(0))
    found = [row("error", value, what) for what, value in errors.items()]
    return [*found, row("learned", learned), row("without eps", not np.isfinite(constant))]


def row(quantity: str, value: float, x: float | str | None = None) -> Row:
    """One measured value."""
    return {"quantity": quantity, "x": x, "value": float(value)}
