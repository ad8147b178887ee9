"""The largest eigenvalue of a Hessian: against torch's dense one, of known spectra, of scaled weights before a norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.training.sharpness import hessian_product, largest_eigenvalue, sharpness


def network_and_data(norm: bool) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4), *([nn.BatchNorm1d(4, eps=1e-12)] if norm else []), nn.Tanh(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).double(), torch.randn(12, 5).double(), torch.randint(3, (12,))


@pytest.mark.parametrize("norm", [False, True])
def test_it_is_that_of_the_dense_hessian(norm: bool) -> None:
    network, x, y = network_and_data(norm)
    parameters = dict(network.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def of_vector(v: Tensor) -> Tensor:
        parts = zip(parameters.items(), v.split(sizes), strict=True)
        given = {name: part.view(p.shape) for (name, p), part in parts}
        return F.cross_entropy(torch.func.functional_call(network, given, (x,)), y)

    point = torch.cat([p.detach().flatten() for p in parameters.values()])
    dense = torch.autograd.functional.hessian(of_vector, point)
    want = float(torch.linalg.eigvalsh(dense)[-1])
    found = sharpness(lambda: F.cross_entropy(network(x), y), parameters.values(), iterations=100, tolerance=1e-12)
    assert found == pytest.approx(want, rel=1e-8)
    v = torch.randn(len(point)).double()
    product = hessian_product(lambda: F.cross_entropy(network(x), y), list(parameters.values()))
    torch.testing.assert_close(product(v), dense @ v)
    assert sharpness(lambda: F.cross_entropy(network(x), y), parameters.values()) == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("spectrum", [[3.0, -7.0, 1.0], [-1.0, -2.0, -5.0], [4.0, 4.0, 4.0], [2.5]])
def test_it_is_the_largest_and_not_the_largest_in_size(spectrum: list[float]) -> None:
    eigenvalues = torch.tensor(spectrum, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64)).Q
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    found = largest_eigenvalue(lambda v: matrix @ v, len(spectrum), tolerance=0.0)
    assert found == pytest.approx(max(spectrum), rel=1e-9)


def test_more_products_come_nearer_from_below_and_the_same_seed_gives_the_same() -> None:
    eigenvalues = torch.linspace(0, 1, 200).double() ** 4
    values = [largest_eigenvalue(lambda v: eigenvalues * v, 200, iterations=n, tolerance=0.0) for n in (3, 6, 12, 40)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1, rel=1e-6)
    assert values[0] < 0.99
    assert largest_eigenvalue(lambda v: eigenvalues * v, 200, iterations=6, tolerance=0.0) == values[1]


def test_torchs_defaults_change_nothing(torchs_defaults: Callable[[], AbstractContextManager[None]]) -> None:
    network, x, y = network_and_data(norm=True)
    wanted = sharpness(lambda: F.cross_entropy(network(x), y), network.parameters(), iterations=2)
    with torchs_defaults():
        assert sharpness(lambda: F.cross_entropy(network(x), y), network.parameters(), iterations=2) == wanted


def test_a_loss_that_is_linear_has_none_and_one_that_is_no_number_says_so() -> None:
    w = torch.ones(3, requires_grad=True)
    assert sharpness(lambda: w.sum(), [w]) == 0
    assert math.isnan(sharpness(lambda: (w * math.inf).square().sum(), [w]))


def test_weights_before_a_norm_are_sharper_by_the_square_of_their_smallness() -> None:
    """The spherical sharpness of Lyu et al.: |w|^2 times the sharpness is that of w / |w|."""
    network, x, y = network_and_data(True)
    w = network[0].weight
    values = []
    for scale in (1.0, 3.0):
        with torch.no_grad():
            w.mul_(scale)
        found = sharpness(lambda: F.cross_entropy(network(x), y), [w], iterations=60, tolerance=1e-12)
        values.append(found * float(w.detach().square().sum()))
    assert values[0] == pytest.approx(values[1], rel=1e-7)
