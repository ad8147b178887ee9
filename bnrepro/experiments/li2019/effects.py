"""Numbers by seed that verdicts, the table and the figure share."""

from __future__ import annotations

from statistics import fmean

from bnrepro.experiments.base import Records
from bnrepro.experiments.li2019.grid import DROPOUT

Cell = tuple[str, float, float]


def cells(records: Records) -> list[Cell]:
    """(place, amount, width) that there are measurements of."""
    rows = records.select(records.measurements, part=DROPOUT)
    return list(dict.fromkeys((str(r["position"]), float(r["amount"]), float(r["width"])) for r in rows))


def narrowest(records: Records) -> float:
    """The smallest width, at which all places and amounts were trained."""
    return min((width for _, _, width in cells(records)), default=1.0)


def cell(records: Records, quantity: str, where: str, amount: float, width: float) -> dict[int, float]:
    """A quantity with one value a seed."""
    return records.measured(quantity, part=DROPOUT, position=where, amount=amount, width=width)


def network_shift(
    records: Records, where: str, amount: float, width: float, quantity: str = "shift"
) -> dict[int, float]:
    """The mean shift over the layers of a network, by seed."""
    by_seed: dict[int, list[float]] = {}
    who = {"part": DROPOUT, "position": where, "amount": amount, "width": width}
    for row in records.select(records.measurements, quantity=quantity, **who):
        by_seed.setdefault(int(row["seed"]), []).append(float(row["value"]))
    return {seed: fmean(values) for seed, values in by_seed.items()}
