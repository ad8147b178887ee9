"""Two networks in step, and the custom layer against its four operations: K3 and K6 without chance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.config import load_config
from bnrepro.data.dataset import Dataset, derive_seed, epoch_plan, train_batch
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.training.model import build, norm_of, weighted_layers
from bnrepro.training.optimizer import make_optimizer

FRAMEWORK = ("norm.eps=1e-3", "norm.momentum=0.01")  # Keras's BatchNormalization: momentum 0.99 in its own sense
LOOK = 5  # steps between looks at the loss in eval mode


@measure("keras_curves/lockstep")
def in_lockstep(data: Dataset, seed: int, steps: int, precision: str, overrides: list[str]) -> list[Row]:
    """Framework BN (eps 1e-3, momentum 0.01) and custom BN as ``overrides`` say: same weights, same batches.

    Rows: ``training`` (x = step), the absolute difference of the training losses; ``eval``, that of the losses in eval
    mode on the validation images; ``loss``, the framework's own; and ``bias``, how far the biases that BN cancels have
    moved in the framework's network: their gradient is zero but for rounding.
    """
    dtype = getattr(torch, precision)
    networks, optimizers = [], []
    for own in (["variant=bn", *FRAMEWORK], ["variant=custombn"]):
        cfg = load_config([*overrides, *own, f"seed={seed}"])
        weights = torch.Generator().manual_seed(derive_seed(seed, "weights"))
        networks.append(build(cfg.model, norm_of(cfg), data.channels, data.image_size, 10, weights).to(dtype))
        optimizers.append(make_optimizer(cfg, networks[-1]))
    held_out, size = data.normalize(data.val.images).to(dtype), cfg.batch_size
    rows = []
    for step in range(steps):
        epoch, batch = divmod(step, len(data.train.labels) // size)
        if batch == 0:
            plan = epoch_plan(len(data.train.labels), cfg.data, seed, epoch)
        x, y = train_batch(data, plan, cfg.data, batch * size, size)
        framework, custom = (train_step(*each, x.to(dtype), y) for each in zip(networks, optimizers, strict=True))
        rows += [row("training", abs(framework - custom), step + 1), row("loss", framework, step + 1)]
        if (step + 1) % LOOK == 0:
            framework, custom = (eval_loss(network, held_out, data.val.labels) for network in networks)
            rows.append(row("eval", abs(framework - custom), step + 1))
    cancelled = [layer.bias.detach() for layer in weighted_layers(networks[0])[:-1] if layer.bias is not None]
    return [*rows, row("bias", max(float(bias.abs().max()) for bias in cancelled))]


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One step; the loss before it."""
    network.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def eval_loss(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """The loss in eval mode."""
    network.eval()
    return float(F.cross_entropy(network(x), y))


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

    def normalized(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        mean, var, scale, shift = (each[:, None, None] for each in (mean, var, gamma, beta))
        return scale * (x - mean) / np.sqrt(var + eps) + shift

    def apart(got: Tensor, want: np.ndarray) -> float:
        return float(np.abs(got.detach().numpy() - want).max())

    errors = {"training": 0.0, "oracle": 0.0}
    moving_mean, moving_var, count = np.zeros(channels), np.ones(channels), batch * height * width
    for _ in range(3):
        x = draw.normal(draw.normal(0, 3, channels)[:, None, None], 2.0, (batch, channels, height, width))
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        got = layer(torch.from_numpy(x))
        errors["training"] = max(errors["training"], apart(got, normalized(x, mean, var)))
        errors["oracle"] = max(errors["oracle"], apart(got, batch_norm_forward(x, gamma, beta, (0, 2, 3), eps)[0]))
        moving_mean = (1 - momentum) * moving_mean + momentum * mean
        moving_var = (1 - momentum) * moving_var + momentum * var * count / (count - 1)
    errors["moving mean"] = apart(layer.get_buffer("running_mean"), moving_mean)
    errors["moving variance"] = apart(layer.get_buffer("running_var"), moving_var)
    layer.eval()
    want = normalized(x, moving_mean, moving_var)
    errors["inference"] = apart(layer(torch.from_numpy(x)), want)
    errors["inference, image alone"] = apart(layer(torch.from_numpy(x[:1])), want[:1])
    layer.train()
    layer(torch.from_numpy(x)).square().sum().backward()
    learned = all(float(p.grad.abs().min()) > 0 for p in layer.parameters() if p.grad is not None)
    with np.errstate(invalid="ignore"):
        constant = np.float64(0) / np.sqrt(np.float64(0))
    found = [row("error", value, what) for what, value in errors.items()]
    return [*found, row("learned", learned), row("without eps", not np.isfinite(constant))]
