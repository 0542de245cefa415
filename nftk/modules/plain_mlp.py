"""The plain multilayer perceptron beside an NFT-K network."""

import torch
from torch import nn

from nftk.modules.nftk_mlp import NFTKMLP
from nftk.ops import activations


def plain_mlp(like: NFTKMLP) -> nn.Sequential:
    """The multilayer perceptron beside an NFT-K network: same layers and activation, one readout, Xavier normal."""
    modules: list[nn.Module] = []
    fan_in = like.in_features
    for width in like.hidden_features:
        modules += [nn.Linear(fan_in, width), _Named(like.config()["activation"])]
        fan_in = width
    modules.append(nn.Linear(fan_in, like.out_features))
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return nn.Sequential(*modules)


class _Named(nn.Module):
    """One of nftk's named activations as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.activation = activations.BY_NAME[name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation.function(x)

    def extra_repr(self) -> str:
        return str(self.activation.name)
