"""Errors that are planted where results come from are caught by the verdicts that rest on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.evidence import State, Verdict, judge
from bnrepro.claims.paper import Claim
from bnrepro.claims.results import RUN_COLUMNS, Row
from bnrepro.data.dataset import load
from bnrepro.experiments.keras_curves import in_lockstep
from bnrepro.norm import function, native
from tests.experiments.test_papers import PAPERS, committed, is_awaited


def lockstep() -> State:
    """What K3 says of the largest difference between two trainings, custom BN's and the framework's."""
    paper = PAPERS["keras_curves"]
    design = paper.designed(paper.settings("smoke"))
    (probe, *_) = [each for each in design.probes if each.factors == {"pair": "same settings"}]
    assert probe.data
    data = load(probe.data, torch.device("cpu"))
    rows = in_lockstep.function(data=data, seed=0, **probe.arguments | {"steps": 4})
    rows = [{"part": "lockstep", "pair": "same settings", "seed": 0, **row} for row in rows]
    claim = next(claim for claim in paper.claims if claim.id == "K3")
    effects = claim.evidence(Results("full", [], [], rows), paper.settings("full")).effects
    (apart,) = [
        effect for effect in effects if effect.rule.name == "exact" and effect.condition.startswith("training loss")
    ]
    assert apart.seeds
    holds = apart.rule.p_values(list(apart.seeds.values()))[0] == 0
    return State.holds if holds else State.fails


def without_mean(dx: Any, dy: Any, xhat: Any, axes: tuple[int, ...], scale: Any) -> Any:
    return dx + scale * dy.mean(axes, keepdim=True)


def without_projection(dx: Any, dy: Any, xhat: Any, axes: tuple[int, ...], scale: Any) -> Any:
    return dx + scale * xhat * (dy * xhat).mean(axes, keepdim=True)


def outside_the_gradient(dx: Any, dy: Any, xhat: Any, axes: tuple[int, ...], scale: Any) -> Any:
    return scale * dy


def wrong_sign(dx: Any, dy: Any, xhat: Any, axes: tuple[int, ...], scale: Any) -> Any:
    return -dx


@pytest.mark.parametrize("error", [without_mean, without_projection, outside_the_gradient, wrong_sign, "weight"])
def test_wrong_gradient_is_caught(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "plan", lambda *args: None)
    monkeypatch.setattr(native, "layer_plan", lambda *args: None)
    assert lockstep() is State.holds
    right = function._gradients

    def wrong(x: Any, dy: Any, weight: Any, mean: Any, var: Any, axes: tuple[int, ...], eps: float, *more: Any) -> Any:
        dx, dweight, dbias = right(x, dy, weight, mean, var, axes, eps, *more)
        if error == "weight":
            return dx, -dweight, dbias  # but for its sign, Adam does not see its scale
        rstd = (var + eps).rsqrt()
        scale = rstd if weight is None else rstd * weight
        return error(dx, dy, (x - mean) * rstd, axes, scale), dweight, dbias

    monkeypatch.setattr(function, "_gradients", wrong)
    assert lockstep() is State.fails


def swapped(results: Results, key: str, first: Any, second: Any) -> Results:
    """The same with two labels of a factor exchanged in all records.

    Where the two have sweeps of their own, the rates of one become those of the other, from the smallest to the
    largest: otherwise the claim would find no records, and the exchange would show nothing.
    """
    other = {first: second, second: first}
    sweeps: dict[Any, dict[str, set[float]]] = {label: defaultdict(set) for label in other}
    for row in (*results.runs, *results.measurements):
        if (label := row.get(key)) in other:
            for name, level in row.items():
                if name != key and name not in NO_LABELS and isinstance(level, int | float):
                    sweeps[label][name].add(level)
    renamed: dict[Any, dict[tuple[str, float], float]] = {label: {} for label in other}
    for name in sweeps[first].keys() & sweeps[second].keys():
        here, there = (sorted(sweeps[label][name]) for label in (first, second))
        if here != there and len(here) == len(there):
            for one, two in zip(here, there, strict=True):
                renamed[first][name, one], renamed[second][name, two] = two, one

    def change(rows: list[Row]) -> list[Row]:
        return [exchanged(row, renamed[row[key]]) if row.get(key) in other else row for row in rows]

    def exchanged(row: Row, levels: dict[tuple[str, float], float]) -> Row:
        moved = {name: levels[name, row[name]] for name, _ in levels if (name, row.get(name)) in levels}
        return {**row, **moved, key: other[row[key]]}

    return Results(results.preset, change(results.runs), change(results.curves), change(results.measurements))


def swaps(results: Results) -> Iterator[Results]:
    """``results`` with two labels exchanged: all pairs of a factor's names, and its smallest and largest number."""
    levels: dict[str, set[Any]] = {}
    for row in (*results.runs, *results.measurements):
        for key, level in row.items():
            if key not in NO_LABELS and isinstance(level, str | int | float):
                levels.setdefault(key, set()).add(level)
    for key, found in levels.items():
        numbers = sorted(level for level in found if not isinstance(level, str))
        names = sorted(level for level in found if isinstance(level, str))
        pairs = [*combinations(names[:20], 2), *([(numbers[0], numbers[-1])] if len(numbers) > 1 else [])]
        for first, second in pairs:
            yield swapped(results, key, first, second)


NO_LABELS = {*RUN_COLUMNS, "seed", "value"} - {"variant"}


def compares(claim: Claim, results: Results, settings: Any) -> bool:
    """Whether the claim is reproduced, and says that one thing is more, or less, than another."""
    evidence = claim.evidence(results, settings)
    signed = [effect for effect in evidence.effects if effect.rule.bar == (1.0 if effect.rule.ratio else 0.0)]
    return judge(evidence).verdict is Verdict.reproduced and bool(signed) and claim.kind == "empirical"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAPERS if not is_awaited(name)])
def test_swapped_labels_undo_what_is_reproduced(name: str) -> None:
    results, settings = committed(name)
    undone = (Verdict.not_reproduced, Verdict.partly, Verdict.not_testable)
    claims = [claim for claim in PAPERS[name].claims if compares(claim, results, settings)]
    for other in swaps(results) if claims else ():
        claims = [claim for claim in claims if verdict(claim, other, settings) not in undone]
        if not claims:
            break
    assert [claim.id for claim in claims] == []


def verdict(claim: Claim, results: Results, settings: Any) -> Verdict | None:
    """None where the claim's function finds labels that there cannot be."""
    try:
        return judge(claim.evidence(results, settings)).verdict
    except (ValueError, KeyError, IndexError, ZeroDivisionError):
        return None
