"""What is run and measured: the 2 x 2 table, the horizon, the window, eps, and the batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Factors, Probe, Settings
from bnrepro.experiments.conv_batchnorm import exact, networks
from bnrepro.schema import Config

CELLS = ["bn", "convbn", "peractivationbn", "locationaffinebn"]
"""The 2 x 2 table's, in the order (channel, channel), (location, channel), (location, location), (channel, location):
where the statistics are, and where gamma and beta."""
LIGHTS = ("plain", "static", "frames")
"""No shade; the same shade in training and test; each batch a shade of its own."""
WHOLE_MAP = 999
"""A window larger than any map here: the adaptive norm then has statistics per channel."""


@cache
def _load(overrides: tuple[str, ...]) -> Config:
    return load_config(list(overrides))


def _base(settings: Settings, data: str, *more: str) -> Config:
    """The preset's configuration on a dataset: one of the table's, with its overrides, or another."""
    return _load((*settings["overrides"], *settings["data"].get(data, [f"data={data}"]), *more))


def _with(cfg: Config, seed: int, variant: str, **keys: Any) -> Config:
    """``cfg`` with another seed and variant, and keys such as ``norm__eps``."""
    for key, value in keys.items():
        group, _, name = key.rpartition("__")
        new = {group: replace(getattr(cfg, group), **{name: value})} if group else {name: value}
        cfg = replace(cfg, **new)
    return replace(cfg, seed=seed, variant=variant)


def _lit(cfg: Config, settings: Settings, light: str) -> Config:
    shade = 1.0 if light == "plain" else float(settings["horizon"]["shade"])
    return replace(cfg, data=replace(cfg.data, shade=shade, shade_batches=light == "frames"))


def arms(settings: Settings) -> list[Arm]:
    """The training runs. Several parts share those on plain images."""
    return [
        Arm(part, factors, cfg)
        for seed in range(settings["seeds"])
        for part, factors, cfg in (
            *_table(settings, seed),
            *_horizon(settings, seed),
            *_window(settings, seed),
            *_eps(settings, seed),
            *_batch(settings, seed),
        )
    ]


Row = tuple[str, Factors, Config]


def _table(settings: Settings, seed: int) -> Iterator[Row]:
    for data in settings["data"]:
        for variant in ("nobn", *CELLS):
            yield "table", {"dataset": data, "variant": variant}, _with(_base(settings, data), seed, variant)


def _horizon(settings: Settings, seed: int) -> Iterator[Row]:
    part = settings["horizon"]
    for data in part["data"]:
        for light in LIGHTS:
            for variant in part["variants"]:
                cfg = _lit(_with(_base(settings, data), seed, variant), settings, light)
                yield "horizon", {"dataset": data, "light": light, "variant": variant}, cfg


def _window(settings: Settings, seed: int) -> Iterator[Row]:
    part = settings["window"]
    cfg = _base(settings, part["data"], *part["overrides"])
    for variant in ("bn", "convbn"):  # the ends, with running statistics
        yield "window", {"variant": variant, "kernel": None}, _with(cfg, seed, variant)
    for kernel in part["kernels"]:
        factors = {"variant": "adaptive", "kernel": kernel}
        yield "window", factors, _with(cfg, seed, "adaptive", norm__kernel_size=kernel)


def _eps(settings: Settings, seed: int) -> Iterator[Row]:
    part = settings["eps"]
    for eps in map(float, part["values"]):
        for variant in ("bn", "convbn"):
            cfg = _with(_base(settings, part["data"], *part["overrides"]), seed, variant, norm__eps=eps)
            yield "eps", {"variant": variant, "eps": eps}, cfg


def _batch(settings: Settings, seed: int) -> Iterator[Row]:
    part = settings["batch"]
    for size in part["sizes"]:
        for variant in ("bn", "convbn"):
            cfg = _with(_base(settings, part["data"], *part["overrides"]), seed, variant, batch_size=size)
            yield "batch", {"variant": variant, "batch_size": size}, cfg


def probes(settings: Settings) -> list[Probe]:
    """The exact checks, once; and what is measured of each run's network."""
    sizes = settings["gap"]["batches"]
    found = list(_exact())
    for arm in arms(settings):
        seed, run = arm.config.seed, (arm.part, arm.factors, arm.config.seed)
        if arm.part in ("table", "batch"):
            batches = sizes if arm.part == "table" else [arm.config.batch_size]
            found.append(Probe(*run, networks.statistics, {"batches": batches}, arm.config))
        if arm.part == "horizon":
            shades = settings["horizon"]["test_shades"] if arm.factors["light"] == "plain" else []
            found.append(Probe(*run, networks.horizon, {"shades": shades}, arm.config))
            if arm.factors["variant"] == "convbn":
                found.append(Probe(*run, networks.maps, {"whole": seed == 0}, arm.config))
        if arm.part == "window" and arm.factors["variant"] == "bn":
            arguments = {"kernels": settings["window"]["kernels"], "batch": arm.config.batch_size}
            found.append(Probe(*run, networks.window, arguments, arm.config))
        if arm.part == "eps":
            found.append(Probe(*run, networks.extremes, {"batches": sizes}, arm.config))
    return found


def _exact() -> Iterator[Probe]:
    one = {"channels": 6, "height": 24, "width": 24}
    small = {"batch": 5, "channels": 3, "height": 4, "width": 3}
    yield Probe("exact", {"claim": "L1"}, 0, exact.counts, {"variants": [*CELLS, "adaptive"], **one})
    yield Probe("exact", {"claim": "L2"}, 0, exact.flattened, small)
    yield Probe("exact", {"claim": "L3"}, 0, exact.gradients, small)
    others = {"variants": [*CELLS, "adaptive"], "channels": 3, "made_for": 12, "given": 10}
    yield Probe("exact", {"claim": "L5"}, 0, exact.other_sizes, others)
    yield Probe("exact", {"claim": "L8"}, 0, exact.window_ends, {"batch": 5, "channels": 3, "size": 6})
    yield Probe("exact", {"claim": "L9"}, 0, exact.bessel, {"source_eps": 1e-3, "batches": [1, 2, 4, 8, 32, 128]})
    yield Probe("exact", {"claim": "L-one"}, 0, exact.one_image, {"channels": 3, "size": 4})
