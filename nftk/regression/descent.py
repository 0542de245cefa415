"""Projected gradient descent over a set of matrices eta, with a line search that never goes up."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.constraints import GroupSparse, L1Ball, NonNegative, Simplex
from nftk.constraints.base import Constraint, Projection

Value = Callable[[Tensor], tuple[float, Tensor]]
# a step is taken if it brings this share of what the gradient promises (Armijo), else it is cut
ENOUGH, CUT, SMALLEST = 1e-4, 0.25, 1e-14


class Descent(NamedTuple):
    """Where it ended.

    Attributes:
        eta: The point.
        history: The objective at each point that was taken, never increasing.
        gap: What is left by the criterion, in units of the objective.
        converged: Whether that is below the tolerance.
    """

    eta: Tensor
    history: list[float]
    gap: float
    converged: bool

    def times(self, factor: float) -> "Descent":
        """The same of an objective that is larger by a factor."""
        return self._replace(history=[factor * value for value in self.history], gap=factor * self.gap)


def support(constraint: Projection, direction: Tensor) -> float | None:
    """Largest inner product of direction ``(d, L)`` with a point of the set; None where there is no formula."""
    up = direction.clamp(min=0)
    if isinstance(constraint, Simplex):
        return constraint.radius * float(direction.amax(1).sum())
    if isinstance(constraint, L1Ball):
        return constraint.radius * float(up.amax(1).sum())
    if isinstance(constraint, GroupSparse) and bounded(constraint):
        # all on one layer, so that no limit on their number counts
        radius = direction.shape[0] ** 0.5 if constraint.radius is None else constraint.radius
        return radius * float(torch.linalg.vector_norm(up, dim=0).max())
    return None


def by_class(constraint: Projection) -> bool:
    """Whether the set is a product of one set a class, so that classes can be learned one after the other."""
    return isinstance(constraint, Simplex | L1Ball | NonNegative)


def bounded(constraint: Projection) -> bool:
    """Whether the set holds no arbitrarily large point, as far as we know."""
    if isinstance(constraint, GroupSparse):
        return constraint.radius is not None or constraint.max_layers is None
    return not isinstance(constraint, NonNegative)


def descend(value: Value, constraint: Projection, start: Tensor, *, tolerance: float, max_iter: int) -> Descent:
    """Minimise over a set.

    The criterion: with a set that has a formula for it, max over s of <gradient, eta - s>, for a convex set a bound on
    how far a convex objective is above its minimum (the duality gap); with any other set, what the gradient promises
    for one projected step of the length of eta. GroupSparse with max_layers is a union of convex sets: as long as that
    many layers are open, the criterion is that of these layers, since no short step leads to others. Nothing is known
    of a foreign set, which may not be convex either: it has converged, too, where the line search, down to where
    float64 ends, finds nothing lower.

    Args:
        value: From eta ``(d, L)`` to the objective and its gradient.
        constraint: The set.
        start: Where to begin; projected. With max_layers, where to begin without that limit.
        tolerance: Of the criterion, relative to the objective.
        max_iter: Most steps.

    Returns:
        The best point.
    """
    if isinstance(constraint, GroupSparse) and constraint.max_layers is not None:
        # equal weights say nothing of which layers to keep; the weights without that limit do
        free = NonNegative() if constraint.radius is None else GroupSparse(constraint.radius)
        start = descend(value, free, start, tolerance=tolerance, max_iter=max_iter).eta
    eta = project(constraint, start)
    now, gradient = value(eta)
    history = [now]
    step = float(torch.linalg.vector_norm(eta) / torch.linalg.vector_norm(gradient).clamp(min=1e-300)) or 1.0
    gap = criterion(constraint, eta, gradient)
    while gap > tolerance * abs(now) and len(history) <= max_iter:
        taken, slope, staying = None, gradient, within(constraint, eta, gradient)
        while taken is None:
            candidate = project(constraint, eta - step * slope)
            promised = float((gradient * (candidate - eta)).sum())
            if -promised <= SMALLEST * abs(now):
                # nothing lower that float64 would show
                if not isinstance(constraint, Constraint):
                    gap = min(gap, max(0.0, -promised))
                break
            then, gradient_then = value(candidate)
            if then <= now + ENOUGH * promised:
                taken = candidate
            elif slope is not staying:
                # other layers are no better: the step need not be so short that it cannot reach them
                slope = staying
            else:
                step *= CUT
        if taken is None:
            break
        moved, turned = taken - eta, gradient_then - gradient
        bend = float((moved * turned).sum())
        # Barzilai and Borwein's step, where the objective curves upwards
        step = float(moved.square().sum()) / bend if bend > 0 else 4 * step
        eta, now, gradient = taken, then, gradient_then
        history.append(now)
        gap = criterion(constraint, eta, gradient)
    return Descent(eta, history, gap, gap <= tolerance * abs(now))


def within(constraint: Projection, eta: Tensor, gradient: Tensor) -> Tensor:
    """The gradient; where as many layers are open as may be, of these alone."""
    if isinstance(constraint, GroupSparse) and constraint.max_layers is not None:
        is_open = (eta > 0).any(0)
        if constraint.max_layers <= int(is_open.sum()) < len(is_open):
            return gradient * is_open
    return gradient


def criterion(constraint: Projection, eta: Tensor, gradient: Tensor) -> float:
    """How much lower, to first order, the set has anything; see :func:`descend`."""
    gradient = within(constraint, eta, gradient)
    most = support(constraint, -gradient)
    if most is not None:
        return max(0.0, most + float((gradient * eta).sum()))
    length = torch.linalg.vector_norm(eta).clamp(min=1e-300) / torch.linalg.vector_norm(gradient).clamp(min=1e-300)
    return max(0.0, float((gradient * (eta - project(constraint, eta - length * gradient))).sum()))


def project(constraint: Projection, eta: Tensor) -> Tensor:
    """Nearest point of the set, as a new tensor."""
    if isinstance(constraint, Constraint):
        return constraint.project(eta)
    return constraint.project_(eta.clone())
