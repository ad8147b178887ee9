"""Options that nothing looks at are refused: which keys make a difference, and with which others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import reduce
from typing import Any

from torch import Tensor

from bnrepro.config import user_files
from bnrepro.config.overrides import written
from bnrepro.config.schema import Config, Norm
from bnrepro.errors import UserError, either
from bnrepro.norm import NORMS, NormError, NormOptions
from bnrepro.training.model import look_up

HARMLESS = ("eps", "momentum")
"""Options of nearly all norms: published runs of the others have them too, as their neighbours do."""


def options_of(variant: str, own: bool = False) -> set[str]:
    """The keys of ``norm`` that make a difference to ``variant``: those that its factory looks at, and gamma's.

    A norm in a file of a user's ``own`` is handed none of them.
    """
    if own:
        return {"file", "gamma"}
    known, looked_at = {each.name for each in fields(Norm)} - {"file"}, set()

    class Watched(NormOptions):
        def __getattribute__(self, name: str) -> Any:
            looked_at.add(name)
            return super().__getattribute__(name)

    make = look_up(NORMS, variant, "variant")
    for shape in ((), (8, 8)):  # after a linear layer, and on maps
        try:
            weights = getattr(make(16, shape, options=Watched()), "weight", None)
            looked_at |= {"gamma"} if isinstance(weights, Tensor) else set()
        except NormError:  # it is not made for this shape
            pass
        except user_files.FAILS:  # a user's own, which may need other sizes: nobody knows
            return known
    return looked_at & known


USED_WITH: Sequence[tuple[tuple[str, ...], str, Callable[[Config], Any], str]] = [
    (("optimizer.momentum", "optimizer.nesterov"), "optimizer.name", lambda c: c.optimizer.name == "sgd", "sgd"),
    (
        ("optimizer.beta1", "optimizer.beta2", "optimizer.eps"),
        "optimizer.name",
        lambda c: c.optimizer.name != "sgd",
        "adam or adamw",
    ),
    (("schedule.milestones", "schedule.gamma"), "schedule.name", lambda c: c.schedule.name == "step", "step"),
    (("model.init_std",), "model.init", lambda c: c.model.init == "gaussian", "gaussian"),
    (("model.dropout_position",), "model.dropout", lambda c: c.model.dropout > 0, "0.2"),
    (
        ("model.dropout_position",),
        "model.name",
        lambda c: c.model.dropout_position != "in_blocks" or c.model.name in ("vgg_small", "resnet20", "airbench"),
        "resnet20",
    ),
    (("model.keep_bias",), "model.placement", lambda c: c.model.placement == "before", "before"),
    (("norm.gamma",), "norm.affine", lambda c: c.norm.affine, "true"),
    (("channels_last",), "model.name", lambda c: not c.channels_last or c.model.name != "paper_mlp", "resnet20"),
]
"""Keys that are looked at only where another has some values: the keys, the other, whether it has one, and which.

Not among them is what makes no difference to a part of a published design's runs alone, as ``optimizer.decay_norm``
without weight decay.
"""


def check_options(configs: Sequence[Config]) -> None:
    """Raise UserError if a key is set to something else than its default, and none of ``configs`` looks at it."""
    for keys, other, holds, wanted in USED_WITH:
        for key in keys:
            if (cfg := _setting(key, configs)) and not any(map(holds, configs)):
                there = either(list(dict.fromkeys(_said(other, _of(each, other)) for each in configs)))
                raise UserError(
                    f"{_said(key, _of(cfg, key))} is not used by {there}. Leave it out, or use {_said(other, wanted)}."
                )
    variants = list(dict.fromkeys((cfg.variant, cfg.norm.file is not None) for cfg in configs))
    used = {"file"}.union(*(options_of(*each) for each in variants))
    harmless = HARMLESS if any(not own for _, own in variants) else ()
    for name in (each.name for each in fields(Norm) if each.name not in harmless):
        if (cfg := _setting(key := f"norm.{name}", configs)) and name not in used:
            users, names = [each for each in NORMS if name in options_of(each)], [variant for variant, _ in variants]
            raise UserError(
                f"{_said(key, _of(cfg, key))} is not used by variant={', '.join(names)}. Leave it out, or use a "
                f"variant that uses it: {either(users)}."
            )


def _setting(key: str, configs: Sequence[Config]) -> Config | None:
    """The first of ``configs`` in which ``key`` has not its default."""
    default = _of(Config(), key)
    return next((cfg for cfg in configs if _of(cfg, key) != default), None)


def _of(cfg: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)


def _said(key: str, value: Any) -> str:
    """``key=value`` as it is typed: a group by its own name."""
    return written(key.removesuffix(".name"), getattr(value, "value", value))
