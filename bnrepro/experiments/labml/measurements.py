"""What is measured: toys, drawn from a seed, and the networks that runs left."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.data.dataset import derive_seed, epoch_plan, train_batch
from bnrepro.experiments.ioffe2015 import measurements as ioffe
from bnrepro.norm import reestimate_statistics
from bnrepro.norm.function import moments
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.model import at_norms, weighted_layers
from bnrepro.training.trainer import loss_and_accuracy

ONE_PASS = "E[x²] - E[x]²"

# --- toys ---


def normal(seed: int, purpose: str, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Standard normal values of these shapes."""
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose))
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


@measure("labml/outside")
def outside(seed: int, statistic: str, detached: bool, steps: int, lr: float, every: int) -> list[Row]:
    """Gradient descent through a statistic that is a constant to the gradient, or is not.

    mean: x = u + b, xhat = x - E[x], and b is trained from 0. variance: x = w u, xhat = x / std(x), and w is trained
    from 1. The loss is the mean of (xhat - target)^2 / 2. xhat depends neither on b nor on w > 0, so the loss cannot
    change. Detached, the gradients are -mean(target), which moves b by the same amount in each step, and
    mean((xhat - target) xhat) / w, which moves w with the square root of the steps. float64.

    Rows: ``parameter`` and ``loss`` (x = step).
    """
    of_mean = statistic == "mean"
    u, noise = normal(seed, "outside", (64,), (64,))
    u, noise = u - u.mean(), 0.5 * noise
    target = 1.5 + noise if of_mean else 2 * u / u.std(correction=0) + noise  # wants more than xhat can be
    parameter = torch.tensor(0.0 if of_mean else 1.0, dtype=torch.float64)
    rows = []
    for step in range(steps + 1):
        parameter.requires_grad_()
        x = u + parameter if of_mean else parameter * u
        known = x.mean() if of_mean else x.std(correction=0)
        known = known.detach() if detached else known
        xhat = x - known if of_mean else x / known
        loss = (xhat - target).square().mean() / 2
        if step % every == 0:
            rows += [row("parameter", parameter.detach(), step), row("loss", loss.detach(), step)]
        (gradient,) = torch.autograd.grad(loss, parameter)
        parameter = parameter.detach() - lr * gradient
    return rows


@measure("labml/cancelled_bias")
def cancelled_bias(seed: int, steps: int) -> list[Row]:
    """BN(W u + b) against BN(W u) in float64, as for Ioffe & Szegedy's claim of it."""
    return ioffe.cancelled_bias.function(seed, steps)


@measure("labml/scaled_weights")
def scaled_weights(seed: int, eps: float, scales: list[float]) -> list[Row]:
    """BN(a W u) against BN(W u) in float64, as for Ioffe & Szegedy's claim of it, and the gradient by the weights."""
    return ioffe.changes_by_scale(seed, eps, scales)


@measure("labml/cancellation")
def cancellation(seed: int, mean: float, std: float, draws: int) -> list[Row]:
    """The variance in float32 by E[x^2] - E[x]^2, by torch's batch normalization and by ours, against float64.

    ``draws`` channels of 64 x 64 normal values. Rows (x = implementation): ``error``, the median over the channels of
    the relative error of the variance; ``variance``, its median; ``nan``, the percentage of channels whose
    sqrt(var + 1e-5) is no number.
    """
    (z,) = normal(seed, "cancellation", (64 * 64, draws), dtype=torch.float32)
    x = mean + std * z  # (values, channels)
    right = x.double().var(0, correction=0)
    running_mean, running_var = torch.zeros(draws), torch.zeros(draws)
    F.batch_norm(x, running_mean, running_var, training=True, momentum=1.0)
    computed = {
        ONE_PASS: x.square().mean(0) - x.mean(0).square(),
        "torch": running_var * ((len(x) - 1) / len(x)),
        "ours": moments(x, (0,))[1].flatten(),
    }
    rows = []
    for name, var in computed.items():
        nan = 100 * float(((var + 1e-5) < 0).float().mean())
        relative = (var.double() / right - 1).abs().median()
        rows += [row("error", relative, name), row("variance", var.median(), name), row("nan", nan, name)]
    return rows


# --- networks ---


@measure("labml/fit")
def fit(run: Run, seed: int) -> list[Row]:
    """Loss and accuracy on the training images, in eval mode and without augmentation."""
    cfg, data, network = inference.restore(run)
    loss, accuracy = loss_and_accuracy(network, data, data.train, cfg)
    return [row("train_loss", loss), row("train_accuracy", accuracy)]


@measure("labml/statistics")
def statistics(run: Run, seed: int, parts: list[int]) -> list[Row]:
    """Test accuracy (%) and loss with the moving average, the batch's own, and the population's statistics.

    The population is one epoch of training batches, or only the first few (``parts``).
    """
    rows = []
    for kind in inference.Statistics:
        loss, accuracy = inference.evaluate(run, kind)["test"]
        rows += [row("accuracy", 100 * accuracy, kind.value), row("loss", loss, kind.value)]
    cfg, data, network = inference.restore(run)
    size, plan = cfg.batch_size, epoch_plan(len(data.train.labels), cfg.data, cfg.seed, cfg.epochs)
    for count in parts:  # which replace all that the one before set
        batches = (train_batch(data, plan, cfg.data, size * batch, size)[0] for batch in range(count))
        reestimate_statistics(network, batches)
        _, accuracy = loss_and_accuracy(network, data, data.test, cfg)
        rows.append(row("part_accuracy", 100 * accuracy, count))
    return rows


@measure("labml/outside_network")
def outside_network(run: Run, seed: int) -> list[Row]:
    """Norm of the biases that a norm follows, of the weights before it, and test accuracy by the batch's statistics."""
    _, _, network = inference.restore(run)
    rows = []
    for name in ("weight", "bias"):
        parameters = [getattr(layer, name) for layer in weighted_layers(network)[:-1]]
        parts = [p.detach().flatten() for p in parameters if p is not None]
        rows.append(row(f"{name}_norm", torch.cat(parts).norm() if parts else 0.0))
    _, accuracy = inference.evaluate(run, inference.Statistics.batch)["test"]
    return [*rows, row("batch_accuracy", 100 * accuracy)]


@measure("labml/sigmoid_inputs")
@torch.no_grad()
def sigmoid_inputs(run: Run, seed: int) -> list[Row]:
    """Percentage of the sigmoids' inputs within [-1, 1], layer by layer, before training and after it.

    ``normalised`` is before gamma and beta, ``input`` after them; at the start they are the same. Statistics are those
    of the validation images as one batch. ``density`` is the histogram of all layers' inputs, by the bins' middles.
    """
    cfg, data, trained = inference.restore(run)
    images = data.normalize(data.val.images[:1000])
    edges = torch.linspace(-6, 6, 49)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    rows = []
    for when, network in (("start", train.trainer_of(cfg).network), ("end", trained)):
        with at_norms(network.train(), outputs=True) as outputs:
            network(images)
        for name, y in outputs.items():
            norm = network.norms[name]
            assert isinstance(norm, nn.BatchNorm1d)
            for quantity, values in (("normalised", (y - norm.bias) / norm.weight), ("input", y)):
                share = 100 * float((values.abs() < 1).float().mean())
                rows.append(row(f"{quantity}_{when}", share, name))
        joined = torch.cat([y.flatten() for y in outputs.values()])
        density = torch.histogram(joined, edges).hist / joined.numel() / edges.diff()
        rows += [row(f"density_{when}", value, at) for at, value in zip(middles, density, strict=True)]
    return rows
