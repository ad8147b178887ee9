"""Arora, Li & Lyu, Theoretical Analysis of Auto Rate-Tuning by Batch Normalization (ICLR 2019), and Kohler et al.,
Exponential Convergence Rates for Batch Normalization (AISTATS 2019).

https://arxiv.org/abs/1812.03981

Differences from the paper
- The abstracts were read (tomesphere.com/paper/1812.03981, proceedings.mlr.press/v89/kohler19a.html); the theorem on
  least squares, with its step size and rate, is from memory, and is held against the layer's own gradients here. No
  public attempt to repeat either was found; clovaai/AdamP's authors rely on the first (github.com/clovaai/AdamP,
  issue 13).
- A2 and A3 descend on the whole of 500 digits, with a network of three layers of 100 tanh units (the theorems need a
  smooth loss). The rate in question is that of the weights that a norm follows, or would; all other parameters have one
  rate, the same in all arms.
- A stationary point is approached as fast as the smallest gradient so far falls: its norm over all parameters, that of
  weights before a norm taken at length 1. A power law is fitted to it over the last nine tenths of the steps; the
  theorem is an upper bound, which logarithms belong to.
- The stochastic result, of T^(-1/4), is not tested, and of Kohler et al.'s results those on halfspaces and networks are
  not.
- Weights' norms that only grow, by which the rate tunes itself, are V1.3 of `vanlaarhoven2017`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import exact, greater, less
from bnrepro.config import load_config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.norm import NORMS, NormOptions
from bnrepro.plots.panels import legend, lines, looks, panels
from bnrepro.plots.style import GREY
from bnrepro.training.model import build, norm_of, weighted_layers

ARORA = "Arora, Li & Lyu, Theoretical Analysis of Auto Rate-Tuning by Batch Normalization (2019), "
ARORA += "https://arxiv.org/abs/1812.03981"
KOHLER = "Kohler et al., Exponential Convergence Rates for Batch Normalization (2019), https://arxiv.org/abs/1805.10694"
TUNING = "the ability to allow gradient descent to succeed with less tuning of learning rates"
STATIONARY = (
    "even if we fix the learning rate of scale-invariant parameters (e.g., weights of each layer with BN) to a "
    "constant (say, 0.3), gradient descent still approaches a stationary point (i.e., a solution where gradient is "
    "zero) in the rate of T^{-1/2} in T iterations"
)
SPLITS = (
    "this acceleration is due to the fact that Batch Normalization splits the optimization task into optimizing length "
    "and direction of the parameters separately"
)
WHERE = "abstract"
NAMES = {"bn": "BN", "nobn": "no BN"}
CHANCE = 10.0  # %: a descent that diverged
EARLY = 0.1  # of the steps, before which no power law is fitted


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    conditions: list[float] = [10.0, 100.0, 1000.0]  # A1: largest over smallest eigenvalue of the data's covariance
    directions: int = 60  # A1: steps
    common: list[str] = ["data=mnist5k", "model=paper_mlp", "model.activation=tanh", "model.init=glorot"]
    images: int = 500
    steps: int = 500
    rates: list[float] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
    rate: float = 0.3  # A2: the source's
    others: float = 0.3  # rate of the parameters that are not scale-invariant
    trained: float = 95.0  # A2, A3: % training accuracy of a descent that has succeeded
    tolerance: float = 1e-9  # A1: relative, in float64
    margin_exponent: float = 0.1  # A2: a fifth of the source's exponent, for logarithms
    margin_decades: float = 0.5  # A3: one step of the sweep


paper = Paper(
    __name__,
    Settings,
    scale="toy",
    scale_note="500 steps of gradient descent on 500 digits, a small tanh network",
    source=f"{ARORA}; {KOHLER}",
)


@paper.design
def runs(s: Settings) -> Design:
    """Least squares in float64, and gradient descent at rates over six decades."""
    design = Design(s.seeds)
    design.measure("squares", {}, least_squares, conditions=s.conditions, steps=s.directions)
    for norm in NAMES:
        for rate in s.rates:
            asked: Row = {"overrides": [*s.common, f"variant={norm}"], "images": s.images, "steps": s.steps}
            design.measure(
                "descent", {"norm": norm, "rate": rate}, descent, s.common, **asked, rate=rate, others=s.others
            )
    return design


# --- measurements ---


def problem(seed: int, condition: float, images: int = 200, inputs: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of mean 0 whose covariance has eigenvalues from 1 / ``condition`` to 1, targets, and these eigenvalues."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "problem"))
    x, y = (torch.randn(images, n, dtype=torch.float64, generator=generator) for n in (inputs, 1))
    white = math.sqrt(images) * torch.linalg.svd(x - x.mean(0), full_matrices=False).U
    eigenvalues = torch.logspace(-math.log10(condition), 0, inputs, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(inputs, inputs, dtype=torch.float64, generator=generator)).Q
    return white * eigenvalues.sqrt() @ turn, y[:, 0] - y.mean(), eigenvalues


def direction_gradient(x: Tensor, y: Tensor, w: Tensor, norm: str = "custombn") -> Tensor:
    """By w, of the mean of (g z - y)^2 / 2 with z = BN(x w) and the g that is best for it."""
    layer = NORMS[norm](1, (), options=NormOptions(eps=0.0)).double().train()
    w = w.detach().requires_grad_()
    z = layer((x @ w)[:, None])[:, 0]
    length = ((z * y).mean() / z.square().mean()).detach()
    (gradient,) = torch.autograd.grad((length * z - y).square().mean() / 2, w)
    return gradient


@measure("arora2019/least_squares")
def least_squares(seed: int, conditions: list[float], steps: int, norm: str = "custombn") -> list[Row]:
    """A1. Least squares by a unit with BN, whose length is always the best and whose direction descends with the step
    |w|_S^2 / (L |rho|), rho = -(u w)^2 / |w|_S^2, S the covariance, u = E[x y], L its largest eigenvalue.

    ``excess``: by how much, relatively, the distance of rho to its minimum exceeds (1 - mu / L)^(2 t) times that of
    the start in the worst step, or 0 (x: the condition number). ``left``: what is left of it after the last.
    """
    rows: list[Row] = []
    for condition in conditions:
        x, y, eigenvalues = problem(seed, condition)
        covariance, u = x.T @ x / len(x), x.T @ y / len(x)
        best = -float(u @ torch.linalg.solve(covariance, u))
        generator = torch.Generator().manual_seed(derive_seed(seed, "start"))
        w = torch.randn(len(u), dtype=torch.float64, generator=generator)
        rate = (1 - float(eigenvalues[0] / eigenvalues[-1])) ** 2
        distances = []
        for _ in range(steps + 1):
            square = float(w @ covariance @ w)
            rho = -(float(u @ w) ** 2) / square
            distances.append((rho - best) / -best)
            w = w - square / (float(eigenvalues[-1]) * -rho) * direction_gradient(x, y, w, norm)
        bounds = [distances[0] * rate**t for t in range(steps + 1)]
        beyond = max((d - b) / b for d, b in zip(distances, bounds, strict=True) if b > 1e-12)
        rows += [row("excess", max(0.0, beyond), condition), row("left", distances[-1] / distances[0], condition)]
    return rows


@measure("arora2019/descent")
def descent(
    data: Dataset, seed: int, overrides: list[str], images: int, steps: int, rate: float, others: float
) -> list[Row]:
    """Gradient descent on the first training images, with ``rate`` for the weights that a norm follows or would.

    Rows: ``accuracy`` on them after the last step, in %, in training mode; ``gradient``, the norm of the smallest
    gradient so far (x: step, some of them). Or ``diverged`` (the step), with the accuracy of chance.
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    weights = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights).train()
    x, y = data.normalize(data.train.images[:images]), data.train.labels[:images]
    normed = [layer.weight for layer in weighted_layers(network)[:-1]]
    ids = set(map(id, normed))
    rest = [p for p in network.parameters() if id(p) not in ids]
    invariant = cfg.variant != "nobn"
    marks = {round(m) for m in np.geomspace(1, steps, 25)}
    rows: list[Row] = []
    smallest = math.inf
    for step in range(1, steps + 1):
        logits = network(x)
        loss = F.cross_entropy(logits, y)
        if not loss.isfinite():
            return [*rows, row("diverged", step), row("accuracy", CHANCE)]
        gradients = torch.autograd.grad(loss, [*normed, *rest])
        own, other = gradients[: len(normed)], gradients[len(normed) :]
        with torch.no_grad():
            sizes = [float(w.square().sum()) if invariant else 1.0 for w in normed] + [1.0] * len(rest)
            squares = (float(g.double().square().sum()) * a for g, a in zip(gradients, sizes, strict=True))
            smallest = min(smallest, math.sqrt(sum(squares)))
            for parameters, found, lr in ((normed, own, rate), (rest, other, others)):
                for p, g in zip(parameters, found, strict=True):
                    p -= lr * g
        if step in marks:
            rows.append(row("gradient", smallest, step))
    with torch.no_grad():
        return [*rows, row("accuracy", 100 * float((network(x).argmax(1) == y).double().mean()))]


# --- claims ---


@paper.claim(
    "A1",
    source=KOHLER,
    kind="identity",
    quote=SPLITS,
    where=WHERE,
    reported="no number read; (1 - mu / L)^(2 t) from memory",
)
def direction_converges_exponentially(r: Results, s: Settings) -> Evidence:
    """Batch normalization splits least squares into length and direction: the direction alone converges exponentially,
    at least as fast as (1 - mu / L)^(2 t), with mu and L the covariance's smallest and largest eigenvalue.
    """
    excess, left = (r.measured(name, part="squares") for name in ("excess", "left"))
    found = {f"condition number {c:g}": excess.at(x=c) for c in s.conditions}
    evidence = exact(found, "relative excess over the bound", tolerance=s.tolerance)
    return evidence.showing({f"left after {s.directions} steps, {c:g}": left.at(x=c) for c in s.conditions}, "")


def accuracy(r: Results, norm: str) -> Values:
    """Training accuracy at the end, by rate."""
    return r.measured("accuracy", part="descent", norm=norm)


def best(values: Values) -> Values:
    """Each seed's best over the rates."""
    return values.max("rate")


def succeeds(r: Results, s: Settings) -> Gate:
    """Both networks, at the best rate of the sweep."""
    first, second = (reaches(best(accuracy(r, n)), s.trained, f"best training accuracy, {NAMES[n]}, %") for n in NAMES)
    return first & second


def succeeds_at_the_sources(r: Results, s: Settings) -> Gate:
    """The network with BN at the source's rate."""
    return reaches(accuracy(r, "bn").at(rate=s.rate), s.trained, f"training accuracy with BN at rate {s.rate:g}, %")


def falls(r: Results, s: Settings, norm: str = "bn") -> Values:
    """Exponent of the smallest gradient so far in the number of steps, by rate."""

    def slope(steps: list[int], found: list[float]) -> float:
        late = [(math.log(t), math.log(g)) for t, g in zip(steps, found, strict=True) if t >= EARLY * s.steps]
        times, sizes = [t for t, _ in late], [g for _, g in late]
        return float(np.polyfit(times, sizes, 1)[0]) if len(late) > 1 else math.nan

    return r.measured("gradient", part="descent", norm=norm).along("x", slope).where(math.isfinite)


@paper.claim("A2", source=ARORA, quote=STATIONARY, where=WHERE, reported="T^(-1/2)", gate=succeeds_at_the_sources)
def gradient_falls(r: Results, s: Settings) -> Evidence:
    """With a constant rate of 0.3 for scale-invariant weights, gradient descent approaches a stationary point at the
    rate of T^(-1/2) or faster.
    """
    found = falls(r, s)
    estimand = f"exponent of the smallest gradient in the steps, rate {s.rate:g}, plus 1/2"
    evidence = less(found.at(rate=s.rate) + 0.5, estimand, "", bar=s.margin_exponent)
    evidence = evidence.showing({f"rate {rate:g}": found.at(rate=rate) + 0.5 for rate in s.rates if rate != s.rate})
    remark = "Whether the network without BN does so too is not judged; its exponents stand in the table by rate."
    return replace(evidence, remark=remark)


def decades(r: Results, s: Settings, norm: str) -> Values:
    """Decades of rates, around the best, at which descent succeeds."""

    def width(rates: list[float], found: list[float]) -> float:
        pairs = sorted(zip(rates, found, strict=True))
        top = max(range(len(pairs)), key=lambda i: pairs[i][1])
        if pairs[top][1] < s.trained:
            return 0.0
        low = high = top
        while low > 0 and pairs[low - 1][1] >= s.trained:
            low -= 1
        while high < len(pairs) - 1 and pairs[high + 1][1] >= s.trained:
            high += 1
        return math.log10(pairs[high][0] / pairs[low][0])

    return accuracy(r, norm).along("rate", width)


def largest(r: Results, s: Settings, norm: str) -> Values:
    """The largest rate at which descent succeeds."""

    def last(rates: list[float], found: list[float]) -> float:
        return max((rate for rate, reached in zip(rates, found, strict=True) if reached >= s.trained), default=math.nan)

    return accuracy(r, norm).along("rate", last).where(math.isfinite)


@paper.claim("A3", source=ARORA, quote=TUNING, where=WHERE, reported="no number in the abstract", gate=succeeds)
def less_tuning(r: Results, s: Settings) -> Evidence:
    """Batch normalization allows gradient descent to succeed over more decades of learning rates, up to larger ones."""
    found = {norm: decades(r, s, norm) for norm in NAMES}
    estimand, unit = "rates at which descent succeeds, BN minus none", "decades of learning rate"
    evidence = greater(found["bn"] - found["nobn"], estimand, unit, margin=s.margin_decades)
    evidence = evidence.showing({NAMES[norm]: values for norm, values in found.items()})
    rates = {f"largest rate, {name}": largest(r, s, norm) for norm, name in NAMES.items()}
    remark = (
        f"Small rates hardly test it: all other parameters have a rate of {s.others:g}, and a last layer on random "
        "features may fit so few images."
    )
    return replace(evidence.showing(rates, "", ratio=True), remark=remark)


# --- tables and figures ---


@paper.table
def by_rate(r: Results, s: Settings) -> list[Row]:
    """Training accuracy after {s.steps} steps by the rate of the weights before a norm, and how the gradient falls."""
    found = {f"exponent of the gradient, {name}": falls(r, s, norm) for norm, name in NAMES.items()}
    return [
        {"rate": rate}
        | {f"{name}, training accuracy, %": accuracy(r, norm).at(rate=rate).interval() for norm, name in NAMES.items()}
        | {name: values.at(rate=rate).interval() for name, values in found.items()}
        for rate in s.rates
    ]


@paper.figure
def tuning(r: Results, s: Settings) -> Figure | None:
    """Left: training accuracy after {s.steps} steps by the rate of the weights before a norm. Right: norm of the
    smallest gradient so far with BN, by that rate; dashed: T^(-1/2).
    """
    reached, gradient = r.measured("accuracy", part="descent"), r.measured("gradient", part="descent", norm="bn")
    if not reached or not gradient:
        return None
    figure, (left, right) = panels(2, height=2.6)
    lines(left, reached, "rate", "norm", looks(NAMES))
    left.axhline(s.trained, color=GREY, linewidth=0.8)
    left.set_xscale("log")
    left.set(xlabel="learning rate", ylabel="training accuracy, %", ylim=(0, 102))
    some = dict.fromkeys((min(s.rates), s.rate, max(s.rates)))
    lines(right, gradient, "x", "rate", looks({rate: f"rate {rate:g}" for rate in some}), log=True, marks=False)
    steps = sorted(gradient.levels("x"))
    start = gradient.at(rate=s.rate, x=steps[0]).interval().mean
    right.plot(steps, [start * (t / steps[0]) ** -0.5 for t in steps], color=GREY, linestyle=(0, (4, 2)))
    right.set_xscale("log")
    right.set_yscale("log")
    right.set(xlabel="step", ylabel="smallest gradient so far")
    legend(figure, 5)
    return figure
