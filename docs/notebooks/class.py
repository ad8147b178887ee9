# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # For a class: three experiments in three seconds
#
# Each experiment is a few lines and takes about a second. Change the numbers and run it again.

# %%
import torch
from matplotlib import pyplot
from torch import nn

from bnrepro.norm import NORMS, NormError

# %% [markdown]
# ## 1. Statistics outside the gradient
#
# A linear layer with a bias, a norm, and a squared error. The variant `custombn` differentiates through its mean and
# variance. `detached` takes them for constants, as code does that computes them without gradients. Both compute the
# same output.
#
# **Question.** The norm subtracts the bias again. What should its gradient be?

# %%
torch.manual_seed(0)
inputs, targets = torch.randn(64, 8), torch.randn(64, 4)


def train(variant: str, steps: int = 400, rate: float = 0.5) -> dict[str, list[float]]:
    """Gradient descent on a linear layer before a norm; what becomes of it."""
    torch.manual_seed(1)
    linear, norm = nn.Linear(8, 4), NORMS[variant](4, ())
    optimizer = torch.optim.SGD(linear.parameters(), lr=rate)
    found: dict[str, list[float]] = {"bias": [], "weight": [], "loss": []}
    for _ in range(steps):
        loss = (norm(linear(inputs)) - targets).square().mean()
        found["loss"].append(loss.item())
        found["bias"].append(linear.bias.norm().item())
        found["weight"].append(linear.weight.norm().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


runs = {variant: train(variant) for variant in ("custombn", "detached")}
print("           size of the bias   of the weights    loss")
for variant, found in runs.items():
    ends = [f"{found[name][0]:.2f} -> {found[name][-1]:6.2f}" for name in found]
    print(f"{variant:10s} {ends[0]:16s}   {ends[1]:14s}    {ends[2]}")

# %% alt="Size of the bias, size of the weights, and loss over 400 steps, for exact and detached statistics."
figure, panels = pyplot.subplots(1, 3, figsize=(8.5, 2.6), layout="constrained")
for axes, (name, title) in zip(
    panels, {"bias": "size of the bias", "weight": "size of the weights", "loss": "loss"}.items(), strict=True
):
    for variant, found in runs.items():
        axes.plot(found[name], label=variant)
    axes.set(title=title, xlabel="step")
panels[0].legend(frameon=False)

# %% [markdown]
# The exact gradient is orthogonal to a shift and to a scaling of the layer's output: the bias stays where it is, the
# weights hardly grow, and the loss settles. The detached one pushes the bias further with each step. The loss does not
# answer, and as the weights are thrown about too, it never settles. The derivation is in
# [Why statistics belong inside the gradient](../explanation/gradient.md); the verdicts on the claim are
# {claim}`labml/A1` and {claim}`labml/A1.3`.
#
# ## 2. The horizon
#
# Images whose lower half is dark: a road below the sky. Batch normalization has one mean per channel, local-gain
# normalization one per channel and location.
#
# **Question.** Which half does a ReLU after the norm switch off?

# %%
torch.manual_seed(0)
images = torch.rand(64, 1, 12, 12)
images[:, :, 6:] *= 0.2
for variant in ("bn", "convbn", "peractivationbn", "adaptive"):
    active = (NORMS[variant](1, (12, 12))(images) > 0).float().mean((0, 1, 3))
    above, below = active[:6].mean(), active[6:].mean()
    print(f"{variant:16s} active above the horizon {above:4.0%}, below it {below:4.0%}")

# %% alt="Share of active ReLUs by row of the image, for batch normalization, local gain and a window."
figure, axes = pyplot.subplots(figsize=(5, 2.6), layout="constrained")
for variant in ("bn", "convbn", "adaptive"):
    axes.plot(
        (NORMS[variant](1, (12, 12))(images) > 0).float().mean((0, 1, 3)), label=variant, marker="o", markersize=3
    )
axes.set(xlabel="row of the image", ylabel="share of active ReLUs")
axes.legend(frameon=False)

# %% [markdown]
# In a trained network gamma and beta can move the threshold. Whether the effect survives training is
# {claim}`conv_batchnorm/L6a.2`, and whether local statistics help is {claim}`conv_batchnorm/L6c`.
#
# ## 3. A batch of one
#
# **Question.** What does a norm with statistics over the batch make of a single image in training?

# %%
image = torch.randn(1, 4, 6, 6)
for variant in ("bn", "convbn", "groupnorm", "layernorm"):
    try:
        output = NORMS[variant](4, (6, 6))(image)
        print(f"{variant:10s} standard deviation {output.std():.2f}")
    except NormError as error:
        print(f"{variant:10s} refused: {str(error).split(',')[0]}")

# %% [markdown]
# Batch normalization still has the 36 locations of a channel to average over. With local statistics each value would be
# normalized by itself, to zero, and the layer says so ({claim}`conv_batchnorm/L-one`). Group and layer normalization
# pool
# within an image and do not see the batch.
#
# ## Exercises
#
# 1. Replace `detached` by `detachedmean` in the first experiment. What grows now?
# 2. Add weight decay to the optimizer. Does the bias settle?
# 3. Move the horizon, or give each image a darkness of its own. When do the two norms agree?
