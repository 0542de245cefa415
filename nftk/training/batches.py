"""Training and test data, in whichever form they are given, as batches on one device."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nftk._checks import FLOATING
from nftk.training.losses import is_labels

_OP = "fit"


class TensorBatches:
    """A pair of tensors on the device, shuffled anew each epoch by torch's default generator."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, device: torch.device, shuffle: bool) -> None:
        self.x, self.y = x.to(device), y.to(device)
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            yield from zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
            return
        # drawn on the CPU, so that the order is the same on every device
        order = torch.randperm(len(self.x)).to(self.x.device)
        for rows in order.split(self.batch_size):
            yield self.x[rows], self.y[rows]

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, as far as a checkpoint needs it."""
        return {"train_shape": list(self.x.shape), "train_sum": self.x.sum(dtype=torch.float64).item()}


class LoaderBatches:
    """A DataLoader's batches, moved to the device."""

    def __init__(self, loader: DataLoader[Any], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        try:
            return len(self.loader)
        except TypeError:  # an IterableDataset need not know
            return 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            x, y = batch
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, as far as a checkpoint needs it."""
        dataset = self.loader.dataset
        return {"train_examples": len(dataset) if isinstance(dataset, Sized) else None, "train_batches": len(self)}


Batches = TensorBatches | LoaderBatches


def make_batches(
    name: str, data: Any, *, model_input: tuple[int | None, torch.dtype], outputs: int | None, loss: str,
    batch_size: int, device: torch.device, shuffle: bool,
) -> Batches:  # fmt: skip
    """Check data (a pair of tensors, a Dataset or a DataLoader) and wrap it."""
    if isinstance(data, DataLoader):
        return LoaderBatches(data, device)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        x, y = data
        _check_pair(name, x, y, model_input, outputs, loss)
        return TensorBatches(x, y, batch_size, device, shuffle)
    if isinstance(data, Dataset):
        return LoaderBatches(DataLoader(data, batch_size=batch_size, shuffle=shuffle), device)
    raise TypeError(
        f"nftk.{_OP}: {name} must be a pair of tensors (x, y), a Dataset or a DataLoader, got {type(data).__name__}"
    )


def generators(batches: Batches) -> list[torch.Generator]:
    """Random generators of the caller's own DataLoader; their states belong into a checkpoint."""
    if isinstance(batches, TensorBatches):
        return []
    owners = (batches.loader, batches.loader.sampler)
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


def _check_pair(
    name: str, x: Tensor, y: Tensor, model_input: tuple[int | None, torch.dtype], outputs: int | None, loss: str
) -> None:
    features, dtype = model_input
    if x.ndim < 2 or (features is not None and (x.ndim != 2 or x.shape[1] != features)):
        want = "..." if features is None else features
        raise ValueError(f"nftk.{_OP}: {name} x must have shape [n, {want}], got {list(x.shape)}")
    if x.dtype not in FLOATING or x.dtype is not dtype:
        raise TypeError(f"nftk.{_OP}: {name} x must have the model's dtype {dtype}, got {x.dtype}")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"nftk.{_OP}: {name} must have at least one example and a target for each, got {len(x)} and {len(y)}"
        )
    if not x.isfinite().all():
        row = int((~x.flatten(1).isfinite()).any(1).nonzero()[0])
        raise ValueError(f"nftk.{_OP}: {name} x must be finite, got a value that is not in example {row}")
    if is_labels(y):
        low, high = int(y.min()), int(y.max())
        if low < 0 or (outputs is not None and high >= outputs):
            rule = "0 or above" if outputs is None else f"in 0..{outputs - 1}"
            raise ValueError(f"nftk.{_OP}: {name} labels must be {rule}, got {low if low < 0 else high}")
    elif loss == "cross_entropy":
        raise TypeError(f"nftk.{_OP}: {name} y must hold int64 labels of shape [n], got {y.dtype} {list(y.shape)}")
    elif loss == "mse":
        fits = y.dtype is dtype and (outputs is None or y.numel() == len(y) * outputs)
        if not fits:
            raise TypeError(
                f"nftk.{_OP}: {name} y must hold int64 labels [n] or {dtype} targets [n, {outputs}], "
                f"got {y.dtype} {list(y.shape)}"
            )
        if not y.isfinite().all():
            raise ValueError(f"nftk.{_OP}: {name} y must be finite, got a value that is not")
