"""Layerwise tangent kernels for PyTorch: networks that say which layer decides which class."""

from nftk import constraints, ops, reference
from nftk.modules import NFTKMLP

__version__ = "0.1.0.dev0"
__all__ = ["NFTKMLP", "constraints", "ops", "reference"]
