"""From the records of `frankle2021` to findings and tables."""

from __future__ import annotations

from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.cells import greater_everywhere
from bnrepro.experiments.frankle2021 import drawing
from bnrepro.experiments.frankle2021.claims import BY_ID
from bnrepro.experiments.frankle2021.networks import DEPTH, TRAINED, WIDTH
from bnrepro.experiments.judge import greater, in_words, not_testable, numbers
from bnrepro.stats import Interval, paired, t_interval

UNIT = "percentage points of test accuracy"
THIRD = 100 / 3  # percent
TOO_LARGE = "A network of 866 layers, and ImageNet, are beyond two cores; the depths that are not are in F1.2."


def analyse(records: Records) -> Analysis:
    """All findings in the order of the claims, with tables and figures."""
    return Analysis(judged(records), [table(records)], drawn(lambda: [drawing.sizes(records), drawing.gammas(records)]))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [f1(records), f1_2(records), f1_3(records), not_testable(BY_ID["F1.4"], TOO_LARGE)]


def points(records: Records, part: str, size: float, trained: str) -> dict[int, float]:
    """Test accuracy in percent of completed runs, by seed."""
    found = records.by_seed("test_accuracy", part=part, size=size, trained=trained)
    return {seed: 100 * value for seed, value in found.items()}


def sizes(records: Records) -> list[tuple[str, float, str]]:
    """(part, size, name) of every network."""
    base = records.settings["network"]
    deep = [(DEPTH, depth, f"{layers(depth)} layers") for depth in records.settings["depths"]]
    wide = [(WIDTH, w, f"{layers(base[DEPTH])} layers, width {w:g}") for w in records.settings["widths"]]
    return [*deep, *wide]


def layers(depth: int) -> int:
    """He et al.'s count: two in each block of three stages, the first, and the last."""
    return 6 * depth + 2


def f1(records: Records) -> Finding:
    """Gamma and beta less random weights, in every network."""
    differences = {
        name: paired(points(records, part, size, "norm"), points(records, part, size, "random"))
        for part, size, name in sizes(records)
    }
    lead = "Only gamma and beta, less as many other weights"
    finding = greater_everywhere(BY_ID["F1"], differences, records.settings["margin_points"], UNIT, lead)
    alone = {
        name: paired(points(records, part, size, "norm"), points(records, part, size, "last"))
        for part, size, name in sizes(records)
    }
    last = [f"{name} {numbers(t_interval(values))}" for name, values in alone.items()]
    said = f"{finding.found} Less the logits' layer alone: {'; '.join(last)}."
    return Finding(finding.claim, finding.verdict, said, finding.effect, finding.unit)


def f1_2(records: Records) -> Finding:
    """The deepest network less the shallowest, gamma and beta only."""
    depths = records.settings["depths"]
    ends = [points(records, DEPTH, depth, "norm") for depth in (max(depths), min(depths))]
    top = in_words(t_interval(list(ends[0].values())), "%")
    return greater(
        BY_ID["F1.2"],
        paired(*ends),
        UNIT,
        margin=records.settings["margin_points"],
        found=f"{layers(max(depths))} layers reach {top} with only gamma and beta trained; less {layers(min(depths))} "
        "layers: {effect}.",
    )


def f1_3(records: Records) -> Finding:
    """More disabled than by training everything, and around a third."""
    depth, about = max(records.settings["depths"]), records.settings["around_points"]
    shares = {t: records.measured("disabled", part=DEPTH, size=depth, trained=t) for t in ("norm", "all")}
    at_start = t_interval(list(records.measured("disabled_at_start", part=DEPTH, size=depth, trained="norm").values()))
    share = t_interval(list(shares["norm"].values()))
    more = greater(BY_ID["F1.3"], paired(shares["norm"], shares["all"]), "percentage points of the gammas")
    near = THIRD - about < share.low and share.high < THIRD + about
    verdict = Verdict.partly if more.verdict is Verdict.reproduced and not near else more.verdict
    found = (
        f"With only gamma and beta trained, {in_words(share, '% of the gammas')} of {layers(depth)} layers end below "
        f"{records.settings['threshold']:g} in size ({numbers(at_start)}% at the start); less those where all is "
        f"trained: {more.found}. Around a third: within {about:g} points of {THIRD:.0f}%."
    )
    return Finding(more.claim, verdict, found, more.effect, more.unit)


def table(records: Records) -> Table:
    """Every network by what is trained."""
    rows = [
        {
            "network": name,
            "trained": trained,
            "parameters trained": _whole(records.measured("trained", part=part, size=size, trained=trained)),
            "test accuracy, %": t_interval(list(points(records, part, size, trained).values())),
            "gammas near 0, %": _interval(records.measured("disabled", part=part, size=size, trained=trained)),
            "diverged": sum(
                row["status"] == "diverged"
                for row in records.select(records.runs, part=part, size=size, trained=trained)
            ),
        }
        for part, size, name in sizes(records)
        for trained in TRAINED
    ]
    n = records.settings["seeds"]
    title = f"Residual networks by what is trained, the rest as drawn; 95% intervals over n={n} seeds."
    return Table("accuracies", title, rows)


def _interval(values: dict[int, float]) -> Interval:
    return t_interval(list(values.values()))


def _whole(values: dict[int, float]) -> int | None:
    return round(next(iter(values.values()))) if values else None
