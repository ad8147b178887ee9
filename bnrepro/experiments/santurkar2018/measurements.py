r"""What is measured: the landscape along a run and its activations' distributions; and deep linear networks.

A run is trained again from its initial weights, on the same batches, and measured on its way.

With a loss :math:`L`, parameters :math:`\theta`, gradient :math:`g = \nabla L(\theta)` and steps :math:`\eta` along it,
:math:`\theta_\eta = \theta - \eta g`, and :math:`g_\eta = \nabla L(\theta_\eta)`:

- variation of the loss (their Figure 4a): the range of :math:`L(\theta_\eta)`;
- gradient predictiveness (4b): the range of :math:`\|g_\eta - g\|`;
- effective smoothness (4c): :math:`\beta = \max_\eta \|g_\eta - g\| / (\eta \|g\|)`;
- internal covariate shift of layer i (Definition 2.1): :math:`\|G_i - G_i'\|` and :math:`\cos(G_i, G_i')`, where
  :math:`G_i` is the gradient with respect to that layer's weights, and :math:`G_i'` the same after all earlier layers
  have made their step of gradient descent, on the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.data.dataset import derive_seed
from bnrepro.norm import NORMS
from bnrepro.runs.record import Run
from bnrepro.training.model import Network, at_norms
from bnrepro.training.train import trainer_again

Parameters = list[Tensor]
BINS = 24
REACH = 4.0  # standard deviations to either side of the mean over all times that a histogram shows


# --- the landscape ---


class Objective:
    """The loss of a network on one batch, in training mode, as a function of the parameters.

    The network stays as it is: it is called with the parameters that are given, and with copies of its running
    statistics, which take the updates.
    """

    def __init__(self, network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        self.network, self.x, self.loss = network.train(), x, loss
        self.parameters: Parameters = list(network.parameters())
        """Where the network stands."""
        self.layer_of: list[int] = []
        """The layer (from 1) of each parameter, its weight first; a norm belongs to the layer before it."""
        layer = 0
        for module in network.modules():
            layer += isinstance(module, nn.Conv2d | nn.Linear | Factor)
            self.layer_of += [layer for _ in module.parameters(recurse=False)]

    def gradient(self, parameters: Parameters) -> tuple[float, Parameters]:
        """The loss and its gradient at ``parameters``, in the order of the network's own."""
        leaves = [p.detach().requires_grad_() for p in parameters]
        state = dict(zip(dict(self.network.named_parameters()), leaves, strict=True)) | copies(self.network)
        value = self.loss(functional_call(self.network, state, (self.x,)))
        return float(value.detach()), list(torch.autograd.grad(value, leaves))

    def moved(self, gradient: Parameters, step: float) -> Parameters:
        """The network's parameters after a step along ``gradient``."""
        return [p.detach() - step * g for p, g in zip(self.parameters, gradient, strict=True)]


def copies(network: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's running statistics."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def measured(step: int, objective: Objective, lr: float, along: list[float], layers: list[int]) -> list[Row]:
    """All measures at one step, as rows (x = ``step``): with steps of ``along`` times ``lr`` along the gradient, and of
    the internal covariate shift of ``layers`` (from 1).
    """
    loss, gradient = objective.gradient(objective.parameters)
    values = {"loss": loss, "gradient": norm(gradient)}
    values |= along_gradient(objective, gradient, [lr * factor for factor in along])
    for layer in layers:
        difference, cosine = covariate_shift(objective, gradient, lr, layer)
        values |= {f"difference_{layer}": difference, f"cosine_{layer}": cosine}
    return [row(name, value, step) for name, value in values.items()]


def along_gradient(objective: Objective, gradient: Parameters, steps: list[float]) -> dict[str, float]:
    """The extremes of the loss and of the change of the gradient over ``steps`` along it, and the effective beta.

    nan counts as infinite: the numbers have overflowed.
    """
    found = []
    for step in steps:
        loss, other = objective.gradient(objective.moved(gradient, step))
        change = norm([after - before for after, before in zip(other, gradient, strict=True)])
        found.append([math.inf if math.isnan(value) else value for value in (loss, change)])
    losses, changes = zip(*found, strict=True)
    length = norm(gradient)
    betas = [change / (step * length) for change, step in zip(changes, steps, strict=True)] if length else [math.nan]
    low_high = {"loss_low": min(losses), "loss_high": max(losses), "change_low": min(changes)}
    return low_high | {"change_high": max(changes), "beta": max(betas)}


def covariate_shift(objective: Objective, gradient: Parameters, lr: float, layer: int) -> tuple[float, float]:
    """Norm of the difference, and cosine, of a layer's gradients before and after all earlier layers have moved."""
    stepped = zip(objective.parameters, objective.moved(gradient, lr), objective.layer_of, strict=True)
    weight = objective.layer_of.index(layer)
    before = gradient[weight]
    after = objective.gradient([new if of < layer else old for old, new, of in stepped])[1][weight]
    product = norm([before]) * norm([after])
    cosine = float((before.double() * after.double()).sum()) / product if product else math.nan
    return norm([before - after]), cosine


def norm(tensors: Parameters) -> float:
    """Euclidean norm of all tensors as one vector, summed in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


@measure("santurkar2018/landscape")
def landscape(run: Run, seed: int, steps: int, every: int, along: list[float], layers: list[int]) -> list[Row]:
    """`measured` on every ``every``-th batch of the first ``steps``, before its update."""
    trainer = trainer_again(run.config)
    rows: list[Row] = []
    for step, x, y, lr in trainer.batches(0, steps):
        if step % every == 0:
            objective = Objective(trainer.network, x, partial(F.cross_entropy, target=y))
            rows += measured(step, objective, lr, along, layers)
        loss, _ = trainer.update(x, y, lr)
        if not math.isfinite(float(loss)):
            return [*rows, row("diverged", step)]
    return rows


# --- distributions ---


@measure("santurkar2018/distributions")
def distributions(
    run: Run, seed: int, steps: int, every: int, images: int, units: int, layers: list[int], ridges: int
) -> list[Row]:
    """How the inputs of single activations are distributed over the first ``images`` of the validation set.

    In each layer ``units`` activations (channel and location) are drawn by ``seed``; their inputs are read in training
    mode every ``every`` steps. Row ``shift`` (x = step): how far the distribution has moved since the time before,
    sqrt((m' - m)^2 + (s' - s)^2) / sqrt((s^2 + s'^2) / 2) with m and s its mean and standard deviation, averaged over
    layers and units. This is the Wasserstein distance of two normal distributions, in standard deviations.

    At ``ridges`` of the times, the density of the first unit of each of ``layers`` (from 1): rows
    ``density_<layer>_<step>`` (x = the unit's input).
    """
    trainer = trainer_again(run.config)
    data = trainer.data
    x = data.normalize(data.val.images[:images], trainer.channels_last)
    times: list[tuple[int, dict[str, Tensor]]] = []
    for step, batch, y, lr in trainer.batches(0, steps + 1):
        if step % every == 0:
            times.append((step, sampled(trainer.network, x, units, derive_seed(seed, "noise", step), seed)))
        loss, _ = trainer.update(batch, y, lr)
        if not math.isfinite(float(loss)):
            break
    rows = [row("shift", shift(before, after), step) for (_, before), (step, after) in pairwise(times)]
    drawn = [times[i] for i in sorted({round(i * (len(times) - 1) / max(1, ridges - 1)) for i in range(ridges)})]
    for layer in layers if drawn else []:
        rows += densities(layer, {step: inputs[f"norm{layer}"][:, 0].float() for step, inputs in drawn})
    return rows


@torch.no_grad()
def sampled(network: Network, x: Tensor, units: int, noise: int, seed: int) -> dict[str, Tensor]:
    """The inputs (images, units) of the activations that ``seed`` draws, by norm. The network stays as it is."""
    # The run's own noise continues as if nothing had been read.
    with torch.random.fork_rng(), at_norms(network, outputs=True) as found:
        torch.manual_seed(noise)
        functional_call(network.train(), copies(network), (x,))
    for name, output in found.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, f"units of {name}"))
        found[name] = output.flatten(1)[:, torch.randperm(output[0].numel(), generator=generator)[:units].to(x.device)]
    return found


def shift(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Mean over units and layers of the distance that `distributions` describes."""
    distances = []
    for name, values in before.items():
        (m, s), (m2, s2) = ((v.double().mean(0), v.double().std(0, correction=0)) for v in (values, after[name]))
        pooled = ((s.square() + s2.square()) / 2).sqrt()
        distance = ((m2 - m).square() + (s2 - s).square()).sqrt() / pooled
        distances.append(float(distance[pooled > 0].mean()))
    return sum(distances) / len(distances)


def densities(layer: int, inputs: dict[int, Tensor]) -> list[Row]:
    """Histograms of one unit's inputs by step, with the same bins."""
    joined = torch.cat(list(inputs.values())).cpu()
    edges = torch.linspace(-REACH, REACH, BINS + 1) * joined.std() + joined.mean()
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    rows: list[Row] = []
    for step, values in inputs.items():
        density = torch.histogram(values.cpu(), edges).hist / (len(values) * edges.diff())
        bins = zip(middles, density.tolist(), strict=True)
        rows += [row(f"density_{layer}_{step}", value, middle) for middle, value in bins]
    return rows


# --- deep linear networks ---


class Factor(nn.Module):
    """A layer W of a deep linear network, from Glorot's weights: (1, n, samples) -> (1, n, samples)."""

    def __init__(self, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, features))
        nn.init.xavier_uniform_(self.weight, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x[0])[None]


@measure("santurkar2018/deep_linear")
def deep_linear(
    seed: int, variant: str, rate: float, depth: int, width: int, samples: int,
    steps: int, every: int, along: list[float], layers: list[int],
) -> list[Row]:  # fmt: skip
    r"""min :math:`\sum_x \|W_1 \cdots W_k x - A x\|^2` by full-batch gradient descent, measured every ``every`` steps.

    From Glorot's weights; the rows are those of `measured`. A network whose loss is not finite stops there:
    row ``diverged``.
    """
    x, target = problem(width, samples, seed)
    net = network(variant, depth, width, samples, seed)
    objective = Objective(net, x, partial(F.mse_loss, target=target, reduction="sum"))
    rows: list[Row] = []
    for step in range(steps + 1):
        if step % every == 0:
            rows += measured(step, objective, rate, along, layers)
        loss = objective.loss(net(x))
        if not bool(loss.isfinite()):
            return [*rows, row("diverged", step)]
        gradient = torch.autograd.grad(loss, objective.parameters)
        with torch.no_grad():
            torch._foreach_add_(objective.parameters, gradient, alpha=-rate)
    return rows


def network(variant: str, depth: int, width: int, samples: int, seed: int) -> nn.Sequential:
    """``depth`` layers of ``width`` x ``width``, a norm after each but the last; all norms share weights."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    layers: list[nn.Module] = [Factor(width, generator)]
    for _ in range(depth - 1):
        layers += [NORMS[variant](width, (samples,)), Factor(width, generator)]
    return nn.Sequential(*layers)


def problem(width: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs x and targets A x, both (1, width, samples); x and A are standard normal."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "data"))
    x = torch.randn(1, width, samples, generator=generator)
    return x, torch.randn(width, width, generator=generator) @ x
