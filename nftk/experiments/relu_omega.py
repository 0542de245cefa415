"""Omega as the relu of free weights: the one way we know to the zeros that the paper reports."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ReluOmegaSGD(Optimizer):
    """SGD on w, where Omega = relu(w); an entry with w < 0 has no gradient and never comes back.

    Args:
        params: Omega; w starts as what it is, so the zeros of a start must be written as negative entries, see
            :func:`draw`.
        lr: Learning rate of w.
        weight_decay: L2 penalty on w.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        with torch.no_grad():
            for group in self.param_groups:
                for omega in group["params"]:
                    self.state[omega]["w"] = omega.detach().clone()
                    omega.clamp_(min=0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step; w is kept in the state, Omega is its relu."""
        for group in self.param_groups:
            for omega in group["params"]:
                if omega.grad is None:
                    continue
                w = self.state[omega]["w"]
                w.sub_(omega.grad * (w > 0) + group["weight_decay"] * w, alpha=group["lr"])
                omega.copy_(w.clamp(min=0))
        return None


def draw(classes: int, layers: int, seed: int) -> Tensor:
    """Omega's entries from Xavier's normal distribution, half of them negative, ``(d, L)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(classes, layers).normal_(std=(2 / (classes + layers)) ** 0.5, generator=generator)
