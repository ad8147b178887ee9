"""What a claim's effects are computed from, written down anew for `check_evidence.py`: from CSV rows, in plain Python.

A recipe returns, by condition, a number for each seed. It is there for claims of which an effect is more than a column
of the records, a difference or a ratio: a mean over steps, a slope over layers, a first step at a level.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, str]
BySeed = dict[int, float]
Points = dict[Any, float]  # by step, epoch, layer or unit
Effects = dict[str, BySeed]
CHANCE = 10.0  # % of ten classes: what a network that diverged counts as


class Experiment:
    """The CSV files of an experiment, and its settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.files: dict[str, list[Row]] = {}
        for name in ("runs", "curves", "measurements"):
            with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
                self.files[name] = list(csv.DictReader(stream))

    def rows(self, file: str, **factors: Any) -> list[Row]:
        """The rows whose columns have these levels."""
        return [row for row in self.files[file] if all(_is(row.get(key), level) for key, level in factors.items())]

    def ends(self, column: str, **factors: Any) -> BySeed:
        """A column of runs.csv in percent; that of chance where the run diverged."""
        found = {}
        for row in self.rows("runs", **factors):
            if row["status"] in ("completed", "diverged"):
                found[int(row["seed"])] = 100 * float(row[column]) if row["status"] == "completed" else CHANCE
        return found

    def paths(self, quantity: str, **factors: Any) -> dict[int, Points]:
        """A measured quantity by seed and x, which is nan where there is none."""
        found: dict[int, Points] = {}
        for row in self.rows("measurements", quantity=quantity, **factors):
            found.setdefault(int(row["seed"]), {})[_number(row["x"])] = float(row["value"] or math.nan)
        return found

    def values(self, quantity: str, **factors: Any) -> BySeed:
        """A measured quantity that has one value a seed."""
        return {seed: next(iter(path.values())) for seed, path in self.paths(quantity, **factors).items()}

    def curves(self, column: str, **factors: Any) -> dict[int, Points]:
        """A column of curves.csv in percent, by seed and step."""
        found: dict[int, Points] = {}
        for row in self.rows("curves", **factors):
            found.setdefault(int(row["seed"]), {})[float(row["step"])] = 100 * float(row[column])
        return found


def _number(x: str) -> Any:
    """A number, or a name."""
    try:
        return float(x)
    except ValueError:
        return x


def _is(there: str | None, level: Any) -> bool:
    if isinstance(level, str) or not there:
        return there == level
    try:
        return float(there) == level
    except ValueError:
        return False


def minus(one: BySeed, other: BySeed) -> BySeed:
    return {seed: value - other[seed] for seed, value in one.items() if seed in other}


def log_ratio(one: float, other: float) -> float:
    return math.log10(one / other) if one / other > 0 else math.nan


# --- Ioffe & Szegedy ----------------------------------------------------------------------------------------------


def steps_to_accuracies(e: Experiment) -> Effects:
    """ioffe2015/I1.2: the first step at a test accuracy, without BN over with it."""
    figure, found = e.settings["figure1"], {}
    for level in figure["levels"]:
        first: dict[str, BySeed] = {}
        for variant in ("nobn", "bn"):
            curves = e.paths("test_accuracy", part="figure1", variant=variant, rate=figure["rate"])
            reached = {s: [step or 1.0 for step, accuracy in c.items() if accuracy >= level] for s, c in curves.items()}
            first[variant] = {seed: min(steps, default=figure["steps"]) for seed, steps in reached.items()}
        found[f"to {level:g}%"] = {seed: steps / first["bn"][seed] for seed, steps in first["nobn"].items()}
    return found


def drifts(e: Experiment) -> Effects:
    """ioffe2015/I2: the mean over units of log2 of the drift of percentiles, without BN over with it."""
    of: dict[str, Any] = {"part": "figure1", "rate": e.settings["figure1"]["rate"]}
    found: Effects = {"absolute": {}, "relative to the width": {}}
    drift, width = ({v: e.paths(q, **of, variant=v) for v in ("nobn", "bn")} for q in ("drift", "width"))
    for seed, units in drift["nobn"].items():
        for name in found:
            logs = []
            for unit in units:
                each = [max(drift[v][seed][unit], 1e-12) for v in ("nobn", "bn")]
                if name != "absolute":
                    each = [d / max(width[v][seed][unit], 1e-12) for d, v in zip(each, ("nobn", "bn"), strict=True)]
                logs.append(math.log2(each[0] / each[1]))
            found[name][seed] = float(np.mean(logs))
    return found


def race(e: Experiment, arm: str) -> BySeed:
    """Test accuracy of an arm of the race; chance where it has none."""
    accuracy = e.values("test_accuracy", part="speed", arm=arm)
    return {seed: accuracy.get(seed, CHANCE) for seed in e.values("rate", part="speed", arm=arm)}


def higher_rates(e: Experiment) -> Effects:
    """ioffe2015/I10: seeds that diverge at five times the rate, and accuracies above chance with BN."""
    lost = e.values("diverged", part="speed", arm="no BN, x5")
    asked = e.values("rate", part="speed", arm="no BN, x5")
    found = {"infinite at x5 without BN": {seed: 100.0 * (lost.get(seed, 0.0) > 0) for seed in asked}}
    for by in ("x5", "x30"):
        found[f"accuracy at {by} with BN"] = {seed: a - CHANCE for seed, a in race(e, f"BN-{by}").items()}
    return found


def sigmoids(e: Experiment) -> Effects:
    """ioffe2015/I10.2."""
    without, with_bn = race(e, "no BN, sigmoid"), race(e, "BN-x5-Sigmoid")
    above = {seed: accuracy - CHANCE for seed, accuracy in without.items()}
    return {"without BN": above, "with BN at x5 minus without": minus(with_bn, without)}


# --- Bjorck et al. ------------------------------------------------------------------------------------------------


def largest_rates(e: Experiment) -> Effects:
    """bjorck2018/B1.1: decades between the largest rates that train, with BN and without."""
    found: Effects = {}
    for network in e.settings["networks"]:
        top: dict[str, BySeed] = {}
        for variant in ("bn", "nobn"):
            trained: dict[int, dict[float, bool]] = {}
            for row in e.rows("runs", part="rates", network=network, variant=variant):
                ok = row["status"] == "completed" and float(row["train_accuracy"]) >= e.settings["trains_accuracy"]
                trained.setdefault(int(row["seed"]), {})[float(row["rate"])] = ok
            top[variant] = {seed: _last_that_trains(by_rate) for seed, by_rate in trained.items()}
        found[network] = {seed: math.log10(rate / top["nobn"][seed]) for seed, rate in top["bn"].items()}
    return found


def _last_that_trains(by_rate: dict[float, bool]) -> float:
    rates = sorted(by_rate)
    last = rates[0]
    for place, rate in enumerate(rates):
        if by_rate[rate]:
            last = rate
            if place + 1 == len(rates) or not by_rate[rates[place + 1]]:
                break
    return last


def growths(networks: str, quantity: str, **of: str) -> Callable[[Experiment], Effects]:
    """bjorck2018/B2.1 and B2.2: decades that the variance grows over the depth, without BN minus with it."""

    def growth(path: Points) -> float:
        layers = [layer for layer, variance in path.items() if variance > 0]
        logs = [math.log10(path[layer]) for layer in layers]
        return float(np.polynomial.Polynomial.fit(layers, logs, 1).convert().coef[1]) * (max(layers) - min(layers))

    def effects(e: Experiment) -> Effects:
        found = {}
        for network in e.settings[networks]:
            both = []
            for variant in ("nobn", "bn"):
                where = dict(of, network=network) | ({"variant": variant} if "{" not in quantity else {})
                paths = e.paths(quantity.format(variant), **where)
                both.append({seed: growth(path) for seed, path in paths.items()})
            found[network] = minus(*both)
        return found

    return effects


# --- Santurkar et al. ---------------------------------------------------------------------------------------------


def final_accuracies(e: Experiment) -> Effects:
    """santurkar2018/S1."""
    of = {rate: [e.ends("test_accuracy", part="curves", rate=rate, variant=v) for v in ("bn", "nobn")]
          for rate in e.settings["rates"]}  # fmt: skip
    return {f"rate {rate:g}": minus(*both) for rate, both in of.items()}


def mean_accuracies(e: Experiment) -> Effects:
    """santurkar2018/S1.2: training accuracy, averaged over the steps."""
    found = {}
    for rate in e.settings["rates"]:
        both = []
        for variant in ("bn", "nobn"):
            curves = e.curves("train_accuracy", part="curves", rate=rate, variant=variant)
            lost = {
                int(r["seed"]) for r in e.rows("runs", part="curves", rate=rate, variant=variant, status="diverged")
            }
            means = {seed: float(np.mean(list(path.values()))) for seed, path in curves.items()}
            both.append(means | dict.fromkeys(lost, CHANCE))
        found[f"rate {rate:g}"] = minus(*both)
    return found


def noise_above_chance(e: Experiment) -> Effects:
    """santurkar2018/S3.3."""
    step, rate = e.settings["few_steps"], e.settings["rates"][0]
    curves = e.curves("train_accuracy", part="curves", rate=rate, variant="noise")
    return {"": {seed: path[step] - CHANCE for seed, path in curves.items() if step in path}}


def late(e: Experiment, path: Points) -> Points:
    return {x: value for x, value in path.items() if x >= e.settings["early_steps"] and math.isfinite(value)}


def shifts(one: str) -> Callable[[Experiment], Effects]:
    """santurkar2018/S2 and S3.4: log10 of how far distributions move, averaged late in training, over another's."""

    def effects(e: Experiment) -> Effects:
        means = []
        for variant in (one, "nobn"):
            paths = e.paths("shift", part="distributions", variant=variant)
            means.append({seed: float(np.mean(list(late(e, path).values()))) for seed, path in paths.items()})
        return {"": {seed: log_ratio(mean, means[1][seed]) for seed, mean in means[0].items() if seed in means[1]}}

    return effects


def log_ratios(e: Experiment, quantity: str, one: str, other: str, **of: Any) -> dict[int, Points]:
    """log10 of one variant's measure over another's, at each step at which it is finite."""
    both = []
    for variant in (one, other):
        if quantity == "loss_range":
            high, low = (e.paths(q, variant=variant, **of) for q in ("loss_high", "loss_low"))
            both.append({s: {x: v - low[s][x] for x, v in path.items() if x in low[s]} for s, path in high.items()})
        else:
            both.append(e.paths(quantity, variant=variant, **of))
    found: dict[int, Points] = {}
    for seed in both[0].keys() & both[1].keys():
        first, second = both[0][seed], both[1][seed]
        pairs = {x: (v, second[x]) for x, v in first.items() if x in second and v > 0 < second[x]}
        logs = {x: math.log10(a / b) for x, (a, b) in pairs.items() if math.isfinite(a / b) and a / b > 0}
        found[seed] = logs
    return found


def over_late_steps(quantity: str) -> Callable[[Experiment], Effects]:
    """santurkar2018/S5, S6 and S7."""

    def effects(e: Experiment) -> Effects:
        paths = log_ratios(e, quantity, "nobn", "bn", part="landscape")
        return {"": {seed: float(np.mean(list(late(e, path).values()))) for seed, path in paths.items()}}

    return effects


def largest_early(e: Experiment) -> Effects:
    """santurkar2018/S6.2."""
    paths, end = log_ratios(e, "change_high", "nobn", "bn", part="landscape"), e.settings["early_steps"]
    return {"": {seed: max(value for x, value in path.items() if x < end) for seed, path in paths.items()}}


def covariate_shift(e: Experiment) -> Effects:
    """santurkar2018/S4."""
    found = {}
    for layer in e.settings["landscape"]["layers"]:
        paths = log_ratios(e, f"difference_{layer}", "bn", "nobn", part="landscape")
        found[f"layer {layer}"] = {seed: float(np.mean(list(late(e, path).values()))) for seed, path in paths.items()}
    return found


def cosines(e: Experiment) -> Effects:
    """santurkar2018/S4.2."""
    found = {}
    for layer in e.settings["landscape"]["layers"]:
        means = []
        for variant in ("nobn", "bn"):
            paths = e.paths(f"cosine_{layer}", part="landscape", variant=variant)
            means.append({seed: float(np.mean(list(late(e, path).values()))) for seed, path in paths.items()})
        found[f"layer {layer}"] = minus(*means)
    return found


def last_losses(e: Experiment) -> Effects:
    """santurkar2018/S9: the loss at the last step, without BN over with it; the first where a network diverged."""
    found = {}
    for rate, _ in e.settings["deep_linear_runs"]:
        losses = {v: e.paths("loss", part="deep_linear", rate=rate, variant=v) for v in ("nobn", "bn")}
        last = min(max(x for path in by_seed.values() for x in path) for by_seed in losses.values())
        ends: dict[str, BySeed] = {}
        for variant, by_seed in losses.items():
            lost = e.values("diverged", part="deep_linear", rate=rate, variant=variant)
            ends[variant] = {s: path[0.0 if s in lost else last] for s, path in by_seed.items()}
        found[f"rate {rate:g}"] = {s: log_ratio(loss, ends["bn"][s]) for s, loss in ends["nobn"].items()}
    return found


def smoother(e: Experiment) -> Effects:
    """santurkar2018/S9.2."""
    names = {"loss_range": "range of the loss", "change_high": "change of the gradient", "beta": "effective beta"}
    found = {}
    for quantity, name in names.items():
        for rate, _ in e.settings["deep_linear_runs"]:
            paths = log_ratios(e, quantity, "nobn", "bn", part="deep_linear", rate=rate)
            means = {seed: float(np.mean(list(path.values()))) for seed, path in paths.items() if path}
            found[f"{name}, rate {rate:g}"] = means
    return found


# --- Wu & He, and Ioffe 2017 --------------------------------------------------------------------------------------


def renorm(images: Callable[[list[int]], int]) -> Callable[[Experiment], Effects]:
    """wu2018/R1.1 and R1.2: renorm minus BN, with the fewest images a worker, or the most."""

    def effects(e: Experiment) -> Effects:
        of: dict[str, Any] = {"part": "workers", "images": images(e.settings["renorm_images"])}
        return {"": minus(e.values("test_accuracy", norm="renorm", **of), e.ends("test_accuracy", norm="bn", **of))}

    return effects


def small_batch(e: Experiment) -> Effects:
    """wu2018/G1.4: BN at the usual batch minus at one of a worker's few images."""
    usual = e.ends("test_accuracy", part="workers", norm="bn", images=max(e.settings["images"]))
    return {"": minus(usual, e.ends("test_accuracy", part="alone", norm="bn"))}


def ghosts(e: Experiment) -> Effects:
    """wu2018/T1: the parts with the best mean validation accuracy, minus the whole batch."""
    sizes = {n: e.ends("val_accuracy", part="ghosts", images=n) for n in e.settings["ghosts"]}
    seeds = set.intersection(*map(set, sizes.values())) & e.ends("test_accuracy", part="whole", norm="bn").keys()
    look = max(n for n in e.settings["looks"] if n <= len(seeds))
    best = max(sizes, key=lambda n: float(np.mean([v for seed, v in sizes[n].items() if seed < look])))
    parts, whole = e.ends("test_accuracy", part="ghosts", images=best), e.ends("test_accuracy", part="whole", norm="bn")
    return {f"ghost batches of {best}": minus(parts, whole)}


# --- dksakkos/BatchNorm -------------------------------------------------------------------------------------------

SOURCES = {"bn": "framework BN", "custombn_own": "custom BN, source's settings"}
CURVES = {"train_accuracy": "training accuracy", "val_accuracy": "validation accuracy",
          "train_loss": "training loss", "val_loss": "validation loss"}  # fmt: skip


def keras(e: Experiment, quantity: str, arm: str) -> dict[int, Points]:
    """A curve of an arm by seed and epoch; accuracies in percent."""
    scale = 100 if quantity.endswith("accuracy") else 1
    paths = e.paths(quantity, part="curves", arm=arm)
    return {seed: {x: scale * value for x, value in path.items()} for seed, path in paths.items()}


def mean_apart(one: dict[int, Points], other: dict[int, Points], start: float = 0, log: bool = False) -> BySeed:
    """The mean difference over the points that both have, from beyond ``start``; of logarithms, as a factor."""
    found = {}
    for seed in one.keys() & other.keys():
        pairs = [(v, other[seed][x]) for x, v in one[seed].items() if x in other[seed] and x > start]
        mean = float(np.mean([math.log(a) - math.log(b) if log else a - b for a, b in pairs]))
        found[seed] = math.exp(mean) if log else mean
    return found


def convergence(e: Experiment) -> Effects:
    """keras_curves/K1."""
    threshold, found = e.settings["train_loss_threshold"], {}

    def epochs(arm: str) -> BySeed:
        paths = {seed: sorted(path.items()) for seed, path in keras(e, "train_loss", arm).items()}
        return {s: next((x for x, loss in path if loss <= threshold), path[-1][0]) for s, path in paths.items()}

    for arm, label in SOURCES.items():
        first = [{s: path[1.0] for s, path in keras(e, "train_accuracy", a).items()} for a in (arm, "nobn")]
        found[f"{label}, training accuracy in the first epoch, minus no BN"] = minus(*first)
        own, to = epochs(arm), f"{label}, no BN over it, epochs to a training loss of {threshold:g}"
        found[to] = {seed: count / own[seed] for seed, count in epochs("nobn").items()}
    return found


def alike(e: Experiment) -> Effects:
    """keras_curves/K3, but for what is exact."""
    settled = e.settings["settled"]
    validation, loss = ([keras(e, q, arm) for arm in ("custombn_own", "bn")] for q in ("val_accuracy", "train_loss"))
    late = mean_apart(*validation, start=settled)
    return {f"validation accuracy after epoch {settled}": late, "training loss": mean_apart(*loss, log=True)}


def all_curves(e: Experiment) -> Effects:
    """keras_curves/K5."""
    found = {}
    for quantity, name in CURVES.items():
        for arm, label in SOURCES.items():
            own, none = keras(e, quantity, arm), keras(e, quantity, "nobn")
            if quantity.endswith("accuracy"):
                found[f"{label}, {name}"] = mean_apart(own, none)
            else:
                found[f"{label}, {name}, no BN over it"] = mean_apart(none, own, log=True)
    return found


# --- NumPyNet -----------------------------------------------------------------------------------------------------


def gradients(one: str, other: str, but: str = "") -> Callable[[Experiment], Effects]:
    """numpynet/N4.10 to N4.12: test accuracy with one gradient minus that with another, of all networks but one."""

    def effects(e: Experiment) -> Effects:
        found = {}
        for network in (each for each in e.settings["networks"] if each != but):
            for lr in e.settings["learning_rates"]:
                of: dict[str, Any] = {"part": "training", "network": network, "lr": lr}
                difference = minus(*(e.values("test_accuracy", gradient=gradient, **of) for gradient in (one, other)))
                if difference:
                    found[f"{network}, lr {lr:g}"] = difference
        return found

    return effects


def biases(e: Experiment) -> Effects:
    """numpynet/N4.13: decades between norms of the biases: the code's over the exact gradient's, and over half-way."""
    found: Effects = {}
    for network in e.settings["networks"]:
        for lr in e.settings["learning_rates"]:
            of: dict[str, Any] = {"part": "training", "network": network, "lr": lr}
            code, exact = (e.paths("bias_norm", gradient=gradient, **of) for gradient in ("code", "exact"))
            for seed, path in code.items():
                end, half = max(path), max(x for x in path if x <= e.settings["steps"] / 2)
                last, place = math.log10(max(path[end], 1e-12)), f"{network}, lr {lr:g}"
                before = math.log10(max(path[half], 1e-12))
                if seed in exact:
                    other = math.log10(max(exact[seed][max(exact[seed])], 1e-12))
                    found.setdefault(f"over the exact gradient's, {place}", {})[seed] = last - other
                found.setdefault(f"over half-way, {place}", {})[seed] = last - before
    return found


def changed_classes(e: Experiment) -> Effects:
    """numpynet/N4.18."""
    found = {}
    for network in e.settings["networks"]:
        for lr in e.settings["learning_rates"]:
            values = e.values("changed_classes", part="training", gradient="exact", network=network, lr=lr)
            found[f"{network}, lr {lr:g}"] = values
    return {place: values for place, values in found.items() if values}


# --- Cohen et al. -------------------------------------------------------------------------------------------------


def over_shares(e: Experiment, quantity: str, norm: str, rate: float, first: float, last: float = 1.0) -> BySeed:
    """The mean of a quantity over the points between two shares of a training."""
    paths = {r: e.paths(quantity, part="descent", norm=norm, rate=r) for r in e.settings["rates"][norm]}
    end = max(x for by_seed in paths.values() for path in by_seed.values() for x in path)
    found = {}
    for seed, path in paths[rate].items():
        points = [value for x, value in path.items() if first * end <= x <= last * end]
        if points:
            found[seed] = float(np.mean(points))
    return found


def divided(one: BySeed, other: BySeed) -> BySeed:
    return {seed: value / other[seed] for seed, value in one.items() if seed in other}


def rise(e: Experiment) -> Effects:
    """cohen2021/E2."""
    return {f"rate {rate:g}": divided(over_shares(e, "sharpness", "none", rate, 2 / 3),
                                      over_shares(e, "sharpness", "none", rate, 0.0, 0.0))
            for rate in e.settings["rates"]["none"]}  # fmt: skip


def at_the_edge(norm: str) -> Callable[[Experiment], Effects]:
    """cohen2021/E3 and E4."""

    def effects(e: Experiment) -> Effects:
        found = {}
        for rate in e.settings["rates"][norm]:
            late_ = over_shares(e, "sharpness", norm, rate, 2 / 3)
            found[f"rate {rate:g}"] = {seed: sharpness * rate / 2 for seed, sharpness in late_.items()}
        return found

    return effects


def rises_and_falls(e: Experiment) -> Effects:
    """cohen2021/E5."""
    found = {}
    for norm, name in (("none", "no BN"), ("bn", "BN")):
        for rate in e.settings["rates"][norm]:
            found[f"steps at which it rises, {name}, rate {rate:g}"] = over_shares(e, "rises", norm, rate, 2 / 3)
            end, half = over_shares(e, "loss", norm, rate, 1.0), over_shares(e, "loss", norm, rate, 0.5, 0.5)
            found[f"loss at the end over that half-way, {name}, rate {rate:g}"] = divided(end, half)
    return found


# --- Wan et al. ---------------------------------------------------------------------------------------------------


def angles(e: Experiment) -> dict[str, dict[int, list[float]]]:
    """Angles of the layers over the last fifth of a training, by cell with decay and seed."""
    decayed = [name for name, cell in e.settings["cells"].items() if cell["weight_decay"]]
    paths = {name: e.paths("settled", part="cells", cell=name) for name in decayed}
    return {name: {seed: list(path.values()) for seed, path in by.items()} for name, by in paths.items()}


def in_equilibrium(e: Experiment) -> Effects:
    """wan2021/M2: over the model's angle, whose cosine is 1 - rate decay / (1 + momentum)."""
    found = {}
    for name, by_seed in angles(e).items():
        cell = e.settings["cells"][name]
        expected = math.acos(1 - cell["lr"] * cell["weight_decay"] / (1 + cell["momentum"]))
        found[name] = {seed: math.exp(float(np.mean(np.log(each)))) / expected for seed, each in by_seed.items()}
    return found


def apart(e: Experiment) -> Effects:
    """wan2021/M3."""
    return {name: {s: max(each) / min(each) for s, each in by_seed.items()} for name, by_seed in angles(e).items()}


def fall(e: Experiment) -> Effects:
    """wan2021/M4."""
    found = {}
    for name, by_seed in angles(e).items():
        before = {seed: math.exp(float(np.mean(np.log(each)))) for seed, each in by_seed.items()}
        after = e.values("fallen", part="cells", cell=name)
        found[name] = {seed: value / e.settings["fall"] for seed, value in divided(before, after).items()}
    return found


# --- the other papers ---------------------------------------------------------------------------------------------


def slope_of_logs(points: Points, start: float = -math.inf) -> float:
    """Of log y against log x, from ``start`` on."""
    pairs = [(math.log(x), math.log(y)) for x, y in points.items() if x >= start]
    return float(stats.linregress(*zip(*pairs, strict=True)).slope)


def gradient_falls(e: Experiment) -> Effects:
    """arora2019/A2."""
    paths = e.paths("gradient", part="descent", norm="bn", rate=e.settings["rate"])
    early = 0.1 * e.settings["steps"]
    return {"": {seed: slope_of_logs(path, early) + 0.5 for seed, path in paths.items()}}


def rates_that_succeed(e: Experiment) -> Effects:
    """arora2019/A3: decades of rates around the best one at which descent succeeds."""
    decades: dict[str, BySeed] = {}
    for norm in ("bn", "nobn"):
        by_rate = {rate: e.values("accuracy", part="descent", norm=norm, rate=rate) for rate in e.settings["rates"]}
        decades[norm] = {}
        for seed in by_rate[e.settings["rates"][0]]:
            succeeds = [by_rate[rate][seed] >= e.settings["trained"] for rate in e.settings["rates"]]
            best = max(range(len(succeeds)), key=lambda i: by_rate[e.settings["rates"][i]][seed])
            low = high = best
            while low > 0 and succeeds[low - 1]:
                low -= 1
            while high < len(succeeds) - 1 and succeeds[high + 1]:
                high += 1
            rates = e.settings["rates"]
            decades[norm][seed] = math.log10(rates[high] / rates[low]) if succeeds[best] else 0.0
    return {"": minus(decades["bn"], decades["nobn"])}


def added_shift(e: Experiment, width: float) -> BySeed:
    """Of the variance, by dropout in each block: the geometric mean over layers, over that without dropout."""
    means = []
    for position, amount in (("in_blocks", e.settings["much"]), ("none", 0.0)):
        paths = e.paths("shift", part="dropout", position=position, amount=amount, width=width)
        means.append({seed: math.exp(float(np.mean(np.log(list(path.values()))))) for seed, path in paths.items()})
    return divided(*means)


def shift(e: Experiment) -> Effects:
    """li2019/D1.1."""
    return {"": added_shift(e, 0.25)}


def shift_by_width(e: Experiment) -> Effects:
    """li2019/D1.6."""
    return {"": divided(added_shift(e, e.settings["narrow"]), added_shift(e, 0.25))}


def penalties(e: Experiment) -> Effects:
    """luo2019/U1: the power of the batch size in the penalty, minus -1."""
    found = {}
    for network in dict.fromkeys(row["network"] for row in e.rows("measurements", part="noise")):
        paths = e.paths("penalty", part="noise", network=network)
        least = e.settings["noise"]["fitted"]
        found[network] = {seed: slope_of_logs(path, least) + 1 for seed, path in paths.items()}
    return found


def growth_with_relu(e: Experiment) -> Effects:
    """yang2019/Y2: over pi / (pi - 1)."""
    most = max(e.settings["batches"])
    found = e.values("growth", part="batches", norm="bn", batch=most, activation="relu", variance=2.0)
    return {f"batch of {most}": {seed: value * (math.pi - 1) / math.pi for seed, value in found.items()}}


def ranks(e: Experiment) -> Effects:
    """daneshmand2020/R2."""
    last, settled, found = max(e.settings["marks"]), e.settings["settled"], {}
    for activation, name in (("linear", "linear"), ("relu", "ReLU")):
        kept: dict[int, list[float]] = {}
        for width in e.settings["widths"]:
            of: dict[str, Any] = {"part": "random", "activation": activation, "width": width}
            bn, none = (e.paths("rank", norm=norm, **of) for norm in ("bn", "nobn"))
            over = f"BN over none, {name}, {width} units"
            found[over] = {seed: path[last] / none[seed][last] for seed, path in bn.items()}
            for seed, path in bn.items():
                kept.setdefault(seed, []).append(path[last] / path[settled])
        means = {seed: math.exp(float(np.mean(np.log(each)))) for seed, each in kept.items()}
        found[f"over layer {settled}'s, {name}, BN"] = means
    return found


def rank_by_width(e: Experiment) -> Effects:
    """daneshmand2020/R3."""
    by_seed: dict[int, Points] = {}
    for width in e.settings["widths"]:
        for seed, path in e.paths("rank", part="random", norm="bn", activation="linear", width=width).items():
            by_seed.setdefault(seed, {})[width] = path[max(e.settings["marks"])]
    return {"": {seed: slope_of_logs(path) - 0.5 for seed, path in by_seed.items()}}


def scales(e: Experiment, norm: str) -> dict[int, Points]:
    """Scale of the last shortcut over its branch, by seed and number of blocks."""
    by_seed: dict[int, Points] = {}
    for blocks in e.settings["blocks"]:
        for seed, path in e.paths("scale", part="start", norm=norm, blocks=blocks).items():
            by_seed.setdefault(seed, {})[blocks] = path[3 * blocks]
    return by_seed


def scale_by_depth(e: Experiment) -> Effects:
    """desmith2020/D1."""
    return {"": {seed: slope_of_logs(path) - 0.5 for seed, path in scales(e, "bn").items()}}


def scale_without_bn(e: Experiment) -> Effects:
    """desmith2020/D2."""
    bn, plain, deepest = scales(e, "bn"), scales(e, "nobn"), max(e.settings["blocks"])
    over = {seed: path[deepest] / plain[seed][deepest] for seed, path in bn.items() if seed in plain}
    exponents = {seed: slope_of_logs(path) for seed, path in plain.items()}
    return {f"ResNet-{6 * deepest + 2}, BN over none": over, "exponent in the depth, no BN": exponents}


def clients(e: Experiment, split: str, norm: str, skew: float) -> dict[float, BySeed]:
    """Accuracy by rate; that of chance where the training diverged."""
    found = {}
    for rate in e.settings["rates"]:
        of: dict[str, Any] = {"part": "clients", "norm": norm, "skew": skew, "rate": rate}
        found[rate] = dict.fromkeys(e.values("diverged", **of), CHANCE) | e.values(split, **of)
    return {rate: values for rate, values in found.items() if values}


def half_recovered(e: Experiment) -> Effects:
    """hsieh2020/N2: group norm, minus the middle between BN with clients that are skewed and that are alike."""
    best = {}
    for norm, skew in (("bn", 1.0), ("bn", 0.0), ("gn", 1.0)):
        means = {rate: float(np.mean(list(each.values()))) for rate, each in clients(e, "val", norm, skew).items()}
        best[norm, skew] = clients(e, "test", norm, skew)[max(means, key=lambda rate: means[rate])]
    skewed, alike_ = best["bn", 1.0], best["bn", 0.0]
    return {"": {seed: v - (skewed[seed] + alike_[seed]) / 2 for seed, v in best["gn", 1.0].items()}}


def corrupted(e: Experiment) -> Effects:
    """schneider2020/S2.1: averaged over all corruptions and severities."""
    found = {}
    for network in dict.fromkeys(row["network"] for row in e.rows("measurements", part="main")):
        means = []
        for quantity in ("batch", "trained"):
            paths = e.paths(quantity, part="main", network=network)
            means.append({s: float(np.mean([v for x, v in p.items() if x != "none"])) for s, p in paths.items()})
        found[network] = minus(*means)
    return found


def early_in_training(e: Experiment) -> Effects:
    """wu2021/W1.2: over the points in the first fifth of a training."""
    paths = [e.paths(f"accuracy_{kind}", part="path", batch="large") for kind in ("population", "ema 0.1")]
    found = {}
    for seed, path in paths[0].items():
        first = [x for x in path if x <= max(path) / 5 + 0.5]  # the points are whole steps
        found[seed] = float(np.mean([path[x] - paths[1][seed][x] for x in first]))
    return {"large batch": found}


def correlations(e: Experiment) -> Effects:
    """zhu2025/Z4."""
    alpha, spread = (e.paths(q, part="transformer", norm="dyt") for q in ("alpha", "spread"))
    pairs = {seed: [(a, 1 / spread[seed][x]) for x, a in path.items()] for seed, path in alpha.items()}
    return {"": {seed: float(stats.pearsonr(*zip(*each, strict=True)).statistic) for seed, each in pairs.items()}}


# --- placement -----------------------------------------------------------------------------------------------------


def activations(e: Experiment) -> Effects:
    """placement/P7: test accuracies with BN after each activation, and by how much less they spread than without BN."""
    names = {"relu": "ReLU", "elu": "ELU", "prelu": "PReLU"}
    network, rates = next(iter(e.settings["networks"])), e.settings["rates"]
    rate = {"after": sorted(rates)[(len(rates) - 1) // 2], "none": e.settings["plain_rate"]}
    of: dict[str, Any] = {"part": "order", "network": network, "affine": "on"}
    found, spread = {}, {}
    for order in rate:
        own = {a: e.ends("test_accuracy", **of, activation=a, order=order, rate=rate[order]) for a in names}
        if order == "after":
            for a, b in combinations(names, 2):
                found[f"{names[a]} minus {names[b]}"] = minus(own[a], own[b])
        each = {seed: [own[a][seed] for a in names] for seed in set.intersection(*map(set, own.values()))}
        spread[order] = {seed: max(values) - min(values) for seed, values in each.items()}
    return {**found, "spread without BN minus with": minus(spread["none"], spread["after"])}


# --- conv_batchnorm ------------------------------------------------------------------------------------------------

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def below(e: Experiment, part: str, what: str, light: str, kind: str = "all", **factors: Any) -> BySeed:
    """Percent of units or values below the horizon: of a layer as it is initialised, or of trained networks."""
    if part == "start":
        return {s: 100 * path[light] for s, path in e.paths(f"{what} below {kind}", part=part, **factors).items()}
    return {s: 100 * value for s, value in e.values(f"{what} below", part=part, light=light, **factors).items()}


def left(plain: BySeed, dark: BySeed) -> BySeed:
    return {seed: 100 * dark[seed] / value for seed, value in plain.items() if seed in dark}


def below_threshold(part: str) -> Callable[[Experiment], Effects]:
    """conv_batchnorm/L6a, L6a.2: BN's active values below the horizon, by how much the dark lowers them, and to what
    share.
    """

    def found(e: Experiment) -> Effects:
        effects = {}
        for data in e.settings["horizon"]["data"]:
            plain, dark = (below(e, part, "active", light, dataset=data, variant="bn") for light in ("plain", "static"))
            effects[f"fall, {DATASETS[data]}"] = minus(plain, dark)
            effects[f"left, {DATASETS[data]}"] = left(plain, dark)
        return effects

    return found


def left_of_light(e: Experiment) -> Effects:
    """conv_batchnorm/L6a.1: the same share of pixels, and of filters that light raises."""
    effects = {}
    for kind, name in (("pixels", "pixels"), ("light", "filters that light raises")):
        for data in e.settings["horizon"]["data"]:
            each = (below(e, "start", "active", x, kind, dataset=data, variant="bn") for x in ("plain", "static"))
            effects[f"{name}, {DATASETS[data]}"] = left(*each)
    return effects


def silenced(e: Experiment, part: str, data: str, variant: str) -> BySeed:
    """Units that almost no image activates, in the dark minus on plain images."""
    return minus(*(below(e, part, "silent", x, dataset=data, variant=variant) for x in ("static", "plain")))


def silenced_beside(part: str, one: str, other: str, name: str = "") -> Callable[[Experiment], Effects]:
    """By how much more with one norm than with another."""

    def found(e: Experiment) -> Effects:
        return {
            ", ".join(filter(None, (name, DATASETS[data]))): minus(*(silenced(e, part, data, v) for v in (one, other)))
            for data in e.settings["horizon"]["data"]
        }

    return found


def silenced_by_pools(e: Experiment) -> Effects:
    """conv_batchnorm/L6g."""
    pools = {"ghostbn": "ghost batches", "groupnorm": "group norm"}
    each = (silenced_beside("start", variant, "convbn", name)(e) for variant, name in pools.items())
    return {condition: values for effects in each for condition, values in effects.items()}


def generalisation(e: Experiment) -> Effects:
    """conv_batchnorm/L1b: training minus test accuracy, gamma and beta per location minus per channel."""
    effects = {}
    for data in e.settings["data"]:
        gap = {}
        for variant in ("peractivationbn", "convbn"):
            paths = e.paths("accuracy", part="table", dataset=data, variant=variant)
            gap[variant] = {s: 100 * (path["training images"] - path["running"]) for s, path in paths.items()}
        effects[DATASETS[data]] = minus(gap["peractivationbn"], gap["convbn"])
    return effects


def predicted_gap(e: Experiment) -> Effects:
    """conv_batchnorm/L-gap: how much further apart batch and population are, over the middle of 9 and 12."""
    local, channel = (e.paths(f"gap {variant}", part="gap") for variant in ("convbn", "bn"))
    return {
        f"batches of {size}": {s: path[float(size)] / channel[s][float(size)] / 108**0.5 for s, path in local.items()}
        for size in e.settings["batches"]
    }


def lost_in_small_batches(e: Experiment) -> Effects:
    """conv_batchnorm/L-batch."""
    sizes = [int(size) for size in e.settings["batches"]]
    loss = {
        size: minus(*(e.ends("test_accuracy", part="batch", variant=v, batch_size=size) for v in ("bn", "convbn")))
        for size in (min(sizes), max(sizes))
    }
    return {"": minus(loss[min(sizes)], loss[max(sizes)])}


RECIPES: dict[str, Callable[[Experiment], Effects]] = {
    "ioffe2015/I1.2": steps_to_accuracies,
    "ioffe2015/I2": drifts,
    "ioffe2015/I10": higher_rates,
    "ioffe2015/I10.2": sigmoids,
    "bjorck2018/B1.1": largest_rates,
    "bjorck2018/B2.1": growths("blocks", "variance", part="start"),
    "bjorck2018/B2.2": growths("diverge", "{}/1/variance", part="diverging"),
    "santurkar2018/S1": final_accuracies,
    "santurkar2018/S1.2": mean_accuracies,
    "santurkar2018/S2": shifts("bn"),
    "santurkar2018/S3.3": noise_above_chance,
    "santurkar2018/S3.4": shifts("noisybn"),
    "santurkar2018/S4": covariate_shift,
    "santurkar2018/S4.2": cosines,
    "santurkar2018/S5": over_late_steps("loss_range"),
    "santurkar2018/S6": over_late_steps("change_high"),
    "santurkar2018/S6.2": largest_early,
    "santurkar2018/S7": over_late_steps("beta"),
    "santurkar2018/S9": last_losses,
    "santurkar2018/S9.2": smoother,
    "wu2018/R1.1": renorm(min),
    "wu2018/R1.2": renorm(max),
    "wu2018/G1.4": small_batch,
    "wu2018/T1": ghosts,
    "keras_curves/K1": convergence,
    "keras_curves/K3": alike,
    "keras_curves/K5": all_curves,
    "placement/P7": activations,
    "conv_batchnorm/L1b": generalisation,
    "conv_batchnorm/L6a": below_threshold("start"),
    "conv_batchnorm/L6a.1": left_of_light,
    "conv_batchnorm/L6a.2": below_threshold("horizon"),
    "conv_batchnorm/L6b": silenced_beside("start", "bn", "convbn"),
    "conv_batchnorm/L6b.1": silenced_beside("horizon", "bn", "convbn"),
    "conv_batchnorm/L6g": silenced_by_pools,
    "conv_batchnorm/L-gap": predicted_gap,
    "conv_batchnorm/L-batch": lost_in_small_batches,
    "numpynet/N4.10": gradients("code", "exact"),
    "numpynet/N4.11": gradients("text", "exact"),
    "numpynet/N4.12": gradients("code", "detached", but="narrow"),  # which has not many locations for each image
    "numpynet/N4.13": biases,
    "numpynet/N4.18": changed_classes,
    "cohen2021/E2": rise,
    "cohen2021/E3": at_the_edge("none"),
    "cohen2021/E4": at_the_edge("bn"),
    "cohen2021/E5": rises_and_falls,
    "wan2021/M2": in_equilibrium,
    "wan2021/M3": apart,
    "wan2021/M4": fall,
    "arora2019/A2": gradient_falls,
    "arora2019/A3": rates_that_succeed,
    "li2019/D1.1": shift,
    "li2019/D1.6": shift_by_width,
    "luo2019/U1": penalties,
    "yang2019/Y2": growth_with_relu,
    "daneshmand2020/R2": ranks,
    "daneshmand2020/R3": rank_by_width,
    "desmith2020/D1": scale_by_depth,
    "desmith2020/D2": scale_without_bn,
    "hsieh2020/N2": half_recovered,
    "schneider2020/S2.1": corrupted,
    "wu2021/W1.2": early_in_training,
    "zhu2025/Z4": correlations,
}
