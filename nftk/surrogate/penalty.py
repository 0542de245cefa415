"""Choosing the penalty of a surrogate on examples held out."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.regression.solve import KernelWarning

# shares of the kernel's mean diagonal that are tried where nobody names penalties, and how many worse ones end it
GRID, PATIENCE = tuple(10.0**e for e in range(0, -9, -1)), 2


class Choice(NamedTuple):
    """What a search of the penalty found.

    Attributes:
        penalty: The best.
        penalties: Those tried, descending.
        losses: Of each, what was lost on the examples held out.
    """

    penalty: float
    penalties: Tensor
    losses: Tensor


def held_out(places: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the examples to fit and those to choose by: that share of each class, but never all of it.

    Args:
        places: Class of each example ``(n,)``.
        share: Of examples held out, in (0, 1).
        seed: Of the draw.

    Returns:
        Two ascending lists of examples.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for c in places.unique().tolist():
        members = (places == c).nonzero().flatten()
        count = min(round(share * len(members)), len(members) - 1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    out = torch.zeros(len(places), dtype=torch.bool)
    out[torch.cat(chosen)] = True
    return (~out).nonzero().flatten(), out.nonzero().flatten()


def choose(
    op: str,
    penalties: Sequence[float],
    loss: Callable[[float], float],
    *,
    given: bool,
    stopped: Callable[[], str] = str,
) -> Choice:
    """Take the penalty with the least loss, of equal ones the largest.

    Args:
        op: Who asks, for warnings.
        penalties: To choose from. The search goes from the largest down, and ends after two in turn that are worse
            than the best.
        loss: Of a penalty, on the examples held out.
        given: Whether the user named them.
        stopped: What the last fit stopped at short of its end, in words; where it did, smaller penalties are not tried.

    Returns:
        The choice.
    """
    tried: list[tuple[float, float]] = []
    for penalty in sorted(penalties, reverse=True):
        tried.append((penalty, loss(penalty)))
        best = min(tried, key=lambda pair: pair[1])
        if len(tried) - tried.index(best) > PATIENCE and best[1] < tried[-1][1]:
            break
        if stopped():
            warnings.warn(
                f"nftk.{op}: the search of the penalty ended at {penalty:.3g}, where a fit stopped at {stopped()}; "
                "smaller ones are not tried",
                KernelWarning,
                stacklevel=2,
            )
            break
    if len(tried) > 1 and best[0] in (max(penalties), min(penalties)):
        side = "largest" if best[0] == max(penalties) else "smallest"
        warnings.warn(
            f"nftk.{op}: the best penalty on the examples held out is {best[0]:.3g}, the {side} that was tried; "
            + ("other penalties may be better" if given else "the kernel may not suit the targets"),
            KernelWarning,
            stacklevel=2,
        )
    chosen, losses = torch.tensor(tried, dtype=torch.float64).unbind(1)
    return Choice(best[0], chosen, losses)
