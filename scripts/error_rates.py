"""How often a design with looks decides falsely, by simulation: ``python scripts/error_rates.py [REPETITIONS]``.

Seeds are normal with standard deviation 1, in every cell at the edge of what the claim excludes, so that a decision
against the truth is an error. A design stops at the first look that leaves no cell open; "peeking" tests every look at
5%. `tests/claims/test_looks.py` does the same with the package's own rule and fewer repetitions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy.special import stdtr

from bnrepro.stats import planned

LOOKS = [5, 10, 20, 40]
CELLS = (1, 2, 6)
BATCH = 5_000
Test = Callable[[Callable[[float, int], np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""From one-sided p values (bound, side) to those of what must be rejected for a cell to hold, and to fail."""


def difference(p: Callable[[float, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The effect is above 0; it matters from 1."""
    return 2 * p(0.0, 1), 2 * p(1.0, -1)


def no_loss(p: Callable[[float, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The effect is above -1."""
    return 2 * p(-1.0, 1), 2 * p(-1.0, -1)


def equivalence(p: Callable[[float, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The effect is within 1 of 0."""
    return np.maximum(p(-1.0, 1), p(1.0, -1)), 2 * np.minimum(p(1.0, 1), p(-1.0, -1))


CASES: list[tuple[str, Test, float, str]] = [
    ("difference: falsely there", difference, 0.0, "held"),
    ("difference: falsely negligible", difference, 1.0, "failed"),
    ("one-sided: falsely no loss", no_loss, -1.0, "held"),
    ("equivalence: falsely equal", equivalence, 1.0, "held"),
    ("equivalence: falsely unequal", equivalence, 1.0, "failed"),
]


def holm(p: np.ndarray, level: float) -> np.ndarray:
    """Which cells are rejected, of rows of p values."""
    order = np.argsort(p, axis=1)
    bounds = level / (p.shape[1] - np.arange(p.shape[1]))
    passed = np.logical_and.accumulate(np.take_along_axis(p, order, axis=1) <= bounds, axis=1)
    found = np.empty_like(passed)
    np.put_along_axis(found, order, passed, axis=1)
    return found


def wrong(
    test: Test, mean: float, error: str, cells: int, count: int, levels: list[float], rng: np.random.Generator
) -> int:
    """In how many of ``count`` designs the verdict is wrong: some cell holds, or none does and some fails."""
    seeds = rng.normal(mean, 1.0, (count, cells, LOOKS[-1]))
    going, errors = np.ones(count, dtype=bool), 0
    for n, level in zip(LOOKS, levels, strict=True):
        part = seeds[going, :, :n]
        average, scale = part.mean(axis=2), part.std(axis=2, ddof=1) / np.sqrt(n)

        def p(
            bound: float, side: int, average: np.ndarray = average, scale: np.ndarray = scale, n: int = n
        ) -> np.ndarray:
            return stdtr(n - 1, -side * (average - bound) / scale)

        to_hold, to_fail = test(p)
        held, failed = holm(to_hold, level), holm(to_fail, level)
        held |= (to_hold <= level).all(axis=1, keepdims=True)
        stops = (held | failed).all(axis=1) | (n == LOOKS[-1])
        some = held.any(axis=1)
        errors += int((stops & (some if error == "held" else failed.any(axis=1) & ~some)).sum())
        going[np.flatnonzero(going)[stops]] = False
    return errors


def main(repetitions: int) -> None:
    """Print a table of error rates in percent, as Markdown."""
    spent = [look.level for look in planned(LOOKS)]
    columns = [f"{cells} cell{'s' * (cells > 1)}" for cells in CELLS]
    print(f"| false decisions, %, of {repetitions:,} | {' | '.join(columns)} | peeking, 1 cell |")
    print("| --- " * (len(CELLS) + 2) + "|")
    for name, test, mean, error in CASES:
        rng, rates = np.random.default_rng(0), []
        for cells, levels in [*((cells, spent) for cells in CELLS), (1, [0.05] * len(LOOKS))]:
            batches = [min(BATCH, repetitions - start) for start in range(0, repetitions, BATCH)]
            errors = sum(wrong(test, mean, error, cells, count, levels, rng) for count in batches)
            rates.append(f"{100 * errors / repetitions:.1f}")
        print(f"| {name} | {' | '.join(rates)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
