r"""One run on several processes: what each takes of a batch, who writes, and how all of them end together.

The run is that of one process but for rounding. Each process has all of the data and takes its share of each batch.
Process r of R, with :math:`n_r` of the batch's B images and :math:`L_r` their mean loss, differentiates

.. math:: \frac{R\, n_r}{B} L_r, \quad \text{so that} \quad
          \frac{1}{R} \sum_r \nabla \frac{R\, n_r}{B} L_r = \nabla \frac{1}{B} \sum_r n_r L_r,

the mean of the gradients, which DistributedDataParallel takes, is the gradient of the batch's mean loss, however uneven
the shares are. The norms take their statistics from the joint batch (`bnrepro.norm.synchronize`). All processes draw
the same random numbers: the plan of an epoch, and dropout and noise for the joint batch, of which each uses its part.
So their generators stay in the same state, and one checkpoint holds it.

In evaluation there is no communication: each process measures all images by itself, alike, and so a norm that uses its
batch's statistics sees whole batches. The run's directory is read and written by the first process alone, which tells
the others; what they need in common is a path to the data.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnrepro.errors import UserError, in_brackets
from bnrepro.norm import synchronize
from bnrepro.norm.function import joint_batch
from bnrepro.system.output import counted

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

_runs = itertools.count()  # every process makes the same runs in the same order


class OtherProcessFailed(Exception):
    """Another process of the run failed first; the message says which, and how."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. As a default, one process alone."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    store: Store | None = None
    """Where the first that fails says why."""

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes the run's directory."""
        return self.rank == 0

    # --- a step ---

    def part(self, batch_size: int) -> slice:
        """Which images of a batch this process takes; shares differ by one image at most.

        Raises:
            UserError: fewer images than processes.
        """
        if batch_size < self.size:
            raise UserError(
                f"batch_size={batch_size} leaves some of the {self.size} processes without an image. Use a larger "
                "batch or fewer processes."
            )
        each, left = divmod(batch_size, self.size)
        start = self.rank * each + min(self.rank, left)
        return slice(start, start + each + (self.rank < left))

    def wrap(self, network: nn.Module, own: bool = False) -> nn.Module:
        """What to call in training instead of ``network``, whose norms and dropout this makes those of the joint batch.

        ``own``: it holds code of a user's own, which may have parameters that it never uses.

        Raises:
            UserError: more processes than GPUs on this machine.
        """
        if self.group is None:
            return network
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or self.size), torch.cuda.device_count()
        if any(p.is_cuda for p in network.parameters()) and here > gpus:
            raise UserError(
                f"{here} processes on a machine with {counted(gpus, 'GPU')}: each needs its own. Use "
                f"--nproc-per-node={gpus}, or device=cpu."
            )
        synchronize(network, self.group)
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, JointDropout(child.p, self.group))
        # The norms keep the running statistics equal by themselves. The option's name changed with torch 2.15.
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        option: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        return DistributedDataParallel(network, process_group=self.group, find_unused_parameters=own, **option)

    def weighted(self, loss: Tensor, share: float) -> Tensor:
        """What to differentiate: ``loss`` is the mean over this process's ``share`` of the batch."""
        return loss if self.group is None else loss * (self.size * share)

    def joint(self, loss: Tensor, right: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The whole batch's mean loss and number of right answers."""
        if self.group is None:
            return loss, right
        both = torch.stack((loss.double() * share, right.double()))
        dist.all_reduce(both, group=self.group)
        return both[0].to(loss.dtype), both[1].to(right.dtype)

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether ``here`` is true in any of the processes, each of which must ask."""
        if self.group is None:
            return here
        answer = torch.tensor(int(here), device=device)
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self.group)
        return bool(answer)

    # --- the rest of a run ---

    def from_first(self, make: Callable[[], T]) -> T:
        """``make()``, called by the first process alone; all get its result."""
        if self.group is None:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def in_turn(self, make: Callable[[], T]) -> T:
        """``make()`` on each machine's first process, then on the others: they find what it has downloaded."""
        if self.group is None:
            return make()
        leads = _local_rank(self.rank) == 0
        made = [make()] if leads else []
        self.wait()
        return made[0] if leads else make()

    def wait(self) -> None:
        """Until all have come here."""
        # Not dist.barrier(), which would ask for a GPU each where there are GPUs, even of a run on the CPU.
        dist.all_gather_object([None] * self.size, None, group=self.group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error or interrupt of one process within it ends all of them, and only the first that fails keeps its own.

        The others raise `KeyboardInterrupt` if that one was interrupted, `OtherProcessFailed` if not, once they wait
        for it in vain: on gloo when its process ends and its connections close with it; on NCCL that goes unnoticed,
        and they end by torchrun's signal, or are killed by it half a minute later.
        """
        try:
            yield
        except OtherProcessFailed:
            raise
        except BaseException as problem:
            rank, interrupted, reason = self._first_to_fail(problem)
            if rank == self.rank:
                if _connection_lost(problem):
                    raise UserError(reason) from problem
                raise
            if interrupted:
                raise KeyboardInterrupt from problem
            raise OtherProcessFailed(f"process {rank}: {reason}") from problem

    def _first_to_fail(self, problem: BaseException) -> tuple[int, bool, str]:
        """(rank, whether it was interrupted, reason) of the process that was first to call this."""
        reason = f"{type(problem).__name__}: {problem}".strip(": ")
        if _connection_lost(problem):
            reason = (
                "Another process of this run ended without a message (killed? out of memory?). Its checkpoint is "
                "intact: start the run again to continue."
            )
        mine = (self.rank, isinstance(problem, KeyboardInterrupt), reason)
        if self.store is None:
            return mine
        try:
            rank, interrupted, reason = json.loads(self.store.compare_set("failed", "", json.dumps(mine)))
        except RuntimeError:  # the process that kept the store is gone
            return mine
        return rank, interrupted, reason


class JointDropout(nn.Dropout):
    """Dropout as one process would draw it for the joint batch. The processes' generators must be in the same state."""

    def __init__(self, p: float, process_group: dist.ProcessGroup) -> None:
        super().__init__(p)
        self.process_group = process_group

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, ...) in and out."""
        if not self.training:
            return x
        whole, mine = joint_batch(x, self.process_group)
        return x * F.dropout(torch.ones_like(whole), self.p)[mine]


def current() -> Processes:
    """The processes of torch's default group, each of which must call this; where there is no group, one alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Processes()
    from torch._C._distributed_c10d import PrefixStore  # not in every build of torch
    from torch.distributed.distributed_c10d import _get_default_store

    store = PrefixStore(f"bnrepro/{next(_runs)}", _get_default_store())
    return Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, store)


NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LEFT_OVER = "If it is left over from a process of torchrun: `unset TORCHELASTIC_RUN_ID`."
REACH_SECONDS = 10  # to reach torchrun, which is there before its processes are


def started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several that torchrun started, as its environment says.

    Variables of other launchers, or what is left of some, mean nothing without torchrun's ``TORCHELASTIC_RUN_ID``.

    Raises:
        UserError: torchrun's variables are not all there, make no sense, or lead to a torchrun that has ended.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return False
    if missing := [name for name in NEEDED if not environment.get(name)]:
        raise UserError(f"TORCHELASTIC_RUN_ID is set, but {', '.join(missing)} not. {LEFT_OVER}")
    numbers = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    numbers |= {name: environment[name] for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if environment.get(name)}
    wrong = [f"{name}={value}" for name, value in numbers.items() if not (value.isascii() and value.isdecimal())]
    if wrong or not int(numbers["RANK"]) < int(numbers["WORLD_SIZE"]) or not 0 < int(numbers["MASTER_PORT"]) < 2**16:
        said = ", ".join(wrong) or ", ".join(f"{name}={value}" for name, value in numbers.items())
        raise UserError(f"TORCHELASTIC_RUN_ID is set, but {said} is inconsistent with it. {LEFT_OVER}")
    if numbers["WORLD_SIZE"] == "1":
        return False
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # else the first process makes the meeting place
        address = environment["MASTER_ADDR"], int(numbers["MASTER_PORT"])
        try:
            socket.create_connection(address, REACH_SECONDS).close()
        except (OSError, UnicodeError) as error:
            where = f"{address[0]}:{address[1]} ({in_brackets(error)})"
            raise UserError(f"TORCHELASTIC_RUN_ID is set, but no torchrun answers at {where}. {LEFT_OVER}") from error
    return True


@contextmanager
def joined() -> Iterator[Processes]:
    """Within it, this process is one of those that torchrun started; how it ends is how the program should.

    Where several fail, or all are interrupted, one of them raises its error, and the others `SystemExit`.
    """
    gpu = torch.cuda.is_available()
    rank = int(os.environ["RANK"])
    if gpu and (local := _local_rank(rank)) < torch.cuda.device_count():
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    processes = current()
    try:
        with processes.together():
            yield processes
            processes.wait()  # else an error of the first, in what it writes last, would be its own
    except OtherProcessFailed:
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if processes.first:
            raise
        raise SystemExit(1) from None
    dist.destroy_process_group()


def _local_rank(rank: int) -> int:
    """The process's number on its machine; torchrun says it."""
    return int(os.environ.get("LOCAL_RANK") or rank)


def _connection_lost(problem: BaseException) -> bool:
    """Whether a collective failed for want of another process (gloo has no exception of its own)."""
    return isinstance(problem, dist.DistError) or (isinstance(problem, RuntimeError) and "gloo" in str(problem))
