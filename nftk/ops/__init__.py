"""The accelerated operations, as functions of plain tensors; ``nftk.reference`` has their definitions."""

from nftk.ops.explain import explain
from nftk.ops.network import network
from nftk.ops.readout import readout

__all__ = ["explain", "network", "readout"]
