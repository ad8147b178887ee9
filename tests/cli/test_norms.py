"""`bnrepro norms` says of each layer what it does, found out by running it."""

from __future__ import annotations

import json

import pytest
import torch

from bnrepro.cli.norms import NORMS as DESCRIBED
from bnrepro.norm import NORMS
from tests.conftest import Call

SHAPES = {"-": set(), "C": {(16,)}, "C H W": {(16, 6, 6)}, "C, alpha": {(16,), (1,)}}
# What one changed value reaches, by the axes of the statistics: another image, channel, location.
REACH = {
    "-": (False, False, False),
    "N H W": (True, False, True),
    "N": (True, False, False),
    "N window": (True, False, True),
    "part of N, H W": (True, False, True),
    "group of C, H W": (False, True, True),
    "C H W": (False, True, True),
    "H W": (False, False, True),
    "5 of C": (False, True, False),
}


def test_all_norms_are_described_in_their_order(call: Call) -> None:
    assert list(DESCRIBED) == list(NORMS)
    assert [row["variant"] for row in json.loads(call("norms", "--json").out)] == list(NORMS)
    assert [line.split()[0] for line in call("norms").out.splitlines()[1:]] == list(NORMS)


@pytest.mark.parametrize("name", list(NORMS))
def test_what_is_said_of_a_norm_is_what_it_does(name: str) -> None:
    said = DESCRIBED[name]
    layer = NORMS[name](16, (6, 6)).double()
    assert {tuple(p.shape) for p in layer.parameters()} == SHAPES[said.parameters]
    x = 3 * torch.randn(32, 16, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    other = x.clone()
    other[3, 4, 2, 2] += 1
    outputs = []
    for each in (x, other):
        torch.manual_seed(1)
        outputs.append(NORMS[name](16, (6, 6)).double().train()(each))
    changed = (outputs[0] - outputs[1]).abs() > 1e-12
    assert (bool(changed[5, 4, 2, 2]), bool(changed[3, 5, 2, 2]), bool(changed[3, 4, 2, 3])) == REACH[said.statistics]
    trained = layer.train()(x)
    assert torch.allclose(trained, layer.eval()(x), atol=1e-9) != said.differs
