"""From the records of `vanlaarhoven2017` to findings and tables."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.judge import equal, exact, greater, in_words
from bnrepro.experiments.vanlaarhoven2017 import drawing
from bnrepro.experiments.vanlaarhoven2017.claims import BY_ID
from bnrepro.experiments.vanlaarhoven2017.grid import ARMS, EXACT, GRID
from bnrepro.experiments.vanlaarhoven2017.training import CORRECTED, OFF, ON, REVERSE
from bnrepro.stats import Interval, paired, t_interval

UNIT = "percentage points of test accuracy"
Cell = tuple[float, float]


def analyse(records: Records) -> Analysis:
    """All findings in the order of the claims, with tables and figures."""
    tables = [grid_table(records), arms_table(records), exact_table(records)]
    return Analysis(judged(records), tables, drawn(lambda: [drawing.heat_maps(records), drawing.arms(records)]))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [v1(records), v1_2(records), v1_3(records), v1_4(records), v1_5(records), v2(records), v2_2(records)]


# --- exact ---


def worst(records: Records) -> dict[str, float]:
    """The largest value of each exact quantity over the seeds; of the least growth, the smallest."""
    found: dict[str, list[float]] = {}
    for row in records.select(records.measurements, part=EXACT):
        found.setdefault(row["quantity"], []).append(row["value"])
    return {name: (min if name.startswith("least") else max)(values) for name, values in found.items()}


def least(records: Records, quantity: str) -> float:
    """Its smallest value over the seeds."""
    return min(records.measured(quantity, part=EXACT).values())


def _missing(claim: str) -> Finding:
    return Finding(BY_ID[claim], Verdict.inconclusive, "Nothing was measured.")


def v1(records: Records) -> Finding:
    """The loss does not change, and the gradient is orthogonal and shrinks with the scale."""
    values, tolerance = worst(records), records.settings["tolerance"]
    if not values:
        return _missing("V1")
    scale = records.settings["exact"]["scale"]
    return exact(
        BY_ID["V1"],
        max(values["loss"], values["orthogonal"], values["gradient"]) <= tolerance,
        f"Weights {scale:g} times as large change the loss by a relative {values['loss']:.1e}; their gradient is "
        f"1 / {scale:g} of what it was up to {values['gradient']:.1e}, and orthogonal to them up to a cosine of "
        f"{values['orthogonal']:.1e} (float64, eps = 0, tolerance {tolerance:g}).",
    )


def v1_2(records: Records) -> Finding:
    """Trainings on an iso-line are the same, and others are not."""
    values, tolerance = worst(records), records.settings["tolerance"]
    if not values:
        return _missing("V1.2")
    apart = least(records, "sgd_same")
    scale, steps = (records.settings["exact"][key] for key in ("scale", "steps"))
    return exact(
        BY_ID["V1.2"],
        values["sgd"] <= tolerance < apart,
        f"Over {steps} steps of SGD with momentum and weight decay, weights {scale:g} times as large at {scale**2:g} "
        f"times the rate and 1 / {scale**2:g} of the decay have the same losses up to a relative {values['sgd']:.1e}; "
        f"at the same rate and decay they differ by at least {apart:.1e} (float64, tolerance {tolerance:g}).",
    )


def v1_3(records: Records) -> Finding:
    """|w|² grows by lr² |g|² in each step."""
    values, tolerance = worst(records), records.settings["tolerance"]
    if not values:
        return _missing("V1.3")
    first, last = ({**_at(records, f"{OFF}: square", end)} for end in (min, max))
    grown = t_interval([last[s] / first[s] for s in first.keys() & last.keys()])
    return exact(
        BY_ID["V1.3"],
        values["growth"] <= tolerance and values["least_growth"] > 0,
        f"In each step of plain SGD |w|² grows by lr² |g|² up to a relative {values['growth']:.1e}, and so never falls "
        f"(smallest relative growth {values['least_growth']:.1e}). In the network without decay, with momentum, the "
        f"mean |w|² from the first to the last epoch's end grows by a factor of {in_words(grown, '')}.",
    )


def _at(records: Records, quantity: str, end: Any) -> dict[int, float]:
    """Its value at the first or the last step, by seed."""
    rows = records.select(records.measurements, part=ARMS, quantity=quantity)
    step = end((row["x"] for row in rows), default=None)
    return {int(row["seed"]): row["value"] for row in rows if row["x"] == step}


def v1_4(records: Records) -> Finding:
    """Adam's steps do not see the gradient's scale, so its effective rate is lr / |w|: not the same, not 1 / |w|²."""
    values, tolerance = worst(records), records.settings["tolerance"]
    if not values:
        return _missing("V1.4")
    same, squared = (least(records, name) for name in ("adam_same", "adam_squared"))
    scale = records.settings["exact"]["scale"]
    return exact(
        BY_ID["V1.4"],
        values["adam"] <= tolerance < min(same, squared),
        f"Adam (eps = 0) from weights {scale:g} times as large has the same losses at {scale:g} times the rate (up to "
        f"a relative {values['adam']:.1e}); they differ by at least {same:.1e} at the same rate and {squared:.1e} at "
        f"{scale**2:g} times the rate. So the effective rate is lr / |w|, where SGD's is lr / |w|².",
    )


# --- networks ---


def chosen(records: Records) -> tuple[Cell | None, Cell | None]:
    """(rate, decay) of the best mean validation accuracy with weight decay and without."""
    grid = records.settings["grid"]

    def best(decays: list[float]) -> Cell | None:
        means = {
            (rate, decay): fmean(values)
            for rate in grid["rates"]
            for decay in decays
            if (values := _points(records, "val_accuracy", (rate, decay)).values())
        }
        return max(means, key=lambda cell: means[cell], default=None)

    return best([d for d in grid["decays"] if d > 0]), best([0.0])


def _points(records: Records, column: str, cell: Cell) -> dict[int, float]:
    """Accuracy in percent of a cell of the grid, by seed; a run that diverged counts as chance."""
    rows = records.select(records.runs, part=GRID, rate=cell[0], decay=cell[1])
    values = {}
    for row in rows:
        if row["status"] == "diverged":
            values[int(row["seed"])] = 10.0  # ten classes
        elif row.get(column) is not None:
            values[int(row["seed"])] = 100 * float(row[column])
    return values


def v1_5(records: Records) -> Finding:
    """The best cell with decay against the best without."""
    margin = records.settings["margin_points"]
    with_it, without = chosen(records)
    if with_it is None or without is None:
        return _missing("V1.5")
    differences = paired(*(_points(records, "test_accuracy", cell) for cell in (with_it, without)))
    lead = (
        f"Chosen on validation data: rate {with_it[0]:g} with decay {with_it[1]:g}, rate {without[0]:g} without. With "
        "decay less without, each tuned: {effect}."
    )
    return equal(BY_ID["V1.5"], differences, margin, UNIT, lead)


def arm(records: Records, name: str, quantity: str = "test") -> dict[int, float]:
    """An arm's number at the end, by seed."""
    return records.measured(f"{name}: {quantity}", part=ARMS)


def v2(records: Records) -> Finding:
    """On less off."""
    rate = f"Decay {records.settings['arms']['decay']:g} on less off, the same rate: " + "{effect}."
    margin = records.settings["margin_points"]
    return greater(BY_ID["V2"], paired(arm(records, ON), arm(records, OFF)), UNIT, margin=margin, found=rate)


def v2_2(records: Records) -> Finding:
    """Corrected against on; where decay did not help there is nothing to recover."""
    margin = records.settings["margin_points"]
    benefit = t_interval(paired(arm(records, ON), arm(records, OFF)))
    reverse = t_interval(paired(arm(records, REVERSE), arm(records, OFF)))
    gained = t_interval(paired(arm(records, CORRECTED), arm(records, OFF)))
    lead = "Without decay at the corrected rates, less with decay: {effect}. "
    finding = equal(
        BY_ID["V2.2"],
        paired(arm(records, CORRECTED), arm(records, ON)),
        margin,
        UNIT,
        f"{lead}Less without decay and uncorrected: {in_words(gained, 'points')}. The reverse, with decay at the rates "
        f"of the run without, less that run: {in_words(reverse, 'points')}.",
    )
    if finding.verdict is Verdict.reproduced and not benefit.low > 0:
        said = f"{finding.found} But decay itself brought {in_words(benefit, 'points')}: there is nothing to recover."
        return Finding(finding.claim, Verdict.inconclusive, said, finding.effect, finding.unit)
    return finding


# --- tables ---


def grid_table(records: Records) -> Table:
    """Test accuracy and effective rate of each cell."""
    grid = records.settings["grid"]
    rows = [
        {
            "weight decay": decay,
            "rate": rate,
            "validation accuracy, %": _interval(_points(records, "val_accuracy", (rate, decay))),
            "test accuracy, %": _interval(_points(records, "test_accuracy", (rate, decay))),
            "growth of |w|²": _interval(records.measured("growth", part=GRID, rate=rate, decay=decay)),
            "effective rate at the end": _interval(
                records.measured("effective_rate", part=GRID, rate=rate, decay=decay)
            ),
            "diverged": sum(
                row["status"] == "diverged" for row in records.select(records.runs, part=GRID, rate=rate, decay=decay)
            ),
        }
        for decay in grid["decays"]
        for rate in grid["rates"]
    ]
    n = records.settings["seeds"]
    title = f"Weight decay by learning rate; |w|² is the geometric mean over layers; 95% intervals over n={n} seeds."
    return Table("grid", title, rows)


def arms_table(records: Records) -> Table:
    """The four arms at the end."""
    rows = [
        {
            "arm": name,
            "test accuracy, %": _interval(arm(records, name)),
            "training loss": _interval(arm(records, name, "train")),
            "|w|²": _interval(_at(records, f"{name}: square", max)),
            "effective rate": _interval(_at(records, f"{name}: rate", max)),
        }
        for name in (ON, OFF, CORRECTED, REVERSE)
    ]
    n = records.settings["seeds"]
    title = f"Weight decay on and off, and at each other's effective rates, at the end; 95% intervals over n={n} seeds."
    return Table("arms", title, rows)


def exact_table(records: Records) -> Table:
    """What holds exactly."""
    names = {
        "loss": "loss at a w",
        "orthogonal": "cosine of w and its gradient",
        "gradient": "a times the gradient at a w",
        "growth": "|w|² + lr² |g|² against the next |w|²",
        "least_growth": "smallest relative growth of |w|²",
        "sgd": "SGD from a w: a² lr, decay / a²",
        "sgd_same": "SGD from a w: same rate and decay",
        "adam": "Adam from a w: a lr",
        "adam_same": "Adam from a w: same rate",
        "adam_squared": "Adam from a w: a² lr",
    }
    values = worst(records)
    rows = [{"of": text, "largest relative error": values.get(name)} for name, text in names.items()]
    title = f"Identities in float64, a = {records.settings['exact']['scale']:g}: the largest error over the seeds."
    return Table("exact", title, rows)


def _interval(values: dict[int, float]) -> Interval:
    return t_interval(list(values.values()))
