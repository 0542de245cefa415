"""Gradients in the parameters of one function, for every example, whatever the function is."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nftk.tangent.modules.layout import Layout
from nftk.tangent.modules.recording import Use


def local_gradients(
    use: Use, inputs: dict[int, Layout], outputs: list[Layout | None], grads: list[Tensor | None]
) -> Tensor:
    """[n, P], of the parameters in the use's order, by torch.func.vjp of the function alone, mapped over examples."""
    # an output without examples takes no part
    ends = enumerate(zip(grads, outputs, strict=True))
    counted = [(i, g, layout) for i, (g, layout) in ends if layout is not None and g is not None]
    parameters = [use.leaves[i].detach() for i in use.places]
    places = list(inputs)
    mapped = [inputs[i].split(use.leaves[i]) for i in places]
    cotangents = [layout.split(g) for _, g, layout in counted]

    def one(pieces: list[Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        def function(*values: Tensor) -> tuple[Tensor, ...]:
            leaves: list[Any] = list(use.leaves)
            for i, value in zip(use.places, values, strict=True):
                leaves[i] = value
            for i, piece in zip(places, pieces, strict=True):
                leaves[i] = inputs[i].joined(piece)
            args, kwargs = pytree.tree_unflatten(leaves, use.spec)
            results = [
                x for x in pytree.tree_leaves(use.function(*args, **kwargs))
                if isinstance(x, Tensor) and x.is_floating_point()
            ]  # fmt: skip
            return tuple(results[i].movedim(layout.dim, 0) for i, _, layout in counted)

        back: Any = torch.func.vjp(function, *parameters)[1]
        found: tuple[Tensor, ...] = back(tuple(given))
        return found

    try:
        found = torch.func.vmap(one)(mapped, cotangents)
    except (RuntimeError, ValueError, TypeError):
        # what torch.func cannot map goes one by one
        rows = [one([x[e] for x in mapped], [g[e] for g in cotangents]) for e in range(cotangents[0].shape[0])]
        found = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return torch.cat([x.flatten(1) for x in found], dim=1)
