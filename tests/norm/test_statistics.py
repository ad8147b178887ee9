"""Which statistics are kept and which normalize: running ones, those of a population, and the batch's own."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from bnrepro.norm import NORMS as TABLE
from bnrepro.norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvAdaptiveNorm2d,
    ConvBatchNorm2d,
    NormError,
    batch_statistics,
    convert,
    fold,
    mixed_statistics,
    reestimate_statistics,
)
from bnrepro.norm.statistics import tracking_layers

# On maps (N, 3, 4, 5), and the axes of its statistics.
NORMS = {
    "torch": (lambda **given: nn.BatchNorm2d(3, **given), (0, 2, 3)),
    "own": (lambda **given: BatchNorm2d(3, **given), (0, 2, 3)),
    "local": (lambda **given: ConvBatchNorm2d(3, (4, 5), **given), (0,)),
    "control": (
        lambda **given: ConvBatchNorm2d(3, (4, 5), statistics="channel", parameters="location", **given),
        (0, 2, 3),
    ),
}
over_norms = pytest.mark.parametrize(("make", "axes"), NORMS.values(), ids=NORMS)
OWN = [norm for name, norm in NORMS.items() if name != "torch"]
over_own_norms = pytest.mark.parametrize(("make", "axes"), OWN, ids=[name for name in NORMS if name != "torch"])


def maps(*sizes, offset=1.5):
    """Batches of the given sizes, each from its own distribution, so that averaging them differs from pooling."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(n, 3, 4, 5, generator=generator, dtype=torch.float64) for n in sizes]
    return [(i + 1) * x + offset + i for i, x in enumerate(drawn)]


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_unchanged(model, before):
    assert model.state_dict().keys() == before.keys()
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name


def assert_holds(layer, values, axes, **tolerance):
    """The running statistics are those of ``values``, in one pass over all of them."""
    var, mean = torch.var_mean(values.double(), axes, correction=1)
    torch.testing.assert_close(layer.running_mean.double(), mean, **tolerance)
    torch.testing.assert_close(layer.running_var.double(), var, **tolerance)


@over_own_norms
def test_the_biased_variance_normalises_and_the_unbiased_one_is_kept(make, axes):
    (x,) = maps(4)
    layer = make(momentum=1.0, dtype=torch.float64)
    y = layer(x)
    assert_holds(layer, x, axes)
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    torch.testing.assert_close(y, (x - mean) / (var + layer.eps).sqrt())


@over_own_norms
def test_the_running_statistics_never_join_the_graph(make, axes):
    layer, x = make(dtype=torch.float64), maps(4)[0].requires_grad_()
    kept = [layer(x * scale) for scale in (1, 2, 3)]
    assert all(b.grad_fn is None and not b.requires_grad for b in layer.buffers())
    for y in kept:  # each step has a graph of its own: no backward runs into another's
        (y * x).sum().backward()


@pytest.mark.parametrize(
    ("own", "torchs", "shape"),
    [
        (BatchNorm1d, nn.BatchNorm1d, (0, 3)),
        (BatchNorm2d, nn.BatchNorm2d, (0, 3, 4, 5)),
        (BatchNorm3d, nn.BatchNorm3d, (0, 3, 2, 2, 2)),
    ],
    ids=["1d", "2d", "3d"],
)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_batch_counts_and_leaves_the_running_statistics_as_in_torch(own, torchs, shape, momentum):
    own, torchs = own(3, momentum=momentum), torchs(3, momentum=momentum)
    for batch in (torch.ones(shape), torch.arange(2.0 * 3 * math.prod(shape[2:])).view(2, *shape[1:])):
        for layer in (own, torchs):
            layer(batch)
        torch.testing.assert_close(own.state_dict(), torchs.state_dict())


@over_norms
@pytest.mark.parametrize("sizes", [(12,), (2, 3, 7), (6, 6), (1, 11)], ids=str)
def test_reestimated_statistics_are_those_of_the_joined_batches(make, axes, sizes):
    layer, joined = make(dtype=torch.float64), torch.cat(maps(2, 3, 7))
    batches = joined.split(sizes)
    if sizes[0] == 1 and axes == (0,):
        with pytest.raises(NormError, match="batch of 1"):
            reestimate_statistics(layer, batches)
    else:
        assert reestimate_statistics(layer, iter(batches)) is layer
        assert_holds(layer, joined, axes)


@over_norms
def test_the_mean_of_the_batches_variances_can_be_asked_for(make, axes):
    batches = maps(2, 3, 7)
    layer = reestimate_statistics(make(dtype=torch.float64), batches, variance="mean")
    parts = [len(x) / 12 * x.var(axes, correction=1) for x in batches]
    torch.testing.assert_close(layer.running_var, sum(parts))
    torch.testing.assert_close(layer.running_mean, torch.cat(batches).mean(axes))
    with pytest.raises(ValueError, match="variance must be 'pooled' or 'mean', got 'median'"):
        reestimate_statistics(layer, batches, variance="median")
    with pytest.raises(TypeError, match=r"for one tensor write \[x\]"):
        reestimate_statistics(layer, batches[0])


@over_norms
def test_reestimating_stays_right_far_from_zero_in_float32(make, axes):
    batches = [(3000 + 0.5 * x).float() for x in maps(20, 30, 50)]
    layer = reestimate_statistics(make(), batches)
    assert_holds(layer, torch.cat(batches), axes, rtol=5e-4, atol=0)


def two_deep():
    torch.manual_seed(0)
    layers = [BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.ReLU(), ConvBatchNorm2d(2, (2, 3)), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 4), nn.BatchNorm1d(4)).double()


def test_deeper_layers_see_inputs_normalised_by_their_own_batch_and_no_dropout():
    model, batches = two_deep(), maps(4, 5, 6)
    reestimate_statistics(model, batches)
    expected = two_deep().train()
    expected[1].eval()
    for place, axes in ((0, (0, 2, 3)), (4, (0,)), (7, (0,))):
        entered = torch.cat([expected[:place](x) for x in batches])
        assert_holds(model[place], entered, axes)


def test_reestimating_changes_the_running_statistics_and_nothing_else():
    model = two_deep()
    model[4].eval()
    modes = [module.training for module in model.modules()]
    before = state(model)
    reestimate_statistics(model, maps(4, 5))
    assert [module.training for module in model.modules()] == modes
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {f"{place}.running_{name}" for place in (0, 4, 7) for name in ("mean", "var")}
    assert not any(t.requires_grad for t in model.buffers())
    again = state(model)
    model.eval()(maps(1)[0])  # no hook is left that would go on collecting
    assert_unchanged(model, again)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_batch_that_fails_leaves_the_model_as_it_was():
    model = two_deep().train()
    before = state(model)
    with pytest.raises(NormError, match="batch of 1"):
        reestimate_statistics(model, maps(4, 1))
    assert_unchanged(model, before)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_no_batch_reaches_keeps_its_statistics():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = BatchNorm2d(3), BatchNorm2d(3)

        def forward(self, x):
            return self.used(x)

    model = Branching().double()
    (x,) = maps(4)
    nn.init.constant_(model.unused.running_mean, 7)
    before = state(model.unused)
    with pytest.warns(UserWarning, match="no batch reached unused, whose statistics stay as they are") as told:
        reestimate_statistics(model, [x])
    assert told[0].filename == __file__
    assert_holds(model.used, x, (0, 2, 3))
    assert_unchanged(model.unused, before)


def test_no_batches_are_an_error_unless_there_is_nothing_to_estimate():
    with pytest.raises(NormError, match="no batches"):
        reestimate_statistics(BatchNorm2d(3), [])
    plain = nn.Conv2d(3, 2, 3)
    assert reestimate_statistics(plain, []) is plain


@over_norms
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_statistics_normalise_within_the_block_and_nothing_is_touched(make, axes, training):
    model = nn.Sequential(make(dtype=torch.float64)).train(training)
    (x,) = maps(4)
    nn.init.constant_(model[0].running_mean, 7)
    before, buffers = state(model), dict(model.named_buffers())
    expected = copy.deepcopy(model).train()(x)
    with batch_statistics(model):
        torch.testing.assert_close(model(x), expected)
    assert all(t is buffers[name] for name, t in model.named_buffers())
    assert_unchanged(model, before)
    assert not torch.allclose(model.eval()(x), expected)  # the block is over


def test_batch_statistics_are_given_back_after_an_error_in_the_block():
    model = two_deep()
    before = state(model)
    with pytest.raises(ZeroDivisionError), batch_statistics(model):
        raise ZeroDivisionError
    assert_unchanged(model, before)


def test_tracking_layers_are_torchs_and_ours_by_name_and_only_those_that_keep_statistics():
    model = nn.ModuleDict(
        {
            "torch": nn.BatchNorm1d(2),
            "nested": nn.Sequential(nn.ReLU(), BatchNorm3d(2)),
            "local": ConvBatchNorm2d(2, (2, 2)),
            "untracked": BatchNorm2d(2, track_running_stats=False),
            "instance": nn.InstanceNorm2d(2, track_running_stats=True),
            "adaptive": ConvAdaptiveNorm2d(2, 3),
            "none": nn.Identity(),
        }
    )
    found = tracking_layers(model)
    assert list(found) == ["torch", "nested.1", "local"]
    assert found["nested.1"] is model["nested"][1]


@over_norms
def test_torchs_update_bn_knows_the_layers(make, axes):
    batches = maps(4, 4, 4)
    model = nn.Sequential(make(dtype=torch.float64))
    update_bn(batches, model)
    torch.testing.assert_close(model[0].running_mean, sum(x.mean(axes) for x in batches) / 3)
    torch.testing.assert_close(model[0].running_var, sum(x.var(axes, correction=1) for x in batches) / 3)
    assert model[0].momentum == 0.1


class Reading(nn.Module):
    """A network whose forward does something with a norm that is not calling it."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), forward

    def forward(self, x):
        return self.how(self.norm, self.conv(x))


def cached(norm, x):
    """What is worked out in the first call and kept."""
    if not hasattr(norm, "scale"):
        norm.scale = (norm.running_var + norm.eps).rsqrt().view(1, 3, 1, 1)
    return norm(x) * norm.scale


READS = {
    "cached": cached,
    "running_mean": lambda norm, x: norm(x) + norm.running_mean.mean(),
    "running_var": lambda norm, x: norm(x) * norm.running_var.view(1, 3, 1, 1),
    "state_dict": lambda norm, x: norm(x) * norm.state_dict()["running_mean"].mean(),
    "functional": lambda norm, x: F.batch_norm(x, norm.running_mean, norm.running_var, training=norm.training),
}


@pytest.mark.parametrize("how", READS)
def test_a_forward_that_uses_statistics_itself_is_refused_by_name(how):
    model = nn.Sequential(nn.BatchNorm2d(3), Reading(READS[how])).double()
    before = state(model)
    with pytest.raises(NormError, match=r"^1\.norm: the forward uses its statistics itself"):
        reestimate_statistics(model, maps(4))
    assert_unchanged(model, before)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, BatchNorm1d], ids=["torch", "ours"])
def test_a_batch_of_one_value_per_channel_is_said_to_be_too_small(make):
    model = nn.Sequential(nn.Linear(3, 4), make(4))
    with pytest.raises(NormError, match=r"1 value per channel|one value per channel.*drop_last=True"):
        reestimate_statistics(model, torch.randn(9, 3).split(4))


def test_an_error_of_the_networks_own_stays_its_own():
    with pytest.raises(RuntimeError, match="expected input"):
        reestimate_statistics(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double(), maps(4))


def test_a_norm_that_is_not_called_as_a_module_is_named():
    with pytest.warns(UserWarning, match=r"no batch reached norm, .*not norm\.forward\(x\)"):
        reestimate_statistics(Reading(lambda norm, x: norm.forward(x)).double(), maps(4))


def quantized(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train(trained)
        if trained:
            model = quantization.fuse_modules_qat(model, [["1", "2"]])
            model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            return quantization.prepare_qat(model)
        model.qconfig = quantization.get_default_qconfig("fbgemm")
        return quantization.convert(quantization.prepare(model))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: nn.Sequential(nn.LazyBatchNorm2d()), r"0 \(LazyBatchNorm2d\) .* Run the model once first"),
        (lambda: quantized(True), r"1\.bn \(BatchNorm2d\) .* Do this before quantization"),
        (lambda: quantized(False), r"2 \(BatchNorm2d\) .* Do this before quantization"),
    ],
    ids=["lazy", "trained for quantization", "quantized"],
)
def test_norms_that_cannot_do_without_statistics_are_refused_by_name(made, words):
    with pytest.raises(NormError, match=words):
        reestimate_statistics(made(), [x.float() for x in maps(4)])


@over_norms
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("prior", [0.0, 3.0])
def test_mixed_statistics_are_those_of_brute_force(make, axes, affine, prior):
    model = nn.Sequential(make(dtype=torch.float64, affine=affine)).eval()
    layer = model[0]
    nn.init.uniform_(layer.running_mean, -1, 1), nn.init.uniform_(layer.running_var, 1, 2)
    if affine:
        nn.init.uniform_(layer.weight), nn.init.uniform_(layer.bias)
    (x,) = maps(7)
    wanted = []
    for part in x.split(3):  # 3, 3 and 1
        share, shape = prior / (prior + len(part)), part.mean(axes, keepdim=True).shape[1:]
        mean = share * layer.running_mean.view(shape) + (1 - share) * part.mean(axes, keepdim=True)
        var = share * layer.running_var.view(shape) + (1 - share) * part.var(axes, correction=0, keepdim=True)
        y = (part - mean) / (var + layer.eps).sqrt()
        wide = (-1, 1, 1) if not affine or layer.weight.dim() == 1 else layer.weight.shape
        wanted.append(y * layer.weight.view(wide) + layer.bias.view(wide) if affine else y)
    before = state(model)
    with mixed_statistics(model, prior, 3):
        torch.testing.assert_close(model(x), torch.cat(wanted))
    assert_unchanged(model, before)


@over_norms
def test_mixed_statistics_lie_between_the_batchs_and_those_that_are_kept(make, axes):
    model = nn.Sequential(make(dtype=torch.float64)).eval()
    (x,) = maps(4)
    kept = model(x)
    with batch_statistics(model):
        own = model(x)
    for prior, expected in ((0, own), (1e15, kept)):
        with mixed_statistics(model, prior, 4):
            torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x), kept)  # the block is over


class Rectified(nn.BatchNorm2d):
    """A subclass whose forward does more."""

    def forward(self, x):
        return super().forward(x).relu()


UNMIXED = {
    "prior below 0": (two_deep, -1, 4, "needs prior >= 0 and a whole number of images >= 1; got -1 and 4"),
    "prior nan": (two_deep, math.nan, 4, "needs prior >= 0"),
    "no images": (two_deep, 1, 0, "images >= 1; got 1 and 0"),
    "parts of images": (two_deep, 1, 2.5, "images >= 1; got 1 and 2.5"),
    "other measure": (
        lambda: nn.Sequential(nn.ReLU(), TABLE["l1bn"](3, (4, 5))),
        1,
        2,
        r"1 \(LpBatchNorm\) does not normalize by a variance, .* Use batch_statistics",
    ),
    "own forward": (
        lambda: nn.Sequential(Rectified(3)),
        1,
        2,
        r"0 \(Rectified\) cannot be mixed: its class or instance defines forward, .* Use torch's layer",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyBatchNorm2d()), 1, 2, r"0 \(LazyBatchNorm2d\) .* Run the model once first"),
    "quantized": (lambda: quantized(True), 1, 2, r"1\.bn \(BatchNorm2d\) .* Do this before quantization"),
    "untracked": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
        1,
        2,
        r"0 \(BatchNorm2d\) keeps no running statistics .* Use norms that keep them",
    ),
    "adaptive": (
        lambda: ConvAdaptiveNorm2d(3, 3),
        1,
        2,
        r"the model \(ConvAdaptiveNorm2d\) keeps no running statistics",
    ),
}


@pytest.mark.parametrize(("made", "prior", "images", "words"), UNMIXED.values(), ids=UNMIXED)
def test_mixed_statistics_say_what_they_are_not_for(made, prior, images, words):
    model = made()
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    with pytest.raises(NormError, match=words), mixed_statistics(model, prior, images):
        pass
    assert [module._forward_hooks for module in model.modules()] == hooks


WITHIN = {
    "batch_statistics": (lambda model, x: batch_statistics(model).__enter__(), "is within a mixed_statistics block"),
    "mixed_statistics": (lambda model, x: mixed_statistics(model, 1, 2).__enter__(), "End that block first"),
    "reestimate_statistics": (lambda model, x: reestimate_statistics(model, [x]), "End that block first"),
    "fold": (fold, r"^0 \(BatchNorm2d\) is within a mixed_statistics block"),
    "convert": (lambda model, x: convert(model, "dyt", x), "End that block first"),
    "deepcopy": (lambda model, x: copy.deepcopy(model), "Copy or save the network outside of the block"),
    "pickle": (lambda model, x: pickle.dumps(model), "Copy or save the network outside of the block"),
}


@pytest.mark.parametrize(("done", "words"), WITHIN.values(), ids=WITHIN)
def test_what_is_refused_while_statistics_are_mixed(done, words):
    (x,), model = maps(4), two_deep().eval()
    with mixed_statistics(model, 3, 2):
        mixed = model(x)
        with pytest.raises(NormError, match=words):
            done(model, x)
        torch.testing.assert_close(model(x), mixed)
    copy.deepcopy(model)


def test_a_batchs_own_statistics_cannot_be_mixed():
    model = two_deep()
    with (
        batch_statistics(model),
        pytest.raises(NormError, match="a batch_statistics block"),
        mixed_statistics(model, 1, 2),
    ):
        pass


@over_norms
@pytest.mark.parametrize("prior", [1e30, math.inf])
def test_a_prior_without_end_leaves_all_that_a_norm_does(make, axes, prior):
    model = nn.Sequential(make(dtype=torch.float64)).eval()
    nn.init.uniform_(model[0].running_mean, -1, 1)
    model[0].register_forward_hook(lambda layer, inputs, output: output.relu())
    (x,) = maps(7)
    for each in (x, x[:1], x[:0]):
        wanted = model(each)
        with mixed_statistics(model, prior, 3):
            torch.testing.assert_close(model(each), wanted)
            torch.testing.assert_close(model[0](input=each), wanted)
    model.train()
    with mixed_statistics(model, prior, 3):
        assert not torch.allclose(model(x), model.eval()(x))  # the batch's, in training


def test_the_activation_of_timms_layers_stays():
    timm_layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(timm_layers.BatchNormAct2d(3)).double().eval()
    (x,) = maps(4)
    wanted = model(x)
    with mixed_statistics(model, math.inf, 3):
        torch.testing.assert_close(model(x), wanted)
    with mixed_statistics(model, 3, 3):
        y = model(x)
    assert (y == 0).any()
    assert (y >= 0).all()


def test_outputs_in_16_bits_stay_in_16_bits():
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    (x,) = maps(4)
    with mixed_statistics(model, 3, 3):
        assert model(x.bfloat16()).dtype is torch.bfloat16
