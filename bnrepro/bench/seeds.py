"""Many seeds at once in one process (stacked parameters, torch.func), beside as many processes as there are cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

from bnrepro.bench.timing import Table, alone, machine
from bnrepro.config import load_config
from bnrepro.data.dataset import Dataset, derive_seed, load
from bnrepro.norm import NORMS, NormOptions
from bnrepro.training.model import build

WORTH = 1.3
"""How much faster stacking has to be than processes to be worth a second way of training."""
BATCH = 60


def stacked(seeds: int = 10, steps: int = 60) -> Table:
    """Steps of all seeds a second, stacked with all threads, and apart with one thread a process."""
    threads = torch.get_num_threads()
    rows = []
    for model in ("paper_mlp", "lenet"):
        for variant in ("nobn", "bn"):
            together = seeds / alone(_together, model, variant, seeds, steps)
            # As many processes at once as there are threads, as `sweep` runs them.
            with ThreadPoolExecutor(threads) as pool:
                each = [pool.submit(alone, _apart, model, variant, steps) for _ in range(threads)]
            apart = sum(1 / future.result() for future in each)
            rows.append(
                {
                    "model": model,
                    "variant": variant,
                    "seeds": seeds,
                    "stacked_steps_per_second": round(together, 1),
                    "processes_steps_per_second": round(apart, 1),
                    "times_as_fast": round(together / apart, 2),
                }
            )
    return Table(
        "seeds",
        f"Steps of batch {BATCH} a second, over {seeds} seeds: stacked in one process (torch.func.vmap, {threads} "
        f"threads, BN without running statistics), and in {threads} processes of one thread; medians of {steps} steps. "
        f"Worth keeping from {WORTH}. {machine('cpu')}.",
        rows,
    )


def _networks(model: str, variant: str, seeds: int) -> tuple[list[nn.Module], Dataset]:
    cfg = load_config([f"model={model}", f"variant={variant}"])
    data = load(cfg.data, torch.device("cpu"))

    def norm(features: int, shape: tuple[int, ...]) -> nn.Module:
        layer = NORMS[variant](features, shape, options=NormOptions())
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # vmap cannot write to buffers
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return layer

    made = [
        build(cfg.model, norm, data.channels, data.image_size, data.num_classes,
              torch.Generator().manual_seed(derive_seed(seed, "weights")))
        for seed in range(seeds)
    ]  # fmt: skip
    return list(made), data


def _together(model: str, variant: str, seeds: int, steps: int) -> float:
    networks, data = _networks(model, variant, seeds)
    parameters, buffers = stack_module_state(networks)
    optimizer = torch.optim.Adam(list(parameters.values()), fused=True)
    base = networks[0]

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, (parameters, buffers), (x,)), y)

    gradients = vmap(grad_and_value(loss))

    def step() -> None:
        index = torch.randint(len(data.train.labels), (seeds, BATCH))
        x = data.normalize(data.train.images[index.flatten()]).unflatten(0, (seeds, BATCH))
        found, _ = gradients(parameters, buffers, x, data.train.labels[index])
        for name, parameter in parameters.items():
            parameter.grad = found[name]
        optimizer.step()

    return _median(step, steps)


def _apart(model: str, variant: str, steps: int) -> float:
    torch.set_num_threads(1)
    (network,), data = _networks(model, variant, 1)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        index = torch.randint(len(data.train.labels), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(network(data.normalize(data.train.images[index])), data.train.labels[index]).backward()
        optimizer.step()

    return _median(step, steps)


def _median(step: Callable[[], Any], steps: int) -> float:
    """Seconds of a step."""
    times = []
    for number in range(steps + 5):
        started = time.perf_counter()
        step()
        if number >= 5:
            times.append(time.perf_counter() - started)
    return median(times)
