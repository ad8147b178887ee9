"""The benchmarks: what they compute from times, and that every part runs. No test here depends on a speed."""

import csv
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from bnrepro.bench import layers, output, pipeline, seeds, timing
from bnrepro.errors import UserError
from bnrepro.norm import NORMS
from bnrepro.report import compare, report
from bnrepro.runs import index, record


def test_steps_take_turns_and_the_median_is_of_those_after_the_warm_up():
    calls = []
    times = timing.in_turn({"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.01))}, 4)
    assert calls == ["a", "b"] * (4 + timing.WARM_UP)
    assert times["a"] < times["b"]
    assert 10 <= times["b"] < 1000


def test_ratios_are_those_of_the_medians(monkeypatch):
    monkeypatch.setattr(layers, "SHAPES", ((2, 3, 4, 5),))
    monkeypatch.setattr(layers, "in_turn", lambda steps, *_: dict(zip(steps, (0.5, 4.0, 3.0, 6.0), strict=True)))
    rows = layers.layers(["custombn", "convbn"], 5, "cpu").rows
    assert [row["norm"] for row in rows] == ["custombn", "convbn"] * 2
    assert [row["over_bn"] for row in rows[:2]] == [0.75, 1.5]
    assert [row["over_floor"] for row in rows[:2]] == [1.5, 3.0]  # the floor is 8 passes, a copy 2
    assert {row["shape"] for row in rows} == {"2x3x4x5"}


class _Hungry(nn.Module):
    """Keeps 4 MiB an image from forward to backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        big = torch.ones(len(x) * 2**20)
        return x * big[0]


def _hungry(*_: object, **__: object) -> nn.Module:
    return _Hungry()


def peak_with_a_hungry_norm() -> int:
    NORMS["hungry"] = _hungry
    return layers._peak("hungry", (16, 3, 4, 5), "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.slow
def test_memory_that_a_layer_takes_is_seen():
    # The memory of the first step of `_peak`, of two images, stays with the process and is used again.
    assert timing.alone(peak_with_a_hungry_norm) >= 0.9 * (16 - 2) * 4 * 2**20
    assert timing.alone(_peak_of, 2**24) >= 0.9 * 4 * 2**24


def _peak_of(count: int) -> int:
    timing.forget_peak()
    before = timing.resident()
    torch.ones(count)
    return timing.resident(peak=True) - before


def test_layers_are_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "SHAPES", ((4, 3, 4, 4), (8, 5)))
    monkeypatch.setattr(layers, "BATCHES", ((4, 3, 4, 4), (8, 3, 4, 4)))
    monkeypatch.setattr(layers, "CHANNELS", ((4, 3, 4, 4), (4, 6, 4, 4)))
    for table in output.run(["layers"], ["bn", "custombn", "convbn"], [], 2, "cpu"):
        output.write(table, tmp_path)
        assert table.title in output.text(table)
    with (tmp_path / "layers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["norm"], row["shape"], row["dtype"]) for row in rows} == {
        (norm, shape, dtype)
        for norm in ("bn", "custombn", "convbn")
        for shape in ("4x3x4x4", "8x5")
        for dtype in ("float32", "bfloat16")
    }
    for name in ("layers", "layers_growth"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_memory_is_over_torchs(monkeypatch):
    monkeypatch.setattr(layers, "alone", lambda _f, norm, *_: {"bn": 100, "custombn": 150}[norm])
    assert [row["over_bn"] for row in layers.memory(["custombn", "bn"], "cpu").rows] == [1.5, 1.0] * 2


@pytest.mark.parametrize(("parts", "norms", "word"), [(["speed"], ["bn"], "speed"), (["layers"], ["bm"], "bm")])
def test_unknown_names_are_told(parts, norms, word):
    with pytest.raises(UserError, match=word):
        next(output.run(parts, norms, [], 1, "cpu"))


@pytest.mark.slow
def test_an_epoch_is_measured_beside_the_plain_loop(digits, monkeypatch):
    monkeypatch.setattr(pipeline, "OURS", {"bnrepro": ()})
    data = [
        "data=mnist5k",
        "data.source=npz",
        f"data.path={digits}",
        "data.val_fraction=0.01",
        "batch_size=10",
        "model.width=0.2",
    ]
    rows = pipeline.epoch(data, 1).rows
    assert [row["what"] for row in rows] == [pipeline.PLAIN, *pipeline.OURS]
    assert all(row["over_plain"] == pytest.approx(row["seconds"] / rows[0]["seconds"], rel=0.1) for row in rows)


def test_made_up_runs_can_be_listed_compared_and_reported(tmp_path: Path):
    pipeline.made_up(tmp_path, 10)
    assert len(index.select(tmp_path, [index.condition("status=completed")])) == 10
    runs = [record.Run(path.parent) for path in tmp_path.rglob(record.SUMMARY)]
    assert len(compare.table(compare.collect(runs))) == 4
    compare.save(compare.collect(runs), tmp_path / "results" / "made_up")
    assert all("invented numbers" in file.read_text() for file in report.write(tmp_path / "results")[1:])


def test_stacked_and_separate_training_are_measured(monkeypatch):
    monkeypatch.setattr(seeds, "alone", lambda function, *arguments: function(*arguments))
    threads = torch.get_num_threads()
    rows = seeds.stacked(seeds=2, steps=2).rows
    torch.set_num_threads(threads)
    assert {(row["model"], row["variant"]) for row in rows} == {
        (model, variant) for model in ("paper_mlp", "lenet") for variant in ("nobn", "bn")
    }
    assert all(row["times_as_fast"] > 0 for row in rows)


@pytest.mark.slow
def test_step_times_are_measured_against_every_size(monkeypatch):
    monkeypatch.setattr(pipeline, "in_turn", lambda steps, *_: {name: (step(), 1.0)[1] for name, step in steps.items()})
    whole = pipeline.made_up
    monkeypatch.setattr(pipeline, "made_up", lambda root, count: whole(root, min(count, 20)))
    monkeypatch.setattr(pipeline, "_call", lambda _: None)
    monkeypatch.setattr(pipeline, "alone", lambda _, sizes: [1e6 * n for n in range(len(sizes))])
    rows = pipeline.growth(1).rows
    assert {row["along"] for row in rows} == {"batch", "channels", "depth", "runs"}
    assert [row["value"] for row in rows if row["what"] == "bnrepro report"] == [10, 100, 1000]
    assert [row["megabytes"] for row in rows if row["along"] == "depth"] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_peak_of_a_step_holds_what_its_backward_needs() -> None:
    sizes = [(128, 32, 4), (128, 32, 8), (256, 32, 8)]  # what the libraries take beside is small against these
    peaks = timing.alone(pipeline._stack_peaks, sizes)
    for (batch, channels, depth), peak in zip(sizes, peaks, strict=True):
        one = 4 * batch * channels * 16 * 16
        assert 2 * depth * one <= peak < 8 * depth * one  # the inputs of norm and of convolution are kept
