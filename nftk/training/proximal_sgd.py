"""Stochastic gradient steps with an l1 or a group penalty on Omega, which make exact zeros."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nftk._checks import check_number

_OP = "training.ProximalSGD"


class ProximalSGD(Optimizer):
    r"""Proximal stochastic gradient descent for a non-negative Omega.

    .. math:: \Omega \leftarrow \operatorname{prox}_{\eta R}(\Omega - \eta \nabla_\Omega L), \qquad
        R(\Omega) = \lambda_1 \sum_{i,l} \omega_{l,i} + \lambda_2 \sum_l \lVert \omega_l \rVert_2, \quad \Omega \ge 0

    The penalty's step is exact and not a subgradient's: entries whose gradient is smaller than the penalty's become
    zero and stay zero, and with ``group`` whole columns do, which closes a layer for every class at once. An
    ``optimizer_omega`` of :func:`nftk.fit`.

    Args:
        params: Omega, or several matrices ``(d, L)``.
        lr: Learning rate eta.
        weight_decay: L2 penalty, as in ``torch.optim.SGD``.
        l1: lambda_1, the price of an entry.
        group: lambda_2, the price of a layer, by the length of its column.

    Raises:
        ValueError: If a number is negative or not finite.

    References:
        Parikh and Boyd, Proximal Algorithms, Foundations and Trends in Optimization 1(3), 2014, sections 6.5.2, 6.5.4.

    Example:
        >>> import torch
        >>> from nftk.training import ProximalSGD
        >>> omega = torch.tensor([[0.5, 0.05]], requires_grad=True)
        >>> omega.grad = torch.zeros_like(omega)
        >>> ProximalSGD([omega], lr=1.0, l1=0.1).step()
        >>> omega
        tensor([[0.4000, 0.0000]], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[Tensor],
        lr: float,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        group: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "l1": l1, "group": group}
        super().__init__(params, {name: check_number(_OP, name, value) for name, value in settings.items()})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss anew, as in every optimizer of torch.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr = group["lr"]
            for omega in group["params"]:
                if omega.grad is None:
                    continue
                omega.sub_(omega.grad + group["weight_decay"] * omega, alpha=lr)
                # in this order the two prox are the prox of the sum
                omega.sub_(lr * group["l1"]).clamp_(min=0)
                if group["group"]:
                    lengths = torch.linalg.vector_norm(omega, dim=0)
                    omega.mul_(1 - lr * group["group"] / lengths.clamp(min=lr * group["group"]))
        return loss
