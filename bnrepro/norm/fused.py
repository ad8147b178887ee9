"""A norm and the ReLU after it in one pass over memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch

from bnrepro.norm.layers import _HandDerived


class FusedSequential(nn.Sequential):
    """`torch.nn.Sequential` that runs a norm of this package and a ReLU directly after it as one pass where it can.

    The modules, their names and `state_dict`, and all outputs and gradients are those of `torch.nn.Sequential`. One
    pass is made in training by the kernels for the CPU, of a norm whose statistics are this process's, and only if
    nobody looks in between: hooks on either of the two, a tracer, a transform or `torch.compile` get one after the
    other.
    """

    def forward(self, input: Any) -> Any:
        modules: list[Any] = list(self._modules.values())
        if torch.compiler.is_compiling() or not isinstance(input, Tensor):
            return super().forward(input)
        x, following = input, iter([*modules[1:], None])
        for module in (pairs := iter(modules)):
            after = next(following)
            if are_fusible(module, after) and (y := module.in_one_call(x, relu=True)) is not None:
                x = y
                next(pairs), next(following)
            else:
                x = module(x)
        return x

    def __prepare_scriptable__(self) -> nn.Sequential:
        """What `torch.jit.script` compiles in its place."""
        plain = nn.Sequential()
        plain.__dict__.update(self.__dict__)
        return plain


def has_pairs(modules: nn.Sequential) -> bool:
    """Whether a norm of this package and a ReLU are neighbours in it."""
    return any(isinstance(norm, _HandDerived) and type(relu) is nn.ReLU for norm, relu in pairwise(modules))


def are_fusible(norm: Any, relu: Any) -> bool:
    """Whether these are a norm with kernels and a ReLU, and nothing else is called before or after either."""
    return (
        isinstance(norm, _HandDerived)
        and type(relu) is nn.ReLU
        and type(norm).forward is _HandDerived.forward
        and not _is_watched(norm)
        and not _is_watched(relu)
        and not _any_global_hook()
    )


GLOBAL_HOOKS = tuple(f"_global_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre"))


def _any_global_hook() -> bool:
    """Whether every call of a module is watched."""
    return any(getattr(of_torch, name) for name in GLOBAL_HOOKS)


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of ``module`` is more than its forward, or another one."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )
