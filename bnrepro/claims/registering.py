"""Registered designs: what a paper's full preset runs and by which rules it is judged, written down before its runs.

A registration is a YAML file, ``configs/registered/<paper>.yaml``, or ``<paper>.registered.yaml`` beside a paper in a
file of a user's own. Its hash counts what can change a verdict: seeds or looks, settings, arms, measurements, and of
each claim its kind, scale, gate, rules, bars, margins and what it reads. Dates and sentences do not count. Committed
before the runs, it shows that what was looked for was said beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from bnrepro.claims.design import Arm, Probe
from bnrepro.claims.evidence import Evidence, Rule
from bnrepro.claims.paper import FULL, Claim, Paper, Preset
from bnrepro.claims.results import Results, Row
from bnrepro.claims.tracing import check_claims, questions
from bnrepro.config import configs_dir, digits_of, identity_of, user_files
from bnrepro.config.schema import Config
from bnrepro.errors import UserError, first_line
from bnrepro.runs import provenance, record
from bnrepro.system import reading as stored

STYLE: dict[str, Any] = {"sort_keys": False, "width": 118, "allow_unicode": True, "default_flow_style": None}
PROSE = ("sentence", "scale_note")
"""Of a claim, what does not count."""
HEAD = """\
# A registered design: what is run, and by which rules it is judged. Written by `bnrepro register {name}`; not to be
# edited. Commit it before its runs.
"""


UNKNOWN = "not known without results"
"""Of a claim's effects, where its function fails without any."""


@dataclass
class Registration:
    """What a registration says."""

    paper: str
    hash: str
    registered: str
    """Date on which it was written."""
    design: dict[str, Any]
    amended: list[dict[str, str]] = field(default_factory=list)
    """Of each earlier registration under which there were results: its hash, its date, and why it was replaced."""

    @property
    def hashes(self) -> set[str]:
        """Its own, and those that it replaces."""
        return {self.hash, *(each["hash"] for each in self.amended)}


def file_of(paper: Paper[Any]) -> Path:
    """Where the registration of ``paper`` is."""
    if paper.file:
        return paper.file.with_suffix(".registered.yaml")
    return configs_dir() / "registered" / f"{paper.name}.yaml"


def registration(paper: Paper[Any]) -> Registration | None:
    """That of ``paper``; None where there is none.

    Raises:
        UserError: it cannot be read, or was edited.
    """
    file = file_of(paper)
    if not file.is_file():
        return None
    remedy = f"Restore it, or delete it and register the design anew: `bnrepro register {called(paper)}`."
    try:
        known = _read(file)
    except (OSError, ValueError) as error:
        raise UserError(f"The registration {file} cannot be read ({first_line(error)}). {remedy}") from error
    if hash_of(known.design) != known.hash:
        raise UserError(f"The registration {file} was edited: its hash does not match its content. {remedy}")
    return known


def registered_on(name: str, but: str) -> str | None:
    """The day on which the package's paper ``name`` was registered with another design than that of hash ``but``."""
    file = configs_dir() / "registered" / f"{name}.yaml"
    try:
        known = _read(file)
    except (OSError, ValueError):  # there is none: what only displays ends no work
        return None
    return known.registered if known.hash != but else None


def sentence_registered(name: str, id: str, under: str) -> str | None:
    """How claim ``id`` of the package's paper ``name`` was worded in its registration, if that has the hash ``under``.

    Sentences do not count in the hash: one may come to say more exactly what is tested.
    """
    try:
        known = _read(configs_dir() / "registered" / f"{name}.yaml")
    except (OSError, ValueError):
        return None
    claims: list[Row] = known.design["claims"] if known.hash == under else []
    return next((claim["sentence"] for claim in claims if claim["id"] == id), None)


def _read(file: Path) -> Registration:
    """What a file says, parsed once as long as it is the same: a report asks of each claim.

    Raises:
        ValueError: it is no registration.
        OSError: it cannot be read.
    """
    state = file.stat()
    return deepcopy(_parsed(file, state.st_mtime_ns, state.st_size))


@cache
def _parsed(file: Path, _mtime_ns: int, _size: int) -> Registration:
    found = stored.load_yaml(file)
    stored.hold(found, Registration, file.name)
    return Registration(**found)


def register(paper: Paper[Any], held: dict[str, Any], reason: str = "") -> tuple[Path, Registration]:
    """Write the registration of ``paper``, as it is designed now.

    Args:
        paper: the paper.
        held: the provenance of its stored results; empty where there are none.
        reason: why it replaces one under which there are results.

    Raises:
        UserError: there are results under the one that it would replace, and no reason; the rule of a claim is not
            known before there are results.
    """
    settings = paper.settings(FULL)
    check_claims(paper, settings)
    file, design = file_of(paper), described(paper, settings)
    if unknown := [claim["id"] for claim in design["claims"] if claim.get("effects") == UNKNOWN]:
        raise UserError(
            f"{called(paper)}: the rule and margin of claim {unknown[0]} cannot be registered, since its function "
            "fails without results. Let it return its evidence then, too; what needs values belongs in tables."
        )
    new = Registration(paper.name, hash_of(design), _today(), design)
    if file.is_file() and (old := registration(paper)):
        if old.hash == new.hash:
            return file, old
        new.amended = old.amended
        used = (held.get("design") or {}).get("hash") in old.hashes
        if used and not reason:
            raise UserError(
                f"{called(paper)}: there are results under its registered design ({old.hash}, {old.registered}), but "
                f"the design has changed: {'; '.join(differences(old.design, design)[:3])}. To replace it, give a "
                f'reason: bnrepro register {called(paper)} --amend "REASON".'
            )
        if used or reason:
            why = {"reason": reason, "on": new.registered}
            new.amended = [*old.amended, {"hash": old.hash, "registered": old.registered, **why}]
    said = {"paper": new.paper, "hash": new.hash, "registered": new.registered, "amended": new.amended}
    text = yaml.dump({**said, "design": design}, Dumper=_Plain, **STYLE)
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write_whole(file, HEAD.format(name=called(paper)) + text)
    return file, new


def standing(
    paper: Paper[Any], settings: Preset, held: dict[str, Any], out: Path, *, unregistered: bool = False
) -> dict[str, Any]:
    """What provenance.json says of the design under which ``paper`` is judged with ``settings``.

    Args:
        paper: the paper.
        settings: of preset full.
        held: the provenance of what is stored there.
        out: that folder.
        unregistered: whether it is judged although its design is not the registered one.

    Raises:
        UserError: the registered design is another, or what is stored was made under another.
    """
    design, known = described(paper, settings), registration(paper)
    about: dict[str, Any] = {"hash": hash_of(design), "registered": None, "commit": None, "committed": None}
    about |= {"amended": [], "as_registered": False}
    if known is None:
        return about
    before = (held.get("design") or {}).get("hash")
    amend = ' --amend "REASON"' if before in known.hashes else ""
    again = f"`bnrepro register {called(paper)}{amend}`, or judge it with --unregistered (the report says so)"
    if known.hash != about["hash"] and not unregistered:
        unlike = "; ".join(differences(known.design, design)[:3])
        raise UserError(
            f"{called(paper)}: the design is not the registered one ({known.hash}): {unlike}. Undo the change; or "
            f"register it again with {again}."
        )
    if before not in (None, *known.hashes, about["hash"]) and not unregistered:
        raise UserError(
            f"{called(paper)}: the results in {out} were made under the design {before}, but the registered one is "
            f"{known.hash}. Use another --out={quote('FOLDER')}, or judge them with "
            "--unregistered (the report says so)."
        )
    commit, date = provenance.committed(file_of(paper)) or (None, None)
    about |= {"registered": known.registered, "commit": commit, "committed": date}
    return about | {"amended": known.amended, "as_registered": known.hash == about["hash"]}


def check_as_judged(paper: Paper[Any], settings: Preset, about: dict[str, Any]) -> str | None:
    """Check that records are judged as the registered design says under which they were made.

    A paper in a file of a user's own, once registered, is judged by another design through `bnrepro reproduce` alone,
    whenever its records were made.

    Args:
        paper: the paper.
        settings: of the records.
        about: their provenance.

    Returns:
        The hash of the design now; None where none was recorded.

    Raises:
        UserError: the design has changed since, or was registered only later.
    """
    design = about.get("design")
    if about["preset"] != FULL:
        return None
    if not design:
        if registration(paper):
            raise UserError(
                f"{called(paper)}: these records were made before a design was registered, and their verdicts and "
                f"figures stay as they are. `bnrepro reproduce {called(paper)} --preset=full` makes those of the "
                "registered one."
            )
        return None
    new = described(paper, settings)
    now = hash_of(new)
    if now == design["hash"] or not (design["as_registered"] or (paper.file and file_of(paper).is_file())):
        return now
    known = registration(paper)
    same = known is not None and known.hash == design["hash"]
    unlike = f": {'; '.join(differences(known.design, new)[:3])}" if known and same else f" (now {now})"
    which = "the registered design" if design["as_registered"] else "the design"
    raise UserError(
        f"{called(paper)}: these records were made under {which} {design['hash']}, which has changed since{unlike}. "
        + refused(paper, known is not None and known.hash == now)
    )


def refused(paper: Paper[Any], amended: bool = False) -> str:
    """What to do about records that were made under another design; ``amended``: it is the registered one now."""
    remedy = f"`bnrepro reproduce {called(paper)}` judges again and repeats no finished run"
    if not amended:
        amend = f'bnrepro register {called(paper)} --amend "REASON"'
        remedy = f"Undo the change; or `{amend}`, after which {remedy}"
    return f"The verdicts stay as they are. {remedy}."


def called(paper: Paper[Any]) -> str:
    """What the command line calls it."""
    return f"{paper.name}.py" if paper.file else paper.name


# --- a design as data ---------------------------------------------------------------------------------------------


def described(paper: Paper[Any], settings: Preset) -> dict[str, Any]:
    """The design of ``paper``: seeds or looks, settings, runs, measurements, claims."""
    looks = settings.looks
    values = settings.model_dump(mode="json", exclude=set() if settings.scale else {"scale", "scale_note"})
    count = {"looks": values.pop("looks")} if looks else {"seeds": settings.seeds}
    values.pop("seeds")
    values.pop("looks", None)
    whole = settings.model_copy(update={"seeds": looks[-1]}) if looks else settings
    design = paper.designed(whole)
    identities = _Identities()
    configs = [arm.config for arm in design.arms] + [probe.config for probe in design.probes if probe.config]
    common = identities.common(configs)
    said = {
        **count,
        "settings": values,
        "common": common,
        "runs": list(_grouped(((_run(arm, identities), arm.config.seed) for arm in design.arms), whole.seeds)),
        "measurements": list(_grouped(((_probe(each, identities), each.seed) for each in design.probes), whole.seeds)),
        "claims": [_claim(paper, claim, settings) for claim in paper.claims],
    }
    plain: dict[str, Any] = json.loads(json.dumps(said, default=str))
    return plain


def hash_of(design: dict[str, Any]) -> str:
    """16 hexadecimal digits over all that counts."""
    claims = [{key: value for key, value in claim.items() if key not in PROSE} for claim in design["claims"]]
    return digits_of({**design, "claims": claims})


def differences(there: Any, here: Any, where: str = "") -> list[str]:
    """How two designs differ, a phrase for each place."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [key for key in {**there, **here} if key not in PROSE]
        parts = [differences(there.get(k), here.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [phrase for part in parts for phrase in part]
    if isinstance(there, list) and isinstance(here, list) and any(isinstance(e, dict) for e in (*there, *here)):
        if len(there) != len(here):
            return [f"{where}: {len(there)} there and {len(here)} here"]
        names = [each.get("id", place) for place, each in enumerate(here, 1)]
        pairs = zip(there, here, names, strict=True)
        return [phrase for old, new, name in pairs for phrase in differences(old, new, f"{where} {name}")]
    return [] if there == here else [f"{where} is {_short(there)} there and {_short(here)} here"]


def _run(arm: Arm, identities: _Identities) -> Row:
    return {"part": arm.part, "factors": arm.factors, "config": identities.own(arm.config)}


def _probe(probe: Probe, identities: _Identities) -> Row:
    measure = f"{probe.measure.name} {probe.measure.version}"
    said: Row = {"part": probe.part, "factors": probe.factors, "measure": measure}
    if probe.arguments:
        said["arguments"] = probe.arguments
    if probe.config:
        said["config"] = identities.own(probe.config)
    if probe.data:
        said["data"] = identity_of(Config(data=probe.data))
    return said


class _Identities:
    """What configurations have other than the defaults, each worked out once for all its seeds."""

    def __init__(self) -> None:
        self.known: dict[str, Row] = {}
        self.shared: Row = {}

    def of(self, cfg: Config) -> Row:
        key = repr(replace(cfg, seed=0))
        if key not in self.known:
            # Where an archive lies, and what is in it, is this machine's business.
            found = identity_of(cfg, without=("seed",))
            self.known[key] = {name: value for name, value in found.items() if name != "content"}
        return self.known[key]

    def common(self, configs: list[Config]) -> Row:
        """What all of them share, which `own` leaves out."""
        first, *others = [self.of(cfg) for cfg in configs] or [{}]
        self.shared = {key: value for key, value in first.items() if all(o.get(key) == value for o in others)}
        return self.shared

    def own(self, cfg: Config) -> Row:
        return {key: value for key, value in self.of(cfg).items() if key not in self.shared}


def _claim(paper: Paper[Any], claim: Claim, settings: Preset) -> Row:
    said: Row = {"id": claim.id, "sentence": claim.sentence, "kind": claim.kind, "scale": claim.scale}
    if claim.scale_note:
        said["scale_note"] = claim.scale_note
    nothing = Results(FULL, [], [], [])
    try:
        evidence = claim.rests_on(nothing, settings)
        gate = claim.gated(nothing, settings)
    except user_files.FAILS:  # a paper's own code: what is wrong with it is reported where the claim is judged
        return said | {"effects": UNKNOWN}
    asked = questions(paper, claim, settings)
    if claim.withdrawn or evidence.reason:
        return said | {"not_testable": claim.withdrawn or evidence.reason}
    if gate is not None:
        said["gate"] = gate.asks
    said["effects"] = list(_effects(evidence))
    if asked:
        said["reads"] = [{"of": "measurements" if q.measured else "runs", **_levels(q.factors)} for q in asked]
    return said


def _effects(evidence: Evidence) -> Iterator[Row]:
    for effect in evidence.effects:
        condition = {"condition": effect.condition} if effect.condition else {}
        yield condition | _rule(effect.rule)


def _rule(rule: Rule) -> Row:
    said: Row = {"rule": rule.name, "bar": rule.bar, "margin": rule.margin, "ratio": rule.ratio or None}
    return {key: value for key, value in said.items() if value is not None}


def _levels(factors: Row) -> Row:
    return {key: list(level) if isinstance(level, tuple | set | range) else level for key, level in factors.items()}


def _grouped(pairs: Iterable[tuple[Row, int]], seeds: int) -> Iterator[Row]:
    """What is the same but for its seed, as one, with the seeds where they are not the design's."""
    groups: dict[str, tuple[Row, list[int]]] = {}
    for said, seed in pairs:
        groups.setdefault(json.dumps(said, default=str), (said, []))[1].append(seed)
    for said, of in groups.values():
        yield said if of == list(range(seeds)) else {**said, "seeds": of}


class _Plain(yaml.SafeDumper):
    """Without aliases, which `stored.read_yaml` refuses; small mappings and lists on one line."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
