"""What projections of every kind of network share: the settings of P, and the shapes of what they fill."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nftk.ops.project import project
from nftk.tangent.projected_tangents import factors

# numbers of a piece of gradients, or of P's columns times an input
PIECE = 1 << 22


class TangentProjection:
    """P of one block of parameters after the other; what is multiplied with which columns, a network's own class says.

    Args:
        names: Of the blocks whose features are kept apart.
        outputs: C, of which each has features of its own; summed, they are 1.
        k: Features of a block.
        kind: As in project_tangents.
        seed: Of P.
        nonzeros: In a column of an SJLT.
        backend: Of project.
    """

    def __init__(
        self, names: Sequence[str], outputs: int, k: int, kind: str, seed: int, nonzeros: int, backend: str
    ) -> None:
        self.names, self.outputs, self.k, self.kind = tuple(names), outputs, k, kind
        self.k1, self.k2 = factors(k)
        self._how: dict[str, Any] = {
            "seed": seed, "kind": "rademacher" if kind == "kronecker" else kind, "nonzeros": min(nonzeros, k),
            "backend": backend,
        }  # fmt: skip

    def shapes(self, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the features and the self-kernels of n examples."""
        lead = (len(self.names), n, self.outputs)
        return (*lead, self.k), (*lead, self.outputs)

    def _project(self, x: Tensor, k: int, offset: int, blocks: int | None = None) -> Tensor:
        return project(x, k, offset=offset, blocks=blocks, **self._how)
