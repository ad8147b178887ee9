"""Numbers labelled by factors and seed: what a claim reads, and what arithmetic over seeds is done with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import fmean
from typing import Any

from bnrepro.stats.intervals import Interval, t_interval

Label = tuple[Any, ...]
_missed: ContextVar[list[tuple[str, Any]] | None] = ContextVar("missed", default=None)


@contextmanager
def missed() -> Iterator[list[tuple[str, Any]]]:
    """The (factor, level) pairs that are asked for within it where there are values, none of which has the level."""
    found: list[tuple[str, Any]] = []
    token = _missed.set(found)
    try:
        yield found
    finally:
        _missed.reset(token)


def note_missed(levels: Mapping[str, Any]) -> None:
    """Add to `missed`."""
    if (found := _missed.get()) is not None:
        found.extend(levels.items())


class Values:
    """Numbers, each with a seed and a level of every factor in `factors`.

    Arithmetic pairs values of the same seed and the same levels: ``bn - nobn`` is the paired difference, over the
    seeds that both have. A side that lacks a factor of the other counts for all levels of it. A factor that has one
    level on either side, and not the same, is what is contrasted, and is left out.
    """

    def __init__(self, factors: tuple[str, ...] = (), data: Mapping[tuple[Label, int], float] | None = None) -> None:
        self.factors = factors
        self.data: dict[tuple[Label, int], float] = dict(data or {})

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object.

        Raises:
            TypeError: ``other`` is a number: whether all values equal it is a matter of a tolerance.
        """
        if isinstance(other, int | float):
            raise TypeError(
                f"values are not compared with == or !=; write exact(values - {other}, ..., tolerance=1e-9)"
            )
        return self is other

    __hash__ = object.__hash__

    @classmethod
    def of_rows(
        cls, rows: Iterable[Mapping[str, Any]], value: str, apart: frozenset[str] = frozenset(), what: str = ""
    ) -> Values:
        """From rows with a ``seed``, a number called ``value``, and factors: every other column but those ``apart``.

        A column that is empty in all rows is no factor; rows without the number are left out. ``what`` the numbers are
        is said where two of them have the same place; "": their column.
        """
        rows = [row for row in rows if row.get(value) is not None]
        columns = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in {"seed", value, *apart}]
        factors = tuple(key for key in columns if any(row.get(key) is not None for row in rows))
        data = {(tuple(row.get(key) for key in factors), int(row["seed"])): float(row[value]) for row in rows}
        if len(data) < len(rows):
            places = [(tuple(row.get(key) for key in factors), int(row["seed"])) for row in rows]
            label, seed = next(place for place in places if places.count(place) > 1)
            where = "".join(f", {key} {level}" for key, level in zip(factors, label, strict=True))
            raise ValueError(f"{what or value} is given twice for seed {seed}{where}: tell the two apart by a factor")
        return cls(factors, data)

    @classmethod
    def stacked(cls, factor: str, groups: Mapping[Any, Values]) -> Values:
        """Values of the same factors as one, with a further factor: the names of the groups are its levels."""
        factors = {values.factors for values in groups.values() if values.data}
        if len(factors) > 1:
            raise ValueError(f"{factor}: the groups have different factors: {', '.join(map(str, groups.values()))}")
        data = {
            ((*label, level), seed): value
            for level, values in groups.items()
            for (label, seed), value in values.data.items()
        }
        return cls((*next(iter(factors), ()), factor), data)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[float]:
        return iter(self.data.values())

    def __repr__(self) -> str:
        return f"Values({len(self)} values by {', '.join((*self.factors, 'seed'))})"

    # --- selection ---

    def at(self, **levels: Any) -> Values:
        """The values with these levels. A list keeps its factor; a single level, or None for "none", removes it."""
        self._check(*(key for key in levels if levels[key] is not None))
        places = {key: self.factors.index(key) for key in levels if key in self.factors}
        alone = {key: level for key, level in levels.items() if not isinstance(level, list | tuple | set | range)}
        kept = list(self.data.items())
        for key, i in places.items():
            if key in alone:
                kept = [item for item in kept if item[0][0][i] == alone[key]]
            else:
                kept = [item for item in kept if item[0][0][i] in levels[key]]
        left = [i for i, key in enumerate(self.factors) if key not in alone]
        data = {(tuple(label[i] for i in left), seed): value for (label, seed), value in kept}
        found = Values(tuple(self.factors[i] for i in left), data)
        if self.data and not found.data:
            note_missed({key: alone[key] for key in places if key in alone and alone[key] not in self.levels(key)})
        return found

    def where(self, keep: Callable[[float], bool]) -> Values:
        """The values for which ``keep`` is true: ``values.where(math.isfinite)``."""
        return Values(self.factors, {key: value for key, value in self.data.items() if keep(value)})

    def without(self, *factors: str) -> Values:
        """The values without ``factors`` that the others determine, as an arm its variant; those it lacks are none.

        Raises:
            ValueError: the others do not tell the values apart.
        """
        left = [i for i, key in enumerate(self.factors) if key not in factors]
        data = {(tuple(label[i] for i in left), seed): value for (label, seed), value in self.data.items()}
        if len(data) < len(self.data):
            raise ValueError(f"without {', '.join(factors)}, several values have the same factors and seed")
        return Values(tuple(self.factors[i] for i in left), data)

    def levels(self, factor: str) -> list[Any]:
        """The levels of ``factor``, in the order of the records."""
        if factor not in self.factors:
            return []
        place = self.factors.index(factor)
        return list(dict.fromkeys(label[place] for label, _ in self.data))

    def by(self, *factors: str) -> dict[Any, Values]:
        """The values for each level of ``factors`` (of several: for each tuple), without these.

        Raises:
            ValueError: there is no such factor.
        """
        self._check(*factors)
        place = [self.factors.index(key) for key in factors] if self.data else []
        left = [i for i, key in enumerate(self.factors) if key not in factors]
        groups: dict[Any, dict[tuple[Label, int], float]] = {}
        for (label, seed), value in self.data.items():
            group = label[place[0]] if len(factors) == 1 else tuple(label[i] for i in place)
            groups.setdefault(group, {})[tuple(label[i] for i in left), seed] = value
        names = tuple(self.factors[i] for i in left)
        return {group: Values(names, data) for group, data in groups.items()}

    def _check(self, *factors: str) -> None:
        """Check that these are factors, where there are values."""
        if self.data and (missing := [key for key in factors if key not in self.factors]):
            raise ValueError(f"there is no factor {', '.join(missing)}; there are {', '.join(self.factors) or 'none'}")

    @property
    def seeds(self) -> dict[int, float]:
        """The values by seed, in its order, where no factor is left.

        Raises:
            ValueError: a factor has several levels.
        """
        if len({label for label, _ in self.data}) > 1:
            raise ValueError(f"there are several values a seed, by {', '.join(self.factors)}: select or average them")
        return dict(sorted((seed, value) for (_, seed), value in self.data.items()))

    def cells(self) -> dict[str, Values]:
        """Each combination of levels, named by the levels of the factors that differ: ``lenet, relu``."""
        differing = [key for key in self.factors if len(self.levels(key)) > 1]
        if not differing:
            return {"": self.at(**{key: self.levels(key)[0] for key in self.factors})} if self.data else {}
        rest = {key: self.levels(key)[0] for key in self.factors if key not in differing}
        return {
            ", ".join(_shown(key, level) for key, level in zip(differing, _tuple(label), strict=True)): values
            for label, values in self.at(**rest).by(*differing).items()
        }

    # --- arithmetic ---

    def map(self, function: Callable[[float], float]) -> Values:
        """``function`` of each value."""
        return Values(self.factors, {key: function(value) for key, value in self.data.items()})

    def log(self) -> Values:
        """Natural logarithms; of 0, minus infinity, and of what is below, nan."""
        return self.map(log)

    def log10(self) -> Values:
        """Logarithms to base 10, in decades."""
        return self.log() / math.log(10)

    def __neg__(self) -> Values:
        return self.map(lambda v: -v)

    def __abs__(self) -> Values:
        return self.map(abs)

    def __add__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: float) -> Values:
        return self.map(lambda v: other - v)

    def __mul__(self, other: Values | float) -> Values:
        return self._with(other, lambda a, b: a * b)

    __rmul__ = __mul__
    __radd__ = __add__

    def __truediv__(self, other: Values | float) -> Values:
        return self._with(other, _divided)

    def __or__(self, other: Values) -> Values:
        """The values of both; where both have one, that of ``other``.

        Raises:
            ValueError: they have different factors.
        """
        if not (self.data and other.data):
            return other if other.data else self
        if set(self.factors) != set(other.factors):
            raise ValueError(f"{self} and {other} have different factors: select or average some")
        order = [other.factors.index(key) for key in self.factors]
        return Values(
            self.factors, self.data | {(tuple(k[i] for i in order), s): v for (k, s), v in other.data.items()}
        )

    def _with(self, other: Values | float, function: Callable[[float, float], float]) -> Values:
        if not isinstance(other, Values):
            return self.map(lambda v: function(v, other))
        if not self.data or not other.data:
            return Values(self.factors)
        for key in set(self.factors) & set(other.factors):
            (one, *more), (another, *others) = self.levels(key), other.levels(key)
            if not more and not others and one != another:
                return self.at(**{key: one})._with(other.at(**{key: another}), function)
        wide = self if set(other.factors) <= set(self.factors) else other
        if not set(self.factors) | set(other.factors) == set(wide.factors):
            raise ValueError(f"{self} and {other} have different factors: select or average some")

        def found(side: Values, label: Label, seed: int) -> float | None:
            return side.data.get((tuple(label[wide.factors.index(key)] for key in side.factors), seed))

        data = {}
        for label, seed in wide.data:
            a, b = found(self, label, seed), found(other, label, seed)
            if a is not None and b is not None:
                data[label, seed] = function(a, b)
        return Values(wide.factors, data)

    def reduce(self, function: Callable[[list[float]], float], *over: str) -> Values:
        """``function`` of the values of each seed over all levels of ``over`` (none given: of all factors).

        Raises:
            ValueError: there is no such factor.
        """
        self._check(*over)
        left = [i for i, key in enumerate(self.factors) if over and key not in over]
        groups: dict[tuple[Label, int], list[float]] = {}
        for (label, seed), value in self.data.items():
            groups.setdefault((tuple(label[i] for i in left), seed), []).append(value)
        return Values(tuple(self.factors[i] for i in left), {key: function(values) for key, values in groups.items()})

    def along(self, factor: str, function: Callable[[list[Any], list[float]], float]) -> Values:
        """``function`` of the levels of ``factor`` and of each seed's values at them: a slope, an area.

        Raises:
            ValueError: there is no such factor.
        """
        self._check(factor)
        rest = [i for i, key in enumerate(self.factors) if key != factor]
        series: dict[tuple[Label, int], dict[Any, float]] = {}
        for (label, seed), value in self.data.items():
            series.setdefault((tuple(label[i] for i in rest), seed), {})[label[self.factors.index(factor)]] = value
        found = {key: function(list(values), list(values.values())) for key, values in series.items()}
        return Values(tuple(self.factors[i] for i in rest), found)

    def mean(self, *over: str) -> Values:
        """Each seed's mean over ``over``."""
        return self.reduce(fmean, *over)

    def max(self, *over: str) -> Values:
        """Each seed's largest value over ``over``."""
        return self.reduce(max, *over)

    def min(self, *over: str) -> Values:
        """Each seed's smallest value over ``over``."""
        return self.reduce(min, *over)

    def join(self, factor: str, level: Any, **others: Values) -> Values:
        """These values with a further factor, at ``level``; ``others`` are at the levels that they are named."""
        return Values.stacked(factor, {level: self, **others})

    # --- over seeds ---

    def interval(self, confidence: float = 0.95) -> Interval:
        """Student's interval of the mean over seeds."""
        return t_interval(list(self.seeds.values()), confidence)

    def intervals(self, factor: str) -> dict[Any, Interval]:
        """`interval` for each level of ``factor``."""
        return {level: values.interval() for level, values in self.by(factor).items()}

    def best(self, factor: str, default: Any = None) -> Any:
        """The level of ``factor`` with the highest mean over seeds, as of validation accuracy; without values, another.

        Raises:
            ValueError: there is no such factor, or a further one.
        """
        means = {level: fmean(values.seeds.values()) for level, values in self.by(factor).items()}
        return max(means, key=lambda level: means[level], default=default)

    def only(self) -> float | None:
        """The value, where there is a single one; None where there is none."""
        if len(self) > 1:
            raise ValueError(f"there are {len(self)} values")
        return next(iter(self), None)


def log(value: float) -> float:
    """The natural logarithm; of 0, minus infinity, and of what is below, nan."""
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _divided(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a) if a else math.nan


def _shown(factor: str, level: Any) -> str:
    if isinstance(level, str):
        return level
    return f"{factor.replace('_', ' ')} {level:g}" if isinstance(level, int | float) else f"{factor} {level}"


def _tuple(label: Any) -> Label:
    return label if isinstance(label, tuple) else (label,)
