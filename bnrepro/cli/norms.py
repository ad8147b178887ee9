"""Each norm in a line, for `bnrepro norms`, help and completion. Knows no torch: a test holds it to the layers."""

from __future__ import annotations

from typing import NamedTuple


class Norm(NamedTuple):
    """What a norm does to maps (N, C, H, W)."""

    formula: str
    statistics: str
    """The axes that they are taken over; a comma parts those of several."""
    parameters: str
    """gamma and beta: per channel (C), per channel and location (C H W), or none (-)."""
    differs: bool
    """Whether training and evaluation differ."""
    source: str


XHAT = "(x - mean) / sqrt(var + eps)"
NORMS: dict[str, Norm] = {
    "nobn": Norm("x", "-", "-", False, "-"),
    "bn": Norm(XHAT, "N H W", "C", True, "Ioffe & Szegedy 2015; torch's own layer"),
    "custombn": Norm(XHAT, "N H W", "C", True, "Ioffe & Szegedy 2015; backward derived by hand"),
    "convbn": Norm(XHAT, "N", "C", True, "lmcintosh/conv-batchnorm 2018 (local gain)"),
    "peractivationbn": Norm(XHAT, "N", "C H W", True, "Ioffe & Szegedy 2015, section 3"),
    "locationaffinebn": Norm(XHAT, "N H W", "C H W", True, "the control of the 2 x 2 table"),
    "adaptive": Norm("(x - pool(mean)) / sqrt(pool(var) + eps)", "N window", "C", False, "lmcintosh/conv-batchnorm"),
    "adaptivewindow": Norm("(x - mean) / sqrt(var + eps) of a window", "N window", "C", False, "as adaptive, ours"),
    "ghostbn": Norm(XHAT, "part of N, H W", "C", True, "Hoffer, Hubara & Soudry 2017"),
    "renorm": Norm("r (x - mean) / std + d, r and d clipped", "N H W", "C", True, "Ioffe 2017"),
    "detachedmean": Norm(f"{XHAT}, mean without gradient", "N H W", "C", True, "Ioffe & Szegedy 2015, section 2"),
    "detached": Norm(f"{XHAT}, both without gradient", "N H W", "C", True, "Ioffe & Szegedy 2015, section 2"),
    "noisybn": Norm(f"s {XHAT} + m, s and m random", "N H W", "C", True, "Santurkar et al. 2018"),
    "l1bn": Norm("(x - mean) / (sqrt(pi/2) mean|x - mean|)", "N H W", "C", True, "Hoffer et al. 2018"),
    "linfbn": Norm("(x - mean) / (c max|x - mean|), top ten", "N H W", "C", True, "Hoffer et al. 2018"),
    "l1norm": Norm("(x - mean) / mean|x|", "N H W", "C", True, "Santurkar et al. 2018"),
    "l2norm": Norm("(x - mean) / sqrt(mean x^2)", "N H W", "C", True, "Santurkar et al. 2018"),
    "linfnorm": Norm("(x - mean) / max|x|", "N H W", "C", True, "Santurkar et al. 2018"),
    "noise": Norm("s x + m, s and m random", "-", "-", True, "Santurkar et al. 2018"),
    "frozenbn": Norm("x / sqrt(1 + eps)", "-", "C", False, "what gamma and beta do alone"),
    "groupnorm": Norm(XHAT, "group of C, H W", "C", False, "Wu & He 2018; torch's own layer"),
    "layernorm": Norm(XHAT, "C H W", "C H W", False, "Ba, Kiros & Hinton 2016; torch's own layer"),
    "instancenorm": Norm(XHAT, "H W", "C", False, "Ulyanov et al. 2016; torch's own layer"),
    "lrn": Norm("x / (k + alpha/n sum x^2)^beta", "5 of C", "-", False, "Krizhevsky et al. 2012"),
    "dyt": Norm("tanh(alpha x), alpha learned", "-", "C, alpha", False, "Zhu et al. 2025"),
}
