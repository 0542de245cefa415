"""Examples for a model: a tensor, or tensors by name that share their first dimension."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nftk._checks import is_finite
from nftk.ops.network_formula import is_vmapped

OutputFn = Callable[[Any], Tensor]


class Examples:
    """Tensors whose first dimension is that of the examples; unnamed, the model's one argument."""

    def __init__(self, tensors: Mapping[str, Tensor], *, named: bool) -> None:
        self.tensors, self.named = dict(tensors), named

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors.values())

    def __getitem__(self, part: slice | list[int]) -> "Examples":
        return self.map(lambda x: x[part])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Examples":
        """The same with a function applied to every tensor."""
        return Examples({name: change(x) for name, x in self.tensors.items()}, named=self.named)

    def given_to(self, model: nn.Module) -> Any:
        """What the model returns of them."""
        return model(**self.tensors) if self.named else model(*self)


def joined(parts: Sequence[Examples]) -> Examples:
    """All examples, one part after the other."""
    names = parts[0].tensors
    return Examples({name: torch.cat([p.tensors[name] for p in parts]) for name in names}, named=parts[0].named)


def check_examples(op: str, name: str, x: Any, dtype: torch.dtype, device: torch.device) -> Examples:
    """Read x1 or x2, or raise for what no model could take."""
    named = isinstance(x, Mapping)
    tensors = {str(key): value for key, value in x.items()} if named else {name: x}
    if not tensors:
        raise ValueError(f"nftk.{op}: {name} must have an entry, got an empty mapping")
    sizes = {}
    for key, tensor in tensors.items():
        told = f"{name}[{key!r}]" if named else name
        if not isinstance(tensor, Tensor):
            raise TypeError(f"nftk.{op}: {told} must be a torch.Tensor, got {type(tensor).__name__}")
        if is_vmapped(tensor):
            raise NotImplementedError(f"nftk.{op}: {told} must be all inputs at once, got one inside torch.vmap")
        if tensor.layout is not torch.strided:
            raise TypeError(f"nftk.{op}: {told} must be dense, got {tensor.layout}; to_dense() makes it so")
        if tensor.ndim == 0:
            raise ValueError(f"nftk.{op}: {told} must have examples along its first dimension, got a single number")
        if tensor.device != device:
            raise ValueError(f"nftk.{op}: {told} must have the model's device, {device}, got {tensor.device}")
        if tensor.is_floating_point():
            if tensor.dtype is not dtype:
                raise ValueError(f"nftk.{op}: {told} must have the model's dtype, {dtype}, got {tensor.dtype}")
            if not is_finite(tensor):
                raise ValueError(f"nftk.{op}: {told} must be finite, got NaN or infinity")
        sizes[told] = tensor.shape[0]
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{told} has {size}" for told, size in sizes.items())
        raise ValueError(f"nftk.{op}: tensors of {name} must share their first dimension, but {listing}")
    return Examples(tensors, named=named)


def outputs_of(op: str, returned: Any, output_fn: OutputFn | None, n: int) -> Tensor:
    """The outputs [n, d] in what a model returned for n examples."""
    found = returned
    if output_fn is not None:
        found = output_fn(returned)
    elif not isinstance(returned, Tensor):
        found = getattr(returned, "logits", None)
    what = "output_fn must return" if output_fn is not None else "model must return"
    if not isinstance(found, Tensor):
        hint = "" if output_fn is not None else ", or something with such .logits; output_fn chooses another"
        got = type(found if output_fn is not None else returned).__name__
        raise TypeError(f"nftk.{op}: {what} a tensor{hint}, got {got}")
    if found.ndim != 2 or found.shape[0] != n or not found.is_floating_point():
        hint = "" if output_fn is not None else "; output_fn chooses another output"
        raise ValueError(
            f"nftk.{op}: {what} outputs of shape [n, d], here [{n}, d], got {list(found.shape)}, {found.dtype}{hint}"
        )
    if not found.shape[1]:
        raise ValueError(f"nftk.{op}: {what} at least one output, got {list(found.shape)}")
    return found
