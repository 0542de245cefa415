"""Definitions, written from the mathematics and never tuned: what every other path of nftk is tested against.

Plain functions of plain tensors, in the letters of the paper (Alemohammad et al., NFT-K, ICASSP 2022,
arXiv 2110.04945). They run in the dtype of their inputs; give them float64 and they are the truth.
"""

from nftk.reference.empirical_ntk import empirical_ntk_reference
from nftk.reference.infinite_ntk import infinite_ntk_reference
from nftk.reference.network import (
    hidden_states_reference,
    network_reference,
    readouts_reference,
    weighted_sum_reference,
)
from nftk.reference.project import projection_reference
from nftk.reference.tangent_gram import tangent_gram_reference

__all__ = [
    "empirical_ntk_reference",
    "hidden_states_reference",
    "infinite_ntk_reference",
    "network_reference",
    "projection_reference",
    "readouts_reference",
    "tangent_gram_reference",
    "weighted_sum_reference",
]
