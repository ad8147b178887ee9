"""``key=value`` as it is typed: texts are taken as they are, everything else by its type, mistakes in a sentence."""

from __future__ import annotations

import os
import shlex
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnrepro import config
from bnrepro.config import config_hash, load_config, overrides, read_config, to_yaml
from bnrepro.errors import UserError
from bnrepro.launch import sweep
from bnrepro.launch.options import load_options


def found(override: str) -> Any:
    """What ``override`` sets its key to."""
    return reduce(getattr, override.partition("=")[0].split("."), load_config([override]))


# --- texts ---

TEXTS = [
    *("1e5", "1", "0123", "0x10", "1_000", "true", "False", "null", "none", "nan", "inf", "yes", "[1]", "{a: 1}"),
    *("ö.npz", "a'b", 'a"b', "'", '"', "a=b", "a b", " a", "a ", "a,b", "a:b", "a;b", "a#b", "# a", "a%b", "$HOME"),
    *("a\\b", "\\", "a\\'b", "[a", "a]", "{a", "a}", "(a)", "a*", "?", "!a", "&a", "*a", "@a", "-a", "--a", "|"),
    *("range(3)", "glob(*)", "???a", "/abs", "../up", "./~a", "a~", "e\u0301", "🎉", "👩\u200d🔬", "سلام", "\u200fabc"),
    *("a\u00a0b", "\u3000", "日本語", "a" * 300, "<b>", "'a' b", "a 'b'", "$(a)", "${", "..", "."),
]  # fmt: skip


@pytest.mark.parametrize("text", [text for text in TEXTS if text != "${"], ids=ascii)
@pytest.mark.parametrize("key", ["root", "data.root"])
def test_path_is_taken_as_it_is_typed_and_reads_back(key: str, text: str, tmp_path: Path) -> None:
    cfg = load_config([f"{key}={text}"])
    assert found(f"{key}={text}") == text
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == cfg


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30))
def test_any_text_is_a_path_or_refused_and_quotes_change_nothing(text: str, tmp_path: Path) -> None:
    if text.startswith("~") or "${" in text or text == "???":
        return
    if text == overrides.unquoted(text):
        cfg = load_config([f"root={text}"])
        assert cfg.root == text
        (tmp_path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
        assert read_config(tmp_path / "config.yaml") == cfg
    assert overrides.parse(overrides.written("root", text)) == ("root", text)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        (r"'a\'b'", "a'b"),
        (r'"a\"b"', 'a"b'),
        (r"'a\b'", r"a\b"),
        (r"'a\\'", "a\\"),
        ("\"'a'\"", "'a'"),
        ("'null'", "null"),
    ],
)
def test_quotes_round_the_whole_are_removed_as_hydra_does(typed: str, text: str) -> None:
    assert found(f"root={typed}") == text


@pytest.mark.parametrize("name", ["1e5", "true", "null", "0123", "nan", "1_0"])
@pytest.mark.parametrize("key", ["variant", "data.name", "model.name"])
def test_name_that_looks_like_something_else_stays_a_text(key: str, name: str) -> None:
    assert found(f"{key}={name}") == name


def test_archive_is_a_text_or_null() -> None:
    assert found("data.path=null") is None
    for name in ("a=b.npz", "ö.npz", "a,b.npz", "'null'"):
        cfg = load_config(["data.name=digits", "data.source=npz", f"data.path={name}"])
        assert cfg.data.path == name.strip("'")


def test_home_is_put_in_once_and_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("root=~/runs") == f"{tmp_path}/runs"
    assert found("root=~") == str(tmp_path)
    assert found("data.root='~/a b'") == f"{tmp_path}/a b"
    assert load_config(["data.name=digits", "data.source=npz", "data.path=~/a.npz"]).data.path == f"{tmp_path}/a.npz"
    assert load_options(["launcher.logs=~/logs"]).logs == f"{tmp_path}/logs"
    for text in ("./~", "a/~", "a~"):
        assert found(f"root={text}") == text
    (tmp_path / "config.yaml").write_text(to_yaml(load_config([])).replace("root: data", "root: ~/data"))
    assert read_config(tmp_path / "config.yaml").data.root == f"{tmp_path}/data"
    with pytest.raises(UserError, match=r"~nobody_of_that_name is not known.*\./~nobody_of_that_name/x"):
        load_config(["root=~nobody_of_that_name/x"])
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UserError, match=r"root: the home folder ~ is not known here.*\./~/runs"):
        load_config(["root=~/runs"])
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is no entry in passwd either
    with pytest.raises(UserError, match=r"root: the home folder ~ is not known here"):
        load_config(["root=~/runs"])


REFUSED = ["", "a\0b", "a\nb", "a\tb", "\x1b[31m", "\x7f", "\x85", "\u2028", "\udcff", "${oc.env:HOME}", "???"]


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_path_that_no_record_could_hold_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^root ") as error:
        load_config([f"root={text}"])
    assert str(error.value).isprintable()


# --- everything else ---


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("epochs=5", 5),
        ("epochs= 5 ", 5),
        ("epochs=1_000", 1000),
        ("epochs='5'", 5),
        ("eval_every=null", None),
        ("optimizer.lr=1", 1.0),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr=.5", 0.5),
        ("tensorboard=no", False),
        ("tensorboard=TRUE", True),
        ("tensorboard=0", False),
        ("norm.eps=null", None),
        ("model.placement=after", "after"),
        ("schedule.milestones=[0.3, 0.6]", [0.3, 0.6]),
        ("schedule.milestones=[]", []),
        ("data.val_fraction=0", 0.0),
    ],
)
def test_value_is_taken_by_the_type_of_its_key(override: str, value: Any) -> None:
    assert found(override) == value
    assert type(found(override)) is type(value) or isinstance(value, str)


WRONG = [
    ("lr=0.1", "There is no key lr. Did you mean optimizer.lr?"),
    ("learning_rate=0.1", "There is no key learning_rate. Did you mean optimizer.lr?"),
    ("epochz=3", "There is no key epochz. Did you mean epochs?"),
    ("Epochs=3", "Did you mean epochs?"),
    ("optimiser.lr=1", "Did you mean optimizer.lr?"),
    ("eps=1", "Did you mean norm.eps or optimizer.eps?"),
    ("val-fraction=1", "Did you mean data.val_fraction?"),
    ("xyzzy=1", "There is no key xyzzy. `bnrepro config` prints every key"),
    ("norm=3", "norm is a group of keys: norm.eps, "),
    ("norm={eps: 1}", "Set one of them, as in norm.eps="),
    ("--epochs=5", "Write epochs=5, without dashes."),
    ("+epochs=5", "Write epochs=5, and nothing before or after the key."),
    ("epochs@x=5", "must have the form key=value"),
    ("epochs", "is not of the form key=value, as in epochs=5."),
    ("=", "Join key and value with = and no spaces."),
    ("epochs=abc", "epochs must be an integer, as in epochs=10; got 'abc'."),
    ("epochs=1.5", "epochs must be an integer"),
    ("epochs=1e3", "epochs must be an integer"),
    ("epochs=", "epochs must be an integer"),
    ("epochs=null", "epochs must be an integer"),
    ("epochs=٣", "epochs must be an integer"),
    ("epochs=1__0", "epochs must be an integer"),
    (f"epochs={'9' * 30}", "epochs must be less than 2^63"),
    (f"seed={2**63}", "seed must be 0 or more, and less than 2^63; got 9223372036854775808."),
    (f"seed=-{2**63}", "seed must be 0 or more, and less than 2^63"),
    (f"epochs={'9' * 4900}", "epochs must be an integer"),
    ("eval_every=x", "eval_every must be an integer or null"),
    ("optimizer.lr=abc", "optimizer.lr must be a number, as in optimizer.lr=0.1; got 'abc'."),
    ("optimizer.lr=٣", "optimizer.lr must be a number"),
    ("optimizer.lr=nan", "optimizer.lr must be a finite number"),
    ("optimizer.lr=-inf", "optimizer.lr must be a finite number"),
    ("tensorboard=maybe", "tensorboard must be true or false; got 'maybe'."),
    ("model.placement=afer", "model.placement must be before or after; got 'afer'. Did you mean after?"),
    ("optimizer=foo", "There is no optimizer 'foo'. Available: adam, adamw, sgd."),
    ("optimizer={}", "Available: adam, adamw, sgd."),
    ("optimizer=", "Available: adam, adamw, sgd."),
    ("data=mnsit", "Did you mean mnist?"),
    ("schedule.milestones=0.3,0.6", "a list needs brackets: 'schedule.milestones=[0.3,0.6]'"),
    ("schedule.milestones=0.3", "a list needs brackets: 'schedule.milestones=[0.3]'"),
    ("schedule.milestones=[a]", "schedule.milestones must be a list, as in"),
    ("schedule.milestones=[0.1,,0.2]", "schedule.milestones must be a list, as in"),
    ("variant=bn,convbn", "variant takes one value; got 'bn,convbn'. `bnrepro sweep variant=bn,convbn` runs several."),
    ("data=mnist,cifar10", "`bnrepro sweep data=mnist,cifar10` runs several."),
    ("seed=range(3)", "`bnrepro sweep 'seed=range(3)'` runs several."),
    ("seed=[0,1]", "`bnrepro sweep seed=0,1` runs several, without brackets."),
    ("seed={0,1}", "`bnrepro sweep seed=0,1` runs several, without brackets."),
    ("variant=bn,", "variant=bn,: a value is missing next to a comma. variant takes one value; `bnrepro sweep` runs"),
    ("seed=0,,1", "seed=0,,1: a value is missing next to a comma."),
    ("seed=0,x", "seed must be an integer, as in seed=10; got 'x'."),
    ("seed=choice(0,1)", "`bnrepro sweep 'seed=choice(0,1)'` runs several."),
    ("data=glob(mnist*)", "`bnrepro sweep 'data=glob(mnist*)'` runs several."),
    ("optimizer.lr=range(0.1,0.3,0.1)", "`bnrepro sweep 'optimizer.lr=range(0.1,0.3,0.1)'` runs several."),
    *(
        (f"{key}={function}", f"Write one, as in {key}={example}; `bnrepro sweep` runs several, as in {key}={example},")
        for function in (
            "int(5)",
            "float(5)",
            "interval(0,1)",
            "tag(a,1)",
            "bool(1)",
            "glob(*)",
            "range(x)",
            "range(1e9)",
        )
        for key, example in (("epochs", "1"), ("eval_every", "1"), ("tensorboard", "true"), ("model.init", "he"))
    ),
]


@pytest.mark.parametrize(("override", "words"), WRONG, ids=lambda text: ascii(text[:40]))
def test_mistake_says_what_is_wrong_and_what_to_do(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    remedies = [line.partition("`bnrepro sweep ")[2].partition("`")[0] for line in [str(error.value)]]
    for each in filter(None, remedies):  # it works when it is followed
        (one,) = shlex.split(each)
        assert all(load_config(overrides) for overrides in sweep.expand([one]))


# --- sweeps ---


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("data.root=a,b", ["a", "b"]),
        ("data.root='a,b',c", ["a,b", "c"]),
        ("data.root='a,b'", ["a,b"]),
        ('data.root="a,b", c d ,ö', ["a,b", "c d", "ö"]),
        ("data.root=a'b,c", ["a'b", "c"]),
        ("data.root=[a,b]", ["[a", "b]"]),
        ("data.root=a b", ["a b"]),
        ("variant=bn, convbn", ["bn", "convbn"]),
        ("variant=1e5,true", ["1e5", "true"]),
        ("seed=1,2", [1, 2]),
        ("seed=range(1,6,2)", [1, 3, 5]),
        ("optimizer.lr=0.1,1e-2", [0.1, 0.01]),
        ("tensorboard=true,false", [True, False]),
        ("norm.eps=null,1e-5", [None, 1e-5]),
        ("schedule.milestones=[0.1,0.2],[0.5]", [[0.1, 0.2], [0.5]]),
        ("schedule.milestones=[0.1,0.2]", [[0.1, 0.2]]),
        ("model.placement=before,after", ["before", "after"]),
    ],
)
def test_sweep_separates_by_commas_outside_quotes(override: str, values: list[Any]) -> None:
    assert [found(one) for (one,) in sweep.expand([override])] == values


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=[0,1]", "`bnrepro sweep seed=0,1` runs several, without brackets."),
        ("schedule.milestones=0.3,0.6", "a list needs brackets: 'schedule.milestones=[0.3,0.6]'."),
        ("seed={0,1}", "got '{0,1}'. `bnrepro sweep seed=0,1` runs several"),
        ("seed=range(3.0)", "seed=range(3.0): seed must be an integer"),
        ("seed=range(0,3,0.5)", "seed=range(0,3,0.5): seed must be an integer"),
        ("seed=choice(1,x)", "seed=choice(1,x): seed must be an integer"),
        ("seed=1,,2", "a value is missing next to a comma"),
        ("variant=bn,", "a value is missing next to a comma"),
        ("seed=1,x", "seed must be an integer"),
        ("sed=1,2", "There is no key sed. Did you mean seed?"),
        ("seed=range(a)", "is not understood. Write values as 0,1,2 or 'range(5)'"),
        (
            "seed=glob(*)",
            "seed=glob(*): glob is only for variant, data, model, optimizer, recipe or schedule.",
        ),
        ("variant=glob(x*)", "variant=glob(x*) matches no name."),
        (
            "seed=range(1e9)",
            "seed=range(1e9): seed must be an integer, and so must the numbers of its range, as in 'seed=",
        ),
        ("seed=interval(0,1)", "a sweep needs a list of values, not an interval, as in seed=1,2."),
        ("eval_every=interval(0,1)", "not an interval, as in eval_every=1,2."),
        ("optimizer.lr=interval(0,1)", "not an interval, as in optimizer.lr=0.1,0.01."),
        ("variant=interval(0,1)", "not an interval, as in variant=bn,convbn."),
        ("seed=choice()", "is not understood"),
        ("epochs=abc", "epochs must be an integer"),
        ("data=mnist,nowhere", "There is no dataset 'nowhere'"),
    ],
)
def test_wrong_sweep_says_what_to_write(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        sweep.expand([override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given_",
    [
        [],
        ["model=paper_mlp", "optimizer=sgd", "schedule=step", "schedule.milestones=[0.25,0.75]", "norm.eps=null"],
        [
            "data.name=digits",
            "data.source=npz",
            "data.path=a b'c.npz",
            "root=null",
            "optimizer.lr=1e-05",
            "tensorboard=false",
        ],
        [
            "data.name=digits",
            "data.source=npz",
            "data.path='null'",
            "eval_every=7",
            "model.placement=after",
            "data.shade_test=0.5",
            "data.train_images=500",
        ],
    ],
)
def test_command_of_a_configuration_gives_it_again(given_: list[str]) -> None:
    cfg = load_config(given_)
    words = shlex.split(config.command(cfg, "--force"))
    assert words[:3] == ["bnrepro", "train", "--force"]
    assert load_config(words[3:]) == cfg


def test_zero_has_one_name() -> None:
    assert config_hash(load_config(["data.val_fraction=-0"])) == config_hash(load_config(["data.val_fraction=0"]))
