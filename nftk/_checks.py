"""Argument checks shared by every public function; the only place that words such errors.

Form: ``nftk.<function>: <argument> must <rule>, got <found>``.
"""

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_shape(op: str, name: str, x: Tensor, want: tuple[int | str, ...]) -> None:
    """Raise ValueError unless x matches want; string entries match any size, "..." any leading dimensions."""
    found = tuple(x.shape)
    sizes = want
    if want and want[0] == "...":
        sizes = want[1:]
        found = found[max(len(found) - len(sizes), 0) :]
    ok = len(found) == len(sizes) and all(isinstance(w, str) or w == f for w, f in zip(sizes, found, strict=True))
    if not ok:
        raise ValueError(f"nftk.{op}: {name} must have shape {_show(want)}, got {_show(tuple(x.shape))}")


def check_same(op: str, attribute: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors agree on dtype or device."""
    seen = {name: getattr(x, attribute) for name, x in tensors.items()}
    if len(set(seen.values())) > 1:
        listing = ", ".join(f"{name} is {value}" for name, value in seen.items())
        raise ValueError(f"nftk.{op}: inputs must share one {attribute}, but {listing}")


def check_tensor(op: str, name: str, x: Any) -> None:
    """Raise TypeError unless x is a dense tensor of floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"nftk.{op}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"nftk.{op}: {name} must have a floating dtype, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"nftk.{op}: {name} must be dense, got {x.layout}; to_dense() makes it so")


def is_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite, without a copy of x."""
    if not x.numel():
        return True
    least, most = x.detach().aminmax()
    return math.isfinite(least) and math.isfinite(most)


def check_integer(op: str, name: str, value: Any, minimum: int) -> int:
    """Return value as an int, or raise: TypeError unless it is an integer, ValueError below minimum."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"nftk.{op}: {name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"nftk.{op}: {name} must be at least {minimum}, got {value}")
    return int(value)


def check_number(op: str, name: str, given: Any, minimum: float = 0.0, *, above: bool = False) -> float:
    """Return what was given as a float, or raise unless it is finite and >= minimum (with above: > minimum)."""
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"nftk.{op}: {name} must be a number, got {given!r}")
    try:
        value = float(given)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value < minimum or (above and value == minimum):
        bound = "" if minimum == -math.inf else f" and {'above' if above else 'at least'} {minimum:g}"
        rule = "finite" + bound
        raise ValueError(f"nftk.{op}: {name} must be {rule}, got {given}")
    return value


def check_scales(op: str, name: str, value: Any, layers: int) -> tuple[float, ...]:
    """Return one finite number a layer, 1 for None; raise unless value is that."""
    if value is None:
        return (1.0,) * layers
    if isinstance(value, str | Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"nftk.{op}: {name} must be None or a list of {layers} numbers, got {type(value).__name__}")
    if len(value) != layers:
        raise ValueError(f"nftk.{op}: {name} must have {layers} entries, one a layer, got {len(value)}")
    return tuple(check_number(op, f"{name}[{i}]", scale, -math.inf) for i, scale in enumerate(value))


def check_list(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless value is a list, a tuple or alike (nn.ParameterList); a tensor or an iterator is not."""
    if isinstance(value, str | Tensor) or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise TypeError(f"nftk.{op}: {name} must be a list with an entry a layer, got {type(value).__name__}")


def check_numbers(op: str, name: str, given: Any, *, above: bool = False) -> list[float]:
    """Return a list, tuple, array or tensor of numbers as floats, or raise unless each passes check_number."""
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"nftk.{op}: {name} must be a list of numbers, got {given!r}")
    if not values:
        raise ValueError(f"nftk.{op}: {name} must hold at least one number, got none")
    return [check_number(op, f"{name}[{i}]", value, above=above) for i, value in enumerate(values)]


def check_device(op: str, device: torch.device | str) -> torch.device:
    """Return the device, or raise ValueError unless torch can use it here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    # torch raises AssertionError where it is built without the device's backend
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"nftk.{op}: device must be one that torch can use here, got {device!r}: {reason}") from None
    return place


def check_flag(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"nftk.{op}: {name} must be True or False, got {value!r}")


def check_symmetric(op: str, name: str, matrix: Tensor, eps: float) -> None:
    """Raise ValueError unless a square matrix is its own mirror image, to the rounding eps of what it came from."""
    if not matrix.numel():
        return
    gap, size = float((matrix - matrix.mT).abs().max()), float(matrix.abs().max())
    if gap > eps**0.5 * size:
        raise ValueError(
            f"nftk.{op}: {name} must be symmetric, got entries that differ by {gap:.3g} from their mirror image, "
            f"where the largest is {size:.3g}"
        )


def check_choice(op: str, name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ValueError unless value is one of choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"nftk.{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _show(dims: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(d) for d in dims) + "]"
