"""What the tangent kernel has to know of a network: linear layers one after the other, and readouts on their states."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nftk._checks import is_finite
from nftk.modules import NFTKMLP
from nftk.modules.hidden_layer import plain_parameters
from nftk.ops import activations
from nftk.ops.activations import Activation
from nftk.ops.network_formula import affine


@dataclasses.dataclass(frozen=True)
class Layer:
    """g = scale W h + bias_scale b, then phi; the last layer of a plain network is a readout instead."""

    name: str
    weight: Tensor  # [n_k, n_{k-1}]
    bias: Tensor | None
    activation: Activation
    scale: float = 1.0
    bias_scale: float = 1.0

    @property
    def scaled_weight(self) -> Tensor:
        """What h is multiplied with."""
        return self.weight if self.scale == 1 else self.weight * self.scale


@dataclasses.dataclass(frozen=True)
class Readout:
    """scale V h_l, and a bias where the readout is itself a layer with one."""

    name: str
    layer: int  # l; 0 reads the input
    weight: Tensor  # [d, n_l]
    bias: bool = False
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Chain:
    """A network, as its kernel sees it."""

    layers: tuple[Layer, ...]
    readouts: tuple[Readout, ...]
    omega: Tensor | None  # [d, L]; None: one readout, which is f
    output_bias: bool
    readout_name: str  # of the readouts' parameters, which are one block of per="module"
    flattens: bool = False  # whether an input may have more than one dimension

    @property
    def in_features(self) -> int:
        """Size m of an input."""
        first = self.layers[0].weight if self.layers else self.readouts[0].weight
        return first.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs, d."""
        return self.readouts[0].weight.shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Sizes of h_0 .. h_L."""
        return (self.in_features, *(layer.weight.shape[0] for layer in self.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.readouts[0].weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.readouts[0].weight.device

    @property
    def has_omega(self) -> bool:
        """Whether there is an Omega with a block of its own."""
        return self.omega is not None

    def block_names(self, per: str, include_omega: bool) -> tuple[str, ...]:
        """What the blocks are of."""
        if per == "layer":
            return tuple(readout.name for readout in self.readouts)
        own = ["output_bias"] if self.output_bias else []
        own += ["omega"] if include_omega else []
        return (*(layer.name for layer in self.layers), self.readout_name, *own)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Chain":
        """The chain with a function applied to every parameter."""

        def layer(x: Layer) -> Layer:
            return dataclasses.replace(x, weight=change(x.weight), bias=None if x.bias is None else change(x.bias))

        return dataclasses.replace(
            self,
            layers=tuple(map(layer, self.layers)),
            readouts=tuple(dataclasses.replace(r, weight=change(r.weight)) for r in self.readouts),
            omega=None if self.omega is None else change(self.omega),
        )


def chain_of(model: nn.Module, op: str) -> Chain:
    """Read a network, or raise for one whose kernel this form cannot give."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"nftk.{op}: model must be an nn.Module, got {type(model).__name__}")
    if next((t for t in model.parameters() if t.is_meta), None) is not None:
        raise ValueError(f"nftk.{op}: parameters of model must have values, got some on the meta device")
    if isinstance(model, NFTKMLP) and type(model).forward is NFTKMLP.forward:
        chain = _of_nftk(model, op)
    elif isinstance(model, nn.Linear | nn.Sequential) and not isinstance(model, NFTKMLP):
        chain = _of_mlp(model, op)
    else:
        raise NotImplementedError(
            f"nftk.{op}: model must be an NFTKMLP, or an nn.Sequential of nn.Linear and elementwise activations, "
            f"got {kind_of(model)}"
        )
    _check_parameters(model, chain, op)
    for layer in chain.layers:
        _check_elementwise(layer, op)
    return chain


def _of_nftk(model: NFTKMLP, op: str) -> Chain:
    if model.training and max(model.dropout) > 0:
        raise ValueError(f"nftk.{op}: model must be in eval mode, got dropout {max(model.dropout):g} in training mode")
    _check_hooks(model, op)
    plain = plain_parameters(model.hidden)
    if plain is None:
        raise NotImplementedError(f"nftk.{op}: model must have hidden layers without hooks or forwards of their own")
    plan, names = model._plan, [f"hidden.{i}" for i in range(len(model.hidden))]
    layers = tuple(map(Layer, names, *plain, plan.activations, plan.weight_scales, plan.bias_scales))
    readouts = tuple(
        Readout(f"readout {i + 1}", i + 1, v, False, r)
        for i, (v, r) in enumerate(zip(model.readout_weights(), plan.readout_scales, strict=True))
    )
    return Chain(layers, readouts, model.omega, model.output_bias is not None, "readout_weight")


def _of_mlp(model: nn.Module, op: str) -> Chain:
    linears: list[tuple[str, nn.Linear]] = []
    phis: list[nn.Module] = []
    flattens = False
    for name, module in _leaves(model, op):
        if type(module) is nn.Linear:
            if linears and module.in_features != linears[-1][1].out_features:
                raise ValueError(
                    f"nftk.{op}: {name} must take the {linears[-1][1].out_features} outputs of the layer before, got "
                    f"in_features={module.in_features}"
                )
            linears.append((name, module))
            phis.append(nn.Identity())
        elif isinstance(module, nn.Dropout | nn.AlphaDropout):
            if module.training and module.p > 0:
                raise ValueError(f"nftk.{op}: model must be in eval mode, got {module} in training mode at {name}")
        elif isinstance(module, nn.modules.batchnorm._NormBase) and (module.training or module.running_mean is None):
            raise ValueError(f"nftk.{op}: model must be in eval mode, got {module} at {name}, which looks at its batch")
        elif isinstance(module, nn.Flatten) and not linears and (module.start_dim, module.end_dim) == (1, -1):
            flattens = True
        elif isinstance(module, nn.Linear) or not linears:
            raise NotImplementedError(
                f"nftk.{op}: {name} must be nn.Linear, or an elementwise activation or a dropout after one, got "
                f"{kind_of(module)}"
            )
        else:
            before = phis[-1]
            phis[-1] = module if isinstance(before, nn.Identity) else nn.Sequential(before, module)
    if not linears:
        raise NotImplementedError(f"nftk.{op}: model must hold an nn.Linear, got none")
    if not isinstance(phis[-1], nn.Identity):
        raise NotImplementedError(
            f"nftk.{op}: model must end with its last nn.Linear, got {phis[-1]} after it; leave that out"
        )
    layers = tuple(
        Layer(name, linear.weight, linear.bias, activations.resolve(activations.canonical(op, phi)))
        for (name, linear), phi in zip(linears[:-1], phis[:-1], strict=True)
    )
    name, last = linears[-1]
    readout = Readout(name, len(layers), last.weight, last.bias is not None)
    return Chain(layers, (readout,), None, False, name, flattens)


def _leaves(model: nn.Module, op: str, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    _check_hooks(model, op)
    if type(model).forward is not nn.Sequential.forward:
        yield prefix or "model", model
        return
    # not named_children, which leaves out a module that stands in two places
    for key, module in model._modules.items():
        if module is None:
            raise ValueError(f"nftk.{op}: every place of model must hold a module, got None at {key}")
        yield from _leaves(module, op, f"{prefix}.{key}" if prefix else key)


def kind_of(model: nn.Module) -> str:
    """What a module is, and what to give instead where it only stands around another."""
    around = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    hint = "; give its .module" if around else "; give its ._orig_mod" if hasattr(model, "_orig_mod") else ""
    place, name = type(model).__module__, type(model).__name__
    return (name if place.startswith("torch.nn.") else f"{place}.{name}") + hint


def _check_hooks(model: nn.Module, op: str) -> None:
    if isinstance(model, nn.modules.lazy.LazyModuleMixin) and model.has_uninitialized_params():
        raise ValueError(f"nftk.{op}: model must have seen an input, so that sizes are known, got {model}")
    if "forward" in model.__dict__:
        raise NotImplementedError(
            f"nftk.{op}: model must have the forward of its class, got another one set on {type(model).__name__}"
        )
    if model._forward_hooks or model._forward_pre_hooks or parametrize.is_parametrized(model):
        raise NotImplementedError(f"nftk.{op}: model must have no hooks or parametrizations, got some on {model}")


def _check_parameters(model: nn.Module, chain: Chain, op: str) -> None:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = owners.setdefault(id(parameter), name)
        if other != name and not name.startswith("activation_modules."):
            raise NotImplementedError(
                f"nftk.{op}: model must use every module once, got the same parameter as {other} and as {name}"
            )
    known = {id(t) for layer in chain.layers for t in (layer.weight, layer.bias) if t is not None}
    if isinstance(model, NFTKMLP):
        known |= {id(t) for t in (model.readout_weight, model.omega, model.output_bias) if t is not None}
    else:
        last = list(module for _, module in _leaves(model, op) if type(module) is nn.Linear)[-1]
        known |= {id(t) for t in (last.weight, last.bias) if t is not None}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            raise NotImplementedError(
                f"nftk.{op}: model must have no parameters but those of its layers and readouts, got {name}"
            )
    for name, parameter in model.named_parameters():
        if parameter.device != chain.device or parameter.dtype is not chain.dtype:
            raise ValueError(
                f"nftk.{op}: parameters of model must share one dtype and device, got {parameter.dtype} on "
                f"{parameter.device} for {name} and {chain.dtype} on {chain.device} for the readouts"
            )
        if not is_finite(parameter):
            raise ValueError(f"nftk.{op}: parameters of model must be finite, got NaN or infinity in {name}")


def _check_elementwise(layer: Layer, op: str) -> None:
    """Raise where a callable looks at more than one entry, or at chance: its kernel would be silently wrong."""
    function = layer.activation.function
    if layer.activation.name is not None:
        return
    weight = layer.weight
    # a copy, and chance as it was: asking must not change what is asked
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        function = copy.deepcopy(function)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(5, weight.shape[0], generator=generator).to(weight)
        before = function(probe.clone())
        fixed = before.shape == probe.shape and torch.equal(before, function(probe.clone()))
        for _ in range(4 if fixed else 0):
            # random entries changed: the others must stay as they were
            changes = torch.rand(probe.shape, generator=generator).to(probe.device) < 0.5
            other = torch.randn(probe.shape, generator=generator).to(weight)
            after = function(torch.where(changes, other, probe))
            fixed = fixed and torch.equal(after[~changes], before[~changes])
    if not fixed:
        raise NotImplementedError(
            f"nftk.{op}: an activation must be a fixed function of each entry alone, got {layer.activation.function} "
            f"after {layer.name}"
        )


def hidden_states(chain: Chain, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """h_0 .. h_L, and phi'(g_1) .. phi'(g_L)."""
    states, slopes = [x], []
    for layer in chain.layers:
        g = affine(states[-1], layer.weight, layer.bias, layer.scale, layer.bias_scale)
        h, slope = activations.value_and_slope(layer.activation, g)
        states.append(h)
        slopes.append(slope)
    return states, slopes


def describe(chain: Chain) -> dict[str, Any]:
    """Sizes and names, ready for JSON."""
    return {
        "widths": list(chain.widths),
        "outputs": chain.out_features,
        "layers": [layer.name for layer in chain.layers],
        "readouts": [readout.name for readout in chain.readouts],
    }
