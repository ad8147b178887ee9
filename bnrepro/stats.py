"""Intervals over seeds. Plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values with the ends of its confidence interval; nan where it has none."""

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of a mean: mean ± t * s / sqrt(n), t with n - 1 degrees of freedom, s the sample deviation.

    One value has a mean and no interval; none has neither. For a paired comparison, give the differences.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = fmean(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(_t_quantile(0.5 + confidence / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _t_quantile(p: float, degrees: int) -> float:
    from scipy.special import stdtrit  # scipy.stats takes a second to import, this a tenth

    return float(stdtrit(degrees, p))
