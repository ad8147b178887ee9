"""dksakkos/BatchNorm, a re-implementation of batch normalization in Keras.

https://github.com/dksakkos/BatchNorm

Differences from the paper
- A fixed number of epochs at a constant learning rate. The source stops early (patience 10) and halves the rate on
  plateaus (patience 3), at another time in each arm, so that its arms cannot be compared after that.
- Several seeds, and all arms of a seed share initial weights and batches; the source has one seed.
- Validation images are not augmented and are the same for all arms; the source's are rotated, mirrored and brightened.
- An epoch's incomplete last batch is dropped; Keras trains on it.
- PyTorch in place of Keras: Keras's momentum m is 1 - m here, Adam's epsilon is Keras's 1e-7, and moving variances are
  unbiased throughout (the source's are biased, by at most 1 part in 256).
- Local-gain BN (convbn) and runs without horizontal flips are additions.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, exact, greater, not_testable
from bnrepro.config import load_config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.experiments.vanlaarhoven2017.measurements import step
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.plots import style as figures
from bnrepro.plots.panels import curve, legend, looks, panels
from bnrepro.training.model import build, norm_of, weighted_layers
from bnrepro.training.train import Trainer

# models.py, model_ops.py and data_ops.py of the source; Keras's defaults where they say nothing.
SETUP = (
    *("model=lenet", "model.keep_bias=true", "model.init=glorot", "batch_size=256"),
    *("optimizer=adam", "optimizer.lr=0.001", "optimizer.eps=1e-7"),
    *("data.rotate=20", "data.brightness=0.5", "data.samplewise=true"),
)
FRAMEWORK = ("norm.eps=1e-3", "norm.momentum=0.01")  # Keras's BatchNormalization: 0.99 in its own sense
ARMS: dict[str, tuple[str, ...]] = {
    "nobn": ("variant=nobn",),
    "bn": ("variant=bn", *FRAMEWORK),
    "custombn": ("variant=custombn", *FRAMEWORK),
    "custombn_own": ("variant=custombn", "norm.eps=1e-6", "norm.momentum=0.1"),  # BatchNorm.py: 0.9 in Keras's sense
    "convbn": ("variant=convbn", *FRAMEWORK),
}
LABELS = {arm: figures.label(arm) for arm in ARMS} | {"custombn_own": "custom BN, source's settings"}
SOURCES = ("bn", "custombn_own")
"""The two arms with BN that the source compares: "Default" and "Custom"."""
FLIPS = ("with", "without")
BETTER = {"train_accuracy": 1, "val_accuracy": 1, "train_loss": -1, "val_loss": -1}
"""The source's four figures, and which way is better."""
FIRST_EPOCHS = {
    ("train_accuracy", 1): {"nobn": ".79", "bn": ".87 to .88", "custombn_own": ".87 to .88"},
    ("train_accuracy", 2): {"nobn": ".915", "bn": ".958 to .960", "custombn_own": ".958 to .960"},
    ("train_loss", 1): {"nobn": ".70", "bn": ".45", "custombn_own": ".45"},
    ("val_accuracy", 1): {"bn": '.955 (called "Default")', "custombn_own": '.90 (called "Custom")'},
}
"""(column, epochs) -> what the source's figures show."""
PAIRS: dict[str, tuple[str, tuple[str, ...]]] = {
    "same settings": ("float64", FRAMEWORK),
    "same settings, float32": ("float32", FRAMEWORK),
    "momentum 0.1": ("float64", ("norm.eps=1e-3", "norm.momentum=0.1")),
    "eps 1e-6": ("float64", ("norm.eps=1e-6", "norm.momentum=0.01")),
}
"""Of the lockstep: precision, and what the custom layer is given; the framework's has `FRAMEWORK` throughout."""
LOSSES = {"training": "training loss", "eval": "loss in eval mode"}
TOLERANCE = 1e-10  # of losses and outputs of size 1 in float64
PLOTS = "README, figures (values read off them are right to about 0.002)"
POINTS = "percentage points of test accuracy"


class Settings(Preset):
    epochs: int = 4  # 210 steps each
    eval_every: int = 42  # steps between evaluations: five an epoch
    overrides: list[str] = ["data=mnist"]
    val_accuracy_threshold: float = 0.97  # K1: validation accuracy to reach
    train_loss_threshold: float = 0.1  # K1: training loss to reach
    margin_steps: int = 84  # K1: steps that count as none, 10% of a run's
    # K2: half a 95% binomial interval at 99% accuracy on 10,000 test images. K5, K8: validation accuracies that count
    # as alike.
    significant_margin_points: float = 0.2
    margin_loss: float = 0.01  # K5: losses that count as alike, 1% of the probability of the correct class
    equivalence_margin_points: float = 0.2  # K3: as in K2, since less than that cannot be told from one run's test set
    lockstep_steps: int = 100  # K3: steps that two networks take together
    lockstep_seeds: int = 3
    lockstep_overrides: list[str] = ["data=mnist5k"]  # the embedded digits, whatever the runs are trained on

    @property
    def thresholds(self) -> dict[str, float]:
        """K1: column of the curves -> what it has to reach."""
        return {"val_accuracy": self.val_accuracy_threshold, "train_loss": self.train_loss_threshold}


paper = Paper(__name__, Settings, scale_note="4 of the source's 36 to 50 epochs")


@paper.design
def runs(s: Settings) -> Design:
    """Each norm with and without the source's horizontal flips; two networks in step; the layer's operations."""
    design = Design(s.seeds)
    common = [*SETUP, f"epochs={s.epochs}", f"eval_every={s.eval_every}", *s.overrides]
    for flips, (arm, own) in product(FLIPS, ARMS.items()):
        design.train("curves", {"arm": arm, "flips": flips}, [*common, *own, f"data.flip={flips == 'with'}"])
    common = [*SETUP, "data.flip=true", *s.lockstep_overrides]
    for pair, (precision, own) in PAIRS.items():
        given = {"steps": s.lockstep_steps, "precision": precision, "overrides": [*common, *own]}
        design.measure("lockstep", {"pair": pair}, in_lockstep, common, range(s.lockstep_seeds), **given)
    design.measure("operations", {}, operations, seeds=[0], batch=32, channels=6, height=13, width=13)
    return design


# --- measurements ---


@measure("keras_curves/lockstep")
def in_lockstep(data: Dataset, seed: int, steps: int, precision: str, overrides: list[str]) -> list[Row]:
    """Framework BN (eps 1e-3, momentum 0.01) and custom BN as ``overrides`` say: same weights, same batches.

    Rows: ``training`` (x = step), the absolute difference of the training losses; ``eval``, that of the losses in eval
    mode on the validation images, in every fifth step; ``loss``, the framework's own; and ``bias``, how far the biases
    that BN cancels have moved in the framework's network: their gradient is zero but for rounding.
    """
    dtype = getattr(torch, precision)
    trainers = []
    for own in (["variant=bn", *FRAMEWORK], ["variant=custombn"]):
        cfg = load_config([*overrides, *own, f"seed={seed}", "device=cpu"])
        weights = torch.Generator().manual_seed(derive_seed(seed, "weights"))
        network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, 10, weights).to(dtype)
        trainers.append(Trainer(cfg, data, network))
    held_out, rows = data.normalize(data.val.images).to(dtype), []
    for done, batch in enumerate(trainers[0].batches(0, steps), 1):
        x, y = batch.x.to(dtype), batch.y
        theirs, ours = (step(trainer.network.train(), trainer.optimizer, x, y) for trainer in trainers)
        rows += [row("training", abs(theirs - ours), done), row("loss", theirs, done)]
        if done % 5 == 0:
            with torch.no_grad():
                losses = [float(F.cross_entropy(each.network.eval()(held_out), data.val.labels)) for each in trainers]
            rows.append(row("eval", abs(losses[0] - losses[1]), done))
    biases = [layer.bias.detach() for layer in weighted_layers(trainers[0].network)[:-1] if layer.bias is not None]
    return [*rows, row("bias", max(float(bias.abs().max()) for bias in biases))]


@measure("keras_curves/operations")
def operations(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """The custom layer against the source's four operations in NumPy, moving averages and inference, in float64.

    Rows: ``error`` (x = of what), the largest absolute difference; ``learned``, 1 if gamma and beta have gradients; and
    ``without eps``, 1 if the text's formula, which has no eps, is not finite where a channel is constant in the batch.
    """
    draw = np.random.default_rng(seed)
    momentum, eps = 0.1, 1e-6
    layer = NORMS["custombn"](channels, (height, width), options=NormOptions(eps=eps, momentum=momentum)).double()
    gamma, beta = draw.normal(1, 0.5, channels), draw.normal(0, 0.5, channels)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(torch.from_numpy(gamma))
        layer.get_parameter("bias").copy_(torch.from_numpy(beta))

    def normalized(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        mean, var, scale, shift = (each[:, None, None] for each in (mean, var, gamma, beta))
        return scale * (x - mean) / np.sqrt(var + eps) + shift

    def apart(got: Tensor, want: np.ndarray) -> float:
        return float(np.abs(got.detach().numpy() - want).max())

    errors = {"training": 0.0, "oracle": 0.0}
    moving_mean, moving_var, count = np.zeros(channels), np.ones(channels), batch * height * width
    for _ in range(3):
        x = draw.normal(draw.normal(0, 3, channels)[:, None, None], 2.0, (batch, channels, height, width))
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        got = layer(torch.from_numpy(x))
        errors["training"] = max(errors["training"], apart(got, normalized(x, mean, var)))
        errors["oracle"] = max(errors["oracle"], apart(got, batch_norm_forward(x, gamma, beta, (0, 2, 3), eps)[0]))
        moving_mean = (1 - momentum) * moving_mean + momentum * mean
        moving_var = (1 - momentum) * moving_var + momentum * var * count / (count - 1)
    errors["moving mean"] = apart(layer.get_buffer("running_mean"), moving_mean)
    errors["moving variance"] = apart(layer.get_buffer("running_var"), moving_var)
    layer.eval()
    want = normalized(x, moving_mean, moving_var)
    errors["inference"] = apart(layer(torch.from_numpy(x)), want)
    errors["inference, image alone"] = apart(layer(torch.from_numpy(x[:1])), want[:1])
    layer.train()
    layer(torch.from_numpy(x)).square().sum().backward()
    learned = all(float(p.grad.abs().min()) > 0 for p in layer.parameters() if p.grad is not None)
    with np.errstate(invalid="ignore"):
        constant = np.float64(0) / np.sqrt(np.float64(0))
    found = [row("error", value, what) for what, value in errors.items()]
    return [*found, row("learned", learned), row("without eps", not np.isfinite(constant))]


# --- what is read from the curves ---


def accuracy(r: Results, **factors: Any) -> Values:
    """Test accuracy in percent, at the end."""
    return r.test_accuracy(part="curves", **factors).without("variant")


def curves(r: Results, column: str, **factors: Any) -> Values:
    """A column of the curves, of the runs that completed."""
    return r.curve(column, part="curves", **factors) + 0 * accuracy(r, **factors)


def epochs(r: Results) -> dict[float, float]:
    """Step -> epoch of each evaluation: the same in all runs."""
    return {row["step"]: row["epoch"] for row in r.curves}


def steps_to(found: Values, column: str, threshold: float) -> Values:
    """Steps to the first evaluation at the threshold or better; those of the whole run if it never is there."""

    def first(steps: list[float], points: list[float]) -> float:
        there = (step for step, value in zip(steps, points, strict=True) if BETTER[column] * (value - threshold) >= 0)
        return next(there, steps[-1])

    return found.along("step", first)


def at_epoch(r: Results, column: str, epoch: int, **factors: Any) -> Values:
    """A column after ``epoch`` epochs; of training, the mean over the epoch's evaluations, as Keras reports it."""
    steps = sorted(step for step, at in epochs(r).items() if epoch - 1 + 1e-9 < at <= epoch + 1e-9)
    of = steps if column.startswith("train") else steps[-1:]
    return curves(r, column, **factors).at(step=of).mean("step")


def saved_steps(r: Results, s: Settings, flips: str) -> dict[str, Values]:
    """How many steps earlier than without BN the source's arms reach the thresholds."""
    found: dict[str, Values] = {}
    for column, threshold in s.thresholds.items():
        steps = steps_to(curves(r, column, flips=flips), column, threshold)
        found |= named(steps.at(arm="nobn") - steps.at(arm=SOURCES), f"{figures.CURVES[column]} {threshold:g}")
    return found


def named(by_arm: Values, *what: str) -> dict[str, Values]:
    """The values of each arm, under its label and ``what`` they are."""
    return {", ".join((LABELS[arm], *what)): values for arm, values in by_arm.by("arm").items()}


# --- claims ---


@paper.claim(
    "K1",
    where="README",
    quote="the model with no batch normalization converged slower than the other models",
    reported="training accuracy after the first epoch .79 without and .87 to .88 with BN, after the second .915 and "
    ".958 to .960; training loss after the first .70 and .45; one seed, augmented digits",
)
def without_bn_it_converges_slower(r: Results, s: Settings) -> Evidence:
    """The model with no batch normalization converged slower than the other models."""
    saved = saved_steps(r, s, "with")
    evidence = greater(saved, "steps to the threshold, no BN minus BN", "steps", margin=s.margin_steps)
    without = {f"without flips, {name}": values for name, values in saved_steps(r, s, "without").items()}
    remark = "A run that never reaches a threshold counts with all its steps, which makes differences smaller."
    return replace(evidence.showing(without), remark=remark)


@paper.claim(
    "K2",
    where="README",
    quote="was outperformed by a significant margin in terms of accuracy",
    reported="final validation accuracy .9875 without BN, .989 and .9905 with it (0.15 to 0.3 percentage points, one "
    "seed); the test accuracy, which its code computes, is not reported",
)
def without_bn_it_is_outperformed(r: Results, s: Settings) -> Evidence:
    """The model with no batch normalization was outperformed by a significant margin in terms of accuracy."""
    gain = accuracy(r).at(arm=SOURCES) - accuracy(r).at(arm="nobn")
    with_flips, bar = named(gain.at(flips="with")), s.significant_margin_points
    evidence = greater(with_flips, "test accuracy, BN minus no BN", POINTS, bar=bar)
    return evidence.showing(named(gain.at(flips="without"), "without flips"))


@paper.claim(
    "K3",
    where="README",
    quote="follows a very similar loss and accuracy curve, when compared to the official implementation. This "
    "indicates that our implementation is very close to that of TensorFlow.",
    reported="validation curves within about 0.3 percentage points after epoch 15; one seed, and eps 1e-6 and momentum "
    "0.9 beside the framework's 1e-3 and 0.99",
)
def custom_is_close_to_the_framework(r: Results, s: Settings) -> Evidence:
    """The custom implementation follows a very similar loss and accuracy curve to the official one, so it is very close
    to that of TensorFlow.
    """
    at_end = accuracy(r, flips="with")
    same, own = (at_end.at(arm=arm) - at_end.at(arm="bn") for arm in ("custombn", "custombn_own"))
    estimand, margin = "custom BN minus framework BN, same settings", s.equivalence_margin_points
    evidence = equal(same, estimand, POINTS, margin=margin, condition="at the end")
    losses = {name: r.measured(quantity, part="lockstep").max("x") for quantity, name in LOSSES.items()}
    apart, unit = losses["training loss"].at(pair="same settings"), f"largest difference over {s.lockstep_steps} steps"
    evidence &= exact(apart, "", f"{unit}, float64", tolerance=TOLERANCE, condition="training loss")
    evidence = evidence.showing({"with the source's settings": own})
    for pair in ("momentum 0.1", "eps 1e-6"):
        alone = {f"{pair} alone, {name}": values.at(pair=pair) for name, values in losses.items()}
        evidence = evidence.showing(alone, "(largest difference)")
    return replace(evidence, remark="What differs comes from the source's other eps and momentum.")


@paper.claim(
    "K4",
    where="README",
    quote="the results from the original paper have been replicated successfully in this experiment",
    reported="no number of the paper, and no figure of it",
)
def the_paper_is_replicated(r: Results, s: Settings) -> Evidence:
    """The results from the original paper have been replicated successfully in this experiment."""
    reason = "The source's network, data and optimiser are not the paper's; it repeats none of its figures"
    return replace(not_testable(reason), remark="What can be tested of it is K1 and K2.")


@paper.claim(
    "K5", where=PLOTS, reported="four figures, one seed each: final training accuracy .9935 without BN and .996 with it"
)
def without_bn_all_curves_are_worst(r: Results, s: Settings) -> Evidence:
    """In all four figures (training and validation, accuracy and loss) the model with no batch normalization is the
    worst of the three.
    """
    gains: dict[str, dict[str, Values]] = {"accuracy": {}, "loss": {}}
    for column, better in BETTER.items():
        ends = [at_epoch(r, column, epoch, flips="with") for epoch in range(1, s.epochs + 1)]
        height = better * sum(ends[1:], ends[0]) / len(ends)
        gain = height.at(arm=SOURCES) - height.at(arm="nobn")
        gains[column.split("_")[1]] |= named(gain, figures.CURVES[column])
    estimand = "better than no BN, mean over epochs"
    margin = s.significant_margin_points / 100
    evidence = greater(gains["accuracy"], estimand, "accuracy, as a fraction", margin=margin)
    return evidence & greater(gains["loss"], estimand, "nats", margin=s.margin_loss)


@paper.claim(
    "K6",
    kind="identity",
    where="README, list of operations",
    quote="Normalize the features by subtracting the mean and dividing by the standard deviation",
    reported="no number; the text's formula has no eps, the code's has 1e-6 in the root",
)
def layer_is_its_operations(r: Results, s: Settings) -> Evidence:
    """The layer subtracts the mini-batch's mean, divides by its standard deviation, scales by gamma and adds beta,
    which are learned; in inference mode it uses moving averages.
    """
    error, learned = (r.measured(quantity, part="operations") for quantity in ("error", "learned"))
    evidence = exact(error, "custom BN minus NumPy", "largest difference, float64", tolerance=TOLERANCE)
    if learned:
        evidence &= exact(all(learned), "", condition="gamma and beta have gradients")
    bias = r.measured("bias", part="lockstep", pair="same settings, float32")
    evidence = evidence.showing({"largest bias that BN cancels, in float32": bias}, "")
    remark = (
        "The source keeps these biases, and Adam moves them by rounding alone. The text's formula, which has no eps, "
        "is 0/0 on a channel that is constant in the batch."
    )
    return replace(evidence, remark=remark)


@paper.claim(
    "K7",
    where=PLOTS,
    reported='in the figures of accuracy the run called "Default" has about 50 epochs and "Custom" stops at about 36; '
    'in those of the loss "Custom" has about 50 and "Default" stops at about 36',
)
def figures_agree_on_names(r: Results, s: Settings) -> Evidence:
    """The four figures show the same three runs under the same names."""
    reason = "It is about the source's own images, which can be read and not measured again"
    remark = (
        "As read, it is false: the two runs' lengths are exchanged between the figures of accuracy and those of the "
        "loss, so the names are swapped in one pair, and which curve is the custom layer's cannot be told. plots.py "
        'names the models "None", "Custom" and "Default"; the code makes them in the order custom, framework, none.'
    )
    return replace(not_testable(reason), remark=remark)


@paper.claim("K8", where=PLOTS, reported="validation accuracy .955 and .90, one seed")
def framework_validates_better_at_first(r: Results, s: Settings) -> Evidence:
    """After the first epoch the framework's layer ("Default") validates better than the custom one ("Custom")."""
    first = 100 * at_epoch(r, "val_accuracy", 1, flips="with")
    gain, unit = first.at(arm="bn") - first.at(arm="custombn_own"), "percentage points of validation accuracy"
    estimand = "after epoch 1, framework BN minus custom BN with the source's settings"
    evidence = greater(gain, estimand, unit, margin=s.significant_margin_points)
    remark = (
        "If it is worse, the names are swapped in the figures of accuracy (K7); if better, in those of the loss. The "
        "framework's momentum leaves its moving averages behind after one epoch."
    )
    return replace(evidence, remark=remark)


# --- tables ---


@paper.table
def summary(r: Results, s: Settings) -> list[Row]:
    """Test accuracy at the end."""
    without = accuracy(r, arm="nobn")
    return [
        {"flips": flips, "norm": LABELS[arm], "test accuracy, %": values.interval()}
        | {"minus no BN, points": None if arm == "nobn" else (values - without.at(flips=flips)).interval()}
        for (flips, arm), values in accuracy(r).by("flips", "arm").items()
    ]


@paper.table
def speed(r: Results, s: Settings) -> list[Row]:
    """Steps and epochs to the thresholds of K1; a run that does not reach one counts with all its steps."""
    epoch, rows = epochs(r), []
    found = {column: curves(r, column).by("flips", "arm") for column in s.thresholds}
    for flips, arm in found["val_accuracy"]:
        for column, threshold in s.thresholds.items():
            values = found[column][flips, arm]
            steps = steps_to(values, column, threshold)
            best = (BETTER[column] * values).max("step")
            reached = sum(value >= BETTER[column] * threshold for value in best)
            about = {"flips": flips, "norm": LABELS[arm], "threshold": f"{figures.CURVES[column]} {threshold:g}"}
            about["reached"] = f"{reached} of {len(best)}"
            rows.append({**about, "steps": steps.interval(), "epochs": steps.map(epoch.__getitem__).interval()})
    return rows


@paper.table
def first_epochs(r: Results, s: Settings) -> list[Row]:
    """The first two epochs with flips, beside the source's figures."""
    rows = []
    for (column, epoch), reported in FIRST_EPOCHS.items():
        here = at_epoch(r, column, epoch, flips="with").intervals("arm")
        for arm, source in reported.items():
            about = {"norm": LABELS[arm], "epoch": epoch, "quantity": figures.CURVES[column]}
            rows.append({**about, "source, one seed": source, "here": here.get(arm)})
    return rows


@paper.table(over_seeds=False)
def largest_differences(r: Results, s: Settings) -> list[Row]:
    """Two networks in step over {s.lockstep_steps} steps (float64 unless it says float32; largest over steps and
    {s.lockstep_seeds} seeds).
    """
    columns = {f"largest difference of {name}": quantity for quantity, name in LOSSES.items()}
    columns["largest cancelled bias"] = "bias"
    return [
        {"custom BN against the framework's": pair}
        | {name: max(r.measured(each, part="lockstep", pair=pair), default=None) for name, each in columns.items()}
        for pair in PAIRS
    ]


# --- figures ---


def four_curves(r: Results, flips: str) -> Figure | None:
    """The source's four figures against epochs."""
    epoch, look = epochs(r), looks(LABELS)
    if not epoch:
        return None
    figure, axes = panels(2, 2, height=2.2)
    for panel, (column, label) in zip(axes, figures.CURVES.items(), strict=True):
        log = column.endswith("loss")
        for arm, values in curves(r, column, flips=flips).by("arm").items():
            found = (values.log() if log else values).intervals("step")
            at = {epoch[step]: interval for step, interval in found.items()}
            curve(panel, at, look[arm], log=log, marks=len(at) == 1)
        if log:
            panel.set_yscale("log")
            figures.log_ticks(panel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set(xlabel="epoch", ylabel=label)
    legend(figure, 3)
    return figure


@paper.figure
def curves_with_flips(r: Results, s: Settings) -> Figure | None:
    """The source's four figures; means of losses are geometric."""
    return four_curves(r, "with")


@paper.figure
def curves_without_flips(r: Results, s: Settings) -> Figure | None:
    """The source's four figures, without its horizontal flips; means of losses are geometric."""
    return four_curves(r, "without")


@paper.figure
def test_accuracy(r: Results, s: Settings) -> Figure | None:
    """Test accuracy at the end, with the source's horizontal flips and without: each seed a dot."""
    if not accuracy(r):
        return None
    figure, axes = panels(2, height=2.2, sharex=True, sharey=True)
    for panel, flips in zip(axes, FLIPS, strict=True):
        for place, (arm, look) in enumerate(looks(LABELS).items()):
            values = accuracy(r, flips=flips, arm=arm)
            panel.plot(list(values), [place + 0.18] * len(values), "o", color=look.color, alpha=0.5, markersize=3)
            found = values.interval()
            half = found.high - found.mean
            panel.errorbar(found.mean, place - 0.12, xerr=half, fmt="D", color=look.color, markersize=4, capsize=3)
        panel.set(title=f"{flips} flips", xlabel="test accuracy, %", ylim=(len(ARMS) - 0.5, -0.5))
        panel.set_yticks(range(len(ARMS)), list(LABELS.values()))
        panel.grid(axis="y", visible=False)
        panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure


@paper.figure(over_seeds=False)
def lockstep(r: Results, s: Settings) -> Figure | None:
    """Framework BN (eps 1e-3, momentum 0.01) and custom BN from the same weights on the same batches: absolute
    difference of the training losses, and of the losses in eval mode on the validation images. At the same settings
    only rounding tells them apart; momentum alone changes no training loss, and the evaluation most. The largest over
    {s.lockstep_seeds} seeds; equal is drawn as 1e-16.
    """
    if not r.measured("training", part="lockstep"):
        return None
    figure, axes = panels(2, sharey=True)
    for panel, (quantity, title) in zip(axes, LOSSES.items(), strict=True):
        for pair, look in looks(list(PAIRS)).items():
            steps = r.measured(quantity, part="lockstep", pair=pair).by("x")
            worst = [max(*values, 1e-16) for values in steps.values()]
            panel.plot(list(steps), worst, color=look.color, linestyle=look.dashes, label=look.label)
        panel.set(yscale="log", xlabel="step", title=title)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("absolute difference")
    legend(figure)
    return figure
