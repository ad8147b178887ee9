"""Torch's optimizers as the configuration asks for them, and the learning rate over a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import nn

from bnrepro.config.schema import Config, OptimizerName, Schedule, ScheduleName
from bnrepro.training.model import parameter_groups


def make_optimizer(cfg: Config, network: nn.Module) -> torch.optim.Optimizer:
    """torch's SGD, Adam or AdamW with the parameter groups that ``optimizer.decay_norm`` asks for.

    Fused: one pass over each parameter instead of ten, which on small networks is a sixth of a step.
    """
    settings = cfg.optimizer
    groups = parameter_groups(network, settings.weight_decay, settings.decay_norm)
    own = (
        {"momentum": settings.momentum, "nesterov": settings.nesterov}
        if settings.name is OptimizerName.sgd
        else {"betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    )
    return OPTIMIZERS[settings.name](groups, lr=settings.lr, fused=True, **own)


def _eager(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """``kind``, whose methods do not import torch's compiler.

    Torch's own import it at their first call, only to tell it to leave them alone: more than a second at each start.
    Without the wrappers that do so they are the same functions.
    """
    plain = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in plain}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    OptimizerName.sgd: _eager(torch.optim.SGD),
    OptimizerName.adam: _eager(torch.optim.Adam),
    OptimizerName.adamw: _eager(torch.optim.AdamW),
}


def lr_factor(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of step ``step`` (from 0) of ``steps``, as a multiple of ``optimizer.lr``."""
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule.name is ScheduleName.linear:
        return 1 - done
    if schedule.name is ScheduleName.cosine:
        return 0.5 * (1 + math.cos(math.pi * done))
    if schedule.name is ScheduleName.step:
        return math.prod(schedule.gamma for milestone in schedule.milestones if step >= milestone * steps)
    return 1.0


def without_decay(rates: Sequence[float], decay: float, momentum: float = 0.0) -> Iterator[tuple[float, float]]:
    r"""Learning rates that grow, which do to weights before a norm what ``rates`` do together with weight decay.

    SGD with momentum and weight decay moves weights :math:`w` as :math:`w_{t+1} = (1 + \gamma - \eta \lambda) w_t -
    \gamma w_{t-1} - \eta g_t`. Let :math:`\alpha` be the larger root of :math:`\alpha^2 - (1 + \gamma - \eta \lambda)
    \alpha + \gamma = 0` (without momentum, :math:`1 - \eta \lambda`). Where the loss does not depend on the weights'
    scale, :math:`\tilde w_t = w_t / \alpha^t` moves as SGD without decay moves it, with the same momentum and the rates
    :math:`\eta \alpha^{-2t-1}`. Where the rate changes (and at the first step) the momentum buffer is moved along the
    weights once, since :math:`\alpha` is another.

    Args:
        rates: learning rate of each step.
        decay: weight decay, as torch's SGD has it (added to the gradient).
        momentum: torch's, without dampening or Nesterov.

    Yields:
        for each step the learning rate without weight decay, and what the weights are to be multiplied by and added to
        their momentum buffer before it: 0 except where the rate changes.

    Raises:
        ValueError: a rate is so large that the root is not real, or not above 0.

    Source: Li & Arora, "An Exponential Learning Rate Schedule for Deep Learning" (2020); the corrections are derived
    here for torch's SGD.
    """
    scale, before = 1.0, 0.0  # the weights without decay over those with it; what the buffer has of the weights
    for rate, steps in groupby(rates):
        middle = (1 + momentum - rate * decay) / 2
        if middle <= 0 or middle**2 < momentum:
            raise ValueError(f"a rate of {rate:g} with a weight decay of {decay:g} does not shrink weights steadily")
        root = middle + math.sqrt(middle**2 - momentum)
        if momentum:
            now = (1 - 1 / root) / rate
            kick = (now - before) / scale**2
            before = now
        else:
            kick = 0.0  # there is no buffer
        for _ in steps:
            yield rate * scale**2 / root, kick
            scale, kick = scale / root, 0.0
