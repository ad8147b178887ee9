"""NumPyNet's layer: its mended forms, its claims judged on made-up and on real records, the swap that flips them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bnrepro.experiments.base import Analysis, Experiment, Records, Verdict
from bnrepro.experiments.cells import equal_everywhere, greater_everywhere
from bnrepro.experiments.numpynet import EXPERIMENT, layer, measurements
from bnrepro.experiments.numpynet.analysis import BY_ID
from bnrepro.experiments.numpynet.layer import GRADIENTS, NumPyNetNorm, closed_form, published, text_backward
from bnrepro.experiments.reproduce import settings
from bnrepro.norm.oracle import Array, batch_norm_backward, batch_norm_forward, seed004_backward
from bnrepro.stats import t_interval

SMALL = {"seeds": 3, "networks": ["narrow"], "learning_rates": [0.1], "steps": 60, "own_test_draws": 1, "values": 1}


def measured(experiment: Experiment, **changed: Any) -> Records:
    """The records of the smoke preset with some settings changed, measured here."""
    chosen = settings(experiment, "smoke") | changed
    rows = [
        {"part": probe.part, **probe.factors, "seed": probe.seed, **row}
        for probe in experiment.probes(chosen)
        for row in probe.function(seed=probe.seed, **probe.arguments)
    ]
    return Records("smoke", chosen, [], [], rows, {})


@pytest.fixture(scope="module")
def as_published() -> Records:
    return measured(EXPERIMENT, **SMALL)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The source's backward replaced by ours, in NumPy."""
    monkeypatch.setattr(measurements, "seed004_backward", right_backward)
    return monkeypatch


def right_backward(x: Array, scales: Array, delta: Array, epsil: float) -> tuple[Array, Array | None, Array | None]:
    bias = np.zeros_like(scales)
    return batch_norm_backward(delta, batch_norm_forward(x, scales, bias, (0,), epsil)[1])


def verdicts(records: Records) -> dict[str, Verdict]:
    return {finding.claim.id: finding.verdict for finding in EXPERIMENT.analyse(records).findings}


def example(shape: tuple[int, ...] = (5, 4, 3, 2), seed: int = 0) -> tuple[Array, Array, Array]:
    generator = np.random.default_rng(seed)
    return generator.normal(2, 3, shape), generator.uniform(0, 1, shape[1:]), generator.uniform(0, 1, shape)


# --- the layer ---


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (3, 1, 1, 1), (8, 2, 2, 2)])
def test_published_lines_are_the_oracles_and_mended_twice_are_exact(shape: tuple[int, ...]) -> None:
    x, scales, delta = example(shape)
    exact = right_backward(x, scales, delta, layer.EPSIL)[0]
    assert np.array_equal(published(x, scales, delta).delta, seed004_backward(x, scales, delta)[0])
    both = published(x, scales, delta, batch_invn=True, summed_dmu=True).delta
    assert both == pytest.approx(exact, rel=1e-10, abs=1e-14)
    assert text_backward(x, scales, delta) == pytest.approx(exact, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("mended", [{}, {"batch_invn": True}, {"summed_dmu": True}])
def test_closed_form_is_what_the_lines_compute(mended: dict[str, bool]) -> None:
    x, scales, delta = example()
    name = {(): "code", ("batch_invn",): "invN", ("summed_dmu",): "sum"}[tuple(mended)]
    assert closed_form(x, scales, delta, name) == pytest.approx(published(x, scales, delta, **mended).delta, rel=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_torch_layer_is_the_gradient_that_it_is_called(gradient: str) -> None:
    x, scales, delta = example()
    assert measurements._layer_error(gradient, x, scales, delta) < 1e-12


def test_all_gradients_share_forward_and_parameter_gradients() -> None:
    x, scales, delta = example()
    outputs = []
    for gradient in GRADIENTS:
        norm = NumPyNetNorm(x.shape[1:], gradient).double().eval()
        norm.scales.data = torch.tensor(scales)
        y = norm(torch.tensor(x))
        y.backward(torch.tensor(delta))
        assert norm.scales.grad is not None
        assert norm.shift.grad is not None
        outputs.append([t.detach().numpy() for t in (y, norm.scales.grad, norm.shift.grad)])
    for output in outputs[1:]:
        for a, b in zip(outputs[0], output, strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-12)


# --- probes ---


def test_finite_differences_of_a_cubic() -> None:
    at = np.array([[1.0, -2.0], [0.5, 3.0]])
    assert measurements._differences(lambda a: float((a**3).sum()), at) == pytest.approx(3 * at**2, rel=1e-6)


def test_wrong_gradient_is_239_percent_off_on_the_sources_example() -> None:
    rows = measurements.wrong_gradient(0, [5, 100, 100, 3], "uniform", 1)
    found = {(row["quantity"], row["x"]): row["value"] for row in rows}
    assert found["relative_error", None] == pytest.approx(2.39, abs=0.05)
    assert found["cosine", None] == pytest.approx(0.386, abs=0.01)
    assert found["to_detached", None] < 1e-3
    assert found["to_closed_form", None] < 1e-12
    assert found["mended_error", "both"] < 1e-12
    assert min(found["mended_error", "invN"], found["mended_error", "sum"]) > 0.5


def test_squared_numerator_has_the_moments_of_chi_squared() -> None:
    found = measurements._squared_numerator(0)
    assert found["squared/mean"] == pytest.approx(1, abs=0.02)
    assert found["squared/std"] == pytest.approx(2**0.5, abs=0.03)
    assert found["squared/negative"] == 0


def test_networks_start_alike_and_keep_their_biases() -> None:
    _, data = measurements._digits()
    for name in ("conv", "wide", "narrow"):
        a, b = (measurements.make_network(name, g, data, torch.Generator().manual_seed(3)) for g in ("exact", "code"))
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)
        norms = [m for m in a if isinstance(m, NumPyNetNorm)]
        assert tuple(norm.scales.numel() for norm in norms) == measurements.locations(name)
        assert all(m.bias is not None for m in a if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))


def test_measurements_are_the_same_twice() -> None:
    arguments = {"network": "narrow", "lr": 0.1, "gradient": "code", "steps": 5, "batch_size": 32, "every": 5}
    assert measurements.training(1, **arguments) == measurements.training(1, **arguments)
    assert measurements.own_test(1, 1) == measurements.own_test(1, 1)


# --- verdicts ---


def test_the_published_layer_is_judged_as_it_is(as_published: Records) -> None:
    assert verdicts(as_published) == {
        "N4.1": Verdict.reproduced,
        "N4.2": Verdict.not_reproduced,
        "N4.3": Verdict.reproduced,
        "N4.4": Verdict.reproduced,
        "N4.5": Verdict.not_reproduced,
        "N4.6": Verdict.not_reproduced,
        "N4.7": Verdict.reproduced,
        "N4.8": Verdict.reproduced,
        "N4.9": Verdict.reproduced,
        "N4.10": Verdict.not_reproduced,
        "N4.11": Verdict.reproduced,
        "N4.12": Verdict.inconclusive,  # no network here has many more locations than images
        "N4.13": Verdict.partly,  # it has grown; whether it goes on is not seen in 60 steps
        "N4.14": Verdict.partly,
        "N4.15": Verdict.not_reproduced,
        "N4.16": Verdict.not_reproduced,
        "N4.17": Verdict.reproduced,
        "N4.18": Verdict.not_reproduced,
    }


def test_our_gradient_in_place_of_the_seeds_flips_the_verdicts(
    as_published: Records, swapped: pytest.MonkeyPatch
) -> None:
    """What a wrong implementation is caught by: the same measurements of a right one come out otherwise."""
    swapped.setitem(layer.COEFFICIENTS, "code", lambda n, m: (1.0, 1.0))
    before, after = verdicts(as_published), verdicts(measured(EXPERIMENT, **SMALL))
    flipped = {claim: after[claim] for claim in before if before[claim] != after[claim]}
    assert flipped == {
        "N4.5": Verdict.reproduced,  # it is the derivative
        "N4.9": Verdict.not_reproduced,  # and not the detached one
        "N4.10": Verdict.reproduced,  # it trains as the exact one does
        "N4.13": Verdict.not_reproduced,  # the bias stays
        "N4.14": Verdict.not_reproduced,  # and the repository's test fails
        "N4.15": Verdict.reproduced,  # its deviation from that test's reference is not 1 / M
    }


def test_training_with_another_layer_than_the_sources_is_not_judged(swapped: pytest.MonkeyPatch) -> None:
    found = verdicts(measured(EXPERIMENT, **SMALL | {"steps": 10}))
    assert {found[f"N4.{i}"] for i in (10, 11, 12, 13)} == {Verdict.inconclusive}


def test_every_claim_has_a_finding_and_every_figure_can_be_drawn(as_published: Records) -> None:
    analysis: Analysis = EXPERIMENT.analyse(as_published)
    assert [finding.claim for finding in analysis.findings] == list(EXPERIMENT.claims)
    for table in analysis.tables:
        assert table.rows
        assert len({tuple(row) for row in table.rows}) == 1
    for picture in analysis.pictures:
        FigureCanvasAgg(picture.figure).draw()
        assert "n = 3" in picture.caption


def test_equality_everywhere_needs_every_cell() -> None:
    claim, same, worse, noisy = BY_ID["N4.10"], [0.0, 0.1, -0.1], [-9.0, -9.5, -10.0], [-9.0, 9.0, 0.5]

    def judged(**cells: list[float]) -> Verdict:
        return equal_everywhere(claim, cells, 1.0, "points", "difference").verdict

    assert judged(a=same, b=same) is Verdict.reproduced
    assert judged(a=same, b=worse) is Verdict.partly
    assert judged(a=worse, b=worse) is Verdict.not_reproduced
    assert judged(a=same, b=noisy) is Verdict.inconclusive
    assert judged(a=noisy, b=worse) is Verdict.not_reproduced
    assert judged() is Verdict.inconclusive
    # Beyond the margin by itself (p = 0.035 of two sides), and no more so beside nine others: Holm.
    just = [-3.0, -4.0, -5.0]
    assert judged(a=just) is Verdict.not_reproduced
    assert judged(a=just, **{str(i): noisy for i in range(9)}) is Verdict.inconclusive


def test_greater_everywhere_needs_every_cell() -> None:
    claim, more, less, noisy = BY_ID["N4.13"], [3.0, 3.1, 3.2], [0.0, 0.1, 0.2], [-2.0, 5.0, 1.0]

    def judged(**cells: list[float]) -> Verdict:
        return greater_everywhere(claim, cells, 1.0, "decades", "ratio").verdict

    assert judged(a=more, b=more) is Verdict.reproduced
    assert judged(a=more, b=less) is Verdict.partly
    assert judged(a=less, b=noisy) is Verdict.not_reproduced
    assert judged(a=more, b=noisy) is Verdict.inconclusive


def test_effect_of_many_cells_is_the_largest() -> None:
    finding = equal_everywhere(BY_ID["N4.10"], {"a": [0.1, 0.2], "b": [-5.0, -6.0]}, 1.0, "points", "difference")
    assert finding.effect == t_interval([-5.0, -6.0], 0.9)
    assert "a: " in finding.found
    assert "n=2" in finding.found


def test_one_seed_that_is_worse_makes_no_verdict(as_published: Records) -> None:
    alone = [row for row in as_published.measurements if row["part"] != "training" or row["seed"] == 0]
    found = verdicts(replace(as_published, measurements=alone))
    assert found["N4.10"] is Verdict.inconclusive


@pytest.mark.parametrize("preset", EXPERIMENT.presets)
def test_presets_ask_for_probes_that_differ(preset: str) -> None:
    chosen = settings(EXPERIMENT, preset)
    made = EXPERIMENT.probes(chosen)
    assert made == EXPERIMENT.probes(chosen)
    assert EXPERIMENT.arms(chosen) == []
    assert len({(p.part, str(p.factors), p.seed) for p in made}) == len(made)
    assert {p.seed for p in made} == set(range(chosen["seeds"]))
