"""How the gradient in a function's parameters follows from its input and the gradient of its output.

Two kinds of parameters have gradients that are sums of products, sum_s g_s a_s^T over positions s: those of linear maps
(a_s is what the map takes in) and tables (a_s chooses a row). Of all others the gradient itself is formed.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nftk.tangent.modules.layout import Layout
from nftk.tangent.modules.local import local_gradients
from nftk.tangent.modules.recording import Use

_ORDERS = {
    "linear": ("input", "weight", "bias"),
    "addmm": ("bias", "input", "weight"),
    **{f"conv{k}d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups") for k in (1, 2, 3)},
}
_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")
_REPEATING = ("expand", "expand_as", "broadcast_to")
_ADDING = ("add", "__add__", "__radd__")


@dataclass(frozen=True)
class Rule:
    """Reads a use: its factors a and g, or its gradients.

    Attributes:
        kind: ``"products"``; ``"rows"``, where a is the numbers of rows; or ``"gradients"``.
        what: Name of the function.
        parameters: Which of the use's owners the gradient is in, in its order.
        read: The use and the layouts of its leaves to a: ``(n, groups, positions, inputs)``, or ``(n, positions)``.
        turn: A gradient of the output to g, ``(n, groups, positions, outputs)``; for ``"gradients"`` not there.
        gradients: The use and gradients of its outputs to ``(n, P)``.
        rows: Of a table.
    """

    kind: str
    what: str
    parameters: tuple[str, ...]
    bias: bool = False
    read: Callable[[Use], Tensor] | None = None
    turn: Callable[[Use, Tensor], Tensor] | None = None
    gradients: Callable[[Use, list[Tensor | None]], Tensor] | None = None
    rows: int = 0


def block_of(parameter: str) -> str:
    """Name of the module whose own parameter it is."""
    return parameter.rpartition(".")[0] or "model"


def split_by_block(rule: Rule, sizes: list[int]) -> list[Rule]:
    """A rule for each module among the owners, where gradients are found together."""
    whole = rule.gradients
    blocks = list(dict.fromkeys(map(block_of, rule.parameters)))
    if whole is None or len(blocks) == 1:
        return [rule]
    found = []
    for block in blocks:
        mine = [i for i, name in enumerate(rule.parameters) if block_of(name) == block]

        def gradients(use: Use, grads: list[Tensor | None], mine: list[int] = mine) -> Tensor:
            parts = whole(use, grads).split(sizes, dim=1)
            return torch.cat([parts[i] for i in mine], dim=1)

        found.append(replace(rule, parameters=tuple(rule.parameters[i] for i in mine), gradients=gradients))
    return found


def rule_of(use: Use, inputs: dict[int, Layout], outputs: list[Layout | None]) -> Rule:
    """The rule for a use whose inputs and outputs lie as given; inputs that are not there are the same for all."""
    named, name = _named(use), use.name
    first, simple = outputs[0], len(outputs) == 1
    where = {id(use.leaves[i]): layout for i, layout in inputs.items()}
    layout = where.get(id(named.get("input")))
    weight: Any = named.get("weight")
    bias = named.get("bias")
    # by places, not by names: where one parameter serves twice it has two places
    roles = dict(zip((id(use.leaves[i]) for i in use.places), use.owners, strict=True))
    own = tuple(roles[id(x)] for x in (weight, bias) if id(x) in roles)
    together = len({block_of(name) for name in own}) == 1
    plain = (
        simple
        and together
        and len(own) == len(use.owners)
        and id(weight) in roles
        # one number for all outputs is not theirs one by one
        and (bias is None or (id(bias) in roles and (name not in ("linear", "addmm") or _one_each(name, weight, bias))))
    )
    if plain and first is not None:
        scaled = (named.get("beta", 1), named.get("alpha", 1)) != (1, 1)
        matrix = name in ("linear", "addmm") and not scaled
        if matrix and layout == first and layout.dim < named["input"].ndim - 1:
            return _linear(name, own, layout, transposed=name == "addmm", bias=bias is not None)
        if name.startswith("conv") and name in _ORDERS and layout == first and layout.dim == 0:
            return _convolution(name, own, layout, weight.ndim - 2, bias=bias is not None)
        if name == "embedding" and (layout == first or layout is None):
            return _table(own, layout, first, named)
        if name in _NORMS and layout == first:
            return _norm(name, own, layout, weight)
    if simple and first is not None and len(use.owners) == 1:
        parameter = use.leaves[use.places[0]]
        if name in _REPEATING or (name in _ADDING and not named["kwargs"]):
            return Rule("gradients", name, use.owners, gradients=_Summed(first, parameter.shape))
    return Rule("gradients", name, use.owners, gradients=_Local(inputs, outputs))


def _one_each(name: str, weight: Tensor, bias: Tensor) -> bool:
    """Whether a linear map's bias has a number for each output."""
    return bias.shape == (weight.shape[1 if name == "addmm" else 0],)


def _named(use: Use) -> dict[str, Any]:
    """Arguments by name, as far as the function tells."""
    args, kwargs = use.arguments()
    order = _ORDERS.get(use.name)
    if order is None:
        if use.name in (*_NORMS, "embedding") and inspect.isfunction(use.function):
            order = tuple(inspect.signature(use.function).parameters)
        else:
            return {"kwargs": kwargs}
    return {**dict(zip(order, args, strict=False)), **kwargs, "kwargs": kwargs}


def _linear(name: str, own: tuple[str, ...], layout: Layout, *, transposed: bool, bias: bool) -> Rule:
    def read(use: Use) -> Tensor:
        a: Tensor = layout.split(_named(use)["input"])  # [n, k, .., inputs]
        return a.flatten(1, -2).unsqueeze(1)

    def turn(use: Use, g: Tensor) -> Tensor:
        return layout.split(g).flatten(1, -2).unsqueeze(1)

    return Rule("products", "addmm" if transposed else name, own, bias, read, turn)


def _convolution(name: str, own: tuple[str, ...], layout: Layout, dims: int, *, bias: bool) -> Rule:
    def read(use: Use) -> Tensor:
        named = _named(use)
        patches = unfold(named, dims)  # [n k, groups, positions, inputs]
        return _joined(patches, layout.times)

    def turn(use: Use, g: Tensor) -> Tensor:
        groups = _named(use).get("groups", 1)
        return _joined(g.flatten(2).unflatten(1, (groups, -1)).mT, layout.times)

    return Rule("products", name, own, bias, read, turn)


def _joined(x: Tensor, times: int) -> Tensor:
    """[n k, groups, positions, c] to [n, groups, k positions, c]."""
    if times == 1:
        return x
    apart: Tensor = x.unflatten(0, (-1, times))
    return apart.transpose(1, 2).flatten(2, 3)


def unfold(named: dict[str, Any], dims: int) -> Tensor:
    """What a convolution multiplies its weight with: [n, groups, positions, channels of a group x taps]."""
    x, weight = named["input"], named["weight"]
    stride, dilation = (_each(named.get(name, 1), dims) for name in ("stride", "dilation"))
    padding, groups, taps = named.get("padding", 0), named.get("groups", 1), weight.shape[2:]
    if isinstance(padding, str):
        whole = [(t - 1) * s if padding == "same" else 0 for t, s in zip(taps, dilation, strict=True)]
        ends = [(total // 2, total - total // 2) for total in whole]
    else:
        ends = [(p, p) for p in _each(padding, dims)]
    x = F.pad(x, [end for pair in reversed(ends) for end in pair])
    for i in range(dims):
        # of a window that reaches over all taps, every dilation-th entry
        x = x.unfold(2 + i, (taps[i] - 1) * dilation[i] + 1, stride[i])[..., :: dilation[i]]
    x = x.unflatten(1, (groups, -1))  # [n, groups, channels, positions .., taps ..]
    order = (0, 1, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    patches: Tensor = x.permute(order).flatten(2 + dims).flatten(2, 1 + dims)
    return patches


def _each(value: Any, dims: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
    return given * dims if len(given) == 1 else given


def _table(own: tuple[str, ...], layout: Layout | None, first: Layout, named: dict[str, Any]) -> Rule:
    rows, padding = named["weight"].shape[0], named.get("padding_idx")
    if padding is not None and padding < 0:
        padding += rows

    def read(use: Use) -> Tensor:
        places = _named(use)["input"]
        n = use.outputs[0].shape[first.dim] // first.times
        if layout is None:
            same: Tensor = places.reshape(1, -1).expand(n, -1)
            return same
        return layout.split(places).flatten(1)

    def turn(use: Use, g: Tensor) -> Tensor:
        g = first.split(g).flatten(1, -2)
        if padding is not None:
            g = g * (read(use) != padding).unsqueeze(-1)
        return g.unsqueeze(1)

    return Rule("rows", "embedding", own, False, read, turn, rows=rows)


def _norm(name: str, own: tuple[str, ...], layout: Layout, weight: Tensor) -> Rule:
    last = name in ("layer_norm", "rms_norm")

    def gradients(use: Use, grads: list[Tensor | None]) -> Tensor:
        named, g = _named(use), grads[0]
        assert g is not None
        given = {key: value for key, value in named.items() if key not in ("kwargs", "weight", "bias")}
        plain = use.function(**given)

        def summed(x: Tensor) -> Tensor:
            x = layout.split(x)  # [n, k, .., parameter's] or [n, k, channels, ..]
            if last:
                return x.flatten(1, x.ndim - weight.ndim - 1).sum(1).flatten(1)
            return x.flatten(3).sum((1, 3)) if x.ndim > 3 else x.sum(1)

        parts = [summed(g * plain), summed(g)]
        return torch.cat(parts[: len(own)], dim=1)

    return Rule("gradients", name, own, gradients=gradients)


class _Summed:
    """Of a parameter that is added, or repeated: the gradient summed over what it was repeated along."""

    def __init__(self, layout: Layout, shape: torch.Size) -> None:
        self.layout, self.shape = layout, shape

    def __call__(self, use: Use, grads: list[Tensor | None]) -> Tensor:
        g = grads[0]
        assert g is not None
        dim, times = self.layout.dim, self.layout.times
        parts = self.layout.split(g)
        # one example's dimension back in place, behind that of the examples
        parts = parts.movedim(1, 1 + dim)
        shape = (1,) * (g.ndim - len(self.shape)) + tuple(self.shape)
        if len(shape) != g.ndim or (shape[dim] not in (1, times)):
            raise ValueError("its shape is another than that of what it is added to")
        sums = [1 + i for i, size in enumerate(shape) if size == 1]
        return (parts.sum(sums) if sums else parts).reshape(parts.shape[0], math.prod(self.shape))


class _Local:
    """Any function by itself, differentiated by torch.func."""

    def __init__(self, inputs: dict[int, Layout], outputs: list[Layout | None]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def __call__(self, use: Use, grads: list[Tensor | None]) -> Tensor:
        return local_gradients(use, self.inputs, self.outputs, grads)
