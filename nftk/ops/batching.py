"""What every custom operation here does around its launch: vmap example by example, strides that 32 bits can take."""

from typing import Any

import torch
from torch import Tensor


def register_loop(op: Any) -> None:
    """Give a custom operation the batching rule that calls it once an example, for torch.func.vmap and jacrev."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        # a batch of none is asked too, for the shapes of what comes back
        results = [
            op(*(_example(arg, dim, i) for arg, dim in zip(args, in_dims, strict=True)))
            for i in range(max(info.batch_size, 1))
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        batched = (torch.stack(parts)[: info.batch_size] for parts in zip(*results, strict=True))
        return tuple(batched), (0,) * len(results[0])

    op.register_vmap(rule)


def _example(arg: Any, dim: Any, i: int) -> Any:
    if isinstance(dim, list | tuple):
        return [_example(part, part_dim, i) for part, part_dim in zip(arg, dim, strict=True)]
    if dim is None:
        return arg
    if arg.shape[dim] == 0:
        return arg.new_zeros(arg.shape[:dim] + arg.shape[dim + 1 :])
    return arg.select(dim, i)


def rows_of(x: Tensor) -> Tensor:
    """Return x with its leading dimensions as one; reshape(-1, n) could not tell it of none of them under vmap."""
    if x.ndim == 2:
        return x
    return x.unsqueeze(0) if x.ndim == 1 else x.flatten(0, -2)


def addressable(t: Tensor) -> Tensor:
    """Return t, or a contiguous copy where its last dimension is strided so far that 32 bits cannot count it."""
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t if t.stride(-1) == 1 or reach < 2**31 else t.contiguous()
