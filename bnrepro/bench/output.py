"""The benchmarks' tables as text and CSV, and their figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bnrepro.bench import layers, pipeline, seeds
from bnrepro.bench.timing import Table
from bnrepro.errors import UserError, either, known_are
from bnrepro.plots.style import COLUMN, label, look, save, style
from bnrepro.runs import record
from bnrepro.system.text import fitted

PARTS = ("layers", "grid", "memory", "epoch", "compare", "recipe", "throughput", "startup", "growth", "seeds")
CONFIGURED = ("epoch", "compare", "recipe")


def run(
    parts: Sequence[str], norms: Sequence[str], overrides: Sequence[str], repeats: int, device: str
) -> Iterator[Table]:
    """The tables of ``parts``, each as soon as it is there. ``overrides`` are the configuration's (`data.root=...`).

    Raises:
        UserError: no such part, or no such norm.
    """
    few = max(1, repeats // 10)
    makers: dict[str, list[Callable[[], Table]]] = {
        "layers": [lambda: layers.layers(norms, repeats, device), lambda: layers.growth(norms, repeats, device)],
        "grid": [lambda: layers.grid(norms, repeats, device)],
        "memory": [lambda: layers.memory(norms, device)],
        "epoch": [lambda: pipeline.epoch(overrides, few)],
        "compare": [lambda: pipeline.comparison(overrides, few)],
        "recipe": [lambda: pipeline.recipe(overrides, few)],
        "throughput": [pipeline.throughput],
        "startup": [lambda: pipeline.startup(few)],
        "growth": [lambda: pipeline.growth(repeats)],
        "seeds": [seeds.stacked],
    }
    for part in parts:
        if part not in makers:
            raise UserError(f"There is no part {part!r} of the benchmark.{known_are(part, PARTS)}")
    if overrides and not {*CONFIGURED} & {*parts}:
        raise UserError(
            f"{overrides[0]} is not used: of the parts of the benchmark, only {either(CONFIGURED)} takes keys."
        )
    for override in overrides:
        if re.match(r"\s*(recipe|variant|model(\.\w+)?|optimizer(\.(?!lr\b)\w+)?|root)\s*=", override):
            raise UserError(
                f"{override} is not used: the benchmark sets norms, network, recipe, optimizer and root itself."
            )
    for norm in norms:
        layers.make(norm, (2, 2, 2, 2))
    return (make() for part in parts for make in makers[part])


def text(table: Table) -> str:
    """The table for a terminal."""
    columns = list(table.rows[0])
    lines = [columns, *([_cell(row[column]) for column in columns] for row in table.rows)]
    words = [i for i, column in enumerate(columns) if isinstance(table.rows[0][column], str)]
    return "\n".join([table.title, fitted(lines, left=words), *table.notes])


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def write(table: Table, folder: Path) -> None:
    """The table as CSV, with its title and notes beside it, and its figure if it has one."""
    record.write_csv(folder / f"{table.name}.csv", list(table.rows[0]), table.rows)
    record.write_whole(folder / f"{table.name}.txt", "\n".join([table.title, *table.notes]) + "\n")
    draw = {"layers": against_the_floor, "layers_growth": against_size}.get(table.name)
    if draw:
        save(draw(table.rows), folder / table.name)


def against_the_floor(rows: list[dict[str, Any]]) -> Figure:
    """Time of forward and backward over the memory floor: a group of bars a shape, float32."""
    rows = [row for row in rows if row["dtype"] == "float32"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    norms = list(dict.fromkeys(row["norm"] for row in rows))
    with style():
        figure = Figure(figsize=(COLUMN, 0.8 + 0.42 * len(shapes)), layout="constrained")
        axes = figure.add_subplot()
        height = 0.8 / len(norms)
        for place, (norm, (color, _)) in enumerate(look(norms).items()):
            values = {row["shape"]: row["over_floor"] for row in rows if row["norm"] == norm}
            at = [i + (place - (len(norms) - 1) / 2) * height for i in range(len(shapes))]
            axes.barh(at, [values[shape] for shape in shapes], height, color=color, label=label(norm))
        axes.axvline(1, color="#000000", linewidth=0.8, linestyle=(0, (4, 2)))
        axes.set_yticks(range(len(shapes)), [shape.replace("x", " x ") for shape in shapes])
        axes.set_ylim(len(shapes) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("forward + backward\n(1: 8 passes at the speed of a copy)")
        figure.legend(loc="outside upper center", ncols=3, handlelength=1, columnspacing=1)
        return figure


def against_size(rows: list[dict[str, Any]]) -> Figure:
    """Time of forward and backward against batch size and against channels."""
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        norms = list(dict.fromkeys(row["norm"] for row in rows))
        for axes, (along, axis) in zip(figure.subplots(1, 2), (("batch", 0), ("channels", 1)), strict=True):
            for norm, (color, dashes) in look(norms).items():
                mine = [row for row in rows if row["norm"] == norm and row["along"] == along]
                sizes = [int(row["shape"].split("x")[axis]) for row in mine]
                times = [row["milliseconds"] for row in mine]
                axes.plot(sizes, times, color=color, linestyle=dashes, marker="o", markersize=3, label=label(norm))
            floor = [row for row in rows if row["norm"] == norms[0] and row["along"] == along]
            axes.plot(
                [int(row["shape"].split("x")[axis]) for row in floor],
                [row["floor_milliseconds"] for row in floor],
                color="#999999", linestyle=(0, (1, 1)), label="8 passes at copy speed",
            )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
            fixed = "64 channels" if along == "batch" else "batch 64"
            axes.set_xlabel(f"{'batch size' if along == 'batch' else along} ({fixed}, 16 x 16)")
            axes.set_ylabel("forward + backward, ms")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        return figure
