"""The statements that hold exactly, in float64 with eps = 0: what the scale of the weights before a norm changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.config.schema import Initialization, Model
from bnrepro.data.dataset import derive_seed
from bnrepro.experiments.vanlaarhoven2017.training import normed_weights
from bnrepro.norm import NORMS, NormOptions
from bnrepro.training.model import build

Row = dict[str, Any]


@measure("vanlaarhoven2017/invariance")
def invariance(seed: int, scale: float, steps: int, lr: float, decay: float) -> list[Row]:
    """A network of three normed layers at its initial weights w and at a w (``scale``), alone and in training.

    Rows, all relative errors unless said: ``loss`` of L(a w) from L(w); ``orthogonal``: cosine of w and its gradient;
    ``gradient`` of a dL/dw at a w from dL/dw at w; ``growth`` of |w|² + lr² |g|² from the next |w|² of plain SGD, and
    ``least_growth``, the smallest relative step of |w|². Then the largest difference of the losses of two trainings,
    from w and from a w: ``sgd`` with (lr, decay) and (a² lr, decay / a²); ``sgd_same`` with (lr, decay) both;
    ``adam`` with lr and a lr; ``adam_same`` with lr both; ``adam_squared`` with lr and a² lr.
    """
    x, y = _data(seed)
    network, larger = _network(seed), _network(seed, scale)
    loss, other = (float(_loss(n, x, y).detach()) for n in (network, larger))
    weights = normed_weights(network)
    gradients, scaled = (torch.autograd.grad(_loss(n, x, y), normed_weights(n)) for n in (network, larger))
    cosines = [
        F.cosine_similarity(w.detach().flatten(), g.flatten(), dim=0) for w, g in zip(weights, gradients, strict=True)
    ]
    errors = [(scale * b - a).norm() / a.norm() for a, b in zip(gradients, scaled, strict=True)]
    growth, least = _growth(seed, x, y, steps, lr)

    def apart(kind: str, factor: float, decay: float, decay_factor: float) -> float:
        settings = ((1.0, lr, decay), (scale, lr * factor, decay * decay_factor))
        a, b = (list(_training(kind, seed, s, x, y, steps, rate, wd)) for s, rate, wd in settings)
        return max(abs(p - q) / abs(p) for p, q in zip(a, b, strict=True))

    rows = {
        "loss": abs(other / loss - 1),
        "orthogonal": max(abs(float(cosine)) for cosine in cosines),
        "gradient": max(map(float, errors)),
        "growth": growth,
        "least_growth": least,
        "sgd": apart("sgd", scale**2, decay, scale**-2),
        "sgd_same": apart("sgd", 1, decay, 1),
        "adam": apart("adam", scale, 0.0, 1),
        "adam_same": apart("adam", 1, 0.0, 1),
        "adam_squared": apart("adam", scale**2, 0.0, 1),
    }
    return [{"quantity": name, "x": None, "value": value} for name, value in rows.items()]


def _data(seed: int) -> tuple[Tensor, Tensor]:
    """Images of 6 x 6 normal values in three classes by their first pixels."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "invariance"))
    x = torch.randn(96, 1, 6, 6, dtype=torch.float64, generator=generator)
    return x, x.flatten(1)[:, :3].argmax(1)


def _network(seed: int, scale: float = 1.0) -> nn.Module:
    model = Model(name="paper_mlp", width=0.16, activation="tanh", init=Initialization.glorot)
    norm = partial(NORMS["custombn"], options=NormOptions(eps=0.0))  # torch refuses eps = 0
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    network = build(model, norm, 1, (6, 6), 3, generator).double().train()
    with torch.no_grad():
        for weight in normed_weights(network):
            weight.mul_(scale)
    return network


def _loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network(x), y)


def _growth(seed: int, x: Tensor, y: Tensor, steps: int, lr: float) -> tuple[float, float]:
    """Of plain SGD: the largest error of |w|² + lr² |g|² = next |w|², and the smallest relative growth."""
    network = _network(seed)
    weights, optimizer = normed_weights(network), torch.optim.SGD(network.parameters(), lr=lr)
    errors, growths = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(network, x, y).backward()
        before = [float(w.detach().square().sum()) for w in weights]
        added = [lr**2 * float(w.grad.square().sum()) for w in weights if w.grad is not None]
        optimizer.step()
        after = [float(w.detach().square().sum()) for w in weights]
        errors += [abs((b + g) / a - 1) for a, b, g in zip(after, before, added, strict=True)]
        growths += [a / b - 1 for a, b in zip(after, before, strict=True)]
    return max(errors), min(growths)


def _training(
    kind: str, seed: int, scale: float, x: Tensor, y: Tensor, steps: int, lr: float, decay: float
) -> Iterator[float]:
    """The losses; ``lr`` and ``decay`` are of the weights that a norm follows, the others have a rate of their own."""
    network = _network(seed, scale)
    weights = normed_weights(network)
    held = set(map(id, weights))
    rest = [p for p in network.parameters() if id(p) not in held]
    groups = [{"params": weights, "lr": lr, "weight_decay": decay}, {"params": rest, "lr": 0.01}]
    sgd = kind == "sgd"
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9) if sgd else torch.optim.Adam(groups, lr=lr, eps=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _loss(network, x, y)
        yield float(loss.detach())
        loss.backward()
        optimizer.step()
