"""The accelerated operations, as functions of plain tensors; ``nftk.reference`` has their definitions."""

from nftk.ops.explain import explain
from nftk.ops.network import network
from nftk.ops.readout import readout
from nftk.ops.tangent_gram import tangent_gram

__all__ = ["explain", "network", "readout", "tangent_gram"]
