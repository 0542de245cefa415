"""Takes a trained multilayer perceptron over into an NFT-K network that computes the same function."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

_OP = "NFTKMLP.from_mlp"
Network = TypeVar("Network", bound=nn.Module)
# modules that act elementwise and keep no state of a batch, so they can stand as phi
_ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_DROPOUT = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def convert(cls: type[Network], mlp: nn.Module, **keywords: Any) -> Network:
    """Do the work of ``NFTKMLP.from_mlp``, whose docstring has the rules."""
    linears, phis, dropout = _parse(mlp)
    hidden, last = linears[:-1], linears[-1]
    model: Any = cls(
        hidden[0].in_features,
        [layer.out_features for layer in hidden],
        last.out_features,
        activation=phis,
        bias=any(layer.bias is not None for layer in hidden),
        output_bias=last.bias is not None,
        dropout=dropout,
        omega_init=_last_layer_only(last.out_features, len(hidden)),
        device=last.weight.device,
        dtype=last.weight.dtype,
        **keywords,
    )
    with torch.no_grad():
        for new, old in zip(model.hidden, hidden, strict=True):
            new.weight.copy_(old.weight).requires_grad_(old.weight.requires_grad)
            if old.bias is not None:
                new.bias.copy_(old.bias).requires_grad_(old.bias.requires_grad)
        model.readout_weights()[-1].copy_(last.weight)
        if last.bias is not None:
            model.output_bias.copy_(last.bias)
    return model.train(mlp.training)  # type: ignore[no-any-return]


def _parse(mlp: nn.Module) -> tuple[list[nn.Linear], list[nn.Module], list[float]]:
    """Split the stack into L + 1 linear layers, the L activations and dropouts between them."""
    if not isinstance(mlp, nn.Sequential) or type(mlp).forward is not nn.Sequential.forward:
        kind = type(mlp).__name__
        raise TypeError(f"nftk.{_OP}: mlp must be an nn.Sequential with its own forward, got {kind}; unwrap a wrapper")
    linears: list[nn.Linear] = []
    phis: list[nn.Module] = []
    dropout: list[float] = []
    for name, module in _leaves(mlp):
        if type(module) is nn.Linear:
            if linears and module.in_features != linears[-1].out_features:
                raise ValueError(
                    f"nftk.{_OP}: {name} must take the {linears[-1].out_features} outputs of the layer before, "
                    f"got in_features={module.in_features}"
                )
            linears.append(module)
            phis.append(nn.Identity())
            dropout.append(0.0)
        elif isinstance(module, _DROPOUT):
            if linears:
                dropout[-1] = _with_dropout(name, module, dropout[-1])
            elif module.p > 0:
                raise ValueError(f"nftk.{_OP}: {name} must not drop inputs, got {module} before the first layer")
        elif isinstance(module, _ELEMENTWISE) and linears:
            if not isinstance(phis[-1], nn.Identity) or dropout[-1] > 0:
                phis[-1] = _chain(name, phis[-1], module, dropout[-1])
            else:
                phis[-1] = copy.deepcopy(module)
        else:
            raise ValueError(
                f"nftk.{_OP}: {name} must be nn.Linear, an elementwise activation after one, or dropout, got {module}"
            )
    if len(linears) < 2:
        raise ValueError(f"nftk.{_OP}: mlp must have a hidden layer, got {len(linears)} linear layers")
    if not isinstance(phis[-1], nn.Identity):
        raise ValueError(f"nftk.{_OP}: mlp must end with its last linear layer, got {phis[-1]} after it")
    if dropout[-1] > 0:
        warnings.warn(
            f"nftk.{_OP}: the dropout (p={dropout[-1]:g}) after the last layer is left out; the function in eval mode "
            "is the same",
            stacklevel=4,
        )
    return linears, phis[:-1], dropout[:-1]


def _leaves(mlp: nn.Sequential, prefix: str = "mlp") -> Iterator[tuple[str, nn.Module]]:
    # not named_children, which leaves out a module that stands in two places
    for key, module in mlp._modules.items():
        name = f"{prefix}[{key}]"
        assert module is not None
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"nftk.{_OP}: {name} must have no hooks, which would be lost, got some on {module}")
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from _leaves(module, name)
        else:
            yield name, module


def _chain(name: str, first: nn.Module, second: nn.Module, dropout: float) -> nn.Module:
    if isinstance(second, nn.Identity):
        return first
    if dropout > 0:
        raise ValueError(f"nftk.{_OP}: {name} must come before the dropout of its layer, got {second} after it")
    return nn.Sequential(first, copy.deepcopy(second))


def _with_dropout(name: str, module: Any, before: float) -> float:
    if module.p > 0 and type(module) is not nn.Dropout:
        raise ValueError(f"nftk.{_OP}: {name} must be nn.Dropout, got {module}")
    if module.p >= 1:
        raise ValueError(f"nftk.{_OP}: {name} must have p below 1, got {module.p:g}")
    # two in a row keep an entry when both do
    return 1 - (1 - before) * (1 - module.p) if before else float(module.p)


def _last_layer_only(d: int, depth: int) -> torch.Tensor:
    omega = torch.zeros(d, depth)
    omega[:, -1] = 1
    return omega
