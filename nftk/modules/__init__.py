"""The network as a torch.nn module."""

from nftk.modules.nftk_mlp import NFTKMLP
from nftk.modules.pruned_mlp import PrunedMLP

__all__ = ["NFTKMLP", "PrunedMLP"]
