"""What every custom operation here does around its launch: vmap example by example, strides that 32 bits can take."""

from typing import Any

import torch
from torch import Tensor


def register_loop(op: Any) -> None:
    """Give a custom operation the batching rule that calls it once an example, for torch.func.vmap and jacrev."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            op(*(_example(arg, dim, i) for arg, dim in zip(args, in_dims, strict=True))) for i in range(info.batch_size)
        ]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])

    op.register_vmap(rule)


def _example(arg: Any, dim: Any, i: int) -> Any:
    if isinstance(dim, list | tuple):
        return [_example(part, part_dim, i) for part, part_dim in zip(arg, dim, strict=True)]
    return arg if dim is None else arg.select(dim, i)


def addressable(t: Tensor) -> Tensor:
    """Return t, or a contiguous copy where its last dimension is strided so far that 32 bits cannot count it."""
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t if t.stride(-1) == 1 or reach < 2**31 else t.contiguous()
