"""From the records of `numpynet` to findings, tables and figures."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.cells import equal_everywhere, greater_everywhere
from bnrepro.experiments.judge import exact, in_words, numbers
from bnrepro.experiments.numpynet import pictures
from bnrepro.experiments.numpynet.claims import CLAIMS
from bnrepro.experiments.numpynet.layer import GRADIENTS
from bnrepro.experiments.numpynet.measurements import locations
from bnrepro.stats import Interval, paired, t_interval

BY_ID = {claim.id: claim for claim in CLAIMS}
POINTS = "percentage points of test accuracy"


def analyse(records: Records) -> Analysis:
    """All findings in the order of the claims, three tables and two figures."""
    found = [*_identities(records), *_gradient(records), *_training(records), *_tests(records), *_paper(records)]
    by_id = {finding.claim.id: finding for finding in found}
    return Analysis(
        findings=[by_id[claim.id] for claim in CLAIMS],
        tables=[error_table(records), mended_table(records), training_table(records)],
        pictures=drawn(lambda: [pictures.gradients(records), pictures.curves(records)]),
    )


# --- exact claims -------------------------------------------------------------------------------------------------


def _worst(records: Records, *names: str) -> float:
    """The largest over seeds of some identities' relative errors."""
    return max(max(records.measured(name, part="identities").values()) for name in names)


def _mean(records: Records, name: str) -> float:
    return fmean(records.measured(name, part="identities").values())


def _identities(records: Records) -> list[Finding]:
    tolerance, fd = records.settings["tolerance"], records.settings["fd_tolerance"]

    def held(claim: str, sentence: str, *, to: tuple[str, ...] = (), differences: tuple[str, ...] = ()) -> Finding:
        worst, coarse = (_worst(records, *names) if names else 0.0 for names in (to, differences))
        said = [f"{worst:.1e} to the reference and torch (tolerance {tolerance:g})"] if to else []
        said += [f"{coarse:.1e} to finite differences (tolerance {fd:g})"] if differences else []
        holds = worst <= tolerance and coarse <= fd
        return exact(BY_ID[claim], holds, f"{sentence} The largest relative error in float64 is {' and '.join(said)}.")

    updates = [f"{name}/{to}" for name in ("dscales", "dbias") for to in ("oracle", "torch")]
    squared = [_mean(records, f"squared/{moment}") for moment in ("mean", "std", "negative")]
    code = [_mean(records, f"code/{moment}") for moment in ("mean", "std")]
    normal = abs(squared[0]) < 0.1 and abs(squared[1] - 1) < 0.1
    ratio = _mean(records, "dmu/ratio")
    return [
        held("N4.1", "The code's forward is batch normalization over the batch alone.",
             to=("forward/oracle", "forward/torch")),
        exact(BY_ID["N4.2"], normal, "With the square, Gaussian values of deviation sigma come out with mean "
              f"{squared[0]:.3f} sigma and deviation {squared[1]:.3f} sigma (√2 = 1.414), and {squared[2]:.0%} are "
              f"negative; the code has no square and gives mean {abs(code[0]):.1e} and deviation {code[1]:.3f}."),
        held("N4.3", "Both updates are right in the code (the text's sums have one term too many).",
             to=tuple(updates), differences=("dscales/differences", "dbias/differences")),
        held("N4.4", "The text's formula is the exact gradient.",
             to=("text/oracle", "text/torch"), differences=("text/differences",)),
        held("N4.6", f"It is {ratio:.3g} times the derivative: a mean over the batch where the sum belongs.",
             differences=("dmu/differences",)),
        held("N4.7", "It is the derivative.", differences=("dvar/differences",)),
    ]  # fmt: skip


def _gradient(records: Records) -> list[Finding]:
    tolerance, settings = records.settings["tolerance"], records.settings
    example = " x ".join(map(str, settings["shapes"][0]))
    own = {"part": "table", "shape": example, "upstream": "uniform"}
    error = t_interval([100 * v for v in records.measured("relative_error", **own).values()])
    cosine = t_interval(list(records.measured("cosine", **own).values()))
    errors = [row["value"] for row in records.select(records.measurements, part="table", quantity="relative_error")]
    differences = _worst(records, "code/differences")
    unit = "percent relative error"
    wrong = Finding(
        BY_ID["N4.5"],
        Verdict.reproduced if max(errors) <= tolerance else Verdict.not_reproduced,
        f"On shape {example}, with delta as in its example, the relative error of the code's gradient is "
        f"{in_words(error, 'percent')}, and its cosine {numbers(cosine)}; over all shapes and upstream "
        f"gradients from {min(errors):.2g} to {max(errors):.2g} (1 is 100%). To finite differences: {differences:.2g}.",
        error,
        unit,
    )

    mended: dict[str, list[float]] = {"invN": [], "sum": [], "both": []}
    for row in records.select(records.measurements, quantity="mended_error", part="table"):
        n, m = _sizes(row["shape"])
        if row["x"] in mended and n != m:  # where they are equal, invN is right by accident
            mended[row["x"]].append(row["value"])
    two = max(mended["both"]) <= tolerance and min(mended["invN"]) > tolerance and min(mended["sum"]) > tolerance
    mistakes = exact(
        BY_ID["N4.8"],
        two,
        f"Relative error after mending invN alone {min(mended['invN']):.2g} to {max(mended['invN']):.2g}, the sum "
        f"alone {min(mended['sum']):.2g} to {max(mended['sum']):.2g}, both at most {max(mended['both']):.1e}, over the "
        "shapes and upstream gradients of the table with other than as many locations as images.",
    )

    many, margin = settings["many_locations"], settings["detached_margin"]
    far: dict[str, list[float]] = {}
    for row in records.select(records.measurements, quantity="to_detached"):
        n, m = _sizes(row["shape"])
        if m >= many * n:
            far.setdefault(f"{row['shape']}, {row['upstream']}", []).append(row["value"])
    intervals = {case: t_interval(values) for case, values in far.items()}
    worst = max(intervals.values(), key=lambda i: i.mean, default=Interval(math.nan, math.nan, math.nan, 0))
    highest = max((_high(i) for i in intervals.values()), default=math.nan)
    lowest = max((_low(i) for i in intervals.values()), default=math.nan)
    verdict = Verdict.reproduced if highest < margin else Verdict.inconclusive
    detached = Finding(
        BY_ID["N4.9"],
        Verdict.not_reproduced if lowest > margin else verdict,
        f"From {many} times as many locations as images on, the relative distance of the code's gradient from the "
        f"detached one is at most {in_words(worst, '')}, with {margin:g} as the margin.",
        worst,
        "relative distance",
    )
    return [wrong, mistakes, detached]


def _high(interval: Interval) -> float:
    return interval.mean if math.isnan(interval.high) else interval.high


def _low(interval: Interval) -> float:
    return interval.mean if math.isnan(interval.low) else interval.low


def _column(records: Records, quantity: str, **wanted: Any) -> list[float]:
    return [row["value"] for row in records.select(records.measurements, quantity=quantity, **wanted)]


def _sizes(shape: str) -> tuple[int, int]:
    """(N, M) of "5 x 100 x 100 x 3"."""
    n, *rest = map(int, shape.split(" x "))
    return n, math.prod(rest)


# --- training -----------------------------------------------------------------------------------------------------


def cells(records: Records) -> list[tuple[str, float]]:
    """The networks and learning rates that were trained."""
    return [(network, lr) for network in records.settings["networks"] for lr in records.settings["learning_rates"]]


def _training(records: Records) -> list[Finding]:
    settings = records.settings
    trained = cells(records)
    layer = _worst(records, *(f"layer/{gradient}" for gradient in GRADIENTS))
    if layer > settings["tolerance"]:
        reason = f"The torch layer that was trained is not the one it stands for: it is off by {layer:.1e}."
        return [Finding(BY_ID[f"N4.{i}"], Verdict.inconclusive, reason) for i in (10, 11, 12, 13)]
    batch, many, margin = settings["batch_size"], settings["many_locations"], settings["margin_points"]
    crowded = [cell for cell in trained if min(locations(cell[0])) >= many * batch]
    half = sorted(records.series("bias_norm", part="training"))[-1] / 2

    def accuracy(a: str, b: str, among: list[tuple[str, float]]) -> dict[str, list[float]]:
        return {
            name(*cell): paired(*(_of(records, "test_accuracy", cell, gradient) for gradient in (a, b)))
            for cell in among
        }

    def log_bias(cell: tuple[str, float], gradient: str, until: float = math.inf) -> dict[int, float]:
        rows = _rows(records, "bias_norm", cell, gradient)
        last: dict[int, tuple[float, float]] = {}
        for row in rows:
            seed, x = int(row["seed"]), float(row["x"])
            if x <= until and x >= last.get(seed, (0.0, 0.0))[0]:
                last[seed] = x, float(row["value"])
        return {seed: math.log10(max(value, 1e-12)) for seed, (_, value) in last.items()}

    growth = {name(*cell): paired(log_bias(cell, "code"), log_bias(cell, "exact")) for cell in trained}
    still = {name(*cell): paired(log_bias(cell, "code"), log_bias(cell, "code", half)) for cell in trained}
    grown = greater_everywhere(
        BY_ID["N4.13"],
        growth,
        1.0,
        "decades",
        "Norm of the biases before the layers at the end, code's over the exact gradient's",
    )
    goes_on = greater_everywhere(
        BY_ID["N4.13"], still, 0.0, "decades", "with the code's gradient, the end over half-way"
    )
    verdict = grown.verdict
    if verdict is Verdict.reproduced and goes_on.verdict is not Verdict.reproduced:
        verdict = Verdict.partly
    return [
        equal_everywhere(
            BY_ID["N4.10"], accuracy("code", "exact", trained), margin, POINTS, "Code's gradient minus exact"
        ),
        equal_everywhere(
            BY_ID["N4.11"], accuracy("text", "exact", trained), margin, POINTS, "Text's gradient minus exact"
        ),
        equal_everywhere(
            BY_ID["N4.12"],
            accuracy("code", "detached", crowded),
            margin,
            POINTS,
            f"With at least {many} times as many locations as images, code's gradient minus detached",
        ),
        Finding(
            grown.claim,
            verdict,
            f"{grown.found} The same, {goes_on.found}",
            grown.effect,
            grown.unit,
        ),
    ]


def name(network: str, lr: float) -> str:
    """What the findings call a network and its learning rate."""
    return f"{network}, lr {lr:g}"


def _rows(records: Records, quantity: str, cell: tuple[str, float], gradient: str) -> list[dict[str, Any]]:
    network, lr = cell
    return records.select(
        records.measurements, part="training", quantity=quantity, network=network, lr=lr, gradient=gradient
    )


def _of(records: Records, quantity: str, cell: tuple[str, float], gradient: str) -> dict[int, float]:
    return {int(row["seed"]): float(row["value"]) for row in _rows(records, quantity, cell, gradient)}


# --- the repository's tests, and the paper ------------------------------------------------------------------------


def _tests(records: Records) -> list[Finding]:
    passes = {x: fmean(values) for x, values in records.series("passes", part="own_test").items()}
    largest = max(records.measured("largest_exact", part="own_test").values())
    if passes["code"] < 1:
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.reproduced if passes["exact"] == 1 else Verdict.partly
    count = records.settings["own_test_draws"] * records.settings["seeds"]
    own = Finding(
        BY_ID["N4.14"],
        verdict,
        f"Of {count} draws the code passes {passes['code']:.0%} and the exact gradient {passes['exact']:.0%}, since "
        f"the reference takes the statistics for constants; against a reference in training mode, the code passes "
        f"{passes['code in training mode']:.0%}. With delta = 1 the exact gradient is zero (largest value "
        f"{largest:.1e}), and the code returns scales / sqrt(var + eps) but for a term of 1 / M.",
    )
    deviation = {x: fmean(values) for x, values in records.series("small_deviation", part="own_test").items()}
    unexplained = max(_column(records, "small_unexplained", part="own_test"))
    said = ", ".join(f"{value:.3g} at M = {x:g}" for x, value in deviation.items())
    instability = exact(
        BY_ID["N4.15"],
        unexplained > records.settings["tolerance"],
        f"The deviation from the test's reference is 1 / M, a term of the formula and no rounding ({said}); beyond it "
        f"{unexplained:.1e} is left in float64.",
    )
    return [own, instability]


def _paper(records: Records) -> list[Finding]:
    source, paper = (int(_mean(records, f"parameters/{who}")) for who in ("source", "paper"))
    off = _worst(records, "single/from_bias")
    first = cells(records)[0]
    changed = t_interval(list(_of(records, "changed_classes", first, "exact").values()))
    return [
        exact(BY_ID["N4.16"], source == paper, f"Its example has {source:,} parameters; the paper's layer for maps "
              f"(section 3.2: gamma and beta per map) has {paper} there. Per location is what the paper has for fully "
              "connected layers."),
        exact(BY_ID["N4.17"], off == 0.0, f"A batch of one image comes out as the bias whatever it shows (largest "
              f"distance {off:g}), without an error."),
        Finding(BY_ID["N4.18"], Verdict.reproduced if changed.mean == 0 else Verdict.not_reproduced,
                "There are no running statistics and no other mode, so a class depends on the images beside it: in "
                f"batches put together otherwise {in_words(changed, 'percent of test images')} change class (exact "
                f"gradient, {name(*first)}).", changed, "percent of test images"),
    ]  # fmt: skip


# --- tables -------------------------------------------------------------------------------------------------------


def error_table(records: Records) -> Table:
    """The wrong gradient by shape and upstream gradient."""
    rows = []
    for shape, upstream in _cases(records):
        n, m = _sizes(shape)
        where = {"part": "table", "shape": shape, "upstream": upstream}

        def over(quantity: str, where: dict[str, Any] = where) -> Interval | None:
            values = list(records.measured(quantity, **where).values())
            return t_interval(values) if values else None

        rows.append(
            {
                "shape (N, w, h, c)": shape,
                "upstream": upstream,
                "M / N": m / n,
                "relative error": over("relative_error"),
                "cosine": over("cosine"),
                "mean |batch sum of dx|": over("batch_sum"),
                "the same, exact": over("exact_batch_sum"),
                "relative distance from detached": over("to_detached"),
            }
        )
    n = records.settings["seeds"]
    title = f"The code's gradient against the exact and the detached one; 95% intervals over n = {n} draws."
    return Table("wrong_gradient", title, rows)


def _cases(records: Records) -> list[tuple[str, str]]:
    rows = records.select(records.measurements, part="table", quantity="to_detached")
    return list(dict.fromkeys((row["shape"], row["upstream"]) for row in rows))


def mended_table(records: Records) -> Table:
    """Relative errors with the mistakes mended, one or both."""
    rows = []
    for shape, upstream in _cases(records):
        series = records.series("mended_error", part="table", shape=shape, upstream=upstream)
        if series:
            shown = {f"mended: {x}": t_interval(values) for x, values in series.items()}
            rows.append({"shape (N, w, h, c)": shape, "upstream": upstream, **shown})
    n = records.settings["seeds"]
    return Table("mended", f"Relative error with the mistakes mended; 95% intervals over n = {n} draws.", rows)


def training_table(records: Records) -> Table:
    """What each gradient trains to."""
    rows = []
    for cell in cells(records):
        for gradient in GRADIENTS:

            def end(quantity: str, cell: tuple[str, float] = cell, gradient: str = gradient) -> Interval:
                values = {row["seed"]: row["value"] for row in _rows(records, quantity, cell, gradient)}
                return t_interval(list(values.values()))  # the last row of each seed

            rows.append(
                {
                    "network": cell[0],
                    "lr": cell[1],
                    "gradient": gradient,
                    "test accuracy, %": end("test_accuracy"),
                    "training loss": end("train_loss"),
                    "norm of biases before": end("bias_norm"),
                    "norm of weights before": end("weight_norm"),
                    "diverged": int(sum(_of(records, "diverged", cell, gradient).values())),
                }
            )
    steps, n = records.settings["steps"], records.settings["seeds"]
    return Table("training", f"After {steps} steps, by gradient; 95% intervals over n = {n} seeds.", rows)
