"""Training: the loop, what it records, and how it survives being killed."""

from nftk.training.evaluate import evaluate
from nftk.training.fit import fit
from nftk.training.history import EpochRecord, History
from nftk.training.proximal_sgd import ProximalSGD

__all__ = ["EpochRecord", "History", "ProximalSGD", "evaluate", "fit"]
