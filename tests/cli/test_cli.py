"""The command line as a user meets it: exit codes, sentences, and what the commands print and leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from bnrepro.norm import NORMS
from bnrepro.runs import record
from bnrepro.runs.record import Run
from tests.conftest import TINY, Call, changed


@pytest.fixture
def short(digits: Path) -> list[str]:
    """Overrides that train in about a second."""
    return [*TINY, f"data.path={digits}"]


def python(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        # Where the tests themselves run in a shell's background, SIGINT is ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# --- quick ---


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['bnrepro', '--help']\nfrom bnrepro.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print({'torch', 'hydra', 'numpy', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    process = python("-c", code, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "set()", out + err


def test_training_does_not_import_torchs_compiler(short: list[str], tmp_path: Path) -> None:
    """It is more than a second at each start, and torch's own optimizers import it only to switch it off."""
    code = f"import sys; sys.argv = ['bnrepro', 'train', *{short!r}, 'epochs=1']\nfrom bnrepro.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print({'torch._dynamo', 'triton', 'sympy', 'tensorboard', 'matplotlib'} & set(sys.modules))"
    process = python("-c", code, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "set()", out + err


COMMANDS = [
    "train",
    "compare",
    "sweep",
    "register",
    "reproduce",
    "figures",
    "report",
    "export",
    "runs",
    "show",
    "diff",
    "watch",
    "prune",
    "config",
    "norms",
    "eval",
    "tensorboard",
    "bench",
    "doctor",
    "completion",
    "data",
]


def test_help_lists_every_command_in_full(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.split("Commands:")[1].splitlines() if line.strip()] == COMMANDS
    assert "..." not in result.out.split("Commands:")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, command: str) -> None:
    result = call(command, "--help")
    assert result.code == 0
    assert f"Usage: bnrepro {command}" in result.out


def test_config_prints_what_would_run(call: Call) -> None:
    result = call("config", "--variant=convbn", "--seed=4", "optimizer.lr=0.5")
    assert result.code == 0
    config = yaml.safe_load(result.out)
    assert (config["variant"], config["seed"], config["optimizer"]["lr"]) == ("convbn", 4, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "--seed=4", "seed=5"], "seed is given twice: seed=5 and --seed=4"),
        (["train", "--variant=bn", "variant=convbn"], "variant is given twice: variant=convbn and --variant=bn"),
        (["config", "epochs=2", "optimizer.lr=0.1", "epochs=3"], "epochs is given twice: epochs=2 and epochs=3"),
        (["config", "model=lenet", "model=resnet20"], "model is given twice"),
        (
            ["config", "model=lenet", "model.name=vgg_small"],
            "model.name is given twice: model=lenet and model.name=vgg",
        ),
        (["config", "model=n.py:A", "model=n.py:B"], "model is given twice: model=n.py:A and model=n.py:B"),
        (["config", "model=n.py:A", "model.name=n.py:B"], "model.name is given twice"),
        (["config", "model=lenet", "model=n.py:B"], "model is given twice"),
        (["config", "variant=n.py:A", "norm.file=m.py"], "norm.file is given twice: norm.file=m.py and variant="),
        (
            ["train", "optimizer.name=sgd", "optimizer=adam"],
            "optimizer.name is given twice: optimizer=adam and optimiz",
        ),
        (
            ["config", "schedule=cosine", "schedule.name=step"],
            "schedule.name is given twice: schedule=cosine and sched",
        ),
        (["compare", "data=mnist", "data.name=cifar10"], "data.name is given twice: data=mnist and data.name=cifar10"),
        (["sweep", "optimizer=adam,sgd", "optimizer.name=sgd"], "optimizer.name is given twice"),
        (["sweep", "seed=0,1", "seed=2", "--dry-run"], "seed is given twice"),
        (["compare", "seed=3", "--seeds=1"], "seed=3 is not used here. Use --seeds=N to compare seeds 0 to N - 1"),
        (["compare", "variant=bn"], "variant=bn is not used here. Use --variants=bn,convbn"),
    ],
)
def test_what_is_said_twice_or_not_used_is_an_error(call: Call, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert (result.code, words in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed=5", "seed=5"],
        ["optimizer.lr=0.1", "optimizer.lr=1e-1"],
        ["epochs=2", "epochs=2"],
        ["optimizer=adam", "optimizer.name=adam"],
        ["recipe=cifar_fast", "optimizer.name=adam", "optimizer.nesterov=false"],  # a recipe is there to be changed
        ["data=mnist", "data.name=mine", "data.source=npz", "data.path=x.npz"],  # treated like MNIST
    ],
)
def test_what_is_said_twice_and_the_same_is_none(call: Call, arguments: list[str]) -> None:
    assert call("config", *arguments).code == 0


# --- what the user can mend ---

WRONG = [
    (["train", "--variant=nosuch"], "Available: nobn, bn, custombn, convbn"),
    (["train", "--varian=bn"], "--varian"),
    (["train", "--seed=x"], "--seed"),
    (["train", "epochz=3"], "epochz"),
    (["train", "epochs=three"], "epochs must be an integer"),
    (["train", "epochs=0"], "epochs must be 1 or more; got 0"),
    (["train", "epochs"], "key=value"),
    (["train", "data=nowhere"], "mnist5k"),
    (["train", "data.name=digits", "data.source=npz", "data.path=none.npz"], "none.npz"),
    (["compare", "--variants=nobn,nosuch"], "nosuch"),
    (["compare", "--variants="], "variant"),
    (["compare", "--seeds=0"], "--seeds"),
    (["compare", "--threshold=2"], "--threshold"),
    (["compare", "--threshold=0.3", "data.val_fraction=0"], "--threshold is not used without a validation set"),
    (
        ["train", "data.source=npz", "data.path=a/my flowers.npz"],
        "the dataset needs a name, as in data.name=my_flowers",
    ),
    (["compare", "data.path=f.npz", "data.source=npz"], "the dataset needs a name, as in data.name=f."),
    (["sweep", "variant=bn,nosuch"], "nosuch"),
    (["sweep", "optimizer.lr=interval(0,1)"], "a list of values, not an interval"),
    (["sweep", "--launcher=nosuch"], "Available: local, slurm"),
    (["sweep", "launcher.cpus=2"], "--launcher=slurm"),
    (["sweep", "--launcher=slurm", "launcher.cpu=2"], "Did you mean launcher.cpus?"),
    (["sweep", "--launcher=slurm", "launcher.cpus=0"], "launcher.cpus must be 1 or more"),
    (["compare", "--launcher=slurm", "--jobs=2"], "launcher.parallelism"),
    (["reproduce", "numpynet", "launcher.cpus=2"], "--launcher=slurm"),
    (["show", "nowhere"], "nowhere does not exist"),
    (["eval", "nowhere"], "nowhere does not exist"),
    (["figures"], "There is no comparison under runs"),
    (["figures", "nowhere"], "There is no folder nowhere, and no experiment of that name. `bnrepro compare` and"),
    (["reproduce", "nosuch"], "Available: conv_batchnorm, keras_curves, labml, numpynet, placement"),
    (["reproduce", "numpynet", "--preset=nosuch"], "numpynet has no preset 'nosuch'. Available: smoke, quick, full"),
    (["reproduce", "--jobs=0"], "--jobs"),
    (["reproduce", "--archive=cifar10"], "--archive=cifar10 is not of the form NAME=FILE"),
    (
        ["reproduce", "--archive=nosuch=a.npz"],
        "--archive: there is no dataset 'nosuch'. Available: mnist5k, mnist, fas",
    ),
    (["reproduce", "--archive=cifar10=none.npz"], "none.npz does not exist"),
    (["report"], "There are no results under results"),
    (["figures", "labml"], "`bnrepro reproduce labml` makes them"),
    (["runs", "--sort=colour"], "--sort"),
    (["tensorboard", "nowhere"], "There is no folder nowhere"),
    (["train", f"root={'a' * 256}"], "is too long for this file system. Use a shorter root."),
    (["reproduce", "labml", f"--root={'a' * 256}"], "File name too long. Choose a shorter path."),
    (["train", "data.name=x", "data.source=npz", f"data.path={'a' * 256}"], "is too long for this file system."),
    (
        ["data", "fetch", "MNIST"],
        "'MNIST'. Did you mean mnist? Available: mnist5k, mnist, fashion_mnist, cifar10, cifar100.\n",
    ),
    (
        ["data", "verify", "nosuch"],
        "NAME: there is no dataset 'nosuch'. Available: mnist5k, mnist, fashion_mnist, cifar10, ci",
    ),
    (["config", "data.name=nosuch"], "cifar100; any other can be read with data.source=npz data.path=FILE."),
    (["figures", "Labml"], "There is no folder Labml, and no experiment of that name. Did you mean labml?"),
    (["data", "verify", "mnist"], "train-images-idx3-ubyte"),
    (["data", "verify", "--data-root=nope"], "There is no folder nope"),
    (["data", "verify", "--data-root=/dev/null"], "--data-root=/dev/null is not a folder"),
    (["data", "list", "--root=/dev/null"], "--data-root=/dev/null is not a folder"),
    (["data", "fetch", "mnist5k", "--data-root=/dev/null/x"], "--data-root=/dev/null/x: /dev/null is not a folder"),
    (["nosuch"], "nosuch"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_mistake_is_one_sentence_and_exit_code_2(call: Call, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert words in result.err + result.out
    assert "Traceback" not in result.err
    assert sum(line.startswith("Error: ") for line in result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_told_in_a_sentence(call: Call, short: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = call("train", *short)
    assert result.code == 2
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err


# --- one run, from training to evaluation ---


def test_train_says_accuracy_directory_and_tensorboard(call: Call, short: list[str]) -> None:
    result = call("train", "--variant=convbn", *short)
    assert result.code == 0, result.err
    first, second, third = result.out.splitlines()
    path = Path(second.removeprefix("Run: "))
    summary = Run(path).summary
    assert f"test accuracy {summary['test_accuracy']:.4f}" in first
    assert "digits.npz" in first
    assert third == "Curves: bnrepro tensorboard"
    assert "epoch 1: loss" in result.err
    again = call("train", "--variant=convbn", *short)
    assert "already stored" in again.out
    assert again.out.splitlines()[1:] == result.out.splitlines()
    assert "already stored" not in call("train", "--variant=convbn", "--force", *short).out

    shown = call("show", str(path)).out
    assert f"test_accuracy     {summary['test_accuracy']}" in shown
    assert "variant: convbn" in shown
    listed = call("runs")
    assert str(path) in listed.out
    assert f"{summary['test_accuracy']:.4f}" in listed.out
    for wrong in ("--variant=bn", "--variant=convbn,bn", "--model=LeNet", "--dataset=digit"):
        assert call("runs", wrong).err.startswith(f"Error: There is no run under runs with {wrong}.")
    assert call("runs", "--variant=CONVBN").err.endswith(" Did you mean convbn? Available: convbn.\n")
    assert "There is no run under runs with --status=failed." in call("runs", "--status=failed").out
    assert call("runs", "--csv").out.splitlines()[1].startswith("digits,lenet,convbn,0,completed,")


def test_runs_are_listed_as_they_say_and_not_as_they_lie(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "digits" / "lenet"
    for variant in ("bn", "convbn", "nobn"):
        summary = {"status": "interrupted", "dataset": "digits", "model": "lenet", "variant": variant, "seed": 0}
        record.write_summary(folder / variant / "seed0-0", summary)
        record.write_whole(folder / variant / "seed0-0" / "config.yaml", "")
    (folder / "bn").rename(folder / "zzz")
    (folder / "nobn" / "seed0-0").rename(folder / "seed0-0")
    (tmp_path / "runs" / "digits").rename(tmp_path / "runs" / "other")
    listed = call("runs", "--csv", "--dataset=digits")
    assert [line[:15] for line in listed.out.splitlines()[1:]] == ["digits,lenet,co", "digits,lenet,bn"]
    assert listed.err == "runs/other/lenet/seed0-0 is not listed: move it into runs/<dataset>/<model>/<variant>.\n"
    assert "seed0-0" in call("runs", "--variant=bn").out


def test_diverged_run_is_told_as_a_result(call: Call, short: list[str]) -> None:
    result = call("train", "--variant=nobn", *short, "optimizer=sgd", "optimizer.lr=1e20")
    assert result.code == 0
    assert "diverged at step" in result.out


def test_eval_under_running_averages_is_what_training_measured(call: Call, short: list[str]) -> None:
    out = call("train", "--variant=convbn", *short).out
    path = out.splitlines()[1].removeprefix("Run: ")
    results = {kind: call("eval", path, f"--statistics={kind}") for kind in ("ema", "population", "batch")}
    assert {result.code for result in results.values()} == {0}
    assert f"accuracy {Run(Path(path)).summary['test_accuracy']:.4f}" in results["ema"].out.splitlines()[1]
    assert len({result.out.replace(kind, "") for kind, result in results.items()}) == 3
    wrong = call("eval", path, "--statistics=nosuch")
    assert (wrong.code, "ema, population, batch" in wrong.err) == (2, True)


def test_eval_at_another_size_fits_local_statistics_and_says_where_it_cannot(call: Call, short: list[str]) -> None:
    small = changed(short, "model=resnet20", "model.width=0.25", "epochs=1")
    out = call("train", "--variant=convbn", *small).out
    path = out.splitlines()[1].removeprefix("Run: ")
    plain, same, other = (call("eval", path, *more) for more in ([], ["--size=28"], ["--size=20"]))
    assert (plain.code, plain.out) == (0, same.out)
    assert (other.code, len(other.out.splitlines())) == (0, 2)
    assert other.out != plain.out
    for kind in ("population", "batch"):
        assert call("eval", path, "--size=20", f"--statistics={kind}").code == 0
    out = call("train", "--variant=convbn", *short).out
    for size in (20, 60_000):
        refused = call("eval", out.splitlines()[1].removeprefix("Run: "), f"--size={size}")
        assert (refused.code, "lenet takes images of one size" in refused.err) == (2, True), refused.err
    out = call("train", "--variant=layernorm", *small).out
    refused = call("eval", out.splitlines()[1].removeprefix("Run: "), "--size=20")
    assert (refused.code, "variant=layernorm takes maps of one size" in refused.err) == (2, True)
    assert "--size=60000: memory ran out. Use a smaller --size." in call("eval", path, "--size=60000").err


@pytest.mark.slow
def test_compare_prints_and_writes_table_and_figures_and_figures_draws_them_again(
    call: Call, short: list[str], tmp_path: Path
) -> None:
    arguments = ["compare", "--seeds=2", "--variants=nobn,convbn", *short]
    result = call(*arguments)
    assert result.code == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines()[:3]] == ["variant", "nobn", "convbn"]
    (folder,) = (tmp_path / "runs" / "digits" / "lenet").glob("compare-*")
    assert {file.name for file in folder.glob("[a-z]*.*")} == {
        *("table.csv", "runs.csv", "curves.csv", "measurements.csv", "provenance.json")
    }
    drawn = {file.name: file.read_bytes() for file in (folder / "figures").iterdir()}
    assert {"train_accuracy.png", "train_loss.svg", "val_accuracy.svg", "val_loss.png"} <= drawn.keys()
    for file in (folder / "figures").iterdir():
        file.unlink()
    (folder / "table.csv").unlink()
    assert call("figures").code == 0
    assert {file.name: file.read_bytes() for file in (folder / "figures").iterdir()} == drawn
    out = call(*arguments, f"--out={tmp_path / 'results'}").out
    assert (tmp_path / "results" / "table.csv").read_bytes() == (folder / "table.csv").read_bytes()
    assert out.splitlines()[:3] == result.out.splitlines()[:3]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["compare", "--variants=nobn,instancenorm", "--seeds=4"], "instancenorm needs maps of more than one location"),
        (["compare", "--variants=nobn,convbn", "batch_size=1"], "Use batch_size=2 or more"),
        (["sweep", "variant=nobn,convbn", "seed=range(3)", "batch_size=60,1"], "Use batch_size=2 or more"),
    ],
)
def test_a_norm_that_does_not_fit_is_told_of_once_and_before_anything_runs(
    call: Call, short: list[str], tmp_path: Path, arguments: list[str], reason: str
) -> None:
    command, *rest = arguments
    overrides = changed(short, *(text for text in rest if not text.startswith("--")))
    result = call(command, *(text for text in rest if text.startswith("--")), *overrides)
    assert result.code == 2
    assert " ".join(result.err.split()).count(reason) == 1
    assert not (tmp_path / "runs").exists()


class Failing(torch.nn.Identity):
    """A layer with a mistake in it, which only training finds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("a mistake")
        return x


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "failing", lambda c, s, options: Failing())


def test_show_tells_how_a_verdict_was_made(call: Call) -> None:
    published = Path(__file__).parents[2] / "results" / "experiments"
    claims = json.loads((published / "zhu2025" / "claims.json").read_text())
    told = call("show", "zhu2025/Z2", f"--out={published}")
    assert told.code == 0, told.err
    (claim,) = [each for each in claims if each["id"] == "zhu2025/Z2"]
    text = " ".join(told.out.split())
    for part in (claim["sentence"], claim["found"], claim["command"], "Why this verdict", claim["design_hash"]):
        assert part in text
    assert f"zhu2025/Z2: {claim['verdict'].upper()} ({claim['scale']})" in text
    assert json.loads(call("show", "zhu2025/Z2", f"--out={published}", "--json").out) == [claim]
    paper = " ".join(call("show", "zhu2025", f"--out={published}").out.split())
    assert all(each["sentence"] in paper and each["answer"] in paper for each in claims)
    assert " ".join(call("show", str(published / "zhu2025")).out.split()) == paper
    told = call("show", "zhu2025/Z9", f"--out={published}")
    assert told.code == 2
    assert "zhu2025 has no claim 'Z9'." in told.err
    assert "Available: Z1, Z2, Z3, Z4." in told.err
    away = call("show", "zhu2025/Z2", "--out=elsewhere")
    assert (away.code, "elsewhere/zhu2025 holds no results of zhu2025. Those that come with a clone" in away.err) == (
        2,
        True,
    )
    near = "Error: There is no run and no experiment 'zuh2025'. Did you mean zhu2025?\n"
    assert call("show", "zuh2025/Z2").err == near
    assert "no experiment 'nosuch'. The experiments are conv_batchnorm, " in call("show", "nosuch/X1").err
    assert call("show", "convbn/seed0").err == "Error: convbn/seed0 does not exist. `bnrepro runs` lists the runs.\n"


@pytest.mark.slow
@pytest.mark.usefixtures("failing")
def test_comparison_with_a_failed_variant_shows_the_others_and_fails(call: Call, short: list[str]) -> None:
    overrides = changed(short, "epochs=1")
    result = call("compare", "--jobs=1", "--seeds=1", "--variants=nobn,failing", *overrides)
    assert result.code == 2
    assert result.out.splitlines()[1].startswith("nobn")
    assert "RuntimeError: a mistake" in result.err
    assert "2 runs: 1 made now, 1 failed." in result.err
    assert "1 of 2 runs failed" in result.err


def test_sweep_runs_every_combination_and_goes_on_with_what_is_missing(call: Call, short: list[str]) -> None:
    arguments = ["sweep", "variant=bn,nobn", "seed=range(2)", *changed(short, "epochs=1"), "--jobs=1"]
    dry = call(*arguments, "--dry-run")
    assert (dry.code, dry.out.count("to run "), dry.err) == (0, 4, "")
    assert dry.out.splitlines()[-1] == "4 runs, 4 still to run; duration unknown, since nothing similar has been run."
    assert call("train", "--variant=bn", "--seed=0", *changed(short, "epochs=1")).code == 0
    again = call(*arguments, "--dry-run").out
    assert again.count("completed ") == 1
    assert re.search(r"4 runs, 3 still to run; about \d+ s\.", again), again
    done = call(*arguments)
    assert done.code == 0
    assert [line.replace("*", "").split()[:2] for line in done.out.splitlines()[1:3]] == [
        ["variant=bn", "2"],
        ["variant=nobn", "2"],
    ]
    assert done.err.count(": completed") == 4
    assert sum(line.startswith("* ") for line in done.out.splitlines()) == 2  # the best, and what the mark means
    folder = Path(next(line for line in done.out.splitlines() if line.startswith("Table and")).partition(": ")[2])
    assert {file.name for file in folder.iterdir()} == {"table.csv", "accuracy.svg", "accuracy.png"}
    assert call("runs", "--csv").out.count("completed") == 4

    compare = ["compare", "--variants=bn,nobn", "--seeds=2", *changed(short, "epochs=1"), "--dry-run"]
    assert call(*compare).out.splitlines()[-1] == "4 runs, 0 still to run."  # those of the sweep
    for summary in Path().glob("runs/*/*/*/seed*/summary.json"):
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"seconds": 60.0}))
    forced = call(*compare, "--force", "--jobs=2").out
    assert forced.count("(to run again)") == 4
    assert forced.endswith("4 runs, 4 still to run; about 2 min.\n")
    longer = call(*changed(compare, "epochs=3"), "--jobs=1", "--json")
    assert [(row["status"], row["to_run"]) for row in json.loads(longer.out)] == [("to run", True)] * 4
    assert call(*changed(compare, "epochs=3"), "--jobs=1").out.endswith("4 still to run; about 12 min.\n")
    assert not list(Path().glob("runs/*/*/compare-*"))


def cut_lines(file: Path) -> None:
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")


def lead_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


LOSSES: dict[str, Callable[[Path], None]] = {
    "no configuration": lambda run: (run / "config.yaml").unlink(),
    "no metrics": lambda run: (run / "metrics.csv").unlink(),
    "configuration elsewhere": lambda run: lead_nowhere(run / "config.yaml"),
    "metrics elsewhere": lambda run: lead_nowhere(run / "metrics.csv"),
    "empty metrics": lambda run: (run / "metrics.csv").write_text(""),
    "metrics without rows": lambda run: cut_lines(run / "metrics.csv"),
    "cut metrics": lambda run: (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes()[:-9]),
    "a column more": lambda run: (run / "metrics.csv").write_text(
        (run / "metrics.csv").read_text().replace("\n", ",1\n")
    ),
    "damaged summary": lambda run: (run / "summary.json").write_text("{"),
}


@pytest.mark.slow
def test_run_that_has_ended_and_lost_something_is_damaged_wherever_it_is_asked_for(
    call: Call, short: list[str]
) -> None:
    one = [*changed(short, "epochs=1"), "--jobs=1"]
    train, *others = (
        ["train", "--variant=bn", *one[:-1]],
        ["compare", "--variants=bn", "--seeds=1", *one],
        ["sweep", "variant=bn", *one],
        ["sweep", "variant=bn", *one, "--dry-run"],
    )
    assert call(*train).code == 0
    run = next(Path("runs").glob("*/*/bn/seed0-*"))
    shutil.copytree(run, "whole")
    for name, harm in LOSSES.items():
        shutil.rmtree(run)
        shutil.copytree("whole", run)
        harm(run)
        for command in (train, *others):
            result = call(*command)
            assert (result.code, result.out) == (2, ""), (name, command)
            assert re.fullmatch(
                rf"Error: {run}\S* is damaged \(.*\)\. Run it again with --force, or move the run's folder away\.\n",
                result.err,
            ), result.err
        listed = call("runs").out.splitlines()[1]
        assert listed.endswith(str(run)), (name, listed)
        assert "damaged" in listed, (name, listed)
        for command in ("show", "eval"):
            code, out, err = call(command, str(run))
            assert (code, out) == (2, ""), (name, command, err)
            assert " is damaged (" in err, (name, command, err)
    assert call(*train, "--force").code == 0
    assert call(*others[0]).code == 0
    cut_lines(run / "metrics.csv")
    run.rename("away")
    assert call(*others[1]).code == 0


def test_sweep_counts_a_run_in_two_writings_once(call: Call, short: list[str]) -> None:
    rates = ["optimizer.lr=0.1,1e-1", "seed=0,0"]
    result = call("sweep", *changed(short, "epochs=1"), *rates, "--jobs=1")
    assert (result.code, result.out.splitlines()[1].split()[:2]) == (0, ["all", "1"]), result.out
    assert result.err.count("this run is given more than once") == 3
    assert "1 run: 1 made now." in result.err
    again = call("sweep", *changed(short, "epochs=1"), *rates, "--jobs=1")
    assert "1 run: 1 found." in again.err
    assert "1 run, 0 still to run." in call("sweep", *changed(short, "epochs=1"), *rates, "--dry-run").out


def test_sweep_with_a_run_that_cannot_be_made_is_refused_before_it(call: Call, short: list[str]) -> None:
    result = call("sweep", *changed(short, "batch_size=60,5000"), "--jobs=1")
    assert (result.code, "batch_size=5000 is more than" in result.err) == (2, True)
    assert "There is no folder runs" in call("runs").err


@pytest.mark.usefixtures("failing")
def test_sweep_with_a_run_that_fails_keeps_its_error_and_ends_with_2(call: Call, short: list[str]) -> None:
    result = call("sweep", *changed(short, "epochs=1"), "variant=failing,nobn", "--jobs=1")
    assert result.code == 2
    assert "1 of 2 runs failed" in result.err
    assert [line.split()[-2:] for line in result.out.splitlines()[1:3]] == [["-", "1"], ["-", "-"]]
    assert call("runs", "--status=failed", "--csv").out.count("failed") == 1


# --- several at once ---


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "figures", "report"])
def test_command_that_is_given_several_times_at_once_ends_as_once(
    call: Call, short: list[str], tmp_path: Path, command: str
) -> None:
    overrides = changed(short, "epochs=1", "tensorboard=true")
    arguments = ["compare", "--jobs=1", "--seeds=1", "--variants=nobn,bn", *overrides]
    if command != "compare":
        assert call(*arguments).code == 0
        arguments = [command, "--out=runs"] if command == "report" else [command]
    processes = [python("-m", "bnrepro", *arguments, cwd=tmp_path) for _ in range(4)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0] * 4, ends
    assert list(tmp_path.rglob("*.tmp")) == []
    (folder,) = (tmp_path / "runs" / "digits" / "lenet").glob("compare-*")
    assert {len(list((folder / variant).glob("events*"))) for variant in ("bn", "nobn")} == {1}
    before = {file: file.read_bytes() for file in folder.rglob("*.*") if "events" not in file.name}
    assert call("figures").code == 0
    assert {file: file.read_bytes() for file in before} == before


# --- signals ---


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_run_ended_by_a_signal_goes_on_where_it_was(
    call: Call, short: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    overrides = ["--variant=bn", *changed(short, "epochs=30"), f"root={tmp_path / 'signalled'}"]
    process = python("-m", "bnrepro", "train", *overrides, cwd=tmp_path)
    path = _wait_for(lambda: next((tmp_path / "signalled").rglob("metrics.csv"), None)).parent
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    assert "Traceback" not in err
    assert Run(path).status == "interrupted"
    assert "running" not in call("runs", f"--root={tmp_path / 'signalled'}").out
    assert call("train", *overrides).code == 0
    assert call("train", *overrides[:-1]).code == 0
    curves = [Run(p).metrics for p in sorted(tmp_path.rglob("seed0-*"))]
    assert len(curves) == 2
    assert len(curves[0]) == 30
    assert [r["val_loss"] for r in curves[0]] == [r["val_loss"] for r in curves[1]]


def _wait_for(found: Callable[[], Path | None]) -> Path:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if result := found():
            return result
        time.sleep(0.02)
    raise TimeoutError


# --- TensorBoard ---


@pytest.fixture
def server(call: Call, short: list[str], tmp_path: Path) -> Iterator[str]:
    """The address of ``bnrepro tensorboard`` on one comparison."""
    overrides = changed(short, "tensorboard=true", "epochs=1")
    call("compare", "--jobs=1", "--seeds=2", "--variants=nobn,convbn", *overrides)
    process = python("-m", "bnrepro", "tensorboard", "--port=0", cwd=tmp_path)
    assert process.stderr
    lines = iter(process.stderr.readline, "")
    yield next(line.split(" at ")[1].split(" ")[0] for line in lines if " at http" in line)
    process.terminate()
    process.communicate(timeout=30)


def test_tensorboard_shows_the_variants_curves_under_one_tag(server: str) -> None:
    assert server.startswith("http://localhost:")

    def ask(page: str) -> dict:
        with urllib.request.urlopen(f"{server}{page}", timeout=30) as answer:
            return json.load(answer)

    def tags() -> dict:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if len(found := ask("data/plugin/scalars/tags")) == 6:
                return found
            time.sleep(0.2)
        raise TimeoutError

    found = tags()
    means = [run for run in found if "compare-" in run]
    assert sorted(run.rsplit("/", 1)[1] for run in means) == ["convbn", "nobn"]
    assert all({"accuracy/val", "loss/train"} <= set(found[run]) for run in found)


BROWSERS = [path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))][:1]


@pytest.mark.slow
@pytest.mark.skipif(not BROWSERS, reason="there is no browser")
@pytest.mark.parametrize("browser", BROWSERS or ["none"])
def test_browser_draws_the_variants_on_one_chart(server: str, browser: str, tmp_path: Path) -> None:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"{server}?runFilter=compare&tagFilter=accuracy/val$#timeseries"
    until, charts = time.monotonic() + 180, list[str]()
    while not (len(charts) == 1 and all(f"/{variant}" in charts[0] for variant in ("nobn", "convbn"))):
        assert time.monotonic() < until, charts  # TensorBoard reads the events, and draws them, when it gets to it
        command = [browser, *options, "--virtual-time-budget=20000", "--window-size=1200,1600", "--dump-dom", page]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        charts = re.findall(r"<scalar-card.*?</scalar-card>", found, re.DOTALL)
    (chart,) = charts
    assert "accuracy/val" in chart
    assert re.search(r"compare-\w+/nobn", chart)
    assert re.search(r"compare-\w+/convbn", chart)
