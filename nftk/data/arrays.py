"""From four numpy arrays out of some file to a DataSplit, with errors that name the array and its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nftk.data.errors import DataError, sentence
from nftk.data.split import MAX_CLASSES, DataSplit, find_nonfinite, find_outside

# no array of a file may claim more: a lying header or a compressed bomb stops here instead of in the allocator
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Source:
    """An array, the file it came from and what that file calls it."""

    values: np.ndarray[Any, Any]
    path: Path
    name: str

    def error(self, rule: str, found: object) -> DataError:
        """Return the DataError that says which rule this array breaks."""
        return DataError(sentence(self.path, self.name, rule, found))


def to_split(
    x_train: Source, y_train: Source, x_test: Source, y_test: Source, *, name: str, class_names: Sequence[str] = ()
) -> DataSplit:
    """Return the DataSplit of four arrays, or raise DataError; without class_names, 1 + max(y_train) classes."""
    inputs = {part: _to_inputs(x) for part, x in (("train", x_train), ("test", x_test))}
    labels = {part: _to_labels(y) for part, y in (("train", y_train), ("test", y_test))}
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if len(x.values) != len(y.values):
            raise y.error(f"have {len(x.values)} entries, one for each row of {x.name}", len(y.values))
    if x_test.values.shape[1:] != x_train.values.shape[1:]:
        want, found = (list(x.values.shape[1:]) for x in (x_train, x_test))
        raise x_test.error(f"have rows of shape {want}, like {x_train.name}", found)
    names = tuple(class_names) or tuple(map(str, range(1 + int(labels["train"].max()))))
    for part, y in (("train", y_train), ("test", y_test)):
        if (label := find_outside(labels[part], len(names))) is not None:
            raise y.error(f"be in 0..{len(names) - 1} ({len(names)} classes)", label)
    image = x_train.values.shape[1:] if x_train.values.ndim == 3 else None
    return DataSplit(
        inputs["train"],
        labels["train"],
        inputs["test"],
        labels["test"],
        class_names=names,
        name=name,
        image_shape=image,
        # a pixel that is lit in one training image of thousands has a tiny deviation of its own, and a test image
        # with that pixel lit would be thrown hundreds of deviations out: pixels share one mean and one deviation
        standardize="feature" if image is None else "global",
    )


def _to_inputs(source: Source) -> Tensor:
    """Return the rows as float32, flattened."""
    values = source.values
    if values.dtype.kind not in "biuf":
        raise source.error("be an array of real numbers", f"dtype {values.dtype}")
    if values.ndim < 2 or not values.size:
        raise source.error("have two dimensions or more and not be empty", f"shape {list(values.shape)}")
    # what overflows float32 becomes infinite here and is refused with its value below
    with np.errstate(all="ignore"):
        flat = np.ascontiguousarray(values.reshape(len(values), -1), dtype=np.float32)
    x = torch.from_numpy(flat)
    if found := find_nonfinite(x):
        raise source.error("be finite in float32", found)
    return x


def _to_labels(source: Source) -> Tensor:
    """Return the labels as int64; floats that are whole numbers are labels too."""
    values = source.values
    if values.dtype.kind not in "biuf":
        raise source.error("be an array of whole numbers", f"dtype {values.dtype}")
    if values.ndim != 1 or not values.size:
        raise source.error("be 1-D and not empty", f"shape {list(values.shape)}")
    if values.dtype.kind == "f":
        # a NaN and an infinity differ from their remainder as 0.5 does
        with np.errstate(all="ignore"):
            broken = np.flatnonzero(np.mod(values, 1) != 0)
        if broken.size:
            raise source.error("be whole numbers", f"{values[broken[0]]} in row {broken[0]}")
    # compared as Python's numbers: a cast to int64 could wrap a large label into the range
    for extreme in (values.min().item(), values.max().item()):
        if not 0 <= extreme < MAX_CLASSES:
            raise source.error(f"be in 0..{MAX_CLASSES - 1}", int(extreme))
    return torch.from_numpy(values.astype(np.int64))
