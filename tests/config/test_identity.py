"""What makes two runs the same run, and what is done with a run that is found."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bnrepro import config, experiments
from bnrepro.claims import records
from bnrepro.claims.engine import make_plan
from bnrepro.config import config_hash, earlier_hash, group_dir, identity, load_config, own_code, run_dir
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.launch import sweep
from bnrepro.launch.job import Ticket
from bnrepro.norm import NORMS
from bnrepro.report import compare
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.system import reading as stored
from bnrepro.training import train
from bnrepro.training.trainer import Progress
from tests.experiments.test_papers import is_awaited, was_run_whole

Tiny = Callable[..., Config]
RESULTS = Path(__file__).parents[2] / "results" / "experiments"


def earlier(cfg: Config) -> Path:
    """Where the version before kept the run."""
    return group_dir(cfg) / cfg.variant / f"seed{cfg.seed}-{earlier_hash(cfg)}"


def trained_earlier(cfg: Config) -> Path:
    """A run that lies under the name of the version before."""
    path = train.run(cfg)
    path.rename(earlier(cfg))
    return earlier(cfg)


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- names of earlier versions ---


def test_run_of_an_earlier_version_is_found_where_it_lies(tiny: Tiny) -> None:
    cfg = tiny("epochs=1")
    path = trained_earlier(cfg)
    before = files(path)
    assert run_dir(cfg) == train.run(cfg) == path
    assert files(path) == before
    assert run_dir(tiny("epochs=2")) != path
    (outcome,) = sweep.run_all([cfg], jobs=1)
    assert outcome.path == path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in experiments.NAMES if not is_awaited(name)])
def test_published_runs_keep_their_earlier_names(name: str) -> None:
    """The hashes in results/ are those that `run_dir` looks for. CIFAR-10's hold an archive that is not here."""
    experiment = experiments.experiment(name)
    arms = make_plan(experiment, "full", Path("runs")).arms
    rows = records.read(RESULTS / name).runs
    for arm in (arm for arm in arms if arm.config.data.name != "cifar10"):
        who = {"part": arm.part, "seed": arm.config.seed, **arm.factors}
        published = {row["config_hash"] for row in rows if all(row.get(key) == value for key, value in who.items())}
        if not published and not was_run_whole(name):
            continue  # an arm that none of the claims reads that were asked for
        assert published & {earlier_hash(arm.config), config_hash(arm.config)}, who


def test_run_that_an_earlier_version_was_killed_in_goes_on_where_it_lies(tiny: Tiny) -> None:
    cfg = tiny("epochs=1")
    whole = Run(train.run(cfg)).metrics
    shutil.rmtree(run_dir(cfg))
    other = tiny("epochs=1", "seed=1")
    path = trained_earlier(cfg)
    (path / record.SUMMARY).unlink()
    (path / record.METRICS).unlink()
    assert train.run(cfg) == path
    assert [row["val_loss"] for row in Run(path).metrics] == [row["val_loss"] for row in whole]
    assert run_dir(other).name == f"seed1-{config_hash(other)}"


def test_other_run_under_the_same_short_name_is_not_taken_for_it(tiny: Tiny) -> None:
    cfg, other = tiny("epochs=1"), tiny("epochs=1", "optimizer.lr=0.002")
    path = train.run(other)
    path.rename(earlier(cfg))  # as if their eight digits collided
    assert run_dir(cfg).name == f"seed0-{config_hash(cfg)}"
    assert train.run(cfg) == run_dir(cfg) != earlier(cfg)


def test_ticket_of_an_earlier_version_is_found(tiny: Tiny) -> None:
    cfg = tiny("epochs=1")
    Ticket("slurm/1", 0, 1).write(earlier(cfg))
    assert run_dir(cfg) == earlier(cfg)
    assert Ticket.read(run_dir(cfg)) == Ticket("slurm/1", 0, 1)


# --- one configuration is one run ---


def test_collision_of_names_is_told_and_harms_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "digits_of", lambda _: "0" * 16)
    cfg, other = tiny("epochs=1"), tiny("epochs=1", "optimizer.lr=0.002")
    path = train.run(cfg)
    before = files(path)
    assert run_dir(other) == path
    for force in (False, True):
        with pytest.raises(UserError, match=r"holds another run: optimizer\.lr is 0\.001 there and 0\.002 here"):
            train.run(other, force=force)
    with pytest.raises(UserError, match="holds another run"):
        record.run_of(other)
    assert files(path) == before


def test_names_have_sixteen_digits(tiny: Tiny) -> None:
    assert len(run_dir(tiny()).name.removeprefix("seed0-")) == 16
    assert len(compare.directory([tiny()]).name.removeprefix("compare-")) == 16


@pytest.mark.parametrize(
    "texts", [("seed=0", "seed=00"), ("optimizer.lr=0.1", "optimizer.lr=1e-1"), ("root=r", "root=r")]
)
def test_run_in_two_writings_is_one(texts: tuple[str, str]) -> None:
    assert len({run_dir(load_config([text])) for text in texts}) == 1


def test_sweep_makes_a_run_once_and_tells_of_it_in_each_place(tiny: Tiny) -> None:
    cfg, told = tiny("epochs=1"), []
    outcomes = sweep.run_all([cfg, tiny("epochs=1", "seed=1"), cfg], 1, ended=lambda i, o: told.append((i, o.path)))
    assert [o.path for o in outcomes] == [run_dir(cfg), run_dir(tiny("epochs=1", "seed=1")), run_dir(cfg)]
    assert sorted(i for i, _ in told) == [0, 1, 2]
    assert len(compare.collect([Run(o.path) for o in outcomes]).runs) == 2


# --- a norm of a user's own ---

SCRIPT = """
import sys
from bnrepro.config import config_hash, load_config
from bnrepro.norm import NORMS
{}
print(config_hash(load_config(["variant=mine"])))
"""
NORM = """
import torch

class Mine(torch.nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * {}
"""
GHOST = """
from bnrepro.norm.table import _variant
from bnrepro.norm.variants import GhostBatchNorm
NORMS['mine'] = _variant(GhostBatchNorm, ghost_size={})
"""
CHANGES = {
    "the function": ("NORMS['mine'] = lambda c, s, options: 1", "NORMS['mine'] = lambda c, s, options: 2"),
    "a function it calls": (
        "def f(): return 1\nNORMS['mine'] = lambda *a: f()",
        "def f(): return 2\nNORMS['mine'] = lambda *a: f()",
    ),
    "a value in a closure": (
        "def make(k):\n    return lambda *a: k\nNORMS['mine'] = make(len('a'))",
        "def make(k):\n    return lambda *a: k\nNORMS['mine'] = make(len('ab'))",
    ),
    "a function in a set": (
        "def f(): return 1\ndef make(k):\n    return lambda *a: k\nNORMS['mine'] = make({f, len})",
        "def f(): return 2\ndef make(k):\n    return lambda *a: k\nNORMS['mine'] = make({f, len})",
    ),
    "a value by an object": (
        "class A: pass\ndef make(k):\n    return lambda *a: k\nNORMS['mine'] = make({A(): 1})",
        "class A: pass\ndef make(k):\n    return lambda *a: k\nNORMS['mine'] = make({A(): 2})",
    ),
    "an argument of a partial": (
        "from functools import partial\ndef f(k, *a): pass\nNORMS['mine'] = partial(f, len('a'))",
        "from functools import partial\ndef f(k, *a): pass\nNORMS['mine'] = partial(f, len('ab'))",
    ),
    "a setting of one of ours": (GHOST.format(2), GHOST.format(4)),
    "which of ours": ("NORMS['mine'] = NORMS['bn']", "NORMS['mine'] = NORMS['custombn']"),
    "an attribute of a class": (
        "class F:\n    k = 1\n    def __call__(self, *a): pass\nNORMS['mine'] = F()",
        "class F:\n    k = 2\n    def __call__(self, *a): pass\nNORMS['mine'] = F()",
    ),
}


def hash_of(code: str, folder: Path, as_file: bool) -> str:
    script = SCRIPT.format(code)
    (folder / "script.py").write_text(script)
    command = [sys.executable, "script.py"] if as_file else [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("as_file", [True, False])
def test_norm_of_a_users_own_counts_by_its_code_in_every_process(tmp_path: Path, as_file: bool) -> None:
    before, after = CHANGES["the function"]
    assert hash_of(before, tmp_path, as_file) == hash_of(before, tmp_path, as_file)
    assert hash_of(before, tmp_path, as_file) != hash_of(after, tmp_path, as_file)


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_a_norm_is_made_of_counts(change: str) -> None:
    def made(code: str) -> str:
        space: dict[str, Any] = {"NORMS": dict(NORMS)}
        exec(compile(code, "<prompt>", "exec"), space)
        return own_code.fingerprint(space["NORMS"]["mine"])

    before, after = CHANGES[change]
    assert made(before) == made(before) != made(after)


def test_file_that_a_norm_comes_from_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(factor: int) -> str:
        (tmp_path / f"layers_{factor}.py").write_text(NORM.format(factor))
        module = __import__(f"layers_{factor}")
        module.Mine.__qualname__ = "Mine"
        return own_code.fingerprint(partial(lambda kind, c, s: kind(c), module.Mine))

    assert made(1) != made(2)


def test_changed_norm_is_run_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "mine", lambda c, s, options: torch.nn.Identity())
    first = train.run(tiny("variant=mine", "epochs=1"))
    monkeypatch.setitem(NORMS, "mine", lambda c, s, options: torch.nn.BatchNorm2d(c) if s else torch.nn.BatchNorm1d(c))
    second = train.run(tiny("variant=mine", "epochs=1"))
    assert first != second
    assert Run(first).summary["parameters"] != Run(second).summary["parameters"]


def test_own_norms_of_the_package_count_by_their_name_alone() -> None:
    assert "code" not in config.identity_of(load_config(["variant=convbn"]))


# --- unreadable is not damaged ---

REASONS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ENFILE, errno.ETIMEDOUT, None]


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str, reason: int | None) -> None:
    """Files called ``name`` cannot be read, for ``reason`` (None: no memory)."""

    def problem(self: Path, *_: Any, **__: Any) -> Any:
        if reason is None:
            raise MemoryError
        raise OSError(reason, "the reason", str(self))

    for method in ("open", "read_bytes", "read_text"):
        real = getattr(Path, method)

        def patched(self: Path, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            return problem(self) if self.name == name else real(self, *args, **kwargs)

        monkeypatch.setattr(Path, method, patched)


@pytest.mark.quick(4)
@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("name", [record.CHECKPOINT, record.CONFIG])
def test_run_that_cannot_be_read_stops_and_nothing_is_touched(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, reason: int | None, name: str
) -> None:
    cfg = tiny("epochs=2")

    def stop(progress: Progress) -> None:
        if progress.row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(cfg, report=stop)
    before = files(run_dir(cfg))
    with monkeypatch.context() as patch:
        unreadable(patch, name, reason)
        with pytest.raises(UserError, match=rf"{name} cannot be read \(.*It was left as it is") as told:
            train.run(cfg)
        assert "force" not in str(told.value)
        (outcome,) = sweep.run_all([cfg], jobs=1)
        assert "cannot be read" in (outcome.error or "")
        assert outcome.by_user
    assert files(run_dir(cfg)) == before
    assert Run(train.run(cfg)).status == "completed"


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "metrics": (record.METRICS, lambda folder: Run(folder).metrics),
    "summary": (record.SUMMARY, lambda folder: Run(folder).summary),
    "configuration": (record.CONFIG, lambda folder: Run(folder).config),
    "checkpoint": (record.CHECKPOINT, lambda folder: checkpoint.load(folder / record.CHECKPOINT)),
    "newest checkpoint": (record.CHECKPOINT, checkpoint.last),
    "comparison": (records.RUNS, compare.open_comparison),
    "provenance": (records.PROVENANCE, compare.open_comparison),
    "ticket": ("run.job", lambda folder: Ticket.read(folder / "run")),
    "earlier configuration": (record.CONFIG, lambda folder: config.check_same(folder, Run(folder).config)),
}


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file."""
    root = tmp_path_factory.mktemp("whole")
    overrides = [
        "data=mnist5k",
        "data.source=npz",
        "model=lenet",
        "epochs=1",
        "batch_size=60",
        "tensorboard=false",
        "device=cpu",
    ]
    path = train.run(load_config([*overrides, f"data.path={digits}", f"root={root}"]))
    compare.save(compare.collect([Run(path)]), path)
    Ticket("slurm/1", 0, 1).write(path / "run")
    return path


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("reader", READERS)
def test_reader_tells_unreadable_from_damaged(
    whole: Path, monkeypatch: pytest.MonkeyPatch, reader: str, reason: int | None
) -> None:
    name, read = READERS[reader]
    read(whole)
    unreadable(monkeypatch, name, reason)
    with pytest.raises(UserError, match="cannot be read") as told:
        read(whole)
    assert not {"damaged", "--force", "reproduce"} & set(str(told.value).split())
    assert stored.plain_size(whole / name) > 0
