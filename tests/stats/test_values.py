"""Numbers by factors and seed: selection, pairing, averages."""

from __future__ import annotations

import math

import pytest

from bnrepro.claims import Results, Values

ROWS = [
    {"part": "table", "variant": variant, "size": size, "seed": seed, "value": value + seed}
    for variant, size, value in (("bn", 8, 10.0), ("bn", 32, 20.0), ("nobn", 8, 1.0), ("nobn", 32, 2.0))
    for seed in (0, 1, 2)
]
VALUES = Values.of_rows(ROWS, "value", frozenset({"part"}))


def test_columns_are_factors_unless_they_are_empty() -> None:
    assert VALUES.factors == ("variant", "size")
    assert Values.of_rows([{"seed": 0, "value": 1.0, "x": None}], "value").factors == ()
    assert len(Values.of_rows([{"seed": 0, "value": None, "x": 1}], "value")) == 0


def test_two_values_of_one_place_are_an_error() -> None:
    with pytest.raises(ValueError, match="value is given twice for seed 0, part table, variant bn, size 8: tell"):
        Values.of_rows(ROWS + ROWS[:1], "value")


def test_selection() -> None:
    assert VALUES.at(variant="bn", size=8).seeds == {0: 10.0, 1: 11.0, 2: 12.0}
    assert VALUES.at(variant="bn", size=[8]).factors == ("size",)
    assert VALUES.levels("size") == [8, 32]
    assert VALUES.where(lambda v: v > 20).at(variant="bn").data == {((32,), 1): 21.0, ((32,), 2): 22.0}
    assert VALUES.at(variant="other").data == {}
    assert list(VALUES.by("size")) == [8, 32]
    assert (8, "bn") in VALUES.by("size", "variant")
    with pytest.raises(ValueError, match="there is no factor siez; there are variant, size"):
        VALUES.at(siez=8)
    with pytest.raises(ValueError, match="several values a seed, by variant, size"):
        _ = VALUES.seeds
    assert Values().at(anything=1).seeds == {}


def test_best_level_is_that_of_the_highest_mean() -> None:
    assert VALUES.at(variant="bn").best("size") == 32
    assert (-VALUES).at(size=8).best("variant") == "nobn"
    assert Values().best("size") is None
    assert Values().best("size", 8) == 8
    with pytest.raises(ValueError, match="several values a seed, by variant"):
        VALUES.best("size")
    with pytest.raises(ValueError, match="there is no factor rate"):
        VALUES.best("rate")


def test_differences_pair_seeds_and_levels() -> None:
    difference = VALUES.at(variant="bn") - VALUES.at(variant="nobn")
    assert difference.factors == ("size",)
    assert difference.at(size=32).seeds == {0: 18.0, 1: 18.0, 2: 18.0}
    fewer = Values((), {((), 0): 1.0, ((), 5): 1.0})
    assert (VALUES.at(variant="bn", size=8) - fewer).seeds == {0: 9.0}  # seeds that both have
    assert (VALUES - VALUES.at(variant="nobn")).at(variant="nobn", size=8).seeds == {0: 0.0, 1: 0.0, 2: 0.0}
    assert (VALUES.at(variant="nobn") - VALUES).at(variant="bn", size=8).seeds == {0: -9.0, 1: -9.0, 2: -9.0}
    assert len(VALUES - Values()) == 0
    with pytest.raises(ValueError, match="different factors"):
        _ = VALUES.at(size=8) - VALUES.at(variant="bn")


def test_a_factor_that_others_determine_can_be_left_out() -> None:
    rows = [{"arm": arm, "variant": arm.strip("x"), "seed": 0, "value": 1.0} for arm in ("bn", "bnx", "nobn")]
    values = Values.of_rows(rows, "value")
    assert values.without("variant", "nothing").factors == ("arm",)
    assert len(values.without("variant")) == 3
    with pytest.raises(ValueError, match="several values have the same factors"):
        values.without("arm")


def test_what_is_contrasted_is_left_out() -> None:
    one, other = VALUES.at(variant=["bn"], size=8), VALUES.at(variant=["nobn"], size=8)
    assert (one - other).factors == ()
    assert (one - other).seeds == {0: 9.0, 1: 9.0, 2: 9.0}
    assert (VALUES.at(size=[8]) - VALUES.at(size=[32])).factors == ("variant",)
    assert len(VALUES.at(variant=["bn"]) - VALUES.at(variant=["bn"])) == 6


def test_arithmetic() -> None:
    one = VALUES.at(variant="bn", size=8)
    assert (2 * one + 1).seeds == {0: 21.0, 1: 23.0, 2: 25.0}
    assert (1 - one).seeds[0] == (-one + 1).seeds[0] == -9.0
    assert (one / one).seeds == {0: 1.0, 1: 1.0, 2: 1.0}
    assert math.isinf((one / 0.0).seeds[0])
    assert math.isnan((0 * one / 0.0).seeds[0])
    assert one.log10().seeds[0] == pytest.approx(1.0)
    assert math.isnan((-one).log().seeds[0])
    assert (one - one).log().seeds[0] == -math.inf
    assert abs(-one).seeds == one.seeds


def test_averages_over_factors() -> None:
    assert VALUES.mean("size").at(variant="bn").seeds == {0: 15.0, 1: 16.0, 2: 17.0}
    assert VALUES.max().seeds == {0: 20.0, 1: 21.0, 2: 22.0}
    assert VALUES.min("variant").at(size=8).seeds[0] == 1.0


def test_a_function_along_a_factor_sees_the_levels_of_each_seed() -> None:
    slope = VALUES.along("size", lambda sizes, values: (values[1] - values[0]) / (sizes[1] - sizes[0]))
    assert slope.factors == ("variant",)
    assert slope.at(variant="bn").seeds == dict.fromkeys((0, 1, 2), 10 / 24)
    fewer = VALUES.where(lambda value: value != 10.0).along("size", lambda sizes, _: len(sizes))
    assert fewer.at(variant="bn").seeds == {0: 1, 1: 2, 2: 2}
    assert len(Values().along("size", lambda sizes, _: len(sizes))) == 0


def test_values_are_joined_in_whatever_order_their_factors_are() -> None:
    lost = Values(("rate", "norm"), {((0.1, "bn"), 0): 10.0, ((0.5, "bn"), 0): 10.0})
    found = Values(("norm", "rate"), {(("bn", 0.1), 0): 90.0, (("none", 0.1), 0): 80.0})
    both = lost | found
    assert both.at(norm="bn", rate=0.1).only() == 90.0
    assert both.at(norm="bn", rate=0.5).only() == 10.0
    assert both.at(norm="none", rate=0.1).only() == 80.0
    assert (found | lost).at(norm="bn", rate=0.1).only() == 10.0
    assert (lost | Values()) is lost
    assert (Values() | found) is found
    with pytest.raises(ValueError, match="different factors"):
        _ = lost | found.at(rate=0.1)


def test_cells_are_named_by_what_differs() -> None:
    assert list(VALUES.cells()) == ["bn, size 8", "bn, size 32", "nobn, size 8", "nobn, size 32"]
    assert list(VALUES.at(variant=["bn"]).cells()) == ["size 8", "size 32"]
    assert list(VALUES.at(variant="bn", size=[8]).cells()) == [""]
    assert Values().cells() == {}


def test_intervals() -> None:
    found = VALUES.at(variant="bn").intervals("size")
    assert [interval.mean for interval in found.values()] == [11.0, 21.0]
    assert found[8].n == 3


def test_results_select_by_factors_and_leave_out_what_did_not_complete() -> None:
    run = {"part": "table", "variant": "bn", "status": "completed", "test_accuracy": 0.9, "test_loss": 1.0, "seed": 0}
    runs = [run, run | {"seed": 1, "status": "diverged", "test_accuracy": None}, run | {"seed": 2, "status": "failed"}]
    row = {"part": "m", "seed": 0, "quantity": "error", "x": None, "value": 1.0}
    results = Results("full", runs, [], [row, row | {"x": 1, "quantity": "shift"}])
    assert results.test_accuracy(part="table", variant="bn").seeds == {0: 90.0}
    assert results.diverged(part="table", variant="bn").seeds == {0: 0.0, 1: 1.0}
    by_norm = [run | {"norm": "own", "seed": seed} for seed in (0, 1)] + [run | {"norm": "none", "variant": "nobn"}]
    values = Results("full", by_norm, [], []).test_accuracy(part="table")  # has the factors variant and norm
    assert (values.at(norm="own") - values.at(norm="none")).seeds == {0: 0.0}
    assert results.measured("error", part="m").seeds == {0: 1.0}
    assert results.measured("shift", part="m").levels("x") == [1]
    assert len(results.measured("other")) == 0


def test_stacked_groups_are_levels_of_a_further_factor() -> None:
    groups = {name: Values(("x",), {((1,), 0): value}) for name, value in {"a": 2.0, "b": 3.0}.items()}
    stacked = Values.stacked("group", {**groups, "none": Values()})
    assert stacked.factors == ("x", "group")
    assert {name: group.data for name, group in stacked.by("group").items()} == {n: g.data for n, g in groups.items()}
    assert not Values.stacked("group", {"a": Values()})
    with pytest.raises(ValueError, match="different factors"):
        Values.stacked("group", {"a": groups["a"], "b": groups["b"].at(x=1)})
