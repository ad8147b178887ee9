"""From the records of D1 to verdicts and tables."""

from __future__ import annotations

from statistics import fmean

from bnrepro.experiments.base import Analysis, Finding, Records, Table, drawn
from bnrepro.experiments.judge import greater, in_words
from bnrepro.experiments.li2019.claims import BY_ID
from bnrepro.experiments.li2019.drawing import pictures
from bnrepro.experiments.li2019.effects import cell, cells, narrowest, network_shift
from bnrepro.experiments.li2019.grid import NOWHERE
from bnrepro.stats import paired, t_interval

UNIT = "percentage points of test accuracy"
SHIFT = "ratio of variances"


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    return Analysis(judged(records), tables(records), drawn(lambda: pictures(records)))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    settings = records.settings
    margin, slight, amounts = settings["margin_points"], settings["margin_shift"], settings["amounts"]
    little, much, width = amounts[0], amounts[-1], narrowest(records)

    def change(where: str, amount: float, quantity: str = "accuracy") -> list[float]:
        """With dropout less without."""
        return paired(cell(records, quantity, where, amount, width), cell(records, quantity, NOWHERE, 0.0, width))

    before = network_shift(records, "before_norm", much, width)
    shift = paired(before, network_shift(records, NOWHERE, 0.0, width))
    after = paired(network_shift(records, "after_norm", much, width), network_shift(records, NOWHERE, 0.0, width))
    last = paired(network_shift(records, "last", much, width), network_shift(records, NOWHERE, 0.0, width))
    mended = paired(
        cell(records, "accuracy_mended", "before_norm", much, width),
        cell(records, "accuracy", "before_norm", much, width),
    )
    left = t_interval(list(network_shift(records, "before_norm", much, width, "shift_mended").values()))
    harm = [-value for value in change("before_norm", much)]
    return [
        greater(
            BY_ID["D1.1"],
            shift,
            SHIFT,
            margin=slight,
            found=f"Dropout {much:g} directly before each BN, mean shift over layers less that without dropout: "
            f"{{effect}}. After each BN: {in_words(t_interval(after), '')}; after the last only: "
            f"{in_words(t_interval(last), '')}. Seed by seed, before each BN: "
            f"{', '.join(f'{value:.3g}' for value in before.values())}.",
        ),
        greater(
            BY_ID["D1.2"],
            harm,
            UNIT,
            margin=margin,
            found=f"Without dropout less {much:g} directly before each BN: {{effect}}; less {much:g} after each BN: "
            f"{in_words(t_interval([-v for v in change('after_norm', much)]), 'points')}.",
        ),
        greater(
            BY_ID["D1.3"],
            change("last", much),
            UNIT,
            at_least=-margin,
            found=f"Dropout {much:g} after the last BN less none: {{effect}}; no harm above -{margin:g}.",
        ),
        greater(
            BY_ID["D1.4"],
            mended,
            UNIT,
            margin=margin,
            found=f"Dropout {much:g} before each BN, with statistics taken again without dropout less the moving ones: "
            f"{{effect}}; the harm was {fmean(harm) if harm else float('nan'):.2f}. The shift that is left is "
            f"{left.mean:.3f}.",
        ),
        greater(
            BY_ID["D1.5"],
            change("before_norm", little),
            UNIT,
            at_least=-margin,
            found=f"Dropout {little:g} before each BN less none: {{effect}}; safe above -{margin:g}.",
        ),
        wide(records),
    ]


def wide(records: Records) -> Finding:
    """D1.6: the shift of the narrowest network less that of the widest."""
    much, slight = records.settings["amounts"][-1], records.settings["margin_shift"]
    widths = sorted({width for where, amount, width in cells(records) if (where, amount) == ("before_norm", much)})
    if len(widths) < 2:
        return greater(BY_ID["D1.6"], [], SHIFT, found="{effect}")
    narrow, broad = widths[0], widths[-1]
    by_width = {width: network_shift(records, "before_norm", much, width) for width in (narrow, broad)}
    harm = {
        width: t_interval(
            paired(
                cell(records, "accuracy", NOWHERE, 0.0, width), cell(records, "accuracy", "before_norm", much, width)
            )
        )
        for width in (narrow, broad)
    }
    return greater(
        BY_ID["D1.6"],
        paired(by_width[narrow], by_width[broad]),
        SHIFT,
        margin=slight,
        found=f"Dropout {much:g} before each BN, mean shift at width {narrow:g} less that at {broad:g}: {{effect}}. It "
        f"costs {in_words(harm[narrow], 'points')} at width {narrow:g} and {in_words(harm[broad], 'points')} at "
        f"{broad:g}.",
    )


def tables(records: Records) -> list[Table]:
    """Shift and accuracy by place, amount and width."""
    rows: list[dict[str, object]] = []
    for where, amount, width in cells(records):
        row: dict[str, object] = {"dropout": where, "amount": amount, "width": width}
        row["mean shift"] = t_interval(list(network_shift(records, where, amount, width).values()))
        without = cell(records, "accuracy", NOWHERE, 0.0, width)
        for quantity, name in (("accuracy", "test accuracy, %"), ("accuracy_mended", "statistics taken again, %")):
            values = cell(records, quantity, where, amount, width)
            row[name] = t_interval(list(values.values()))
            row[f"{name}: less no dropout"] = t_interval(paired(values, without))
        rows.append(row)
    title = (
        "Shift of the variance (1: none) and test accuracy by place and amount of dropout; mean and 95% interval over "
        f"n = {records.settings['seeds']} seeds"
    )
    return [Table("dropout", title, rows)]
