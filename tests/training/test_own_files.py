"""A norm or network in a file of a user's own: trained, compared, swept and evaluated as those of the package are."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bnrepro.config import run_dir, user_files, with_variant
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.launch import sweep
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from tests.conftest import Call
from tests.training.test_resume import assert_same, broken

Tiny = Callable[..., Config]

NORM = """
import torch
from torch import nn

class MyNorm(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x):
        y = x - x.mean(0)
        return y * self.weight.view(-1, *[1] * (x.dim() - 2))

def bn(num_features, spatial_shape):
    return nn.BatchNorm2d(num_features) if spatial_shape else nn.BatchNorm1d(num_features)
"""
NET = """
from torch import nn

def MyNet(norm, channels, image, classes):
    height, width = image
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=4), norm(8, ((height - 1) // 4, (width - 1) // 4)), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * ((height - 1) // 4) * ((width - 1) // 4), 32), norm(32),
        nn.ReLU(), nn.Linear(32, classes),
    )
"""


@pytest.fixture
def norm(tmp_path: Path) -> Path:
    file = tmp_path / "my_norm.py"
    file.write_text(NORM)
    return file


@pytest.fixture
def net(tmp_path: Path) -> Path:
    file = tmp_path / "my_net.py"
    file.write_text(NET)
    return file


def test_a_norm_of_ones_own_is_trained_and_evaluated_without_its_file(tiny: Tiny, norm: Path) -> None:
    cfg = tiny(f"variant={norm}:MyNorm")
    assert (cfg.variant, cfg.norm.file) == ("MyNorm", str(norm))
    run = Run(train.run(cfg))
    assert run.path.parent.name == run.summary["variant"] == "MyNorm"
    assert run.summary["test_accuracy"] > 0.2
    (kept,) = (run.path / "code").rglob("*.py")
    assert kept.read_text() == NORM
    norm.unlink()
    assert inference.evaluate(run)["test"][1] == pytest.approx(run.summary["test_accuracy"])


def test_the_frameworks_layer_from_a_file_gives_the_frameworks_run(tiny: Tiny, norm: Path) -> None:
    assert_same(train.run(tiny(f"variant={norm}:bn")), train.run(tiny("variant=bn")))


def test_a_changed_file_is_run_again_and_a_moved_one_is_not(tiny: Tiny, norm: Path, tmp_path: Path) -> None:
    first = run_dir(tiny(f"variant={norm}:MyNorm"))
    moved = tmp_path / "elsewhere" / "other_name.py"
    moved.parent.mkdir()
    moved.write_text(NORM)
    assert run_dir(tiny(f"variant={moved}:MyNorm")) == first
    assert run_dir(tiny(f"variant={moved}:bn")) != run_dir(tiny("variant=bn"))
    norm.write_text(NORM.replace("x.mean(0)", "x.mean()"))
    assert run_dir(tiny(f"variant={norm}:MyNorm")) != first


def test_a_network_of_ones_own_is_handed_the_norms(tiny: Tiny, net: Path, norm: Path) -> None:
    paths = {}
    for variant in ("nobn", "bn", "convbn", f"{norm}:MyNorm"):
        cfg = tiny(f"model={net}:MyNet", f"variant={variant}")
        paths[variant] = train.run(cfg)
        assert paths[variant].parts[-3] == "MyNet"
        assert Run(paths[variant]).summary["test_accuracy"] > 0.2
    trainer = train.trainer_of(tiny(f"model={net}:MyNet", "variant=convbn"))
    assert [type(each).__name__ for each in trainer.network.norms.values()] == ["ConvBatchNorm2d", "BatchNorm1d"]
    plain, other = (train.trainer_of(tiny(f"model={net}:MyNet", f"variant={v}")).network for v in ("nobn", "convbn"))
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, dict(other.named_parameters())[name])  # the same at the start


@pytest.mark.slow
def test_a_sweep_in_worker_processes(tiny: Tiny, norm: Path) -> None:
    grid = [tiny(f"variant={name}") for name in (f"{norm}:MyNorm", "bn")]
    outcomes = sweep.run_all(grid, jobs=2)
    assert [outcome.state for outcome in outcomes] == ["completed"] * 2


@pytest.mark.slow
def test_from_the_command_line(call: Call, norm: Path, net: Path, tmp_path: Path) -> None:
    small = ("model=lenet", "epochs=1", "data.val_fraction=0.9", "tensorboard=false", f"root={tmp_path / 'r'}")
    norm.write_text(f"{NORM}\nclass Größe(MyNorm): pass\n", encoding="utf-8")
    asked = ("compare", f"--variants={norm.name}:Größe,{norm.name}:MyNorm", "--seeds=2", "--jobs=1", *small)
    code, out, err = call(*asked)
    assert code == 0, err
    assert "MyNorm" in out
    assert "Größe" in out
    assert call("figures", *map(str, (tmp_path / "r").rglob("compare-*"))).code == 0
    assert "4 runs: 4 made now." in out + err
    code, out, err = call("sweep", f"variant={norm.name}:MyNorm,bn", f"model={net.name}:MyNet", *small[1:])
    assert code == 0, err
    code, out, _ = call("runs", f"--root={tmp_path / 'r'}", "--variant=MyNorm")
    assert code == 0
    assert out.count("completed") == 3
    code, out, _ = call("config", f"--variant={norm.name}:MyNorm")
    assert code == 0
    assert f"file: {norm}" in out
    assert "variant: MyNorm" in out


WRONG = {
    f"variant={'{norm}'}:MyNrom": "has no MyNrom. Did you mean MyNorm?",
    "variant=none.py:MyNorm": "There is no file",
    "variant={norm}": "does not name a class or function. Write FILE.py:NAME.",
    "model={net}": "does not name a class or function",
    "variant={norm}:torch": "is neither a class nor a function",
    "model={norm}:MyNorm": "has the signature (num_features), but is called as MyNorm(norm, channels, image, classes)",
    "variant={net}:MyNet": "is called as MyNet(num_features, spatial_shape) or MyNet(num_features).",
    "variant={bad}:Raises": "cannot be constructed: ZeroDivisionError: division by zero (line 3)",
    "variant={bad}:NoModule": "returns int, but a torch.nn.Module is needed",
    "variant={bad}:Fails": "RuntimeError: no (line 7)",
    "model={bad}:Shape": "its output must have shape (60, 10); got (60, 1, 28, 28)",
    "variant={bad}:Exits": "cannot be trained on. ",
    "variant={bad}:ExitsAtOnce": "cannot be constructed: SystemExit: 0 (line",
    "model={bad}:Empty": "has no parameters to train",
    "model={bad}:Lazy": "Lazy has lazy layers, whose sizes are not known yet. Give them their sizes, or run a",
    "variant={bad}:LazyNorm": "LazyNorm has lazy layers, whose sizes are not known yet",
    "model={bad}:Ignores": "never calls its argument norm, so all variants would be the same network",
    "variant={norm}:MyNorm norm.kernel_size=3": "norm.kernel_size=3 is not used by variant=MyNorm",
    "variant={norm}:MyNorm norm.eps=0.1": "norm.eps=0.1 is not used by variant=MyNorm",
    "variant={norm}:MyNorm norm.momentum=0.5": "norm.momentum=0.5 is not used by variant=MyNorm",
    "variant={bad}:Keeps": "its state_dict() must hold tensors, numbers, texts and containers of them alone",
    "variant={bad}:Expanded": 'cannot load its checkpoint (While copying the parameter named "layers.0.1.same"',
    "variant={bad}:Late": 'Unexpected key(s) in state_dict: "layers.0.1.late"',
    "variant={bad}:Grows": "size mismatch for layers.0.1.seen: copying a param with shape torch.Size([3, 4])",
    "variant={bad}:Remembers": "RuntimeError: Trying to backward through the graph a second time",
    "variant={bad}:Complex": "{bad}: RuntimeError: ",
    "variant={bad}:Nowhere": "Nowhere has tensors on the device meta, which hold no numbers",
    "variant={bad}:Local": "its state_dict() must hold tensors",
    "variant={bad}:Uninitialized": "Call super().__init__() first in its __init__.",
    "model={bad}:Nested": "no complete module ('Uninitialized' object has no attribute '_parameters')",
    "model={net}:MyNet model.width=2": "model.width is not used by a network of your own",
}
BAD = """import torch; from torch import nn
def Raises(features):
    return 1 / 0
NoModule = lambda features: 3
class Fails(nn.Identity):
    def __init__(self, features): super().__init__()
    def forward(self, x): raise RuntimeError("no")
def Shape(norm, channels, image, classes):
    return nn.Sequential(nn.Conv2d(channels, 1, 1), norm(1, image))
def Ignores(norm, channels, image, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image[0] * image[1], classes), nn.BatchNorm1d(classes))
def Lazy(norm, channels, image, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes), norm(classes))
class LazyNorm(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.norm = nn.LazyBatchNorm2d(affine=False)
class Exits(nn.Identity):
    def __init__(self, features): super().__init__()
    def forward(self, x): raise SystemExit(0)
def ExitsAtOnce(features): raise SystemExit(0)
class Keeps(nn.Identity):
    def __init__(self, features): super().__init__()
    def get_extra_state(self): return nn.Identity()
    def set_extra_state(self, state): pass
class Expanded(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("same", torch.ones(1).expand(8))
class Late(nn.Identity):
    def __init__(self, features): super().__init__()
    def forward(self, x):
        self.late = nn.Parameter(torch.ones(1))
        return x
class Grows(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("seen", torch.ones(1, 4))
    def forward(self, x):
        self.seen = torch.cat((self.seen, torch.ones(1, 4)))
        return x
class Remembers(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x):
        y = self.scale * x
        self.mean = 0.9 * self.mean + 0.1 * y.mean()
        return y - self.mean
class Complex(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.phase = nn.Parameter(torch.ones((), dtype=torch.complex64))
    def forward(self, x): return x * self.phase.abs()
class Nowhere(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("nothing", torch.ones(1, device="meta"))
class Local(nn.Identity):
    def __init__(self, features):
        super().__init__()
        class Mine(torch.Tensor): pass
        self.register_buffer("mine", torch.ones(1).as_subclass(Mine))
def Empty(norm, channels, image, classes):
    return nn.Flatten()
class Uninitialized(nn.Module):
    def __init__(self, features): self.features = features
    def forward(self, x): return x
def Nested(norm, channels, image, classes):
    return nn.Sequential(nn.Flatten(), norm(classes), Uninitialized(classes))
"""


@pytest.mark.parametrize("given", WRONG)
def test_what_is_wrong_is_told_before_anything_is_trained(
    given: str, call: Call, norm: Path, net: Path, digits: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(BAD)
    words = given.format(norm=norm, net=net, bad=bad).split()
    model = [] if any(word.startswith("model=") for word in words) else ["model=lenet"]
    data = ("data.source=npz", f"data.path={digits}", "data.name=digits", "batch_size=60", "device=cpu")
    code, _, err = call("train", *words, *model, *data)
    assert code == 2, err
    assert WRONG[given].format(bad=bad) in err, err
    assert err.count("\n") == 1
    assert not list((tmp_path / "runs").rglob("metrics.csv"))


LATER = """from torch import nn
class Tires(nn.Identity):
    left = 3
    def __init__(self, features): super().__init__()
    def forward(self, x):
        self.left -= 1
        if not self.left: raise KeyError("tired")
        return x
class Leaves(nn.Identity):
    left = 3
    def __init__(self, features): super().__init__()
    def forward(self, x):
        self.left -= 1
        if not self.left: raise SystemExit(0)
        return x
class Looks(nn.Identity):
    def __init__(self, features): super().__init__()
    def forward(self, x): return x if self.training else None + 1
class Widens(nn.Identity):
    left = 5
    def __init__(self, features): super().__init__()
    def forward(self, x):
        self.left -= 1
        if not self.left: self.wider = nn.Linear(1, 1)
        return x
class Detours(nn.Identity):
    left = 5
    def __init__(self, features): super().__init__()
    def forward(self, x):
        self.left -= 1
        return x if self.left else x.exp().add_(1)
class Evaluated(nn.Identity):
    error = None
    def __init__(self, features): super().__init__()
    def forward(self, x):
        if self.error and not self.training: raise self.error
        return x
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, r"\w+: .*\(line \d+\)") for name in ("Tires", "Leaves", "Looks")),
        (
            "Widens",
            r'ValueError: a newly built network .* \(Unexpected key\(s\) in state_dict: "layers\.0\.1\.wider\.weight"',
        ),
        ("Detours", "RuntimeError: one of the variables needed"),  # in the backward pass, where no line of theirs is
    ],
)
def test_what_fails_later_is_told_as_ones_own(name: str, said: str, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "later.py"
    file.write_text(LATER)
    cfg = tiny(f"variant={file}:{name}")
    with pytest.raises(UserError, match=rf"Training fails in code of your own\. {file}: {said}"):
        train.run(cfg)
    assert Run(run_dir(cfg)).status == "failed"


def test_evaluation_trusts_no_other_code_than_the_runs(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "later.py"
    file.write_text(LATER)
    path = train.run(tiny(f"variant={file}:Evaluated"))
    (kept,) = (path / "code").rglob("*.py")
    kept.write_text(LATER.replace("error = None", "error = OSError"))
    with pytest.raises(UserError, match="code of your own was changed after the run"):
        inference.evaluate(Run(path))


def test_what_fails_in_evaluation_is_told_as_ones_own(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "later.py"
    file.write_text(LATER)
    run = Run(train.run(tiny(f"variant={file}:Evaluated")))
    with monkeypatch.context() as patched:
        layer = user_files.load(run.path / "code" / "norm" / "later.py", "Evaluated")
        for error in (ZeroDivisionError, SystemExit):
            patched.setattr(layer, "error", error)
            with pytest.raises(UserError, match=rf"The evaluation fails in code of your own.*{error.__name__}"):
                inference.evaluate(run)


def test_what_a_norm_draws_comes_from_the_seed(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "drawn.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "class Drawn(nn.GroupNorm):\n"
        "    def __init__(self, num_features, eps=1e-5):\n"
        "        super().__init__(1, num_features, eps)\n"
        "        self.weight.data.uniform_()\n"
    )
    assert_same(*(train.run(tiny(f"variant={file}:Drawn", f"root={tmp_path / name}")) for name in "ab"))


def test_two_variants_of_one_name_are_refused(tiny: Tiny, norm: Path, tmp_path: Path) -> None:
    from bnrepro.report.compare import grid

    other = tmp_path / "other.py"
    other.write_text(NORM)
    with pytest.raises(UserError, match="Two of the variants are called MyNorm"):
        grid(tiny(), [f"{norm}:MyNorm", f"{other}:MyNorm"], 1)
    assert with_variant(with_variant(tiny(), f"{norm}:MyNorm"), "bn") == tiny("variant=bn")


STATE = """import random
import numpy as np
import torch
from torch import nn
class Mask(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
class Extra(nn.Identity):
    def __init__(self, features): super().__init__()
    def get_extra_state(self): return {"n": 1}
    def set_extra_state(self, state): assert state == {"n": 1}
class Eight(nn.Identity):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("eight", torch.ones(2).to(torch.float8_e4m3fn))
class Counts(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("n", torch.zeros(()), persistent=False)
    def forward(self, x):
        if self.training: self.n = self.n + 1
        return x / (1 + self.n / 10)
class Draws(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.by = 1 + 0.3 * random.random() + 0.3 * np.random.rand()
    def forward(self, x):
        return x * (self.by + 0.3 * random.random() + 0.3 * np.random.rand()) if self.training else x
class Hides(nn.Module):
    n = 0
    def __init__(self, features): super().__init__()
    def forward(self, x):
        self.n += self.training
        return x if self.n else 0 * x
"""


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", ["Mask", "Extra", "Eight", "Counts", "Draws"])
def test_state_of_ones_own_is_kept(name: str, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "state.py"
    file.write_text(STATE)
    whole, part = (tiny(f"variant={file}:{name}", f"root={tmp_path / root}") for root in ("whole", "part"))
    run = Run(train.run(whole))
    assert run.status == "completed"
    for end in (lambda: broken(part, at=1), lambda: train.run(part)):
        random.random()
        np.random.random()  # noqa: NPY002  the global one
        end()
    assert_same(run_dir(part), run.path)
    assert inference.evaluate(run)["test"][1] == run.summary["test_accuracy"]


def test_evaluation_that_differs_from_the_record_is_told(call: Call, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "state.py"
    file.write_text(STATE)
    for name, said in (("Hides", "a checkpoint does not hold"), ("Draws", "")):
        path = train.run(tiny(f"variant={file}:{name}"))
        code, _, err = call("eval", str(path))
        assert code == 0, err
        assert said in err if said else not err, err
