"""Yang et al., A Mean Field Theory of Batch Normalization (ICLR 2019).

https://arxiv.org/abs/1902.08129

Differences from the paper
- Its abstract was read (openreview.net/forum?id=SyMDXnCcF7), not its 95 pages. The limit pi/(pi-1) stands in a public
  repetition of it, by K. Luther (kyleluther.github.io/2020/02/18/batchnorm-exploding-gradients.html), who finds the
  same growth in a network of ten layers; (B-2)/(B-3) for linear networks is from memory, and is derived here (Y1).
- The growth is that of the squared gradient, as in the source's limits; Luther's 1.21 is the root of 1.467.
- Y1 is of infinite width: the layer's own backward, over its inputs' directions and lengths, which are integrated
  exactly. What a batch of B images comes to with ReLU (`relu_rate`) is our own formula, from the same argument.
- Networks have a finite width, and inputs are normal noise. The first and last layers are left out, where the growth is
  not that of the middle yet. BN has gamma = 1, beta = 0 and torch's eps, and stands before the activation.
- Y4 trains networks of 100 units a layer on digits, by SGD at the best of several rates on validation data for each
  depth. The source says at which depths its networks cannot be trained in figures that were not read; a talk by its
  first author (csail.mit.edu/event/batch-normalization-causes-gradient-explosion-deep-randomly-initialized-networks)
  says "more than 50 layers". A network of the same depth without BN, from He's weights, stands beside it.
- The ways out that the source gives (a network near the linear regime, skip connections) are not tested.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.special import roots_genlaguerre
from torch import nn

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import equal, exact, greater
from bnrepro.data.dataset import derive_seed
from bnrepro.norm import NORMS, NormOptions
from bnrepro.plots.panels import legend, lines, looks, panels, ticks, zero
from bnrepro.plots.style import BLACK, GREY
from bnrepro.training.depth import by_depth, growth
from bnrepro.training.networks import ACTIVATIONS

LIMIT = math.pi / (math.pi - 1)
"""Growth of the squared gradient per layer with ReLU as the batch grows: 1.467."""
ABSTRACT = (
    "gradient signals grow exponentially in depth and [...] these exploding gradients cannot be eliminated by tuning "
    "the initial weight variances or by adjusting the nonlinear activation function. Indeed, batch normalization "
    "itself is the cause of gradient explosion."
)
UNTRAINABLE = (
    "As a result, vanilla batch-normalized networks without skip connections are not trainable at large depths for "
    "common initialization schemes"
)
WHERE = "abstract"
LUTHER = "gradient norms grow by sqrt(pi/(pi-1)) in each layer of a ReLU network with Batch Normalization"
NAMES = {"relu": "ReLU", "tanh": "tanh", "elu": "ELU", "linear": "linear"}
POINTS = "percentage points of test accuracy"


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    exact_batches: list[int] = [4, 8, 32, 64]  # Y1
    width: int = 1024
    depth: int = 24
    skipped: int = 4  # layers at either end that the growth leaves out
    batches: list[int] = [8, 32, 128, 256]  # Y2: ReLU
    batch: int = 32  # Y3
    variances: list[float] = [0.5, 2.0, 8.0]  # Y3: of the weights, times their number of inputs; 2 is He's
    depths: list[int] = [8, 64]  # Y4
    common: list[str] = [
        *("data=mnist5k", "model=paper_mlp", "model.activation=relu", "model.init=he", "optimizer=sgd"),
        *("schedule=cosine", "batch_size=128", "epochs=20"),
    ]
    rates: list[float] = [0.001, 0.01, 0.1, 1.0]  # Y4: the sweep
    trained: float = 90.0  # Y4: % test accuracy of the shallow network at its best rate
    tolerance: float = 1e-10  # Y1: relative, in float64
    margin_limit: float = 1.02  # Y2: half of what a batch of 32 differs from the limit by, in the exact formula
    margin_growth: float = 1.01  # Y3: a third of what a batch of 32 has in a linear network, 32/31 - 1 or so
    margin_points: float = 40.0  # Y4: about half of the way from a trained network's accuracy to chance

    @property
    def shallow(self) -> int:
        """Layers of the network that must be trainable."""
        return min(self.depths)

    @property
    def deep(self) -> int:
        """Layers of the network that is said not to be."""
        return max(self.depths)


paper = Paper(__name__, Settings, scale="paper", scale_note="random networks of 24 layers of 1,024 units")


@paper.design
def runs(s: Settings) -> Design:
    """Rates of growth, exact and in random networks; shallow and deep networks that are trained."""
    design = Design(s.seeds)
    design.measure("exact", {}, exactly, seeds=[0], batches=s.exact_batches)
    sizes: Row = {"width": s.width, "depth": s.depth, "skipped": s.skipped}

    def random(part: str, norm: str, activation: str, batch: int, variance: float) -> None:
        factors: Row = {"norm": norm, "activation": activation, "batch": batch, "variance": variance}
        design.measure(part, factors, in_random_network, **factors, **sizes)

    for batch in s.batches:
        random("batches", "bn", "relu", batch, 2.0)
    random("batches", "nobn", "relu", max(s.batches), 2.0)
    for variance in s.variances:
        random("cause", "bn", "relu", s.batch, variance)
    for activation in NAMES:
        if activation != "relu":
            random("cause", "bn", activation, s.batch, 2.0)
    random("cause", "nobn", "relu", s.batch, 2.0)
    for rate, depth, norm in product(s.rates, s.depths, ("bn", "nobn")):
        if norm == "bn" or depth == s.deep:
            own = [f"optimizer.lr={rate}", f"model.depth={depth}", f"variant={norm}"]
            design.train("trained", {"norm": norm, "depth": depth, "rate": rate}, [*s.common, *own])
    return design


# --- formulas ---


def linear_rate(batch: float) -> float:
    """(B-2)/(B-3), of a linear network of infinite width."""
    return (batch - 2) / (batch - 3)


def relu_rate(batch: int) -> float:
    """Growth of the squared gradient per layer, of BN and ReLU in a network of infinite width, at a batch of B.

    Before BN, a unit's values for the batch are normal with variance v about their mean. BN is z = sqrt(B) u with u
    uniform on the unit sphere of the B - 1 directions that sum to 0. With rho = -1/(B-1) the correlation of two of
    its entries, c = E[relu(z_1) relu(z_2)], and weights of variance 1 / inputs: v = 1/2 - c. The gradient's covariance
    is a multiple of the projection P on these directions, by symmetry. Its factor per layer is

        E[B / |h|^2] E[tr (1 - u u') P D P D P] / (B - 1)  with  E[1 / |h|^2] = 1 / (v (B - 3)),  D = [u > 0],

    whose trace needs no more than E[k] = B/2 and E[k^2] of the number k of positive entries, and c. It tends to
    pi/(pi-1).
    """
    rho = -1 / (batch - 1)
    angle = math.pi - math.acos(rho)
    c = (math.sqrt(1 - rho**2) + rho * angle) / (2 * math.pi)
    k = batch / 2
    squared = k + batch * (batch - 1) * angle / (2 * math.pi)
    trace = k - 2 * k / batch + squared / batch**2 - 0.5 + (0.5 + (batch - 1) * c) / batch
    return batch * trace / ((0.5 - c) * (batch - 3) * (batch - 1))


# --- measurements ---


@measure("yang2019/exact")
def exactly(seed: int, batches: list[int]) -> list[Row]:
    """Y1. ``growth`` of the squared gradient per layer of a linear network of infinite width (x: batch).

    From the layer's own backward, with eps = 0: over directions, an orthonormal basis stands for the sphere (the
    function is quadratic in them), and over lengths Gauss-Laguerre quadrature for the chi distribution.
    """
    return [row("growth", growth_of_layer("custombn", batch), batch) for batch in batches]


def growth_of_layer(norm: str, batch: int, eps: float = 0.0) -> float:
    """See `exactly`."""
    n = batch - 1
    basis = torch.linalg.qr(torch.eye(batch, dtype=torch.float64)[:, :n] - 1 / batch).Q  # (B, n): columns sum to 0
    nodes, weights = (torch.from_numpy(each) for each in roots_genlaguerre(6, n / 2 - 2))
    lengths = (2 * nodes * batch / n).sqrt()  # the variance before BN is B / (B - 1), as BN's output has it
    h = (basis[:, None, :, None] * lengths[None, :, None, None]).expand(batch, len(nodes), n, n)
    h = h.reshape(batch, -1).requires_grad_()  # (B, lengths x directions x gradients from above)
    above = basis[:, None, None, :].expand(batch, len(nodes), n, n).reshape(batch, -1)
    layer = NORMS[norm](h.shape[1], (), options=NormOptions(eps=eps)).double().train()
    (gradient,) = torch.autograd.grad(layer(h), h, above)
    squares = gradient.square().sum(0).view(len(nodes), n, n).sum(2).mean(1) / n
    shares = weights * nodes
    return float((shares * squares).sum() / shares.sum())


def random_network(depth: int, width: int, norm: str, activation: str, variance: float, seed: int) -> nn.Sequential:
    """Layers of a linear map, norm and activation; weights of ``variance`` / ``width``, no biases."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, std=math.sqrt(variance / width), generator=generator)
        layers += [linear, NORMS[norm](width, ()), ACTIVATIONS.get(activation, nn.Identity)()]
    return nn.Sequential(*layers).train()


@measure("yang2019/random")
def in_random_network(
    seed: int, norm: str, activation: str, batch: int, variance: float, width: int, depth: int, skipped: int
) -> list[Row]:
    """``growth`` of the squared gradient per layer, and ``gradient``, its mean square over that of the last layer
    (x: layer from 1), at what enters the norms.
    """
    network = random_network(depth, width, norm, activation, variance, seed)
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(derive_seed(seed, "inputs")))
    layers = by_depth(network, x, seed=derive_seed(seed, "gradients"))
    rows = [row("gradient", layer.gradient / layers[-1].gradient, i) for i, layer in enumerate(layers, 1)]
    return [row("growth", growth(layers, skipped)), *rows]


# --- claims ---


@paper.claim(
    "Y1",
    kind="identity",
    where="not read: from memory, and derived here",
    reported="no number read; (B-2)/(B-3) from memory",
)
def linear_networks(r: Results, s: Settings) -> Evidence:
    """In linear networks with batch normalization the squared gradient grows per layer by (B-2)/(B-3), with B images in
    the batch.
    """
    found = r.measured("growth", part="exact")
    errors = {f"B = {batch}": found.at(x=batch) / linear_rate(batch) - 1 for batch in s.exact_batches}
    evidence = exact(errors, "relative error of (B-2)/(B-3)", tolerance=s.tolerance)
    return evidence.showing({f"growth, B = {batch}": found.at(x=batch) for batch in s.exact_batches}, "per layer")


def in_batches(r: Results, s: Settings, batch: int, norm: str = "bn") -> Values:
    """Growth with ReLU and He's weights."""
    return r.measured("growth", part="batches", norm=norm, batch=batch, activation="relu", variance=2.0)


@paper.claim(
    "Y2",
    quote=LUTHER,
    where="K. Luther's repetition, first paragraphs",
    reported="pi/(pi-1) = 1.467 for the squared norm; Luther: 1.21 for the norm",
)
def relu_networks(r: Results, s: Settings) -> Evidence:
    """With ReLU the squared gradient grows per layer by pi/(pi-1) as the batch grows."""
    most = max(s.batches)
    ratio = in_batches(r, s, most) / LIMIT
    evidence = equal(
        ratio, "growth over pi/(pi-1)", "", margin=s.margin_limit, ratio=True, condition=f"batch of {most}"
    )
    found = {f"growth, batch of {batch}": in_batches(r, s, batch) for batch in s.batches}
    evidence = evidence.showing(found, "per layer", ratio=True)
    formula = {f"over the exact rate, batch of {b}": in_batches(r, s, b) / relu_rate(b) for b in s.batches}
    return evidence.showing(formula, "", ratio=True)


def cause(r: Results, s: Settings, norm: str, activation: str, variance: float = 2.0) -> Values:
    """Growth at one batch."""
    return r.measured("growth", part="cause", norm=norm, activation=activation, variance=variance, batch=s.batch)


@paper.claim("Y3", quote=ABSTRACT, where=WHERE, reported="no number in the abstract")
def normalization_is_the_cause(r: Results, s: Settings) -> Evidence:
    """Batch normalization itself makes gradients explode with depth, at a batch of 32: with ReLU at every variance of
    the initial weights, with tanh, with ELU, and in a linear network; without it they keep their size with ReLU and
    He's weights.
    """
    with_bn = {f"ReLU, weights' variance {v:g}": cause(r, s, "bn", "relu", v) for v in s.variances}
    with_bn |= {name: cause(r, s, "bn", activation) for activation, name in NAMES.items() if activation != "relu"}
    estimand, unit = f"growth of the squared gradient per layer, batch of {s.batch}", "per layer"
    evidence = greater(with_bn, estimand, unit, margin=s.margin_growth, ratio=True)
    plain = {"ReLU without BN": cause(r, s, "nobn", "relu")}
    evidence &= equal(plain, estimand, unit, margin=s.margin_limit, ratio=True)
    remark = (
        "With BN the scale of the weights cancels but for eps, so the variances are one cell. By Y1 the linear growth "
        "tends to 1 as the batch grows."
    )
    return replace(evidence, remark=remark)


def best_rate(r: Results, s: Settings, norm: str, depth: int) -> Any:
    """The rate with the best mean validation accuracy."""
    found = r.accuracy("val_accuracy", part="trained", norm=norm, depth=depth).without("variant")
    return found.best("rate", s.rates[0])


def at_best(r: Results, s: Settings, norm: str, depth: int) -> Values:
    """Test accuracy at `best_rate`."""
    rate = best_rate(r, s, norm, depth)
    return r.accuracy(part="trained", norm=norm, depth=depth, rate=rate).without("variant")


def shallow_trains(r: Results, s: Settings) -> Gate:
    """The recipe is one with which the shallow network is trained."""
    return reaches(at_best(r, s, "bn", s.shallow), s.trained, f"test accuracy of {s.shallow} layers with BN, %")


@paper.claim(
    "Y4",
    quote=UNTRAINABLE,
    where=WHERE,
    reported="more than 50 layers, in a talk",
    scale="reduced",
    scale_note="8 and 64 layers of 100 units on 4,500 digits",
    gate=shallow_trains,
)
def deep_networks_are_not_trainable(r: Results, s: Settings) -> Evidence:
    """Plain networks with batch normalization and no skip connections are not trainable at large depths."""
    estimand = f"test accuracy with BN at the best rate, {s.shallow} minus {s.deep} layers"
    difference = at_best(r, s, "bn", s.shallow) - at_best(r, s, "bn", s.deep)
    evidence = greater(difference, estimand, POINTS, margin=s.margin_points)
    shown = {f"{s.deep} layers with BN": at_best(r, s, "bn", s.deep)}
    shown[f"{s.deep} layers without BN"] = at_best(r, s, "nobn", s.deep)
    evidence = evidence.showing(shown, "%")
    return evidence.unless_at_edge({"the shallow network": (best_rate(r, s, "bn", s.shallow), s.rates)})


# --- tables and figures ---


@paper.table
def rates(r: Results, s: Settings) -> list[Row]:
    """Growth of the squared gradient per layer in random networks; geometric means over the layers."""
    rows = []
    for part in ("batches", "cause"):
        found = r.measured("growth", part=part)
        for (norm, activation, batch, variance), values in found.by("norm", "activation", "batch", "variance").items():
            theory = {"relu": relu_rate, "linear": linear_rate}.get(activation) if norm == "bn" else None
            row: Row = {"BN": norm == "bn", "activation": NAMES[activation], "batch": batch}
            row |= {"variance of weights x inputs": variance, "growth": values.interval()}
            rows.append(row | {"exact, infinite width": theory(batch) if theory else None})
    return rows


@paper.table
def trained(r: Results, s: Settings) -> list[Row]:
    """Networks that were trained: test accuracy by depth and rate. A run that diverged counts as chance."""
    accuracy, diverged = r.accuracy(part="trained").without("variant"), r.diverged(part="trained").without("variant")
    return [
        {"BN": norm == "bn", "layers": depth, "rate": rate, "test accuracy, %": values.interval()}
        | {"diverged": int(sum(diverged.at(norm=norm, depth=depth, rate=rate)))}
        for (norm, depth, rate), values in accuracy.by("norm", "depth", "rate").items()
    ]


@paper.figure
def explosion(r: Results, s: Settings) -> Figure | None:
    """Left: squared gradient by layer over that of the last, ReLU and He's weights; dashed: pi/(pi-1) per layer. Right:
    its growth per layer by the batch; solid: exact for ReLU at infinite width, dashed: the limit pi/(pi-1).
    """
    gradient = r.measured("gradient", part="batches")
    if not gradient:
        return None
    figure, (left, right) = panels(2, height=2.5)
    few, most = min(s.batches), max(s.batches)
    arms = {f"BN, batch of {b}": gradient.at(norm="bn", batch=b) for b in dict.fromkeys((few, most))}
    arms["no BN"] = gradient.at(norm="nobn", batch=most)
    arms = {name: values.at(activation="relu", variance=2.0) for name, values in arms.items()}
    look = looks({name: name for name in arms})
    lines(left, Values.stacked("arm", arms), "x", "arm", look, log=True, marks=False)
    depth = range(1, s.depth + 1)
    left.plot(depth, [LIMIT ** (s.depth - at) for at in depth], color=GREY, linestyle=(0, (4, 2)), zorder=1)
    left.set_yscale("log")
    left.set(xlabel="layer", ylabel="squared gradient / last layer's")
    found = r.measured("growth", part="batches", norm="bn", activation="relu", variance=2.0)
    between = list(range(few, most + 1))
    right.plot(between, list(map(relu_rate, between)), color=BLACK, linewidth=0.9, label="ReLU, exact")
    right.axhline(LIMIT, color=GREY, linestyle=(0, (4, 2)), linewidth=0.9, label="pi/(pi-1)")
    lines(right, found, "batch", None, look[next(iter(arms))]._replace(dashes="none", label="measured"), bars=True)
    zero(right, 1.0)
    right.set_xscale("log", base=2)
    ticks(right, s.batches)
    right.set(xlabel="images in the batch", ylabel="growth per layer")
    legend(figure, 3)
    return figure
