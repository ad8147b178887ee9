"""Whatever a user or a machine does wrong: one sentence that says what, where and what to do, and exit code 2."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from bnrepro import cli, errors
from bnrepro.cli import ending
from bnrepro.config import load_config, run_dir, to_yaml
from bnrepro.errors import UserError, did_you_mean, sentence
from bnrepro.runs.record import Run, write_whole
from tests.cli.ending import Command
from tests.conftest import TINY, Call, Result, changed

PACKAGE = Path(cli.__file__).parent.parent


def told(result: Result) -> str:
    """The one sentence that a command ended with."""
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in line
    return line


# --- the command line ---

USAGE = [
    ("train --epochs=5", "Write epochs=5, without dashes."),
    ("train --epochs 5", "Write epochs=5, without dashes."),
    ("train --optimizer.lr=0.1", "Write optimizer.lr=0.1, without dashes."),
    ("train --batch-size=8", "Write batch_size=8, without dashes."),
    ("train --data=mnist", "Write data=mnist, without dashes."),
    ("sweep --seed=0,1", "Write seed=0,1, without dashes."),
    ("train --lr=5", "There is no option --lr. Did you mean optimizer.lr? Keys are written without dashes"),
    ("train --varian=bn", "There is no option --varian. Did you mean --variant?"),
    ("runs --rot=x", "There is no option --rot. Did you mean --root?"),
    ("runs --xyzzy", "There is no option --xyzzy. `bnrepro runs --help` lists the options."),
    ("train -e 5", "There is no option -e."),
    ("train --force=yes", "--force takes no value. Start over"),
    ("compare --seeds", "--seeds needs a value. Number of seeds; 3 means seeds 0, 1, 2."),
    (
        "compare --seeds=0,1,2",
        "--seeds must be an integer of at least 1; got '0,1,2'. Number of seeds; 3 means seeds 0, 1",
    ),
    ("compare --seeds 0,1,2", "got '0,1,2'"),
    ("compare --seeds=0", "--seeds must be an integer of at least 1; got '0'"),
    ("compare --jobs=-1", "--jobs must be an integer of at least 1; got '-1'"),
    ("compare --threshold=x", "--threshold must be a number between 0 and 1; got 'x'"),
    ("compare --variants bn convbn", "To choose variants, separate them by commas: --variants=bn,convbn."),
    ("compare --variants bn convbn nobn", "To choose variants, separate them by commas: --variants=bn,convbn,nobn."),
    ("train seed = 5", "Join key and value with = and no spaces."),
    ("train epochs 5", "Join key and value with = and no spaces."),
    ("train --epochs", "Write epochs=VALUE, without dashes."),
    ("train --epochs --force", "Write epochs=VALUE, without dashes."),
    ("train +=3", "must have the form key=value, as in epochs=5."),
    ("train root=", "for the current one write '.'."),
    ("train device=x", "device must be auto, cpu or cuda; got 'x'."),
    ("train eval_every=x", "eval_every must be an integer or null"),
    ("train data=some/flowers-1.npz", "write data.source=npz data.path=some/flowers-1.npz data.name=flowers_1."),
    ("train data=minst", "There is no dataset 'minst'. Did you mean mnist? Available: cifar10"),
    ("train optimizer.lr=0.1, 0.01", "optimizer.lr=0.1,: a value is missing next to a comma. optimizer.lr takes one"),
    ("config variant=,bn", "variant=,bn: a value is missing next to a comma."),
    ("train force=true", "Write --force."),
    (
        "compare --variant=bn,convbn",
        "There is no option --variant. Did you mean --variants? Names separated by",
    ),
    ("compare --seed=1", "There is no option --seed. Did you mean --seeds? Number of seeds; 3 means seeds 0, 1, 2."),
    ("train --root=a root=b", "root is given twice: root=b and --root=a."),
    ("train --data-root=a data.root=b", "data.root is given twice: data.root=b and --data-root=a."),
    ("compare seeds=3", "Write --seeds=3."),
    ("compare --variants=nobn,nobn", "--variants names nobn twice. Leave one of them out."),
    ("compare --variants=", "--variants is empty."),
    ("compare --variants=bn,", "a name is missing next to a comma."),
    ("bench --variants=bn,bn,bn layers", "--variants names bn 3 times."),
    ("bench layer", "Did you mean layers? Available: layers, grid, memory"),
    ("sweep jobs=2", "Write --jobs=2."),
    ("sweep 'optimizer.lr=logspace(0,1)'", "Error: optimizer.lr=logspace(0,1) is not understood. Write values as"),
    ("sweep 'seed=range(3'", "Error: seed=range(3 is not understood. A closing bracket is missing."),
    ("sweep optimizer.lr=0.1, 0.01", "Write values without spaces, as in optimizer.lr=0.1,0.01."),
    ("reproduce numpynet preset=smoke", "Write --preset=smoke."),
    ("reproduce numpynet --preset=smok", "Did you mean smoke? Available: smoke, quick, full."),
    ("eval RUN statistics=batch", "Write --statistics=batch."),
    ("data list root=x", "Write --data-root=x."),
    ("bench norms=bn", "Write --variants=bn."),
    ("data verify mnits", "Did you mean mnist? Available: mnist5k"),
    ("config --variant=convbm", "variant: there is no 'convbm'. Did you mean convbn? Available: nobn"),
    ("config model.name=lenett", "model.name: there is no 'lenett'. Did you mean lenet?"),
    ("config model.activation=rel", "model.activation: there is no 'rel'. Did you mean relu?"),
    ("config data.name=mnits", "data: there is no dataset 'mnits'."),
    ("runs --sort=seeds", "--sort: there is no column 'seeds'. Did you mean seed?"),
    ("--versoin", "Did you mean --version?"),
    ("train variant=bn,convbn", "`bnrepro sweep variant=bn,convbn` runs several."),
    ("train --variant=bn,convbn", "variant takes one value; got 'bn,convbn'."),
    ("sweep", "Nothing to sweep. Say what, as in: bnrepro sweep variant=bn,convbn seed=0,1,2"),
    ("sweep --launcher=slurm launcher.cpus=2", "Nothing to sweep."),
    ("sweep seed=[0,1]", "seed=0,1` runs several, without brackets."),
    ("train variant=convbnn", "Did you mean convbn?"),
    ("trian", "There is no command 'trian'. Did you mean train?"),
    ("xyzzy", "There is no command 'xyzzy'. Available: train, compare, sweep"),
    ("data lst", "There is no command 'lst'. Did you mean list?"),
    ("data fetch", "bnrepro data fetch needs NAME: mnist, fashion_mnist, cifar10 or cifar100."),
    (
        "show",
        "bnrepro show needs RUN: a run's directory, or the start of its hash or name; or EXPERIMENT[/CLAIM].",
    ),
    ("show a b", "bnrepro show: too many arguments: a b."),
    ("tensorboard --port=70000", "--port must be an integer between 0 and 65535; got '70000'."),
    ("tensorboard --port=-1", "--port must be an integer between 0"),
    ("reproduce labl", "There is no experiment 'labl'. Did you mean labml?"),
    ("eval x --size=0", "--size must be an integer between 1 and 65535; got '0'."),
    (f"eval x --size={10**20}", "--size must be an integer between 1 and 65535"),
    ("compare --out=", "--out is empty. Write the path of a folder; for the current one write '.'."),
    ("bench --out=", "--out is empty."),
    ("show ''", "RUN is empty. Write a run's directory; `bnrepro runs` lists them."),
    ("tensorboard ''", "FOLDER is empty."),
    ("reproduce --archive=mnist=", "--archive=mnist is empty. Write the path of an .npz archive"),
    ("train data.source=npz data.path=", "data.path is empty. Write the path of an .npz archive."),
    ("data list --data-root=$'a\x1b'", "--data-root must be a path without control characters"),
    ("show $'\udcff'", "RUN must be a path in UTF-8"),
    ("reproduce --data-root=/dev/null/x", "--data-root=/dev/null/x: /dev/null is not a folder."),
    ("config --force", "bnrepro config has no option --force, which belongs to train, compare, sweep, reproduce."),
    ("data --data-root=x", "bnrepro data has no option --data-root, which belongs to list, fetch, verify."),
    ("--dry-run", "bnrepro has no option --dry-run, which belongs to compare, sweep, reproduce."),
    ("compare root=/dev/null/x", "/dev/null is not a folder"),
    ("sweep seed=0,1 root=/dev/null/x", "/dev/null is not a folder"),
    ("runs --jobs=2", "bnrepro runs has no option --jobs, which belongs to compare, sweep, reproduce."),
    ("train --jobs=2", "bnrepro train has no option --jobs, which belongs to compare, sweep, reproduce."),
    ("config -h=3", "-h takes no value. It shows the help of bnrepro config."),
    ("config --help=3", "--help takes no value."),
    ("config -hx", "There is no option -hx."),
    ("config a.b.c.d=1", "There is no key a.b.c.d. `bnrepro config` prints every key"),
    ("reproduce labml,placement", "separate experiments by spaces: bnrepro reproduce labml placement"),
    ("reproduce labml/A6,A5", "separate experiments by spaces: bnrepro reproduce labml/A6 labml/A5"),
    ("reproduce ,", "separate experiments by spaces"),
    ("bench layers,memory", "separate parts by spaces: bnrepro bench layers memory"),
    ("reproduce --archive=mnist=/dev/null", "--archive=mnist: /dev/null is not a plain file but"),
    ("sweep variant=instancenorm,bn model=lenet --dry-run", "instancenorm needs maps of more than one location"),
    ("sweep variant=bn,convbn batch_size=1 --dry-run", "Use batch_size=2 or more."),
    ("train norm.kernel_size=3", "norm.kernel_size=3 is not used by variant=bn. Leave it out, or use a variant that"),
    ("config norm.gamma=uniform --variant=nobn", "norm.gamma=uniform is not used by variant=nobn."),
    ("sweep norm.ghost_size=8 variant=bn,nobn", "norm.ghost_size=8 is not used by variant=bn, nobn."),
    ("compare norm.affine=false --variants=nobn,lrn", "norm.affine=false is not used by variant=nobn, lrn."),
    ("train optimizer.momentum=0.5", "optimizer.momentum=0.5 is not used by optimizer=adam. Leave it out, or use opt"),
    ("config optimizer.nesterov=true optimizer=adamw", "optimizer.nesterov=true is not used by optimizer=adamw. Leave"),
    (
        "sweep optimizer=sgd optimizer.eps=1,2",
        "optimizer.eps=1.0 is not used by optimizer=sgd. Leave it out, or use o",
    ),
    ("sweep schedule=linear,cosine schedule.gamma=0.5", "schedule.gamma=0.5 is not used by schedule=linear or sched"),
    (
        "compare schedule.milestones=[0.3,0.6]",
        "schedule.milestones=[0.3,0.6] is not used by schedule=constant. Leave it",
    ),
    (
        "config model.init_std=0.1",
        "model.init_std=0.1 is not used by model.init=he. Leave it out, or use model.init=ga",
    ),
    ("config model.dropout_position=after_norm", "model.dropout_position=after_norm is not used by model.dropout=0.0."),
    ("config model.keep_bias=true model.placement=after", "model.keep_bias=true is not used by model.placement=after."),
    (
        "config norm.gamma=uniform norm.affine=false",
        "norm.gamma=uniform is not used by norm.affine=false. Leave it out",
    ),
    (
        "config channels_last=true model=paper_mlp",
        "channels_last=true is not used by model=paper_mlp. Leave it out, or",
    ),
    ("reproduce labml --preset=", "labml has no preset ''. Available: smoke, quick, full."),
    (
        "reproduce labml epochs=3",
        "epochs=3: reproduce takes no configuration keys; --preset selects what is trained.",
    ),
    (
        "bench epoch variant=lrn",
        "variant=lrn is not used: the benchmark sets norms, network, recipe, optimizer and root itself.",
    ),
    ("bench epoch model.width=2", "model.width=2 is not used: the benchmark"),
    ("bench compare optimizer.momentum=0.5", "optimizer.momentum=0.5 is not used: the benchmark"),
    ("runs --root=~nobody_of_that_name/x", "the home folder ~nobody_of_that_name is not known here"),
]


@pytest.mark.parametrize(("typed", "words"), USAGE, ids=[typed for typed, _ in USAGE])
def test_mistake_on_the_command_line_says_what_to_type(call: Call, tmp_path: Path, typed: str, words: str) -> None:
    assert words in told(call(*shlex.split(typed)))
    assert list(tmp_path.iterdir()) == []


def test_nothing_at_all_and_a_group_alone_show_the_help(call: Call) -> None:
    for words in ([], ["data"]):
        result = call(*words)
        assert (result.code, result.err) == (2, "")
        assert result.out.startswith(" ".join(["Usage: bnrepro", *words]))


def test_help_names_every_status_that_runs_can_be_chosen_by() -> None:
    from bnrepro.runs.index import STATUSES

    text = " ".join(helps()["bnrepro runs"].split())
    assert all(status in text for status in STATUSES)


def test_without_an_installation_the_version_is_that_of_the_source(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from bnrepro import __version__
    from bnrepro.runs import provenance

    monkeypatch.setattr(metadata, "version", raising(metadata.PackageNotFoundError("bnrepro")))
    assert call("--version").out == f"bnrepro {__version__}\n"
    assert provenance.versions()["bnrepro"] == __version__


def test_short_help_and_version(call: Call) -> None:
    for words in (["-h"], ["train", "-h"], ["data", "-h"], ["data", "list", "-h"]):
        assert call(*words) == call(*words[:-1], "--help")
    assert re.fullmatch(r"bnrepro \d+\.\d+\S*\n", call("--version").out)


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("lr", ["optimizer.lr", "epochs"], " Did you mean optimizer.lr?"),
        ("name", ["data.name", "model.name"], " Did you mean data.name or model.name?"),
        ("data.nam", ["data.name", "model.name"], " Did you mean data.name?"),
        ("bs", ["batch_size"], " Did you mean batch_size?"),
        ("warmup", ["schedule.warmup_epochs"], " Did you mean schedule.warmup_epochs?"),
        ("", ["a"], ""),
        ("x", [], ""),
        ("zzz", ["epochs", "seed"], ""),
    ],
)
def test_what_may_have_been_meant(word: str, known: list[str], near: str) -> None:
    assert did_you_mean(word, known) == near


# --- the machine ---

COMMANDS = {
    "train": "bnrepro.training.train.run",
    "compare --seeds=1": "bnrepro.report.compare.grid",
    "sweep seed=0,1": "bnrepro.launch.sweep.expand",
    "reproduce numpynet": "bnrepro.claims.engine.make_plan",
    "figures": "bnrepro.report.compare.find",
    "report": "bnrepro.report.report.write",
    "export": "bnrepro.report.own.gathered",
    "runs": "bnrepro.runs.index.select",
    "show x": "bnrepro.cli.listing.describe",
    "config": "bnrepro.config.to_yaml",
    "eval x": "bnrepro.runs.record.open_run",
    "tensorboard .": "os.execv",
    "bench layers": "bnrepro.bench.output.run",
    "data verify mnist": "bnrepro.data.sources.state",
}
RAISED: list[tuple[Exception, str]] = [
    (OSError(errno.EIO, "no answer", "some/file"), "Error: some/file: no answer. The disk or the network file system"),
    (OSError(errno.EROFS, "read-only"), "Error: read-only. Choose a folder that can be written to."),
    (MemoryError(), "Error: Memory ran out. "),
    (UserError("What.\nWhere."), "Error: What. Where."),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("place", range(len(RAISED)))
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_the_machines_faults_in_a_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: str, place: int
) -> None:
    error, words = RAISED[place]
    monkeypatch.setattr(COMMANDS[command], raising(error))
    line = told(call(*command.split()))
    assert line.startswith(words)
    goes_on = command.split()[0] in ending.GOES_ON
    assert line.endswith(" What has finished is kept.") == (goes_on and not isinstance(error, UserError))
    assert ("batch_size" in line) == (
        isinstance(error, MemoryError) and command.split()[0] in "train compare sweep bench"
    )


@pytest.mark.parametrize(
    "number", sorted(set(errno.errorcode) - {errno.EPIPE, errno.ESHUTDOWN}), ids=errno.errorcode.get
)
def test_every_errno_is_a_sentence_with_a_remedy(call: Call, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("bnrepro.runs.index.select", raising(OSError(number, os.strerror(number), "a/b", None, "c")))
    line = told(call("runs"))
    assert line.startswith(f"Error: a/b -> c: {os.strerror(number)}. ")
    assert errors.REMEDIES.get(number, "Check this, and try again.") in line


def test_no_remedy_tells_to_make_room_where_that_does_not_help() -> None:
    room = {errno.errorcode[n] for n, remedy in errors.REMEDIES.items() if "room" in remedy}
    assert room == {"ENOSPC", "EDQUOT"}


def test_fault_of_the_system_inside_a_librarys_error_is_found() -> None:
    disk = OSError(errno.ENOSPC, "full", "f")
    try:
        try:
            raise disk
        except OSError as error:
            raise ValueError("a library's words") from error
    except ValueError as error:
        assert (sentence(error) or "").startswith("f: full. Make room there")
    try:
        try:
            raise disk
        except OSError:
            raise RuntimeError("torch's words")  # noqa: B904  as torch does it
    except RuntimeError as error:
        assert (sentence(error) or "").startswith("f: full. Make room there")
    assert sentence(TypeError("ours")) is None
    assert sentence(ImportError("No module named x")) is None
    unloaded = "libtorch_cpu.so: failed to map segment from shared object"
    assert (sentence(ImportError(unloaded)) or "").startswith(f"A library cannot be loaded ({unloaded}). If memory is")
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60, dtype=torch.uint8)
    assert (sentence(cpu.value) or "").startswith("Memory ran out.")
    assert (sentence(torch.OutOfMemoryError("x")) or "").startswith("Memory ran out.")


def test_fault_of_ours_keeps_its_traceback_under_a_line_that_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bnrepro.config.to_yaml", raising(TypeError("ours")))
    monkeypatch.setattr(sys, "argv", ["bnrepro", "config"])
    with pytest.raises(TypeError, match="ours"):
        cli.main()
    assert (
        capfd.readouterr().err == "This is a bug in bnrepro (TypeError). Please report it with the following lines:\n"
    )


def test_interrupt_at_any_command_is_a_line_and_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, target in COMMANDS.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, raising(KeyboardInterrupt()))
            result = call(*command.split())
            assert (result.code, result.out) == (130, ""), command
            assert len(result.err.strip().splitlines()) == 1
            assert "Traceback" not in result.err


@pytest.mark.parametrize("command", ["runs", "config", "train", "data list", "figures", "--help"])
def test_deleted_folder_is_named_as_the_reason(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; from bnrepro.cli import main; os.rmdir(os.getcwd()); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=gone, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"Error: {errors.FOLDER_GONE}\n"


def test_umask_that_keeps_owners_out_is_told(call: Call) -> None:
    for mask in (0o777, 0o100):
        before = os.umask(mask)
        try:
            line = told(call("config"))
        finally:
            assert os.umask(before) == mask
        assert line.startswith(
            f"Error: The umask {mask:04o} denies you access to your own files and folders. Set another"
        )


def test_folder_that_may_not_be_looked_into_is_not_empty(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    assert call("runs").code == 0
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may be run by root
    assert "runs: Permission denied. Give yourself the permission" in told(call("runs"))


PLACES = ["/proc", "/proc/x", "file", "file/x", "loop", "loop/x", "a" * 300]


@pytest.mark.parametrize("root", PLACES, ids=lambda root: root[:10])
def test_root_that_can_hold_no_run_is_a_sentence_and_stays_as_it_is(
    call: Call, digits: Path, tmp_path: Path, root: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert root in told(call("train", *TINY, f"data.path={digits}", f"root={root}"))
    for command in (["runs", f"--root={root}"], ["tensorboard", root], ["show", root], ["eval", root]):
        if root != "/proc":
            assert "train root=file" not in told(call(*command))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.parametrize("where", ["file", "file/x", "loop", "/dev/null", "/proc/x"])
@pytest.mark.parametrize("command", ["bench layers", "compare", "reproduce numpynet --preset=smoke", "report"])
def test_results_that_would_have_no_folder_are_refused_before_any_work(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, where: str
) -> None:
    for work in ("bench.layers.layers", "launch.sweep.run_all", "claims.engine.execute", "training.train.rehearse"):
        monkeypatch.setattr(f"bnrepro.{work}", raising(AssertionError("too late")))
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    line = told(call(*command.split(), f"--out={where}"))
    assert where in line
    assert "not a folder" in line or "leads nowhere" in line or where == "/proc/x"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "loop", "runs"}


@pytest.mark.parametrize(
    "command",
    [
        *("show", "eval", "tensorboard", "figures", "runs --root", "figures --root", "figures --out", "compare --out"),
        *(
            "data list --data-root",
            "data fetch mnist --data-root",
            "data verify --data-root",
            "report --out",
            "train data=mnist data.root",
        ),
        *("reproduce --root", "train root"),
    ],
)
def test_link_that_leads_nowhere_is_told_as_such(call: Call, tmp_path: Path, command: str) -> None:
    for name, end in (("loop", "loop"), ("dangling", "not there")):
        (tmp_path / name).symlink_to(end)
        joint = "=" if command.endswith("root") or command.endswith("--out") else " "
        line = told(call(*f"{command}{joint}{name}".split()))
        assert re.search(rf"{name} is a link that leads nowhere, or to itself[.,]", line), line


# --- remedies ---


def test_what_is_printed_of_a_run_can_be_pasted(call: Call, digits: Path) -> None:
    for root in ("-x", "~", "a b"):
        given = [*changed(TINY, "epochs=1"), f"data.path={digits}", f"root=./{root}" if root == "~" else f"root={root}"]
        (run,) = re.findall("^Run: (.*)$", call("train", *given).out, re.MULTILINE)
        assert call("show", *shlex.split(run)).code == 0
        assert run in call("runs", f"--root=./{root}").out
        assert run in call("sweep", *given, "--dry-run").out


def test_path_that_looks_like_an_option_is_told_how_to_be_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "-x" / "y").mkdir(parents=True)
    for path in ("-x", "-x/y"):
        assert f"To name the path, write ./{path}." in told(call("show", path))


def test_missing_runs_are_made_where_the_message_says(call: Call, digits: Path) -> None:
    for root in ("nope", "-x", "$HOME", '"a"', "'a' b", "./~a", "a b"):
        for command in (["runs", f"--root={root}"], ["tensorboard", "--", root]):
            remedy = re.search("`(bnrepro train .*)`", told(call(*command)))
            assert remedy is not None
        (_, *words) = shlex.split(remedy[1])
        assert Path(yaml.safe_load(call("config", *words[1:]).out)["root"]) == Path(root)
    assert call(*words, *changed(TINY, "epochs=1"), f"data.path={digits}").code == 0
    assert "completed" in call("runs", f"--root={root}").out
    assert "There is no run under" in call("runs", f"--root={root}", "--status=failed").out


def test_evaluation_without_a_checkpoint_says_how_to_make_one(call: Call, digits: Path, tmp_path: Path) -> None:
    assert call("train", *changed(TINY, "epochs=1"), f"data.path={digits}", "root=the runs", "schedule=step").code == 0
    (checkpoint,) = tmp_path.rglob("checkpoint.pt")
    checkpoint.unlink()
    path = str(checkpoint.parent.relative_to(tmp_path))
    line = told(call("eval", path))
    (_, *words) = shlex.split(line.partition("This trains the run again: ")[2])
    assert call(*words).code == 0
    assert call("eval", path).code == 0
    assert Run(checkpoint.parent).finished


@pytest.mark.slow
def test_figures_of_an_experiment_that_is_not_there_names_its_command(call: Call) -> None:
    remedy = re.search("`(bnrepro reproduce .*)`", told(call("figures", "numpynet")))
    assert remedy is not None
    assert call(*shlex.split(remedy[1])[1:], "--preset=smoke").code == 0
    assert call("figures", "numpynet").code == 0


@pytest.mark.parametrize("root", ["runs/mnist5k", "runs/mnist5k/lenet/convbn", "runs/mnist5k/lenet/convbn/{run}", "."])
def test_root_that_is_not_the_root_of_its_runs_is_named(call: Call, tmp_path: Path, root: str) -> None:
    cfg = load_config(["variant=convbn", "model=lenet", f"root={tmp_path / 'runs'}"])
    write_whole(run_dir(cfg) / "config.yaml", to_yaml(cfg))
    root = root.format(run=run_dir(cfg).name)
    for place, right in ((root, "runs"), (f"{tmp_path / root}", f"{tmp_path / 'runs'}")):
        line = told(call("runs", f"--root={place}"))
        assert f"{place} lies inside a folder of runs." in line
        assert line.endswith(f" --root={right}.")
    assert run_dir(cfg).name in call("runs", "--root=runs").out
    assert "with --variant=bn. Available: convbn." in told(call("runs", "--root=runs", "--variant=bn"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").touch()
    assert "There is no run under configs." in call("runs", "--root=configs").out


# --- TensorBoard ---


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_in_use_is_told_before_any_address_is(call: Call, tmp_path: Path, taken: int) -> None:
    line = told(call("tensorboard", str(tmp_path), f"--port={taken}"))
    assert f"--port={taken}: this port is in use" in line
    assert "`bnrepro tensorboard --port=0`" in line


def test_port_of_the_system_is_told(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, _: Any) -> None:
            raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(socket, "socket", Refusing)
    assert "Use a larger one, or --port=0" in told(call("tensorboard", str(tmp_path), "--port=80"))


def test_free_port_is_chosen_and_told(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    assert call("tensorboard", str(tmp_path), "--port=0").code == 0
    (command,) = started
    port = command[command.index("--port") + 1]
    assert int(port) > 1023
    assert f"http://localhost:{port}/" in command[4]


@pytest.mark.parametrize("fault", ["raise ImportError('No module named x')", "raise AttributeError('a\\nb')", "1 +"])
def test_tensorboard_that_cannot_be_imported_is_a_sentence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    (tmp_path / "broken" / "tensorboard").mkdir(parents=True)
    (tmp_path / "broken" / "tensorboard" / "__init__.py").write_text(fault)
    call("tensorboard", str(tmp_path), "--port=0")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    done = subprocess.run(started[0], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: TensorBoard cannot be imported (")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_tensorboard_that_is_interrupted_ends_in_a_line(tmp_path: Path, seconds: float) -> None:
    command = Command(tmp_path, ["tensorboard", ".", "--port=0"])
    stat = Path(f"/proc/{command.process.pid}/cmdline")
    command.wait_for(lambda: b"starting" in stat.read_bytes() or not stat.exists())  # Python became it
    time.sleep(seconds)
    command.signal(signal.SIGINT)
    assert command.ended() == 130
    err = command.err.read_text()
    assert err.endswith("\nInterrupted.\n")
    assert "Traceback" not in err


# --- examples ---


def helps() -> dict[str, str]:
    """The help of every command."""
    root = typer.main.get_command(cli.app)
    found = {"bnrepro": root.get_help(root.make_context("bnrepro", [], resilient_parsing=True))}
    for name, command in root.commands.items():
        for path, each in [(f"bnrepro {name}", command)] + [
            (f"bnrepro {name} {inner}", it) for inner, it in getattr(command, "commands", {}).items()
        ]:
            found[path] = each.get_help(each.make_context(path, [], resilient_parsing=True))
    return found


def examples() -> list[str]:
    """What help, README, how-to pages, docstrings and messages show as something to type."""
    shown = [line.strip() for text in helps().values() for line in text.splitlines()]
    shown = [line.removeprefix("Example: ") for line in shown]
    for page in (PACKAGE.parent / "README.md", *sorted((PACKAGE.parent / "docs/howto").glob("*.md"))):
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            shown += block.splitlines()
    sources = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    shown += re.findall(r"`(bnrepro [^`{}\n\"]+)`", sources)
    return sorted({line for line in shown if re.match(r"(bnrepro|torchrun) ", line)} - {"bnrepro runs | head"})


def test_every_example_can_be_pasted_into_a_shell() -> None:
    assert len(examples()) > 30
    done = subprocess.run(["bash", "-n"], input="\n".join(examples()), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for line in examples():  # brackets, stars and question marks outside quotes would name files
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert not re.search(r"[\[\]*?(){}<>|;$&!#~]", bare), line


@pytest.mark.parametrize("line", [line for line in examples() if line.startswith("bnrepro ")])
def test_every_example_is_understood(line: str) -> None:
    from bnrepro.config import load_config
    from bnrepro.launch.sweep import expand

    command: Any = typer.main.get_command(cli.app)
    (_, *words) = shlex.split(line)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    if not words:
        return  # names the command
    given = command.make_context(line, words).params.get("overrides") or []
    for each in expand([text for text in given if not text.startswith("launcher.")]):
        load_config(each)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["runs", "--status=complete"],
            "--status: there is no status 'complete'. Did you mean completed? Available:",
        ),
        (["runs", "--status=done"], "running, running or interrupted, damaged."),
        (["figures", "labml", "--root=elsewhere"], "--root=elsewhere is not used"),
        (["bench", "layers", "epochs=2"], "epochs=2 is not used"),
        (["train", "--variant=bn", "epochs=1", "--variant", "convbn"], "--variant is given twice: 'bn' and 'convbn'"),
        (["compare", "--seeds=3", "--seeds=4"], "--seeds is given twice"),
        (["compare", "--out=/proc/x", "--seeds=1", "--variants=bn"], "/proc/x"),
    ],
)
def test_what_a_command_does_not_use_is_an_error(call: Call, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in " ".join(result.err.split())
