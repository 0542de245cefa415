"""Gradients of a whole model's outputs in some of its parameters, example by example."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nftk.tangent.modules.examples import Examples

_Outputs = Callable[[Examples], Tensor]


def whole_gradients(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    names: Sequence[str],
    x: Examples,
    outputs: _Outputs,
    *,
    summed: bool,
    map: bool,
) -> dict[str, Tensor]:
    """By name, [n, d, P], or [n, 1, P] where the outputs are summed; with map by torch.func, else one by one."""
    if not map:
        return _one_by_one({name: parameters[name] for name in names}, x, outputs, summed)
    chosen = {name: parameters[name].detach() for name in names}
    wrapped = _Wrapped(model, outputs)

    def function(values: dict[str, Tensor], *tensors: Tensor) -> Tensor:
        one = Examples({key: t.unsqueeze(0) for key, t in zip(x.tensors, tensors, strict=True)}, named=x.named)
        f: Tensor = torch.func.functional_call(wrapped, {f"model.{k}": v for k, v in values.items()}, (one,))[0]
        return f.sum(0, keepdim=True) if summed else f

    mapped = torch.func.vmap(torch.func.jacrev(function), in_dims=(None, *(0 for _ in x)))
    found = mapped(chosen, *x)
    return {name: jacobian.flatten(2) for name, jacobian in found.items()}


class _Wrapped(nn.Module):
    """The model with its outputs chosen, so that functional_call reaches both."""

    def __init__(self, model: nn.Module, outputs: _Outputs) -> None:
        super().__init__()
        self.model, self._outputs = model, outputs

    def forward(self, x: Examples) -> Tensor:
        return self._outputs(x)


def _one_by_one(parameters: Mapping[str, Tensor], x: Examples, outputs: _Outputs, summed: bool) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    with wanting(parameters):
        for e in range(len(x)):
            f = outputs(x[e : e + 1])[0]
            f = f.sum(0, keepdim=True) if summed else f
            by_output = [
                torch.autograd.grad(
                    f[i], list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for i in range(len(f))
            ]
            for name, grads in zip(parameters, zip(*by_output, strict=True), strict=True):
                rows[name].append(torch.stack([g.to_dense().flatten() for g in grads]))
    return {name: torch.stack(found) for name, found in rows.items()}


class wanting:
    """Has parameters take part in autograd, and puts back how that was."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._frozen = [p for p in parameters.values() if not p.requires_grad]

    def __enter__(self) -> None:
        for p in self._frozen:
            p.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for p in self._frozen:
            p.requires_grad_(False)
