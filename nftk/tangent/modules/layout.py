"""Where the examples are in a tensor, found by comparing a run of one example with a run of three."""

from dataclasses import dataclass

from torch import Tensor

PROBE = 3


@dataclass(frozen=True)
class Layout:
    """The dimension of the examples, and how many entries of it belong to each, one example after the other."""

    dim: int
    times: int

    def split(self, x: Tensor) -> Tensor:
        """The tensor as [n, times, the other dimensions]."""
        x = x.movedim(self.dim, 0)
        return x.reshape(x.shape[0] // self.times, self.times, *x.shape[1:])

    def joined(self, x: Tensor) -> Tensor:
        """One example's part [times, the other dimensions] with its dimension back in place."""
        return x.movedim(0, self.dim)


def layout_of(three: Tensor, one: Tensor) -> Layout | None:
    """How three examples lie, given one of them alone; None for a tensor without examples, or with another order."""
    if three.ndim != one.ndim:
        return None
    apart = [i for i, (a, b) in enumerate(zip(three.shape, one.shape, strict=True)) if a != b]
    if len(apart) != 1 or three.shape[apart[0]] != PROBE * one.shape[apart[0]] or one.shape[apart[0]] == 0:
        return None
    return Layout(apart[0], one.shape[apart[0]])
