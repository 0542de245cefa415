"""The network as a torch.nn module."""

from nftk.modules.nftk_mlp import NFTKMLP

__all__ = ["NFTKMLP"]
