"""Runs on a real Slurm: bit-equal to local ones, and nothing lost whatever happens to a job or to who submitted it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from bnrepro.config import run_dir, to_yaml
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.launch import slurm
from bnrepro.launch.job import Ticket
from bnrepro.launch.options import Options, load_options
from bnrepro.launch.sweep import Outcome
from bnrepro.runs import record
from bnrepro.runs.record import Run
from bnrepro.training import train
from tests.conftest import Call
from tests.launch import cluster

Tiny = Callable[..., Config]
Act = Callable[[str], object]

LONG = "epochs=150"  # some seconds, so that it is met while it trains on a busy machine as well


@pytest.fixture(scope="module")
def node() -> Iterator[None]:
    if lacking := cluster.missing():
        pytest.skip(f"Slurm is not installed (no {', '.join(lacking)}): apt-get install slurm-wlm munge")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        try:
            variables = stack.enter_context(cluster.slurm())
        except (RuntimeError, OSError) as error:
            if os.geteuid() == 0:
                raise
            pytest.skip(f"only root may start Slurm here: {error}")
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def options(*overrides: str) -> Options:
    return load_options([*(f"launcher.{each}" for each in overrides), "launcher.poll=0.3", "launcher.memory=500M"])


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def process_of(job: str) -> int:
    """The process that trains, in a job of this machine."""
    number = ask("squeue", "--noheader", f"--jobs={job}", "--format=%A").strip()
    tasks = [line.split() for line in ask("scontrol", "listpids", number).splitlines()[1:]]
    return min(int(pid) for pid, _, step, local, _ in tasks if step == "0" and local == "0")


def rows(path: Path) -> list[record.Row]:
    """The metrics less the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in Run(path).metrics]


def assert_as_if_here(outcomes: list[Outcome], tmp_path: Path) -> None:
    """Metrics and final weights are bit-equal to those of the same runs in this process, with one thread."""
    for outcome in outcomes:
        assert outcome.error is None
        assert not Ticket.file(outcome.path).exists()
        here = train.run(train.replace(outcome.config, root=str(tmp_path / "here")))
        assert rows(outcome.path) == rows(here)
        assert Run(outcome.path).summary["threads"] == 1
        there, weights = (
            torch.load(path / record.CHECKPOINT, weights_only=True)["network"] for path in (outcome.path, here)
        )
        assert there.keys() == weights.keys()
        assert all(torch.equal(there[name], weights[name]) for name in there)


def run_and(acts: list[Act], grid: list[Config], asked: Options, **kwargs: Any) -> tuple[list[Outcome], list[Any]]:
    """Do ``acts[i]`` to the job of run ``i`` once it has evaluated; the outcomes, and the metrics as they were then."""
    met: dict[int, list[record.Row]] = {}

    def report(index: int, share: float) -> None:
        if index not in met and 0 < share < 1 and (ticket := Ticket.read(run_dir(grid[index]))) and ticket.job:
            met[index] = Run(run_dir(grid[index])).metrics
            acts[index](ticket.job)

    outcomes = slurm.run_all(grid, asked, report=report, **kwargs)
    assert sorted(met) == list(range(len(grid)))
    return outcomes, [met[index] for index in range(len(grid))]


def restarts(job: str) -> int:
    return int(ask("scontrol", "show", "job", job).partition("Restarts=")[2].split()[0])


@pytest.mark.slow
def test_array_is_as_local_runs_and_one_that_fails_leaves_the_others_alone(
    node: None, tiny: Tiny, tmp_path: Path
) -> None:
    grid = [tiny("epochs=1", f"variant={variant}") for variant in ("nobn", "custombn", "convbn")]
    bad = tiny("epochs=1", "batch_size=5000")
    # The ticket of a submission that was cut off before Slurm answered: the run counts as missing.
    Ticket(str(tmp_path / "gone"), 0, 1).write(run_dir(grid[0]))
    said: list[str] = []
    shares: dict[int, float] = {}
    told: dict[int, Outcome] = {}
    outcomes = slurm.run_all(
        [*grid, bad, grid[0]],
        options("parallelism=2"),
        report=lambda index, share: shares.update({index: share}),
        ended=lambda index, outcome: told.update({index: outcome}),
        say=said.append,
    )
    assert [told[index] for index in range(5)] == outcomes
    assert [o.config.variant for o in outcomes] == ["nobn", "custombn", "convbn", "bn", "nobn"]
    assert outcomes[4] == outcomes[0]
    assert_as_if_here(outcomes[:3], tmp_path)
    failed = outcomes[3]
    assert failed.by_user
    assert "batch_size=5000" in str(failed.error)
    ticket = Ticket.read(failed.path)
    assert ticket
    assert ticket.error == failed.error  # kept until it is asked for again
    assert Run(failed.path).summary["error"] == failed.error
    assert shares == dict.fromkeys(range(5), 1.0)
    assert len(said) == 1
    assert said[0].startswith("Submitted 4 runs as job ")

    assert slurm.run_all(grid, options(), say=said.append) == outcomes[:3]
    assert len(said) == 1  # nothing was submitted


@pytest.mark.slow
def test_preempted_job_is_queued_again_and_its_run_goes_on(node: None, tiny: Tiny, tmp_path: Path) -> None:
    grid = [tiny(LONG, "variant=convbn"), tiny(LONG, "variant=bn", "model.dropout=0.2")]
    # A finished run is started over, but not once more when its job comes back.
    record.write_whole(run_dir(grid[0]) / record.CONFIG, to_yaml(grid[0]))
    record.write_summary(run_dir(grid[0]), {"status": "completed"})
    jobs: list[str] = []

    def by_slurm(job: str) -> None:
        jobs.append(job)
        ask("scontrol", "requeue", job)

    def by_signal(job: str) -> None:
        jobs.append(job)
        ask("scancel", "--signal=USR2", job)

    outcomes, before = run_and([by_slurm, by_signal], grid, options(), force=True)
    assert [restarts(job) for job in jobs] == [1, 1]
    assert_as_if_here(outcomes, tmp_path)
    for outcome, known in zip(outcomes, before, strict=True):
        assert Run(outcome.path).metrics[: len(known)] == known  # seconds too: these epochs were not run again


@pytest.mark.slow
def test_job_that_runs_out_of_time_is_queued_again_and_its_run_goes_on(node: None, tiny: Tiny, tmp_path: Path) -> None:
    jobs: list[str] = []

    def shorten(job: str) -> None:  # and stand still until Slurm, which looks every 30 s, wakes it for its end
        jobs.append(job)
        os.kill(process_of(job), signal.SIGSTOP)
        ask("scontrol", "update", f"JobId={job}", "EndTime=now+100")

    outcomes, before = run_and([shorten], [tiny(LONG, "variant=convbn")], options("time=5", "grace=150"))
    assert restarts(jobs[0]) >= 1
    assert_as_if_here(outcomes, tmp_path)
    assert Run(outcomes[0].path).metrics[: len(before[0])] == before[0]


@pytest.mark.slow
def test_job_that_runs_out_of_time_too_often_says_so(node: None, tiny: Tiny) -> None:
    acts: list[Act] = [lambda job: ask("scancel", "--signal=USR2", job)]
    (outcome,), _ = run_and(acts, [tiny(LONG)], options("time=5", "timeouts=0"))
    assert outcome.by_user
    assert "longer launcher.time" in str(outcome.error)
    assert Run(outcome.path).status == "interrupted"


@pytest.mark.slow
def test_job_whose_process_is_killed_is_submitted_again_and_one_that_is_cancelled_is_not(
    node: None, tiny: Tiny, tmp_path: Path
) -> None:
    grid = [tiny(LONG, "variant=convbn"), tiny(LONG, "variant=nobn")]
    said: list[str] = []
    acts: list[Act] = [lambda job: os.kill(process_of(job), signal.SIGKILL), lambda job: ask("scancel", job)]
    (killed, cancelled), before = run_and(acts, grid, options(), say=said.append)
    assert [sentence.split(" as ")[0] for sentence in said] == ["Submitted 2 runs", "Submitted 1 run"]
    assert_as_if_here([killed], tmp_path)
    assert Run(killed.path).metrics[: len(before[0])] == before[0]
    assert cancelled.by_user
    assert "was cancelled; run the command again" in str(cancelled.error)
    assert Run(cancelled.path).status == "interrupted"

    again = slurm.run_all([grid[1]], options(), say=said.append)
    assert_as_if_here(again, tmp_path)
    assert Run(cancelled.path).metrics[: len(before[1])] == before[1]
    assert len(said) == 3


SUBMITTER = """
import sys
from pathlib import Path
from bnrepro.launch import slurm
from bnrepro.config import read_config
from bnrepro.launch.options import load_options
slurm.run_all([read_config(Path(file)) for file in sys.argv[2:]], load_options(sys.argv[1].split()))
"""


@pytest.mark.slow
def test_jobs_outlive_who_submitted_them_and_are_waited_for_by_who_asks_again(
    node: None, tiny: Tiny, tmp_path: Path
) -> None:
    grid = [tiny(LONG, f"seed={seed}", "variant=convbn") for seed in (0, 1)]
    files = [tmp_path / f"{cfg.seed}.yaml" for cfg in grid]
    for file, cfg in zip(files, grid, strict=True):
        file.write_text(to_yaml(cfg))
    with subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, "launcher.poll=0.3 launcher.memory=500M", *map(str, files)]
    ) as submitter:
        try:
            end = time.monotonic() + 300
            while not all((run_dir(cfg) / record.METRICS).exists() for cfg in grid):
                assert submitter.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            submitter.kill()
    jobs = {ticket.job for cfg in grid if (ticket := Ticket.read(run_dir(cfg)))}
    assert len(jobs) == 2
    queue = ask("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i")
    said: list[str] = []
    outcomes = slurm.run_all(grid, options(), say=said.append)
    assert said == ["Queued or running already: 2 of 2 runs."]
    listed = ask("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i")
    assert set(listed.split()) <= set(queue.split())  # Slurm forgets jobs some time after their end
    assert_as_if_here(outcomes, tmp_path)


@pytest.mark.slow
def test_what_slurm_refuses_is_told_and_leaves_no_ticket(node: None, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Slurm refuses the jobs: .*nowhere.*launcher"):
        slurm.run_all([tiny(), tiny("seed=1")], options("partition=nowhere"))
    assert list(tmp_path.rglob("*.job")) == []


PAPER = '''"""Me, A claim of no difference that two seeds leave open (2026)."""

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, equal


class Settings(Preset):
    looks: list[int] = [2, 3]


paper = Paper(__name__, Settings, scale="toy", scale_note="LeNet, an epoch on 500 digits")


@paper.design
def runs(s: Settings) -> Design:
    design = Design(s.seeds)
    for variant in ("bn", "custombn"):
        own = [f"variant={variant}", "model=lenet", "data.val_fraction=0.9", "epochs=1", "device=cpu"]
        design.train("main", {"norm": variant}, own)
    return design


@paper.claim("1")
def alike(r: Results, s: Settings) -> Evidence:
    """After an epoch half of the images are right, to a thousandth of a point, which no two seeds can tell."""
    return equal(r.test_accuracy(part="main") - 50, "accuracy minus 50", "points", margin=1e-3)
'''


@pytest.mark.slow
def test_seeds_are_added_on_a_cluster_until_it_is_decided(
    node: None, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Options, "poll", 0.3)
    (tmp_path / "mine.py").write_text(PAPER)
    told = call("reproduce", "mine.py", "--until-decided", "--launcher=slurm", "--unregistered")
    assert told.code == 0, told.err
    runs = [Run(file.parent) for file in (tmp_path / "runs").rglob(record.SUMMARY)]
    assert sorted(run.config.seed for run in runs) == [0, 0, 1, 1, 2, 2]
    assert [line.split(" as ")[0] for line in told.err.splitlines() if line.startswith("Submitted")] == [
        "Submitted 4 runs",
        "Submitted 2 runs",
    ]


# --- a Slurm that is made up of four scripts ----------------------------------------------------------------------

SBATCH = r"""#!/bin/sh
env | grep -E '^(SLURM|SBATCH)_' | sort > environment
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$1")
count=$((${last:-0} + 1))
echo "$count" >> asked
if [ "$count" -gt "$(cat array)" ]; then
    echo "sbatch: error: Batch job submission failed: Invalid job array specification" >&2; exit 1
fi
if [ $(($(wc -l < queue) + count)) -gt "$(cat room)" ]; then
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit," \
        "user's size and/or time limits)" >&2; exit 1
fi
number=$(($(wc -l < asked) + 100))
if [ -z "$last" ]; then echo "$number|RUNNING" >> queue
else for task in $(seq 0 "$last"); do echo "${number}_$task|RUNNING" >> queue; done; fi
echo "Submitted batch job $number"
"""
SQUEUE = r"""#!/bin/sh
for option in "$@"; do
    case "$option" in
        --user=[0-9]*|--states=all|--array|--noheader|--format=*) ;;
        *) echo "squeue: unrecognized option '$option'" >&2; exit 1 ;;
    esac
done
cat queue
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``sbatch`` queues up to ``room`` jobs in arrays of up to ``array``, and ``squeue`` is old."""
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", "#!/bin/sh\n")):
        (folder / name).write_text(script.replace("#!/bin/sh\n", f"#!/bin/sh\ncd {folder}\n"))
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    (folder / "room").write_text("1000")
    (folder / "array").write_text("1000")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def end_one(folder: Path, grid: list[Config]) -> None:
    """The first job of the queue has finished its run."""
    queue = (folder / "queue").read_text().splitlines()
    for cfg in grid:
        path = run_dir(cfg)
        ticket = Ticket.read(path)
        if queue and ticket and ticket.job == queue[0].split("|")[0]:
            summary = {"status": "completed", "variant": "bn", "seed": 0, "seconds": 1.0, "parameters": 1, "buffers": 1}
            record.write_whole(path / record.CONFIG, to_yaml(cfg))
            row = dict.fromkeys(record.COLUMNS, 1.0)
            record.write_csv(path / record.METRICS, list(record.COLUMNS), [row])
            record.write_summary(path, summary | {"test_accuracy": 0.5})
            Ticket.file(path).unlink()
    (folder / "queue").write_text("".join(f"{line}\n" for line in queue[1:]))


@pytest.mark.parametrize(
    ("room", "array", "first"), [(1000, 1000, ["7"]), (3, 1000, ["7", "3", "3", "1"]), (1000, 2, ["7", "3", "1", "1"])]
)
def test_what_the_cluster_does_not_take_at_once_follows_in_portions(
    made_up: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, room: int, array: int, first: list[str]
) -> None:
    grid = [tiny(f"seed={seed}") for seed in range(7)]
    (made_up / "room").write_text(str(room))
    (made_up / "array").write_text(str(array))
    monkeypatch.setattr(time, "sleep", lambda _: end_one(made_up, grid))
    said: list[str] = []
    outcomes = slurm.run_all(grid, options(), say=said.append)
    assert [outcome.error for outcome in outcomes] == [None] * 7
    assert (made_up / "asked").read_text().split()[: len(first)] == first
    assert sum(int(line.split()[1]) for line in said if line.startswith("Submitted")) == 7
    assert any("4 will be submitted as others end" in line for line in said) == (room == 3)
    assert len([folder for folder in (Path(grid[0].root) / "slurm").iterdir() if folder.is_dir()]) == sum(
        line.startswith("Submitted") for line in said
    )  # nothing is left of what was refused


def test_cluster_that_takes_no_job_at_all_says_why(made_up: Path, tiny: Tiny, tmp_path: Path) -> None:
    (made_up / "room").write_text("0")
    with pytest.raises(UserError, match=r"Slurm refuses the jobs: .*QOSMaxSubmitJobPerUserLimit"):
        slurm.run_all([tiny(), tiny("seed=1")], options())
    assert list(tmp_path.rglob("*.job")) == []


LOOK = r"may or may not have been submitted\. Check with `squeue --me`"
ANSWERS = {
    "a reason": (
        "echo 'sbatch: error: invalid partition' >&2; exit 1",
        r"refuses the jobs: .*partition .*launcher\.KEY",
    ),
    "a reason on the wrong stream": ("echo 'no such account'; exit 1", r"refuses the jobs: no such account If"),
    "no UTF-8": (r"printf 'sbatch: error: d\351fendu' >&2; exit 1", r"refuses the jobs: .* d.fendu If"),
    "a failure without a word": ("exit 3", r"failed \(exit code 3\) and gave no reason\. Check whether `sbatch --wrap"),
    "a signal": ("kill -9 $$", r"failed \(exit code -9\) and gave no reason"),
    "nothing": ("exit 0", rf"sbatch said nothing where .*{LOOK}"),
    "garbage": ("echo welcome", rf"sbatch said 'welcome' where .*{LOOK}"),
    "garbage in no UTF-8": (r"printf '\351\377'", rf"sbatch said .*{LOOK}"),
}


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(("script", "words"), ANSWERS.values(), ids=ANSWERS)
def test_what_sbatch_answers_is_told_as_it_is(
    made_up: Path, tiny: Tiny, tmp_path: Path, script: str, words: str, runs: int
) -> None:
    (made_up / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(UserError, match=words) as error:
        slurm.run_all([tiny(f"seed={seed}") for seed in range(runs)], options())
    assert ("launcher" in str(error.value)) == ("refuses" in words)
    assert list(tmp_path.rglob("*.job")) == []


def test_answers_of_slurm_need_not_be_in_utf_8(made_up: Path, tiny: Tiny) -> None:
    grid = [tiny(f"seed={seed}") for seed in range(2)]
    (made_up / "sbatch").write_text((made_up / "sbatch").read_text() + "printf '\\351' >&2; printf '\\351\\n'\n")
    (made_up / "squeue").write_text((made_up / "squeue").read_text() + "printf '7|\\351\\n'\n")
    slurm._submit_missing({run_dir(cfg): cfg for cfg in grid}, options(), False, lambda _: None)
    assert [ticket.job for cfg in grid if (ticket := Ticket.read(run_dir(cfg)))] == ["101_0", "101_1"]
    assert slurm._states() == {"101_0": "RUNNING", "101_1": "RUNNING", "7": "\N{REPLACEMENT CHARACTER}"}


def test_squeue_that_answers_no_jobs_does_not_say_that_they_are_gone(made_up: Path) -> None:
    assert slurm._states() == {}
    (made_up / "squeue").write_text("#!/bin/sh\necho under maintenance\n")
    with pytest.raises(UserError, match=r"squeue failed \(under maintenance\)"):
        slurm._states()


def test_job_that_never_started_is_not_said_to_have_a_log(tmp_path: Path) -> None:
    (tmp_path / "12_submission.sh").touch()
    ticket = Ticket(str(tmp_path), 0, 1)
    story = slurm._story(ticket, "CANCELLED")
    assert story.endswith(f"wrote no log in {tmp_path}, so it seems never to have started")
    ticket.log.write_text("a\nb\n")
    assert slurm._story(ticket, "FAILED").endswith(f"its log: {ticket.log}, which ends: b")


@pytest.mark.parametrize(
    ("complaint", "limit"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit sbatch: error: Batch job submission failed", True),
        ("sbatch: error: AssocMaxSubmitJobLimit", True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", True),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", True),
        ("Batch job submission failed: Invalid job array specification", True),
        ("QOSMaxWallDurationPerJobLimit: Job violates accounting/QOS policy (job submit limit, user's ...)", False),
        ("QOSMaxCpuPerUserLimit", False),
        ("Invalid partition name specified", False),
        ("Socket timed out on send/recv operation", False),
    ],
)
def test_limits_of_numbers_are_told_from_those_of_size(complaint: str, limit: bool) -> None:
    assert slurm._is_limit(complaint) == limit


@pytest.mark.parametrize(
    ("variable", "asked", "kept"),
    [
        ("SLURM_MEM_PER_CPU", (), False),
        ("SLURM_MEM_PER_NODE", (), False),
        ("SLURM_JOB_ID", (), False),
        ("SLURM_NTASKS", (), False),
        ("SLURM_CPUS_PER_TASK", (), False),
        ("SLURM_EXPORT_ENV", (), False),
        ("SLURM_CONF", (), True),
        ("SLURM_CLUSTERS", (), True),
        ("SBATCH_MEM_PER_CPU", (), False),  # `options` asks for memory
        ("SBATCH_TIMELIMIT", (), False),
        ("SBATCH_ARRAY_INX", (), False),
        ("SBATCH_PARTITION", (), True),
        ("SBATCH_PARTITION", ("partition=gpu",), False),
        ("SBATCH_ACCOUNT", ("account=a",), False),
        ("SBATCH_ACCOUNT", (), True),
        ("SBATCH_GPUS", ("gpus=1",), False),
        ("SBATCH_CONSTRAINT", (), True),
    ],
)
def test_submission_sees_nothing_of_the_job_that_it_is_made_in(
    made_up: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, variable: str, asked: tuple[str, ...], kept: bool
) -> None:
    grid = [tiny()] if "gpus=1" not in asked else [tiny("device=cuda")]
    monkeypatch.setenv(variable, "7")
    asked_for = options(*asked)
    slurm._submit_missing({run_dir(cfg): cfg for cfg in grid}, asked_for, False, lambda _: None)
    assert (f"{variable}=7" in (made_up / "environment").read_text().split()) == kept
    assert os.environ[variable] == "7"


# --- without Slurm ------------------------------------------------------------------------------------------------


def test_without_submitit_or_slurm_one_sentence_says_so(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="There is no sbatch on this machine"):
        slurm.run_all([tiny()], Options())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'bnrepro\[slurm\]'"):
        slurm.run_all([tiny()], Options())


def test_what_is_auto_is_resolved_for_the_job_and_not_for_this_machine(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"precision=auto.*those of a cluster may differ.*precision=bf16"):
        slurm.resolve(tiny("precision=auto"), Options())
    resolved = slurm.resolve(tiny("model=labml_cnn", "device=auto"), Options(gpus=1))
    assert (resolved.device, resolved.channels_last) == ("cuda", True)
    assert run_dir(slurm.resolve(tiny("device=auto"), Options())) == run_dir(train.resolve(tiny("device=cpu")))


def test_options_are_the_files_with_overrides_on_top() -> None:
    assert load_options() == Options()
    given = load_options(["launcher.partition=gpu", "launcher.gpus=1", "launcher.extra={constraint: a100}"])
    assert (given.partition, given.gpus, given.extra) == ("gpu", 1, {"constraint": "a100"})
    assert load_options(["launcher.setup=[module load python, source venv/bin/activate]"]).setup[0] == (
        "module load python"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launcher.partitoin=gpu", r"There is no key launcher\.partitoin\. Did you mean launcher\.partition\?"),
        ("launcher.time=long", "launcher.time must be an integer, as in launcher.time=10; got 'long'"),
        ("launcher.cpus=0", "launcher.cpus must be 1 or more; got 0"),
        ("launcher.poll=inf", "launcher.poll must be above 0, and at most a day"),
        ("launcher.name=", "launcher.name must be a non-empty single line"),
        ("launcher.partition=a\nb", "launcher.partition must be a non-empty single line"),
        ("launcher.time=99999999999", "launcher.time must be 1 minute or more, and less than"),
        ("launcher.time=1", "launcher.grace must be .* below the job's 60 seconds; got 90"),
        ("epochs=3", "There is no key epochs. The keys: launcher.partition, launcher.time"),
        ("launcher.setup=[", "Write it as in 'launcher.setup="),
        ("launcher.setup=[[a]]", "Write it as in 'launcher.setup="),
        ("launcher.extra=a", "launcher.extra.constraint=a100"),
        ("launcher.partition.x=1", "There is no key launcher.partition.x. "),
        ("launcher.cpus=1,2", "launcher.cpus must be an integer"),
        ("--launcher.cpus=2", "Write launcher.cpus=2, without dashes"),
    ],
)
def test_wrong_option_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_options([override])


def test_launcher_is_one_of_the_files() -> None:
    for name in ("nothing", "../config"):
        with pytest.raises(UserError, match=r"There is no launcher .*\. Available: slurm\."):
            load_options(name=name)


def test_ticket_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    path = tmp_path / "seed0-00000000"
    ticket = Ticket(str(tmp_path), 3, 5)
    ticket.write(path)
    assert Ticket.read(path) == ticket
    assert ticket.job is None
    (tmp_path / "12_submission.sh").touch()
    assert ticket.job == "12_3"
    for text in ("", "{", "[]", '{"folder": 3, "task": 0, "tasks": 1}', json.dumps({"folder": "a", "jobs": 3})):
        Ticket.file(path).write_text(text)
        assert Ticket.read(path) is None
