"""What a shell is offered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bnrepro import cli
from bnrepro.cli import completion
from bnrepro.cli.completion import ACTIVATIONS, SCRIPTS, candidates
from bnrepro.experiments import experiment
from bnrepro.norm import NORMS
from bnrepro.training import model
from tests.conftest import Call

PARSER = typer.main.get_command(cli.app)
OFFERED = [
    ("bnrepro tra", ["train"]),
    ("bnrepro data f", ["fetch"]),
    ("bnrepro train --va", ["--variant"]),
    ("bnrepro train --variant=convb", ["--variant=convbn"]),
    ("bnrepro train --variant convb", ["convbn"]),
    ("bnrepro compare --variants=bn,loc", ["--variants=bn,locationaffinebn"]),
    ("bnrepro train optimizer.na", ["optimizer.name="]),
    ("bnrepro train optimizer.name=ad", ["optimizer.name=adam", "optimizer.name=adamw"]),
    ("bnrepro train data=mn", ["data=mnist", "data=mnist5k"]),
    ("bnrepro train model.activation=", [f"model.activation={each}" for each in ACTIVATIONS]),
    ("bnrepro train data.flip=", ["data.flip=true", "data.flip=false"]),
    ("bnrepro sweep variant=bn,gh", ["variant=bn,ghostbn"]),
    ("bnrepro reproduce io", ["ioffe2015"]),
    ("bnrepro runs --where optimizer.l", ["optimizer.lr="]),
    ("bnrepro runs --status=div", ["--status=diverged"]),
    ("bnrepro train 'variant=conv", ["variant=convbn"]),
    ("ls | bnrepro swe", ["sweep"]),
    ("bnrepro train --seed=", []),
    ("bnrepro data fetch fas", ["fashion_mnist"]),
    ("bnrepro nosuch x", []),
]


@pytest.mark.parametrize(("line", "found"), OFFERED)
def test_last_word_is_completed(line: str, found: list[str]) -> None:
    assert candidates(line, PARSER) == found


def test_all_that_is_offered_is_there() -> None:
    assert list(model.ACTIVATIONS) == list(ACTIVATIONS)
    assert candidates("bnrepro train --variant=", PARSER) == [f"--variant={name}" for name in NORMS]
    for name in ("placement", "ioffe2015", "labml"):
        offered = candidates(f"bnrepro reproduce {name}/", PARSER)
        assert set(offered) == {f"{name}/{claim.id}" for claim in experiment(name).claims}


def test_runs_are_offered_by_path_name_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/mnist5k/lenet/bn/seed0-0123456789abcdef")
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    for written, found in (("", str(run)), ("runs/mn", str(run)), ("0123", "0123456789abcdef"), ("seed0", run.name)):
        assert candidates(f"bnrepro show {written}", PARSER) == [found]
    assert candidates("bnrepro show --root=elsewhere ", PARSER) == []


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("bnrepro tra", "train"),
        ("bnrepro train optimizer.name=adamw", "adamw"),
        ("bnrepro train --variant=convb", "convbn"),
    ],
)
def test_bash_takes_it(tmp_path: Path, line: str, found: str) -> None:
    """Bash splits words at =, and replaces only what follows."""
    program = tmp_path / "bnrepro"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bnrepro "$@"\n')
    program.chmod(0o755)
    split = line.replace("=", " = ").split()
    words = " ".join(f"'{word}'" for word in split)
    script = f"{SCRIPTS['bash']}\nCOMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_WORDS=({words})\n"
    script += "compopt() { :; }\n_bnrepro; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout.splitlines(), done.stderr) == ([found], "")


def test_completion_imports_nothing_heavy_and_never_fails(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['bnrepro']\nfrom bnrepro.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print({'torch', 'numpy', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
        completion.LINE: "bnrepro train --variant=",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--variant=convbn" in done.stdout


@pytest.mark.parametrize(
    "line", ["", "bnrepro", "'", "bnrepro \\", "bnrepro train a=b=c,", "bnrepro runs --where", "é |"]
)
def test_no_line_is_an_error(call: Call, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv(completion.LINE, line)
    result = call("whatever")
    assert (result.code, result.err) == (0, "")
