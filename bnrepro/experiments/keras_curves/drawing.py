"""The figures of this experiment."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnrepro import figures
from bnrepro.compare import Comparison
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.keras_curves.exact import LOCKSTEP, PAIRS
from bnrepro.experiments.keras_curves.grid import ARMS, CURVES, FLIPS

LABELS = {
    "nobn": "no BN",
    "bn": "framework BN",
    "custombn": "custom BN",
    "custombn_own": "custom BN, source's settings",
    "convbn": "local-gain BN",
}
# For figures that know their variants by name: four have a look there, the fifth gets one.
VARIANTS = {arm: LABELS[arm] if arm == "custombn_own" else arm for arm in ARMS}
PAIR_LOOKS = {
    "same settings": ("#0072B2", "-"),
    "same settings, float32": ("#E69F00", (0, (4, 2))),
    "momentum 0.1": ("#D55E00", (0, (5, 1, 1, 1))),
    "eps 1e-6": ("#009E73", (0, (1, 1))),
}
FLOOR = 1e-16  # what equality is drawn as


def pictures(records: Records) -> list[Picture]:
    """The four figures of the source, with and without flips; test accuracy; two networks in step."""
    drawn = []
    for flips in FLIPS:
        comparison = as_comparison(records, flips)
        if not comparison.curves:
            continue
        about = "" if flips == "with" else ", without the source's horizontal flips"
        n = max(len(comparison.completed(variant)) for variant in comparison.variants)
        caption = f"mean over n={n} seeds with its 95% interval, preset {records.preset}"
        drawn.append(
            Picture(
                f"curves_{flips}_flips",
                f"The source's four figures{about}: {caption}. Losses on a logarithmic axis.",
                figures.overview(comparison),
            )
        )
        drawn.append(
            Picture(
                f"test_accuracy_{flips}_flips",
                f"Test accuracy at the end{about}: each seed a dot, {caption}.",
                figures.test_accuracy(comparison),
            )
        )
    if records.select(records.measurements, part=LOCKSTEP):
        drawn.append(Picture("lockstep", _lockstep_caption(records), lockstep(records)))
    return drawn


def as_comparison(records: Records, flips: str) -> Comparison:
    """The runs with or without flips, as figures know them."""

    def named(rows: list[dict]) -> list[dict]:
        return [{**row, "variant": VARIANTS[row["arm"]]} for row in records.select(rows, part=CURVES, flips=flips)]

    order = {variant: place for place, variant in enumerate(VARIANTS.values())}
    runs = sorted(named(records.runs), key=lambda row: order[row["variant"]])
    return Comparison(runs, named(records.curves), records.provenance)


def _lockstep_caption(records: Records) -> str:
    n = len({row["seed"] for row in records.select(records.measurements, part=LOCKSTEP)})
    return (
        "Framework BN (eps 1e-3, momentum 0.01) and custom BN from the same weights on the same batches: absolute "
        "difference of the training losses and of the losses in eval mode on the validation images. At the same "
        "settings only rounding tells them apart; momentum alone changes no training loss and the evaluation most. "
        f"The largest over n={n} seeds; equal is drawn as {FLOOR:g}. Preset {records.preset}."
    )


def lockstep(records: Records) -> Figure:
    """Differences against steps."""
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.7), layout="constrained")
        titles = {"training": "training loss", "eval": "loss in eval mode"}
        for axes, (quantity, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
            _differences(axes, records, quantity)
            axes.set_xlabel("step")
            axes.set_title(title, fontsize=8)
        figure.axes[0].set_ylabel("absolute difference")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=2.6, columnspacing=1.2)
        return figure


def _differences(axes: Axes, records: Records, quantity: str) -> None:
    axes.set_yscale("log")
    for pair in PAIRS:
        color, dashes = PAIR_LOOKS[pair]
        points = records.series(quantity, part=LOCKSTEP, pair=pair)
        worst = [max(*values, FLOOR) for values in points.values()]
        axes.plot(list(points), worst, color=color, linestyle=dashes, label=pair)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
