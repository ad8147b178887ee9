"""Li & Arora, An Exponential Learning Rate Schedule for Deep Learning (ICLR 2020).

https://arxiv.org/abs/1910.07454

Differences from the paper
- Its abstract was read (iclr.cc/virtual/2020/poster/1896), and of its experiments what a list of reproducibility
  variables quotes (ri.k117.org: PreResNet32 on CIFAR-10, rate 0.1, momentum 0.9; "we fix all the scalar and bias of
  BN, because otherwise they together with the following conv layer grow exponentially"). Public notes repeat the
  proof (github.com/dfeng/notes, vitalab.github.io, inference.vc); no attempt to repeat the training was found.
- The schedule is derived again for torch's SGD (`bnrepro.training.optimizer.without_decay`), whose weight decay is part
  of the gradient. Where the rate changes, the source corrects the momentum; so it is here, at the first step too.
- Only weights that a norm follows are decayed, or have the growing rate. Gamma, beta and the last layer, which the
  source fixes, are trained at the rates of the schedule with decay, and are not decayed in any arm.
- E1 to E3 are in float64 with eps = 0, in a small network of three normed layers. Instance normalization, which the
  source names too, needs maps and is not among its norms.
- E4 trains a ResNet of eight layers at half width for 5 epochs of CIFAR-10 with ten times the source's decay of 5e-4
  (from memory), as training is so much shorter; torch's eps is what can make a difference, beside rounding.
- The worked toy example, in which convergence fails where both BN and weight decay are used, is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import equal, exact
from bnrepro.config import load_config
from bnrepro.config.schema import Initialization, Model
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.norm import NORMS, NormOptions
from bnrepro.plots.panels import legend, lines, looks, panels
from bnrepro.training.model import build, norm_of, weighted_layers
from bnrepro.training.optimizer import lr_factor, without_decay
from bnrepro.training.trainer import Trainer

EQUIVALENT = (
    "a rigorous proof that it is equivalent to the standard setting of BN + SGD + Standard Rate Tuning + Weight Decay "
    "+ Momentum"
)
OTHERS = "This equivalence holds for other normalization layers as well, Group Normalization, Layer Normalization, "
OTHERS += "Instance Norm, etc."
TRAINED = (
    "Training can be done using SGD with momentum and an exponentially increasing learning rate schedule, i.e., "
    "learning rate increases by some (1 + alpha) factor in every epoch for some alpha > 0."
)
WHERE = "abstract"
POINTS = "percentage points of test accuracy"
DECAY, GROWING, NEITHER = "decay", "growing", "neither"
ARMS = {DECAY: "weight decay", GROWING: "growing rate, no decay", NEITHER: "neither"}
FIRST, LATER = 0.1, 0.01  # E1 to E3: rates before and after the change


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    norms: list[str] = ["custombn", "groupnorm", "layernorm"]  # E1 to E3; ours, as torch's BN refuses eps = 0
    steps: int = 200  # E1 to E3
    exact_decay: float = 0.01
    momentum: float = 0.9
    common: list[str] = [
        *("data=cifar10", "data.crop=2", "data.flip=true", "model=resnet20", "model.depth=1", "model.width=0.5"),
        *("optimizer=sgd", "optimizer.lr=0.1", "schedule=step", "batch_size=128", "epochs=5", "channels_last=true"),
    ]
    decay: float = 5e-3
    points: int = 20  # of each curve
    trained: float = 60.0  # E4: % test accuracy with weight decay; as `placement`'s for the same network
    tolerance: float = 1e-9  # E1 to E3: relative, of losses in float64
    margin_points: float = 1.0  # E4: two standard errors of 10,000 test images; the arms' runs part by rounding alone


paper = Paper(__name__, Settings, scale="reduced", scale_note="ResNet-8 at half width, 5 epochs of CIFAR-10")


@paper.design
def runs(s: Settings) -> Design:
    """Schedules in float64, and one network that is trained with both."""
    design = Design(s.seeds)
    design.measure("exact", {}, exactly, norms=s.norms, steps=s.steps, decay=s.exact_decay, momentum=s.momentum)
    for arm in ARMS:
        asked: Row = {"overrides": s.common, "arm": arm, "decay": s.decay, "points": s.points}
        design.measure("trained", {"arm": arm}, trained, s.common, **asked)
    return design


# --- measurements ---


def groups(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The weights that a norm follows, and all other parameters."""
    normed: list[Tensor] = [layer.weight for layer in weighted_layers(network)[:-1]]
    ids = set(map(id, normed))
    return normed, [p for p in network.parameters() if id(p) not in ids]


class Schedule:
    """SGD with a schedule of its own for the weights that a norm follows.

    Args:
        network: which is trained.
        rates: of each step, of the other parameters, and with weight decay of the normed weights.
        momentum: of all.
        decay: of the normed weights.
        arm: ``decay``, ``growing`` (the rates of `without_decay`) or ``neither``.
        corrected: whether the momentum is corrected where the rate changes.
    """

    def __init__(
        self, network: nn.Module, rates: list[float], momentum: float, decay: float, arm: str, corrected: bool = True
    ) -> None:
        self.normed, others = groups(network)
        own: Row = {"params": self.normed, "weight_decay": decay if arm == DECAY else 0.0}
        both: list[Row] = [own, {"params": others}]
        self.optimizer = torch.optim.SGD(both, lr=1.0, momentum=momentum)
        pairs = without_decay(rates, decay, momentum) if arm == GROWING else ((rate, 0.0) for rate in rates)
        self.steps = zip(rates, pairs, strict=True)
        self.corrected, self.rate = corrected, 0.0

    def step(self, loss: Tensor) -> None:
        """The next one."""
        usual, (self.rate, kick) = next(self.steps)
        for group, rate in zip(self.optimizer.param_groups, (self.rate, usual), strict=True):
            group["lr"] = rate
        if kick and self.corrected:
            for w in self.normed:
                buffer = self.optimizer.state[w].get("momentum_buffer")
                moved = kick * w.detach()
                self.optimizer.state[w]["momentum_buffer"] = moved if buffer is None else buffer + moved
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def small_network(seed: int, norm: str) -> nn.Module:
    """Three layers of 16 tanh units in float64; with norms, these have eps = 0."""
    model = Model(name="paper_mlp", width=0.16, activation="tanh", init=Initialization.glorot)
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    return build(model, partial(NORMS[norm], options=NormOptions(eps=0.0)), 1, (6, 6), 3, generator).double().train()


def losses(
    seed: int, norm: str, arm: str, rates: list[float], momentum: float, decay: float, corrected: bool = True
) -> Tensor:
    """Of each step of a training of `small_network`, all on one batch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "inputs"))
    x = torch.randn(96, 1, 6, 6, dtype=torch.float64, generator=generator)
    y = x.flatten(1)[:, :3].argmax(1)  # three classes, by the first pixels
    network = small_network(seed, norm)
    schedule = Schedule(network, rates, momentum, decay, arm, corrected)
    found = []
    for _ in rates:
        loss = F.cross_entropy(network(x), y)
        schedule.step(loss)
        found.append(loss.detach())
    return torch.stack(found)


@measure("li2020/exact")
def exactly(seed: int, norms: list[str], steps: int, decay: float, momentum: float) -> list[Row]:
    """Largest relative difference of the losses of a training without weight decay from one with it (x: the norm):
    ``plain`` (a constant rate without momentum), ``momentum``, ``step`` (a rate that falls by ten halfway, with
    momentum), ``uncorrected`` (the same, without the correction of the momentum), and ``same`` (the rates that the
    training with decay has). Without a norm, of ``momentum`` alone.
    """
    constant, falling = [FIRST] * steps, [FIRST] * (steps // 2) + [LATER] * (steps - steps // 2)
    cases = {
        "plain": (constant, 0.0, GROWING, True),
        "momentum": (constant, momentum, GROWING, True),
        "step": (falling, momentum, GROWING, True),
        "uncorrected": (falling, momentum, GROWING, False),
        "same": (constant, momentum, NEITHER, True),
    }
    rows = []
    for norm in (*norms, "nobn"):
        for name, (rates, of, arm, corrected) in cases.items():
            if norm != "nobn" or name == "momentum":
                with_decay = losses(seed, norm, DECAY, rates, of, decay)
                without = losses(seed, norm, arm, rates, of, decay, corrected)
                rows.append(row(name, ((without - with_decay) / with_decay).abs().max(), norm))
    return rows


@measure("li2020/trained")
def trained(data: Dataset, seed: int, overrides: list[str], arm: str, decay: float, points: int) -> list[Row]:
    """Train as a run of ``overrides`` would, with one of the three schedules for the weights that a norm follows.

    Rows by step: ``loss`` (mean since the last), ``rate`` of these weights, ``size``, the root of their summed squares.
    At the end: ``test_accuracy`` and ``train_accuracy`` in eval mode, in %; or ``diverged`` (the step).
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    weights = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)
    trainer = Trainer(cfg, data, network)
    total, each = trainer.steps, trainer.steps_per_epoch
    rates = [cfg.optimizer.lr * lr_factor(cfg.schedule, step, total, each) for step in range(total)]
    schedule = Schedule(trainer.network, rates, cfg.optimizer.momentum, decay, arm)
    marks = {round(total * (i + 1) / points) for i in range(points)}
    rows: list[Row] = []
    since: list[float] = []
    for batch in trainer.batches():
        trainer.network.train()
        loss = F.cross_entropy(trainer.network(batch.x), batch.y)
        if not loss.isfinite():
            return [*rows, row("diverged", batch.step)]
        schedule.step(loss)
        since.append(loss.item())
        if (at := batch.step + 1) in marks:
            rows += [row("loss", sum(since) / len(since), at), row("rate", schedule.rate, at)]
            rows.append(row("size", size_of(schedule.normed), at))
            since = []
    found = {"test_accuracy": trainer.data.test, "train_accuracy": trainer.data.train}
    return [*rows, *(row(name, 100 * trainer.measure(split)[1]) for name, split in found.items())]


def size_of(weights: Iterable[Tensor]) -> float:
    """The root of their summed squares."""
    return math.sqrt(sum(float(w.detach().double().square().sum()) for w in weights))


# --- claims ---


def difference(r: Results, case: str, norm: str) -> Values:
    """See `exactly`."""
    return r.measured(case, part="exact", x=norm)


def alike(values: Values, s: Settings) -> Values:
    """1 where the losses are the same."""
    return values.map(lambda v: float(v <= s.tolerance))


ESTIMAND = "relative difference of losses, a growing rate from weight decay"


@paper.claim("E1", kind="identity", quote=EQUIVALENT, where=WHERE, reported="no number: exact")
def a_constant_rate(r: Results, s: Settings) -> Evidence:
    """With batch normalization, a constant learning rate with weight decay is equivalent to an exponentially growing
    rate without it, with momentum and without.
    """
    names = {"without momentum": "plain", f"momentum {s.momentum:g}": "momentum"}
    found = {name: difference(r, case, s.norms[0]) for name, case in names.items()}
    evidence = exact(found, ESTIMAND, tolerance=s.tolerance)
    others = {"the rate of decay": difference(r, "same", s.norms[0]), "no norm": difference(r, "momentum", "nobn")}
    counted = {name: alike(values, s) for name, values in others.items()}
    evidence &= exact(counted, "", "1 where they are the same", tolerance=0)
    return evidence.showing({f"difference, {name}": values for name, values in others.items()}, "")


@paper.claim("E2", kind="identity", quote=EQUIVALENT, where=WHERE, reported="no number: exact")
def a_rate_that_falls(r: Results, s: Settings) -> Evidence:
    """The same holds for a rate that falls in steps, if the momentum is corrected at each step; it does not without."""
    evidence = exact({"corrected": difference(r, "step", s.norms[0])}, ESTIMAND, tolerance=s.tolerance)
    other = difference(r, "uncorrected", s.norms[0])
    evidence &= exact({"not corrected": alike(other, s)}, "", "1 where they are the same", tolerance=0)
    return evidence.showing({"difference, not corrected": other}, "")


@paper.claim("E3", kind="identity", quote=OTHERS, where=WHERE, reported="no number: exact")
def other_norms(r: Results, s: Settings) -> Evidence:
    """The equivalence holds for other normalization layers as well: group and layer normalization."""
    found = {norm: difference(r, "step", norm) for norm in s.norms[1:]}
    return exact(found, ESTIMAND, tolerance=s.tolerance)


def accuracy(r: Results, arm: str) -> Values:
    """At the end of training."""
    return r.measured("test_accuracy", part="trained", arm=arm)


def has_trained(r: Results, s: Settings) -> Gate:
    """The network with weight decay."""
    return reaches(accuracy(r, DECAY), s.trained, "test accuracy with weight decay, %")


@paper.claim("E4", quote=TRAINED, where=WHERE, reported="no number in the abstract", gate=has_trained)
def a_network_trains(r: Results, s: Settings) -> Evidence:
    """Training can be done with momentum and an exponentially increasing learning rate: a network is as accurate as
    with weight decay.
    """
    estimand = "test accuracy, growing rate minus weight decay"
    evidence = equal(accuracy(r, GROWING) - accuracy(r, DECAY), estimand, POINTS, margin=s.margin_points)
    growth = r.measured("rate", part="trained", arm=GROWING).reduce(lambda found: max(found) / found[0])
    evidence = evidence.showing({"neither minus weight decay": accuracy(r, NEITHER) - accuracy(r, DECAY)})
    remark = (
        "By E1 and E2 the trainings are the same but for eps, rounding, and running statistics that lag behind growing "
        "weights."
    )
    evidence = evidence.showing({"largest rate over the first that is shown": growth}, "", ratio=True)
    return replace(evidence, remark=remark)


# --- tables and figures ---


@paper.table(over_seeds=False)
def identities(r: Results, s: Settings) -> list[Row]:
    """Largest relative difference of losses from those with weight decay, float64, {s.steps} steps, {s.seeds} seeds."""
    names = {
        "plain": "growing rate, no momentum",
        "momentum": "growing rate, momentum",
        "step": "a rate that falls, momentum corrected",
        "uncorrected": "a rate that falls, momentum not corrected",
        "same": "the rate of decay",
    }
    return [
        {"without decay": text} | {norm: max(difference(r, case, norm), default=None) for norm in (*s.norms, "nobn")}
        for case, text in names.items()
    ]


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """One network trained with three schedules for the weights that a norm follows."""
    found = {name: r.measured(f"{name}_accuracy", part="trained") for name in ("train", "test")}
    diverged = r.measured("diverged", part="trained")
    return [
        {"schedule": text}
        | {f"{name} accuracy, %": values.at(arm=arm).interval() for name, values in found.items()}
        | {"diverged": len(diverged.at(arm=arm))}
        for arm, text in ARMS.items()
    ]


@paper.figure
def schedules(r: Results, s: Settings) -> Figure | None:
    """Rate and size of the weights that a norm follows, and training loss, along training."""
    shown = {"rate": "learning rate", "size": "size of the weights", "loss": "training loss"}
    found = {name: r.measured(name, part="trained") for name in shown}
    if not all(found.values()):
        return None
    figure, axes = panels(3, height=2.3)
    look = looks(ARMS)
    for each, (name, values) in zip(axes, found.items(), strict=True):
        lines(each, values, "x", "arm", look, marks=False)
        each.set(xlabel="step", ylabel=shown[name])
        if name != "loss":
            each.set_yscale("log")
    legend(figure, of=axes[0])
    return figure
