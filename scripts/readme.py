"""Writes the tables of the README and of docs/results.md from results/: ``python scripts/readme.py``."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from bnrepro.claims.conclusion import KINDS, SCALES
from bnrepro.claims.evidence import Verdict
from bnrepro.report.questions import stale
from bnrepro.report.wording import unrun

ROOT = Path(__file__).parent.parent
RESULTS = [
    ("mnist5k", "MNIST-5k, 10 epochs", "`labml_cnn`"),
    ("mnist", "MNIST, 3 epochs", "`labml_cnn`"),
    ("cifar10", "CIFAR-10 (97 of 60,000 images JPEG stand-ins), 6 epochs", "`vgg_small`, half width"),
]


def with_tables(text: str, page: str) -> str:
    """``text`` of ``page`` with each table between ``<!-- name -->`` and ``<!-- end of name -->`` written anew."""
    for name, table in PAGES[page].items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if not (start in text and end in text):
            raise SystemExit(f"{page} has no lines {start.strip()} and {end}: put them where the table belongs.")
        before, rest = text.split(start)
        text = f"{before}{start}{table()}\n{rest[rest.index(end) :]}"
    return text


def stored_claims() -> list[dict[str, Any]]:
    """The rows of results/claims.json."""
    found: list[dict[str, Any]] = json.loads((ROOT / "results/claims.json").read_text(encoding="utf-8"))
    return found


def results_table() -> str:
    """Accuracies by dataset and norm, from the tables in results/."""
    lines = [
        "| data | network | variant | n | test accuracy, % | minus `nobn` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title, network in RESULTS:
        with (ROOT / "results" / name / "table.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                accuracy, difference = (_between(row, column) for column in ("test_accuracy", "minus_nobn"))
                lines.append(f"| {title} | {network} | `{row['variant']}` | {row['n']} | {accuracy} | {difference} |")
                title = network = ""
    return "\n".join(lines)


def sizes_table() -> str:
    """Accuracies at other image sizes, from results/."""
    with (ROOT / "results/other_sizes/table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    sizes = [size for size in dict.fromkeys(row["size"] for row in rows) if 20 <= int(size) <= 40]
    lines = [f"| variant | statistics | {' | '.join(sizes)} |", "| --- " * (2 + len(sizes)) + "|"]
    for variant, statistics in dict.fromkeys((row["variant"], row["statistics"]) for row in rows):
        mine = {row["size"]: row for row in rows if (row["variant"], row["statistics"]) == (variant, statistics)}
        cells = []
        for size in sizes:
            mean, low, high = (100 * float(mine[size][f"test_accuracy_{end}"]) for end in ("mean", "low", "high"))
            cells.append(f"{mean:.0f} [{low:.0f}, {high:.0f}]")
        lines.append(f"| `{variant}` | `{statistics}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def findings_table() -> str:
    """Three verdicts that few expect, from results/claims.json."""
    return _answers("santurkar2018/S3", "cohen2021/E4", "numpynet/N4.5")


def _answers(*ids: str) -> str:
    claims = {claim["id"]: claim for claim in stored_claims()}
    lines = ["| | claim | found | verdict |", "| --- | --- | --- | --- |"]
    for claim in (claims[id] for id in ids):
        verdict = f"{claim['verdict']} ({claim['scale']})"
        lines.append(f"| `{claim['id']}` | {claim['sentence']} | {claim['answer']} | {verdict} |")
    return "\n".join(lines)


SHORT = {
    "yes": (Verdict.reproduced,),
    "partly": (Verdict.partly,),
    "no": (Verdict.not_reproduced,),
    "open": (Verdict.inconclusive,),
    "none": (Verdict.not_testable, Verdict.too_short),
}
"""The verdicts' columns in the README."""


SHOWN = {
    "conv_batchnorm": "lmcintosh/conv-batchnorm, the local gain",
    "keras_curves": "dksakkos/BatchNorm, curves in Keras",
    "labml": "labml.ai's annotated layer",
    "numpynet": "NumPyNet's layer",
    "placement": "Notes on batch normalization",
    "ioffe2015": "Ioffe & Szegedy 2015",
    "santurkar2018": "Santurkar et al. 2018",
    "bjorck2018": "Bjorck et al. 2018",
    "wu2018": "Wu & He 2018, Ioffe 2017",
}
"""The README's rows: the sources that the project began with, and the papers that are cited most."""


def verdicts_table() -> str:
    """Verdicts by paper, from results/claims.json: those in ``SHOWN``, and all others in one row."""
    claims = stored_claims()
    others = {claim["paper"] for claim in claims} - SHOWN.keys()
    old = sum(is_old(claim) for claim in claims)
    missing = sum(map(unrun, claims))
    provisional = (
        f"{old} of {len(claims)} verdicts are provisional: the runs of the registered design are still to be made "
        "(rows with a star hold some)."
    )
    awaits = "awaits its runs, and counts" if missing == 1 else "await their runs, and count"
    nothing = f"{missing} of the {len(claims)} claims {awaits} as open."
    said = " ".join([provisional] * (old > 0) + [nothing] * (missing > 0))
    lines = [
        *([said, ""] if said else []),
        f"| source | {' | '.join(SHORT)} |",
        f"| --- |{' --: |' * len(SHORT)}",
    ]
    named = {f"[{title}](results/REPORT.md#{paper}), `{paper}`": {paper} for paper, title in SHOWN.items()}
    for title, papers in (named | {f"{len(others)} other papers": others}).items():
        mine = [claim for claim in claims if claim["paper"] in papers]
        lines.append(_counts(f"{title} *" if any(map(is_old, mine)) else title, mine))
    return "\n".join([*lines, _counts("**all**", claims)])


def _counts(title: str, claims: list[dict[str, Any]]) -> str:
    """A row: how many of these claims have each verdict."""
    counts = Counter(claim["verdict"] for claim in claims)
    numbers = [sum(counts[verdict] for verdict in verdicts) for verdicts in SHORT.values()]
    return f"| {title} | {' | '.join(str(number or '') for number in numbers)} |"


def is_old(claim: dict[str, Any]) -> bool:
    """Whether a claim's verdict is withdrawn, or of a design before the registered one."""
    return claim["withdrawn"] is not None or stale(claim) is not None


def kinds_table() -> str:
    """Verdicts by kind and scale, from results/claims.json."""
    claims = stored_claims()
    verdicts = [verdict for verdict in Verdict if any(claim["verdict"] == verdict for claim in claims)]
    lines = [f"| kind | scale | {' | '.join(verdicts)} |", "| --- " * (2 + len(verdicts)) + "|"]
    for kind, scale in product(KINDS, SCALES):
        counts = Counter(claim["verdict"] for claim in claims if (claim["kind"], claim["scale"]) == (kind, scale))
        if counts:
            lines.append(f"| {kind} | {scale} | {' | '.join(str(counts[verdict] or '') for verdict in verdicts)} |")
    return "\n".join(lines)


def costs_table() -> str:
    """What takes seconds, minutes and hours, with times beside plain PyTorch's from results/bench."""
    found = {}
    for file, name in (("epoch", "bnrepro"), ("compare", "bnrepro compare")):
        with (ROOT / f"results/bench/{file}.csv").open(newline="") as stream:
            times = {row["what"]: float(row["seconds"]) for row in csv.DictReader(stream)}
        found[file] = times[name], next(taken for what, taken in times.items() if what.endswith("plain PyTorch"))
    (ours, plain), (compared, as_many) = found["epoch"], found["compare"]
    lines = [
        "| on two cores: seconds | minutes | hours |",
        "| --- | --- | --- |",
        f"| `train` (an epoch of MNIST {ours:.0f}, plain PyTorch {plain:.0f}); preset `smoke` | `compare` (20 epochs "
        f"of MNIST {compared / 60:.1f}, plain PyTorch {as_many / 60:.1f}); `pytest`; preset `quick`; 90% on CIFAR-10 | "
        "preset `full`, the evidence |",
    ]
    return "\n".join(lines)


def speed_table() -> str:
    """Whole commands beside plain PyTorch, from results/bench."""
    lines = ["| task | processor | plain PyTorch | float32 | bf16 |", "| --- | --- | --- | --- | --- |"]
    for file, title in SPEED.items():
        table = ROOT / f"results/bench/{file}.csv"
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        processor = re.search(r"AMD EPYC|Intel\(R\) Xeon\(R\)", table.with_suffix(".txt").read_text(encoding="utf-8"))
        times = {row["what"]: float(row["seconds"]) for row in rows}
        plain = next(taken for what, taken in times.items() if what.endswith("plain PyTorch"))
        cells = [
            next((f"{taken:.0f} s ({plain / taken:.1f}x)" for what, taken in times.items() if what in names), "")
            for names in (("bnrepro", "bnrepro compare"), ("bnrepro, bf16", "bnrepro compare, bf16"))
        ]
        named = processor[0].replace("(R)", "") if processor else ""
        lines.append(f"| {title} | {named} | {plain:.0f} s | {' | '.join(cells)} |")
    return "\n".join(lines)


SPEED = {
    "epoch": "an epoch of MNIST, labml's CNN",
    "compare": "`compare` of 20 such runs (plain: 20 epochs)",
    "recipe": "an epoch of CIFAR-10, `recipe=cifar_fast`",
    "xeon/epoch": "an epoch of MNIST, labml's CNN",
    "xeon/recipe": "an epoch of CIFAR-10, `recipe=cifar_fast`",
}


def _between(row: dict[str, str], column: str) -> str:
    if not row[f"{column}_mean"]:
        return ""
    mean, low, high = (100 * float(row[f"{column}_{end}"]) for end in ("mean", "low", "high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


PAGES = {
    "README.md": {"verdicts": verdicts_table, "findings": findings_table, "costs": costs_table},
    "docs/results.md": {
        "results": results_table,
        "other sizes": sizes_table,
        "kinds": kinds_table,
        "speed": speed_table,
    },
}
"""The tables of each page, by their names."""


if __name__ == "__main__":
    for page in PAGES:
        file = ROOT / page
        file.write_text(with_tables(file.read_text(encoding="utf-8"), page), encoding="utf-8")
