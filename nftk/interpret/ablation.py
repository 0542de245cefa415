"""What is lost when one entry of Omega is set to 0: for all entries at once, or each with the rest fitted anew."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nftk._optional import require
from nftk.interpret.logit_parts import LogitParts, logit_parts
from nftk.training.losses import LOSSES, count_correct

Array = npt.NDArray[np.float64]
# of L-BFGS-B; on 10,000 images and ten layers some 60 steps reach the tolerance
STEPS, TOLERANCE = 500, 1e-9
# share of the loss that L-BFGS-B, begun again where it stopped, must still gain to be begun once more
RESTART = 1e-3
# of the one fit with all entries, from which every other is counted
FIRST = 1e-12


def lost(model: Any, x: Tensor, y: Tensor, measure: str, loss: str) -> Tensor:
    """Mean of the measure lost, (d, L) in float64; one logit changes for each entry, so no other is computed anew."""
    total: Tensor | float = 0.0
    for batch in logit_parts("importance", model, x, y):
        if measure == "accuracy":
            here = _accuracy_lost(batch)
        else:
            here = _cross_entropy_gained(batch) if loss == "cross_entropy" else _mse_gained(batch)
        total = total + here
    # of a closed entry f - 0 is f but for its last bit
    return torch.where(model.omega.detach() != 0, torch.as_tensor(total).T / len(x), 0.0)


def _accuracy_lost(batch: LogitParts) -> Tensor:
    """Right answers lost, (L, d); of equal logits the first is the answer, as argmax has it."""
    f, parts, y = batch
    new = f[:, None] - parts  # [B, L, d]: logit i without its part l
    d = f.shape[1]
    classes = torch.arange(d, device=f.device)
    right = f.argmax(1) == y
    if d == 1:
        return (new.new_zeros(new.shape[1:]) + right.sum() - len(f)).double()
    first, second = f.topk(2, dim=1).values.unbind(1)
    answer = f.argmax(1)
    # the largest of the other logits, and the first class that has it
    others = f.masked_fill(classes == answer[:, None], -torch.inf)
    runner = others.argmax(1)
    is_answer = classes == answer[:, None]  # [B, d]
    best = torch.where(is_answer, second[:, None], first[:, None])
    holder = torch.where(is_answer, runner[:, None], answer[:, None])
    wins = (new > best[:, None]) | ((new == best[:, None]) & (classes < holder)[:, None])
    after = torch.where(wins, (classes == y[:, None])[:, None], (holder == y[:, None])[:, None])
    return right.sum() - after.sum(0).double()


def _cross_entropy_gained(batch: LogitParts) -> Tensor:
    """Loss gained, (L, d)."""
    f, parts, y = batch
    classes = torch.arange(f.shape[1], device=f.device)
    top = f.argmax(1, keepdim=True)
    # without class i: for the largest logit from the others, for the rest from the whole, where 1 - p_i >= 1/2
    whole = f.logsumexp(1, keepdim=True)
    rest = whole + torch.log1p(-(f - whole).exp().clamp(max=0.75))
    without_top = f.masked_fill(classes == top, -torch.inf).logsumexp(1, keepdim=True)
    rest = torch.where(classes == top, without_top, rest)
    new = f[:, None] - parts
    is_label = classes == y[:, None]
    label = f.gather(1, y[:, None])
    after = torch.logaddexp(rest[:, None], new) - torch.where(is_label[:, None], new, label[:, None])
    return (after - (whole - label)[:, None]).sum(0)


def _mse_gained(batch: LogitParts) -> Tensor:
    f, parts, y = batch
    off = f - torch.nn.functional.one_hot(y, f.shape[1])
    return ((off[:, None] - parts).square() - off[:, None].square()).sum(0)


def lost_after_refit(model: Any, x: Tensor, y: Tensor, measure: str, loss: str) -> Tensor:
    """The same, the rest of Omega fitted to the data with the entry and without it; closed entries stay closed."""
    require("scipy", purpose="importance with refit", extra="app")
    parts = torch.cat([batch.parts for batch in logit_parts("importance", model, x)])
    bias = torch.zeros(()) if model.output_bias is None else model.output_bias.detach().double().cpu()
    fit = _Refit(parts.cpu().numpy(), bias, y.cpu(), loss)
    as_it_is = np.ones(fit.shape)
    whole = least = fit.solve([as_it_is], tolerance=FIRST)
    found = np.zeros(fit.shape)
    for entry in zip(*np.nonzero(fit.open), strict=True):
        # where the data can be told apart the best factors are large, and a poor start for a fit with one of them less
        without = fit.solve([as_it_is, whole.factors], without=entry)
        found[entry] = fit.measure(without, measure)
        least = min(least, without, key=lambda each: each.loss)
    # where the minimum is flat a fit with an entry less may come nearer to it; from there on none beats that of all
    if least is not whole:
        whole = fit.solve([least.factors], tolerance=FIRST)
    found[fit.open] -= fit.measure(whole, measure)
    sign = -1.0 if measure == "accuracy" else 1.0
    return torch.from_numpy(sign * found.T + 0.0).contiguous().to(x.device)


class _Fit(NamedTuple):
    """Factors (L, d), and the loss that they have."""

    factors: Array
    loss: float


class _Refit:
    """Omega, as factors (L, d) on what each layer adds now, fitted to labels: a convex problem with bounds."""

    def __init__(self, parts: Array, bias: Tensor, y: Tensor, loss: str) -> None:
        self.shape = parts.shape[1:]
        self.bias, self.y, self.loss = bias, y, LOSSES[loss]
        # features of one size, which is what L-BFGS wants
        size = np.sqrt(np.square(parts).mean(0))
        self.open = size > 0
        self.size = np.where(self.open, size, 1.0)
        self.parts = torch.from_numpy(parts / self.size)

    def solve(self, starts: list[Array], without: tuple[Any, ...] | None = None, tolerance: float = TOLERANCE) -> _Fit:
        """Return the best factors, from the best of the starts on, and never worse than any."""
        from scipy.optimize import Bounds, minimize

        upper = np.where(self.open, np.inf, 0.0)
        if without is not None:
            upper[without] = 0.0
        begun = [(start * self.size * (upper > 0)).ravel() for start in starts]
        loss, best = min(((self._value(start)[0], start) for start in begun), key=lambda each: each[0])
        # without a free entry scipy hands over an array that torch warns of
        while (upper > 0).any():
            before = loss
            found = minimize(
                self._value,
                best,
                jac=True,
                method="L-BFGS-B",
                bounds=Bounds(np.zeros(upper.size), upper.ravel()),
                options={"maxiter": STEPS, "ftol": tolerance, "gtol": tolerance},
            )
            if found.fun < loss:
                best, loss = found.x, float(found.fun)
            # it may stop early, with curvature of far away; begun again it has none
            if before - loss <= max(RESTART * before, tolerance):
                break
        return _Fit(best.reshape(self.shape) / self.size, loss)

    def _outputs(self, weights: Tensor) -> Tensor:
        return torch.einsum("nld,ld->nd", self.parts, weights) + self.bias

    def _value(self, flat: Array) -> tuple[float, Array]:
        weights = torch.from_numpy(flat.reshape(self.shape)).requires_grad_()
        with torch.enable_grad():
            value = self.loss(self._outputs(weights), self.y)
        (gradient,) = torch.autograd.grad(value, weights)
        return value.item(), gradient.numpy().ravel()

    def measure(self, fit: _Fit, measure: str) -> float:
        """Loss or accuracy of a fit."""
        if measure == "loss":
            return fit.loss
        f = self._outputs(torch.from_numpy(fit.factors * self.size))
        return float(count_correct(f, self.y)) / len(f)
