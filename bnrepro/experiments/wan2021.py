r"""Wan et al., Spherical Motion Dynamics: Learning Dynamics of Normalized Neural Network using SGD and Weight Decay
(NeurIPS 2021).

https://arxiv.org/abs/2006.08419

Differences from the paper
- ResNet-8 at a quarter of the width on CIFAR-10 for 1,053 steps at a constant rate; the source trains ImageNet and
  MSCOCO networks by their usual schedules. Weight decay is 4 to 80 times the usual, so that equilibrium, which takes
  some (1 - momentum) / (4 rate decay) steps, comes in 125 steps or fewer. No rate is tuned: the claims are about any.
- Images are neither cropped nor flipped, and all parameters are decayed, as torch does it.
- The angle is that of a layer's whole weight; the mean over steps is of its square, which is what equilibrium fixes.
- The theorem is tested without networks too, in its own model: gradients orthogonal to the weights and to each other,
  of size G / |w|. There all second moments obey a recursion of three numbers, whose fixed point is exact: the cosine of
  a step is 1 - rate decay / (1 + momentum), of which the source's formula is the limit of small steps.
- Only the abstracts and the formula in a review (https://www.javiersagastuy.com/review/200724_spherical-motion-dynamics)
  could be read. What public repetitions say: Kosson et al. (https://arxiv.org/abs/2305.17212) derive the same
  equilibrium for SGD with momentum from a random walk and find it in networks, more evenly where each neuron's weights
  are normalized; no failed attempt was found.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import equal, exact, greater, less
from bnrepro.claims.gates import stays_below
from bnrepro.data.dataset import Dataset
from bnrepro.experiments.wu2021 import trainer_of
from bnrepro.plots.panels import legend, lines, looks, panels, zero
from bnrepro.training.rotation import Turn, equilibrium_angle, turns, weights

AGREE = "Experiment results show our theoretical findings agree well with empirical observations."
VALUE = "[we] derive the theoretical value of angular update in equilibrium state"
FIXED = (
    "at equilibrium [...] resulting in movement on the surface of a sphere, with a fixed angular update at every step "
    "in training"
)
REVIEW = "J. Sagastuy's review, https://www.javiersagastuy.com/review/200724_spherical-motion-dynamics"
UNREAD = "no number read"
NO_DECAY = "no decay"
TOLERANCE = 1e-9  # of angles in float64, relative
SETTLED = 0.8  # share of a training after which angles are in equilibrium, or should be


class Steps(BaseModel, extra="forbid", frozen=True):
    """Of SGD."""

    lr: float
    weight_decay: float
    momentum: float

    @property
    def angle(self) -> float:
        """In equilibrium, radians."""
        return equilibrium_angle(self.lr, self.weight_decay, self.momentum)

    @property
    def overrides(self) -> list[str]:
        """Of a run."""
        pairs = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        return ["optimizer=sgd", *(f"optimizer.{key}={value:g}" for key, value in pairs.items())]


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every training
        *("data=cifar10", "data.crop=0", "data.flip=false", "model=resnet20", "model.depth=1", "model.width=0.25"),
        *("channels_last=true", "batch_size=128", "epochs=3"),
    ]
    cells: dict[str, Steps] = {  # each factor of the formula changes in one of them
        "usual": Steps(lr=0.1, weight_decay=2e-3, momentum=0.9),
        "decay x 4": Steps(lr=0.1, weight_decay=8e-3, momentum=0.9),
        "no momentum": Steps(lr=1.0, weight_decay=2e-3, momentum=0.0),
        NO_DECAY: Steps(lr=0.1, weight_decay=0.0, momentum=0.9),
    }
    every: int = 5  # steps of which one is measured
    points: int = 12  # of a training, in figures
    fall: float = 4.0  # M4: the rate is divided by it at the end
    after: int = 20  # M4: steps with the smaller rate, few against those in which equilibrium comes back
    models: list[Steps] = [  # M1
        Steps(lr=0.1, weight_decay=1e-3, momentum=0.9),
        Steps(lr=0.1, weight_decay=1e-1, momentum=0.9),
        Steps(lr=1.0, weight_decay=1e-3, momentum=0.0),
        Steps(lr=1.0, weight_decay=1e-1, momentum=0.5),
    ]
    trained: float = (
        40.0  # % training accuracy over the last fifth in the usual cell; about what a linear model reaches
    )
    drift: float = 15.0  # % by which a layer's norm may change over the last fifth, nearly two times of relaxation
    # M2: the source says "well". Without momentum's factor the formula would be 1.38 times as large, and with half the
    # decay 1 / 1.41; a third of the way to them, as a logarithm.
    margin: float = 1.12
    spread: float = 1.41  # M3: as far apart as two layers whose decays differ by a factor of 2
    margin_fall: float = 1.41  # M4: half way between the two candidates, 1/4 and 1/2
    growth: float = 1.1  # M5: a factor, over half of the training

    @property
    def decayed(self) -> dict[str, Steps]:
        """The cells that have an equilibrium."""
        return {name: cell for name, cell in self.cells.items() if cell.weight_decay}

    @property
    def usual(self) -> str:
        """The first cell."""
        return next(iter(self.cells))


paper = Paper(__name__, Settings, scale="reduced", scale_note="ResNet-8 at a quarter of the width, 1,053 steps")


@paper.design
def runs(s: Settings) -> Design:
    """Trainings by rate, decay and momentum; and the source's model."""
    design = Design(s.seeds)
    asked: Row = {"every": s.every, "points": s.points, "fall": s.fall, "after": s.after}
    for name, cell in s.cells.items():
        design.measure("cells", {"cell": name}, along, s.common, overrides=[*s.common, *cell.overrides], **asked)
    for place, model in enumerate(s.models):
        design.measure("model", {"model": place}, in_the_model, seeds=[0], **model.model_dump())
    return design


# --- the source's model ---


def model_step(
    state: tuple[float, float, float], steps: Steps, size: float
) -> tuple[tuple[float, float, float], float]:
    """(|w|^2, w v, |v|^2) after a step of torch's SGD, v = momentum v + g + decay w and w = w - rate v, and its angle.

    ``g`` has the size ``size`` / |w| and is orthogonal to w and v.
    """
    a, b, c = state
    lr, decay, momentum = steps.lr, steps.weight_decay, steps.momentum
    product = momentum * b + decay * a  # w and the new v
    square = momentum**2 * c + decay**2 * a + 2 * momentum * decay * b + size**2 / a
    after = a - 2 * lr * product + lr**2 * square
    # Of w and w': the sine's part is |g| and what v has at right angles to w, whose rounding a cosine would not show.
    across = max(0.0, square - product**2 / a)
    angle = math.atan2(lr * math.sqrt(across), math.sqrt(a) - lr * product / math.sqrt(a))
    return (after, product - lr * square, square), angle


def equilibrium_norm(steps: Steps, size: float) -> float:
    """|w| at which `model_step` leaves it."""
    lr, decay, momentum = steps.lr, steps.weight_decay, steps.momentum
    return (size**2 / ((1 - momentum) * decay * (2 / lr - decay / (1 + momentum)))) ** 0.25


@measure("wan2021/model")
def in_the_model(seed: int, lr: float, weight_decay: float, momentum: float) -> list[Row]:
    """The source's model until it stands still, from weights of norm 1 and 10 and gradients of size 1 and 100.

    Rows: ``angle``, the largest relative error against arccos(1 - rate decay / (1 + momentum)); ``norm``, of |w|; and
    ``formula``, of the source's formula, sqrt(2 rate decay / (1 + momentum)), against the angle.
    """
    steps = Steps(lr=lr, weight_decay=weight_decay, momentum=momentum)
    count = math.ceil(60 * (1 - momentum) / (4 * lr * weight_decay)) + 2000
    angles, norms = [], []
    for norm, size in ((1.0, 1.0), (10.0, 1.0), (1.0, 100.0)):
        state, angle = (norm**2, 0.0, 0.0), 0.0
        for _ in range(count):
            state, angle = model_step(state, steps, size)
        angles.append(abs(angle / steps.angle - 1))
        norms.append(abs(math.sqrt(state[0]) / equilibrium_norm(steps, size) - 1))
    formula = math.sqrt(2 * lr * weight_decay / (1 + momentum)) / steps.angle - 1
    return [row("angle", max(angles)), row("norm", max(norms)), row("formula", formula)]


# --- networks ---


@measure("wan2021/along")
def along(
    data: Dataset, seed: int, overrides: list[str], every: int, points: int, fall: float, after: int
) -> list[Row]:
    """Angles of the steps of a training as a run of ``overrides``, in radians; of one of ``every`` steps.

    Rows: ``angle`` and ``norm`` (relative to the start), geometric means over the layers at ``points`` steps (x) since
    the one before; ``settled`` by layer (x), over the last fifth, and ``drift``, the largest change of a layer's norm
    in it, %; ``train_accuracy`` in it, %; ``fallen``, over all of ``after`` more steps at the rate over ``fall``. Or
    ``diverged`` (the step). Means over steps are of the square.
    """
    trainer = trainer_of(data, overrides, seed)
    network, steps = trainer.network, trainer.steps
    start = {name: float(w.norm()) for name, w in weights(network).items()}
    seen: list[tuple[int, dict[str, Turn]]] = []
    right: list[float] = []

    def update(step: int, x: Tensor, y: Tensor, lr: float) -> float:
        before = weights(network) if step % every == 0 or step >= steps else {}
        loss, correct = trainer.update(x, y, lr)
        if before:
            seen.append((step, turns(before, network, lr)))
        if step >= SETTLED * steps:
            right.append(float(correct) / len(y))
        return float(loss)

    for batch in trainer.batches():
        if not math.isfinite(update(*batch)):
            return [row("diverged", batch.step)]
    rows: list[Row] = []
    for point in range(points):
        first, last = (round(steps * end / points) for end in (point, point + 1))
        some = [turn for step, turn in seen if first <= step < last]
        if some:
            rows.append(row("angle", over_layers(mean_angles(some)), last))
            rows.append(row("norm", over_layers({name: t.norm / start[name] for name, t in some[-1].items()}), last))
    late = [turn for step, turn in seen if step >= SETTLED * steps]
    rows += [row("settled", value, layer) for layer, value in mean_angles(late).items()]
    changes = [abs(math.log(late[-1][name].norm / turn.norm)) for name, turn in late[0].items()]
    rows.append(row("drift", 100 * math.expm1(max(changes))))
    rows.append(row("train_accuracy", 100 * sum(right) / len(right)))
    seen.clear()
    for batch in trainer.batches(steps, steps + after):
        update(*batch._replace(lr=batch.lr / fall))
    return [*rows, row("fallen", over_layers(mean_angles([turn for _, turn in seen])))]


def mean_angles(found: list[dict[str, Turn]]) -> dict[str, float]:
    """Of each layer, the root of the mean square."""
    return {name: math.sqrt(sum(turn[name].angle ** 2 for turn in found) / len(found)) for name in found[0]}


def over_layers(values: dict[str, float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values.values())) / len(values))


# --- claims ---


def settled(r: Results, s: Settings) -> Values:
    """Angles over the last fifth by cell and layer (x), over that in equilibrium."""
    found = {name: r.measured("settled", part="cells", cell=name) / cell.angle for name, cell in s.decayed.items()}
    return Values.stacked("cell", found)


def layer_mean(values: Values) -> Values:
    """The geometric mean over the layers."""
    return values.reduce(lambda of: math.exp(sum(map(math.log, of)) / len(of)), "x")


def in_equilibrium(r: Results, s: Settings) -> Gate:
    """The usual cell has learned something, and weights have stopped growing or shrinking where they are decayed."""
    gate = reaches(
        r.measured("train_accuracy", part="cells", cell=s.usual), s.trained, "training accuracy, usual cell, %"
    )
    drift = r.measured("drift", part="cells", cell=list(s.decayed))
    return gate & stays_below(drift, s.drift, "change of a layer's norm over the last fifth, %")


def has_trained(r: Results, s: Settings) -> Gate:
    """The usual cell has learned something."""
    return reaches(
        r.measured("train_accuracy", part="cells", cell=s.usual), s.trained, "training accuracy, usual cell, %"
    )


observed = partial(paper.claim, reported=UNREAD, gate=in_equilibrium)


@paper.claim("M1", kind="identity", where="abstract", quote=VALUE, reported="sqrt(2 rate decay / (1 + momentum))")
def the_model_has_this_equilibrium(r: Results, s: Settings) -> Evidence:
    """Where gradients are orthogonal to scale-invariant weights and uncorrelated, SGD with weight decay and momentum
    comes to a norm and an angular update that depend on rate, decay and momentum alone: the angle does not depend on
    the size of the gradients, and is the square root of 2 rate decay / (1 + momentum) for small steps.
    """
    angle, norm, formula = (r.measured(q, part="model") for q in ("angle", "norm", "formula"))
    cells = {"angle": angle, "norm": norm}
    evidence = exact(cells, "relative error, fixed point of the recursion", tolerance=TOLERANCE)
    # sqrt(2 x) is arccos(1 - x) less a twelfth of x.
    beyond = {place: abs(formula.at(model=place)) - step_size(model) for place, model in enumerate(s.models)}
    if formula:
        small = all(value <= 0 for values in beyond.values() for value in values)
        evidence &= exact(small, "", condition="the root is off by less than rate decay / (1 + momentum)")
    named = {f"rate {m.lr:g}, decay {m.weight_decay:g}, momentum {m.momentum:g}": i for i, m in enumerate(s.models)}
    return evidence.showing({f"square root, {name}": formula.at(model=place) for name, place in named.items()})


def step_size(steps: Steps) -> float:
    """Rate times decay over 1 + momentum, half the square of the angle."""
    return steps.lr * steps.weight_decay / (1 + steps.momentum)


@observed("M2", where="abstract", quote=AGREE)
def angles_settle_there(r: Results, s: Settings) -> Evidence:
    """In a network with BN, trained by SGD with weight decay, the angular update settles at the square root of
    2 rate decay / (1 + momentum).
    """
    found = layer_mean(settled(r, s))
    evidence = equal(found, "angle over that in equilibrium, mean over layers", "", margin=s.margin, ratio=True)
    worst = {f"{name}, {word}": each for word, of in (("least layer", Values.min), ("largest layer", Values.max))
             for name, each in of(settled(r, s), "x").by("cell").items()}  # fmt: skip
    return evidence.showing(worst, ratio=True)


@observed("M3", source=REVIEW, where="summary", quote=FIXED)
def layers_turn_alike(r: Results, s: Settings) -> Evidence:
    """In equilibrium all layers have about the same angular update, within a factor of 1.41, whatever their size and
    place.
    """
    found = settled(r, s)
    apart = found.max("x") / found.min("x")
    evidence = less(apart, "largest over smallest angle among layers", "", bar=s.spread, ratio=True)
    remark = "Layers may turn alike without an equilibrium, too: the table of angles has the cell without decay."
    return replace(evidence, remark=remark)


@paper.claim("M4", kind="prediction", reported="no number: ours, from the model", gate=in_equilibrium)
def a_falling_rate_overshoots(r: Results, s: Settings) -> Evidence:
    """When the rate falls in equilibrium, the fall of the angle is at first nearer to that of the rate than to its
    square root, which the angle would come back to.
    """
    before = layer_mean(Values.stacked("cell", {n: r.measured("settled", part="cells", cell=n) for n in s.decayed}))
    fallen = before / r.measured("fallen", part="cells", cell=list(s.decayed)) / s.fall
    estimand = f"fall of the angle over that of the rate (its root would be {1 / math.sqrt(s.fall):g})"
    return equal(fallen, estimand, "", margin=s.margin_fall, ratio=True)


@paper.claim("M5", where="abstract", quote=VALUE, reported="no number: there is none without decay", gate=has_trained)
def no_equilibrium_without_decay(r: Results, s: Settings) -> Evidence:
    """Without weight decay there is no such equilibrium: weights go on growing, and the angle falling."""
    norm, angle = (second_half(r.measured(q, part="cells", cell=NO_DECAY)) for q in ("norm", "angle"))
    what = "change over the second half of the training"
    evidence = greater(norm, what, "", margin=s.growth, ratio=True, condition="norm of the weights")
    evidence &= less(angle, "", "", margin=1 / s.growth, ratio=True, condition="angle")
    usual = second_half(r.measured("angle", part="cells", cell=s.usual))
    return evidence.showing({"angle, usual cell": usual}, ratio=True)


def second_half(values: Values) -> Values:
    """What is there at the end over what was there half-way."""
    points = sorted(values.levels("x"))
    return values.at(x=points[-1]) / values.at(x=points[(len(points) - 1) // 2]) if points else values


# --- tables and figures ---


@paper.table
def angles(r: Results, s: Settings) -> list[Row]:
    """Angles of a step in equilibrium: by the formula, and in the last fifth of the training; degrees."""
    found, every = settled(r, s), 180 / math.pi
    return [
        {"cell": name, "rate": cell.lr, "decay": cell.weight_decay, "momentum": cell.momentum}
        | {"formula, degrees": every * cell.angle if cell.weight_decay else None}
        | {"measured, degrees": (every * layer_mean(r.measured("settled", part="cells", cell=name))).interval()}
        | {"smallest layer, degrees": (every * r.measured("settled", part="cells", cell=name).min("x")).interval()}
        | {"largest layer, degrees": (every * r.measured("settled", part="cells", cell=name).max("x")).interval()}
        | {"training accuracy, %": r.measured("train_accuracy", part="cells", cell=name).interval()}
        for name, cell in (s.cells.items() if found else ())
    ]


@paper.figure
def turning(r: Results, s: Settings) -> Figure | None:
    """Along a training, mean over layers. Left: the angle of a step, with the equilibrium of the formula as a thin
    line of the same colour. Right: the norm of the weights over that at the start.
    """
    degrees = 180 / math.pi * r.measured("angle", part="cells")
    if not degrees:
        return None
    figure, (left, right) = panels(2, height=2.7)
    look = looks({name: name for name in s.cells})
    lines(left, degrees, "x", "cell", look, log=True)
    lines(right, r.measured("norm", part="cells"), "x", "cell", look)
    for name, cell in s.decayed.items():
        left.axhline(180 / math.pi * cell.angle, color=look[name].color, linewidth=0.8)
    zero(right, 1.0)
    for axes, what in ((left, "angle of a step, degrees"), (right, "norm of the weights")):
        axes.set(xlabel="step", ylabel=what)
    left.set_yscale("log")
    legend(figure, of=left)
    return figure
