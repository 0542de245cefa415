"""The accelerated operations, as functions of plain tensors; ``nftk.reference`` has their definitions."""

from nftk.ops.cosine_gap import cosine_gap
from nftk.ops.explain import explain
from nftk.ops.layer_recursion import RecursionLayer, layer_recursion
from nftk.ops.network import network
from nftk.ops.project import project, project_transpose
from nftk.ops.readout import readout
from nftk.ops.tangent_gram import tangent_gram

__all__ = [
    "RecursionLayer",
    "cosine_gap",
    "explain",
    "layer_recursion",
    "network",
    "project",
    "project_transpose",
    "readout",
    "tangent_gram",
]
