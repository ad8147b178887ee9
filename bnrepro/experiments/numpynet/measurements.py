"""The measurements: identities in float64, the wrong gradient by shape, the repository's own test, and training."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.config.schema import Data
from bnrepro.data.dataset import Dataset, Split, derive_seed, epoch_plan, eval_batches, train_batch
from bnrepro.experiments.numpynet.layer import EPSIL, GRADIENTS, NumPyNetNorm, closed_form, published, text_backward
from bnrepro.norm import ConvBatchNorm2d
from bnrepro.norm.oracle import Array, batch_norm_backward, batch_norm_forward, seed004_backward

Row = dict[str, Any]
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
    values |= _squared_numerator(seed) | _example_parameters()
    alone = _source_forward(x[:1], scales, bias)
    values["single/from_bias"] = float(np.abs(alone - bias).max())
    return [{"quantity": name, "x": None, "value": value} for name, value in values.items()]


def _derivatives(x: Array, scales: Array, bias: Array, delta: Array) -> dict[str, float]:
    """Errors of the source's output, and of its derivatives by input, scales and bias."""
    y, cache = batch_norm_forward(x, scales, bias, (0,), EPSIL)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, scales, bias)]
    out = _torch_forward(*tensors)

    def loss(x: Array, scales: Array, bias: Array) -> float:
        return float((delta * _source_forward(x, scales, bias)).sum())

    references: dict[str, Any] = {
        "oracle": batch_norm_backward(delta, cache),
        "torch": [each.numpy() for each in torch.autograd.grad(out, tensors, torch.tensor(delta))],
        "differences": [
            _differences(lambda a: loss(a, scales, bias), x),
            _differences(lambda a: loss(x, a, bias), scales),
            _differences(lambda a: loss(x, scales, a), bias),
        ],
    }
    forward = _source_forward(x, scales, bias)
    values = {"forward/oracle": _error(forward, y), "forward/torch": _error(forward, out.detach().numpy())}
    code, code_scales, code_bias = seed004_backward(x, scales, delta, EPSIL)
    text = text_backward(x, scales, delta)
    for name, (by_x, by_scales, by_bias) in references.items():
        values[f"dscales/{name}"] = _error(code_scales, by_scales)
        values[f"dbias/{name}"] = _error(code_bias, by_bias)
        values[f"text/{name}"] = _error(text, by_x)
        values[f"code/{name}"] = _error(code, by_x)
    values["lines/oracle"] = _error(published(x, scales, delta).delta, code)
    return values


def _partial_derivatives(x: Array, scales: Array, bias: Array, delta: Array) -> dict[str, float]:
    """Errors of the source's derivatives by mean and by variance, each with the other held."""
    mean, var, lines = x.mean(0), x.var(0), published(x, scales, delta)

    def loss(mean: Array, var: Array) -> float:
        return float((delta * (scales * (x - mean) / np.sqrt(var + EPSIL) + bias)).sum())

    by_mean = _differences(lambda a: loss(a, var), mean)
    return {
        "dmu/differences": _error(lines.mean_delta, by_mean),
        "dmu/ratio": float(np.median(lines.mean_delta / by_mean)),
        "dvar/differences": _error(lines.var_delta, _differences(lambda a: loss(mean, a), var)),
    }


@measure("numpynet/wrong_gradient")
def wrong_gradient(seed: int, shape: list[int], upstream: str, values: int) -> list[Row]:
    """How far the code's gradient is from the exact and the detached one, in draws as the source's example makes them.

    x and scales are uniform on (0, 1); delta is uniform on (0, 1) as in the example, standard normal, or one. So many
    draws are made that ``values`` numbers at least are drawn, and their median is kept.
    """
    draws = -(-values // int(np.prod(shape)))
    found: dict[tuple[str, str | None], list[float]] = {}
    for draw in range(draws):
        x, scales, bias, delta = _example(derive_seed(seed, "draw", draw), shape, upstream)
        _, cache = batch_norm_forward(x, scales, bias, (0,), EPSIL)
        exact, _, _ = batch_norm_backward(delta, cache)
        code, _, _ = seed004_backward(x, scales, delta, EPSIL)
        detached = closed_form(x, scales, delta, "detached")
        of_draw: dict[tuple[str, str | None], float] = {
            ("exact_rms", None): _rms(exact),
            ("code_rms", None): _rms(code),
            ("batch_sum", None): float(np.abs(code.sum(0)).mean()),
            ("exact_batch_sum", None): float(np.abs(exact.sum(0)).mean()),
            ("to_detached", None): _error(code, detached),
            ("to_closed_form", None): _rms(code - closed_form(x, scales, delta, "code")) / _rms(detached),
        }
        if upstream != "ones":  # whose exact gradient is zero
            of_draw["relative_error", None] = _error(code, exact)
            of_draw["cosine", None] = float((code * exact).sum() / np.sqrt((code**2).sum() * (exact**2).sum()))
            for name, mended in MENDED.items():
                of_draw["mended_error", name] = _error(published(x, scales, delta, **mended).delta, exact)
        for key, value in of_draw.items():
            found.setdefault(key, []).append(value)
    return [{"quantity": name, "x": x_, "value": median(v)} for (name, x_), v in found.items()]


MENDED: dict[str, dict[str, bool]] = {
    "nothing": {},
    "invN": {"batch_invn": True},
    "sum": {"summed_dmu": True},
    "both": {"batch_invn": True, "summed_dmu": True},
}


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
        code = seed004_backward(x, scales, delta, EPSIL)[0]
        exact, _, _ = batch_norm_backward(delta, batch_norm_forward(x, scales, None, (0,), EPSIL)[1])
        frozen = _inference_gradient(x, scales, delta)
        passed["code"].append(_close(frozen, code))
        passed["exact"].append(_close(frozen, exact))
        passed["code in training mode"].append(_close(exact, code))
        largest = max(largest, float(np.abs(exact).max()))
    rows: list[Row] = [{"quantity": "passes", "x": name, "value": float(np.mean(v))} for name, v in passed.items()]
    rows.append({"quantity": "largest_exact", "x": None, "value": largest})
    for locations in (1, 2, 3, 5, 10, 30, 100):
        x, scales, delta = _test_case(generator, (8, locations, 1, 1))
        code = seed004_backward(x, scales, delta, EPSIL)[0]
        frozen = closed_form(x, scales, delta, "detached")  # the inference gradient, in float64
        rows += [
            {"quantity": "small_deviation", "x": locations, "value": _error(code, frozen)},
            {
                "quantity": "small_unexplained",
                "x": locations,
                "value": _rms(code - frozen * (1 - 1 / locations)) / _rms(frozen),
            },
        ]
    return rows


def _test_case(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Input, scales and delta as the repository's test draws them."""
    return generator.uniform(1, 10, shape), generator.uniform(0, 1, shape[1:]), np.ones(shape)


def _close(reference: Array, gradient: Array) -> bool:
    return bool(np.allclose(reference, gradient, rtol=0.1, atol=0.1))


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
    """The source's forward, line by line."""
    mean = x.mean(axis=0)
    var = 1.0 / np.sqrt((x.var(axis=0)) + EPSIL)
    output: Array = (x - mean) * var
    output *= scales
    output += bias
    return output


def _torch_forward(x: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
    flat = F.batch_norm(x.flatten(1), None, None, scales.flatten(), bias.flatten(), True, 0.0, EPSIL)
    return flat.view_as(x)


def _layer_error(gradient: str, x: Array, scales: Array, delta: Array) -> float:
    """The torch layer's gradient against NumPy's: the source's lines for ``code``, and the oracle for ``exact``."""
    layer = NumPyNetNorm(x.shape[1:], gradient).double()
    layer.scales.data = torch.tensor(scales)
    tensor = torch.tensor(x, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(tensor), tensor, torch.tensor(delta))
    if gradient in ("exact", "text"):
        wanted = batch_norm_backward(delta, batch_norm_forward(x, scales, None, (0,), EPSIL)[1])[0]
    elif gradient == "code":
        wanted = seed004_backward(x, scales, delta, EPSIL)[0]
    elif gradient == "detached":
        wanted = closed_form(x, scales, delta, "detached")
    else:
        wanted = published(x, scales, delta, **MENDED[gradient]).delta
    return _error(dx.numpy(), wanted)


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


def _example_parameters() -> dict[str, float]:
    """Parameters of the source's example, 3 channels of 100 x 100, and of the paper's layer for the same maps."""
    per_location = ConvBatchNorm2d(3, (100, 100), statistics="location", parameters="location")
    per_channel = nn.BatchNorm2d(3)
    count = {"source": per_location, "paper": per_channel}
    return {f"parameters/{name}": float(sum(p.numel() for p in layer.parameters())) for name, layer in count.items()}


def _differences(function: Any, at: Array) -> Array:
    """Central differences of a scalar function."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[place] += sign * STEP
            ends.append(function(moved))
        gradient[place] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def _rms(a: Array) -> float:
    return float(np.sqrt(np.mean(a**2)))


def _error(a: Array, reference: Array) -> float:
    """|a - reference| / |reference|, in the Euclidean norm."""
    return _rms(a - reference) / _rms(reference)


# --- training ---

WIDTHS = {"wide": 512, "narrow": 8}  # units of the linear networks' hidden layers


@measure("numpynet/training")
def training(
    data: Dataset, seed: int, network: str, lr: float, gradient: str, steps: int, batch_size: int, every: int
) -> list[Row]:
    """Train with plain SGD; loss, |b| and |W| before the norms every ``every`` steps, and the test at the end.

    All gradients of a seed start from the same weights and see the same batches. ``train_loss`` is the mean over the
    steps since the last row. A run whose loss is not finite ends there, and is tested as it is.
    """
    plain = Data()  # no augmentation
    model = make_network(network, gradient, data, torch.Generator().manual_seed(derive_seed(seed, "weights")))
    before = [layer for layer, norm in zip(model, list(model)[1:], strict=False) if isinstance(norm, NumPyNetNorm)]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    per_epoch = len(data.train.labels) // batch_size
    rows: list[Row] = []
    losses: list[float] = []
    for step in range(1, steps + 1):
        epoch, position = divmod(step - 1, per_epoch)
        if position == 0:
            plan = epoch_plan(len(data.train.labels), plain, seed, epoch)
        x, y = train_batch(data, plan, plain, position * batch_size, batch_size)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            break
        if step % every == 0:
            rows.append({"quantity": "train_loss", "x": step, "value": float(np.mean(losses))})
            for name in ("bias", "weight"):
                size = torch.cat([getattr(layer, name).detach().flatten() for layer in before]).norm()
                rows.append({"quantity": f"{name}_norm", "x": step, "value": float(size)})
            losses = []
    rows.append({"quantity": "diverged", "x": None, "value": float(not np.isfinite(losses[-1] if losses else 0.0))})
    first, again = (_classes(model, data, batch_size, order) for order in ("one", "another"))
    rows.append({"quantity": "test_accuracy", "x": None, "value": 100 * _share(first == data.test.labels)})
    rows.append({"quantity": "changed_classes", "x": None, "value": 100 * _share(first != again)})
    return rows


def make_network(name: str, gradient: str, data: Dataset, generator: torch.Generator) -> nn.Sequential:
    """conv: two strided 5 x 5 convolutions; the others: two linear layers. Each with its bias, the norm and a ReLU."""

    def unit(layer: nn.Module, shape: tuple[int, ...]) -> list[nn.Module]:
        return [layer, NumPyNetNorm(shape, gradient), nn.ReLU()]

    if name == "conv":
        sides = [(side - 5) // 2 + 1 for side in data.image_size]
        ends = [(side - 5) // 2 + 1 for side in sides]
        layers = [
            *unit(nn.Conv2d(data.channels, 8, 5, stride=2), (8, *sides)),
            *unit(nn.Conv2d(8, 16, 5, stride=2), (16, *ends)),
        ]
        inputs = 16 * ends[0] * ends[1]
    else:
        inputs = WIDTHS[name]
        pixels = data.channels * data.image_size[0] * data.image_size[1]
        layers = [
            nn.Flatten(),
            *unit(nn.Linear(pixels, inputs), (inputs,)),
            *unit(nn.Linear(inputs, inputs), (inputs,)),
        ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, data.num_classes))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return model


def locations(network: str) -> tuple[int, ...]:
    """M of each norm of `make_network` on digits of 28 x 28."""
    return (8 * 12 * 12, 16 * 4 * 4) if network == "conv" else (WIDTHS[network],) * 2


@torch.no_grad()
def _classes(model: nn.Module, data: Dataset, batch_size: int, order: str) -> Tensor:
    """Classes of the test images, in their order, each normalised in a batch of the training's size."""
    count = len(data.test.labels)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(0, order)))
    split = Split(data.test.images[shuffled], data.test.labels[shuffled])
    found = torch.empty(count, dtype=torch.int64)
    found[shuffled] = torch.cat([model(x).argmax(1) for x in _equal_batches(data, split, batch_size)])
    return found


def _equal_batches(data: Dataset, split: Split, batch_size: int) -> Iterator[Tensor]:
    """Batches of nearly ``batch_size``, none of which is left with a few images."""
    count = len(split.labels)
    for x, _ in eval_batches(data, split, -(-count // max(1, count // batch_size))):
        yield x


def _share(which: Tensor) -> float:
    return float(which.float().mean())
