"""Many runs, several at a time: Hydra's sweep syntax to configurations, and those to runs. None stops the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice, product
from math import prod
from pathlib import Path

from bnrepro.config import MOST_RUNS, configs_dir, run_dir, to_yaml
from bnrepro.config.overrides import FUNCTION, PATHS, elements, groups, is_a_list, keys, parse, split, two_values
from bnrepro.config.schema import Config, Device
from bnrepro.errors import UserError, either, reason
from bnrepro.launch.parallel import Report, map_all
from bnrepro.runs import record
from bnrepro.runs.record import Run, Status
from bnrepro.system.cores import cores
from bnrepro.system.memory import workers_that_fit
from bnrepro.training import train


@dataclass(frozen=True)
class Outcome:
    """What became of one run of a sweep."""

    config: Config
    path: Path
    error: str | None = None
    """Why it failed; None if it finished."""
    by_user: bool = False
    """Whether the error is one that the user can mend."""

    @property
    def state(self) -> str:
        """completed, diverged or failed."""
        return Status.failed.value if self.error else Run(self.path).status


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Overrides in Hydra's sweep syntax as one list of overrides a run, the last key changing fastest.

    Lists (``seed=0,1,2``), ranges (``seed=range(5)``), choices and globs over a group (``data=glob(mnist*)``) or over
    the norms (``variant=glob(*bn)``). What is neither is one value, and is taken as it is.

    Raises:
        UserError: not Hydra's syntax; nothing matches; a continuous interval, which has no runs to list; too many.
    """
    choices: list[list[str]] = []
    for text in overrides:
        key, values = split(text)
        parts = list(elements(key, values))
        if key not in PATHS and re.match(r"\s*\w*\(", values) and not re.fullmatch(FUNCTION, values, re.DOTALL):
            raise _not_understood(text)
        if re.fullmatch(FUNCTION, values, re.DOTALL):
            choices.append(_made_by_function(key, text))
        elif len(parts) > 1 and not (is_a_list(key) and not any(part.startswith("[") for part in parts)):
            choices.append([_one_of(key, part, text) for part in parts])
        else:
            parse(text)  # raises, where it is no value
            choices.append([text])
        if not choices[-1]:
            from bnrepro.norm import NORMS

            names = list(NORMS) if key == "variant" else groups().get(key)
            if names is None or not re.match(r"\s*glob\(", values):
                raise UserError(f"{text[:200]} has no values. Write one that has some, as in {key}=range(3).")
            raise UserError(f"{text} matches no name. Available: {', '.join(names)}.")
        if prod(map(len, choices)) > MOST_RUNS:
            raise UserError(f"This would be more than {MOST_RUNS:,} runs. Sweep fewer values at a time.")
    return [list(each) for each in product(*choices)]


def _one_of(key: str, part: str, text: str) -> str:
    """The override that sets ``key`` to one of the values in ``text``."""
    if not part:
        raise UserError(
            f"{text[:200]}: a value is missing next to a comma. Write values without spaces, as in "
            f"{key}={','.join(two_values(key))}."
        )
    one = f"{key}={part}"
    _, value = parse(one)
    if isinstance(value, bool | Enum | str) or value is None:
        return one
    return f"{key}={str(value).removesuffix('.0').replace(' ', '')}"  # however it was written


def _made_by_function(key: str, text: str) -> list[str]:
    """The overrides that Hydra expands ``key=range(...)`` and similar functions to."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    from bnrepro.norm import NORMS

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_dir()), version_base="1.3"):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            (override,) = parser.parse_overrides([text])
            if isinstance(glob := override.value(), Glob):
                if key not in (*groups(), "variant"):
                    raise UserError(
                        f"{text}: glob is only for variant, {either(list(groups()))}. List the values: "
                        f"{key}={','.join(two_values(key))}."
                    )
                if key == "variant":
                    return [f"{key}={name}" for name in glob.filter(list(NORMS))]
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(
                    f"{text}: a sweep needs a list of values, not an interval, as in {key}={','.join(two_values(key))}."
                )
            if override.is_discrete_sweep():
                made = [f"{key}={value}" for value in islice(override.sweep_string_iterator(), MOST_RUNS + 1)]
                for one in made:
                    try:
                        parse(one)
                    except UserError as error:  # which does not name what was typed
                        if keys().get(key) is int and re.match(r"\s*range\(", text.partition("=")[2]):
                            raise UserError(
                                f"{text[:200]}: {key} must be an integer, and so must the numbers of its range, as in "
                                f"'{key}=range(1,5)'."
                            ) from error
                        raise UserError(f"{text[:200]}: {error}") from error
                return made
    except (HydraException, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise _not_understood(text) from error
    raise _not_understood(text)


def _not_understood(text: str) -> UserError:
    open_ = " A closing bracket is missing." if text.count("(") > text.count(")") else ""
    return UserError(
        f"{text[:200]} is not understood.{open_} Write values as 0,1,2 or 'range(5)'; 'glob(*bn)' selects names of "
        "variants, data, models, optimizers and schedules."
    )


def default_jobs(cfg: Config) -> int:
    """Runs at a time: on a GPU one, on the CPU one per core, as far as the available memory holds them."""
    if train.resolve(cfg).device is Device.cuda:
        return 1
    return min(cores(), workers_that_fit() or cores())


def run_all(
    configs: Sequence[Config],
    jobs: int,
    *,
    force: bool = False,
    report: Report | None = None,
    ended: Callable[[int, Outcome], None] | None = None,
    threads: int | None = None,
) -> list[Outcome]:
    """Run ``configs``, ``jobs`` at a time, and return their outcomes in the same order.

    What is finished is not run again, and a run that is there twice, in two writings, is run once. A run that fails, or
    whose process is killed, leaves the others alone, and its error is kept in its summary. Ctrl-C interrupts the runs
    under way, which can go on later, and is raised again.

    Args:
        configs: the runs.
        jobs: processes. With 1, runs happen in this process, with all of torch's threads.
        force: start each run over.
        report: told of progress.
        ended: told of each outcome when it is there.
        threads: torch's threads in each process; None: the cores, shared out.
    """
    places: dict[Path, list[int]] = {}
    resolved = [train.resolve(cfg) for cfg in configs]
    for index, cfg in enumerate(resolved):
        places.setdefault(run_dir(cfg), []).append(index)
    each = list(places.values())

    def tell(index: int, share: float) -> None:
        for place in each[index]:
            if report:
                report(place, share)

    def take(index: int, outcome: Outcome) -> None:
        for place in each[index]:
            if ended:
                ended(place, outcome)

    work = partial(attempt, force=force)
    found = map_all(work, [resolved[same[0]] for same in each], jobs, _lost, tell, take, threads)
    outcomes = {place: outcome for same, outcome in zip(each, found, strict=True) for place in same}
    return [outcomes[place] for place in range(len(resolved))]


def _lost(cfg: Config) -> Outcome:
    return failed(cfg, "its process was killed (out of memory?)")


def attempt(cfg: Config, share: Callable[[float], None], *, force: bool) -> Outcome:
    """One run, and what became of it; only what interrupts it is raised."""
    try:
        return Outcome(cfg, train.run(cfg, force=force, report=lambda p: share(p.step / p.steps)))
    except UserError as error:
        return failed(cfg, str(error), by_user=True)
    except Exception as error:  # whatever it is, the other runs go on, and it is reported at the end
        return failed(cfg, reason(error))


def gone(path: Path) -> str | None:
    """What has become of a finished run in ``path``, if it is not there any more or was damaged; None if it is."""
    try:
        there = Run(path).finished
    except UserError as error:
        return str(error)
    return None if there else "its folder was removed after it had finished. Run the command again."


def failed(cfg: Config, error: str, by_user: bool = False) -> Outcome:
    """The outcome of a run that failed; the error is kept in its summary, unless that tells of an end already."""
    path = run_dir(cfg)
    with suppress(OSError, UserError):  # the disk may be what failed
        # Nothing has been said of its end. Where something is there that the user can mend, it is left as it is.
        if not (path / record.SUMMARY).exists() and not (by_user and Run(path).started):
            record.write_whole(path / record.CONFIG, to_yaml(cfg))
            who = {"variant": cfg.variant, "seed": cfg.seed, "dataset": cfg.data.name, "model": cfg.model.name}
            record.write_summary(path, {"status": Status.failed.value, **who, "error": error})
    return Outcome(cfg, path, error, by_user)
