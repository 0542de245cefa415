"""The sets that Omega may be held to, each with its exact Euclidean projection.

The paper trains Omega by projected gradient steps onto the non-negative matrices (equations 12 and 16) and
leaves other sparsity constraints open; the other three sets here are such constraints. A module or a training
loop needs one thing of a constraint, the method ``project_(omega)``, so any object that has it will do.
"""

from nftk.constraints.attach import attach
from nftk.constraints.base import Constraint, from_config, resolve
from nftk.constraints.group_sparse import GroupSparse
from nftk.constraints.l1_ball import L1Ball
from nftk.constraints.non_negative import NonNegative
from nftk.constraints.simplex import Simplex

__all__ = ["Constraint", "GroupSparse", "L1Ball", "NonNegative", "Simplex", "attach", "from_config", "resolve"]
