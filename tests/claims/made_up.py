"""Nobody, A made-up & tiny paper (2026).

https://example.org/a_b/c*d

Differences from the paper
- Smaller.
- There is no paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.figure import Figure

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, equal, exact, greater, measure
from bnrepro.claims.paper import Claim, Shown
from bnrepro.data.dataset import Dataset
from bnrepro.runs.record import Run

PRESETS = "smoke: {seeds: 1}\nquick: {points: [0.1, 2.0]}\n"
"""What configs/experiment/made_up.yaml would say."""
Row = dict[str, Any]
Rows = list[Row]


class Settings(Preset):  # whose defaults pydantic copies
    seeds: int = 1
    common: list[str] = ["data=mnist5k", "model=lenet", "epochs=1", "batch_size=60", "device=cpu"]  # noqa: RUF012
    points: list[float] = [0.1, 2.0, 0.7]  # noqa: RUF012
    margin: float = 1e-3  # percentage points
    limits: dict[str, float] = {"curve": 1.5}  # noqa: RUF012


paper = Paper(__name__, Settings, scale="toy", scale_note="one epoch")


@paper.design
def runs(s: Settings) -> Design:
    """Two variants, in two parts that share them; and a measure of each kind: of a run, of nothing, of a dataset."""
    design = Design(s.seeds)
    for part in ("table", "again"):
        for variant in ("nobn", "bn"):
            design.train(part, {"variant": variant, "rate": 0.5}, [*s.common, f"variant={variant}"])
    design.train("sizes", {"variant": "bn"}, [*s.common, "variant=bn"], parameters, seeds=[0], record=False)
    design.measure("line", {"window": 3}, curve, seeds=[0], points=s.points)
    design.measure("line", {"window": "full"}, curve, seeds=[1], points=s.points[:1])
    return design


def toys(s: Settings) -> Design:
    """A design without a run."""
    design = Design(s.seeds)
    design.measure("line", {"window": 3}, curve, seeds=[0], points=s.points)
    return design


# --- measurements ---


@measure("made_up/parameters")
def parameters(run: Run, seed: int) -> Rows:
    """Of a run."""
    return [{"quantity": "parameters", "x": None, "value": run.summary["parameters"]}]


@measure("made_up/curve")
def curve(seed: int, points: list[float]) -> Rows:
    """Of a toy; a third is no number that a decimal fraction has."""
    return [{"quantity": "curve", "x": x, "value": x / 3 + seed} for x in points]


@measure("made_up/images")
def images(data: Dataset, seed: int) -> Rows:
    """Of a dataset."""
    return [{"quantity": "images", "x": None, "value": len(data.train.labels)}]


@measure("made_up/fails")
def fails(seed: int) -> Rows:
    """One with a mistake."""
    raise ZeroDivisionError("by purpose")


@measure("made_up/nonsense")
def nonsense(seed: int) -> Rows:
    """One whose rows are none."""
    return [{"quantity": "a", "val": 1}]


# --- claims ---


@paper.claim("Z1", quote="BN wins.", where="page 1", reported="157 | 315")
def better(r: Results, s: Settings) -> Evidence:
    """BN <script>alert(1)</script> is better."""
    bn, nobn = (r.test_accuracy(part="table", variant=variant) for variant in ("bn", "nobn"))
    return greater(bn - nobn, "test accuracy, BN minus none", "percentage points", margin=s.margin)


@paper.claim("Z2", kind="identity", reported="2")
def two(r: Results, s: Settings) -> Evidence:
    """"2 is 2"."""  # fmt: skip
    return exact(True, "2 and 2")


@paper.claim("Z3", kind="prediction")
def level(r: Results, s: Settings) -> Evidence:
    """The curve begins at nothing."""
    start = r.measured("curve", part="line", x=s.points[0])
    return equal(start, "the curve's first value", "", margin=s.limits["curve"], condition="window")


# --- tables and figures ---


@paper.table
def sizes(r: Results, s: Settings) -> Rows:
    """Sizes."""
    accuracy = r.test_accuracy(part="table", variant="bn")
    return [{"variant": "bn", "accuracy": accuracy.interval(), "n": len(accuracy)}]


@paper.figure
def line(r: Results, s: Settings) -> Figure | None:
    """A <b>line</b> of {s.points[0]:g} and more."""
    values = r.measured("curve", part="line", window=3)
    if not values:
        return None
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot(values.levels("x"), list(values))
    return figure


def varied(
    design: Callable[[Settings], Design] = runs,
    claims: Iterable[Claim] | None = None,
    tables: Iterable[Shown] | None = None,
    figures: Iterable[Shown] | None = None,
) -> Paper[Settings]:
    """The paper with another design, claims, tables or figures; it reads its presets anew."""
    new = Paper(__name__, Settings, scale=paper.scale, scale_note=paper.scale_note)
    new.design(design)
    new.claims += paper.claims if claims is None else claims
    new.tables += paper.tables if tables is None else tables
    new.figures += paper.figures if figures is None else figures
    return new
