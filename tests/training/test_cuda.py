"""The same layers and runs on a GPU, held to float64 on the CPU. Skipped where torch finds no GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from bnrepro.config.schema import Config
from bnrepro.norm import NORMS, convert, fold, freeze, reestimate_statistics, synchronize
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.trainer import Progress
from tests.training.test_resume import assert_same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

Tiny = Callable[..., Config]
DRAWN = ("noisybn", "noise")  # whose noise comes from another generator on each device
TORCHS = ("groupnorm", "layernorm", "instancenorm", "lrn")
SHAPES = [(8, 6, 5, 7), (2, 6, 16, 16), (32, 6, 3, 4)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of ||got - want|| / ||want||


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """No TF32 in convolutions: the comparisons are those of float32."""
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True, benchmark=False):
        yield


def layer_of(name: str, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    layer = NORMS[name](shape[1], shape[2:])
    with torch.no_grad():
        for t in (*layer.parameters(), *layer.buffers()):
            if t.is_floating_point():
                t.copy_(torch.rand_like(t) + 0.5)
    return layer


def everything(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers, in float64 on the CPU."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(torch.linspace(0.1, 1.3, y.numel(), dtype=torch.float64).view(y.shape).to(y))
    found = {"y": y, "dx": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    found |= dict(layer.named_buffers())
    return {name: t.detach().double().cpu() for name, t in found.items() if t is not None}


def assert_near(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for key in want:
        error = (got[key] - want[key]).norm() / want[key].norm().clamp(min=1e-6)
        assert error <= tolerance, f"{key}: {error}"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [name for name in NORMS if name not in DRAWN])
def test_a_norm_is_that_of_the_cpu(name: str, dtype: torch.dtype, training: bool) -> None:
    if name in TORCHS and dtype is not torch.float64:
        pytest.skip("torch's own layer: it refuses mixed dtypes, or loses digits")
    for shape in SHAPES:
        x = (3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)
        layer = layer_of(name, shape).train(training)
        want = everything(copy.deepcopy(layer).double(), x.double())
        on_gpu = layer.double() if dtype is torch.float64 else layer
        for memory_format in (torch.contiguous_format, torch.channels_last):
            got = everything(copy.deepcopy(on_gpu).cuda(), x.cuda().contiguous(memory_format=memory_format))
            assert_near(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("name", DRAWN)
def test_noise_is_drawn_on_the_gpu(name: str) -> None:
    shape = (64, 6, 8, 8)
    x = torch.randn(shape, device="cuda")
    torch.manual_seed(0)
    first = layer_of(name, shape).cuda()(x)
    torch.manual_seed(0)
    assert torch.equal(first, layer_of(name, shape).cuda()(x))
    assert first.isfinite().all()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
    ).cuda()


def test_converted_folded_and_frozen_networks_compute_what_they_did() -> None:
    x = torch.randn(16, 3, 12, 12, device="cuda")
    theirs = network()
    for _ in range(3):
        theirs(x)
    want = theirs.eval()(x)
    ours = convert(copy.deepcopy(theirs), "custombn", x)
    for each in (ours, fold(copy.deepcopy(ours)), freeze(copy.deepcopy(ours)).train()):
        torch.testing.assert_close(each(x), want, rtol=1e-4, atol=1e-5)
        assert all(p.is_cuda for p in each.parameters())


def test_statistics_are_reestimated_on_the_gpu() -> None:
    batches = list(torch.randn(4, 16, 3, 12, 12, device="cuda"))
    on_gpu, on_cpu = network(), network().cpu()
    reestimate_statistics(on_gpu, batches)
    reestimate_statistics(on_cpu, [b.cpu() for b in batches])
    for got, want in zip(on_gpu.buffers(), on_cpu.buffers(), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-5)


def test_a_group_of_one_over_nccl_changes_nothing(tmp_path: Path) -> None:
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        x = torch.randn(16, 3, 12, 12, device="cuda")
        for alone in (network(), convert(network(), "custombn", x)):
            together = synchronize(copy.deepcopy(alone), distributed.group.WORLD)
            assert_near(everything(together, x), everything(alone, x), 1e-4)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("option", ["channels_last=false", "channels_last=true", "precision=bf16"])
@pytest.mark.parametrize("variant", ["nobn", "bn", "custombn", "convbn"])
def test_a_run_learns_and_repeats_bit_by_bit(tiny: Tiny, tmp_path: Path, variant: str, option: str) -> None:
    given = ("device=cuda", f"variant={variant}", option, "model.dropout=0.2", "epochs=6")
    first, second = (train.run(tiny(*given, f"root={tmp_path / name}")) for name in "ab")
    assert Run(first).summary["device"] == torch.cuda.get_device_name()
    assert Run(first).metrics[-1]["test_accuracy"] > 0.6
    assert_same(first, second)


def test_an_interrupted_run_goes_on_bit_by_bit(tiny: Tiny, tmp_path: Path) -> None:
    given = ("device=cuda", "variant=convbn", "model.dropout=0.3", "data.crop=2", "epochs=4", "eval_every=4")
    whole = train.run(tiny(*given, f"root={tmp_path / 'whole'}"))

    def stop(progress: Progress) -> None:
        if progress.step >= 20:
            raise KeyboardInterrupt

    broken = tiny(*given, f"root={tmp_path / 'broken'}")
    with pytest.raises(KeyboardInterrupt):
        train.run(broken, report=stop)
    assert_same(whole, train.run(broken))


def test_a_run_of_the_gpu_is_evaluated_under_all_statistics(tiny: Tiny) -> None:
    run = Run(train.run(tiny("device=cuda", "variant=convbn")))
    for statistics in inference.Statistics:
        (_, accuracy) = inference.evaluate(run, statistics)["test"]
        assert 0 <= accuracy <= 1
