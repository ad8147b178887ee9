"""Effects on an axis: a strip for each, so that rows of a table make a forest plot. Geometry alone; `strip.html` draws.

Two axes are used. All claims share one, on which an effect is in units of its margin, and the claim's side is the
right; it is linear up to one margin and logarithmic beyond. The conditions of one claim share one in the effect's own
unit, with a dot for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bnrepro.report.wording import Row
from bnrepro.stats import log

Place = Callable[[float], float]
WIDTH, EDGE = 240, 6  # of a strip, and of what is left free at its ends; `style.css` knows the width
DECADE = 30.0  # of the common axis
MARGIN = 34.0  # of the common axis: where one margin is
TICKS = (-100, -10, -1, 0, 1, 10, 100)  # of the common axis
MOST_TICKS = 5
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Strip:
    """One effect, drawn: places along the axis, in its units. None: there is no such thing, or it is off the axis."""

    mean: float | None
    low: float | None
    high: float | None
    dots: list[float] = field(default_factory=list)
    shade: tuple[float, float] | None = None
    """What is negligible, or for equality what is equal."""
    bar: float | None = None
    reported: float | None = None
    """The source's number."""
    plain: bool = False
    """Without a margin, so that the unit is half the interval."""
    over: int = 0
    """The mean lies beyond the right end (1), or the left one (-1)."""


# --- the axis that all claims share -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Margins:
    """Turns an effect's values into units of its margin: 0 is the bar, and 1 the smallest effect that matters."""

    zero: float
    unit: float
    ratio: bool
    shade: tuple[float, float] | None
    bar: float
    plain: bool = False

    def __call__(self, value: float | None) -> float | None:
        """``value`` in margins; None of one that is not finite."""
        if value is None:
            return None
        found = ((log(value) if self.ratio else value) - self.zero) / self.unit
        return found if math.isfinite(found) else None


def margins(effect: Row) -> Margins | None:
    """The units of ``effect``; None of one that is exact, or was not measured.

    Where there is a margin beyond the bar, it is the distance between them; for equality, and where the bar is one
    itself (no loss beyond it, twice as fast), the distance from no effect.
    """
    if effect["rule"] == "exact" or effect["mean"] is None:
        return None
    ratio, sign = effect["ratio"], -1 if effect["rule"] == "less" else 1
    bar, margin = (None if b is None else _log(b, ratio) for b in (effect["bar"], effect["margin"]))
    if effect["rule"] == "equal" and margin:
        return Margins(0.0, margin, ratio, (-1.0, 1.0), 0.0)
    if bar is not None and margin is not None and margin != bar:
        return Margins(bar, sign * abs(margin - bar), ratio, (0.0, 1.0), 0.0)
    if bar:
        at = math.copysign(1.0, sign * bar)
        return Margins(0.0, sign * abs(bar), ratio, (min(at, 0.0), max(at, 0.0)), at)
    ends = [log(end) if ratio else end for end in (effect["low"], effect["high"]) if end is not None]
    half = (ends[1] - ends[0]) / 2 if len(ends) == 2 else math.nan
    return Margins(0.0, sign * half, ratio, None, 0.0, plain=True) if 0 < half < math.inf else None


def common(value: float) -> float:
    """Where a number of margins lies on the common axis: linear up to one, logarithmic beyond."""
    size = abs(value)
    return WIDTH / 2 + math.copysign(MARGIN * size if size <= 1 else MARGIN + DECADE * math.log10(size), value)


def in_margins(row: Row) -> float | None:
    """A claim's deciding effect in margins; None where it has none."""
    effect = deciding(row)
    units = margins(effect) if effect else None
    return units(effect["mean"]) if units and effect else None


def deciding(row: Row) -> Row | None:
    """The effect that decided a claim."""
    found: Row | None = None if row["deciding"] is None else row["effects"][row["deciding"]]
    return found


def overview(row: Row, reported: float | None = None) -> Strip | None:
    """A claim's deciding effect on the common axis, with the source's number; None where there is nothing to draw."""
    effect = deciding(row)
    units = margins(effect) if effect else None
    if not (effect and units) or (mean := units(effect["mean"])) is None:
        return None
    low, high = sorted((_put(units(effect["low"]), -math.inf), _put(units(effect["high"]), math.inf)))
    if effect["low"] is None:
        low = high = mean
    assert units.shade is None or units.shade[0] < units.shade[1]
    at = units(reported)
    return Strip(
        mean=_held(common(mean)),
        low=_held(common(low)),
        high=_held(common(high)),
        shade=units.shade and (_held(common(units.shade[0])), _held(common(units.shade[1]))),
        bar=_held(common(units.bar)),
        reported=None if at is None else _held(common(at)),
        plain=units.plain,
        over=_over(common(mean)),
    )


def common_ticks() -> list[tuple[float, str]]:
    """(place, label) of the common axis."""
    return [(round(common(tick), 1), f"{tick:,}".replace("-", MINUS)) for tick in TICKS]


# --- the axis of one claim's conditions ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """Effects in one unit, on one axis."""

    unit: str
    ratio: bool
    rows: list[tuple[Row, Strip | None]]
    ticks: list[tuple[float, str]]
    """(place, label); none where nothing is random."""


def panels(effects: Iterable[Row], decides: bool = True, reported: float | None = None) -> list[Panel]:
    """The effects, together where they have one unit; without the rule where they do not decide."""
    groups: dict[tuple[str, bool, bool], list[Row]] = {}
    for effect in effects:
        groups.setdefault((effect["unit"], effect["ratio"], effect["rule"] == "exact"), []).append(effect)
    return [_panel(unit, ratio, each, decides, reported) for (unit, ratio, _), each in groups.items()]


def _panel(unit: str, ratio: bool, effects: list[Row], decides: bool, reported: float | None) -> Panel:
    values = [value for effect in effects for value in _extent(effect, ratio, decides)]
    if not values or effects[0]["rule"] == "exact":
        return Panel(unit, ratio, [(effect, None) for effect in effects], [])
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, for all that could be seen
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    if not 1e-300 < high - low < 1e300 or (ratio and max(abs(low), abs(high)) > 700):  # no axis has room for it
        return Panel(unit, ratio, [(effect, None) for effect in effects], [])
    scale = (WIDTH - 2 * EDGE) / (high - low)

    def place(value: float) -> float:
        return EDGE + ((log(value) if ratio else value) - low) * scale

    ticks = [(round(place(tick), 1), _label(tick)) for tick in ticks_of(low, high, ratio)]
    return Panel(unit, ratio, [(effect, _strip(effect, place, decides, reported)) for effect in effects], ticks)


def _extent(effect: Row, ratio: bool, decides: bool) -> Iterator[float]:
    """What must be on the axis: the seeds, no effect, bar and margin; the interval, as far as three times the seeds."""
    seeds = [_log(value, ratio) for value in effect["seeds"].values() if value is not None]
    seeds = [value for value in seeds if math.isfinite(value)]
    yield from seeds
    if seeds:
        room = 3 * (max(seeds) - min(seeds))
        ends = [_log(effect[end], ratio) for end in ("low", "high") if effect[end] is not None]
        yield from (min(max(end, min(seeds) - room), max(seeds) + room) for end in ends if math.isfinite(end))
    if decides:
        yield from _marks(effect, ratio)


def _marks(effect: Row, ratio: bool) -> Iterator[float]:
    yield 0.0
    for value in (effect["bar"], effect["margin"]):
        if value is not None:
            yield _log(value, ratio)
            if effect["rule"] == "equal":
                yield -_log(value, ratio)


def _strip(effect: Row, place: Place, decides: bool, reported: float | None) -> Strip | None:
    def at(value: float | None) -> float | None:
        if value is None or not math.isfinite(found := place(value)):
            return None
        return round(min(max(found, 0), WIDTH), 1)

    bar, margin = effect["bar"], effect["margin"]
    ends = [at(bar), at(bar if margin is None else margin)]
    if effect["rule"] == "equal" and margin:
        ends, bar = [at(1 / margin if effect["ratio"] else -margin), at(margin)], None
    shade = sorted(end for end in ends if end is not None)
    mean = at(effect["mean"])
    return Strip(
        mean=mean,
        low=_put(at(effect["low"]), mean),
        high=_put(at(effect["high"]), mean),
        dots=[dot for value in effect["seeds"].values() if (dot := at(value)) is not None],
        shade=(shade[0], shade[1]) if decides and len(set(shade)) == 2 else None,
        bar=at(bar) if decides else None,
        reported=at(reported) if decides else None,
    )


def ticks_of(low: float, high: float, ratio: bool) -> list[float]:
    """Round numbers between ``low`` and ``high``, few enough to be read; of a ratio, these are logarithms."""
    if not ratio or high - low < math.log(2):
        low, high = (math.exp(low), math.exp(high)) if ratio else (low, high)
        step = 10 ** math.floor(math.log10((high - low) / MOST_TICKS))
        step = next(step * by for by in (1, 2, 5, 10) if (high - low) / (step * by) <= MOST_TICKS)
        return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    first, last = math.floor(low / math.log(10)), math.ceil(high / math.log(10))
    for every in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**k for k in range(first, last + 1) for m in every if low <= math.log(m * 10.0**k) <= high]
        if len(found) <= MOST_TICKS:
            return found
    return found[:: -(-len(found) // MOST_TICKS)]


def _label(value: float) -> str:
    text = f"{0.0 if abs(value) < 1e-12 else value:.6g}"
    return text.replace("-", MINUS)


def _log(value: float, ratio: bool) -> float:
    return log(value) if ratio else value


def _put(value: float | None, instead: Any) -> Any:
    return instead if value is None else value


def _held(place: float) -> float:
    """A place on the axis, moved to its end where it lies beyond."""
    return round(min(max(place, 0.0), float(WIDTH)), 1)


def _over(place: float) -> int:
    return (place > WIDTH) - (place < 0)
