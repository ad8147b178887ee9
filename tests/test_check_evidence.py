"""The independent recomputation agrees with the package, and finds what was changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bnrepro.claims import Evidence, Gate, Results, equal, exact, greater, less, not_lower, reaches
from bnrepro.claims.conclusion import conclude
from bnrepro.claims.records import Records, save
from bnrepro.report import report
from tests.claims import made_up
from tests.claims.made_up import Settings, varied

ROOT = Path(__file__).parent.parent
Row = dict[str, Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return import_module("check_evidence")


VALUES = {"a": (2.0, 0.3), "b": (0.1, 0.2), "c": (-1.0, 0.4), "d": (1.0, 3.0), "e": (1.3, 0.01)}
"""Mean and spread of conditions: one that holds, one that is slight, one that fails, one that is open, and a ratio."""


def records(seeds: int, **settings: Any) -> Records:
    rows = [
        {"part": part, "seed": seed, "quantity": "x", "x": None, "value": mean + spread * (-1) ** seed * (1 + seed / 9)}
        for part, (mean, spread) in VALUES.items()
        for seed in range(seeds)
    ]
    about: Row = {"experiment": "made_up", "command": "bnrepro reproduce made_up", "failed": [], "data": []}
    about |= {"seconds": {"a": {"runs": 0.0, "measurements": 1.0}}, "machines": [], "versions": []}
    return Records("full", [], [], rows, settings, about)


def of(*parts: str, rule: Callable[..., Evidence] = greater, **more: Any) -> Callable[[Results, Settings], Evidence]:
    return lambda r, s: rule({part: r.measured("x", part=part) for part in parts}, "x", "points", **more)


def trained(least: float) -> Callable[[Results, Settings], Gate]:
    return lambda r, s: reaches(r.measured("x", part="a"), least, "x")


CLAIMS: dict[str, Row] = {
    "holds": {"evidence": of("a", margin=0.5)},
    "slight": {"evidence": of("b", margin=0.5)},
    "fails": {"evidence": of("c", margin=0.5)},
    "open": {"evidence": of("d", margin=0.5)},
    "some": {"evidence": of("a", "b", "c", "d", margin=0.5)},
    "less": {"evidence": of("c", "d", rule=less, margin=-0.5)},
    "no loss": {"evidence": of("a", "c", rule=not_lower, margin=0.7)},
    "equal": {"evidence": of("b", rule=equal, margin=0.5)},
    "unequal": {"evidence": of("a", "b", rule=equal, margin=0.5)},
    "ratio": {"evidence": of("e", "a", ratio=True, margin=1.2)},
    "equal ratio": {"evidence": of("e", rule=equal, ratio=True, margin=1.4)},
    "exact": {"evidence": of("a", "c", rule=exact, tolerance=5.0)},
    "not exact": {"evidence": of("a", "c", rule=exact, tolerance=2.0)},
    "not all": {"evidence": of("a", "none", margin=0.5)},
    "nothing": {"evidence": of("none")},
    "withdrawn": {"evidence": of("a"), "withdrawn": "too small"},
    "trained": {"evidence": of("a", margin=0.5), "gate": trained(1.0)},
    "not trained": {"evidence": of("a", margin=0.5), "gate": trained(5.0)},
}


def written(folder: Path, seeds: int, **settings: Any) -> Path:
    found, first = records(seeds, **settings), made_up.paper.claims[0]
    paper = varied(claims=[replace_claim(first, id, more) for id, more in CLAIMS.items()], tables=[], figures=[])
    place = folder / "experiments" / "made_up"
    save(found, place)
    conclude(paper, found, place)
    report.write(folder)
    return folder


def replace_claim(claim: Any, id: str, more: Row) -> Any:
    return claim.__class__(**{**vars(claim), "id": id, **more})


@pytest.mark.parametrize(
    ("seeds", "settings"), [(5, {}), (2, {}), (1, {}), (12, {"looks": [3, 6, 12]}), (8, {"looks": [3, 6, 12]})]
)
def test_package_and_script_agree(script: Any, tmp_path: Path, capsys: Any, seeds: int, settings: Row) -> None:
    results = written(tmp_path, seeds, **settings)
    assert script.main(results) == 0, capsys.readouterr().err
    rows = json.loads((results / "claims.json").read_text())
    assert {row["verdict"] for row in rows} >= {"reproduced", "not testable here", "not testable at this length"}
    out = capsys.readouterr().out
    found = re.search(r"Values of (\d+) of (\d+) effects over seeds", out)
    assert found
    assert seeds < 3 or int(found[1]) >= int(found[2]) - 2  # but those of nothing


def test_before_the_first_look_nothing_is_decided(script: Any, tmp_path: Path, capsys: Any) -> None:
    assert script.main(written(tmp_path, 2, looks=[3, 6])) == 0, capsys.readouterr().err


def verdict(row: Row) -> None:
    row["verdict"] = "partly"


def interval(row: Row) -> None:
    row["effects"][0]["low"] += 1e-4


def value(row: Row) -> None:
    row["effects"][0]["seeds"]["1"] += 1e-4


def state(row: Row) -> None:
    row["effects"][0]["state"] = "fails"


def flips(row: Row) -> None:
    row["flips_at"] = [0.5]


def margin(row: Row) -> None:
    row["effects"][0]["margin"] = 50.0


def level(row: Row) -> None:
    row["effects"][0]["confidence"] = 0.95


def later(row: Row) -> None:
    row["look"]["number"] = 2


def without_looks(row: Row) -> None:
    row["look"] = None


def bar(row: Row) -> None:
    row["bar"] = 1.0


@pytest.mark.quick(3)
@pytest.mark.parametrize("change", [verdict, interval, value, state, flips, margin, level, later, without_looks, bar])
def test_what_was_changed_is_found(change: Callable[[Row], None], script: Any, tmp_path: Path, capsys: Any) -> None:
    results = written(tmp_path, 12, looks=[3, 6, 12])
    rows = json.loads((results / "claims.json").read_text())
    change(rows[0])
    (results / "claims.json").write_text(json.dumps(rows))
    assert script.main(results) == 1
    told = capsys.readouterr()
    assert all(line.startswith("made_up/holds: ") for line in told.err.splitlines())
    assert "0 differences" not in told.out


def test_values_of_another_arm_are_found_though_all_numbers_agree(script: Any, tmp_path: Path, capsys: Any) -> None:
    results = written(tmp_path, 12, looks=[3, 6, 12])
    assert script.main(results, write=True) == 0
    held = json.loads((results / "origins.json").read_text())
    assert held["made_up/holds a"].startswith("a: ")
    rows = json.loads((results / "claims.json").read_text())
    by_id = {row["id"]: row for row in rows}
    other = {**by_id["made_up/fails"], "id": "made_up/holds"}
    other["effects"] = [effect | {"condition": "a"} for effect in other["effects"]]
    (results / "claims.json").write_text(json.dumps([other if row["id"] == other["id"] else row for row in rows]))
    assert script.main(results) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("made_up/holds a: its values come from c: ")


def test_a_recipe_computes_the_values_anew(script: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    results = written(tmp_path, 5)

    def right(e: Any) -> Any:
        return {"a": e.values("x", part="a")}

    monkeypatch.setattr(script, "RECIPES", {"made_up/holds": right})
    assert script.main(results) == 0, capsys.readouterr().err
    for wrong in (lambda e: {"a": e.values("x", part="b")}, lambda e: {}, lambda e: right(e) | {"b": {0: 1.0}}):
        monkeypatch.setattr(script, "RECIPES", {"made_up/holds": wrong})
        assert script.main(results) == 1
        assert all(line.startswith("made_up/holds: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    ("key", "changed", "told"),
    [
        ("effects", [{"rule": "greater", "bar": 0.0, "margin": 0.25}], "a rule, bar or margin is not as registered"),
        ("scale", "paper", "its scale is 'toy', and was registered as 'paper'"),
        ("sentence", "Another.", "its sentence is not the registered one, which the report does not show"),
        ("gate", "x: at least 2", "its gate is not the registered one"),
        ("id", "another", "it is registered or judged, and not both"),
    ],
)
def test_claims_are_held_to_their_registration(
    key: str, changed: Any, told: str, script: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    results = written(tmp_path, 5)
    rows = json.loads((results / "claims.json").read_text())
    claims = [
        {k: row[k] for k in ("sentence", "kind", "scale", "scale_note", "effects")}
        | {"id": row["id"].partition("/")[2]}
        | ({"gate": f"{row['gate']['what']}: {row['gate']['needed']}"} if row["gate"] else {})
        for row in rows
    ]
    monkeypatch.setattr(script, "REGISTERED", tmp_path)
    registered = {"hash": rows[0]["design_hash"], "design": {"claims": claims}}
    (tmp_path / "made_up.yaml").write_text(json.dumps(registered))
    assert script.main(results) == 0, capsys.readouterr().err
    claims[[row["id"] for row in rows].index("made_up/trained")][key] = changed
    (tmp_path / "made_up.yaml").write_text(json.dumps(registered))
    assert script.main(results) == 1
    assert told in capsys.readouterr().err


def test_a_claim_that_was_not_run_has_no_gate_yet(script: Any, tmp_path: Path) -> None:
    row = next(row for row in json.loads((written(tmp_path, 5) / "claims.json").read_text()) if row["gate"])
    gate = f"{row['gate']['what']}: {row['gate']['needed']}"
    design = {key: row[key] for key in ("sentence", "kind", "scale", "scale_note", "effects")}
    registered = {"claims": [design | {"id": row["id"].partition("/")[2], "gate": gate}]}
    assert not script.against_registration([row | {"gate": None, "effects": []}], registered, "")
    (told,) = script.against_registration([row | {"gate": None}], registered, "")
    assert "its gate is not the registered one" in told


def test_a_gate_that_its_value_does_not_pass_is_found(script: Any, tmp_path: Path, capsys: Any) -> None:
    results = written(tmp_path, 5)
    rows = json.loads((results / "claims.json").read_text())
    next(row for row in rows if row["id"] == "made_up/trained")["gate"]["value"] = 0.5
    (results / "claims.json").write_text(json.dumps(rows))
    assert script.main(results) == 1
    assert "made_up/trained: gate is True, and comes out as False" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["check_evidence", "recipes"])
def test_script_uses_none_of_the_packages_code(name: str) -> None:
    text = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) bnrepro", text, re.MULTILINE)
