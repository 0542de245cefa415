"""Standardizer: mean and scale learnt from training rows, applied to any rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nftk._checks import check_choice, check_shape, check_tensor
from nftk.data.errors import DataError
from nftk.data.split import find_nonfinite

# entries that are widened to float64 at a time, 16 MB; the whole of MNIST would take 376
CHUNK = 1 << 21


@dataclass(frozen=True, eq=False)
class Standardizer:
    """The map ``(x - mean) / scale``, in float64, from numbers that were fitted on training rows only.

    Args:
        mean: Subtracted, shape ``[1]`` (the same for all features) or ``[m]``, float64.
        scale: Divided by, positive, the shape of ``mean``, float64.

    Raises:
        DataError: If the two are not 1-D, finite, float64 and of one length, or a scale is not positive.

    Example:
        >>> train, test = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[4.0, 6.0]])
        >>> Standardizer.fit(train, "feature").transform(test)
        tensor([[3., 1.]])
    """

    mean: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        for name, x in (("mean", self.mean), ("scale", self.scale)):
            if x.ndim != 1 or x.dtype != torch.float64 or not len(x) or not torch.isfinite(x).all():
                raise DataError(f"nftk.data.Standardizer: {name} must be finite float64 numbers in one row, got {x}")
        if self.mean.shape != self.scale.shape or (self.scale <= 0).any():
            found = f"{len(self.mean)} means, {len(self.scale)} scales and least scale {self.scale.min():g}"
            raise DataError(f"nftk.data.Standardizer: mean needs a positive scale for each entry, got {found}")

    @classmethod
    def fit(cls, x: Tensor, mode: Literal["global", "feature", "none"] = "global") -> "Standardizer":
        """Return the Standardizer that gives x mean 0 and standard deviation 1.

        Args:
            x: Training rows, shape ``[n, m]``, floating dtype, finite. Not written to.
            mode: ``"global"``: one mean and one deviation over all entries; ``"feature"``: one of each for every
                column; ``"none"``: mean 0 and scale 1, so that ``transform`` changes nothing.

        Returns:
            The deviations are those of the population (divided by n) and sums run in float64. What is constant has
            scale 1.

        Raises:
            DataError: If x is empty or not finite.

        """
        check_choice("data.Standardizer.fit", "mode", mode, ("global", "feature", "none"))
        _check_rows("fit", x)
        if not x.numel():
            raise DataError(f"nftk.data.Standardizer.fit: x must not be empty, got shape {list(x.shape)}")
        x = x.detach()
        if mode == "none":
            return cls(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        if mode == "global":
            x = x.reshape(-1, 1)
        chunks = _chunks(x)
        mean = sum((rows.sum(0, dtype=torch.float64) for rows in chunks), torch.zeros(())) / len(x)
        squares = sum(((rows.double() - mean).square().sum(0) for rows in chunks), torch.zeros(()))
        # by the extremes, since the deviation of a constant 0.1 comes out as 1e-17 and not as 0
        constant = x.amin(0) == x.amax(0)
        scale = (squares / len(x)).sqrt().masked_fill(constant, 1.0)
        return cls(mean.cpu(), scale.cpu())

    def transform(self, x: Tensor) -> Tensor:
        """Return the standardised rows.

        Args:
            x: Rows, shape ``[n, m]``, floating dtype, finite, any device. Not written to.

        Returns:
            Shape ``[n, m]``, float32, on the device of x; differentiable in x.

        Raises:
            DataError: If x is not finite, before or after.
            ValueError: If x has not as many columns as were fitted.

        """
        _check_rows("transform", x)
        if len(self.mean) > 1 and x.shape[1] != len(self.mean):
            raise ValueError(
                f"nftk.data.Standardizer.transform: x must have {len(self.mean)} columns, as were fitted, "
                f"got {x.shape[1]}"
            )
        mean, scale = self.mean.to(x.device), self.scale.to(x.device)
        out = torch.cat([((rows.double() - mean) / scale).float() for rows in _chunks(x)])
        if found := find_nonfinite(out):
            raise DataError(f"nftk.data.Standardizer.transform: x must stay finite when standardised, got {found}")
        return out

    def to_dict(self) -> dict[str, list[float]]:
        """Return mean and scale as lists of numbers, fit for JSON, which keeps every bit of them."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Standardizer":
        """Return the Standardizer that ``to_dict`` described.

        Args:
            values: Mapping with the lists ``mean`` and ``scale``; other keys are left alone.

        Returns:
            A Standardizer with the very same numbers.

        Raises:
            DataError: If a key is missing or its value is not a list of numbers that fit.

        """
        tensors = {}
        for key in ("mean", "scale"):
            found = values.get(key)
            if not isinstance(found, list) or not all(type(number) in (int, float) for number in found):
                raise DataError(f"nftk.data.Standardizer.from_dict: {key} must be a list of numbers, got {found!r:.60}")
            tensors[key] = torch.tensor(found, dtype=torch.float64)
        return cls(**tensors)


def _check_rows(method: str, x: Tensor) -> None:
    op = f"data.Standardizer.{method}"
    check_tensor(op, "x", x)
    check_shape(op, "x", x, ("n", "m"))
    if found := find_nonfinite(x):
        raise DataError(f"nftk.{op}: x must be finite, got {found}")


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x, max(1, CHUNK // max(1, x.shape[1])))
