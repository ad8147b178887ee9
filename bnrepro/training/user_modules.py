"""Norms and networks in files of a user's own, as those of the package.

A checkpoint holds their parameters, buffers and extra state. Whatever else they keep, as attributes, generators of
their own or globals, is not restored when a run goes on, or is evaluated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bnrepro.config import user_files
from bnrepro.config.schema import Config
from bnrepro.errors import UserError, first_line
from bnrepro.norm import NormError
from bnrepro.training.generators import forked

Shape = tuple[int, ...]
MakeNorm = Callable[[int, Shape], nn.Module]


def own_files(cfg: Config) -> list[Path]:
    """The files of a user's own that ``cfg`` names."""
    return [Path(file) for file in (cfg.model.file, cfg.norm.file) if file is not None]


def own_norm(file: Path, name: str) -> MakeNorm:
    """The norm factory that calls ``name`` in ``file``, a class or function of a user's own.

    It is called as ``NAME(num_features, spatial_shape)`` if its second positional argument is required or is named
    ``spatial_shape``, and else as ``NAME(num_features)``.

    Raises:
        UserError: the file has no such thing.
    """
    make = user_files.load(file, name)
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        signature = inspect.Signature([inspect.Parameter("num_features", inspect.Parameter.POSITIONAL_ONLY)])
    # An argument with a default of its own, as a layer's eps, is not meant.
    second = [each for each in signature.parameters.values() if each.kind is not each.KEYWORD_ONLY][1:2]
    meant = all(each.default is each.empty or each.name == "spatial_shape" for each in second)
    takes = [count for count in ((2, 1) if meant else (1, 2)) if _can_be_called(signature, count)]
    if not takes:
        raise UserError(
            f"{file}:{name} has the signature {signature}, but is called as {name}(num_features, spatial_shape) or "
            f"{name}(num_features)."
        )

    def made(features: int, shape: Shape) -> nn.Module:
        return _called(file, name, make, *(features, shape)[: takes[0]])

    return made


def _called(file: Path, name: str, make: Callable[..., Any], *arguments: Any) -> nn.Module:
    try:
        made = make(*arguments)
    except (NormError, UserError, MemoryError):
        raise
    except user_files.FAILS as error:
        raise UserError(f"{file}:{name} cannot be constructed: {user_files.where(error, file)}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{file}:{name} returns {type(made).__name__}, but a torch.nn.Module is needed.")
    try:
        tensors = (*made.parameters(), *made.buffers())
    except AttributeError as error:  # torch's, of a module that was never initialized
        raise UserError(
            f"{file}:{name} is no complete module ({first_line(error)}). Call super().__init__() first in its __init__."
        ) from error
    if any(tensor.is_meta for tensor in tensors):
        raise UserError(f"{file}:{name} has tensors on the device meta, which hold no numbers. Make them on the CPU.")
    if any(map(is_lazy, tensors)):
        raise UserError(
            f"{file}:{name} has lazy layers, whose sizes are not known yet. Give them their sizes, or run a tensor of "
            "zeros through them before they are returned."
        )
    return made


def _can_be_called(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def own_network(
    file: Path, name: str, norm: MakeNorm, channels: int, image: Shape, classes: int, generator: torch.Generator
) -> tuple[nn.Module, list[nn.Module]]:
    """The network that ``name(norm, channels, image, classes)`` in ``file`` makes, and the norms that it asked for.

    Its weights are those that it draws. They come from the global generators, seeded from ``generator``, so that all
    norms start from the same ones.
    """
    make = user_files.load(file, name)
    if not _can_be_called(inspect.signature(make), 4):
        raise UserError(
            f"{file}:{name} has the signature {inspect.signature(make)}, but is called as {name}(norm, channels, "
            "image, classes), where norm(num_features, spatial_shape) makes a layer and image is (height, width)."
        )
    norms: list[nn.Module] = []

    def counted(features: int, shape: Shape = ()) -> nn.Module:
        norms.append(norm(features, tuple(shape)))
        return norms[-1]

    with forked(seed=generator.initial_seed()):
        layers = _called(file, name, make, counted, channels, image, classes)
    if not any(p.requires_grad for p in layers.parameters()):
        raise UserError(f"{file}:{name} has no parameters to train.")
    if not norms:
        raise UserError(
            f"{file}:{name} never calls its argument norm, so all variants would be the same network. "
            "Create its norms with norm(num_features, spatial_shape)."
        )
    return layers, [layer for layer in norms if layer in set(layers.modules())]
