"""Intervals and tests over seeds. Plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

RESAMPLES = 10_000  # of the bootstrap: its ends then vary by less than they mean

Alternative = Literal["two-sided", "greater", "less"]
"""The alternative hypothesis of a test."""


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values with the ends of its confidence interval; nan where it has none."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say of a mean difference."""

    interval: Interval
    """The 1 - 2 alpha interval: inside the margin exactly where the tests reject."""
    p: float
    """The larger of the two p values; nan with fewer than two differences."""
    equivalent: bool


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """``a - b`` over the seeds that both have, in the order of the seeds."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of a mean: mean ± t * s / sqrt(n), t with n - 1 degrees of freedom, s the sample deviation.

    One value has a mean and no interval, and so have values that are not all finite; none has neither. For a paired
    comparison, give the differences.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = sum(values) / n  # fmean refuses inf - inf
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n)
    mean = fmean(values)
    half = float(t_quantile(0.5 + confidence / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap's interval of ``statistic``, whose value on ``values`` itself is called the mean.

    For medians, ratios and the like, which Student's interval does not fit. With few values it is too narrow (5 of a
    normal distribution: about 0.84 for 0.95), so means over seeds take `t_interval`.
    """
    import numpy as np

    n = len(values)
    if n < 2:
        return Interval(statistic(values) if n else math.nan, math.nan, math.nan, n)
    drawn = np.asarray(values, dtype=float)[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))]
    tail = (1 - confidence) / 2
    low, high = np.quantile([statistic(sample) for sample in drawn.tolist()], [tail, 1 - tail])
    return Interval(statistic(values), float(low), float(high), n)


def p_value(differences: Sequence[float], alternative: Alternative = "two-sided") -> float:
    """Student's paired test: how likely a mean so far from zero would be if there were no difference.

    ``greater``: if it were zero or less; ``less``: if it were zero or more. nan with fewer than two differences,
    or any that is not finite. Where all are the same, a mean that is not zero has t = ±inf, and zero has t = 0.
    """
    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean, error = fmean(differences), stdev(differences) / math.sqrt(n)
    t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
    if alternative == "two-sided":
        return 2 * _t_below(-abs(t), n - 1)
    return _t_below(-t if alternative == "greater" else t, n - 1)


def share_interval(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval of a share, ``count`` of ``n``, both between 0 and 1."""
    from scipy.special import betaincinv

    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    tail = (1 - confidence) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return Interval(count / n, low, high, n)


def share_p_value(count: int, n: int, share: float, alternative: Literal["greater", "less"]) -> float:
    """The exact binomial test: how likely so many of ``n``, or more, would be if the share were ``share`` or less.

    ``less``: so many or fewer, if it were ``share`` or more.
    """
    from scipy.special import betainc

    share = min(max(share, 0.0), 1.0)
    if alternative == "greater":
        return float(betainc(count, n - count + 1, share)) if count else 1.0
    return 1 - float(betainc(count + 1, n - count, share)) if count < n else 1.0


def equivalence(differences: Sequence[float], margin: float, alpha: float = 0.05) -> Equivalence:
    """Schuirmann's two one-sided tests (TOST) of whether a mean difference lies inside ±``margin``.

    Rejects both "it is -margin or less" and "it is margin or more" at ``alpha``, which is the same as: the 1 - 2 alpha
    interval lies inside the margin. Not to reject a difference of zero would show nothing.
    """
    above = p_value([d + margin for d in differences], "greater")
    below = p_value([d - margin for d in differences], "less")
    p = max(above, below)  # both are nan, or none
    return Equivalence(t_interval(differences, 1 - 2 * alpha), p, p < alpha)


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> dict[str, bool]:
    """Holm's step-down procedure: which hypotheses of a family of m are rejected.

    From the smallest p value on, the k-th (k = 0, 1, ...) is held against alpha / (m - k), and the first that is above
    ends it. The chance of one false rejection or more is at most ``alpha``. A p value of nan is never rejected, and
    counts in m.
    """
    rejected = dict.fromkeys(p_values, False)
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    for k, (p, name) in enumerate(known):
        if p > alpha / (len(p_values) - k):
            break
        rejected[name] = True
    return rejected


def false_discovery_rates(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini and Hochberg's q values: the smallest false discovery rate at which each would be a discovery.

    Of m p values in ascending order, the k-th has q = min over j >= k of m p_j / j.
    """
    ascending = sorted(p_values.items(), key=lambda pair: pair[1])
    q, least = {}, 1.0
    for k in range(len(ascending), 0, -1):
        name, p = ascending[k - 1]
        q[name] = least = min(least, len(ascending) * p / k)
    return q


def t_quantile(p: float, degrees: int) -> float:
    """The ``p`` quantile of Student's t with ``degrees`` of freedom."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import, this a tenth

    return float(stdtrit(degrees, p))


def _t_below(t: float, degrees: int) -> float:
    from scipy.special import stdtr

    return float(stdtr(degrees, t))
