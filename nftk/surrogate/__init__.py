"""Kernel surrogates of trained networks, and how faithful they are."""

from nftk.surrogate.bootstrap import Measured
from nftk.surrogate.faithfulness import Faithfulness, faithfulness
from nftk.surrogate.kernel_surrogate import KernelSurrogate
from nftk.surrogate.layer_weights import Learning
from nftk.surrogate.measures import accuracy_difference, kendall_tau, r2_after_link, r_miss
from nftk.surrogate.penalty import Choice

__all__ = [
    "Choice",
    "Faithfulness",
    "KernelSurrogate",
    "Learning",
    "Measured",
    "accuracy_difference",
    "faithfulness",
    "kendall_tau",
    "r2_after_link",
    "r_miss",
]
