"""SGD on an Omega whose zeros stay: what is left is trained on when a price has done its work."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD


class HeldZerosSGD(SGD):
    """SGD that leaves every entry that is 0 at 0."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step with the gradients of the other entries."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(parameter != 0)
        return super().step(closure)
