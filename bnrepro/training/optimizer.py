"""Torch's optimisers as the configuration asks for them, and the learning rate over a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

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
