"""Recomputes the evidence in results/claims.json with NumPy and SciPy, and none of this package's code.

    python scripts/check_evidence.py [RESULTS]

For every claim: that its rules, bars, margins, scale and gate are those of its registered design; each effect's mean
and interval from its seeds' values, the p values, Holm's correction, the state of each effect, the verdict, the
deciding effect, the margins at which the verdict flips, and, where a design has looks, its levels and that no earlier
look had decided. Then each effect's values are computed anew from the experiment's CSV files: by its recipe
(recipes.py); or else they are looked for as a recorded quantity or its mean, or as a difference or ratio of two of the
same part that agrees for every seed. RESULTS/origins.json holds where each was found, for a reader to judge: arms that
change places, or values that are found no more, are a difference. What is in no file (a part of a curve, a fit, a
truth) rests on the values that are stored with the claim, and is counted. --write writes origins.json; --verbose
prints it. Ends with 1 on any difference.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from recipes import RECIPES, Experiment
from scipy import stats

ALPHA = 0.05
REGISTERED = Path(__file__).parent.parent / "configs" / "registered"
CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}
RESULTS_OF_RUNS = ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_accuracy", "train_loss")
NO_FACTORS = {
    *("seed", "status", "steps", "diverged_at_step", "parameters", "buffers", "threads", "seconds", "precision"),
    *("device", "config_hash", "step", "epoch", "lr", "quantity", "x", "value", *RESULTS_OF_RUNS),
}
Row = dict[str, Any]


# --- statistics ---------------------------------------------------------------------------------------------------


def values_of(effect: Row) -> np.ndarray:
    """By seed; of a ratio, logarithms."""
    found = np.array([math.nan if v is None else v for v in effect["seeds"].values()], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(found) if effect["ratio"] else found


def one_sided(values: np.ndarray, bound: float, side: str) -> float:
    """Student's p value of a mean that is at most (``greater``) or at least (``less``) ``bound``."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    if not np.ptp(values - bound):  # no spread: t is infinite, or 0
        off = values[0] - bound if side == "greater" else bound - values[0]
        return 0.0 if off > 0 else 1.0 if off < 0 else 0.5
    return float(stats.ttest_1samp(values, bound, alternative=side).pvalue)


def is_share(effect: Row) -> bool:
    """Whether each seed has it (100) or has not (0)."""
    seeds = {*effect["seeds"].values()}
    return (
        effect["unit"] == "% of seeds" and effect["rule"] in ("greater", "less") and bool(seeds) and seeds <= {0, 100}
    )


def share_beyond(values: np.ndarray, bound: float, side: str) -> float:
    """The exact binomial p value of a share that is at most (``greater``) or at least (``less``) ``bound`` percent."""
    share = min(max(bound / 100, 0.0), 1.0)
    return float(stats.binomtest(int((values == 100).sum()), len(values), share, alternative=side).pvalue)


def p_values(effect: Row, factor: float = 1.0) -> tuple[float, float]:
    """Of what must be rejected for the effect to hold, and to fail, with margins times ``factor``."""
    values, name, bar, margin = values_of(effect), effect["rule"], effect["bar"], effect["margin"]
    if not len(values):
        return math.nan, math.nan
    if name == "exact":
        holds = bool((values <= (bar or 0.0)).all())
        return (0.0, 1.0) if holds else (1.0, 0.0)
    if effect["ratio"]:
        bar, margin = (None if each is None else math.log(each) for each in (bar, margin))
    if margin is not None:
        margin *= factor
    elif name == "greater" and not effect["ratio"] and bar < 0:  # no loss: its bar is a margin
        bar *= factor
    if name == "equal":
        inside = max(one_sided(values, -margin, "greater"), one_sided(values, margin, "less"))
        outside = min(one_sided(values, margin, "greater"), one_sided(values, -margin, "less"))
        return inside, min(1.0, 2 * outside)
    opposite = {"greater": "less", "less": "greater"}[name]
    matters = bar if margin is None else max(bar, margin) if name == "greater" else min(bar, margin)
    beyond = share_beyond if is_share(effect) else one_sided
    return min(1.0, 2 * beyond(values, bar, name)), min(1.0, 2 * beyond(values, matters, opposite))


def rejected(p: list[float], is_random: list[bool], level: float) -> list[bool]:
    """Holm's step-down procedure over the effects that are random; the others are as they are."""
    found = [not random and value <= level for value, random in zip(p, is_random, strict=True)]
    order = sorted((i for i, random in enumerate(is_random) if random and p[i] == p[i]), key=lambda i: p[i])
    for step, i in enumerate(order):
        if p[i] > level / (sum(is_random) - step):
            break
        found[i] = True
    return found


def judged(effects: list[Row], level: float, factor: float = 1.0) -> tuple[str, list[str], list[tuple[float, float]]]:
    """The verdict, the state of each effect, and its p values."""
    p = [p_values(effect, factor) for effect in effects]
    is_random = [effect["rule"] != "exact" for effect in effects]
    held, failed = (rejected([pair[side] for pair in p], is_random, level) for side in (0, 1))
    if all(pair[0] <= (level if random else ALPHA) for pair, random in zip(p, is_random, strict=True)):
        held = [True] * len(effects)  # each at the whole level: an intersection-union test
    names = {(True, False): "holds", (True, True): "holds, and is negligible", (False, True): "fails"}
    states = [names.get(pair, "open") for pair in zip(held, failed, strict=True)]
    if not any(effect["seeds"] for effect in effects):
        return "inconclusive", [], p
    if set(states) == {"holds"}:
        return "reproduced", states, p
    if any(state.startswith("holds") for state in states):
        return "partly", states, p
    return "not reproduced" if "fails" in states else "inconclusive", states, p


def deciding(verdict: str, states: list[str], p: list[tuple[float, float]]) -> int:
    """The weakest effect of those that had to hold, or the one that stood against the claim."""
    against = None
    if verdict == "partly":
        against = next(s for s in ("fails", "open", "holds, and is negligible") if s in states)
    elif verdict == "not reproduced":
        against = "fails"
    among = [i for i, state in enumerate(states) if against in (None, state)]
    if against == "fails":
        return min(among, key=lambda i: p[i][1])
    return max(among, key=lambda i: (1.0 if math.isnan(p[i][0]) else p[i][0], -i))


def levels(looks: list[int]) -> list[float]:
    """What each look spends of 5%, along a Pocock-type function."""
    spent = ALPHA * np.log1p((math.e - 1) * np.array(looks) / looks[-1])
    return [float(each) for each in np.diff(spent, prepend=0.0)]


# --- one claim ----------------------------------------------------------------------------------------------------


def check(claim: Row, looks: list[int]) -> list[str]:
    """What in ``claim`` is not as its effects' values say."""
    wrong: list[str] = []

    def same(what: str, stored: Any, found: Any) -> None:
        number = isinstance(stored, float | int) and isinstance(found, float | int)
        if not (math.isclose(stored, found, **CLOSE) if number else stored == found):
            wrong.append(f"{claim['id']}: {what} is {stored!r}, and comes out as {found!r}")

    effects, look, gate = claim["effects"], claim["look"], claim["gate"]
    level = ALPHA
    if looks and not look and any(effect["rule"] != "exact" for effect in effects):
        wrong.append(f"{claim['id']}: its design has looks, and it is judged without")
    if gate and gate["value"] is not None:
        side, _, bound = gate["needed"].rpartition(" ")
        value, at = gate["value"], float(bound)
        same("gate", gate["passed"], value >= at if side == "at least" else value <= at)
    if look:
        same("number of looks", look["of"], len(looks))
        level = levels(looks)[max(look["number"] - 1, 0)]
    for place, effect in enumerate([*effects, *claim["beside"]]):
        for what, stored, found in intervals(effect, level if effect["rule"] != "exact" else None):
            same(f"{what} of effect {place} ({effect['condition']})", stored, found)
    if not effects:
        # Nothing was measured, or the claim gives a reason why it is not judged.
        expected = "inconclusive" if claim["answer"].startswith("Open:") else "not testable here"
        if claim["withdrawn"]:
            expected = "not testable here"
        elif gate and gate["passed"] is False:
            expected = "not testable at this length"
        if claim["verdict"] != expected:
            wrong.append(f"{claim['id']}: nothing is judged, and the verdict is {claim['verdict']}")
        return wrong
    if gate and not gate["passed"]:
        wrong.append(f"{claim['id']}: its gate did not pass, and it is judged")
    verdict, states, p = judged(effects, level)
    if look and look["number"] == 0:  # before the first look
        states = [s if e["rule"] == "exact" else "open" for s, e in zip(states, effects, strict=True)]
        same("verdict", claim["verdict"], "inconclusive")
    else:
        same("verdict", claim["verdict"], verdict)
        same("deciding effect", claim["deciding"], deciding(verdict, states, p))
        for key in ("rule", "unit", "bar", "margin"):
            same(key, claim[key], effects[claim["deciding"]][key])
        if claim["kind"] == "identity":
            same("flips_at", claim["flips_at"], [])
        else:
            others = {f: judged(effects, level, f)[0] for f in (0.5, 2.0)}
            same("flips_at", claim["flips_at"], [f for f, other in others.items() if other != verdict])
            if "at_margins" in claim:  # not in those of earlier designs
                same("at_margins", claim["at_margins"], {f"{f:g}": other for f, other in others.items()})
    same("states", [effect["state"] for effect in effects], states)
    return wrong + (at_looks(claim, looks) if look and look["number"] else [])


def intervals(effect: Row, level: float | None) -> list[tuple[str, Any, Any]]:
    """(what, as stored, as recomputed) of mean and interval."""
    values = values_of(effect)
    if effect["rule"] == "exact":
        values = values[[int(np.argmax(np.abs(values)))]] if len(values) else values
    confidence = effect["confidence"]
    found: list[float | None] = [None, None, None]
    if len(values):
        mean = float(values.mean())
        half = math.nan
        if len(values) > 1 and np.isfinite(values).all():
            half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))
        found = [mean, mean - half, mean + half]
        if is_share(effect):
            count = int((values == 100).sum())
            exact = stats.binomtest(count, len(values)).proportion_ci(confidence, method="exact")
            found = [mean, 100 * float(exact.low), 100 * float(exact.high)]
        if effect["ratio"]:
            found = [math.exp(min(each, 700)) if each == each else each for each in found]
        found = [each if math.isfinite(each) else None for each in found]
    pairs = [(end, effect[end], each) for end, each in zip(("mean", "low", "high"), found, strict=True)]
    pairs.append(("n", effect["n"], len(values)))
    if level is not None:
        tails = 2 if effect["rule"] == "equal" else 1
        pairs.append(("confidence", confidence, 1 - tails * level))
    return pairs


def at_looks(claim: Row, looks: list[int]) -> list[str]:
    """Whether each random effect has the look's seeds, and every earlier look left something open."""
    number, seeds = claim["look"]["number"], claim["look"]["seeds"]
    wrong = []
    if looks[number - 1] != seeds:
        wrong.append(f"{claim['id']}: look {number} is at {looks[number - 1]} seeds, and not at {seeds}")
    for k, level in zip(looks[: number - 1], levels(looks), strict=False):
        early = [{**e, "seeds": {s: v for s, v in e["seeds"].items() if int(s) < k}} for e in claim["effects"]]
        if "open" not in judged(early, level)[1]:
            wrong.append(f"{claim['id']}: the look at {k} seeds had decided it")
    before = looks[number - 2] if number > 1 else 0  # of a network that diverged there may be no value
    if any(e["rule"] != "exact" and not before < len(e["seeds"]) <= seeds for e in claim["effects"]):
        wrong.append(f"{claim['id']}: an effect has not the {seeds} seeds of its look")
    return wrong


def against_registration(claims: list[Row], design: Row, report: str) -> list[str]:
    """What in the claims of a paper is not as its design was registered.

    A sentence may be made more exact, if the report shows the registered one beside it.
    """
    known = {claim["id"]: claim for claim in design["claims"]}
    mine = {claim["id"].rpartition("/")[2]: claim for claim in claims}
    paper = claims[0]["paper"]
    wrong = [f"{paper}/{id}: it is registered or judged, and not both" for id in known.keys() ^ mine.keys()]
    for id, claim in mine.items():
        design = known.get(id, claim)
        sentence = design.get("sentence", "")
        if claim["sentence"] != sentence and f"\N{LEFT DOUBLE QUOTATION MARK}{sentence}" not in report:
            wrong.append(f"{claim['id']}: its sentence is not the registered one, which the report does not show")
        for key in ("kind", "scale", "scale_note"):
            if claim[key] != design.get(key, ""):
                wrong.append(f"{claim['id']}: its {key} is {claim[key]!r}, and was registered as {design.get(key)!r}")
        rules, judged_by = ({_rule(effect) for effect in each.get("effects", ())} for each in (design, claim))
        if rules and (other := {rule for rule in judged_by if rule != ("exact", None, None, False)} - rules):
            wrong.append(f"{claim['id']}: a rule, bar or margin is not as registered: {sorted(map(str, other))}")
        gate, gates = claim["gate"], design.get("gate") or ""
        # Where an experiment was run in part, a claim of which nothing was measured has no gate yet.
        missing = gate is None and gates and claim["effects"]
        if missing or (gate and f"{gate['what']}: {gate['needed']}" not in gates):
            wrong.append(f"{claim['id']}: its gate is not the registered one ({gates})")
    return wrong


def _rule(effect: Row) -> tuple[str, float | None, float | None, bool]:
    return effect["rule"], effect.get("bar"), effect.get("margin"), effect.get("ratio", False)


# --- the values themselves ----------------------------------------------------------------------------------------


class Recorded:
    """What an experiment's CSV files hold, as one row of numbers a quantity: its values by seed."""

    def __init__(self, folder: Path) -> None:
        by_part: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        along: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))  # over steps and the like
        for name, columns in (("runs", RESULTS_OF_RUNS), ("curves", RESULTS_OF_RUNS), ("measurements", ("value",))):
            with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    factors = [f"{key}={v}" for key, v in row.items() if v and key not in NO_FACTORS]
                    point = [row[key] for key in ("step", "quantity", "x") if row.get(key)]
                    for column in columns:
                        if row.get(column):
                            what = ", ".join([*factors, name, *point, column])
                            by_part[row["part"]][what][int(row["seed"])] = float(row[column])
                            if row.get("x"):
                                whole = ", ".join([*factors, f"mean of {row['quantity']}"])
                                along[row["part"]][whole][int(row["seed"])].append(float(row[column]))
        for part, wholes in along.items():
            for whole, by_seed in wholes.items():
                by_part[part][whole] = {seed: float(np.mean(each)) for seed, each in by_seed.items()}
        self.parts = by_part
        self.matrices: dict[tuple[str, tuple[int, ...]], tuple[list[str], np.ndarray]] = {}

    def matrix(self, part: str, seeds: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
        """The quantities of ``part`` that have all ``seeds``, in order of the first seed's value."""
        if (part, seeds) not in self.matrices:
            held = {what: by for what, by in self.parts[part].items() if by.keys() >= set(seeds)}
            names = sorted(held, key=lambda what: held[what][seeds[0]])
            table = np.array([[held[what][seed] for seed in seeds] for what in names]).reshape(len(names), len(seeds))
            self.matrices[part, seeds] = names, table
        return self.matrices[part, seeds]

    def origin(self, effect: Row) -> str | None:
        """Where an effect's values come from; None where it is more than a column, a difference or a ratio."""
        seeds = tuple(map(int, effect["seeds"]))
        values = np.array([math.nan if v is None else v for v in effect["seeds"].values()], dtype=float)
        if not np.any(values) or not np.isfinite(values).all() or effect["bar"] is effect["margin"] is None:
            return None  # zeros are everywhere, and a truth is no number
        for part in self.parts:
            names, table = self.matrix(part, seeds)
            if len(names) and (found := _origin(names, table, values, alone=len(values) < 3)):
                return f"{part}: {found}"
        return None


def _origin(names: list[str], table: np.ndarray, values: np.ndarray, alone: bool) -> str | None:
    """``values`` as a row of ``table``, a difference, or a ratio; of one or two values, which many are, a row alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(table)
    for scale in (1.0, 100.0):
        for sign in (1.0, -1.0):
            if (hit := _row_like(table, sign * values / scale)) is not None:
                return f"{'-' * (sign < 0)}{names[hit]}"
        if not alone and (pair := _difference(table, values / scale)):
            return f"{names[pair[0]]} minus {names[pair[1]]}"
    if alone:
        return None
    forms = [values, values * math.log(10), values * math.log(2)]  # natural logarithms, decades, doublings
    if (values > 0).all():
        forms.append(np.log(values))
    for form in forms:
        for sign in (1.0, -1.0):
            if (hit := _row_like(logs, sign * form)) is not None:
                return f"{'-' * (sign < 0)}log of {names[hit]}"
        if pair := _difference(logs, form):
            return f"{names[pair[0]]} over {names[pair[1]]}"
    return None


def _row_like(table: np.ndarray, wanted: np.ndarray, size: float | None = None) -> int | None:
    """The row that equals ``wanted``, to nine digits of ``size``; rows are in order of their first column."""
    off = 1e-9 * (np.abs(wanted).max() if size is None else size) + 1e-14 * np.abs(wanted)
    first, last = np.searchsorted(table[:, 0], [wanted[0] - off[0], wanted[0] + off[0]])
    hits = np.flatnonzero((np.abs(table[first : last + 1] - wanted) <= off).all(axis=1))
    return int(first + hits[0]) if len(hits) else None


def _difference(table: np.ndarray, wanted: np.ndarray) -> tuple[int, int] | None:
    """Two rows whose difference is ``wanted``."""
    size = float(np.abs(wanted).max())
    for place, row in enumerate(table):
        if not np.isfinite(row).all() or size < 1e-6 * np.abs(row).max():  # of what rounds to nothing, nothing is known
            continue
        if (hit := _row_like(table, row - wanted, size)) is not None:
            return place, hit
    return None


def cooked(claim: Row, experiment: Experiment) -> list[str]:
    """What the recipe of a claim finds otherwise, of its effects over seeds."""
    found, wrong = RECIPES[claim["id"]](experiment), []
    effects = {effect["condition"]: effect for effect in claim["effects"] if effect["rule"] != "exact"}
    if effects and effects.keys() != found.keys():
        wrong.append(f"{claim['id']}: its conditions are {sorted(effects)}, and its recipe has {sorted(found)}")
    for condition, effect in effects.items():
        for seed, value in effect["seeds"].items():
            anew = found.get(condition, {}).get(int(seed), math.nan)
            if value is None or not math.isclose(value, anew, **CLOSE):
                wrong.append(f"{claim['id']}: {condition or 'its effect'} is {value} of seed {seed}, and {anew} anew")
                break
    return wrong


def main(results: Path, write: bool = False) -> int:
    """Check the claims in ``results``, and print what was found."""
    claims = json.loads((results / "claims.json").read_text(encoding="utf-8"))
    report = (results / "REPORT.md").read_text(encoding="utf-8") if (results / "REPORT.md").is_file() else ""
    wrong: list[str] = []
    origins: dict[str, str] = {}
    traced: Counter[str] = Counter()
    for paper in dict.fromkeys(claim["paper"] for claim in claims):
        mine = [claim for claim in claims if claim["paper"] == paper]
        folder = results / "experiments" / paper
        folder = folder if mine[0]["preset"] == "full" else folder / mine[0]["preset"]
        settings = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["settings"]
        recorded, experiment = Recorded(folder), Experiment(folder, settings)
        file, earlier = REGISTERED / f"{paper}.yaml", False
        if file.is_file() and mine[0]["preset"] == "full":
            registered = yaml.safe_load(file.read_text(encoding="utf-8"))
            earlier = {claim["design_hash"] for claim in mine} != {registered["hash"]}
            wrong += [] if earlier else against_registration(mine, registered["design"], report)
        for claim in mine:
            wrong += check(claim, settings.get("looks") or [])
            recipe = claim["id"] in RECIPES and not earlier  # recipes are of designs as they are registered
            wrong += cooked(claim, experiment) if recipe else []
            for effect in claim["effects"]:
                kind = "exact" if effect["rule"] == "exact" else "random"
                origin = "its recipe" if recipe and kind == "random" else recorded.origin(effect)
                traced[f"{kind}, {'CSV' if origin else 'stored'}"] += 1
                origins[f"{claim['id']} {effect['condition']}".strip()] = origin or "the stored values"
    places = [each.name for each in (results / "experiments").iterdir() if (each / "claims.json").is_file()]
    wrong += [f"{name}: it has results and no claim" for name in places if name not in {c["paper"] for c in claims}]
    wrong += _kept(origins, results / "origins.json", write)
    for line in wrong:
        print(line, file=sys.stderr)
    random, exact = (traced[f"{kind}, CSV"] + traced[f"{kind}, stored"] for kind in ("random", "exact"))
    print(
        f"{len(claims)} claims, {random + exact} effects: registered rules, means, intervals, states, verdicts, "
        f"deciding effects and flips recomputed, {len(wrong)} differences.\n"
        f"Values of {traced['random, CSV']} of {random} effects over seeds, and of {traced['exact, CSV']} of {exact} "
        "exact ones, were computed or found in the CSV files; the others rest on the values stored with the claim."
    )
    return 1 if wrong else 0


def _kept(origins: dict[str, str], file: Path, write: bool) -> list[str]:
    """Effects whose values come from elsewhere than ``file`` says, if it is there."""
    if "--verbose" in sys.argv:
        print("".join(f"{effect}: from {origin}\n" for effect, origin in origins.items()), end="")
    if write:
        file.write_text(json.dumps(origins, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else origins
    return [
        f"{effect}: its values come from {origins.get(effect)}, and {file.name} has {known.get(effect)}"
        for effect in sorted(origins.keys() | known.keys())
        if origins.get(effect) != known.get(effect)
    ]


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    home = Path(__file__).parent.parent / "results"
    sys.exit(main(Path(paths[0]) if paths else home, write="--write" in sys.argv))
