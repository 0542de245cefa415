"""PrunedMLP: what is left of an NFT-K network when all that Omega has closed is gone."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nftk.ops.network_formula import Plan

if TYPE_CHECKING:
    from nftk.modules.nftk_mlp import NFTKMLP


class PrunedMLP(nn.Module):
    """The function of an :class:`nftk.NFTKMLP` with the layers that no class uses taken out.

    Hidden layers after the last open one are gone, and so are the readouts of closed layers before it, whose hidden
    states the next layer still needs. Omega is multiplied into the readouts; what
    was frozen, the readouts by V, stays so. Made by :meth:`nftk.NFTKMLP.prune`.

    Args:
        model: The network; copied. A column of its Omega that is zero for every class closes a layer.
        plan: Its activations and scales; None: as the network has them.

    Attributes:
        open_layers: Numbers of the layers with a readout, from 0.
        hidden: ModuleList of the hidden layers that are left.
        readouts: ParameterList, one matrix ``(d, n_l)`` an open layer.
        output_bias: Parameter ``(d,)`` or None.

    Raises:
        TypeError: If ``model`` is no NFT-K network.

    Shape:
        Input ``(..., m)``, output ``(..., d)``.
    """

    def __init__(self, model: "NFTKMLP", plan: Plan | None = None) -> None:
        from nftk.modules.nftk_mlp import NFTKMLP

        super().__init__()
        if not isinstance(model, NFTKMLP):
            raise TypeError(f"nftk.PrunedMLP: model must be an NFTKMLP, got {type(model).__name__}")
        plan = model._plan if plan is None else plan
        self.in_features, self.out_features = model.in_features, model.out_features
        self.open_layers = tuple(model.omega.detach().ne(0).any(0).nonzero().flatten().tolist())
        depth = 1 + self.open_layers[-1] if self.open_layers else 0
        self.hidden_features = model.hidden_features[:depth]
        self.hidden = nn.ModuleList(copy.deepcopy(layer) for layer in model.hidden[:depth])
        # in one go, so that layers which share a module go on sharing it
        self.activations = copy.deepcopy(list(plan.activations[:depth]))
        modules = [phi.function for phi in self.activations if isinstance(phi.function, nn.Module)]
        if modules:
            self.activation_modules = nn.ModuleList(dict.fromkeys(modules))
        with torch.no_grad():
            weights, omega = model.readout_weights(), model.omega
            self.readouts = nn.ParameterList(
                nn.Parameter(
                    weights[layer] * (omega[:, layer, None] * plan.readout_scales[layer]),
                    requires_grad=model.readout_weight.requires_grad,
                )
                for layer in self.open_layers
            )
        self.output_bias = copy.deepcopy(model.output_bias)
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x).

        Args:
            x: Inputs, shape ``(..., m)``.

        Returns:
            f, shape ``(..., d)``.

        Raises:
            ValueError: If the last dimension of ``x`` is not m.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"nftk.PrunedMLP: x must have shape [..., {self.in_features}], got {list(x.shape)}")
        f = x.new_zeros(*x.shape[:-1], self.out_features) if self.output_bias is None else self.output_bias
        readouts: Iterator[Tensor] = iter(self.readouts)
        for number, (layer, phi) in enumerate(zip(self.hidden, self.activations, strict=True)):
            x = phi.function(layer(x))
            if number in self.open_layers:
                f = f + nn.functional.linear(x, next(readouts))
        return f.expand(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Describe the network in one line.

        Returns:
            Sizes, and which layers are open.
        """
        widths = list(self.hidden_features)
        return f"{self.in_features}, {widths}, {self.out_features}, open_layers={list(self.open_layers)}"
