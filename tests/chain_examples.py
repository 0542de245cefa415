"""NFTKMLPs of many shapes, activations and parameterisations, with inputs for them."""

import torch
from torch import nn

import nftk


def swish_of_half(g):
    return g * torch.sigmoid(g / 2)


# sizes from 1 to 300, depths 1 to 12, d 1 to 20, every activation by name and a callable, both parameterisations
ARCHITECTURES = {
    "one of everything": (1, [1], 1, {}),
    "relu": (5, [7, 3, 9], 4, {"activation": "relu", "output_bias": True}),
    "no bias": (6, [5, 8], 3, {"activation": "leaky_relu", "bias": False}),
    "wide": (9, [300], 2, {"activation": "gelu"}),
    "deep": (4, [6] * 12, 2, {"activation": "tanh"}),
    "many outputs": (3, [11, 4], 20, {"activation": "silu"}),
    "ntk": (7, [8, 5, 6], 3, {"parameterization": "ntk", "activation": "erf", "bias_var": [0.3, 0.0, 1.2]}),
    "ntk, variances": (
        4,
        [6, 9],
        2,
        {"parameterization": "ntk", "activation": "sin", "weight_var": [1.0, 3.0], "readout_var": [0.5, 2.0]},
    ),
    "mixed": (5, [4, 6, 3], 5, {"activation": ["elu", "identity", swish_of_half], "output_bias": True}),
    "callable": (5, [4, 6], 3, {"activation": nn.Softplus(beta=2.0)}),
}


def make_model(name, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    m, widths, d, keywords = ARCHITECTURES[name]
    model = nftk.NFTKMLP(m, widths, d, dtype=dtype, **keywords)
    with torch.no_grad():
        model.omega.copy_(torch.rand(d, len(widths)) + 0.2)
        for layer in model.hidden:
            if layer.bias is not None:
                layer.bias.normal_()
    return model


class OneReadout(nn.Module):
    def __init__(self, model, layer):
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x):
        return self.model.readouts(x)[..., self.layer, :]


def inputs(model, n1=5, n2=4, dtype=torch.float64):
    m = model.in_features
    return torch.randn(n1, m, dtype=dtype), torch.randn(n2, m, dtype=dtype)
