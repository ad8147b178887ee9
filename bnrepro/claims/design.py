"""What a paper runs and measures: its arms and probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from bnrepro.claims.measures import Measure, check_measure
from bnrepro.claims.results import OF_RUNS
from bnrepro.config import MOST_RUNS, load_config
from bnrepro.config.overrides import parse
from bnrepro.config.schema import Config, Data
from bnrepro.errors import UserError, known_are
from bnrepro.norm import NORMS
from bnrepro.runs.tables import plain

LARGEST_SEED = 10**18  # whole numbers of more digits are not read back from tables as such
Factors = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A training run of a design."""

    part: str
    factors: Factors
    config: Config
    """Its seed is the arm's. The same configuration may serve several parts, and is run once."""


@dataclass(frozen=True)
class Probe:
    """A measurement of a design."""

    part: str
    factors: Factors
    seed: int
    measure: Measure
    arguments: dict[str, Any] = field(default_factory=dict)
    """Texts, numbers, and lists of them."""
    config: Config | None = None
    """The run that is measured."""
    data: Data | None = None
    """The dataset that is measured on, without a run."""


def check_number(runs: int, name: str = "The design") -> None:
    """Raise UserError for more runs than one command makes."""
    if runs > MOST_RUNS:
        raise UserError(f"{name}: this would be more than {MOST_RUNS:,} runs. Use fewer seeds.")


def _seeds(given: int | Iterable[int]) -> tuple[int, ...]:
    """Seeds as records can hold them, and no more than one command makes.

    Raises:
        TypeError: one is no whole number.
        ValueError: there is none, one is there twice, below 0 or too large.
    """
    if isinstance(given, bool) or not isinstance(given, int | Iterable) or isinstance(given, str):
        raise TypeError(f"seeds are a number of them, such as 5, or a list, such as [0, 1, 2]; got {given!r}"[:300])
    given = range(given) if isinstance(given, int) else given
    found = tuple(islice(given, MOST_RUNS + 1))
    check_number(len(found))
    if not found:
        raise ValueError("there must be at least one seed")
    for seed in found:
        if isinstance(seed, bool) or not isinstance(plain(seed), int):
            raise TypeError(f"seeds must be whole numbers, such as [0, 1, 2]; got {seed!r}"[:300])
        if not 0 <= seed < LARGEST_SEED:
            raise ValueError(f"a seed must be at least 0 and below 10^18; got {seed}"[:300])
    if len(set(found)) < len(found):
        twice = next(seed for place, seed in enumerate(found) if seed in found[:place])
        raise ValueError(f"each seed stands once in a list of seeds; {twice!r} is there twice")
    return tuple(map(int, found))


class Design:
    """What is run and measured under a preset."""

    RESERVED = OF_RUNS | {"part", "seed", "step", "epoch", "quantity", "x", "value"}
    """Names that no factor can have: they are columns of records with a meaning of their own."""

    def __init__(self, seeds: int | Iterable[int]) -> None:
        self.seeds = _seeds(seeds)
        self.arms: list[Arm] = []
        self.probes: list[Probe] = []
        self._cells: dict[str, Any] = {}

    def train(
        self,
        part: str,
        factors: Factors,
        overrides: Sequence[str],
        *measures: Measure | tuple[Measure, dict[str, Any]],
        seeds: Iterable[int] | None = None,
        record: bool = True,
    ) -> None:
        """Train one configuration with every seed, and measure what the runs left.

        Args:
            part: the part of the experiment that it belongs to: "table", "horizon", ...
            factors: what tells it from the others of its part: ``{"variant": "convbn", "batch_size": 8}``.
            overrides: of the configuration, as on the command line; of two of one key the later one counts, so that an
                arm can differ from what is common to all.
            measures: made of each run; with arguments as ``(measure, {"images": 256})``.
            seeds: other ones than the design's.
            record: whether the runs stand in the records; False where they are only measured.

        Raises:
            TypeError: an argument is of another type.
            ValueError: ``overrides`` cannot be those of a run, or set the seed; a factor has a name that is not free;
                what was trained or measured before has the same part and factors.
        """
        if isinstance(overrides, str) or not isinstance(overrides, Iterable):
            raise TypeError(
                f'the overrides must be a list, such as ["model=lenet", "epochs=1"]; got {overrides!r}'[:300]
            )
        _check_place(part, factors)
        asked = [each if isinstance(each, tuple) and len(each) == 2 else (each, {}) for each in measures]
        for what, arguments in asked:
            check_measure(what, arguments, ["run"])
        # NCHW unless the design says otherwise, as what has been published was computed.
        cfg = _composed(["channels_last=false", *overrides])
        if cfg.norm.file is None and cfg.variant not in NORMS:
            raise ValueError(f"there is no norm {cfg.variant!r}.{known_are(cfg.variant, NORMS)}".rstrip("."))
        for seed in self.seeds if seeds is None else _seeds(seeds):
            own = replace(cfg, seed=seed)
            check_number(1 + max(len(self.arms), len(self.probes)))
            if record:
                self._add(Arm(part, dict(factors), own))
            for what, arguments in asked:
                self._add(Probe(part, dict(factors), seed, what, deepcopy(arguments), own))

    def measure(
        self,
        part: str,
        factors: Factors,
        what: Measure,
        data: Sequence[str] | None = None,
        seeds: Iterable[int] | None = None,
        **arguments: Any,
    ) -> None:
        """Measure without a training run; the dataset that the overrides ``data`` name is handed over as ``data``."""
        _check_place(part, factors)
        check_measure(what, arguments, [] if data is None else ["data"])
        dataset = _composed(list(data)).data if data is not None else None
        for seed in self.seeds if seeds is None else _seeds(seeds):
            check_number(1 + len(self.probes))
            self._add(Probe(part, dict(factors), seed, what, deepcopy(arguments), None, dataset))

    def _add(self, each: Arm | Probe) -> None:
        """Add what is told apart from all that is there by its part, factors and seed.

        Raises:
            ValueError: it is not.
        """
        seed = each.config.seed if isinstance(each, Arm) else each.seed
        what, is_ = ("runs", each.config) if isinstance(each, Arm) else (f"measurements {each.measure.name}", each)
        cell = f"part {each.part!r}, factors {each.factors}, seed {seed}"
        if self._cells.setdefault(f"{what} {cell}", is_) != is_:
            raise ValueError(f"two different {what} have {cell}: give them factors that tell them apart")
        if isinstance(each, Arm):
            self.arms.append(each)
        else:
            self.probes.append(each)


def _check_place(part: str, factors: Factors) -> None:
    """Raise TypeError or ValueError for what records cannot hold."""
    if not (isinstance(part, str) and part.strip()):
        raise ValueError(f'a part needs a name, such as "main"; got {part!r}')
    if not isinstance(factors, dict):
        raise TypeError(f'the factors must be a dict, such as {{"norm": "bn"}}; got {factors!r}')
    for name, level in factors.items():
        if not (isinstance(name, str) and name.strip()):
            raise TypeError(f"a factor needs a name; got {name!r}")
        if name in Design.RESERVED:
            raise ValueError(f"no factor can be called {name}: records have a column of this name")
        if not isinstance(plain(level), str | bool | int | float | None) or plain(level) != plain(level):
            raise TypeError(f"the factor {name} must be a text or a number, and is {level!r}: name it, as a text"[:300])


def _composed(overrides: list[str]) -> Config:
    """The configuration of every seed.

    Raises:
        ValueError: there is none of these, or they set the seed; a mistake in the design, told with its line.
    """
    if odd := [each for each in overrides if not isinstance(each, str)]:
        raise TypeError(f'an override is a text, such as "epochs=1"; got {odd[0]!r}'[:300])
    try:
        if any(parse(text)[0] == "seed" for text in overrides):
            raise ValueError("the seeds are set by Design(...) or seeds=...: remove seed= from the overrides")
        return load_config(overrides)
    except UserError as error:
        raise ValueError(str(error)) from error
