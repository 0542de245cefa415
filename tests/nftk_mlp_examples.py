"""NFTKMLPs with random Omega and biases, inputs for them, and the same network from torch's own layers."""

import torch
from torch import nn

import nftk


def square(g):
    return g * g


class PlainTorch(nn.Module):
    """The paper's network from torch's own layers, with the parameters of an NFTKMLP: the truth of these tests."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        out = 0
        for i, layer in enumerate(self.model.hidden):
            x = self.model._plan.activations[i].function(nn.functional.linear(x, layer.weight, layer.bias))
            out = out + self.model.omega[:, i] * nn.functional.linear(x, self.model.readout_weights()[i])
        return out


def make(hidden=(16, 9, 16), d=4, **keywords):
    torch.manual_seed(1)
    keywords.setdefault("dtype", torch.float64)
    model = nftk.NFTKMLP(6, list(hidden), d, **keywords)
    with torch.no_grad():
        model.omega.copy_(torch.rand(d, len(hidden)))
        for layer in model.hidden:
            if layer.bias is not None:
                layer.bias.normal_(std=0.3)
    return model


def inputs(*lead, dtype=torch.float64):
    return torch.randn(*(lead or (5,)), 6, dtype=dtype)
