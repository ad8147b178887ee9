# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # For a researcher: runs and claims as tables
#
# Everything that is stored is text: CSV for runs and curves, JSON for claims. Only the last cells need the package.
# Results are read from the folder `results` where the notebook is started, or from the one that `BNREPRO_RESULTS`
# names.

# %%
import csv
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

from matplotlib import pyplot

results = Path(os.environ.get("BNREPRO_RESULTS", "results"))
if not (results / "claims.json").is_file():
    raise SystemExit(
        f"There is no {results / 'claims.json'}. Results are not part of the package: name the folder results of a "
        "clone (BNREPRO_RESULTS=FOLDER), or make some with `bnrepro reproduce labml && bnrepro report`."
    )
claims = json.loads((results / "claims.json").read_text(encoding="utf-8"))
print(len(claims), "claims with", len(claims[0]), "fields each")

# %% [markdown]
# ## Claims into a table

# %%
verdicts = list(dict.fromkeys(claim["verdict"] for claim in claims))
print(f"{'':18s}" + "".join(f"{verdict[:16]:>18s}" for verdict in verdicts))
for paper in dict.fromkeys(claim["paper"] for claim in claims):
    counts = Counter(claim["verdict"] for claim in claims if claim["paper"] == paper)
    print(f"{paper:18s}" + "".join(f"{counts[verdict] or '':>18}" for verdict in verdicts))

# %% [markdown]
# Empirical claims that were judged, with the effect that decided. `margin` is the smallest effect that matters, so
# effects of different units compare in units of it. With pandas the same is `pandas.json_normalize(claims)`.

# %%
rows = []
for claim in claims:
    if claim["kind"] == "empirical" and claim["deciding"] is not None and claim["margin"]:
        effect = claim["effects"][claim["deciding"]]
        if not effect["ratio"] and effect["low"] is not None:
            rows.append(
                (
                    claim["id"],
                    claim["verdict"],
                    effect["n"],
                    *(effect[k] / claim["margin"] for k in ("low", "mean", "high")),
                )
            )
rows.sort(key=lambda row: row[4])
print(f"{'claim':22s}{'verdict':18s}{'n':>3s}   effect in margins")
for name, verdict, n, low, mean, high in rows[:: max(1, len(rows) // 12)]:
    print(f"{name:22s}{verdict:18s}{n:3d}   {mean:6.1f} [{low:.1f}, {high:.1f}]")

# %% [markdown]
# ## Runs into a table
#
# `runs.csv` has one row per run. Differences between variants are paired by seed, because all variants of a seed share
# initial weights and batches.

# %%
from bnrepro.stats import t_interval  # noqa: E402

accuracy: dict[str, dict[int, float]] = defaultdict(dict)
runs = results / "mnist5k" / "runs.csv"
if runs.is_file():
    with runs.open(newline="") as stream:
        for row in csv.DictReader(stream):
            accuracy[row["variant"]][int(row["seed"])] = 100 * float(row["test_accuracy"])
else:
    print(f"There is no {runs}; `bnrepro compare --out={runs.parent}` makes it.")
for variant, seeds in accuracy.items():
    mine = t_interval(list(seeds.values()))
    paired = t_interval([value - accuracy["nobn"][seed] for seed, value in seeds.items()])
    difference = (
        "" if variant == "nobn" else f"   minus nobn {paired.mean:5.2f} [{paired.low:5.2f}, {paired.high:5.2f}]"
    )
    print(f"{variant:9s} {mine.mean:.2f} [{mine.low:.2f}, {mine.high:.2f}], n = {mine.n}{difference}")

# %% [markdown]
# ## A figure of your own
#
# A forest plot: each claim's deciding effect in units of its margin. Effects right of the shaded band matter.

# %% alt="Forest plot of deciding effects in units of their margins, with the band from -1 to 1 shaded."
shown = [row for row in rows if abs(row[4]) < 12 and row[5] - row[3] < 20]
colours = {"reproduced": "#0b6b3a", "partly": "#7a5200", "not reproduced": "#a3192a"}
figure, axes = pyplot.subplots(figsize=(6.5, 0.2 * len(shown) + 1), layout="constrained")
axes.axvspan(-1, 1, color="#e5e9ee")
axes.axvline(0, color="black", linewidth=0.8)
for place, (_, verdict, _, low, mean, high) in enumerate(shown):
    axes.plot([low, high], [place, place], color=colours.get(verdict, "#4a5568"))
    axes.plot(mean, place, "s", color=colours.get(verdict, "#4a5568"), markersize=4)
axes.set(yticks=range(len(shown)), xlabel="effect / margin", ylim=(-1, len(shown)), xlim=(-15, 15))
axes.set_yticklabels([f"{name} ({verdict})" for name, verdict, *_ in shown], fontsize=7)

# %% [markdown]
# ## Judge again, with another margin
#
# The rule is a function. Give it the seeds of an effect, and ask what the verdict would be at half the margin.

# %%
from bnrepro.claims import Values, greater  # noqa: E402
from bnrepro.claims.evidence import judge  # noqa: E402

for claim in claims:
    if (
        claim["rule"] == "greater"
        and claim["margin"]
        and len(claim["effects"]) == 1
        and not claim["effects"][0]["ratio"]
    ):
        effect = claim["effects"][0]
        values = Values.of_rows([{"seed": int(s), "v": v} for s, v in effect["seeds"].items()], "v")
        found = [
            judge(
                greater(values, "", "", bar=effect["bar"], margin=max(effect["bar"], factor * effect["margin"]))
            ).verdict
            for factor in (0.5, 1.0, 2.0)
        ]
        print(f"{claim['id']:20s} at half, once and twice the margin: {', '.join(found)}")
