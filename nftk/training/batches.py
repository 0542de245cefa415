"""Training and test data, in whichever form they are given, as batches on one device."""

import hashlib
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nftk._checks import FLOATING
from nftk.training.losses import is_labels

# for a pass without gradients; large enough that more brings no speed, small enough for any memory
EVALUATION_BATCH = 2048


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
        for rows in self.draw_order().to(self.x.device).split(self.batch_size):
            yield self.x[rows], self.y[rows]

    def draw_order(self) -> Tensor:
        """The order of another epoch, drawn on the CPU so that it is the same for every device."""
        return torch.randperm(len(self.x))

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, as far as a checkpoint needs it."""
        digest = hashlib.blake2b(digest_size=16)
        for t in (self.x, self.y):
            digest.update(t.detach().cpu().contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
        return {"train_shape": list(self.x.shape), "train_digest": digest.hexdigest()}


class LoaderBatches:
    """A DataLoader's batches, checked as they come and moved to the device."""

    def __init__(self, loader: DataLoader[Any], device: torch.device, check: Callable[[Tensor, Tensor], None]) -> None:
        self.loader, self.device, self.check = loader, device, check

    def __len__(self) -> int:
        try:
            return len(self.loader)
        except TypeError:  # an IterableDataset need not know
            return 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            pair = _pair(batch)
            if pair is None:
                raise _refuse("nftk: every batch", batch)
            x, y = pair
            if x.device.type == "cpu":  # elsewhere a check would make the host wait
                self.check(x, y)
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, as far as a checkpoint needs it."""
        dataset = self.loader.dataset
        return {"train_examples": len(dataset) if isinstance(dataset, Sized) else None, "train_batches": len(self)}


Batches = TensorBatches | LoaderBatches


def make_batches(
    op: str, name: str, data: Any, model: nn.Module, *, loss: str, batch_size: int, device: torch.device, shuffle: bool
) -> Batches:
    """Check data (a pair of tensors, a Dataset or a DataLoader) against the model and the loss, and wrap it."""
    dtype = next(model.parameters()).dtype
    features, outputs = getattr(model, "in_features", None), getattr(model, "out_features", None)

    def check(x: Tensor, y: Tensor) -> None:
        _check_pair(f"nftk.{op}: {name}", x, y, features, outputs, dtype, loss)

    if type(data) is TensorDataset and len(data.tensors) == 2:
        data = data.tensors
    pair = _pair(data)
    if pair is not None:
        check(*pair)
        return TensorBatches(*pair, batch_size, device, shuffle)
    if isinstance(data, DataLoader):
        return LoaderBatches(data, device, check)
    if isinstance(data, Dataset):
        shuffle = shuffle and not isinstance(data, IterableDataset)
        return LoaderBatches(DataLoader(data, batch_size=batch_size, shuffle=shuffle), device, check)
    raise _refuse(f"nftk.{op}: {name}", data)


def _pair(data: Any) -> tuple[Tensor, Tensor] | None:
    if (
        isinstance(data, tuple | list)
        and len(data) == 2
        and isinstance(data[0], Tensor)
        and isinstance(data[1], Tensor)
    ):
        return data[0], data[1]
    return None


def generators(batches: Batches) -> list[torch.Generator]:
    """Random generators of the caller's own DataLoader; their states belong into a checkpoint."""
    if isinstance(batches, TensorBatches):
        return []
    owners = (batches.loader, batches.loader.sampler)
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


def _refuse(name: str, data: Any) -> TypeError:
    kind = type(data).__name__
    if isinstance(data, tuple | list):
        kind += " of " + (", ".join(type(part).__name__ for part in data[:3]) or "nothing")
    return TypeError(f"{name} must be a pair of tensors (x, y), a Dataset or a DataLoader of such pairs, got {kind}")


def _check_pair(
    name: str, x: Tensor, y: Tensor, features: int | None, outputs: int | None, dtype: torch.dtype, loss: str
) -> None:
    if x.ndim < 2 or (features is not None and (x.ndim != 2 or x.shape[1] != features)):
        want = "..." if features is None else features
        raise ValueError(f"{name} x must have shape [n, {want}], got {list(x.shape)}")
    if x.dtype not in FLOATING or x.dtype is not dtype:
        raise TypeError(f"{name} x must have the model's dtype {dtype}, got {x.dtype}")
    if len(x) == 0 or y.ndim == 0 or len(x) != len(y):
        targets = len(y) if y.ndim else 1
        raise ValueError(f"{name} must have at least one example and a target for each, got {len(x)} and {targets}")
    if not x.isfinite().all():
        row = int((~x.flatten(1).isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name} x must be finite, got a value that is not in example {row}")
    if is_labels(y):
        low, high = int(y.min()), int(y.max())
        if low < 0 or (outputs is not None and high >= outputs):
            rule = "0 or above" if outputs is None else f"in 0..{outputs - 1}"
            raise ValueError(f"{name} labels must be {rule}, got {low if low < 0 else high}")
    elif loss == "cross_entropy":
        raise TypeError(f"{name} y must hold int64 labels of shape [n], got {y.dtype} {list(y.shape)}")
    elif loss == "mse":
        if y.dtype is not dtype or (outputs is not None and y.numel() != len(y) * outputs):
            rule = f"int64 labels [n] or {dtype} targets [n, {'d' if outputs is None else outputs}]"
            raise TypeError(f"{name} y must hold {rule}, got {y.dtype} {list(y.shape)}")
        if not y.isfinite().all():
            raise ValueError(f"{name} y must be finite, got a value that is not")
