"""What is trained beyond ordinary runs, and what is measured: Figure 1's networks, the race, fits, and identities."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.config import load_config, run_dir
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.errors import UserError
from bnrepro.experiments import placement
from bnrepro.norm import NORMS, NormOptions, reestimate_statistics
from bnrepro.norm.function import batch_norm
from bnrepro.norm.statistics import batch_statistics
from bnrepro.runs.record import Run, Status
from bnrepro.training.model import Network, build, norm_of
from bnrepro.training.train import trainer_of
from bnrepro.training.trainer import Trainer

Cell = tuple[float, float]
"""Learning rate, and standard deviation of the initial weights (which only init=gaussian reads)."""
PERCENTILES = (15, 50, 85)
UNIT = 0  # the typical sigmoid, fixed beforehand
NEAR = 2.0  # "close to 1" is within a factor of 2
EPS = 1e-5


# --- what the paper does not state, chosen on validation data ---


def best(accuracies: dict[Cell, list[float]]) -> Cell:
    """The cell with the highest mean validation accuracy; the first of equals."""
    return max(accuracies, key=lambda cell: fmean(accuracies[cell]))


def at(cfg: Config, cell: Cell, seed: int) -> Config:
    """``cfg`` with a cell's learning rate and initial standard deviation."""
    optimizer, model = replace(cfg.optimizer, lr=cell[0]), replace(cfg.model, init_std=cell[1])
    return replace(cfg, optimizer=optimizer, model=model, seed=seed)


def chosen(run: Run, cells: list[list[float]], seeds: int) -> Cell:
    """The best cell of the grid that ``run`` belongs to; a run that diverged counts as 0.

    Raises:
        UserError: a run of the grid is missing or did not finish.
    """
    found: dict[Cell, list[float]] = {}
    for (lr, std), seed in product(cells, range(seeds)):
        other = Run(run.path.parent / run_dir(at(run.config, (lr, std), seed)).name)  # they lie side by side
        if not other.finished:
            raise UserError(f"the run with learning rate {lr:g}, init_std {std:g} and seed {seed} did not finish")
        accuracy = other.summary["val_accuracy"] if other.status == Status.completed else 0.0
        found.setdefault((lr, std), []).append(accuracy)
    return best(found)


# --- Figure 1 ---


@measure("ioffe2015/train_and_watch", version=2)
def train_and_watch(
    data: Dataset, seed: int, network: list[str], steps: int, fine: int, every: int, images: int, jacobians: int
) -> list[Row]:
    """Train Figure 1's network, looking every ``every`` steps (five times as often in the first ``fine``) at the first
    ``images`` validation images as one batch, and at Jacobians at the first ``jacobians`` of them.

    Rows by step: test_accuracy (%), and p15, p50, p85 of the inputs to unit 0 of the last hidden layer. Rows by unit:
    drift, the standard deviation of a percentile over the looks that are ``every`` steps apart, mean of the three;
    width, (p85 - p15) / 2, mean over the looks. `spectra` before (``_start``) and after (``_end``). ``diverged``
    (value: the step) where the loss was not finite at a look.
    """
    cfg = load_config([*network, f"seed={seed}", "device=cpu"])
    weights = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    made = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)
    # The trainer takes images, batches and rate from the configuration, and is stopped after ``steps``.
    trainer = Trainer(replace(cfg, epochs=-(-steps // (len(data.train.labels) // cfg.batch_size))), data, made)
    x = data.normalize(data.val.images[:images])
    rows = spectra(trainer.network, x, jacobians, "start")
    looks: list[Tensor] = []

    def look(step: int) -> None:
        rows.append(row("test_accuracy", 100 * trainer.measure(data.test)[1], step))
        if step % every == 0 or step == steps:
            looks.append(_percentiles(trainer.network, x))
            rows.extend(row(f"p{p}", value, step) for p, value in zip(PERCENTILES, looks[-1][:, UNIT], strict=True))

    look(0)
    for batch in trainer.batches(0, steps):
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        done = batch.step + 1
        if done % (max(1, every // 5) if done <= fine else every) == 0 or done == steps:
            if not math.isfinite(float(loss)):
                return [*rows, row("diverged", done)]
            look(done)
    path = torch.stack(looks)  # (looks, percentiles, units)
    drift, width = path.std(0, correction=0).mean(0), (path[:, 2] - path[:, 0]).mean(0) / 2
    for quantity, values in (("drift", drift), ("width", width)):
        rows += [row(quantity, value, unit) for unit, value in enumerate(values)]
    return rows + spectra(trainer.network, x, jacobians, "end")


@torch.no_grad()
def _percentiles(network: Network, x: Tensor) -> Tensor:
    """(3, units): percentiles over the batch of what enters the sigmoids of the last hidden layer."""
    seen: list[Tensor] = []
    last = list(network.norms.values())[-1]  # without BN, this "norm" is the identity
    handle = last.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network.eval()
    with batch_statistics(network):
        network(x)
    handle.remove()
    levels = torch.tensor([p / 100 for p in PERCENTILES])
    return torch.quantile(seen[0].float(), levels, 0).double()


@torch.no_grad()
def spectra(network: Network, x: Tensor, images: int, when: str) -> list[Row]:
    r"""Singular values of the Jacobians between the inputs of one sigmoid layer and those of the next (section 3.3).

    With :math:`y_{l+1} = G (W g(y_l)) + c`, where G is gamma / sqrt(var + eps) with BN and 1 without, the Jacobian at
    an image is ``plain`` :math:`J = G W \mathrm{diag}(g'(y_l))`. The section's is between *normalised* vectors, whose
    units have mean 0 and standard deviation 1 over the batch: ``normalised``
    :math:`\mathrm{diag}(1 / s_{l+1})\, J\, \mathrm{diag}(s_l)` with the standard deviations s of y. With BN these
    vectors are the layers' own :math:`\hat x`. Statistics are those of ``x`` as one batch, and constants; Jacobians are
    computed at its first ``images``.

    Rows, over images and pairs of layers: ``<kind>_<when>`` by percentile (x) of the singular values;
    ``<kind>_near_<when>``, the percentage of them within a factor of 2 of 1; ``<kind>_far_<when>``, the mean of
    abs(log2 s), values below 2^-20 counted as that.
    """
    inputs, gains, weights = [], [], []
    a = x.flatten(1).double()
    for unit in (unit for unit in network.layers.children() if isinstance(unit, nn.Sequential)):
        linear, norm = unit[0], unit[1]
        assert isinstance(linear, nn.Linear)
        weights.append(linear.weight.double())
        y = a @ weights[-1].T
        if isinstance(norm, nn.Identity):
            y = y + linear.bias.double()
            gains.append(torch.ones_like(y[0]))
        else:
            assert isinstance(norm, nn.BatchNorm1d)
            gains.append(norm.weight.double() / (y.var(0, correction=0) + norm.eps).sqrt())
            y = (y - y.mean(0)) * gains[-1] + norm.bias.double()
        inputs.append(y)
        a = y.sigmoid()
    found: dict[str, list[Tensor]] = {"normalised": [], "plain": []}
    for here, there, gain, w in zip(inputs, inputs[1:], gains[1:], weights[1:], strict=False):
        g = here[:images].sigmoid()
        plain = (gain[:, None] * w) * (g * (1 - g))[:, None, :]  # (images, outputs, inputs)
        s_here, s_there = (y.std(0, correction=0).clamp(min=1e-12) for y in (here, there))
        for kind, jacobian in (("plain", plain), ("normalised", plain * s_here / s_there[:, None])):
            found[kind].append(torch.linalg.svdvals(jacobian).flatten())
    rows, levels = [], range(0, 101, 5)
    for kind, parts in found.items():
        s = torch.cat(parts)
        quantiles = torch.quantile(s, torch.tensor([level / 100 for level in levels], dtype=s.dtype))
        rows += [row(f"{kind}_{when}", value, level) for level, value in zip(levels, quantiles, strict=True)]
        distance = s.clamp(min=2.0**-20).log2().abs()
        near = (distance <= torch.tensor(NEAR).log2()).double().mean()
        rows += [row(f"{kind}_near_{when}", 100 * near), row(f"{kind}_far_{when}", distance.mean())]
    return rows


def random_share() -> float:
    """Percentage of the singular values within a factor of `NEAR` of 1, of a large square matrix of random entries.

    Scaled to rows of unit length, they have the quarter-circle law's density sqrt(4 - s^2) / pi on [0, 2].
    """
    s = 1 / NEAR
    below = (s / 2 * math.sqrt(4 - s * s) + 2 * math.asin(s / 2)) / math.pi
    return 100 * (1 - below)


# --- Figures 2 and 3 ---


ARMS = {
    "Baseline": ("nobn", 1, "relu"),
    "BN-Baseline": ("bn", 1, "relu"),
    "BN-x5": ("bn", 5, "relu"),
    "BN-x30": ("bn", 30, "relu"),
    "BN-x5-Sigmoid": ("bn", 5, "sigmoid"),
    "convbn-x5": ("convbn", 5, "relu"),
    "no BN, x5": ("nobn", 5, "relu"),
    "no BN, x30": ("nobn", 30, "relu"),
    "no BN, sigmoid": ("nobn", 1, "sigmoid"),
}
"""Norm, factor on the baseline's learning rate, and activation of the paper's five, of local-gain BN, and of what the
paper says fails without BN.
"""


@measure("ioffe2015/race")
def race(
    run: Run, seed: int, arm: str, cells: list[list[float]], choosing_seeds: int, steps: int, every: int
) -> list[Row]:
    """Train an arm with its multiple of the rate that the baseline's runs chose.

    Rows: val_accuracy (%) by step, every ``every`` steps; test_accuracy (%) at the end; rate; ``diverged`` (value: the
    step) and nothing more from where the loss is not finite.
    """
    variant, factor, activation = ARMS[arm]
    rate, std = chosen(run, cells, choosing_seeds)
    cfg = at(run.config, (factor * rate, std), seed)
    trainer = trainer_of(replace(cfg, variant=variant, model=replace(cfg.model, activation=activation)))
    rows = [row("rate", cfg.optimizer.lr)]
    for batch in trainer.batches(0, steps):
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        done = batch.step + 1
        if not math.isfinite(float(loss)):
            return [*rows, row("diverged", done)]
        if done % every == 0 or done == steps:
            rows.append(row("val_accuracy", 100 * trainer.measure(trainer.data.val)[1], done))
    return [*rows, row("test_accuracy", 100 * trainer.measure(trainer.data.test)[1])]


# --- section 3.4 ---


@measure("ioffe2015/fit")
def fit(run: Run, seed: int) -> list[Row]:
    """Loss and accuracy on both sets in eval mode, and the gap of the losses."""
    return placement.fit.function(run, seed)


# --- identities, in float64 ---


def _drawer(seed: int, purpose: str) -> Any:
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose))
    return lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)


def _error(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| / |b|, in the Euclidean norm."""
    return (a - b).norm() / b.norm()


@measure("ioffe2015/cancelled_bias")
def cancelled_bias(seed: int, steps: int) -> list[Row]:
    """I3. BN(W u + b) against BN(W u): relative change of the ``output`` and of the weights ``trained`` with either,
    and the largest ``gradient`` of b.
    """
    draw = _drawer(seed, "bias")
    u, target, weight, bias = draw(64, 20), draw(64, 8), draw(8, 20), draw(8)

    def output(weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return batch_norm(F.linear(u, weight, bias), None, None, (0,), EPS)[0]

    tracked = bias.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((output(weight, tracked) * target).sum(), tracked)

    def trained(*parameters: Tensor) -> Tensor:
        for _ in range(steps):
            parameters = tuple(p.detach().requires_grad_() for p in parameters)
            moves = torch.autograd.grad((output(*parameters) - target).square().mean(), parameters)
            parameters = tuple(p - 0.1 * g for p, g in zip(parameters, moves, strict=True))
        return parameters[0].detach()

    return [
        row("output", _error(output(weight, bias), output(weight))),
        row("gradient", gradient.abs().max()),
        row("trained", _error(trained(weight, bias), trained(weight))),
    ]


@measure("ioffe2015/scaled_weights")
def scaled_weights(seed: int, eps: float, scales: list[float]) -> list[Row]:
    """I4. BN(a W u) against BN(W u): `changes_by_scale` but for that of the scaled weights' gradient itself."""
    return [each for each in changes_by_scale(seed, eps, scales) if each["quantity"] != "dw"]


def changes_by_scale(seed: int, eps: float, scales: list[float]) -> list[Row]:
    """BN(a W u) against BN(W u) for W ~ N(0, 0.01^2) with 20 inputs.

    Rows by a: relative change of the ``output``, of the gradients ``du`` and ``dw``, the latter by the scaled weights,
    and of ``dw_times_a``. With eps = 0 that of ``dw`` is the only one; otherwise eps weighs against the variance, 0.002
    here.
    """
    draw = _drawer(seed, "scale")
    u, upstream, weight = draw(256, 20), draw(256, 8), 0.01 * draw(8, 20)

    def at(a: float) -> dict[str, Tensor]:
        inputs, scaled = u.clone().requires_grad_(), (a * weight).requires_grad_()
        y = batch_norm(F.linear(inputs, scaled), None, None, (0,), eps)[0]
        du, dw = torch.autograd.grad(y, (inputs, scaled), upstream)
        return {"output": y.detach(), "du": du, "dw": dw, "dw_times_a": a * dw}

    right = at(1.0)
    return [row(name, _error(found, right[name]), a) for a in scales for name, found in at(a).items()]


@measure("ioffe2015/channels")
@torch.no_grad()
def channels(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """I3. Numbers in each parameter and statistic (``size``), and the output against NumPy's per map (``error``)."""
    x = 2 * _drawer(seed, "channels")(batch, channels, height, width) - 1
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=EPS)).double()
    return placement.sizes_and_errors(x, layer, {"per channel": (0, 2, 3)})


@measure("ioffe2015/effective_batch")
@torch.no_grad()
def effective_batch(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """I3. m' from the layer's own variances (``effective``), and m p q (``expected``).

    The running variance is the unbiased one, sigma^2 m'/(m' - 1), so with r = unbiased / biased m' = r / (r - 1).
    """
    x = _drawer(seed, "effective batch")(batch, channels, height, width)
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=EPS, momentum=1.0)).double()
    layer(x)
    ratio = layer.get_buffer("running_var") / x.var((0, 2, 3), correction=0)
    return [row("effective", (ratio / (ratio - 1)).mean()), row("expected", batch * height * width)]


@measure("ioffe2015/algorithm_2")
@torch.no_grad()
def algorithm_2(seed: int, values: int, batch: int, features: int) -> list[Row]:
    """I7. All values^batch mini-batches of ``batch`` draws, with replacement, from a population of ``values`` vectors.
    They are equally likely, so that the expectation over them is exact.

    ``mean`` and ``variance``: largest difference (of the variance: relative) of the layer's cumulative average
    (momentum=None) to the population's; ``biased``: E_B[sigma_B^2] over the population's variance, ``expected`` to be
    (m - 1) / m; ``precise``: as variance, of `reestimate_statistics` (variance="mean") to the cumulative average.
    ``affine``, ``linear``, ``convolution``: largest difference of the output in eval mode to one affine map
    gamma x / sqrt(Var + eps) + (beta - gamma E / sqrt(Var + eps)), and to a layer that it was folded into.
    """
    draw = _drawer(seed, "algorithm 2")
    population = draw(values, features)
    batches = [population[list(index)] for index in product(range(values), repeat=batch)]
    layer = nn.BatchNorm1d(features, eps=EPS, momentum=None).double()
    layer.weight.copy_(draw(features))
    layer.bias.copy_(draw(features))
    for x in batches:
        layer(x)
    mean, var = layer.get_buffer("running_mean").clone(), layer.get_buffer("running_var").clone()
    want = population.var(0, correction=0)
    biased = torch.stack([x.var(0, correction=0) for x in batches]).mean(0)
    reestimate_statistics(layer, batches, variance="mean")
    precise = layer.get_buffer("running_var").clone()
    layer.eval()
    scale = layer.weight / (var + EPS).sqrt()
    shift = layer.bias - scale * mean
    # As one layer with what stands before it: scale (W u + b) + shift.
    u, weight, bias = draw(batch, 2 * features), draw(features, 2 * features), draw(features)
    maps, kernel = draw(batch, 2, 6, 6), draw(features, 2, 3, 3)
    linear = F.linear(u, scale[:, None] * weight, scale * bias + shift)
    convolved = F.conv2d(maps, scale[:, None, None, None] * kernel, scale * bias + shift)
    normed = F.batch_norm(F.conv2d(maps, kernel, bias), mean, var, layer.weight, layer.bias, False, 0.0, EPS)
    return [
        row("mean", (mean - population.mean(0)).abs().max()),
        row("variance", (var / want - 1).abs().max()),
        row("biased", (biased / want).mean()),
        row("expected", (batch - 1) / batch),
        row("precise", (precise / var - 1).abs().max()),
        row("affine", (layer(population) - (population * scale + shift)).abs().max()),
        row("linear", (layer(F.linear(u, weight, bias)) - linear).abs().max()),
        row("convolution", (normed - convolved).abs().max()),
    ]
