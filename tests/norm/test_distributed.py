"""Statistics across processes: real processes with uneven batches against one process with the joined batch."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.optim.swa_utils import AveragedModel

from bnrepro.norm import (
    NORMS,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvAdaptiveNorm2d,
    ConvBatchNorm2d,
    NormError,
    fold,
    reestimate_statistics,
    synchronize,
)
from bnrepro.norm.variants import (
    BatchRenorm,
    DetachedBatchNorm,
    GhostBatchNorm,
    LpBatchNorm,
    LpNorm,
    Noise,
    NoisyBatchNorm,
)

# Images of each process. Once one has a single image, which by itself could not be normalized, and once one has none.
BATCHES = {2: (5, 1), 4: (3, 1, 4, 0)}


def settings(layer: nn.Module, **values: Any) -> nn.Module:
    for name, value in values.items():
        setattr(layer, name, value)
    return layer


class OneImage(GhostBatchNorm):
    """Ghost batches of one image: no share divides them."""

    ghost_size = 1


LAYERS = {
    "channel": lambda group: BatchNorm2d(3, process_group=group),
    "channel, cumulative": lambda group: BatchNorm2d(3, momentum=None, process_group=group),
    "linear": lambda group: BatchNorm1d(3, process_group=group),
    "local": lambda group: ConvBatchNorm2d(3, (4, 2), process_group=group),
    "location, location": lambda group: ConvBatchNorm2d(3, (4, 2), parameters="location", process_group=group),
    "without parameters": lambda group: BatchNorm2d(3, affine=False, process_group=group),
    "adaptive": lambda group: ConvAdaptiveNorm2d(3, 3, process_group=group),
    "adaptive, window": lambda group: ConvAdaptiveNorm2d(3, 3, variance="window", process_group=group),
    "ghost": lambda group: OneImage(3, process_group=group),
    "renorm": lambda group: settings(BatchRenorm(3, process_group=group), start=-1, r_steps=0, d_steps=0),
    "detached": lambda group: DetachedBatchNorm(3, process_group=group),
    "detached mean": lambda group: settings(DetachedBatchNorm(3, process_group=group), detach="mean"),
    "noisy": lambda group: NoisyBatchNorm(3, process_group=group),
    "l1": lambda group: LpBatchNorm(3, process_group=group),
    "linf": lambda group: settings(LpBatchNorm(3, process_group=group), p=float("inf")),
    "l1, not centred": lambda group: LpNorm(3, process_group=group),
    "l2, not centred": lambda group: settings(LpNorm(3, process_group=group), p=2.0),
    "linf, not centred": lambda group: settings(LpNorm(3, process_group=group), p=float("inf")),
    "noise": lambda group: settings(Noise(), process_group=group),
    "frozen": lambda group: settings(BatchNorm2d(3, process_group=group), frozen=True),
    "torch's": lambda group: synchronize(nn.BatchNorm2d(3), group) if group else nn.BatchNorm2d(3),
}


def joined(name: str, processes: int, step: int) -> tuple[Tensor, Tensor]:
    """The joined batch of a step, and the upstream gradient; the same in every process."""
    generator = torch.Generator().manual_seed(step)
    shape = (sum(BATCHES[processes]), 3, *(() if name == "linear" else (4, 2)))
    x = 3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.rand(shape, generator=generator, dtype=torch.float64)


def measure(layer: nn.Module, name: str, processes: int, part: slice) -> dict[str, Any]:
    """Two training steps on a part of the batch: outputs, gradients, second gradients, buffers, tangents, eval."""
    layer.double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(torch.linspace(0.5, 2 + i, p.numel()).view(p.shape))
    found: dict[str, Any] = {}
    for step in (0, 1):
        x, upstream = joined(name, processes, step)
        x = x[part].requires_grad_()
        torch.manual_seed(step)
        y = layer(x)
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad(((y * upstream[part]) ** 2).sum(), inputs, create_graph=True)
        weighted = (first[0] * upstream[part].flip(1)).sum()
        (second,) = torch.autograd.grad(weighted, [x])
        found[f"y{step}"], found[f"dx{step}"], found[f"ddx{step}"] = y.detach(), first[0].detach(), second
        found[f"parameters{step}"] = [g.detach() for g in first[1:]]
    found["buffers"] = {name: b.clone() for name, b in layer.named_buffers()}
    layer.track_running_stats = False  # torch.func changes no buffers
    x, t = (each[part] for each in joined(name, processes, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own derivative is written in its deprecated script
        torch.manual_seed(0)
        found["tangent"] = torch.func.jvp(layer, (x,), (t,))[1]
    if not isinstance(layer, ConvAdaptiveNorm2d):  # which in eval too depends on the rest of its batch
        found["eval"] = layer.eval()(joined(name, processes, 0)[0][part]).detach()
    return found


def reestimated(
    group: distributed.ProcessGroup | None, processes: int, part: slice, variance: Any
) -> dict[str, Tensor]:
    """Statistics of a network, whose later norms depend on what the first normalize by."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), ConvBatchNorm2d(3, (4, 2))]
    layers += [LpNorm(3), settings(LpBatchNorm(3), p=float("inf")), NoisyBatchNorm(3)]
    model = nn.Sequential(*layers).double()
    if group is not None:
        synchronize(model, group)
    reestimate_statistics(model, [joined("", processes, step)[0][part] for step in (0, 1)], variance=variance)
    return dict(model.named_buffers())


def work(rank: int, processes: int, folder: str) -> None:
    """What each process does: every layer on its part of the batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    start = sum(BATCHES[processes][:rank])
    part = slice(start, start + BATCHES[processes][rank])
    group = distributed.group.WORLD
    results: dict[str, Any] = {name: measure(make(group), name, processes, part) for name, make in LAYERS.items()}
    with pytest.raises(NormError) as refused:
        settings(GhostBatchNorm(3, process_group=group), ghost_size=2)(joined("ghost", processes, 0)[0][part].float())
    results["refused"] = str(refused.value)
    for variance in ("pooled", "mean"):
        results[variance] = reestimated(group, processes, part, variance)
    model = synchronize(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Noise(), nn.SyncBatchNorm(3)), group
    ).eval()
    fold(model, torch.ones(2, 3, 4, 2))
    for kept in (copy.deepcopy(model[:3]), AveragedModel(model[:3]).module):
        assert kept[1].process_group is kept[2].process_group is group
        torch.testing.assert_close(dict(kept.state_dict()), dict(model[:3].state_dict()))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo that still holds a tensor would abort the end of the interpreter


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda n: f"{n} processes")
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two or four processes found."""
    folder = tmp_path_factory.mktemp("group")
    multiprocessing.spawn(work, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", LAYERS)
def test_processes_with_uneven_batches_equal_one_with_the_joined_batch(apart: list[dict[str, Any]], name: str) -> None:
    processes = len(apart)
    alone = measure(LAYERS[name](None), name, processes, slice(None))
    results = [result[name] for result in apart]
    for key in {"y0", "dx0", "ddx0", "y1", "dx1", "ddx1", "tangent", "eval"} & alone.keys():
        torch.testing.assert_close(torch.cat([r[key] for r in results]), alone[key], msg=lambda m, k=key: f"{k}: {m}")
    for key in ("parameters0", "parameters1"):
        for i, whole in enumerate(alone[key]):
            torch.testing.assert_close(sum(r[key][i] for r in results), whole)
    for result in results:
        for buffer, whole in alone["buffers"].items():
            torch.testing.assert_close(result["buffers"][buffer], whole, msg=lambda m, b=buffer: f"{b}: {m}")


@pytest.mark.parametrize("variance", ["pooled", "mean"])
def test_reestimated_statistics_are_those_of_the_joined_batches(apart: list[dict[str, Any]], variance: str) -> None:
    alone = reestimated(None, len(apart), slice(None), variance)
    for result in apart:
        torch.testing.assert_close(result[variance], alone)


@pytest.mark.slow
def test_processes_matter(apart: list[dict[str, Any]]) -> None:
    """The first process by itself gives something else: the comparison above is not one of equals."""
    part = slice(0, BATCHES[len(apart)][0])
    alone = measure(LAYERS["channel"](None), "channel", len(apart), part)
    assert (apart[0]["channel"]["y0"] - alone["y0"]).abs().max() > 0.01


def test_ghost_batch_that_is_divided_between_processes_is_refused_by_all(apart: list[dict[str, Any]]) -> None:
    shares = list(BATCHES[len(apart)])
    for result in apart:
        assert result["refused"].startswith("ghost batches of 2 images would be divided between processes, which have")
        assert f"{shares} of the {sum(shares)} images" in result["refused"]


def test_synchronize_reaches_every_norm_that_pools_over_the_batch_and_keeps_the_state() -> None:
    group: Any = object()
    x = torch.randn(4, 3, 6, 6)
    torchs = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.GroupNorm(1, 3), nn.BatchNorm2d(3, affine=False)))
    torchs(x)
    kept = {name: tensor.clone() for name, tensor in torchs.state_dict().items()}
    synchronize(torchs, group)
    assert [type(m) for m in (torchs[0], torchs[1][0], torchs[1][1])] == [BatchNorm2d, nn.GroupNorm, BatchNorm2d]
    torch.testing.assert_close(dict(torchs.state_dict()), kept, rtol=0, atol=0)
    assert torchs[0].process_group is group
    assert torchs[1][1].process_group is group
    for variant in ("convbn", "adaptive", "ghostbn"):
        assert synchronize(NORMS[variant](3, (6, 6)), group).process_group is group
    without = synchronize(nn.BatchNorm3d(2, momentum=None, eps=0.5, track_running_stats=False), group)
    assert isinstance(without, BatchNorm3d)
    assert (without.running_mean, without.momentum, without.eps) == (None, None, 0.5)
