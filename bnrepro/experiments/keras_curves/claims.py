"""What the source says, and what can be read in its README, its code and its figures."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = "dksakkos/BatchNorm (https://github.com/dksakkos/BatchNorm), README"
FIGURES = f"{SOURCE}, figures (values read off them are right to about 0.002)"

CLAIMS = (
    Claim(
        "K1",
        SOURCE,
        "The model with no batch normalization converged slower than the other models.",
        "training accuracy after the first epoch .79 without and .87 to .88 with BN, after the second .915 and .958 to "
        ".960; training loss after the first .70 and .45; one seed, augmented digits",
    ),
    Claim(
        "K2",
        SOURCE,
        "The model with no batch normalization was outperformed by a significant margin in terms of accuracy.",
        "final validation accuracy .9875 without BN, .989 and .9905 with it (0.15 to 0.3 percentage points, one seed); "
        "the test accuracy, which its code computes, is not reported",
    ),
    Claim(
        "K3",
        SOURCE,
        "The custom implementation follows a very similar loss and accuracy curve to the official one, so it is very "
        "close to that of TensorFlow.",
        "validation curves within about 0.3 percentage points after epoch 15; one seed, and eps 1e-6 and momentum 0.9 "
        "beside the framework's 1e-3 and 0.99",
    ),
    Claim(
        "K4",
        SOURCE,
        "The results from the original paper have been replicated successfully in this experiment.",
        "no number of the paper, and no figure of it",
    ),
    Claim(
        "K5",
        FIGURES,
        "In all four figures (training and validation, accuracy and loss) the model with no batch normalization is the "
        "worst of the three.",
        "four figures, one seed each: final training accuracy .9935 without BN and .996 with it",
    ),
    Claim(
        "K6",
        SOURCE,
        "The layer subtracts the mini-batch's mean, divides by its standard deviation, scales by gamma and adds beta, "
        "which are learned; in inference mode it uses moving averages.",
        "no number; the text's formula has no eps, the code's has 1e-6 in the root",
    ),
    Claim(
        "K7",
        FIGURES,
        "The four figures show the same three runs under the same names.",
        'in the figures of accuracy the run called "Default" has about 50 epochs and "Custom" stops at about 36; in '
        'those of the loss "Custom" has about 50 and "Default" stops at about 36',
    ),
    Claim(
        "K8",
        FIGURES,
        'After the first epoch the framework\'s layer ("Default") validates better than the custom one ("Custom").',
        "validation accuracy .955 and .90, one seed",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

FIRST_EPOCHS: dict[tuple[str, int, str], str] = {
    ("nobn", 1, "train_accuracy"): ".79",
    ("bn", 1, "train_accuracy"): ".87 to .88",
    ("custombn_own", 1, "train_accuracy"): ".87 to .88",
    ("nobn", 2, "train_accuracy"): ".915",
    ("bn", 2, "train_accuracy"): ".958 to .960",
    ("custombn_own", 2, "train_accuracy"): ".958 to .960",
    ("nobn", 1, "train_loss"): ".70",
    ("bn", 1, "train_loss"): ".45",
    ("custombn_own", 1, "train_loss"): ".45",
    ("bn", 1, "val_accuracy"): '.955 (called "Default")',
    ("custombn_own", 1, "val_accuracy"): '.90 (called "Custom")',
}
"""(arm, epochs, column) -> what the source's figures show."""
