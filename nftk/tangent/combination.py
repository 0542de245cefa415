"""Weights of the blocks of LayerKernels: Omega's powers, and plain factors."""

import math
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nftk._checks import check_number, check_shape


def combine(op: str, blocks: Tensor, reduction: str, omega: Tensor | Sequence[float], power: float) -> Tensor:
    """Do the work of ``LayerKernels.combine``."""
    power = check_number(op, "power", power, 0.0, above=True)
    omega = _as_omega(op, omega, blocks)
    layers = len(blocks)
    if omega.ndim == 1:
        check_shape(op, "omega", omega, (layers,))
    elif reduction in ("trace", "sum_logits"):
        raise ValueError(
            f"nftk.{op}: omega must have shape [{layers}], because {reduction!r} has no classes left, got "
            f"{list(omega.shape)}"
        )
    else:
        check_shape(op, "omega", omega, (blocks.shape[3] if blocks.ndim > 3 else "d", layers))
    if _any_seen(~omega.isfinite()):
        raise ValueError(f"nftk.{op}: omega must be finite, got {omega[~omega.isfinite()][0].item()}")
    if power != 2 and _any_seen(omega < 0):
        raise ValueError(f"nftk.{op}: omega must be at least 0 where power is not 2, got {omega.min().item()}")
    weights = _power(omega, power)
    if reduction == "full" and omega.ndim == 2:
        return _combine_full(blocks, weights, _power(omega, power / 2))
    kept = {"full": "ij", "diagonal": "i"}.get(reduction, "")
    if omega.ndim == 1:
        return torch.einsum(f"l,lxy{kept}->{'ixy' if kept == 'i' else 'xy' + kept}", weights, blocks)
    return torch.einsum(f"il,lxy{kept}->ixy", weights, blocks)


def as_factor(op: str, name: str, x: Any) -> float | Tensor | None:
    """What blocks may be multiplied by, a finite number or a tensor ``()`` of one; None for what is neither."""
    if isinstance(x, Tensor):
        # not left to Python: torch divides by a tensor on the right as it multiplies with its reciprocal
        if x.ndim > 0 or x.is_complex() or x.dtype is torch.bool:
            raise TypeError(
                f"nftk.{op}: {name} must be a real number, or a tensor [] of one, got {x.dtype} {list(x.shape)}"
            )
        if _any_seen(~x.isfinite()):
            raise ValueError(f"nftk.{op}: {name} must be finite, got {x.item()}")
        return x
    return None if isinstance(x, bool) or not isinstance(x, Real) else check_number(op, name, x, -math.inf)


def is_zero(x: float | Tensor) -> bool:
    """Whether a factor is 0."""
    return _any_seen(x == 0) if isinstance(x, Tensor) else x == 0


def _combine_full(blocks: Tensor, weights: Tensor, roots: Tensor) -> Tensor:
    # [d, d]; a class with itself has the power, not its root twice: a root has no slope at 0
    own = torch.eye(len(weights), dtype=torch.bool, device=blocks.device)
    # summed layer by layer: no weighted copy of all blocks
    total = blocks.new_zeros(()).expand(blocks.shape[1:])
    for block, w, root in zip(blocks, weights.unbind(1), roots.unbind(1), strict=True):
        total = total + block * torch.where(own, w[:, None], torch.outer(root, root))
    return total


def _power(omega: Tensor, power: float) -> Tensor:
    """Power of each entry, whose derivatives at 0 are taken as 0 unless the power is an integer."""
    if power.is_integer():
        return omega**power
    zero = omega == 0
    return torch.where(zero, 0, torch.where(zero, 1, omega) ** power)


def _as_omega(op: str, omega: object, blocks: Tensor) -> Tensor:
    dtype = None if isinstance(omega, Tensor | np.ndarray) else blocks.dtype
    try:
        found = torch.as_tensor(omega, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = None
    if found is None or found.is_complex():
        raise TypeError(f"nftk.{op}: omega must be a tensor or a list of real numbers, got {reprlib.repr(omega)}")
    return found.to(blocks.device, blocks.dtype)


def _any_seen(found: Tensor) -> bool:
    """Whether any entry is true, where entries can be read: torch.compile and torch.vmap show none."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(found.any())
    except RuntimeError:
        return False
