"""What is refused of a model before it is run."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedParameter

from nftk._checks import FLOATING, is_finite
from nftk.tangent.chain import kind_of


def check_model(model: nn.Module, op: str) -> dict[str, Tensor]:
    """Its parameters by name, or raise for a model whose kernel could only be wrong."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"nftk.{op}: model must be an nn.Module, got {type(model).__name__}")
    if "; give its" in kind_of(model) or isinstance(model, torch.jit.ScriptModule):
        raise NotImplementedError(f"nftk.{op}: model must be a plain nn.Module, got {kind_of(model)}")
    for name, module in model.named_modules():
        told = f"{module} at {name or 'the top'}"
        if any(isinstance(p, UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ValueError(f"nftk.{op}: model must have seen an input, so that sizes are known, got {told}")
        if module.training and isinstance(module, _DropoutNd) and module.p > 0:
            raise ValueError(f"nftk.{op}: model must be in eval mode, got {told} in training mode")
        if module.training and _drops(module):
            raise ValueError(f"nftk.{op}: model must be in eval mode, got dropout of {told} in training mode")
        if isinstance(module, _NormBase) and _looks_around(module):
            raise ValueError(f"nftk.{op}: model must be in eval mode, got {told}, which looks at its batch")
        table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if table and (module.max_norm is not None or module.scale_grad_by_freq):
            raise NotImplementedError(
                f"nftk.{op}: an embedding must be without max_norm and scale_grad_by_freq, which change its rows or "
                f"gradients, got {told}"
            )
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"nftk.{op}: model must have parameters, got none in {kind_of(model)}")
    dtype, device = next((p.dtype, p.device) for p in parameters.values())
    for name, p in parameters.items():
        if p.is_complex():
            raise NotImplementedError(
                f"nftk.{op}: parameters of model must be real, got {p.dtype} for {name}; complex numbers have no code"
            )
        if p.is_meta:
            raise ValueError(f"nftk.{op}: parameters of model must have values, got some on the meta device")
        if p.dtype not in FLOATING or p.dtype is not dtype or p.device != device:
            raise ValueError(
                f"nftk.{op}: parameters of model must share one floating dtype and device, got {p.dtype} on {p.device} "
                f"for {name} and {dtype} on {device} for the first"
            )
        if not is_finite(p):
            raise ValueError(f"nftk.{op}: parameters of model must be finite, got NaN or infinity in {name}")
    return parameters


def _drops(module: nn.Module) -> bool:
    """Whether dropout that is no module of its own is active in it."""
    layers = module.num_layers > 1 if isinstance(module, nn.RNNBase) else isinstance(module, nn.MultiheadAttention)
    return bool(layers and module.dropout > 0)  # type: ignore[operator]


def _looks_around(module: _NormBase) -> bool:
    """Whether it takes its statistics from its inputs, or writes them down; each example's own are no harm."""
    if isinstance(module, _InstanceNorm):
        return module.training and module.running_mean is not None
    return module.training or module.running_mean is None
