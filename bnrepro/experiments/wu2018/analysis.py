"""From the records to verdicts and tables."""

from __future__ import annotations

from statistics import fmean

from bnrepro.experiments.base import Analysis, Finding, Records, Table, drawn
from bnrepro.experiments.judge import equal, greater, not_testable
from bnrepro.experiments.wu2018.claims import BY_ID, REPORTED, REPORTED_SORTED
from bnrepro.experiments.wu2018.drawing import pictures
from bnrepro.experiments.wu2018.effects import NAMES, accuracies, sizes_of, sorted_accuracies, whole_batch
from bnrepro.stats import Interval, paired, t_interval

UNIT = "percentage points of test accuracy"


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    return Analysis(judged(records), tables(records), drawn(lambda: pictures(records)))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [*_parts(records), *_sorted(records), ghost(records), *_others(records)]


def _parts(records: Records) -> list[Finding]:
    """G1.1 to R1.2: accuracy by the images that statistics come from."""
    margin, few, four = (records.settings[key] for key in ("margin_points", "fewest", "microbatch"))
    batch = whole_batch(records)

    def less(first: tuple[str, int], second: tuple[str, int]) -> list[float]:
        return paired(accuracies(records, *first), accuracies(records, *second))

    drop = less(("bn", batch), ("bn", few))
    local = t_interval(less(("local", batch), ("local", four)))
    plain = t_interval(less(("bn", batch), ("bn", four)))
    return [
        greater(
            BY_ID["G1.1"],
            drop,
            UNIT,
            margin=margin,
            found=f"BN with statistics from all {batch} images less from {few}: {{effect}}. From {four}: "
            f"{plain.mean:.2f}; local statistics lose {local.mean:.2f} from {batch} to {four}.",
        ),
        greater(
            BY_ID["G1.2"],
            less(("group", batch), ("bn", few)),
            UNIT,
            margin=margin,
            found=f"Group norm less BN with statistics from {few} images: {{effect}}.",
        ),
        equal(
            BY_ID["G1.3"],
            less(("group", batch), ("bn", batch)),
            margin,
            UNIT,
            f"Group norm less BN with statistics from all {batch} images: {{effect}}.",
        ),
        greater(
            BY_ID["G2"],
            less(("bn", batch), ("group", batch)),
            UNIT,
            margin=margin,
            found=f"BN with statistics from all {batch} images less group norm: {{effect}}.",
        ),
        greater(
            BY_ID["R1.1"],
            less(("renorm", four), ("bn", four)),
            UNIT,
            margin=margin,
            found=f"Renorm less BN, both with statistics from {four} images: {{effect}}.",
        ),
        equal(
            BY_ID["R1.2"],
            less(("renorm", batch), ("bn", batch)),
            margin,
            UNIT,
            f"Renorm less BN, both with statistics from all {batch} images: {{effect}}.",
        ),
    ]


def _sorted(records: Records) -> list[Finding]:
    """R1.3 to R1.5: batches of few classes."""
    margin, classes = records.settings["margin_points"], records.settings["classes"]
    shuffled = sorted_accuracies(records, "bn", 0)
    ours = {norm: sorted_accuracies(records, norm, classes) for norm in ("bn", "renorm", "group")}
    by_batch = sorted_accuracies(records, "bn", classes, "batch_accuracy")
    group = t_interval(paired(sorted_accuracies(records, "group", 0), ours["group"]))
    renorm = t_interval(paired(sorted_accuracies(records, "renorm", 0), ours["renorm"]))
    about = f"batches of {classes} runs of one class"
    return [
        greater(
            BY_ID["R1.3"],
            paired(shuffled, ours["bn"]),
            UNIT,
            margin=margin,
            found=f"BN trained on shuffled batches less BN trained on {about}, by running statistics: {{effect}}. "
            f"Group norm loses {group.mean:.2f} and renorm {renorm.mean:.2f}.",
        ),
        greater(
            BY_ID["R1.4"],
            paired(ours["renorm"], ours["bn"]),
            UNIT,
            margin=margin,
            found=f"Renorm less BN, both trained on {about}, by running statistics: {{effect}}.",
        ),
        greater(
            BY_ID["R1.5"],
            paired(by_batch, ours["bn"]),
            UNIT,
            margin=margin,
            found=f"BN trained on {about}: by the statistics of test batches so composed, less by running statistics: "
            "{effect}. The composition of such a batch tells of its classes.",
        ),
    ]


def ghost(records: Records) -> Finding:
    """T1: the size that is best on validation data less the whole batch."""
    margin, batch = records.settings["margin_points"], whole_batch(records)
    means = {
        size: fmean(values.values())
        for size in sizes_of(records, "bn")
        if size != batch and (values := accuracies(records, "bn", size, "val_accuracy"))
    }
    best = max(means, key=lambda size: means[size]) if means else batch
    differences = paired(accuracies(records, "bn", best), accuracies(records, "bn", batch)) if means else []
    return greater(
        BY_ID["T1"],
        differences,
        UNIT,
        margin=margin,
        found=f"BN with statistics from {best} images, of the smaller sizes the best on validation data, less from all "
        f"{batch}: {{effect}}.",
    )


def _others(records: Records) -> list[Finding]:
    """N2, and those that are not tested here: E1, Z1, N1, N3."""
    margin, batch = records.settings["margin_points"], whole_batch(records)
    difference = paired(accuracies(records, "lrn", batch), accuracies(records, "none", batch))
    lrn = greater(BY_ID["N2"], [-d for d in difference], UNIT, at_least=-margin, found="")
    worse = t_interval(difference)
    words = (
        f"LRN (AlexNet's constants) less no norm: {worse.mean:.2f} [{worse.low:.2f}, {worse.high:.2f}] points (95% "
        f"interval, n={worse.n}); no improvement if it is below {margin:g}."
    )
    return [
        Finding(BY_ID["N2"], lrn.verdict, words, worse, UNIT),
        not_testable(
            BY_ID["E1"],
            "The corrected statistics are learned in training by a loss of their own, which is not built here; what "
            "population statistics do for one network is measured with Wu & Johnson's claims.",
        ),
        not_testable(
            BY_ID["Z1"],
            "The effect is about 0.1 point of one run, which is less than five seeds can tell apart on our test sets.",
        ),
        not_testable(
            BY_ID["N1"],
            "The smoothed divisive norm is not among the norms here. What smoothing does to local statistics is "
            "measured as eps with conv-batchnorm's claims.",
        ),
        not_testable(
            BY_ID["N3"],
            "These take their statistics from one image, not from the batch, and are not built here. A window over the "
            "batch's images is measured with conv-batchnorm's claims, layer and instance norms are among the variants.",
        ),
    ]


# --- tables ---


def tables(records: Records) -> list[Table]:
    """Accuracy by images and by composition, with the sources' numbers beside."""
    batch = whole_batch(records)
    rows: list[dict[str, object]] = []
    for norm in NAMES:
        for size in sizes_of(records, norm):
            ours = t_interval(list(accuracies(records, norm, size).values()))
            shown: object = size if norm in ("bn", "local", "renorm") else "any"
            rows.append({"norm": NAMES[norm], "images": shown, "test accuracy, %": ours})
    for name, numbers in REPORTED.items():
        for size, value in numbers.items():
            rows.append(
                {"norm": f"{name} (source: ResNet-50, ImageNet)", "images": size, "test accuracy, %": _one(value)}
            )
    n = records.settings["seeds"]
    first = Table(
        "images",
        f"Test accuracy by the number of images of a batch of {batch} that statistics come from; mean and 95% interval "
        f"over n = {n} seeds. The source's are one run each.",
        rows,
    )
    rows = []
    classes = records.settings["classes"]
    for norm in ("bn", "renorm", "group"):
        for count, how in ((0, "shuffled"), (classes, f"{classes} runs of one class")):
            values = sorted_accuracies(records, norm, count)
            rows.append(
                {"norm": NAMES[norm], "batches": how, "by": "running statistics", "test accuracy, %": _mean(values)}
            )
    values = sorted_accuracies(records, "bn", classes, "batch_accuracy")
    rows.append(
        {"norm": "BN", "batches": f"{classes} runs of one class", "by": "the batch", "test accuracy, %": _mean(values)}
    )
    for name, value in REPORTED_SORTED.items():
        rows.append(
            {"norm": f"{name} (source: ImageNet)", "batches": None, "by": None, "test accuracy, %": _one(value)}
        )
    title = f"Test accuracy by the composition of batches; mean and 95% interval over n = {n} seeds"
    return [first, Table("composition", title, rows)]


def _mean(values: dict[int, float]) -> Interval:
    return t_interval(list(values.values()))


def _one(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"), 1)
