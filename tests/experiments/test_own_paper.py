"""A paper in a file of one's own: the tutorial's example, run from a temporary folder; and the README's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Call

ROOT = Path(__file__).parents[2]


def example(page: str = "docs/tutorial.md") -> str:
    """The page's Python block that makes a paper."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    (found,) = (block for block in blocks if "Paper(__name__" in block)
    return found


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    file = tmp_path / "my_paper.py"
    file.write_text(example())
    return file


MISTAKES = [
    (("    return greater(", "    greater("), 2, "it returns NoneType, but must return Evidence, as `greater` does"),
    (('part="main"', 'prat="main"'), 2, "claim 1 fails: ValueError: there is no factor 'prat'. Did you mean part?"),
    (('part="main"', 'part="mian"'), 2, "there is no part 'mian'. Did you mean main? Available: main."),
    (('norm="nobn"', 'norm="none"'), 2, "there is no norm 'none'. Did you mean nobn? Available: nobn, bn."),
    (("margin=s.margin)", "margin=s.margin).tested_at(5)"), 2, "above 0 and below 0.5, such as 0.01; got 5"),
    (("    return greater(", "    raise SystemExit\n    greater("), 2, "claim 1 fails: SystemExit (line 2"),
    (
        ('r.test_accuracy(part="main")', 'r.measured("shift")'),
        0,
        "Claim 1 found no measured values. If `bnrepro reproduce my_paper.py/1` has run, check the spelling",
    ),
]
"""In a claim, told by `bnrepro figures`."""


def test_the_readmes_example_is_short_and_a_paper(call: Call, tmp_path: Path) -> None:
    short = example("README.md")
    assert len([line for line in short.splitlines() if line.strip()]) <= 20
    (tmp_path / "my_paper.py").write_text(short)
    assert " 10 still to run" in call("reproduce", "my_paper.py", "--dry-run").out


@pytest.mark.slow
def test_the_tutorials_example_is_judged_drawn_and_reported(call: Call, paper: Path, tmp_path: Path) -> None:
    code, out, err = call("reproduce", "my_paper.py", "--jobs=2")
    assert code == 0, err
    folder = tmp_path / "results" / "experiments" / "my_paper"
    (claim,) = json.loads((folder / "claims.json").read_text())
    assert claim["id"] == "my_paper/1"
    assert claim["verdict"] in (
        "reproduced",
        "partly",
        "not reproduced",
        "inconclusive",
    )
    assert len(claim["effects"][0]["seeds"]) == 3
    assert "1 claim: 1 " in out
    assert (folder / "paper.py").read_text() == example()
    assert " 0 still to run" in call("reproduce", "my_paper.py", "--dry-run").out

    code, out, err = call("figures", "my_paper.py")
    assert (code, err) == (0, "")
    paper.write_text(example().replace('"""', '"""Now: ', 1))
    code, out, err = call("figures", "my_paper.py")
    assert code == 0
    assert err.startswith(f"{paper} has changed since these records were made")
    for (old, new), expected, message in MISTAKES:
        assert old in example()
        paper.write_text(example().replace(old, new))
        code, _, err = call("figures", "my_paper.py")
        assert code == expected, err
        assert message in err, err
    paper.write_text(example())
    assert call("figures", "my_paper.py").code == 0
    for name in (str(folder), "my_paper"):  # a folder's code is not run
        code, _, err = call("figures", name)
        assert code == 2
        assert "`bnrepro figures my_paper.py --out=" in err
        assert " draws them" in err
    assert call("report").code == 0
    assert claim["sentence"] in (tmp_path / "results" / "REPORT.md").read_text()

    other = tmp_path / "other_paper.py"
    other.write_text(example().replace("    return greater(", "    raise SystemExit\n    greater("))
    assert call("reproduce", "other_paper.py").code == 2
    code, out, err = call("report")  # one that has no conclusions yet does not cost the others
    remedy = "bnrepro figures other_paper.py --out=results/experiments"
    assert code == 0, err
    assert "Report:" in out, err
    assert err.startswith("Left out: "), err
    assert f"`{remedy}`" in err, err
    other.write_text(example())
    assert call(*remedy.split()[1:]).code == 0
    assert call("report").err == ""


def test_a_changed_margin_is_refused_where_it_was_registered_and_loses_no_verdict(call: Call, tmp_path: Path) -> None:
    file, folder = tmp_path / "my_paper.py", tmp_path / "results" / "experiments" / "my_paper"
    text = (
        example("README.md")
        .replace('"epochs=1"]', '"epochs=1", "data.val_fraction=0.95"]')
        .replace("Design(3)", "Design(2)")
    )
    other = text.replace("margin=1.0", "margin=50.0")

    def judged() -> tuple[float, str]:
        (claim,) = json.loads((folder / "claims.json").read_text())
        return claim["margin"], claim["design_hash"]

    file.write_text(text)
    assert call("reproduce", "my_paper.py", "--jobs=1").code == 0
    first = judged()
    file.write_text(other)
    code, _, err = call("figures", "my_paper.py")  # never registered: judged, and said
    assert code == 0
    assert "Verdicts under the earlier design are kept in results/experiments/my_paper/earlier." in err, err
    second = judged()
    assert (first[0], second[0]) == (1.0, 50.0)
    assert first[1] != second[1]
    (kept,) = json.loads((folder / "earlier" / f"claims-{first[1]}.json").read_text())
    assert kept["margin"] == 1.0

    file.write_text(text)
    assert call("register", "my_paper.py").code == 0
    file.write_text(other)
    code, _, err = call("figures", "my_paper.py")  # although its runs are older
    assert code == 2
    assert "which has changed since: claims 1.effects 1.margin is 1.0 there and 50.0 here. The verdicts stay" in err
    assert err.count("\n") == 1
    assert judged() == second
    refused = call("reproduce", "my_paper.py").err
    assert 'or register it again with `bnrepro register my_paper.py --amend "REASON"`' in refused, refused
    assert call("register", "my_paper.py", "--amend", "one point is nothing").code == 0
    code, _, err = call("figures", "my_paper.py")
    assert (code, "`bnrepro reproduce my_paper.py` judges again and repeats no finished run." in err) == (2, True), err
    assert " 0 still to run" in call("reproduce", "my_paper.py", "--jobs=1").out
    assert judged() == second
    assert call("figures", "my_paper.py") == (0, "Figures, tables and verdicts: results/experiments/my_paper\n", "")


def test_a_margin_that_is_not_known_without_results_is_not_registered(call: Call, tmp_path: Path) -> None:
    judges = '    accuracy = r.test_accuracy(part="main")\n'
    text = example("README.md")
    assert judges in text
    (tmp_path / "my_paper.py").write_text(text.replace(judges, f"{judges}    assert accuracy\n"))
    code, _, err = call("register", "my_paper.py")
    assert code == 2
    assert "the rule and margin of claim 1 cannot be registered, since its function fails without results" in err
    assert not list(tmp_path.glob("*.registered.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('part="main"', 'part="mian"', "there is no part 'mian'. Did you mean main? Available: main."),
        ('norm="nobn"', 'norm="none"', "there is no norm 'none'. Did you mean nobn? Available: nobn, bn."),
        ("margin=1.0", "margin=-1.0", "greater: the margin must be finite, at least the bar of 0; got -1.0"),
    ],
)
@pytest.mark.parametrize("command", ["register", "reproduce"])
def test_a_claim_that_the_design_cannot_answer_is_told_before_the_runs(
    call: Call, tmp_path: Path, command: str, old: str, new: str, message: str
) -> None:
    head, claim, body = example("README.md").partition("@paper.claim")
    assert old in body
    (tmp_path / "my_paper.py").write_text(head + claim + body.replace(old, new))
    code, _, err = call(command, "my_paper.py")
    assert code == 2
    assert message in err, err
    assert [file.name for file in tmp_path.iterdir() if file.name != "__pycache__"] == ["my_paper.py"]


@pytest.mark.slow
def test_settings_that_changed_are_told(call: Call, tmp_path: Path) -> None:
    text = example().replace('["model=', '["data.val_fraction=0.95", "model=')
    (tmp_path / "my_paper.py").write_text(text)
    assert call("reproduce", "my_paper.py", "--jobs=1", "--seeds=2").code == 0
    (tmp_path / "my_paper.py").write_text(text.replace("margin: float = 1.0", "margin: float = 9.0"))
    code, _, err = call("figures", "my_paper.py")
    assert code == 0
    assert "my_paper.py and 1.0 in the records, which are judged by their own settings." in err, err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("paper = Paper(__name__, Settings,", "paper = dict("), "has no attribute"),
        (("@paper.claim", "@paper.clam"), "'Paper' object has no attribute 'clam' (line"),
        (("seeds: int = 3", "seeds: int = 3\n    epochs: int"), "epochs of type int: Field required"),
        (('{"norm": variant}', '{"step": variant}'), "no factor can be called step"),
        (('{"norm": variant}', "{}"), "two different runs have part 'main', factors {}, seed 0"),
        (
            ("seeds: int = 3", 'seeds: int = "two"'),
            "my_paper.py, Settings: seeds of type int: Input should be a valid int",
        ),
        (
            ("margin: float = 1.0", 'margin: float = "x"'),
            "my_paper.py, Settings: margin of type float: Input should be",
        ),
        (("seeds: int = 3", "seeds: float = 2.5"), "TypeError: Settings.seeds must be int, and is float (line"),
        (("seeds: int = 3", 'looks: str = "5,10"'), "TypeError: Settings.looks must be list[int], and is str (line"),
        (
            ("seeds: int = 3", 'looks: list[int] = "5,10"'),
            "Settings: looks of type list[int]: Input should be a valid l",
        ),
        (("seeds: int = 3", "seeds: int = 10**9"), "my_paper: this would be more than 10,000 runs. Use fewer seeds."),
        (("seeds: int = 3", "looks: list[int] = [2, 10**9]"), "my_paper: this would be more than 10,000 runs."),
        (("Design(s.seeds)", "Design(range(10**9))"), "The design: this would be more than 10,000 runs."),
        (('epochs=1"])', 'epochs=1"], seeds=range(10**9))'), "The design: this would be more than 10,000 runs."),
        (
            ('scale="toy"', 'scale="toys"'),
            "scale cannot be 'toys'. Did you mean toy? Available: exact, paper, reduced, toy",
        ),
        (
            ('"1", reported="no number"', '"1", kind="nope"'),
            "kind cannot be 'nope'. Available: identity, empirical, pr",
        ),
        (('"1", reported="no number"', '"1", scale="nope"'), "scale cannot be 'nope'. Available: exact, paper"),
        (('"1", reported="no number"', '"1", reported=0.3'), "reported cannot be 0.3. Input should be a valid string"),
        (('"1", reported', "1, reported"), "id cannot be 1. Input should be a valid string (line"),
        (("Paper(__name__, Settings,", "Paper(__name__, dict,"), "settings must be a class, as in `class Settings(Pr"),
        (("return design", "raise SystemExit"), "the design fails: SystemExit (line"),
        (("@paper.design", "@measure"), 'a measure needs a name of its own, as in @measure("my_paper/shift") (line'),
        (('{"norm": variant}', '{"test_accuracy": 0.5}'), "no factor can be called test_accuracy"),
        (("epochs=1", 'seed=3", "epochs=1'), "the design fails: ValueError: the seeds are set by Design(...)"),
        (("model=lenet", "model=lenett"), "There is no model 'lenett'. Did you mean lenet?"),
    ],
)
def test_what_is_wrong_with_a_paper_is_one_sentence(
    change: tuple[str, str], message: str, call: Call, paper: Path
) -> None:
    assert change[0] in example()
    paper.write_text(example().replace("Results, greater", "Results, greater, measure").replace(*change))
    code, _, err = call("reproduce", "my_paper.py", "--dry-run")
    assert code == 2, err
    assert message in err, err
    assert err.count("\n") == 1


COIN = '''"""Me, C (2026)."""
import random
from bnrepro.claims import *
class Settings(Preset):
    effect: float = 0.3
@measure("c/t")
def toss(seed, effect=0.0): return [row("v", effect + random.Random(seed).gauss(0, 1))]
paper = Paper(__name__, Settings, scale="toy", scale_note="t")
@paper.design
def runs(s):
    d = Design(s.seeds); d.measure("main", {"e": .3}, toss, effect=.3); return d
@paper.claim("1")
def c(r, s):
    """The coin is higher."""
    return greater(r.measured("v", part="main", e=.3), "v", "points", margin=.05)
'''
MEASURED = 'd.measure("main", {"e": .3}, toss, effect=.3)'
COIN_SLIPS = [
    (
        ('@measure("c/t")\n', ""),
        'toss is not a measure: write a function with @measure("my_paper/name") above it (line 10',
    ),
    (("toss, effect=.3", "lambda seed: []"), "<lambda> is not a measure"),
    ((MEASURED, 'd.train("main", {}, [], toss.function)'), "toss is not a measure"),
    (('{"e": .3}', '{"layers": [64, 32]}'), "the factor layers must be a text or a number, and is [64, 32]"),
    (('{"e": .3}', "{1: 2}"), "a factor needs a name; got 1"),
    (('{"e": .3}', '"e"'), "the factors must be a dict"),
    (("effect=.3)", "effect={.3})"), "the argument effect of c/t must be a text, a number, or a list or dict of them"),
    (("effect=.3)", "effect=object())"), "the argument effect of c/t must be a text"),
    (('claim("1")', 'claim("1", gate=lambda r, s: True)'), "claim 1 fails: TypeError: its gate returns bool, but must"),
    (('claim("1")', 'claim("1", gate=(c, c))'.replace("c, c", "toss, toss")), "gate must be one function, and is (Me"),
    (
        ("    return greater(", "    return not_testable(3)\n    greater("),
        "not_testable takes the reason, as a text; got 3",
    ),
    (
        ("    return greater(", "    greater("),
        "claim 1 fails: TypeError: it returns NoneType, but must return Evidence",
    ),
    (("    return greater(", '    return not_testable("")\n    greater('), "takes the reason, as a text; got ''"),
    (
        ("    return greater(", "    return greater(1.5, 'v', '')\n    greater("),
        "greater takes values with a seed, as r.te",
    ),
    (
        ("    return greater(", "    return greater({'a': 1}, 'v', '')\n    greater("),
        "or a dict of them; got 1 (line 15)",
    ),
    ((", margin=.05)", ", margin=.05).showing(3)"), "showing takes values with a seed"),
    ((", margin=.05)", ", margin='x')"), "greater: bars, margins and tolerances are numbers; got 'x'"),
    (('"points"', "None"), "greater: the unit is a text; got None"),
    (('r.measured("v", part="main", e=.3)', 'r.of_runs("accuracy")'), "runs have no column 'accuracy'. Did you mean"),
    (('claim("1")', 'claim("1", gate=lambda r, s: reaches(1, 2, "v"))'), "reaches takes values with a seed"),
    (('claim("1")', 'claim("1", gate=lambda r: 1)'), "must take results and settings"),
    (
        ("def c(r, s)", "def c(r)"),
        "TypeError: c must take results and settings, as in `def c(results, settings)` (line",
    ),
    (("def runs(s)", "def runs()"), "TypeError: runs must take settings, as in `def runs(settings)` (line 9)"),
    (("def toss(seed, ", "def toss("), "c/t is called with seed, effect, which it does not take"),
    (("effect=.3)", "bias=.3)"), "c/t is called with seed, bias, which it does not take"),
    (
        (MEASURED, f"{MEASURED[:-3]}.4); {MEASURED}"),
        "two different measurements c/t have part 'main', factors {'e': 0.3}",
    ),
    ((MEASURED, "s.effect = 3"), "the design fails: ValidationError: effect: Instance is frozen (line 11)"),
    ((MEASURED, 'Settings(seeds="x")'), "the design fails: ValidationError: seeds: Input should be a valid integer"),
    (
        ("Design(s.seeds)", "Design(3.0)"),
        "seeds are a number of them, such as 5, or a list, such as [0, 1, 2]; got 3.0",
    ),
    (("Design(s.seeds)", "Design(0)"), "there must be at least one seed"),
    (("Design(s.seeds)", "Design([0, 0, 1])"), "each seed stands once in a list of seeds; 0 is there twice"),
    ((MEASURED, 'd.train("main", {"e": 1}, ["modl=lenet"])'), "There is no key modl. Did you mean model? (line 11)"),
    ((MEASURED, 'd.train("main", {"e": 1}, "model=lenet")'), "the overrides must be a list, such as"),
    ((MEASURED, 'd.train("main", {"e": 1}, [3])'), 'an override is a text, such as "epochs=1"; got 3'),
    ((MEASURED, 'd.train("main", {"e": float("nan")}, [])'), "the factor e must be a text or a number"),
    (("Paper(__name__", 'Paper("base"'), "a paper is named by its module: write Paper(__name__, ...); got 'base'"),
    (("@paper.design\n", ""), "the design fails: TypeError: there is none: write a function with @paper.design above"),
    (("@paper.claim", "@paper.design\ndef other(s): return Design(1)\n@paper.claim"), "coin has two designs"),
    (
        ('"main", {"e"', '"", {"e"'),
        "the design fails: ValueError: a part needs a name, such as \"main\"; got '' (line 11)",
    ),
    (("Design(s.seeds)", 'Design(["a", "b"])'), "seeds must be whole numbers, such as [0, 1, 2]; got 'a' (line 11)"),
    (("Design(s.seeds)", "Design([0.5])"), "seeds must be whole numbers, such as [0, 1, 2]; got 0.5"),
    (("Design(s.seeds)", "Design([2**70])"), "a seed must be at least 0 and below 10^18; got 1180591620717411303424"),
    (("effect=.3)", "effect=.3, seeds=[-1])"), "a seed must be at least 0 and below 10^18; got -1"),
    (
        (MEASURED, 'd.train("main", {"e": 1}, ["variant=nope"])'),
        "the design fails: ValueError: there is no norm 'nope'. Available: nobn, bn",
    ),
    (
        ("@paper.claim", "@paper.table\ndef t(r, s): pass\n@paper.table\ndef t(r, s): pass\n@paper.claim"),
        "ValueError: coin: two tables are called t: give each a name of its own (line 14",
    ),
    (
        ("@paper.claim", "@paper.figure\ndef t(r, s): pass\n@paper.figure\ndef t(r, s): pass\n@paper.claim"),
        "ValueError: coin: two figures are called t: give each a name of its own (line 14",
    ),
]
"""In a paper that only measures: told before anything is."""


@pytest.mark.parametrize(("change", "message"), COIN_SLIPS)
def test_what_can_be_known_is_told_before_anything_is_measured(
    change: tuple[str, str], message: str, call: Call, tmp_path: Path
) -> None:
    assert change[0] in COIN
    (tmp_path / "coin.py").write_text(COIN.replace(*change))
    told = [call("reproduce", "coin.py", "--dry-run"), call("reproduce", "coin.py"), call("register", "coin.py")]
    for code, _, err in told:
        assert (code, err.count("\n"), message in err, "coin.py" in err) == (2, 1, True, True), err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('row("v", ', 'row("", '), "a quantity needs a name, as in row(\"loss\", 0.5); got '' (line 7)"),
        (("return [row", 'return [{"quantity": "", "x": None, "value": 1}] or [row'), "a quantity needs a name"),
        (("return [row", 'return [row("v", 1, [2])] or [row'), "x must be a text or a number, or None; got [2]"),
        (("return [row", 'return [row("v", 1), row("v", 2)] or [row'), "quantity v is given twice for seed 0"),
        (("return [row", "return 3 or [row"), "must return a list of rows, as row(...) makes them; got 3"),
        (
            ("@paper.claim", '@paper.table\ndef t(r, s):\n    """T."""\n@paper.claim'),
            "coin.py: table t fails: TypeError: it must return a list of rows, each a dict, and returns None",
        ),
        (("@paper.claim", '@paper.table\ndef t(r, s):\n    """T."""\n    return [3]\n@paper.claim'), "returns [3]"),
        (
            ("@paper.claim", '@paper.table\ndef t(r, s):\n    """T."""\n    return [{"a": [1, 2]}]\n@paper.claim'),
            "the cell a must be a text, a number or an interval; got [1, 2]",
        ),
        (
            (
                "@paper.claim",
                '@paper.table\ndef t(r, s):\n    """T."""\n    import torch\n'
                '    return [{"a": torch.ones(3)}]\n@paper.claim',
            ),
            "the cell a must be a text, a number or an interval; got tensor([1., 1., 1.])",
        ),
        (
            ("@paper.claim", '@paper.table\ndef t(r, s):\n    """T."""\n    return [{1: 2}]\n@paper.claim'),
            "a column needs a text as its name; got 1",
        ),
        (
            ("@paper.claim", '@paper.table\ndef t(r, s):\n    """The set {1, 2}."""\n    return []\n@paper.claim'),
            "in a docstring, braces stand for a setting, as in {s.margin}; write those that are to be shown twice",
        ),
        (("return [row(", 'return [row(x=float("nan"), quantity="w", value=1), row('), "x must be a text or a number"),
        (('r.measured("v"', 'r.measured("v").mean("q") + r.measured("v"'), "there is no factor q; there are part, e"),
        (('r.measured("v"', 'r.measured("v").by("q")[1] + r.measured("v"'), "there is no factor q; there are part, e"),
        (("part=", "prat="), "there is no factor 'prat'. Did you mean part?"),
        (
            ('claim("1")', 'claim("1", gate=lambda r, s: reaches(r.measured("vv", part="main"), 1, "v"))'),
            "there is no quantity 'vv'. Did you mean v?",
        ),
    ],
)
def test_what_a_measure_or_table_returns_is_told_as_the_users(
    change: tuple[str, str], message: str, call: Call, tmp_path: Path
) -> None:
    assert change[0] in COIN
    (tmp_path / "coin.py").write_text(COIN.replace(*change))
    code, _, err = call("reproduce", "coin.py", "--jobs=1")
    assert (code, message in err, "coin.py" in err) == (2, True, True), err
    assert "bug in bnrepro" not in err
    assert "damaged" not in err


ENDS = """
from bnrepro.claims import measure, row

@measure("my_paper/ends")
def ends(seed):
    raise SystemExit

@paper.table
def shown(r, s):
    \"\"\"Shown.\"\"\"
    return []

@paper.figure
def drawn(r, s):
    \"\"\"Drawn.\"\"\"
    return None
"""
EXITS = {
    "claim": ("return greater(", "raise SystemExit\n    greater(", "claim 1 fails: SystemExit (line"),
    "table": ("    return []", "    raise SystemExit", "table shown fails: SystemExit (line"),
    "figure": ("    return None", "    raise SystemExit", "Figure drawn cannot be shown (UserError: "),
    "measurement": ("    return design", '    design.measure("main", {}, ends)\n    return design', ": SystemExit"),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", EXITS)
def test_a_paper_that_calls_exit_costs_no_other(where: str, call: Call, paper: Path, tmp_path: Path) -> None:
    old, new, said = EXITS[where]
    text = (example() + ENDS).replace('["model=', '["data.val_fraction=0.95", "model=')
    paper.write_text(text.replace(old, new))
    (tmp_path / "other.py").write_text(text.replace("my_paper/", "other/"))
    code, out, err = call("reproduce", "my_paper.py", "other.py", "--seeds=2", "--jobs=1")
    assert said in err, err
    assert "results/experiments/other" in out, err
    assert code == (0 if where == "figure" else 2), err


def test_more_seeds_than_a_command_makes_are_refused_at_once(call: Call) -> None:
    code, _, err = call("reproduce", "wu2018", "--seeds=1000000000", "--dry-run")
    assert (code, err) == (2, "Error: wu2018: this would be more than 10,000 runs. Use fewer seeds.\n")


FEW = '''
from bnrepro.claims import measure, row

@measure("few/toss")
def toss(seed):
    return [row("v", 0.1 * (-1) ** seed)]

paper = Paper(__name__, Settings, scale="toy", scale_note="a coin")

@paper.design
def runs(s):
    design = Design([5, 6, 7])
    design.measure("main", {"coin": 1}, toss)
    return design

@paper.claim("1", reported="no number")
def higher(r, s):
    """The coin is higher."""
    return greater(r.measured("v", part="main", coin=1), "v", "points", margin=0.05)
'''


def test_looks_that_a_design_with_seeds_of_its_own_cannot_reach_come_to_an_end(call: Call, tmp_path: Path) -> None:
    head = example().split("paper = Paper(")[0].replace("seeds: int = 3", "looks: list[int] = [3, 5, 8]")
    (tmp_path / "few.py").write_text(head + FEW)
    told = call("reproduce", "few.py", "--until-decided", "--jobs=1")
    assert told.code == 0, told.err
    assert "its next look cannot be reached" in told.out + told.err


LOOSE = {
    "and for two claims": (
        'return greater(r', 'return greater(r.measured("v"), "v", "") and greater(r', "joined with &",
    ),
    "== for a claim": ('return greater(r.measured("v", part="main", coin=1), "v", "points", margin=0.05)',
                       'return greater(r.measured("v") == 1.0, "v", "")', "not compared with =="),
    "an id that no file can have": ('claim("1"', 'claim("a/1"', "the id of a claim has up to 40 letters"),
    "no return": ("    return design\n", "", "is `return` missing?"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), LOOSE.values(), ids=LOOSE)
def test_what_python_would_let_pass_is_told(call: Call, tmp_path: Path, old: str, new: str, words: str) -> None:
    text = example().split("paper = Paper(")[0] + FEW
    assert old in text
    (tmp_path / "few.py").write_text(text.replace(old, new))
    told = call("reproduce", "few.py", "--jobs=1")
    assert told.code == 2
    assert words in told.err, told.err


def test_settings_that_a_claim_changes_are_its_own(call: Call, tmp_path: Path) -> None:
    head = (
        example()
        .split("paper = Paper(")[0]
        .replace("seeds: int = 3", "seeds: int = 3\n    tops: list[float] = [0.05, 9.0]")
    )
    judged = FEW.replace("margin=0.05", "margin=s.tops.pop()")
    more = judged[judged.index('@paper.claim("1"') :].replace('"1"', '"2"').replace("higher", "again")
    (tmp_path / "few.py").write_text(head + judged + more)
    assert call("reproduce", "few.py", "--jobs=1").code == 0
    claims = json.loads((tmp_path / "results/experiments/few/claims.json").read_text())
    assert [claim["margin"] for claim in claims] == [9.0, 9.0]


SPOILS = '''
@paper.claim("0")
def spoils(r, s):
    """Another claim."""
    found = greater(r.measured("v", part="main", coin=1), "v", "points", margin=0.05)
    for row in r.measurements:
        row["value"] *= 100
    r.measurements.clear()
    return found

@paper.table
def shown(r, s):
    """Shown."""
    r.measurements.clear()
    return []
'''


def test_records_that_a_claim_changes_are_its_own(call: Call, tmp_path: Path) -> None:
    head = example().split("paper = Paper(")[0]
    place = FEW.index('@paper.claim("1"')
    (tmp_path / "few.py").write_text(head + FEW[:place] + SPOILS + FEW[place:])
    assert call("reproduce", "few.py", "--jobs=1").code == 0
    first, second = json.loads((tmp_path / "results/experiments/few/claims.json").read_text())
    assert len(first["effects"][0]["seeds"]) == 3
    assert second["effects"] == first["effects"]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_papers_code_prints_or_closes_is_not_the_answer(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = COIN.replace("import random", "import random, sys; print('top')").replace(
        "return [row", "print('inside'); sys.stdout.close(); sys.stderr.close(); return [row"
    )
    (tmp_path / "coin.py").write_text(body)
    command = [sys.executable, "-m", "bnrepro", "reproduce", "coin.py", "--json", f"--jobs={jobs}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    (claim,) = json.loads(told.stdout)
    assert claim["id"] == "coin/1"
    assert ("top" in told.stderr, "inside" in told.stderr) == (True, True)


def test_a_claim_of_ones_own_is_named_by_its_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "coin.py").write_text(COIN)
    assert call("reproduce", "coin.py", "--jobs=1", "--seeds=4").code == 0
    shown = call("show", "coin.py/1").out
    assert shown == call("show", "coin/1").out == call("show", "coin.py").out
    code, _, err = call("register", "coin.py/1")
    assert (code, "this takes a whole experiment, and not its claim '1'. Write coin.py." in err) == (2, True), err
    code, _, err = call("register", "coin.py", "--amend", "  ")
    assert (code, "--amend needs a reason" in err) == (2, True), err
    (tmp_path / "other.py").write_text(COIN)
    (tmp_path / "other.yml").write_text("smoke: {seeds: 2}\n")
    code, _, err = call("reproduce", "other.py", "--preset=smoke")
    assert (code, "presets are read from other.yaml. Rename the file." in err) == (2, True), err


def test_an_amended_margin_measures_nothing_again(call: Call, tmp_path: Path) -> None:
    text = COIN.replace("margin=.05", "margin=s.effect / 6").replace(
        "@paper.claim", "def trained(r, s): return 1\n@paper.table\ndef t(r, s):\n    return []\n@paper.claim"
    )

    def left(change: tuple[str, str] = ("", "")) -> str:
        (tmp_path / "coin.py").write_text(text.replace(*change))
        return call("reproduce", "coin.py", "--dry-run", "--unregistered").out

    (tmp_path / "coin.py").write_text(text)
    assert call("register", "coin.py").code == 0
    assert call("reproduce", "coin.py", "--jobs=1").code == 0
    (tmp_path / "coin.py").write_text(text.replace("effect: float = 0.3", "effect: float = 0.6"))
    code, _, err = call("figures", "coin.py")
    assert code == 2
    assert "effect is 0.3 in the records and 0.6 in the file. The verdicts stay as they are. Undo the change; or" in err
    assert call("register", "coin.py", "--amend", "it is too small").code == 0
    told = call("reproduce", "coin.py", "--jobs=1")
    assert (told.code, " 0 still to make" in told.out) == (0, True), told.out + told.err
    for change in (("is higher", "is high"), ("return 1", "return 2"), ("return []", "return [{}]"), ("s.effect", "2")):
        assert " 0 still to make" in left(change), change
    used = ("gauss(0, 1))]", "gauss(0, 1)), row('w', len(t(0, 0)))]")  # a table that a measure uses counts
    text = text.replace(*used)
    assert " 5 still to make" in left()
    assert call("register", "coin.py", "--amend", "w").code == 0
    assert call("reproduce", "coin.py", "--jobs=1").code == 0
    assert " 5 still to make" in left(("return []", "return [{}]"))
    for change in (("gauss(0, 1)", "gauss(0, 2)"), ("import random", "import random; HELP = 1")):
        assert " 5 still to make" in left(change), change


def test_seeds_between_looks_are_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "coin.py").write_text(COIN.replace("effect: float = 0.3", "looks: list[int] = [3, 5]"))
    _, out, err = call("reproduce", "coin.py", "--seeds=4", "--jobs=1")
    assert "coin is judged after 3 or 5 seeds; of 4, the first 3 count." in err
    assert "n=3" in out
    assert "there is no verdict." in call("reproduce", "coin.py", "--seeds=2", "--jobs=1").err


def test_seeds_that_a_design_does_not_take_are_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text(example().split("paper = Paper(")[0] + FEW)
    told = call("reproduce", "few.py", "--seeds=8")
    assert (told.code, told.out) == (2, "")
    assert "--seeds=8: the design of few has 3, whatever is asked for. Leave it out" in told.err


def test_two_papers_of_one_name_do_not_share_a_folder(call: Call, tmp_path: Path) -> None:
    for folder, title in (("a", "Me, A (2026)."), ("b", "Me, B (2026).")):
        (tmp_path / folder).mkdir()
        text = example().split("paper = Paper(")[0] + FEW.replace("[5, 6, 7]", "3").replace(
            "coin is", f"coin {folder} is"
        )
        (tmp_path / folder / "few.py").write_text(f'"""{title}"""' + text.split('"""', 2)[2])
    assert call("reproduce", "a/few.py", "--jobs=1").code == 0
    before = {file: file.read_bytes() for file in (tmp_path / "results").rglob("*") if file.is_file()}
    for command in ("reproduce", "figures"):
        told = call(command, "b/few.py")
        assert told.code == 2
        assert "holds results of 'Me, A (2026)', and" in told.err, told.err
    assert {file: file.read_bytes() for file in (tmp_path / "results").rglob("*") if file.is_file()} == before
    assert call("reproduce", "b/few.py", "--jobs=1", "--out=other").code == 0
