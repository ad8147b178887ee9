"""Parts of a network are trained, and the others stay bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnrepro.config.schema import Config, TrainOnly
from bnrepro.training.freezing import drawn, freeze_parameters
from bnrepro.training.train import trainer_of

Tiny = Callable[..., Config]


def changed(cfg: Config) -> tuple[dict[str, Tensor], nn.Module]:
    """Which numbers of each parameter three steps move."""
    trainer = trainer_of(cfg)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    for batch in trainer.batches(0, 3):
        trainer.update(batch.x, batch.y, batch.lr)
    return {name: p.detach() != before[name] for name, p in trainer.network.named_parameters()}, trainer.network


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("which", ["all", "norm", "random", "last"])
def test_what_is_not_trained_stays(tiny: Tiny, which: str, optimizer: str) -> None:
    moved, network = changed(tiny(f"optimizer.train_only={which}", f"optimizer={optimizer}", "model.width=0.5"))
    owners = {id(p): m for m in network.modules() for p in m.parameters(recurse=False)}
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    for name, parameter in network.named_parameters():
        owner, number = owners[id(parameter)], int(moved[name].sum())
        norm = not isinstance(owner, nn.Conv2d | nn.Linear)
        wanted = {"all": True, "norm": norm, "last": owner is last, "random": owner is not last and not norm}[which]
        assert (number > 0) == wanted, name
        if which == "random" and wanted:
            assert moved[name].flatten(1).sum(1).max() <= 2
    if which in ("norm", "random"):
        gammas = sum(p.numel() for p in network.parameters() if not isinstance(owners[id(p)], nn.Conv2d | nn.Linear))
        assert freeze_parameters(network, TrainOnly(which), torch.Generator()) == gammas


def test_random_weights_are_two_of_each_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = drawn(torch.zeros(5, 3, 2, 2), generator)
    assert chosen.shape == (5, 3, 2, 2)
    assert chosen.flatten(1).sum(1).tolist() == [2] * 5
    assert drawn(torch.zeros(4, 1), generator).flatten().tolist() == [True] * 4
    assert not torch.equal(chosen, drawn(torch.zeros(5, 3, 2, 2), generator))


def test_gamma_is_drawn_and_nothing_else_is(tiny: Tiny) -> None:
    ones, drawn_ = (trainer_of(tiny(f"norm.gamma={gamma}")).network for gamma in ("ones", "uniform"))
    gammas = {f"{name}.weight" for name, m in ones.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for (name, a), (_, b) in zip(ones.named_parameters(), drawn_.named_parameters(), strict=True):
        assert torch.equal(a, b) == (name not in gammas)
    values = torch.cat([p.detach() for name, p in drawn_.named_parameters() if name in gammas])
    assert 0 <= float(values.min()) < 0.1
    assert 0.9 < float(values.max()) <= 1
