"""Every experiment under its smallest preset, from the command line to the report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bnrepro import experiments
from bnrepro.claims.conclusion import open_conclusion
from bnrepro.claims.records import read
from tests.conftest import Call


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.NAMES)
def test_every_claim_is_judged_and_reported(name: str, call: Call, tmp_path: Path) -> None:
    result = call("reproduce", name, "--preset=smoke", "--jobs=1")
    assert result.code == 0, result.err
    folder = tmp_path / "results" / "experiments" / name / "smoke"
    conclusion, records = open_conclusion(folder), read(folder)
    claims = experiments.experiment(name).claims
    assert [row["id"] for row in conclusion.claims] == [f"{name}/{claim.id}" for claim in claims]
    assert max(Counter(claim.id for claim in claims).values()) == 1
    assert all(row[key] and "{" not in row[key] for row in conclusion.claims for key in ("found", "answer"))
    assert records.provenance["failed"] == []
    assert all("MNIST-5k" in data["data"] for data in records.provenance["data"])

    made = {file: file.read_bytes() for file in folder.rglob("*.*")}
    assert call("figures", str(folder)).code == 0
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == made
    assert " 0 still to run" in (again := call("reproduce", name, "--preset=smoke", "--dry-run").out)
    assert again.rstrip().endswith(" 0 still to make.")

    assert call("report").code == 0
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert all(f'class="claim" id="{name}-{claim.id}"' in page for claim in claims)
    told = call("report", "--json").out
    assert json.loads(told) == json.loads((folder / "claims.json").read_text(encoding="utf-8"))
