"""``run(cfg) -> Path``: one configuration in, one directory out, and nothing outside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch

from bnrepro.config import check_same, run_dir, user_files
from bnrepro.config.schema import Config, Device, Optimizer, Precision, Schedule, in_channels_last
from bnrepro.data.dataset import derive_seed, load
from bnrepro.errors import UserError, out_of_memory
from bnrepro.norm import NormError
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run, Status
from bnrepro.system import signals
from bnrepro.system.cores import use_threads
from bnrepro.system.reading import leads_out
from bnrepro.system.signals import stop_between_steps, terminate_as_interrupt
from bnrepro.training import distributed
from bnrepro.training.distributed import Processes
from bnrepro.training.model import MakeNorm, build, norm_of
from bnrepro.training.trainer import Progress, Trainer
from bnrepro.training.user_modules import own_files


def resolve(cfg: Config) -> Config:
    """Return ``cfg`` with what is ``auto`` resolved for this machine: the device, the precision and the layout.

    Raises:
        UserError: device=cuda without a GPU.
    """
    there = torch.cuda.is_available()
    if cfg.device is Device.cuda and not there:
        raise UserError("device=cuda: torch finds no GPU on this machine. Use device=cpu or device=auto.")
    device = Device.cuda if there and cfg.device is not Device.cpu else Device.cpu
    precision = cfg.precision
    if precision is Precision.auto:
        precision = Precision.bf16 if multiplies_in_bf16(device) else Precision.fp32
    return replace(cfg, device=device, precision=precision, channels_last=in_channels_last(cfg))


def multiplies_in_bf16(device: Device) -> bool:
    """Whether the hardware multiplies matrices in bf16: AVX512-BF16 or AMX, or a GPU since Ampere.

    Elsewhere bf16 is emulated, 5 to 10 times as slow as float32.
    """
    if device is Device.cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def run(cfg: Config, *, force: bool = False, report: Callable[[Progress], None] | None = None) -> Path:
    """Train, evaluate and record one run; return its directory.

    A finished run is not run again, a broken one goes on from its last checkpoint, ``force`` starts over. The same
    configuration gives bit-equal metrics on the same CPU with the same number of threads; all variants of a seed
    start from the same weights and see the same batches. The test set is measured and chooses nothing.

    In a process group (`torch.distributed`) that is already there, each of its processes calls this, and the run is one
    process's but for rounding: see `bnrepro.training.distributed`. Only the first process writes and reports.

    Args:
        cfg: the run.
        force: delete an existing run of the same configuration first.
        report: called with the progress every few steps and at each evaluation.

    Raises:
        UserError: the configuration does not fit the data, the memory or the machine; the existing files of the run
            cannot be read, or belong to a different run. Finished runs are never modified.
    """
    use_threads()
    cfg = resolve(cfg)
    directory = run_dir(cfg)
    if leads_out(directory, Path(cfg.root)):  # what --force deletes, and what a run writes, lies in it
        raise UserError(f"{directory} is a link out of root={cfg.root}. Remove the link, or use another root.")
    processes = distributed.current()
    processes.from_first(lambda: check_same(directory, cfg, damaged=force))
    if processes.from_first(lambda: not force and Run(directory).finished):
        return directory
    with _told(cfg):
        trainer = trainer_of(cfg, report, processes)
        if processes.size == 1:
            trainer.rehearse()
        with terminate_as_interrupt(), record.claim(directory) if processes.first else nullcontext():
            if force and processes.first:
                record.clear(directory)
            processes.from_first(lambda: check_same(directory, cfg))
            if processes.from_first(lambda: Run(directory).finished):  # by the process that was waited for
                return directory
            state = processes.from_first(lambda: checkpoint.last(directory))  # before anything is written
            _train(trainer, directory, state)
    return directory


@contextmanager
def _told(cfg: Config) -> Iterator[None]:
    """Report errors caused by the configuration (out of memory, batches too small) as UserError."""
    try:
        yield
    except NormError as error:
        raise UserError(f"variant={cfg.variant}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a SystemExit of a user's own would end a sweep, as if all went well
        if not out_of_memory(error):
            if isinstance(error, UserError) or not (said := _of_own_code(error, cfg)):
                raise
            raise UserError(f"Training fails in code of your own. {said}") from error
        raise UserError(
            f"There is not enough memory for model={cfg.model.name} with model.width={cfg.model.width:g} and "
            f"batch_size={cfg.batch_size}. Use a smaller width or batch, or fewer processes at a time (--jobs)."
        ) from error


def _of_own_code(error: BaseException, cfg: Config) -> str | None:
    """`user_files.blame` for an error that is due to code of a user's own; None for another.

    That is one that came through its files, or out of what torch does with its network.
    """
    own = own_files(cfg)
    steps = (Trainer.update, Trainer.measure, Trainer.finite, Trainer.norm_inputs, Trainer.save)
    with_network = {unwrap(each).__code__ for each in steps}
    there = any(frame.f_code in with_network for frame, _ in walk_tb(error.__traceback__))
    if own and there and not isinstance(error, OSError):
        return user_files.blame(error, own)
    return user_files.blamed(error, own)


def trainer_of(
    cfg: Config,
    report: Callable[[Progress], None] | None = None,
    processes: Processes = Processes(),
    norm: MakeNorm | None = None,
) -> Trainer:
    """A trainer of ``cfg`` at the start: its data, and the initial weights that all variants of a seed share.

    With ``norm``, a network with such norms in place of the configuration's.
    """
    cfg = resolve(cfg)
    norm, device = norm or norm_of(cfg), torch.device(cfg.device.value)
    data = processes.in_turn(lambda: load(cfg.data, device))
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    network = build(cfg.model, norm, data.channels, data.image_size, data.num_classes, weights)
    return Trainer(cfg, data, network, report, processes)


def trainer_again(cfg: Config) -> Trainer:
    """A trainer of a run that is there, to train it once more: on the CPU if it had a GPU and this machine has none."""
    return trainer_of(cfg if torch.cuda.is_available() else replace(cfg, device=Device.cpu))


def rehearse(configs: Iterable[Config]) -> None:
    """Run one batch through each distinct network of ``configs``, before the first of them is trained.

    Raises:
        UserError: one of them cannot be trained, and why.
    """
    seen: set[str] = set()
    for cfg in configs:
        kind = repr(replace(cfg, seed=0, epochs=1, optimizer=Optimizer(), schedule=Schedule()))
        if kind not in seen:
            with _told(cfg):
                trainer_of(cfg).rehearse()
        seen.add(kind)


def _train(trainer: Trainer, directory: Path, state: dict[str, Any] | None) -> None:
    """Train into ``directory``, from ``state`` if there is one, and say in its summary how it ended."""
    first = trainer.processes.first
    status, error = Status.failed, None
    with stop_between_steps() as stop:
        try:
            if first:
                trainer.begin(directory)
            with trainer.processes.together():
                status = trainer.train(directory, stop, state)
        except KeyboardInterrupt:
            status = Status.interrupted
            raise
        except BaseException as problem:
            if signals.cut:
                status = Status.interrupted
                raise KeyboardInterrupt from problem
            error = str(problem) if isinstance(problem, NormError) else f"{type(problem).__name__}: {problem}"
            raise
        finally:
            stop.ending = True
            if first:
                trainer.put_back(directory)
                record.write_summary(directory, trainer.summary(status, error))
    if first:
        (directory / record.PREVIOUS).unlink(missing_ok=True)
        if status is Status.diverged and not trainer.cfg.keep_optimizer and (directory / record.CHECKPOINT).exists():
            with suppress(OSError, UserError):  # what has been found stands without it
                checkpoint.drop_optimizer(directory / record.CHECKPOINT)
