"""A network's output on an example, before and after it was changed: the same but for rounding, or how it differs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bnrepro.norm.layers import NormError


def run(model: nn.Module, example_input: Any, notes: dict[nn.Module, Callable[[nn.Module, Tensor], None]]) -> Any:
    """Run ``model(example_input)`` in eval mode, calling each of ``notes`` with its module's input; restore modes.

    Raises:
        NormError: the model does not take it, for its type.
    """
    modes = {module: module.training for module in model.modules()}

    def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        notes[module](module, inputs[0] if inputs else next(iter(keywords.values())))

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in notes]
    try:
        with torch.no_grad():
            return model.eval()(example_input)
    except (TypeError, AttributeError, LookupError) as error:
        given = f"{type(example_input).__name__} ({type(error).__name__}: {first_line(error)})"
        raise NormError(
            f"The network does not run on the example, a {given}. Give what its forward takes as its one argument."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def difference_after(model: nn.Module, example_input: Any, want: Any) -> str | None:
    """How the changed network's output differs from ``want``, in words; None if it does by rounding alone."""
    try:
        return difference(want, run(model, example_input, {}))
    except Exception as error:  # whatever a forward does that takes its norm for another
        return f"the network ends with {type(error).__name__} ({first_line(error)})"


def reproducible(model: nn.Module, example_input: Any, want: Any) -> bool:
    """Whether ``model`` computes ``want`` once more: no random numbers, no state that changes."""
    return difference(want, run(model, example_input, {})) is None


def same_in_float64(model: nn.Module, example_input: Any, change: Callable[[nn.Module, Any], nn.Module]) -> bool:
    """Whether ``change`` keeps the outputs of a copy of ``model`` in float64; False where there is no such copy."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said of the model itself
            wide = copied(model).double()
            x = tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, example_input)
            want = run(wide, x, {})
            return difference(want, run(change(wide, x), x, {})) is None
    except Exception:  # a network that fixes a dtype, a device without float64
        return False


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` that works in the same process groups."""
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    with torch.inference_mode(False):
        return copy.deepcopy(model, {id(group): group for group in groups if group is not None})


NOT_FINITE = "an output on the example is not finite any more"


def difference(want: Any, got: Any) -> str | None:
    """How one output of a network differs from another, in words; None if it does by rounding alone."""
    before, after = ([t for t in tree_leaves(_plain(each)) if isinstance(t, Tensor)] for each in (want, got))
    if len(before) != len(after):
        return f"the network gives {len(after)} tensors where it gave {len(before)}"
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            was, is_now = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (one, other))
            return f"an output of {was} became {is_now}"
        if not one.is_floating_point() or one.numel() == 0 or one.is_meta:
            continue
        finite = one.isfinite()
        scale = one[finite].abs().max().item() if finite.any() else 0.0
        if not other[finite].isfinite().all():
            return NOT_FINITE
        apart = (other.double() - one.double())[finite].abs().max().item() if finite.any() else 0.0
        bound = {torch.float64: 1e-9, torch.float32: 1e-4}.get(one.dtype, 5e-2) * scale
        if not apart <= bound:
            return (
                f"an output of shape {tuple(one.shape)} on the example differs by {apart:.2g}, where its largest value "
                f"is {scale:.2g}: more than rounding"
            )
    return None


def _plain(output: Any) -> Any:
    """``output`` with every kind of dict, list and tuple as torch's trees know them."""
    if isinstance(output, dict):
        return [_plain(value) for value in output.values()]
    return [_plain(value) for value in output] if isinstance(output, list | tuple) else output


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says."""
    return "".join(str(error).strip().splitlines()[:1])[:200]
