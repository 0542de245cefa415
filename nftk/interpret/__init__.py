"""What a trained network's layers say about its classes, and whether that can be believed."""

from nftk.interpret.faithfulness import DeletionCurve, deletion_curve, rank_correlation, stability
from nftk.interpret.importance import importance
from nftk.interpret.plot_explanation import plot_explanation
from nftk.interpret.plot_omega import plot_omega
from nftk.interpret.report import report

__all__ = [
    "DeletionCurve",
    "deletion_curve",
    "importance",
    "plot_explanation",
    "plot_omega",
    "rank_correlation",
    "report",
    "stability",
]
