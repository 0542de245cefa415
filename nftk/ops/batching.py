"""vmap of a custom operation, example by example."""

from typing import Any

import torch


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
