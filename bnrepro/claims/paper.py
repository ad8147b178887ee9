"""A paper as an object: what is run for it, what is measured, and its claims, each a function from results to evidence.

A paper is one file. Its docstring says what the source is, with its address, and what is done differently here; below
come the settings, the design, and the claims::

    \"\"\"Li et al., Understanding the Disharmony between Dropout and Batch Normalization (CVPR 2019).

    https://arxiv.org/abs/1801.05134

    Differences from the paper
    - A VGG at half width on CIFAR-10; the paper trains DenseNet on CIFAR-100.
    \"\"\"

    class Settings(Preset):
        amounts: list[float] = [0.1, 0.5]
        margin: float = 1.0  # percentage points

    paper = Paper(__name__, Settings)

    @paper.design
    def runs(s: Settings) -> Design: ...

    @paper.claim("D1.3", reported="no loss")
    def dropout_after_the_last_norm_is_harmless(r: Results, s: Settings) -> Evidence:
        \"\"\"Dropout after the last BN layer alone does no harm.\"\"\"
        ...

``looks = [5, 10, 20, 40]`` in the settings makes a design that is looked at after so many seeds, until nothing is open;
``gate`` of a claim says whether the networks have trained enough for it to be judged (`bnrepro.claims.gates`).

The defaults in ``Settings`` are the preset ``full``, unless ``full`` in ``configs/experiment/<name>.yaml`` replaces
them; ``smoke`` and ``quick`` there say what they change of ``full``, and ``paper``, where there is one, what makes it
the source's own setting, for a GPU or a cluster.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from bnrepro.claims.design import Design, check_number
from bnrepro.claims.evidence import Evidence
from bnrepro.claims.gates import Gate
from bnrepro.claims.results import MisuseError, Results
from bnrepro.config import configs_dir, user_files
from bnrepro.errors import UserError, first_line, known_are
from bnrepro.system.reading import load_yaml

Kind = Literal["identity", "empirical", "prediction"]
"""identity: algebra or a count, nothing is random. empirical: networks and seeds. prediction: our own, made before."""
Scale = Literal["exact", "paper", "reduced", "toy"]
"""exact: no training. paper: the source's setting. reduced: the same kind of network and data, less of it. toy: an
analogue."""
FULL = "full"  # the preset that is evidence, and is registered
PRESETS = ("smoke", "quick", FULL, "paper")


class Preset(BaseModel):
    """The settings of a paper's design: types and defaults. A key that is misspelt is an error.

    Lists and mappings are replaced as wholes by what another preset says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False, validate_default=True)

    seeds: int = 5
    """Seeds 0, 1, ..., of everything that is random."""

    looks: list[int] = []
    """Numbers of seeds after which ``full`` is looked at; ``seeds`` is then the first. None: one look, at all seeds."""

    scale: Scale | None = None
    """Of the claims that are not exact, where a preset has another than the paper's claims say: "paper"."""

    scale_note: str = ""
    """Beside ``scale``."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name, ours in Preset.model_fields.items():
            if (theirs := cls.model_fields[name].annotation) != ours.annotation:
                raise TypeError(f"{cls.__name__}.{name} must be {_type(ours.annotation)}, and is {_type(theirs)}")

    @field_validator("looks")
    @classmethod
    def _growing(cls, looks: list[int]) -> list[int]:
        if looks and (looks[0] < 2 or any(later <= earlier for earlier, later in pairwise(looks))):
            raise ValueError("must increase, starting at 2 or more")
        return looks

    @field_validator("seeds")
    @classmethod
    def _at_least_one(cls, seeds: int) -> int:
        if seeds < 1:
            raise ValueError("must be at least 1")
        return seeds


S = TypeVar("S", bound=Preset)
F = TypeVar("F", bound=Callable[..., Any])


def _type(annotation: Any) -> str:
    """A type as it is written."""
    return getattr(annotation, "__name__", "?") if type(annotation) is type else str(annotation)


def _hold(kind: Any, /, **given: Any) -> None:
    """Check that arguments are of a type.

    Raises:
        TypeError: naming the first that is not, and what it can be.
    """
    for name, value in given.items():
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            known = {str(v): None for each in (kind, *get_args(kind)) for v in get_args(each) if isinstance(v, str)}
            wanted = known_are(str(value), known) if known else f" {error.errors()[0]['msg']}."
            raise TypeError(f"{name} cannot be {value!r}.{wanted.rstrip('.')}") from error


def _check_takes(function: Callable[..., Any], *given: str) -> None:
    """Raise TypeError where ``function`` cannot be called with so many arguments."""
    name = getattr(function, "__name__", "function")
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        raise TypeError(f"{name} must take {' and '.join(given)}, as in `def {name}({', '.join(given)})`") from error
    except ValueError:  # one in C, which does not say
        return


@dataclass(frozen=True)
class Claim:
    """A sentence that can be wrong, and the function that says what it rests on."""

    id: str
    sentence: str
    evidence: Callable[[Results, Any], Evidence]
    reported: str
    """What the source reports for it; "no number" where it reports none."""
    quote: str | None
    """The source's own words, where they were read."""
    where: str | None
    """Page, section or figure of the source."""
    source: str
    kind: Kind
    scale: Scale
    scale_note: str
    withdrawn: str | None
    """Why its verdict is withdrawn."""
    gate: Callable[[Results, Any], Gate] | None = None
    """Whether the networks have trained enough for it to be judged."""
    own: bool = False
    """Of a paper in a file of a user's own, which may change what it is given: so that is a copy."""

    def rests_on(self, results: Results, settings: Any) -> Evidence:
        """What its function says that it rests on.

        Raises:
            TypeError: that is no `Evidence`.
        """
        return self._held_evidence(self.evidence(*_copied(results, settings, self.own)))

    def gated(self, results: Results, settings: Any) -> Gate | None:
        """What its gate says; None where it has none.

        Raises:
            TypeError: that is no `Gate`.
        """
        return self._held_gate(self.gate(*_copied(results, settings, self.own))) if self.gate else None

    def check(self, settings: Any) -> None:
        """Check what its functions return without results; what fails without them is reported where it is judged.

        Raises:
            TypeError: they return something else, or call what makes evidence or gates with other types than it takes.
        """
        pairs = ((self.evidence, self._held_evidence), (self.gate, self._held_gate))
        for function, hold in pairs:
            try:
                given = function(Results(FULL, [], [], []), settings.model_copy(deep=True)) if function else None
            except MisuseError:
                raise
            except user_files.FAILS:
                continue
            if function:
                hold(given)

    @staticmethod
    def _held_evidence(given: Any) -> Evidence:
        if not isinstance(given, Evidence):
            raise TypeError(f"it returns {type(given).__name__}, but must return Evidence, as `greater` does")
        return given

    @staticmethod
    def _held_gate(given: Any) -> Gate:
        if not isinstance(given, Gate):
            raise TypeError(f"its gate returns {type(given).__name__}, but must return Gate, as `reaches` does")
        return given

    @property
    def judged_in(self) -> str:
        """File and name of the function that says what it rests on."""
        code = inspect.unwrap(self.evidence).__code__
        file, package = Path(code.co_filename), Path(__file__).parents[1]
        place = file.relative_to(package.parent).as_posix() if file.is_relative_to(package) else file.name
        return f"{place}:{code.co_name}"


def _copied(results: Results, settings: S, own: bool) -> tuple[Results, S]:
    return results.copied() if own else results, settings.model_copy(deep=True)


@dataclass(frozen=True)
class Shown:
    """A table or figure: its name, its caption, and the function that makes it."""

    name: str
    caption: str
    make: Callable[[Results, Any], Any]
    over_seeds: bool = True
    """Whether it shows means and intervals, which its caption then says."""


class Paper(Generic[S]):
    """A source, its design and its claims. See the module's description.

    Args:
        module: the paper's module: ``__name__``. Its docstring is read.
        settings: its `Preset`.
        scale, scale_note: of its claims, unless they say otherwise: "reduced", "8 epochs, an eighth of the width".
        source: how the source is cited; None: the docstring's first sentence and address.
    """

    def __init__(
        self, module: str, settings: type[S], scale: Scale = "reduced", scale_note: str = "", source: str | None = None
    ) -> None:
        _hold(Scale, scale=scale)
        _hold(str, scale_note=scale_note)
        _hold(str | None, source=source)
        if module not in sys.modules:
            raise ValueError(f"a paper is named by its module: write Paper(__name__, ...); got {module!r}"[:300])
        if not (isinstance(settings, type) and issubclass(settings, Preset)):
            raise TypeError(f"settings must be a class, as in `class Settings(Preset)`; got {settings!r}"[:300])
        self.module, self.settings_type = module, settings
        self.file = user_files.file_of(module)
        self.name = self.file.stem if self.file else module.rpartition(".")[2]
        self.scale, self.scale_note = scale, scale_note
        self.title, address, self.differences = _read(sys.modules[module].__doc__ or "")
        self.source = source or ", ".join(filter(None, (self.title, address)))
        self.claims: list[Claim] = []
        self.tables: list[Shown] = []
        self.figures: list[Shown] = []
        self._design: Callable[[S], Design] | None = None

    # --- decorators ---

    def design(self, function: Callable[[S], Design]) -> Callable[[S], Design]:
        """``function(settings)`` returns what is run and measured."""
        if self._design is not None:
            raise ValueError(f"{self.name} has two designs: remove one, or join them in one function")
        _check_takes(function, "settings")
        self._design = function
        return function

    def claim(
        self,
        id: str,
        *,
        reported: str = "no number",
        quote: str | None = None,
        where: str | None = None,
        source: str | None = None,
        kind: Kind = "empirical",
        scale: Scale | None = None,
        scale_note: str | None = None,
        withdrawn: str | None = None,
        gate: Callable[[Results, S], Gate] | None = None,
    ) -> Callable[[Callable[[Results, S], Evidence]], Callable[[Results, S], Evidence]]:
        """``function(results, settings)`` returns the `Evidence`; its docstring is the sentence.

        Args:
            id: of the claim, alone among the paper's: "D1.3".
            reported: what the source reports for it.
            quote: the source's own words.
            where: the place in the source.
            source: of this claim, where it is another than the paper.
            kind, scale, scale_note: see `Kind` and `Scale`; an identity's scale is exact.
            withdrawn: why its verdict is withdrawn until it has another design.
            gate: ``gate(results, settings)`` says whether the networks have trained enough, see `bnrepro.claims.gates`.
        """
        _hold(str, id=id, reported=reported)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", id):
            raise ValueError(
                f"the id of a claim has up to 40 letters, digits, ., _ and -, such as D1.3; got {id!r}"[:300]
            )
        _hold(str | None, quote=quote, where=where, source=source, scale_note=scale_note, withdrawn=withdrawn)
        _hold(Kind, kind=kind)
        _hold(Scale | None, scale=scale)
        if not (gate is None or callable(gate)):
            raise TypeError(f"gate must be one function, and is {gate!r}; two gates are joined in it with &"[:300])

        if gate is not None:
            _check_takes(gate, "results", "settings")

        def add(function: Callable[[Results, S], Evidence]) -> Callable[[Results, S], Evidence]:
            own = scale or ("exact" if kind == "identity" else self.scale)
            note = scale_note if scale_note is not None else "" if own == "exact" else self.scale_note
            _check_takes(function, "results", "settings")
            text = inspect.cleandoc(function.__doc__ or "").replace("\n", " ")
            if not text or any(claim.id == id for claim in self.claims):
                raise ValueError(f"{self.name}: claim {id} needs a sentence as its docstring, and a unique id")
            cited = source or self.source
            self.claims.append(
                Claim(
                    id, text, function, reported, quote, where, cited, kind, own, note, withdrawn, gate, bool(self.file)
                )
            )
            return function

        return add

    @overload
    def table(self, function: F, *, over_seeds: bool = True) -> F: ...

    @overload
    def table(self, *, over_seeds: bool = True) -> Callable[[F], F]: ...

    def table(self, function: Any = None, *, over_seeds: bool = True) -> Any:
        """``function(results, settings)`` returns rows with the same keys; its docstring is the title.

        An `Interval` as a value is shown as mean [low, high]. ``{s.margin}`` in the docstring is filled in; n and
        preset are added. ``@paper.table(over_seeds=False)``: of counts and the like, which have no intervals.
        """
        return self._shown(self.tables, function, over_seeds)

    @overload
    def figure(self, function: F, *, over_seeds: bool = True) -> F: ...

    @overload
    def figure(self, *, over_seeds: bool = True) -> Callable[[F], F]: ...

    def figure(self, function: Any = None, *, over_seeds: bool = True) -> Any:
        """``function(results, settings)`` returns a figure, or None without records; its docstring is the caption.

        As for `table`.
        """
        return self._shown(self.figures, function, over_seeds)

    def _shown(self, into: list[Shown], function: Any, over_seeds: bool) -> Any:
        if function is None:
            return lambda each: self._shown(into, each, over_seeds)
        _check_takes(function, "results", "settings")
        if any(each.name == function.__name__ for each in into):
            what = "tables" if into is self.tables else "figures"
            raise ValueError(f"{self.name}: two {what} are called {function.__name__}: give each a name of its own")
        into.append(Shown(function.__name__, inspect.cleandoc(function.__doc__ or ""), function, over_seeds))
        return function

    # --- presets ---

    @cached_property
    def _file(self) -> Path:
        """The file of presets: of the package's papers in configs/, of a user's own beside it."""
        return self.file.with_suffix(".yaml") if self.file else configs_dir() / "experiment" / f"{self.name}.yaml"

    @cached_property
    def _changes(self) -> dict[str, dict[str, Any]]:
        if not self._file.is_file():
            if (short := self._file.with_suffix(".yml")).is_file():
                raise UserError(f"{short}: presets are read from {self._file.name}. Rename the file.")
            return {}
        try:
            found = load_yaml(self._file) or {}
        except Exception as error:  # yaml's and the file system's
            raise UserError(f"The presets {self._file} cannot be read: {first_line(error)}") from error
        if not isinstance(found, dict) or not all(isinstance(change, dict) for change in found.values()):
            raise UserError(
                f"{self._file} must hold a mapping of settings for each preset, as in `smoke: {{seeds: 2}}`."
            )
        if other := next((name for name in found if name not in PRESETS), None):
            raise UserError(f"{self._file}: {other!r} is not a preset.{known_are(str(other), PRESETS)}")
        return found

    @property
    def presets(self) -> tuple[str, ...]:
        """Their names, from the smallest on."""
        return tuple(name for name in PRESETS if name in self._changes or name == "full")

    def settings(self, preset: str) -> S:
        """The settings of ``preset``; of ``full`` with looks, for the first of them.

        Raises:
            UserError: there is none, or its file does not fit the settings.
        """
        if preset not in self.presets:
            raise UserError(f"{self.name} has no preset {preset!r}.{known_are(preset, self.presets)}")
        full = self._changes.get("full", {})
        found = self.validated({**full, **self._changes.get(preset, {})}, f"The preset {preset} in {self._file}")
        return found.model_copy(update={"seeds": found.looks[0]}) if found.looks and preset == "full" else found

    def validated(self, values: dict[str, Any], what: str) -> S:
        """``values`` as settings.

        Raises:
            UserError: they do not fit.
        """
        fields = self.settings_type.model_fields
        try:
            with self.told("the check of the settings", but=ValidationError):
                return self.settings_type.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            head, key = str(first["loc"][0]) if first["loc"] else "", ".".join(map(str, first["loc"]))
            others = known_are(key, fields) if first["type"] == "extra_forbidden" else ""
            if head in fields and head not in values and not fields[head].is_required():
                what = f"{self.file or self.module}, {self.settings_type.__name__}"
            of = f" of type {_type(fields[head].annotation)}" if key in fields else ""  # not of what lies within it
            raise UserError(f"{what}: {key}{of}: {first['msg']}.{others}") from error

    # --- what the engine asks ---

    def designed(self, settings: S) -> Design:
        """The runs and measurements.

        Raises:
            TypeError: there is no design, or it returns something else.
        """
        check_number(max([settings.seeds, *settings.looks]), self.name)
        with self.told("the design"):
            if self._design is None:
                raise TypeError("there is none: write a function with @paper.design above it that returns a Design")
            design = self._design(settings.model_copy(deep=True))
            if not isinstance(design, Design):
                raise TypeError(f"it returns {type(design).__name__}, but must return a Design; is `return` missing?")
            return design

    def given(self, results: Results, settings: S) -> tuple[Results, S]:
        """What a table or figure is made of, as `Claim.rests_on` is; of the package's own, the records themselves."""
        return _copied(results, settings, bool(self.file))

    @contextmanager
    def told(self, what: str, but: type[Exception] = UserError) -> Iterator[None]:
        """Within it, an error of a paper in a user's own file is reported as theirs, with the line; not ``but``."""
        try:
            yield
        except (UserError, MemoryError, but):
            raise
        except user_files.FAILS as error:
            if self.file is None:
                raise
            raise UserError(f"{self.file}: {what} fails: {user_files.where(error, self.file)}") from error

    def directory(self, out: Path, preset: str | None = None) -> Path:
        """Folder of the results: ``<name>`` for ``full``, ``<name>/<preset>`` for the others.

        So a smaller preset never takes the place of a larger one.
        """
        return out / self.name / (preset if preset and preset != "full" else "")


def _read(docstring: str) -> tuple[str, str, tuple[str, ...]]:
    """Title, address and differences of a paper's docstring."""
    head, _, rest = inspect.cleandoc(docstring).partition("Differences from the paper")
    first, *others = re.split(r"\n\s*\n", head.strip())
    address = next((text.strip() for text in others if re.match(r"https?://\S+\s*$", text.strip())), "")
    bullets = re.split(r"\n- ", "\n" + rest.strip().lstrip("-=\n "))
    return _joined(first).rstrip("."), address, tuple(filter(None, map(_joined, bullets)))


def _joined(text: str) -> str:
    return " ".join(text.split()).removeprefix("- ")
