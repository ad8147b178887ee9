"""--json, --quiet, and options by the names that they had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bnrepro.cli import saying
from tests.conftest import TINY, Call, changed


def test_train_and_what_follows_it_in_json_and_in_quiet(call: Call, digits: Path) -> None:
    short = [*changed(TINY, "epochs=1"), f"data.path={digits}"]
    quiet = call("train", "--quiet", *short)
    assert (quiet.code, quiet.err) == (0, "")
    assert [line.partition(":")[0][:21] for line in quiet.out.splitlines()] == ["bn, seed 0, on digits", "Run"]
    trained = call("train", "--json", *short)
    summary = json.loads(trained.out)
    assert (summary["status"], summary["variant"]) == ("completed", "bn")
    path = summary["path"]
    measured = json.loads(call("eval", path, "--json").out)
    assert measured["test"]["accuracy"] == pytest.approx(summary["test_accuracy"])
    (row,) = json.loads(call("runs", "--json").out)
    assert (row["path"], row["batch_size"]) == (path, 60)
    hash = Path(path).name.rpartition("-")[2]
    assert json.loads(call("show", hash[:6], "--json").out)["summary"]["status"] == "completed"
    swept = json.loads(call("sweep", "--json", "--quiet", *short, "seed=0,1", "--jobs=1").out)
    assert [(row["n"], row["best"]) for row in swept["table"]] == [(2, True)]
    compared = call("compare", "--json", "--quiet", "--variants=bn", "--seeds=1", "--jobs=1", *short)
    assert compared.err == ""
    assert json.loads(compared.out)["table"][0]["variant"] == "bn"
    assert json.loads(call("config", "--json", *short)[1])["batch_size"] == 60


def test_doctor_says_what_it_runs_on_and_never_fails(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("doctor", "--json").out)
    titles = {"versions", "processor", "memory", "kernels", "runs", "data", "tools", "advice"}
    assert set(found) == titles
    assert found["data"]["mnist5k"] == "complete; checksums match"
    assert found["runs"]["file locks"] == "work"

    def ill() -> str:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("bnrepro.runs.provenance.machine", ill)
    result = call("doctor")
    assert result.code == 0
    assert "processor: RuntimeError: no such thing" in result.out


OLD = [
    (["data", "list", "--root=x"], "--root is called --data-root now."),
    (["data", "list", "--root", "x"], "--root is called --data-root now."),
]


@pytest.mark.parametrize(("arguments", "words"), OLD)
def test_old_names_work_and_say_so(call: Call, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert (result.code, result.err) == (0, f"{words}\n")
    assert "not in x" in result.out


def test_numbers_that_json_does_not_know_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    with saying.one_command():
        saying._json(True)
        sys.stdout.write("what code of a user's own prints\n")
        saying.answer({"a": [float("nan"), float("inf"), -1.5, True, None], 3: Path("x\x1b")})
    sys.stdout.write("after it\n")
    shown = capsys.readouterr()
    assert shown.err == "what code of a user's own prints\n"
    document, _, rest = shown.out.rpartition("after it")
    assert rest == "\n"
    numbers, text = json.loads(document).values()
    assert (numbers, text) == ([None, None, -1.5, True, None], "x\N{REPLACEMENT CHARACTER}")
