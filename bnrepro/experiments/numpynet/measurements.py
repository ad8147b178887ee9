"""The measurements: identities in float64, the wrong gradient by shape, the repository's own test, and training."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.config.schema import Data
from bnrepro.data.dataset import Dataset, Split, derive_seed, epoch_plan, eval_batches, train_batch
from bnrepro.experiments.numpynet.layer import EPSIL, GRADIENTS, NumPyNetNorm, closed_form, published, text_backward
from bnrepro.experiments.vanlaarhoven2017.measurements import step
from bnrepro.norm.oracle import Array, batch_norm_backward, batch_norm_forward, seed004_backward

STEP = 1e-5  # of the finite differences


# --- gradients ---


@measure("numpynet/identities")
def identities(seed: int, shape: list[int]) -> list[Row]:
    """Relative errors, in float64, of the source's formulas and code: to the reference, torch and finite differences.

    Also the moments of the text's squared numerator, the parameters of its example, and a batch of one image.
    """
    x, scales, bias, delta = _example(seed, shape, "normal")
    values = _derivatives(x, scales, bias, delta) | _partial_derivatives(x, scales, bias, delta)
    values |= {f"layer/{gradient}": _layer_error(gradient, x, scales, delta) for gradient in GRADIENTS}
    values |= _squared_numerator(seed)
    for who, layer in {"source": NumPyNetNorm((100, 100, 3), "code"), "paper": nn.BatchNorm2d(3)}.items():
        values[f"parameters/{who}"] = float(sum(p.numel() for p in layer.parameters()))
    values["single/from_bias"] = float(np.abs(_source_forward(x[:1], scales, bias) - bias).max())
    return [row(name, value) for name, value in values.items()]


def _derivatives(x: Array, scales: Array, bias: Array, delta: Array) -> dict[str, float]:
    """Errors of the source's output, and of its derivatives by input, scales and bias."""

    def loss(x: Array, scales: Array, bias: Array) -> float:
        return float((delta * _source_forward(x, scales, bias)).sum())

    y, cache = batch_norm_forward(x, scales, bias, (0,), EPSIL)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, scales, bias)]
    inputs, weight, shift = tensors[0].flatten(1), tensors[1].flatten(), tensors[2].flatten()
    out = F.batch_norm(inputs, None, None, weight, shift, True, 0.0, EPSIL).view(x.shape)
    references: dict[str, Any] = {
        "oracle": batch_norm_backward(delta, cache),
        "torch": [each.numpy() for each in torch.autograd.grad(out, tensors, torch.tensor(delta))],
        "differences": _differences(loss, x, scales, bias),
    }
    forward, text = _source_forward(x, scales, bias), text_backward(x, scales, delta)
    code, code_scales, code_bias = seed004_backward(x, scales, delta, EPSIL)
    values = {"forward/oracle": _error(forward, y), "forward/torch": _error(forward, out.detach().numpy())}
    for name, (by_x, by_scales, by_bias) in references.items():
        values[f"dscales/{name}"] = _error(code_scales, by_scales)
        values[f"dbias/{name}"] = _error(code_bias, by_bias)
        values[f"text/{name}"] = _error(text, by_x)
        values[f"code/{name}"] = _error(code, by_x)
    values["lines/oracle"] = _error(published(x, scales, delta)[0], code)
    return values


def _partial_derivatives(x: Array, scales: Array, bias: Array, delta: Array) -> dict[str, float]:
    """Errors of the source's derivatives by mean and by variance, each with the other held."""

    def loss(mean: Array, var: Array) -> float:
        return float((delta * (scales * (x - mean) / np.sqrt(var + EPSIL) + bias)).sum())

    _, dmu, dvar = published(x, scales, delta)
    by_mean, by_var = _differences(loss, x.mean(0), x.var(0))
    return {
        "dmu/differences": _error(dmu, by_mean),
        "dmu/ratio": float(np.median(dmu / by_mean)),
        "dvar/differences": _error(dvar, by_var),
    }


def _differences(function: Any, *at: Array) -> list[Array]:
    """Central differences of a scalar function, by each of its arguments."""
    found = []
    for i, array in enumerate(at):
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[place] = STEP
            high, low = (function(*at[:i], moved, *at[i + 1 :]) for moved in (array + step, array - step))
            gradient[place] = (high - low) / (2 * STEP)
        found.append(gradient)
    return found


def _layer_error(gradient: str, x: Array, scales: Array, delta: Array) -> float:
    """The torch layer's gradient against NumPy's."""
    layer = NumPyNetNorm(x.shape[1:], gradient).double()
    layer.scales.data = torch.tensor(scales)
    tensor = torch.tensor(x, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(tensor), tensor, torch.tensor(delta))
    return _error(dx.numpy(), _gradient("exact" if gradient == "text" else gradient, x, scales, delta))


def _gradient(name: str, x: Array, scales: Array, delta: Array) -> Array:
    """dx in NumPy: of the oracle, of the source's lines as they are or mended, or with mean and variance held."""
    if name == "exact":
        return batch_norm_backward(delta, batch_norm_forward(x, scales, None, (0,), EPSIL)[1])[0]
    if name == "code":
        return seed004_backward(x, scales, delta, EPSIL)[0]
    return closed_form(x, scales, delta, name) if name == "detached" else published(x, scales, delta, name)[0]


def _squared_numerator(seed: int) -> dict[str, float]:
    """Mean and standard deviation of (x - mean)^2 / sqrt(var + eps) for normal x, in units of x's own."""
    sigma = 0.3
    x = np.random.default_rng(derive_seed(seed, "squared")).normal(2.0, sigma, 100_000)
    squared = (x - x.mean()) ** 2 / np.sqrt(x.var() + EPSIL)
    code = _source_forward(x, np.ones(()), np.zeros(()))
    return {
        "squared/mean": float(squared.mean()) / sigma,
        "squared/std": float(squared.std()) / sigma,
        "squared/negative": float((squared < 0).mean()),
        "code/mean": float(code.mean()),
        "code/std": float(code.std()),
    }


@measure("numpynet/wrong_gradient")
def wrong_gradient(seed: int, shape: list[int], upstream: str, values: int) -> list[Row]:
    """How far the code's gradient is from the exact and the detached one, in draws as the source's example makes them.

    x and scales are uniform on (0, 1); delta is uniform on (0, 1) as in the example, standard normal, or one. So many
    draws are made that ``values`` numbers at least are drawn, and their median is kept.
    """
    draws = []
    for draw in range(-(-values // int(np.prod(shape)))):
        x, scales, _, delta = _example(derive_seed(seed, "draw", draw), shape, upstream)
        exact, code, detached = (_gradient(name, x, scales, delta) for name in ("exact", "code", "detached"))
        rows = [
            row("exact_rms", _rms(exact)),
            row("code_rms", _rms(code)),
            row("batch_sum", float(np.abs(code.sum(0)).mean())),
            row("exact_batch_sum", float(np.abs(exact.sum(0)).mean())),
            row("to_detached", _error(code, detached)),
            row("to_closed_form", _rms(code - closed_form(x, scales, delta, "code")) / _rms(detached)),
        ]
        if upstream != "ones":  # whose exact gradient is zero
            cosine = (code * exact).sum() / np.sqrt((code**2).sum() * (exact**2).sum())
            rows += [row("relative_error", _error(code, exact)), row("cosine", float(cosine))]
            for mended in ("nothing", "invN", "sum", "both"):
                rows.append(row("mended_error", _error(_gradient(mended, x, scales, delta), exact), mended))
        draws.append(rows)
    return [alike[0] | {"value": median(row["value"] for row in alike)} for alike in zip(*draws, strict=True)]


@measure("numpynet/own_test")
def own_test(seed: int, draws: int) -> list[Row]:
    """The repository's test of the backward, on ``draws`` shapes: which gradients it lets pass.

    delta is 1 and the reference is that of an inference mode with the batch's statistics. Then the same for 1 to 100
    locations, where the repository's comment sees "numerical instability".
    """
    generator = np.random.default_rng(derive_seed(seed, "own test"))
    passed: dict[str, list[bool]] = {"code": [], "exact": [], "code in training mode": []}
    largest = 0.0
    for _ in range(draws):
        n, w, h, c = (int(generator.integers(*ends)) for ends in ((3, 16), (50, 101), (50, 101), (1, 4)))
        x, scales, delta = _test_case(generator, (n, w, h, c))
        code, exact = (_gradient(name, x, scales, delta) for name in ("code", "exact"))
        frozen = _inference_gradient(x, scales, delta)
        pairs = ((frozen, code), (frozen, exact), (exact, code))
        for passes, (reference, gradient) in zip(passed.values(), pairs, strict=True):
            passes.append(bool(np.allclose(reference, gradient, rtol=0.1, atol=0.1)))
        largest = max(largest, float(np.abs(exact).max()))
    rows = [row("passes", np.mean(passes), name) for name, passes in passed.items()]
    rows.append(row("largest_exact", largest))
    for m in (1, 2, 3, 5, 10, 30, 100):
        case = _test_case(generator, (8, m, 1, 1))
        code, frozen = (_gradient(name, *case) for name in ("code", "detached"))  # inference's gradient, in float64
        rows.append(row("small_deviation", _error(code, frozen), m))
        rows.append(row("small_unexplained", _rms(code - frozen * (1 - 1 / m)) / _rms(frozen), m))
    return rows


def _test_case(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Input, scales and delta as the repository's test draws them."""
    return generator.uniform(1, 10, shape), generator.uniform(0, 1, shape[1:]), np.ones(shape)


def _inference_gradient(x: Array, scales: Array, delta: Array) -> Array:
    """torch's gradient in inference mode, its moving statistics set to the batch's, in float32 as in the test."""
    flat = torch.tensor(x, dtype=torch.float32).flatten(1).requires_grad_()
    mean, var = flat.detach().mean(0), flat.detach().var(0, correction=0)
    y = F.batch_norm(flat, mean, var, torch.tensor(scales, dtype=torch.float32).flatten(), None, False, 0.0, EPSIL)
    (gradient,) = torch.autograd.grad(y, flat, torch.tensor(delta, dtype=torch.float32).flatten(1))
    return np.asarray(gradient.reshape(x.shape).double().numpy())


def _example(seed: int, shape: list[int], upstream: str) -> tuple[Array, Array, Array, Array]:
    """x, scales, bias and delta, drawn as in the source's example but for ``upstream``."""
    generator = np.random.default_rng(seed)
    x, scales, bias = (generator.uniform(0, 1, s) for s in (shape, shape[1:], shape[1:]))
    if upstream == "ones":
        return x, scales, bias, np.ones(shape)
    return x, scales, bias, generator.standard_normal(shape) if upstream == "normal" else generator.uniform(0, 1, shape)


def _source_forward(x: Array, scales: Array, bias: Array) -> Array:
    """The source's forward, operation by operation; its ``var`` is one over the standard deviation."""
    var = 1.0 / np.sqrt(x.var(axis=0) + EPSIL)
    return np.asarray((x - x.mean(axis=0)) * var * scales + bias)


def _rms(a: Array) -> float:
    return float(np.sqrt(np.mean(a**2)))


def _error(a: Array, reference: Array) -> float:
    """|a - reference| / |reference|, in the Euclidean norm."""
    return _rms(a - reference) / _rms(reference)


# --- training ---

NORMS: dict[str, list[tuple[int, ...]]] = {
    "conv": [(8, 12, 12), (16, 4, 4)],  # after strided 5 x 5 convolutions
    "wide": [(512,), (512,)],  # after linear layers, as in the next
    "narrow": [(8,), (8,)],
}
"""Shapes of what each norm of a network normalizes, on digits of 28 x 28."""


def locations(network: str) -> list[int]:
    """M of each norm of a network."""
    return [math.prod(shape) for shape in NORMS[network]]


def make_network(name: str, gradient: str, generator: torch.Generator) -> nn.Sequential:
    """Two convolutions or linear layers, each with its bias, the norm and a ReLU, and a linear layer for 10 classes."""
    units = locations(name)[-1]
    first, second = ([NumPyNetNorm(shape, gradient), nn.ReLU()] for shape in NORMS[name])
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(28 * 28, units), *first, nn.Linear(units, units), *second]
    if name == "conv":
        layers = [nn.Conv2d(1, 8, 5, stride=2), *first, nn.Conv2d(8, 16, 5, stride=2), *second]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(units, 10))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return model


@measure("numpynet/training")
def training(
    data: Dataset, seed: int, network: str, lr: float, gradient: str, steps: int, batch_size: int, every: int
) -> list[Row]:
    """Train with plain SGD; loss, |b| and |W| before the norms every ``every`` steps, and the test at the end.

    All gradients of a seed start from the same weights and see the same batches. ``train_loss`` is the mean over the
    steps since the last row. A run whose loss is not finite ends there, and is tested as it is.
    """
    plain = Data()  # no augmentation
    model = make_network(network, gradient, torch.Generator().manual_seed(derive_seed(seed, "weights")))
    *before, _ = (layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    per_epoch = len(data.train.labels) // batch_size
    rows: list[Row] = []
    losses: list[float] = []
    for done in range(1, steps + 1):
        epoch, position = divmod(done - 1, per_epoch)
        if position == 0:
            plan = epoch_plan(len(data.train.labels), plain, seed, epoch)
        x, y = train_batch(data, plan, plain, position * batch_size, batch_size)
        losses.append(step(model, optimizer, x, y))
        if not math.isfinite(losses[-1]):
            break
        if done % every == 0:
            rows.append(row("train_loss", np.mean(losses[-every:]), done))
            for name in ("bias", "weight"):
                size = torch.cat([getattr(layer, name).detach().flatten() for layer in before]).norm()
                rows.append(row(f"{name}_norm", size, done))
    first, again = (_classes(model, data, batch_size, order) for order in ("one", "another"))
    return [
        *rows,
        row("diverged", not math.isfinite(losses[-1])),
        row("test_accuracy", 100 * float((first == data.test.labels).float().mean())),
        row("changed_classes", 100 * float((first != again).float().mean())),
    ]


@torch.no_grad()
def _classes(model: nn.Module, data: Dataset, batch_size: int, order: str) -> Tensor:
    """Classes of the test images, in their order, each normalised in a batch of about the training's size."""
    count = len(data.test.labels)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(0, order)))
    split = Split(data.test.images[shuffled], data.test.labels[shuffled])
    size = math.ceil(count / max(1, count // batch_size))  # no batch is left with a few images
    found = torch.empty(count, dtype=torch.int64)
    found[shuffled] = torch.cat([model(x).argmax(1) for x, _ in eval_batches(data, split, size)])
    return found
