"""Networks, activations, orders, dropouts and ghost batches: what is trained."""

from __future__ import annotations

from dataclasses import replace

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Factors, Settings

ORDER, DROPOUT, GHOST = "order", "dropout", "ghost"
ORDERS: dict[str, tuple[str, ...]] = {
    "before": ("variant=bn", "model.placement=before"),
    "after": ("variant=bn", "model.placement=after"),
    "none": ("variant=nobn",),
}
POSITIONS = ("before_norm", "after_norm", "last")


def arms(settings: Settings) -> list[Arm]:
    """The orders for each network and activation; dropout and ghost batches for one network."""
    return [*_orders(settings), *_dropouts(settings), *ghosts(settings)]


def _orders(settings: Settings) -> list[Arm]:
    made: list[Arm] = []
    for network, own in settings["networks"].items():
        for activation in settings["activations"]:
            for order, norm in ORDERS.items():
                factors = {"network": network, "activation": activation, "order": order, "affine": "on"}
                made += _seeds(settings, ORDER, factors, *own, *norm, f"model.activation={activation}")
        for order in ("before", "after"):
            factors = {"network": network, "activation": "relu", "order": order, "affine": "off"}
            made += _seeds(settings, ORDER, factors, *own, *ORDERS[order], "model.activation=relu", "norm.affine=false")
    return made


def _dropouts(settings: Settings) -> list[Arm]:
    amounts = settings["dropout_amounts"]
    cells = [("bn", position, amount) for position in POSITIONS for amount in amounts]
    # Without BN there is one question: whether dropout does there what it does beside BN.
    cells += [("bn", "none", 0.0), ("nobn", "none", 0.0), ("nobn", "after_norm", amounts[-1])]
    made: list[Arm] = []
    for norm, position, amount in cells:
        where = [f"model.dropout={amount}", f"model.dropout_position={position}"] if amount else []
        factors = {"norm": norm, "position": position, "amount": amount}
        made += _seeds(settings, DROPOUT, factors, *settings["regularized"], f"variant={norm}", *where)
    return made


def ghosts(settings: Settings) -> list[Arm]:
    """Statistics over parts of the batch, and over the whole of it."""
    whole = _seeds(settings, GHOST, {}, *settings["regularized"], "variant=bn")
    made = [replace(arm, factors={"size": arm.config.batch_size}) for arm in whole]
    for size in settings["ghost_sizes"]:
        overrides = (*settings["regularized"], "variant=ghostbn", f"norm.ghost_size={size}")
        made += _seeds(settings, GHOST, {"size": size}, *overrides)
    return made


def _seeds(settings: Settings, part: str, factors: Factors, *overrides: str) -> list[Arm]:
    cfg = load_config([*settings["common"], *overrides])
    return [Arm(part, factors, replace(cfg, seed=seed)) for seed in range(settings["seeds"])]
