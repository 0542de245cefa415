"""DataSplit: a training and a test part that are known to fit together."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nftk.data.errors import DataError, sentence

# more than any labelled set we know of (ImageNet-21k: 21,841); a larger label is an identifier or an accident,
# and a network with that many outputs would exhaust the memory before anyone saw a message
MAX_CLASSES = 65536


@dataclass(frozen=True, eq=False, repr=False)
class DataSplit:
    """Training and test rows of a classification problem, checked when it is made.

    Args:
        x_train: Training inputs, shape ``[n, m]``, float32, not standardised.
        y_train: Training labels, shape ``[n]``, int64, in ``0..classes-1``.
        x_test: Test inputs, shape ``[k, m]``, float32.
        y_test: Test labels, shape ``[k]``, int64, in ``0..classes-1``.
        class_names: One name per class.
        name: What errors and reports call these data.
        image_shape: (height, width) where a row is an image, else None.
        standardize: The mode of ``Standardizer.fit`` that suits the data: one mean for all pixels, or one per feature.
        test_duplicates: Which test rows are training rows too, ascending, int64; None where nobody looked.

    Raises:
        DataError: If a part is empty, sizes disagree, an input is not finite or a label is out of range.
        TypeError: If an input is not a float32 tensor or labels are not an int64 tensor.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> DataSplit(x, y, x, y, class_names=("even", "odd"), name="toy")
        DataSplit('toy': 2 training and 2 test rows, 2 features, 2 classes)
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    name: str
    image_shape: tuple[int, int] | None = None
    standardize: Literal["global", "feature"] = "feature"
    test_duplicates: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) <= MAX_CLASSES:
            rule = f"name 1 to {MAX_CLASSES} classes"
            raise DataError(sentence(self.name, "class_names", rule, len(self.class_names)))
        if self.standardize not in ("global", "feature"):
            raise DataError(sentence(self.name, "standardize", "be 'global' or 'feature'", repr(self.standardize)))
        for part in ("train", "test"):
            self._check_part(f"x_{part}", f"y_{part}")
        if self.x_test.shape[1] != self.in_features:
            rule = f"have {self.in_features} features, as x_train has"
            raise DataError(sentence(self.name, "x_test", rule, self.x_test.shape[1]))
        if self.image_shape is not None and math.prod(self.image_shape) != self.in_features:
            rule = f"have {self.in_features} pixels, as many as there are features"
            raise DataError(sentence(self.name, "image_shape", rule, " x ".join(map(str, self.image_shape))))
        self._check_duplicates()

    def _check_part(self, x_name: str, y_name: str) -> None:
        x, y = getattr(self, x_name), getattr(self, y_name)
        for name, tensor, dtype, dims in ((x_name, x, torch.float32, 2), (y_name, y, torch.int64, 1)):
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(sentence(self.name, name, f"be a tensor of {dtype}", kind))
            if tensor.ndim != dims or not tensor.numel():
                raise DataError(sentence(self.name, name, f"be {dims}-D and not empty", f"shape {list(tensor.shape)}"))
        if len(x) != len(y):
            raise DataError(sentence(self.name, y_name, f"have {len(x)} rows, as {x_name} has", len(y)))
        if found := find_nonfinite(x):
            raise DataError(sentence(self.name, x_name, "be finite", found))
        if (label := find_outside(y, self.classes)) is not None:
            rule = f"be in 0..{self.classes - 1} ({self.classes} classes)"
            raise DataError(sentence(self.name, y_name, rule, label))

    def _check_duplicates(self) -> None:
        found = self.test_duplicates
        if found is None:
            return
        if not isinstance(found, Tensor) or found.dtype != torch.int64:
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(sentence(self.name, "test_duplicates", "be a tensor of torch.int64", kind))
        rows = len(self.x_test)
        ascending = found.ndim == 1 and bool((found.diff() > 0).all())
        if not ascending or (found.numel() and (found[0] < 0 or found[-1] >= rows)):
            rule = f"be different rows in 0..{rows - 1}, ascending"
            raise DataError(sentence(self.name, "test_duplicates", rule, f"{found.tolist()!r:.60}"))

    @property
    def in_features(self) -> int:
        """Number of features of a row."""
        return self.x_train.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __repr__(self) -> str:
        rows = f"{len(self.x_train)} training and {len(self.x_test)} test rows"
        return f"DataSplit({self.name!r}: {rows}, {self.in_features} features, {self.classes} classes)"


def find_nonfinite(x: Tensor) -> str | None:
    """Return the first entry of the rows that is not finite, in words, or None."""
    finite = torch.isfinite(x)
    if finite.all():
        return None
    row, column = (~finite).nonzero()[0].tolist()
    return f"{x[row, column].item()} in row {row}"


def find_outside(y: Tensor, classes: int) -> int | None:
    """Return a label that is not in 0..classes-1, or None."""
    return next((found for found in (int(y.min()), int(y.max())) if not 0 <= found < classes), None)
