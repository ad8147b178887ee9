"""Gates: whether networks have trained enough for a claim about them to be judged.

A gate is set before the runs, beside its claim::

    def trained(r: Results, s: Settings) -> Gate:
        accuracy = r.accuracy("train_accuracy", part="main", variant="nobn")
        fall = r.fall("train_loss", part="main")
        return reaches(accuracy, 80, "training accuracy without BN, %") & stays_below(
            fall, 0.02, "fall of the training loss in the last epoch"
        )

    @paper.claim("D1.3", gate=trained, ...)

Where it fails, the claim is not testable at this length, whatever its effects are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bnrepro.claims.evidence import check_given
from bnrepro.stats import Values


@dataclass(frozen=True)
class Gate:
    """What a claim needs of training, and what was found."""

    what: str
    """What was looked at, with its unit: "training accuracy without BN, %"."""
    value: float | None
    """None where nothing was measured."""
    needed: str
    """In words: "at least 80"."""
    passed: bool | None
    """None where nothing was measured: nothing is known, and so nothing is judged."""
    parts: tuple[Gate, ...] = ()
    """Of one that is several: each of them."""

    def __and__(self, other: Gate) -> Gate:
        """Both must pass; the one that stands in the way is shown, or else the first."""
        parts = (*(self.parts or (self,)), *(other.parts or (other,)))
        worst = min(parts, key=lambda gate: {None: 0, False: 1, True: 2}[gate.passed])
        return replace(worst, parts=parts)

    def __bool__(self) -> bool:
        """A gate is neither true nor false: ``and`` would silently drop one of two."""
        raise TypeError("two gates are joined with &, not with `and`; whether one has passed is gate.passed")

    @property
    def asks(self) -> str:
        """What must be, in words: "training accuracy without BN, %: at least 80"."""
        return "; ".join(f"{gate.what}: {gate.needed}" for gate in self.parts or (self,))

    @property
    def words(self) -> str:
        """What was found, as the reason why a claim is not judged."""
        if self.value is None:
            return f"whether the networks have trained is not known: {self.what} was not measured"
        return (
            f"the networks have not trained long enough: {self.what} is {self.value:.3g}, and {self.needed} is needed"
        )


Given = Values | Mapping[str, Values]
"""Values; each combination of levels, or each name of a mapping, is a condition, and the worst one counts."""


def reaches(values: Given, least: float, what: str) -> Gate:
    """The mean over seeds is at least ``least`` under every condition: an accuracy, say.

    Raises:
        ValueError: ``least`` is not finite.
    """
    _check("reaches", values, least, what)
    means = _means(values)
    worst = min(means, default=None)
    return Gate(what, worst, f"at least {least:g}", None if worst is None else worst >= least)


def stays_below(values: Given, most: float, what: str) -> Gate:
    """The mean over seeds is at most ``most`` under every condition: a loss, or `Results.fall` of one.

    Raises:
        ValueError: ``most`` is not finite.
    """
    _check("stays_below", values, most, what)
    means = _means(values)
    worst = max(means, default=None)
    return Gate(what, worst, f"at most {most:g}", None if worst is None else worst <= most)


def _check(name: str, values: Given, bar: float, what: str) -> None:
    check_given(name, values, (bar,), description=what)
    if bar is None or not math.isfinite(bar):
        raise ValueError(f"{name}: the bar must be finite; got {bar}")


def _means(values: Given) -> list[float]:
    """The mean over seeds of each condition; nan alone where one is not finite, and nothing where one is missing."""
    named = values if isinstance(values, Mapping) else {"": values}
    if not all(named.values()):
        return []
    means = [sum(cell) / len(cell) for group in named.values() for cell in group.cells().values()]
    return means if all(map(math.isfinite, means)) else [math.nan]
