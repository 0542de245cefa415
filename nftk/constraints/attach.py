"""Projection after every optimiser step, for people with their own training loop."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def attach(model: nn.Module, optimizer: Any) -> RemovableHandle:
    """Project Omega back onto its constraint set after every ``optimizer.step()``.

    Works wherever the optimiser's own ``step`` is called in the end: a plain loop, Lightning, the Trainer of
    transformers, a GradScaler, a learning-rate scheduler.

    Args:
        model: An :class:`nftk.NFTKMLP`, or any module that holds some (each submodule with a method ``project_``
            is projected).
        optimizer: A ``torch.optim.Optimizer``, or a wrapper that keeps one in its attribute ``optimizer``.

    Returns:
        A handle; its ``remove()`` ends the projection.

    Raises:
        TypeError: If there is no optimiser in ``optimizer``.
        ValueError: If ``model`` holds nothing to project.

    Example:
        >>> import torch, nftk
        >>> model = nftk.NFTKMLP(4, [8, 8], 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
        >>> handle = nftk.constraints.attach(model, optimizer)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> bool((model.omega >= 0).all())
        True
        >>> handle.remove()
    """
    inner = optimizer
    while not isinstance(inner, Optimizer) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise TypeError(f"nftk.constraints.attach: optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    targets: list[Any] = [module for module in model.modules() if callable(getattr(module, "project_", None))]
    if not targets:
        raise ValueError(
            f"nftk.constraints.attach: model must hold a module with project_, got {type(model).__name__} without one"
        )

    def project(*_: Any) -> None:
        for target in targets:
            target.project_()

    return inner.register_step_post_hook(project)
