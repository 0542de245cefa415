"""Which training examples a prediction rests on, by layer, and whether that can be believed."""

from nftk.attribution.attribute import Attribution, attribute
from nftk.attribution.counterfactual import (
    Agreement,
    draw_subsets,
    linear_datamodeling_score,
    rank_agreement,
    retrain,
)
from nftk.attribution.explanation import Explanation, explain
from nftk.attribution.leave_one_out import leave_one_out
from nftk.attribution.poisoned import Suspicion, find_poisoned
from nftk.attribution.ranking import Ranked, bottom_k, top_k
from nftk.attribution.self_influence import self_influence

__all__ = [
    "Agreement",
    "Attribution",
    "Explanation",
    "Ranked",
    "Suspicion",
    "attribute",
    "bottom_k",
    "draw_subsets",
    "explain",
    "find_poisoned",
    "leave_one_out",
    "linear_datamodeling_score",
    "rank_agreement",
    "retrain",
    "self_influence",
    "top_k",
]
