# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # For an engineer: drop in, convert, fold, export
#
# `bnrepro.norm` needs PyTorch alone. Networks here have random weights; nothing is downloaded.

# %%
import tempfile
from pathlib import Path

import torch
from torch import nn

from bnrepro.norm import BatchNorm2d, convert, fold, freeze, reestimate_statistics

torch.manual_seed(0)

# %% [markdown]
# ## Drop in
#
# The same arguments, `state_dict` and numbers as `torch.nn.BatchNorm2d`, with a backward that is derived by hand.

# %%
theirs, ours = nn.BatchNorm2d(16), BatchNorm2d(16)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(8, 16, 10, 10, requires_grad=True)
dy = torch.randn(8, 16, 10, 10)
gradients = [torch.autograd.grad(layer(x), x, dy)[0] for layer in (theirs, ours)]
print(f"outputs differ by   {(theirs(x) - ours(x)).abs().max():.1e}")
print(f"gradients differ by {(gradients[0] - gradients[1]).abs().max():.1e}")

# %% [markdown]
# ## Convert a network
#
# Any network will do. This one has two norms on maps and one after a linear layer.

# %%
network = nn.Sequential(
    *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(16 * 64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
)
images = torch.randn(32, 3, 16, 16)
for _ in range(20):
    network(images + 0.1 * torch.randn_like(images))  # moves the running averages
before = network.eval()(images)
converted = convert(network, "convbn", images)
print([type(module).__name__ for module in converted if "Norm" in type(module).__name__])
print(f"outputs in eval mode differ by {(converted.eval()(images) - before).abs().max():.1e}")

# %% [markdown]
# ## Statistics of the population
#
# Running averages lag behind. Re-estimate them over data before evaluation.

# %%
old = converted[1].running_mean.clone()
reestimate_statistics(converted, images.split(8))
print(f"running means moved by up to {(converted[1].running_mean - old).abs().max():.3f}")

# %% [markdown]
# ## Freeze
#
# For fine-tuning: statistics, gamma and beta stand still, and `.train()` does not change that.

# %%
frozen = freeze(converted)
kept = frozen[1].running_mean.clone()
frozen.train()(images)
print("statistics unchanged by a training step:", torch.equal(frozen[1].running_mean, kept))

# %% [markdown]
# ## Fold
#
# A copy for inference. Norms per channel disappear into the convolution or linear layer before them. Norms with
# statistics
# per location become one affine map per location.

# %%
small = fold(frozen.eval(), images)
print([type(module).__name__ for module in small])
print(f"outputs differ by {(small(images) - frozen(images)).abs().max():.1e}")

# %% [markdown]
# ## Export to ONNX
#
# In eval mode, as any other network. If ONNX Runtime is installed, it computes the same.

# %%
try:
    import onnxruntime
except ImportError:
    print("ONNX Runtime is not installed.")
else:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(small, (images,), file, input_names=["image"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file)
        (found,) = session.run(None, {"image": images.numpy()})
    print(f"ONNX Runtime differs by {(torch.from_numpy(found) - small(images)).abs().max():.1e}")

# %% [markdown]
# ## Where to go from here
#
# [Convert a network](../howto/convert.md) lists all operations, [Choose the statistics at
# inference](../howto/inference.md) says which statistics when, and [Layers](../reference/norm.rst) has every argument.
