"""NumPyNet, documentation of its batch normalization layer.

https://github.com/Nico-Curti/NumPyNet

Differences from the paper
- The source trains no network. Ours are small ones on 5,000 digits, with the layer after a convolution or a linear
  layer that keeps its bias, plain SGD, and no search for a learning rate: each rate is a condition of its own.
- Networks are trained in float32 and in torch, whose gradient is compared in float64 with the source's lines in NumPy;
  the source computes in float64.
- Sums that the text runs from i = 0 to batch_size (one term too many) are taken over the batch.
- The layer has no inference mode, so test accuracy is that with statistics of test batches of the training's size.
- The repository's test is rewritten with torch in place of Keras (inference mode, moving statistics set to those of the
  batch), on shapes drawn within its ranges but with at most 100 x 100 x 3 locations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from matplotlib.figure import Figure

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values
from bnrepro.claims.evidence import equal, exact, greater, less, not_testable
from bnrepro.experiments.numpynet.layer import GRADIENTS
from bnrepro.experiments.numpynet.measurements import identities, locations, own_test, training, wrong_gradient
from bnrepro.plots.panels import curve, legend, lines, looks, panels
from bnrepro.plots.style import GREY

DATA = ("data=mnist5k",)
TEXT = "NumPyNet's documentation, text: https://github.com/Nico-Curti/NumPyNet"
CODE = "NumPyNet's documentation, code: https://github.com/Nico-Curti/NumPyNet"
TESTS = "NumPyNet, testing/test_batchnorm_layer.py: https://github.com/Nico-Curti/NumPyNet"
READING = "this project's reading of NumPyNet's code"
REFERENCES = {"oracle": "to the reference", "torch": "to torch"}
DIFFERENCES = {"differences": "to finite differences"}
SMALLEST = 1e-12  # of what is drawn or compared as a logarithm: a norm that may be 0


class Settings(Preset):
    tolerance: float = 1e-9  # relative error that float64 leaves in an identity ...
    fd_tolerance: float = 1e-6  # ... and finite differences, which leave more
    identity_shape: list[int] = [5, 4, 3, 2]  # (N, w, h, c); small, since finite differences move each value by itself
    # (N, w, h, c) of the table of wrong gradients. The first stands for the source's example.
    shapes: list[list[int]] = [[5, 100, 100, 3], [64, 28, 28, 1], [64, 8, 8, 1], [4, 1, 1, 1], [64, 1, 1, 1]]
    # delta: uniform on (0, 1) as in the source's example, standard normal, or one as in the repository's test
    upstreams: list[str] = ["uniform", "normal", "ones"]
    values: int = 20000  # drawn for a row of the table at least; small shapes are drawn often: the median of draws
    sweep_batch: int = 16  # images of the figure, and below its numbers of locations
    sweep_locations: list[int] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096]
    many_locations: int = 8  # N4.9, N4.12: locations per image from which on it is held against the detached gradient
    detached_margin: float = 0.05  # N4.9: relative distance that counts as none; batches differ by far more than that
    own_test_draws: int = 5  # shapes that the repository's test is run on, for each seed
    networks: list[str] = ["conv", "wide", "narrow"]  # two convolutions, and two linear layers of 512 and of 8 units
    learning_rates: list[float] = [0.01, 0.1]
    batch_size: int = 32
    steps: int = 1000
    every: int = 20  # steps between the points of a curve
    # Percentage points of test accuracy that count as none: 10 of the 1,000 test images, about one and a half standard
    # errors of a single accuracy near 95%. N4.18: the same share of images that change class.
    margin_points: float = 1.0
    margin_growth: float = 0.04  # N4.13: decades of growth that count as none, 10% of a norm

    @property
    def fastest(self) -> float:
        """The largest learning rate, whose curves are drawn."""
        return max(self.learning_rates)


paper = Paper(__name__, Settings, scale="toy", scale_note="small networks, 1,000 steps on 5,000 digits")


@paper.design
def design(s: Settings) -> Design:
    """No runs: networks are trained in measurements, since a wrong gradient is no variant to offer."""
    made = Design(s.seeds)
    made.measure("identities", {}, identities, shape=s.identity_shape)
    swept = [[s.sweep_batch, m, 1, 1] for m in s.sweep_locations]
    cases = [*product(["table"], s.shapes, s.upstreams), *product(["sweep"], swept, ["uniform", "normal"])]
    for part, shape, upstream in cases:
        factors = {"shape": named(shape), "upstream": upstream}
        made.measure(part, factors, wrong_gradient, shape=shape, upstream=upstream, values=s.values)
    made.measure("own_test", {}, own_test, draws=s.own_test_draws)
    schedule: Row = {"steps": s.steps, "batch_size": s.batch_size, "every": s.every}
    for network, lr, gradient in product(s.networks, s.learning_rates, GRADIENTS):
        trains: Row = {"network": network, "lr": lr, "gradient": gradient}
        made.measure("training", trains, training, DATA, **trains, **schedule)
    return made


def named(shape: Sequence[int]) -> str:
    """``5 x 100 x 100 x 3``, a level of the factor ``shape``."""
    return " x ".join(map(str, shape))


def ratio(shape: str) -> float:
    """M / N of a shape by its name: locations over images."""
    n, *rest = map(int, shape.split(" x "))
    return math.prod(rest) / n


# --- claims: formulas and code, in float64 ---

identity = partial(paper.claim, kind="identity")
text, code, tests = (partial(identity, source=source) for source in (TEXT, CODE, TESTS))


def errors(r: Results, to: dict[str, str], *names: str) -> dict[str, Values]:
    """Relative errors of what the source calls so, by what is said of the references."""
    return {
        f"{name} {label}" if len(names) > 1 else label: r.measured(f"{name}/{reference}", part="identities")
        for name, (reference, label) in product(names, to.items())
    }


def correct(r: Results, s: Settings, estimand: str, *names: str) -> Evidence:
    """Derivatives are within float64 of the reference and torch, and near finite differences, which are coarser."""
    evidence = exact(errors(r, REFERENCES, *names), estimand, tolerance=s.tolerance)
    return evidence & exact(errors(r, DIFFERENCES, *names), estimand, tolerance=s.fd_tolerance)


@code(
    "N4.1",
    where="docstring of forward",
    quote="output = scale * input_norm + bias Where input_norm is: input_norm = (input - mean) / sqrt(var + epsil) "
    "where mean and var are the mean and the variance of the input batch of images computed over the first axis",
)
def forward_normalizes_over_the_batch(r: Results, s: Settings) -> Evidence:
    """`forward` returns scale * (input - mean) / sqrt(var + epsil) + bias, with mean and variance over the batch."""
    return exact(errors(r, REFERENCES, "forward"), "relative error of the output", tolerance=s.tolerance)


@text("N4.2", where="third formula", quote="The forward is basically a numpy version of the theory described above")
def text_squares_the_numerator(r: Results, s: Settings) -> Evidence:
    """The normalised pixel is x̂ = (x - x̄)² / √(σ² + ε), and the code's forward is a version of that."""
    names = ("squared/mean", "squared/std", "squared/negative", "code/mean", "code/std")
    mean, std, negative, code_mean, code_std = (r.measured(name, part="identities") for name in names)
    squared = {"mean": mean, "standard deviation minus 1": std - 1.0}
    tolerance = 0.1  # far beyond what 100,000 values leave
    evidence = exact(squared, "the text's x̂ for Gaussian pixels", "sigma", tolerance=tolerance)
    evidence = evidence.showing({"negative values of the text's x̂": 100 * negative}, "%")
    return evidence.showing({"mean of the code's x̂": code_mean, "std of the code's x̂": code_std}, "sigma")


@text("N4.3", where="The two updates")
def updates_are_correct(r: Results, s: Settings) -> Evidence:
    """δβ = Σ δ and δγ = Σ δ x̂, summed over the batch, are the updates of bias and scales."""
    return correct(r, s, "relative error of the code's updates", "dscales", "dbias")


@text("N4.4", where="formula for the error to be back-propagated")
def text_has_the_gradient(r: Results, s: Settings) -> Evidence:
    """The error to be back-propagated is (N δx̂ - Σ δx̂ - x̂ Σ δx̂ x̂) / (N √(σ² + ε)), with N the batch size."""
    return correct(r, s, "relative error of the text's formula", "text")


@code("N4.5", where="end of backward", quote="Here, delta is the derivative of the output w.r.t. input")
def code_has_the_gradient(r: Results, s: Settings) -> Evidence:
    """The delta that `backward` returns is the derivative by the input."""
    error, cosine = (r.measured(quantity, part="table") for quantity in ("relative_error", "cosine"))
    of_example, of_cosine = (values.at(shape=named(s.shapes[0]), upstream="uniform") for values in (error, cosine))
    evidence = exact(error, "relative error of the code's gradient", tolerance=s.tolerance)
    evidence = evidence.showing({"on the source's example": 100 * of_example}, "percent relative error")
    differences = r.measured("code/differences", part="identities")
    to_differences = "relative error to finite differences, on a small shape"
    return evidence.showing({"cosine there": of_cosine, to_differences: differences})


@code("N4.6", where="backward", quote="self.mean_delta = (self.delta * (-self.var)).mean(axis=0) # dmu")
def dmu_is_the_derivative_by_the_mean(r: Results, s: Settings) -> Evidence:
    """`mean_delta`, a mean over the batch marked `# dmu`, is the derivative by the mean."""
    found, times = (r.measured(quantity, part="identities") for quantity in ("dmu/differences", "dmu/ratio"))
    evidence = exact(found, "relative error of dmu to finite differences", tolerance=s.fd_tolerance)
    return evidence.showing({"median over locations": times}, "times the derivative")


@code(
    "N4.7",
    where="backward",
    quote="self.var_delta = ((self.delta * (self.x - self.mean)).sum(axis=0) * (-.5 * self.var * self.var * self.var)) "
    "# dvar",
)
def dvar_is_the_derivative_by_the_variance(r: Results, s: Settings) -> Evidence:
    """`var_delta`, marked `# dvar`, is the derivative by the variance."""
    found = r.measured("dvar/differences", part="identities")
    return exact(found, "relative error of dvar to finite differences", tolerance=s.fd_tolerance)


@identity("N4.8", source=READING, where="backward: invN and mean_delta")
def two_independent_mistakes(r: Results, s: Settings) -> Evidence:
    """The backward has two independent mistakes: invN counts locations instead of images, and dmu is a mean instead of
    a sum. Fixing one of them is not enough; fixing both gives the exact gradient.
    """
    found = r.measured("mended_error", part="table")
    unequal = [shape for shape in found.levels("shape") if ratio(shape) != 1]  # else invN is right by accident
    both, *alone = (found.at(shape=unequal, x=mended) for mended in ("both", "invN", "sum"))
    estimand = "relative error of the code with mistakes fixed"
    evidence = exact(both.max(), estimand, tolerance=s.tolerance, condition="both")
    for name, one in zip(("invN alone", "sum alone"), alone, strict=True):
        enough = one.map(lambda error: error <= s.tolerance).reduce(sum)
        evidence &= exact(enough, "", "cases where it is enough", tolerance=0, condition=name)
        evidence = evidence.showing({f"smallest error with {name} fixed": one.min()})
    return evidence


@paper.claim("N4.9", source=READING, kind="prediction", scale="exact", where="backward")
def code_goes_to_the_detached_gradient(r: Results, s: Settings) -> Evidence:
    """With many more locations than images, the code's gradient is that which takes mean and variance for constants."""
    found = r.measured("to_detached", part=["table", "sweep"]).mean("part")
    far = [shape for shape in found.levels("shape") if ratio(shape) >= s.many_locations]
    return less(found.at(shape=far), "distance from the detached gradient", "of its norm", bar=s.detached_margin)


# --- claims: training ---


def checked(r: Results, s: Settings, evidence: Evidence) -> Evidence:
    """``evidence`` if the torch layer's gradients are those of the source's lines; else it shows nothing of them."""
    off = max((error for each in GRADIENTS for error in r.measured(f"layer/{each}", part="identities")), default=0.0)
    return evidence if off <= s.tolerance else not_testable("The torch layer that was trained is not the source's.")


def trains_as(r: Results, s: Settings, one: str, other: str, networks: list[str]) -> Evidence:
    """Test accuracy with one gradient minus another is none, by network and learning rate."""
    found = r.measured("test_accuracy", part="training", network=networks)
    difference, unit = found.at(gradient=one) - found.at(gradient=other), "percentage points of test accuracy"
    return checked(r, s, equal(difference, f"{one}'s gradient minus {other}", unit, margin=s.margin_points))


@paper.claim(
    "N4.10",
    source=CODE,
    where="example",
    quote="now net_delta is modified and ready to be passed to the previous layer.delta",
)
def code_trains_as_the_exact_gradient(r: Results, s: Settings) -> Evidence:
    """A layer before this one learns from the code's gradient as it does from the exact one."""
    return trains_as(r, s, "code", "exact", s.networks)


@paper.claim("N4.11", source=TEXT, where="formula for the error to be back-propagated")
def text_trains_as_the_exact_gradient(r: Results, s: Settings) -> Evidence:
    """A layer before this one learns from the text's gradient as it does from the exact one."""
    evidence = trains_as(r, s, "text", "exact", s.networks)
    return replace(evidence, remark="By N4.4 both gradients are the same, so that the runs differ by rounding alone.")


@paper.claim("N4.12", source=READING, kind="prediction")
def code_trains_as_detached(r: Results, s: Settings) -> Evidence:
    """NumPyNet's mistake is what labml's page warns of: where locations outnumber images, the code trains as with
    statistics outside the gradient.
    """
    crowded = [each for each in s.networks if min(locations(each)) >= s.many_locations * s.batch_size]
    return trains_as(r, s, "code", "detached", crowded)


@paper.claim("N4.13", source=READING, kind="prediction")
def biases_keep_growing(r: Results, s: Settings) -> Evidence:
    """With the code's gradient the bias before the layer, as labml's page says of statistics outside the gradient,
    "will increase or decrease ... and keep on growing"; with the exact one it stays where it is.
    """
    norms = r.measured("bias_norm", part="training").map(lambda v: max(v, SMALLEST)).log10()
    steps = norms.levels("x")
    end, half = at_end(norms), at_end(norms.at(x=[x for x in steps if x <= max(steps) / 2]))
    beyond, still = (end.at(gradient="code") - other for other in (end.at(gradient="exact"), half.at(gradient="code")))
    estimand, unit = "norm of the biases with the code's gradient", "decades"
    evidence = greater(beyond, estimand, unit, bar=1.0, condition="over the exact gradient's")
    evidence &= greater(still, estimand, unit, margin=s.margin_growth, condition="over half-way")
    return checked(r, s, evidence)


def at_end(values: Values) -> Values:
    """The last point of each curve; what has no points is left as it is."""
    return values.reduce(lambda points: points[-1], "x") if "x" in values.factors else values


# --- claims: the repository's tests, and the paper ---


@tests("N4.14", reported="the test passes", where="delta = 1, rtol = atol = 0.1")
def its_test_shows_the_gradient_right(r: Results, s: Settings) -> Evidence:
    """Its test of the backward (delta = 1, against Keras, rtol = atol = 0.1) shows that the gradient is right."""
    fails = 1.0 - r.measured("passes", part="own_test")
    decides = {"the code": fails.at(x="code"), "the exact gradient": fails.at(x="exact")}
    beside = {
        "the code against a reference in training mode": fails.at(x="code in training mode"),
        "largest value of the exact gradient": r.measured("largest_exact", part="own_test"),
    }
    evidence = exact(decides, "share of draws that fail its test", tolerance=0).showing(beside)
    remark = "Its reference takes the statistics for constants; with a constant delta the exact gradient is zero."
    return replace(evidence, remark=remark)


@tests("N4.15", where="comment on the shapes that are drawn", quote="numerical instability for small dimensions!")
def small_dimensions_are_unstable(r: Results, s: Settings) -> Evidence:
    """The test draws w and h from 50 up because of numerical instability in small dimensions."""
    unexplained = r.measured("small_unexplained", part="own_test")
    estimand = "a deviation that is more than the formula's 1 / M"
    more = any(error > s.tolerance for error in unexplained)
    evidence = exact(more, estimand) if unexplained else Evidence(estimand)
    deviation = r.measured("small_deviation", part="own_test", seed=[0])
    beside = {f"deviation at M = {m:g}": at for m, at in deviation.by("x").items()}
    evidence = evidence.showing(beside | {"largest deviation beyond 1 / M": unexplained.max("x")})
    return replace(evidence, remark="1 / M is a term of the code's formula.")


@text(
    "N4.16",
    reported="scales and bias of shape (100, 100, 3) in its example",
    where="second paragraph",
    quote="The layer has been implemented following the original paper",
)
def parameters_follow_the_paper(r: Results, s: Settings) -> Evidence:
    """The layer follows the original paper in its parameters: scales and bias of shape (w, h, c)."""
    who = ("source", "paper")
    source, original = (r.measured(f"parameters/{each}", part="identities", seed=[0]) / 1000 for each in who)
    unit = "thousand parameters"
    evidence = exact(source - original, "its example minus the paper's layer for maps", unit, tolerance=0)
    evidence = evidence.showing({"its example": source, "the paper's layer (section 3.2)": original}, unit)
    return replace(evidence, remark="One scale and bias per location is what the paper has for linear layers.")


@code("N4.17", where="example", quote="a single image won't work in this case")
def a_single_image_fails(r: Results, s: Settings) -> Evidence:
    """A batch of a single image cannot be normalised."""
    alone = r.measured("single/from_bias", part="identities")
    evidence = exact(alone, "distance of the output for a single image from the bias", tolerance=0)
    return replace(evidence, remark="The output is the bias whatever the image shows, without an error.")


@paper.claim(
    "N4.18",
    source=TEXT,
    where="second paragraph",
    quote="following the original paper [...], where is also possible to find the entire implementation of the "
    "algorithm and teoretical explanations of forward and backward pass",
)
def inference_follows_the_paper(r: Results, s: Settings) -> Evidence:
    """The layer follows the original paper at inference: Algorithm 2 makes the output a function of the image alone."""
    changed = r.measured("changed_classes", part="training", gradient="exact")
    evidence = less(changed, "classes that depend on the batch", "% of test images", bar=s.margin_points)
    return replace(evidence, remark="There are no running statistics and no other mode.")


# --- tables and figures ---


@paper.table
def wrong_gradient_by_shape(r: Results, s: Settings) -> list[Row]:
    """The code's gradient against the exact and the detached one."""
    quantities = {
        "relative error": "relative_error",
        "cosine": "cosine",
        "mean |batch sum of dx|": "batch_sum",
        "the same, exact": "exact_batch_sum",
        "relative distance from detached": "to_detached",
    }
    found = {name: r.measured(quantity, part="table").by("shape", "upstream") for name, quantity in quantities.items()}
    return [
        {"shape (N, w, h, c)": cell[0], "upstream": cell[1], "M / N": ratio(cell[0])}
        | {name: values[cell].interval() if cell in values else None for name, values in found.items()}
        for cell in found["relative distance from detached"]
    ]


@paper.table
def mended(r: Results, s: Settings) -> list[Row]:
    """Relative error with the mistakes fixed, one or both."""
    return [
        {"shape (N, w, h, c)": shape, "upstream": upstream}
        | {f"fixed: {what}": error for what, error in values.intervals("x").items()}
        for (shape, upstream), values in r.measured("mended_error", part="table").by("shape", "upstream").items()
    ]


@paper.table
def trained(r: Results, s: Settings) -> list[Row]:
    """After {s.steps} steps, by gradient."""
    quantities = {
        "test accuracy, %": "test_accuracy",
        "training loss": "train_loss",
        "norm of biases before": "bias_norm",
        "norm of weights before": "weight_norm",
    }
    ends = {name: at_end(r.measured(quantity, part="training")) for name, quantity in quantities.items()}
    diverged = r.measured("diverged", part="training").by("network", "lr", "gradient")
    return [
        {"network": network, "lr": lr, "gradient": gradient}
        | {name: values.at(network=network, lr=lr, gradient=gradient).interval() for name, values in ends.items()}
        | {"diverged": int(sum(found))}
        for (network, lr, gradient), found in diverged.items()
    ]


@paper.figure
def gradients(r: Results, s: Settings) -> Figure | None:
    """The gradient that NumPyNet's code returns, against the exact one and the one that takes mean and variance for
    constants, for batches of {s.sweep_batch} with more and more locations (grey: as many as images). Means are
    geometric.
    """
    look = looks({"relative_error": "from the exact gradient", "to_detached": "from the detached gradient"})
    figure, axes = panels(2, sharey=True)
    for panel, upstream, title in zip(axes, ("uniform", "normal"), ("U(0, 1)", "N(0, 1)"), strict=True):
        for quantity, each in look.items():
            found = r.measured(quantity, part="sweep", upstream=upstream).by("shape")
            if not found:
                return None
            curve(panel, {ratio(shape): v.log().interval() for shape, v in found.items()}, each, log=True)
        panel.set(xscale="log", yscale="log", xlabel="locations / images, M / N", title=f"delta ~ {title}")
        panel.axvline(1, color=GREY, linewidth=0.8)
    axes[0].set_ylabel("relative distance of\nthe code's gradient")
    legend(figure)
    return figure


@paper.figure
def curves(r: Results, s: Settings) -> Figure | None:
    """Networks with NumPyNet's layer after each hidden layer, at learning rate {s.fastest:g} (SGD, batches of
    {s.batch_size}): training loss, where the text's formula lies on the exact gradient, and the Euclidean norm of the
    biases that the layer cancels. M / N: locations over images of the layers. 5,000 MNIST digits. Means are geometric.
    """
    look = looks({"exact": "exact", "text": "text's formula", "code": "code", "detached": "detached"})
    columns = len(s.networks)
    figure, axes = panels(columns, 2, height=1.9, sharex=True)
    for panel, (quantity, network) in zip(axes, product(("train_loss", "bias_norm"), s.networks), strict=True):
        found = r.measured(quantity, part="training", lr=s.fastest, network=network).map(lambda v: max(v, SMALLEST))
        if not found:
            return None
        lines(panel, found, "x", "gradient", look, log=True, marks=False)
        panel.lines[0].set_linewidth(2.6)  # exact, under the text's
        panel.set_yscale("log")
    for above, below, network in zip(axes[:columns], axes[columns:], s.networks, strict=True):
        ratios = sorted({m / s.batch_size for m in locations(network)}, reverse=True)
        above.set_title(f"{network}: M / N = {', '.join(f'{each:g}' for each in ratios)}")
        below.set_xlabel("step")
    axes[0].set_ylabel("training loss")
    axes[columns].set_ylabel("|b| before the layers")
    legend(figure)
    return figure
