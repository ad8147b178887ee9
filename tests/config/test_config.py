"""The schema, overrides, and the identity of a run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnrepro.config import (
    WHERE_NOT_WHAT,
    command,
    config_hash,
    configs_dir,
    differences,
    earlier_hash,
    identity_of,
    leaves,
    load_config,
    read_config,
    run_dir,
    to_dict,
    to_yaml,
)
from bnrepro.config.schema import (
    Config,
    Device,
    DropoutPosition,
    Gamma,
    Initialization,
    OptimizerName,
    Placement,
    Precision,
    ScheduleName,
    Source,
    TrainOnly,
    in_channels_last,
)
from bnrepro.errors import UserError

GROUPS = sorted(
    f"{file.parent.name}={file.stem}"
    for file in configs_dir().glob("*/*.yaml")
    if file.parent.name not in ("launcher", "experiment", "registered", "recipe")  # test_slurm.py, papers, below
)  # every other file in configs/, as an override


@pytest.mark.parametrize("override", GROUPS)
def test_every_shipped_file_gives_a_valid_configuration(override: str) -> None:
    group, _, name = override.partition("=")
    assert to_dict(load_config([override]))[group]["name"] == name


RECIPES = sorted(file.stem for file in (configs_dir() / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_sets_keys_of_all_groups_and_gives_way_to_what_is_typed(recipe: str) -> None:
    cfg = load_config([f"recipe={recipe}"])
    assert (cfg.data.name, cfg.optimizer.name, cfg.optimizer.nesterov) == ("cifar10", "sgd", True)
    said = shlex.split(command(cfg))
    assert said[:2] == ["bnrepro", "train"]
    assert load_config(said[2:]) == cfg
    assert load_config(["model.width=0.1", f"recipe={recipe}"]).model.width == 0.1
    other = load_config([f"recipe={recipe}", "optimizer=adam", "schedule=step"])
    assert (other.optimizer, other.schedule) == (load_config([]).optimizer, load_config(["schedule=step"]).schedule)
    assert other.data == cfg.data


def test_recipe_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no recipe 'cifar_fats'\. Did you mean cifar_fast"):
        load_config(["recipe=cifar_fats"])
    (tmp_path / "recipe").mkdir()
    for content in ("epochz: 3", "epochs: many", "- epochs", "epochs: [", "epochs: {a: 1}"):
        (tmp_path / "recipe" / "cifar_fast.yaml").write_text(content)
        monkeypatch.setattr("bnrepro.config.loading.configs_dir", lambda: tmp_path)
        with pytest.raises(UserError):
            load_config(["recipe=cifar_fast"])


@pytest.mark.parametrize(
    ("model", "layout"),
    [("labml_cnn", True), ("resnet20", True), ("airbench", True), ("lenet", False), ("paper_mlp", False)],
)
def test_layout_is_chosen_by_the_network_and_named_as_what_it_is(model: str, layout: bool) -> None:
    auto, said = load_config([f"model={model}"]), load_config([f"model={model}", f"channels_last={layout}"])
    assert auto == load_config([f"model={model}", "channels_last=auto"])
    assert in_channels_last(auto) is in_channels_last(said) is layout
    assert config_hash(auto) == config_hash(said)
    assert earlier_hash(auto) == earlier_hash(said)
    assert ("channels_last" in identity_of(auto)) is layout
    stored = to_dict(auto)  # as a run that failed before it began leaves it
    assert not differences(stored, said)
    assert not differences(to_dict(said), auto)
    assert differences(stored, load_config([f"model={model}", f"channels_last={not layout}"]))
    assert config_hash(load_config([f"model={model}", f"channels_last={not layout}"])) != config_hash(auto)


def test_names_that_others_rely_on_exist() -> None:
    overrides = ["variant=convbn", "seed=3", "epochs=2", "batch_size=8", "precision=bf16", "device=cpu", "root=here"]
    overrides += ["optimizer=sgd", "optimizer.lr=0.5", "data=cifar10", "data.root=d", "data.source=npz", "data.path=f"]
    overrides += ["data.val_fraction=0.2", "model=resnet20", "model.placement=after", "model.dropout=0.1"]
    cfg = load_config(overrides)
    assert (cfg.variant, cfg.seed, cfg.optimizer.lr, cfg.model.name) == ("convbn", 3, 0.5, "resnet20")


KEYS = ["epochs", "data", "model", "optimizer.lr", "schedule.milestones", "variant", "data.path", "eval_test"]

BAD = [
    "epochz=3",
    "epochs=three",
    "epochs=0",
    "epochs=",
    "epochs",
    "=3",
    "batch_size=0",
    "seed=-1",
    "eval_every=0",
    "data=nowhere",
    "model=nothing",
    "optimizer.lr=-1",
    "optimizer.lr=nan",
    "optimizer.momentum=1",
    "optimizer.eps=0",
    "data.rotate=-1",
    "data.brightness=2",
    "norm.ghost_size=0",
    "precision=fp8",
    "device=tpu",
    "model.placement=within",
    "model.dropout=1",
    "model.width=0",
    "model.width=1e9",
    "model.depth=5",
    "data.crop=1000000000000",
    "schedule.milestones=[0.5,2]",
    "data.val_fraction=1",
    "data.train_images=1",
    "data.path=x.npz",
    "data.source=npz",
    "norm.eps=0",
    "norm.momentum=2",
    "norm.kernel_size=0",
    "norm.gamma=zeros",
    "optimizer.train_only=some",
    "optimizer.train_only=random optimizer.weight_decay=0.1",
    "data.binarize=true data.samplewise=true",
    "data.together=-1",
    "data.shade=-0.5",
    "data.shade_test=-1",
    "data.shade_batches=true",
    "variant=../../etc",
    "variant=a/b",
    "data.name=..",
    "+new=1",
    "++epochs=1",
    "~model",
    "model._target_=os.system",
    "hydra.run.dir=x",
    "root=${oc.env:HOME}",
    "epochs=[1,2",
    "optimizer.nesterov=true optimizer.momentum=0",
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_override_is_one_sentence_for_the_user(bad: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(bad.split(" "))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=12), st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=12))))
def test_any_text_as_an_override_is_taken_or_refused_in_a_sentence(override: str) -> None:
    try:
        load_config([override])
    except UserError as error:
        assert str(error)


def test_message_says_which_key_and_what_is_wanted() -> None:
    with pytest.raises(UserError, match=r"epochs must be an integer, as in epochs=10; got 'three'"):
        load_config(["epochs=three"])
    with pytest.raises(UserError, match=r"There is no dataset 'nowhere'\. Available: cifar10, .*mnist5k"):
        load_config(["data=nowhere"])
    with pytest.raises(UserError, match=r"model\.dropout must be in \[0, 1\); got 1\.0"):
        load_config(["model.dropout=1"])
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs=5 exceeds epochs=1\."):
        load_config(["schedule=cosine", "schedule.warmup_epochs=5", "epochs=1"])


def test_identity_ignores_where_things_lie_and_nothing_else() -> None:
    cfg = load_config([])
    elsewhere = load_config(["root=other", "tensorboard=false", "data.root=elsewhere"])
    assert config_hash(cfg) == config_hash(elsewhere)
    changes = [
        "seed=1",
        "variant=convbn",
        "epochs=3",
        "eval_test=true",
        "optimizer.lr=0.1",
        "norm.eps=0.1",
        "data=mnist",
    ]
    changes += ["model.width=0.5", "schedule=cosine", "channels_last=false", "data.flip=true", "eval_every=5"]
    hashes = {config_hash(load_config([change])) for change in changes}
    assert len(hashes | {config_hash(cfg)}) == len(changes) + 1


def test_identity_counts_every_key_of_the_schema() -> None:
    everything = dict(leaves(to_dict(Config())))
    assert set(differences({}, load_config([])))
    assert identity_of(Config()) == {}
    for key in everything.keys() - set(WHERE_NOT_WHAT):
        cfg = Config()
        node = reduce(getattr, key.split(".")[:-1], cfg)
        setattr(node, key.split(".")[-1], OTHER.get(key, 7))
        assert identity_of(cfg).keys() == {key}
        assert config_hash(cfg) != config_hash(Config())
        assert earlier_hash(cfg) != earlier_hash(Config())


OTHER: dict[str, Any] = {
    "precision": Precision.bf16,
    "device": Device.cpu,
    "data.source": Source.npz,
    "model.placement": Placement.after,
    "model.dropout_position": DropoutPosition.before_norm,
    "model.init": Initialization.glorot,
    "norm.gamma": Gamma.uniform,
    "optimizer.name": OptimizerName.sgd,
    "optimizer.train_only": TrainOnly.norm,
    "schedule.name": ScheduleName.cosine,
    "schedule.milestones": [0.1],
    "optimizer.decay_norm": False,
    "norm.affine": False,
    **dict.fromkeys(
        [
            "eval_test", "channels_last", "data.flip", "data.shade_batches", "data.samplewise", "data.binarize",
            "model.keep_bias", "optimizer.nesterov",
        ],
        True,
    ),
    **dict.fromkeys(["variant", "data.name", "model.name", "model.activation"], "other"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "earlier"),
    [
        (["variant=convbn", "device=cpu", "channels_last=false"], "9d600246"),
        (["variant=convbn", "device=cpu", "channels_last=false", "data.rotate=20"], "f10e1c6a"),
        (["device=cpu", "model=paper_mlp", "model.depth=5", "norm.gamma=uniform"], "da406278"),
    ],
)
def test_names_of_earlier_versions_are_known(overrides: list[str], earlier: str) -> None:
    """Published with results, and on users' disks: made by the version before."""
    assert earlier_hash(load_config(overrides)) == earlier


def test_archive_counts_by_its_content_and_not_by_its_name(digits: Path, tmp_path: Path) -> None:
    def named(file: Path) -> str:
        return config_hash(load_config(["data.name=digits", "data.source=npz", f"data.path={file}"]))

    copy, other = tmp_path / "copy.npz", tmp_path / "other.npz"
    copy.write_bytes(digits.read_bytes())
    other.write_bytes(digits.read_bytes() + b" ")
    assert named(digits) == named(copy)
    assert named(digits) != named(other)
    with pytest.raises(UserError, match=r"missing\.npz"):
        named(tmp_path / "missing.npz")


def test_run_directory_says_what_the_run_is() -> None:
    cfg = load_config(["variant=convbn", "seed=7", "root=r"])
    assert run_dir(cfg) == Path("r/mnist5k/labml_cnn/convbn") / f"seed7-{config_hash(cfg)}"


def test_stored_configuration_reads_back_the_same(tmp_path: Path) -> None:
    cfg = load_config(["variant=convbn", "precision=bf16", "model.dropout=0.25", "schedule=step"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert read_config(tmp_path / "config.yaml") == cfg
    assert config_hash(read_config(tmp_path / "config.yaml")) == config_hash(cfg)


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:os.system ['touch sprung']",
        "epochs: many",
        "unknown: 1",
        "- a list",
        "root: ${oc.env:HOME}",
        "{",
        "\x00\x01",
        "variant: ../../up\ndata: {name: x}\nmodel: {name: y}",
    ],
)
def test_stored_configuration_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError):
        read_config(tmp_path / "config.yaml")
    assert not (tmp_path / "sprung").exists()


def test_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        read_config(tmp_path / "nowhere.yaml")


def test_defaults_are_those_of_the_schema() -> None:
    cfg = load_config([])
    assert replace(cfg, data=Config().data, model=Config().model) == Config()
