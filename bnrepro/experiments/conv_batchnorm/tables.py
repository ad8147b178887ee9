"""The tables of this experiment."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bnrepro.experiments.base import Records, Table
from bnrepro.experiments.conv_batchnorm.arms import CELLS, LIGHTS
from bnrepro.experiments.conv_batchnorm.family import datasets, name_of, points
from bnrepro.stats import Interval, holm, p_value, paired, t_interval

AXES = {
    "nobn": ("none", "none"),
    "bn": ("channel", "channel"),
    "convbn": ("location", "channel"),
    "peractivationbn": ("location", "location"),
    "locationaffinebn": ("channel", "location"),
    "adaptive": ("window", "channel"),
}
"""Of each variant: where the statistics are, and where gamma and beta."""

Row = dict[str, Any]


def tables(records: Records) -> list[Table]:
    """All that have rows."""
    n = records.settings["seeds"]
    shade = records.settings["horizon"]["shade"]
    found = [
        Table(
            "cells",
            f"The 2 x 2 table and no BN: test accuracy in percent, and in points its difference to BN, training less "
            f"test accuracy, and accuracy with each batch's own statistics less that with the running ones; then the "
            f"relative error of the first norm's output when images move by a pixel. Means over {n} seeds with 95% "
            f"intervals, paired where they are differences; eps the same in all.",
            _cells(records),
        ),
        Table(
            "effects",
            "What each axis of the 2 x 2 table does to the test accuracy, in points: local less channel statistics, "
            "gamma and beta per location less per channel (each the mean over the other axis), and how the one "
            f"depends on the other. 95% intervals over {n} seeds; p values two-sided, with Holm's correction over the "
            "table.",
            _effects(records),
        ),
        Table(
            "horizon",
            f"The horizon: lower half of each image at {shade:g} of its light in training and test (static), at a "
            f"factor between {shade:g} and 1 that differs from batch to batch (frames), or as it is (plain). Test "
            "accuracy in percent; shares in percent of active ReLUs, and of units that some images switch on and some "
            f"off, above and below the horizon, in the first and second convolutional layer. n={n}, 95% intervals.",
            _horizon(records),
        ),
        Table(
            "other_light",
            "Trained on plain images, tested with the lower half at another light: test accuracy in percent by the "
            f"factor. n={n}, 95% intervals.",
            _other_light(records),
        ),
        Table(
            "window",
            "The adaptive norm by the side of its window, between BN and local-gain BN with their running statistics: "
            "test accuracy in percent, and root mean square distance of its output after the first layer from that of "
            f"local and of channel statistics of the same batch. n={n}, 95% intervals.",
            _window(records),
        ),
        Table(
            "eps",
            "eps as a hyperparameter: test accuracy in percent, largest normalised value on test images after the "
            f"first layer, and share in percent of positions that do not vary over a batch there. n={n}, 95% "
            "intervals.",
            _eps(records),
        ),
        Table(
            "batch_size",
            "By batch size, the same number of epochs each: test accuracy in percent with running statistics and with "
            "the batch's own, and the root mean square of the normalised value in training less that in eval after "
            f"the first layer. n={n}, 95% intervals.",
            _batch(records),
        ),
        Table(
            "sizes",
            "Numbers that a norm keeps for a map of 6 x 24 x 24, and whether it takes a map of another size.",
            _sizes(records),
        ),
        Table(
            "bessel",
            "The factor from a batch's variance to the running one, for n values: the source's, the unbiased one, and "
            "ours.",
            _bessel(records),
        ),
    ]
    return [table for table in found if table.rows]


def _percent(values: Mapping[int, float]) -> Interval:
    return t_interval(points(list(values.values())))


def _plain(values: Mapping[int, float]) -> Interval:
    return t_interval(list(values.values()))


def _only(records: Records, column: str, **wanted: Any) -> int | None:
    rows = [row for row in records.select(records.runs, **wanted) if row.get(column) is not None]
    return int(rows[0][column]) if rows else None


def _cells(records: Records) -> list[Row]:
    rows = []
    for dataset in datasets(records, "table"):
        base = records.by_seed("test_accuracy", part="table", dataset=dataset, variant="bn")
        for variant in ("nobn", *CELLS):
            about = {"part": "table", "dataset": dataset, "variant": variant}
            accuracy = records.by_seed("test_accuracy", **about)
            running, own, seen = (
                records.measured("accuracy", x=x, **about) for x in ("running", "batch", "training images")
            )
            errors = {mode: records.measured("shift error", x=mode, **about) for mode in ("eval", "training")}
            rows.append(
                {
                    "dataset": name_of(dataset),
                    "variant": variant,
                    "statistics": AXES[variant][0],
                    "gamma and beta": AXES[variant][1],
                    "diverged": sum(r["status"] == "diverged" for r in records.select(records.runs, **about)),
                    "test accuracy": _percent(accuracy),
                    "less bn": t_interval(points(paired(accuracy, base))),
                    "training less test": t_interval(points(paired(seen, running))),
                    "batch less running": t_interval(points(paired(own, running))),
                    "shift error, eval": _plain(errors["eval"]),
                    "shift error, training": _plain(errors["training"]),
                    "parameters": _only(records, "parameters", **about),
                    "buffers": _only(records, "buffers", **about),
                }
            )
    return rows


def _effects(records: Records) -> list[Row]:
    values: dict[tuple[str, str], list[float]] = {}
    for dataset in datasets(records, "table"):
        by = {AXES[v]: records.by_seed("test_accuracy", part="table", dataset=dataset, variant=v) for v in CELLS}
        seeds = sorted(set.intersection(*(set(found) for found in by.values())))
        cell = {axes: [100 * found[seed] for seed in seeds] for axes, found in by.items()}
        each = list(
            zip(
                cell["channel", "channel"],
                cell["location", "channel"],
                cell["channel", "location"],
                cell["location", "location"],
                strict=True,
            )
        )
        values[dataset, "local statistics"] = [(b + d - a - c) / 2 for a, b, c, d in each]
        values[dataset, "gamma and beta per location"] = [(c + d - a - b) / 2 for a, b, c, d in each]
        values[dataset, "interaction"] = [d - c - (b - a) for a, b, c, d in each]
    p_values = {f"{dataset} {effect}": p_value(found) for (dataset, effect), found in values.items()}
    rejected = holm(p_values)
    return [
        {
            "dataset": name_of(dataset),
            "effect": effect,
            "points": t_interval(found),
            "p": p_values[f"{dataset} {effect}"],
            "significant": "yes" if rejected[f"{dataset} {effect}"] else "no",
        }
        for (dataset, effect), found in values.items()
    ]


def _horizon(records: Records) -> list[Row]:
    rows = []
    for dataset in datasets(records, "horizon"):
        for light in LIGHTS:
            for variant in records.settings["horizon"]["variants"]:
                about = {"part": "horizon", "dataset": dataset, "light": light, "variant": variant}
                row: Row = {
                    "dataset": name_of(dataset),
                    "light": light,
                    "variant": variant,
                    "test accuracy": _percent(records.by_seed("test_accuracy", **about)),
                }
                for what in ("active", "switching"):
                    for layer in ("1", "2"):
                        for side in ("above", "below"):
                            shares = records.measured(f"{what} {side} {layer}", x="own", **about)
                            row[f"{what} {side}, layer {layer}"] = _percent(shares)
                rows.append(row)
    return rows


def _other_light(records: Records) -> list[Row]:
    rows = []
    for dataset in datasets(records, "horizon"):
        for variant in records.settings["horizon"]["variants"]:
            about = {"part": "horizon", "dataset": dataset, "light": "plain", "variant": variant}
            row: Row = {"dataset": name_of(dataset), "variant": variant}
            for shade in records.settings["horizon"]["test_shades"]:
                row[f"{shade:g}"] = _percent(records.measured("accuracy", x=shade, **about))
            rows.append(row)
    return rows


def _window(records: Records) -> list[Row]:
    local, channel = (records.series(f"to {end}", part="window", variant="bn") for end in ("local", "channel"))
    kernels = records.settings["window"]["kernels"]
    named: list[tuple[str, Any]] = [("convbn", None), *(("adaptive", kernel) for kernel in kernels), ("bn", None)]
    rows = []
    for variant, kernel in named:
        accuracy = records.by_seed("test_accuracy", part="window", variant=variant, kernel=kernel)
        rows.append(
            {
                "variant": variant,
                "window": None if kernel is None else "whole map" if kernel > 100 else f"{kernel} x {kernel}",
                "test accuracy": _percent(accuracy),
                "distance to local": t_interval(local[kernel]) if kernel in local else None,
                "distance to channel": t_interval(channel[kernel]) if kernel in channel else None,
            }
        )
    return rows


def _eps(records: Records) -> list[Row]:
    sizes = records.settings["gap"]["batches"]
    rows = []
    for variant in ("bn", "convbn"):
        for eps in map(float, records.settings["eps"]["values"]):
            about = {"part": "eps", "variant": variant, "eps": eps}
            row: Row = {
                "variant": variant,
                "eps": eps,
                "test accuracy": _percent(records.by_seed("test_accuracy", **about)),
                "largest value": _plain(records.measured("largest", **about)),
            }
            for size in sizes:
                row[f"constant, batch of {size}"] = _percent(records.measured("constant", x=size, **about))
            rows.append(row)
    pixels: Row = dict.fromkeys(rows[0]) | {"variant": "(pixels)"}
    for size in sizes:  # the images are the same in all runs: any will do
        shares = records.series("constant pixels", part="eps", variant="bn").get(size)
        pixels[f"constant, batch of {size}"] = 100 * fmean(shares) if shares else None
    return [*rows, pixels]


def _batch(records: Records) -> list[Row]:
    rows = []
    for size in records.settings["batch"]["sizes"]:
        for variant in ("bn", "convbn"):
            about = {"part": "batch", "variant": variant, "batch_size": size}
            rows.append(
                {
                    "batch size": size,
                    "variant": variant,
                    "test accuracy": _percent(records.by_seed("test_accuracy", **about)),
                    "with the batch's own statistics": _percent(records.measured("accuracy", x="batch", **about)),
                    "gap": _plain(records.measured("gap", x=size, **about)),
                }
            )
    return rows


def _sizes(records: Records) -> list[Row]:
    def of(claim: str, quantity: str, variant: str) -> float | None:
        return records.measured(quantity, part="exact", claim=claim, x=variant).get(0)

    return [
        {
            "variant": variant,
            "statistics": AXES[variant][0],
            "gamma and beta": AXES[variant][1],
            "parameters": of("L1", "parameters", variant),
            "buffers": of("L1", "buffers", variant),
            "takes other sizes": "yes" if of("L5", "takes", variant) else "no",
        }
        for variant in (*CELLS, "adaptive")
    ]


def _bessel(records: Records) -> list[Row]:
    found = {name: records.series(name, part="exact", claim="L9") for name in ("source", "unbiased", "ours")}
    return [
        {"n": n} | {name: series[n][0] if n in series else None for name, series in found.items()}
        for n in found["source"]
    ]
