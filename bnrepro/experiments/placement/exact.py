"""P3, P4 and P5 as measurements: how well a trained network fits, the identity, and what "per channel" means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnrepro import inference, train
from bnrepro.experiments.base import Probe, Settings
from bnrepro.experiments.placement.grid import GHOST, ghosts
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.record import Run

IDENTITY, CHANNELS = "identity", "channels"
Row = dict[str, Any]


def probes(settings: Settings) -> list[Probe]:
    """The fit of each run with ghost batches; P4 and P5 for one layer."""
    shape = {"batch": 16, "channels": 6, "height": 9, "width": 7}
    made = [Probe(IDENTITY, {}, 0, identity, shape), Probe(CHANNELS, {}, 0, channels, shape)]
    return [*made, *(Probe(GHOST, a.factors, a.config.seed, fit, config=a.config) for a in ghosts(settings))]


def fit(run: Run, seed: int) -> list[Row]:
    """Loss and accuracy on the training and the test set in eval mode, and the gap of the losses, test - training.

    The training loss in metrics.csv is no measure of fit here: it is taken with the batches' own noisy statistics.
    """
    cfg, data, network = inference.restore(run)
    (train_loss, train_accuracy), (test_loss, test_accuracy) = (
        train.measure(network, data, split, cfg) for split in (data.train, data.test)
    )
    values = {"train_loss": train_loss, "train_accuracy": train_accuracy}
    values |= {"test_loss": test_loss, "test_accuracy": test_accuracy, "gap": test_loss - train_loss}
    return [row(quantity, value) for quantity, value in values.items()]


def identity(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """P4. BN with beta = mean and gamma = sqrt(variance + eps), or the source's gamma = deviation, against its input.

    Largest absolute differences in float64 (``error``, x which gamma), beside what the missing eps comes to,
    |x - mean| (1 - deviation / sqrt(variance + eps)) (``expected``). ``moved`` is the mean and the deviation of the
    output with gamma 2 and beta 3, less 3 and 2.
    """
    eps = 1e-5
    x = draw(seed, batch, channels, height, width)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=eps)).double()
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")

    def output(gamma: Tensor, beta: Tensor) -> Tensor:
        with torch.no_grad():
            weight.copy_(gamma)
            bias.copy_(beta)
            return layer(x)

    exactly = output((var + eps).sqrt(), mean) - x
    roughly = output(var.sqrt(), mean) - x
    centred = (x - mean[:, None, None]).abs()
    expected = centred * (1 - (var / (var + eps)).sqrt())[:, None, None]
    moved = output(torch.full_like(mean, 2.0), torch.full_like(mean, 3.0))
    shape = (var / (var + eps)).sqrt()
    off = torch.stack([moved.mean((0, 2, 3)) - 3, moved.std((0, 2, 3), correction=0) - 2 * shape])
    return [
        row("error", float(exactly.abs().max()), "sqrt(variance + eps)"),
        row("error", float(roughly.abs().max()), "deviation"),
        row("expected", float(expected.max()), "deviation"),
        row("moved", float(off.abs().max())),
    ]


def channels(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """P5. Numbers in each parameter and statistic of BatchNorm2d, and its output against NumPy's per channel.

    ``error``: against statistics over batch, height and width (x: per channel), and against those over the batch alone
    (x: per location). ``mixed``: change of the other channels' output when one channel is changed, which is 0.
    """
    x = draw(seed, batch, channels, height, width)
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=1e-5)).double()
    sizes = [p.numel() for p in layer.parameters()] + [b.numel() for b in layer.buffers() if b.is_floating_point()]
    y = layer(x).detach()
    changed = x.clone()
    changed[:, 0] = changed[:, 0] * 5 + 7 * changed[:, 0].square()
    mixed = (layer(changed).detach() - y)[:, 1:].abs().max()
    rows = [row("size", size, f"tensor {place}") for place, size in enumerate(sizes)]
    for what, axes in (("per channel", (0, 2, 3)), ("per location", (0,))):
        want = torch.from_numpy(batch_norm_forward(x.numpy(), None, None, axes, 1e-5)[0])
        rows.append(row("error", float((y - want).abs().max()), what))
    return [*rows, row("mixed", float(mixed))]


def draw(seed: int, batch: int, channels: int, height: int, width: int) -> Tensor:
    """Values in float64 whose channels have means and deviations of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, channels, height, width), dtype=torch.float64, generator=generator)
    scale, shift = torch.rand((2, channels, 1, 1), dtype=torch.float64, generator=generator)
    return x * (0.5 + scale) + 4 * shift - 2


def row(quantity: str, value: float, x: float | str | None = None) -> Row:
    """One measured value."""
    return {"quantity": quantity, "x": x, "value": float(value)}
