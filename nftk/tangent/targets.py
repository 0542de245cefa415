"""What y is, for all that takes one: a row or a column that is not of real numbers is labels, all else targets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = np.ndarray[Any, Any]


def as_array(op: str, y: Any) -> Values:
    """Labels or targets as an array; floating tensors in float64, because numpy has not all of their dtypes."""
    if y is None:
        raise ValueError(f"nftk.{op}: y must be labels or targets, got None")
    if isinstance(y, Tensor):
        if y.layout is not torch.strided:
            raise TypeError(f"nftk.{op}: y must be dense, got {y.layout}; to_dense() makes it so")
        y = y.detach().cpu()
        found: Values = (y.double() if y.is_floating_point() else y).numpy()
        return found
    try:
        return np.asarray(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"nftk.{op}: y must be labels or targets of one shape, got {error}") from None


def are_labels(values: Values) -> bool:
    """Whether these are labels where nobody says what they are."""
    return values.dtype.kind not in "fc" and (values.ndim == 1 or values.shape[1:] == (1,))


def classes_of(op: str, values: Values) -> tuple[Values, Tensor]:
    """Labels in ascending order, and for each entry the place of its own."""
    values = values.reshape(-1)
    if values.dtype.kind == "O":
        for entry in values:
            if entry is None or (isinstance(entry, float) and entry != entry):
                raise ValueError(f"nftk.{op}: y must be labels without None or NaN, got {entry}")
    try:
        classes, places = np.unique(values, return_inverse=True)
    except TypeError:
        kinds = ", ".join(sorted({type(entry).__name__ for entry in values}))
        raise TypeError(f"nftk.{op}: y must be labels that have an order, got entries of type {kinds}") from None
    return classes, torch.from_numpy(places)


def one_hot(classes: Values, places: Tensor) -> Tensor:
    """Targets ``(n, classes)``, float64."""
    return torch.nn.functional.one_hot(places, len(classes)).to(torch.float64)


def as_numbers(op: str, values: Values) -> Values:
    """Targets in float64."""
    if values.dtype.kind == "c":
        raise ValueError(f"nftk.{op}: y must be real numbers, got {values.dtype}. Complex data not supported")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"nftk.{op}: y must be numbers to serve as targets, got {values.dtype}") from None
    if not np.isfinite(values).all():
        raise ValueError(
            f"nftk.{op}: y must be finite. Input y contains NaN, infinity or a value too large for "
            f"{np.dtype('float64')!r}."
        )
    return values
