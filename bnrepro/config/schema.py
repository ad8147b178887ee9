"""Every option of a run: its type, its default and a line of documentation. The YAML says only what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


def configs_dir() -> Path:
    """The YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


class Precision(StrEnum):
    """Number format of the forward and backward pass; parameters and statistics stay float32.

    auto takes bf16 where the processor (AVX512-BF16, AMX) or the GPU multiplies in it, else fp32.
    """

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where a run computes; auto takes a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Placement(StrEnum):
    """Where the norm stands: before the activation (Ioffe & Szegedy) or after it."""

    before = "before"
    after = "after"


class DropoutPosition(StrEnum):
    """Where dropout stands: directly before each norm, after each norm and its activation, before the last convolution
    of each block, or before the last layer.
    """

    before_norm = "before_norm"
    after_norm = "after_norm"
    in_blocks = "in_blocks"
    last = "last"


class Initialization(StrEnum):
    """Distribution of the initial weights; biases start at zero."""

    he = "he"
    glorot = "glorot"
    gaussian = "gaussian"


class OptimizerName(StrEnum):
    """The optimizers, torch's own."""

    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"


class TrainOnly(StrEnum):
    """Parameters that are trained; the others stay as they were drawn."""

    all = "all"
    norm = "norm"
    random = "random"
    last = "last"


class Gamma(StrEnum):
    """The norms' gamma before training: 1, or drawn between 0 and 1."""

    ones = "ones"
    uniform = "uniform"


class ScheduleName(StrEnum):
    """How the learning rate changes after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    step = "step"


class Source(StrEnum):
    """Where a dataset's files come from."""

    package = "package"
    torchvision = "torchvision"
    npz = "npz"


@dataclass
class Optimizer:
    """``optimizer``: how the weights are moved."""

    name: OptimizerName = OptimizerName.adam
    """sgd, adam or adamw."""
    lr: float = 1e-3
    """Learning rate, the schedule's peak."""
    momentum: float = 0.9
    """sgd: momentum."""
    nesterov: bool = False
    """sgd: Nesterov's momentum."""
    beta1: float = 0.9
    """adam, adamw: decay of the gradient's mean."""
    beta2: float = 0.999
    """adam, adamw: decay of the squared gradient's mean."""
    eps: float = 1e-8
    """adam, adamw: added to the root of the squared gradient's mean (Keras: 1e-7)."""
    weight_decay: float = 0.0
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    decay_norm: bool = True
    """Whether weight decay applies to gamma and beta of the norms too, as torch does it unasked."""
    train_only: TrainOnly = TrainOnly.all
    """all, norm (gamma and beta), random (two weights of each channel, drawn once) or last (the logits' layer)."""


@dataclass
class Schedule:
    """``schedule``: the learning rate over the run."""

    name: ScheduleName = ScheduleName.constant
    """constant, linear (to 0), cosine (to 0) or step."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0 to optimizer.lr, before the schedule."""
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    """step: where the rate falls, as fractions of the run."""
    gamma: float = 0.1
    """step: factor at each milestone."""


@dataclass
class Data:
    """``data``: a dataset and how its batches are made."""

    name: str = "???"
    """The dataset's name; the group `data=` sets it."""
    source: Source = Source.torchvision
    """package (inside an installed package), torchvision (its files and mirrors) or npz (`data.path`)."""
    root: str = "data"
    """Folder of the datasets, laid out as torchvision does; what is missing is downloaded there."""
    path: str | None = None
    """source=npz: an archive with Keras's keys x_train, y_train, x_test, y_test (or names like them)."""
    val_fraction: float = 0.1
    """Share of the training set held out for validation, by a fixed seed, the same for everyone. 0: no validation."""
    train_images: int | None = None
    """Images to train on, of those that validation leaves: so many, the same for everyone. null: all of them."""
    crop: int = 0
    """Augmentation: pad by so many pixels and crop at random, for each image its own offset. 0: off."""
    flip: bool = False
    """Augmentation: mirror half of the images left to right."""
    shade: float = 1.0
    """Factor on the pixels of each image's lower half, in training and at validation and test. 1: off."""
    shade_batches: bool = False
    """Whether each batch has a factor of its own, between shade and 1, as frames of a drive at sunrise share theirs."""
    shade_test: float | None = None
    """Factor at validation and test; null: as in training."""
    rotate: float = 0.0
    """Augmentation: turn each image by an angle between -rotate and rotate degrees. 0: off."""
    brightness: float = 0.0
    """Augmentation: multiply each image by a factor between 1 - brightness and 1 + brightness. 0: off."""
    samplewise: bool = False
    """Whether each image is normalized by its own mean and deviation, not by those of the training set."""
    binarize: bool = False
    """Whether pixels are 0 or 1 (at one half of the brightest and above), and are not normalized."""
    together: int = 0
    """Images that stay together: in every epoch the same so many follow one another, in an order of groups that is new
    (batch_size gives fixed batches). 0: each epoch has an order of its own."""


@dataclass
class Model:
    """``model``: a network; the group `model=` sets the name."""

    name: str = "???"
    """paper_mlp, lenet, labml_cnn, vgg_small, vgg16, resnet20, airbench, or one of your own: model=FILE.py:NAME."""
    width: float = 1.0
    """Factor on the number of channels and units of every hidden layer."""
    depth: int | None = None
    """paper_mlp: number of hidden layers; resnet20: blocks in each of its three stages, n for ResNet-(6 n + 2). null:
    3, as in the papers. The other networks have a depth of their own."""
    activation: str = "relu"
    """relu, sigmoid, tanh, elu or prelu."""
    placement: Placement = Placement.before
    """Norm before or after the activation."""
    dropout: float = 0.0
    """Probability of dropping a value; 0 for no dropout."""
    dropout_position: DropoutPosition = DropoutPosition.last
    """before_norm, after_norm, in_blocks (before the last convolution of each pair; vgg_small, resnet20, airbench) or
    last."""
    init: Initialization = Initialization.he
    """Initial weights: he, glorot or gaussian."""
    init_std: float = 0.01
    """gaussian: standard deviation."""
    keep_bias: bool = False
    """Whether a bias directly before a norm, which cancels it, is kept all the same."""
    file: str | None = None
    """File that defines a network of your own, which `name` is called in it. model=FILE.py:NAME sets both."""


@dataclass
class Norm:
    """``norm``: options of the variant's layers; null keeps the layer's own default."""

    eps: float | None = None
    """Added to the variance (torch's BN 1e-5, local statistics 1e-3)."""
    momentum: float | None = None
    """Weight of the new batch in the running statistics: torch's sense, Keras's is 1 - momentum."""
    affine: bool = True
    """Whether gamma and beta are learned."""
    kernel_size: int | None = None
    """adaptive, adaptivewindow: length of the window's sides. Other norms have no window: `model.check_options`."""
    gamma: Gamma = Gamma.ones
    """Before training: ones, or uniform between 0 and 1."""
    ghost_size: int | None = None
    """ghostbn: images in a ghost batch, from which statistics are taken (the layer's own default: 16)."""
    file: str | None = None
    """File that defines a norm of your own, which `variant` is called in it. variant=FILE.py:NAME sets both."""


@dataclass
class Config:
    """One run."""

    variant: str = "bn"
    """The norm: a name in bnrepro.norm.NORMS (nobn, bn, custombn, convbn, ...), or one of your own: FILE.py:NAME."""
    seed: int = 0
    """Seed of the initial weights, the order of the batches, augmentation and dropout."""
    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 64
    """Images a step. An incomplete last batch is left out."""
    eval_every: int | None = None
    """Steps between evaluations; null: at the end of each epoch."""
    eval_test: bool = False
    """Whether the test set is measured at every evaluation too. It chooses nothing either way."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread over all classes. Validation and test losses have none."""
    precision: Precision = Precision.fp32
    """fp32, bf16 (autocast), or auto: bf16 where the hardware multiplies in it, else fp32."""
    device: Device = Device.auto
    """auto, cpu or cuda."""
    channels_last: bool | None = None
    """Memory layout: NHWC (true), NCHW (false), or auto (null): NHWC where there are convolutions, which are faster in
    it. The layout changes results in their last digits."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    norm: Norm = field(default_factory=Norm)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    tensorboard: bool = True
    """Whether TensorBoard events are written."""
    angles: bool = False
    """Whether they show at each evaluation by which angle the last step turned each layer's weights, their norm and the
    effective learning rate. Changes no result."""
    keep_optimizer: bool = False
    """Whether a finished run keeps the optimizer's state, two thirds of its checkpoint. An unfinished one always does:
    it goes on from it."""
    root: str = "runs"
    """Where runs go."""


IN_CHANNELS_LAST = ("labml_cnn", "vgg_small", "vgg16", "resnet20", "airbench")
"""Networks that are faster so: a step takes 0.7 to 0.95 of the time. lenet's convolutions are too small
to gain, and a network of a user's own may view its tensors as only the other layout can be viewed."""


def in_channels_last(cfg: Config) -> bool:
    """The memory layout of ``cfg``: what it says, and where that is auto, what is faster."""
    if cfg.channels_last is not None:
        return cfg.channels_last
    return cfg.model.file is None and cfg.model.name in IN_CHANNELS_LAST
