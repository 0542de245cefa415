"""The accelerated operations, as functions of plain tensors; ``nftk.reference`` has their definitions."""

from nftk.ops.network import network

__all__ = ["network"]
