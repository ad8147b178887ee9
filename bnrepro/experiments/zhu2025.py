r"""Zhu et al., Transformers without Normalization (CVPR 2025).

https://arxiv.org/abs/2503.10622

Differences from the paper
- A vision transformer of 4 blocks, 64 channels, 4 heads and patches of 8 x 8 on CIFAR-10, for 4 epochs; the source
  trains ViT-B and larger, and language models, on ImageNet and the Pile. Positions are fixed sines, the tokens' mean is
  classified, and there is no augmentation but crops and flips.
- ResNet-8 at a quarter of its width on CIFAR-10 for 4 epochs stands for ResNet-50, where the source's loss is larger;
  nothing stands for its VGG19.
- In the source DyT has the hyperparameters of the norm that it replaces, in ResNet-50 and VGG19 those of BN. Here the
  transformers share theirs too; in convolutional networks BN and DyT each have the rate of a sweep at which
  they do best on validation data, which must lie inside the sweep.
- Convolutions before DyT have no bias, as those before BN have none; the source's ResNet-50 is such, its VGG19 is not.
- ConvNeXt, where the source has DyT equal to LayerNorm, is a convolutional network too: the loss is one against BN.
- What public threads say: the author answers that DyT does not replace BN without loss
  (https://github.com/jiachenzhu/DyT/issues/9); why, is open there (https://github.com/jiachenzhu/DyT/issues/20); a user
  converts MobileNetV2 and EfficientNet (https://github.com/jiachenzhu/DyT/issues/7, whose numbers could not be read).
  A study of language models finds DyT better with little data and worse with much (https://arxiv.org/abs/2604.23434).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import equal, exact, greater
from bnrepro.config import load_config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.norm import NORMS
from bnrepro.norm.variants import DynamicTanh
from bnrepro.plots.panels import dots, legend, lines, looks, panels, ticks
from bnrepro.training.model import MakeNorm, Network, at_norms
from bnrepro.training.trainer import Trainer

MATCH = "Transformers with DyT match or exceed the performance of their normalized counterparts"
DROP = (
    "Replacing BN with DyT in ResNet-50 and VGG19 results in a performance drop, indicating that DyT cannot fully "
    "substitute BN in these architectures"
)
TRACKS = (
    "Our further analysis of the final values of alpha in trained networks reveals a strong correlation with the 1/std "
    "of the input activations"
)
EACH = "it operates on each input element from a tensor independently [...] without computing statistics"
POINTS = "percentage points of test accuracy"
NAMES = {"layernorm": "LayerNorm", "bn": "BN", "dyt": "DyT"}
TOLERANCE = 1e-12  # Z1: of values of size 1 in float64


class Convolutional(BaseModel, extra="forbid", frozen=True):
    overrides: list[str]
    trained: float  # % test accuracy with BN at its best rate, from which on it has trained


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    data: list[str] = ["data=cifar10", "data.crop=2"]
    transformer: list[str] = [  # of both; model is that of the configuration's weights alone, see `VisionTransformer`
        *("optimizer=adamw", "optimizer.lr=2e-3", "optimizer.weight_decay=0.05", "optimizer.decay_norm=false"),
        *("schedule=cosine", "schedule.warmup_epochs=1", "batch_size=128", "epochs=4"),
    ]
    patch: int = 8
    features: int = 64
    blocks: int = 4
    convolutional: dict[str, Convolutional] = {
        "ResNet-8 x 0.25": Convolutional(
            overrides=["model=resnet20", "model.depth=1", "model.width=0.25"], trained=50.0
        ),
    }
    recipe: list[str] = [  # of the convolutional networks
        *("optimizer=sgd", "optimizer.weight_decay=5e-4", "optimizer.nesterov=true", "schedule=linear"),
        *("schedule.warmup_epochs=1", "batch_size=128", "epochs=4", "channels_last=true", "eval_every=1000000"),
    ]
    rates: dict[str, list[float]] = {"bn": [0.02, 0.1, 0.5, 2.0], "dyt": [0.02, 0.1, 0.5]}
    trained: float = 48.0  # % test accuracy of the transformer with LayerNorm
    # Z2: twice the largest difference of the source's Table 1, where 0.5 is "slightly better"; Z3: two standard errors
    # of a test set of 10,000, and less than the smaller of the source's losses, 1.7.
    margin_points: float = 1.0
    correlation: float = 0.5  # Z4: "strong" is ours


paper = Paper(__name__, Settings, scale="reduced", scale_note="a ViT of 4 blocks and 64 channels, 4 epochs of CIFAR-10")


@paper.design
def runs(s: Settings) -> Design:
    """Transformers with LayerNorm and with DyT, convolutional networks with BN and with DyT, and the layer."""
    design = Design(s.seeds)
    asked: Row = {"overrides": [*s.data, "model=resnet20", *s.transformer], "patch": s.patch}
    asked |= {"features": s.features, "blocks": s.blocks}
    for norm in ("layernorm", "dyt"):
        design.measure("transformer", {"norm": norm}, transformer, s.data, norm=norm, **asked)
    for network, own in s.convolutional.items():
        for norm, rates in s.rates.items():
            for rate in rates:
                overrides = [*s.data, *own.overrides, *s.recipe, f"variant={norm}", f"optimizer.lr={rate:g}"]
                design.train("convolutional", {"network": network, "norm": norm, "rate": rate}, overrides)
    design.measure("layer", {}, layer, seeds=[0])
    return design


# --- the transformer ---


class Tokens(nn.Module):
    """A norm of each token of (N, T, C): one row a token for it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view(x.shape)


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a shortcut (pre-norm): (N, T, C) in and out."""

    def __init__(self, features: int, heads: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Tokens(norm(features, ())) for _ in range(2))
        self.inner, self.outer = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.mlp = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.inner(self.norms[0](x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.outer(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norms[1](x))


class VisionTransformer(nn.Module):
    """Images (N, C, H, W) to logits: patches as tokens, fixed positions, blocks, a last norm, the tokens' mean."""

    def __init__(
        self,
        norm: MakeNorm,
        channels: int,
        image: tuple[int, ...],
        classes: int,
        patch: int,
        features: int,
        blocks: int,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, features, patch, stride=patch)
        tokens = (image[0] // patch) * (image[1] // patch)
        self.register_buffer("positions", sines(tokens, features), persistent=False)
        self.blocks = nn.Sequential(*(Block(features, 4, norm) for _ in range(blocks)))
        self.norm = Tokens(norm(features, ()))
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.get_buffer("positions")
        return self.head(self.norm(self.blocks(x)).mean(1))


def sines(tokens: int, features: int) -> Tensor:
    """(tokens, features): sines and cosines of the place at falling frequencies (Vaswani et al. 2017)."""
    place = torch.arange(tokens)[:, None] / 10_000 ** (torch.arange(features // 2) / (features // 2))
    return torch.cat([place.sin(), place.cos()], 1)


def vision_transformer(norm: str, data: Dataset, seed: int, **sizes: int) -> Network:
    """With the weights of ``seed``, the same for all norms: Glorot's, and biases 0."""
    made: list[nn.Module] = []

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        made.append(NORMS[norm](features, shape))
        return made[-1]

    network = Network(VisionTransformer(make, data.channels, data.image_size, data.num_classes, **sizes), made)
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


@measure("zhu2025/transformer")
def transformer(
    data: Dataset, seed: int, overrides: list[str], norm: str, patch: int, features: int, blocks: int
) -> list[Row]:
    """Train the transformer as a run of ``overrides`` trains its network, on the same batches.

    Rows: ``test_accuracy`` and ``train_accuracy`` of the last epoch in %; ``loss`` of each epoch (x); and with DyT, for
    each norm (x), ``alpha`` and ``spread``, the standard deviation of its input over 500 test images. Or ``diverged``.
    """
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu", "channels_last=false"])
    sizes = {"patch": patch, "features": features, "blocks": blocks}
    trainer = Trainer(cfg, data, vision_transformer(norm, data, seed, **sizes))
    losses, right, rows = [], 0.0, list[Row]()
    for batch in trainer.batches():
        loss, correct = trainer.update(batch.x, batch.y, batch.lr)
        losses.append(float(loss))
        right += float(correct)
        if not math.isfinite(losses[-1]):
            return [row("diverged", batch.step)]
        epoch, left = divmod(batch.step + 1, trainer.steps_per_epoch)
        if left == 0:
            rows.append(row("loss", sum(losses) / len(losses), epoch))
            accuracy = 100 * right / (len(losses) * cfg.batch_size)
            losses, right = [], 0.0
    rows += [row("train_accuracy", accuracy), row("test_accuracy", 100 * trainer.measure(data.test)[1])]
    return [*rows, *(alphas(trainer.network, data.normalize(data.test.images[:500])) if norm == "dyt" else ())]


@torch.no_grad()
def alphas(network: Network, x: Tensor) -> list[Row]:
    """The alpha of each DyT, and the standard deviation of all values that enter it; x is its place."""
    with at_norms(network) as inputs:
        network.eval()(x)
    rows = []
    for place, (name, values) in enumerate(inputs.items(), 1):
        rows.append(row("alpha", network.norms[name].get_parameter("alpha"), place))
        rows.append(row("spread", values.std(correction=0), place))
    return rows


# --- the layer ---


@measure("zhu2025/layer")
def layer(seed: int) -> list[Row]:
    """DyT in float64 against its formula, as largest absolute differences.

    Rows: ``output``, of gamma tanh(alpha x) + beta; ``gradient``, of its derivatives by hand (x: by what); ``others``,
    of outputs whose own input stayed when all others in the batch changed; ``modes``, of training and eval; ``start``,
    of alpha 0.5, gamma 1 and beta 0 as it is made.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "layer"))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = NORMS["dyt"](6, (5, 4)).double()
    assert isinstance(made, DynamicTanh)
    off = [made.alpha - 0.5, made.get_parameter("weight") - 1, made.get_parameter("bias")]
    rows = [row("start", max(float(each.detach().abs().max()) for each in off))]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(normal(*parameter.shape))
    alpha, gamma, beta = (each.detach() for each in made.parameters())
    gamma, beta = gamma[:, None, None], beta[:, None, None]
    x, upstream = normal(8, 6, 5, 4).mul_(2).requires_grad_(), normal(8, 6, 5, 4)
    y = made(x)
    squashed = torch.tanh(alpha * x.detach())
    rows.append(row("output", (y - gamma * squashed - beta).abs().max().detach()))
    y.backward(upstream)
    slope = gamma * (1 - squashed.square()) * upstream
    want = {"x": alpha * slope, "alpha": (slope * x.detach()).sum().view(1)}
    want |= {"weight": (upstream * squashed).sum((0, 2, 3)), "bias": upstream.sum((0, 2, 3))}
    for name, gradient in want.items():
        found = x.grad if name == "x" else made.get_parameter(name).grad
        assert found is not None
        rows.append(row("gradient", (found - gradient).abs().max(), name))
    changed = normal(8, 6, 5, 4)
    changed[0, 0, 0, 0] = x.detach()[0, 0, 0, 0]
    rows.append(row("others", (made(changed) - y)[0, 0, 0, 0].abs().detach()))
    return [*rows, row("modes", (made.eval()(x) - y).abs().max().detach())]


# --- claims ---


def of_transformers(r: Results, norm: str) -> Values:
    """Test accuracy in percent."""
    return r.measured("test_accuracy", part="transformer", norm=norm)


def transformer_has_trained(r: Results, s: Settings) -> Gate:
    """With LayerNorm."""
    return reaches(of_transformers(r, "layernorm"), s.trained, "test accuracy of the transformer with LayerNorm, %")


def of_networks(r: Results, column: str = "test_accuracy", **factors: Any) -> Values:
    """Accuracy of convolutional networks in percent, chance where one diverged."""
    return r.accuracy(column, part="convolutional", **factors).without("variant")


def best_rate(r: Results, s: Settings, network: str, norm: str) -> Any:
    """The rate of the sweep with the best mean validation accuracy."""
    return of_networks(r, "val_accuracy", network=network, norm=norm).best("rate", s.rates[norm][1])


def at_best(r: Results, s: Settings, network: str, norm: str) -> Values:
    """Test accuracy at `best_rate`."""
    return of_networks(r, network=network, norm=norm, rate=best_rate(r, s, network, norm))


def networks_have_trained(r: Results, s: Settings) -> Gate:
    """Each with BN at its best rate."""
    gates = [
        reaches(at_best(r, s, name, "bn"), network.trained, f"test accuracy of {name} with BN, %")
        for name, network in s.convolutional.items()
    ]
    return reduce(and_, gates)


@paper.claim("Z1", kind="identity", quote=EACH, where="section 4, Algorithm 1", reported="gamma tanh(alpha x) + beta")
def it_takes_no_statistics(r: Results, s: Settings) -> Evidence:
    """DyT is gamma tanh(alpha x) + beta with one alpha of 0.5 at the start, and operates on each element independently,
    without statistics: the rest of the batch, and training or inference, make no difference.
    """
    names = {
        "output": "from the formula", "gradient": "of a gradient", "others": "when all other inputs change",
        "modes": "between training and inference", "start": "of the parameters at the start",
    }  # fmt: skip
    errors = {name: r.measured(quantity, part="layer") for quantity, name in names.items()}
    return exact(errors, "largest difference", tolerance=TOLERANCE)


@paper.claim(
    "Z2",
    quote=MATCH,
    where="caption of Figure 1; Table 1",
    reported="ImageNet top-1, LayerNorm and DyT: ViT-B 82.3% and 82.5%, ViT-L 83.1% and 83.6%",
    gate=transformer_has_trained,
)
def transformers_are_as_good(r: Results, s: Settings) -> Evidence:
    """The test accuracy of a transformer with DyT is within one point of that with LayerNorm, with the same
    hyperparameters.
    """
    difference = of_transformers(r, "dyt") - of_transformers(r, "layernorm")
    evidence = equal(difference, "test accuracy, DyT minus LayerNorm", POINTS, margin=s.margin_points)
    fitted = r.measured("train_accuracy", part="transformer")
    gap = fitted.at(norm="dyt") - fitted.at(norm="layernorm")
    evidence = evidence.showing({"training accuracy": gap}, "points")
    evidence = evidence.showing({NAMES[norm]: of_transformers(r, norm) for norm in ("layernorm", "dyt")}, "%")
    remark = 'A small loss is within the margin, but is not the source\'s "match or exceed".'
    if difference.interval().high < 0:
        remark += " There is one: the 95% interval lies below 0."
    return replace(evidence, remark=remark)


@paper.claim(
    "Z3",
    quote=DROP,
    where="appendix D, Table 16",
    reported="ImageNet top-1, BN and DyT: ResNet-50 76.2% and 68.9%, VGG19 72.7% and 71.0%",
    scale_note="ResNet-8 at a quarter of its width, 4 epochs of CIFAR-10",
    gate=networks_have_trained,
)
def convolutional_networks_lose(r: Results, s: Settings) -> Evidence:
    """Replacing BN by DyT in a convolutional network lowers its accuracy after a short training, each at its best
    learning rate.
    """
    loss = {name: at_best(r, s, name, "bn") - at_best(r, s, name, "dyt") for name in s.convolutional}
    best = {
        f"{name} with {NAMES[norm]}": (best_rate(r, s, name, norm), s.rates[norm]) for name in loss for norm in s.rates
    }
    evidence = greater(loss, "test accuracy, BN minus DyT, each at its best rate", POINTS, margin=s.margin_points)
    both = sorted(set(s.rates["bn"]) & set(s.rates["dyt"]))
    same = {
        f"both at rate {rate:g}, {name}": of_networks(r, network=name, norm="bn", rate=rate)
        - of_networks(r, network=name, norm="dyt", rate=rate)
        for name in loss
        for rate in both
    }
    fitted = {
        f"training accuracy, {name} with {NAMES[norm]}": of_networks(
            r, "train_accuracy", network=name, norm=norm, rate=best_rate(r, s, name, norm)
        )
        for name in loss
        for norm in s.rates
    }
    evidence = evidence.showing(same).showing(fitted, "%").unless_at_edge(best)
    remark = (
        "Part of the difference may be speed: after so few epochs the training accuracies tell how far each has come."
    )
    return replace(evidence, remark=remark)


@paper.claim("Z4", quote=TRACKS, where="section 6.2", reported="no number read", gate=transformer_has_trained)
def alpha_tracks_the_spread(r: Results, s: Settings) -> Evidence:
    """After a short training, alpha correlates strongly over the layers with 1 / standard deviation of what enters
    them.
    """
    alpha, spread = (r.measured(q, part="transformer", norm="dyt") for q in ("alpha", "spread"))
    joint = Values.stacked("of", {"alpha": alpha, "inverse": spread.map(lambda value: 1 / value)})
    found = joint.along("x", lambda _, values: 0.0) if not joint else correlations(alpha, spread)
    estimand = "correlation over the layers of alpha with 1 / standard deviation of its input"
    evidence = greater(found, estimand, "", bar=s.correlation)
    evidence = evidence.showing({"smallest alpha": alpha.min("x"), "largest alpha": alpha.max("x")})
    remark = (
        f"Each correlation is over {2 * s.blocks + 1} alphas, which start at 0.5 and have few epochs to move; the gate "
        "asks for the accuracy with LayerNorm alone."
    )
    return replace(evidence, remark=remark)


def correlations(alpha: Values, spread: Values) -> Values:
    """Pearson's, of each seed over the layers, of alpha with 1 / spread."""
    pairs = {seed: ([], []) for _, seed in alpha.data}  # type: dict[int, tuple[list[float], list[float]]]
    for (label, seed), value in alpha.data.items():
        pairs[seed][0].append(value)
        pairs[seed][1].append(1 / spread.data[label, seed])
    found = {seed: float(torch.corrcoef(torch.tensor(pair, dtype=torch.float64))[0, 1]) for seed, pair in pairs.items()}
    return Values((), {((), seed): value for seed, value in found.items()})


# --- tables and figures ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Test accuracy; of convolutional networks at each rate of the sweep, with the validation accuracy that chooses."""
    rows: list[Row] = [
        {"network": "transformer", "norm": NAMES[norm], "rate": None, "validation accuracy, %": None}
        | {"test accuracy, %": of_transformers(r, norm).interval()}
        for norm in ("layernorm", "dyt")
        if of_transformers(r, norm)
    ]
    validation = of_networks(r, "val_accuracy")
    for (network, norm, rate), values in of_networks(r).by("network", "norm", "rate").items():
        chosen = validation.at(network=network, norm=norm, rate=rate).interval()
        rows.append(
            {"network": network, "norm": NAMES[norm], "rate": rate, "validation accuracy, %": chosen}
            | {"test accuracy, %": values.interval()}
        )
    return rows


@paper.figure
def replaced(r: Results, s: Settings) -> Figure | None:
    """Test accuracy with DyT in a norm's place. Left: of the transformer, against LayerNorm. Right: of convolutional
    networks, against BN, by learning rate.
    """
    transformers = r.measured("test_accuracy", part="transformer")
    if not transformers:
        return None
    networks = list(s.convolutional)
    figure, axes = panels(1 + len(networks), height=2.5)
    look = looks(NAMES)
    placed = Values(
        ("network", "norm"), {(("transformer", *key), seed): v for (key, seed), v in transformers.data.items()}
    )
    dots(axes[0], placed, "network", "norm", look)
    axes[0].set(ylabel="test accuracy, %")
    for each, network in zip(axes[1:], networks, strict=True):
        lines(each, of_networks(r, network=network), "rate", "norm", look, bars=True)
        each.set_xscale("log")
        ticks(each, sorted({rate for rates in s.rates.values() for rate in rates}))
        each.set(xlabel="learning rate", title=network)
    legend(figure, of=None)
    return figure
