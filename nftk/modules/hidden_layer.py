"""One hidden layer's affine map, in either parameterisation."""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from nftk.ops.network_formula import affine


class HiddenLinear(nn.Linear):
    r"""nn.Linear whose weight and bias enter with a fixed scale.

    .. math:: g = a W h + c\, b

    Args:
        in_features: Size of h.
        out_features: Size of g.
        bias: Whether there is a b.
        weight_scale: a; ``sqrt(weight_var / in_features)`` in the "ntk" parameterisation, 1 in the standard one.
        bias_scale: c; ``sqrt(bias_var)`` or 1.
        device: Where the parameters live.
        dtype: What they are.

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_scale: float = 1.0,
        bias_scale: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.weight_scale = weight_scale
        self.bias_scale = bias_scale
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Leave the parameters to the network, which draws them all."""

    def forward(self, input: Tensor) -> Tensor:
        """Return g, shape ``(..., out_features)``."""
        return affine(input, self.weight, self.bias, self.weight_scale, self.bias_scale)

    def extra_repr(self) -> str:
        """Describe the layer as nn.Linear does, with the scales where they are not 1."""
        scales = {"weight_scale": self.weight_scale, "bias_scale": self.bias_scale}
        shown = [f", {name}={value:.4g}" for name, value in scales.items() if not math.isclose(value, 1.0)]
        return super().extra_repr() + "".join(shown)


# the dictionaries behind torch.nn.modules.module.register_module_..._hook; torch has no public question for them
_GLOBAL_HOOKS = tuple(
    getattr(torch_module, f"_global_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
)


def plain_parameters(layers: nn.ModuleList) -> tuple[list[Tensor], list[Tensor | None]] | None:
    """Weights and biases of layers that are only their formula (no hook, no other module or forward), else None."""
    if any(_GLOBAL_HOOKS):
        return None
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for layer in layers:
        if (
            getattr(type(layer), "forward", None) is not HiddenLinear.forward
            or "forward" in layer.__dict__
            or layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
        ):
            return None
        # the dictionary is ten times faster than the attribute, which a parametrization needs
        own = layer._parameters
        weights.append(own["weight"] if "weight" in own else layer.weight)  # type: ignore[arg-type]
        biases.append(own["bias"] if "bias" in own else layer.bias)  # type: ignore[arg-type]
    return weights, biases
