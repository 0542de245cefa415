"""NFTKMLP.from_mlp: the same function, and a sentence for what has no place in an NFT-K network."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import nftk


class TorchvisionMLP(nn.Sequential):
    """The module order of torchvision.ops.MLP: Linear, [norm], activation, Dropout, ..., Linear, Dropout."""

    def __init__(self, in_channels, hidden_channels, norm_layer=None, dropout=0.0):
        layers = []
        for width in hidden_channels[:-1]:
            layers.append(nn.Linear(in_channels, width))
            if norm_layer is not None:
                layers.append(norm_layer(width))
            layers += [nn.ReLU(inplace=True), nn.Dropout(dropout, inplace=True)]
            in_channels = width
        super().__init__(*layers, nn.Linear(in_channels, hidden_channels[-1]), nn.Dropout(dropout, inplace=True))


STACKS = {
    "relu": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)),
    "one hidden layer": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)),
    "mixed": lambda: nn.Sequential(
        nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5), nn.LeakyReLU(0.2), nn.Linear(5, 5), nn.PReLU(), nn.Linear(5, 3)
    ),
    "linear after linear": lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5), nn.SiLU(), nn.Linear(5, 3)),
    "two activations": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Tanh(), nn.Linear(9, 3)),
    "some biases": lambda: nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.ELU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)
    ),
    "no biases": lambda: nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)),
    "nested": lambda: nn.Sequential(
        OrderedDict(body=nn.Sequential(nn.Linear(6, 9), nn.Sigmoid()), head=nn.Sequential(nn.Linear(9, 3)))
    ),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, 3)),
    "torchvision": lambda: TorchvisionMLP(6, [9, 5, 3]),
    "shared activation": lambda: (
        lambda act: nn.Sequential(nn.Linear(6, 9), act, nn.Linear(9, 9), act, nn.Linear(9, 3))
    )(nn.ReLU()),
    "shared layer": lambda: (
        lambda layer: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(9, 3))
    )(nn.Linear(9, 9)),
    "identity": lambda: nn.Sequential(nn.Linear(6, 9), nn.Identity(), nn.ReLU(), nn.Linear(9, 3)),
}


@pytest.mark.parametrize("name", STACKS)
def test_same_function_and_gradients(name):
    mlp = STACKS[name]().double().eval()
    model = nftk.NFTKMLP.from_mlp(mlp)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(model(x), mlp(x))
    torch.testing.assert_close(*(torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (model, mlp)))
    assert model.omega.dtype is torch.float64
    assert torch.equal(model.omega[:, -1], torch.ones(3).double())
    assert not model.omega[:, :-1].any()


def test_zero_entries_have_gradients():
    """Training opens the other layers."""
    model = nftk.NFTKMLP.from_mlp(STACKS["relu"]())
    model(torch.randn(7, 6)).sin().sum().backward()
    assert (model.omega.grad != 0).all()


def test_weights_are_copies():
    mlp = STACKS["mixed"]().eval()
    model = nftk.NFTKMLP.from_mlp(mlp)
    before = [p.detach().clone() for p in mlp.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, mlp.parameters(), strict=True))


def test_named_activations_take_the_fast_path():
    model = nftk.NFTKMLP.from_mlp(STACKS["relu"]())
    assert model.config()["activation"] == "relu"
    assert type(model(torch.randn(2, 6)).grad_fn).__name__ == "OneNodeBackward"


def test_dropout_is_kept():
    model = nftk.NFTKMLP.from_mlp(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.25), nn.Linear(9, 3)))
    assert model.training
    assert model.dropout == (0.25,)


def test_two_dropouts_in_a_row():
    mlp = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.4), nn.Linear(9, 3))
    assert nftk.NFTKMLP.from_mlp(mlp).dropout == pytest.approx((0.7,))


def test_frozen_layers_stay_frozen():
    mlp = STACKS["relu"]()
    mlp[0].requires_grad_(False)
    model = nftk.NFTKMLP.from_mlp(mlp)
    assert [layer.weight.requires_grad for layer in model.hidden] == [False, True]
    assert model.readout_weight.requires_grad


def test_what_would_be_lost_is_refused():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match="mlp must be an nn.Sequential with its own forward, got Doubled"):
        nftk.NFTKMLP.from_mlp(Doubled(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)))
    with pytest.raises(ValueError, match=r"mlp\[0\] must be nn.Linear, .* got Doubled"):
        nftk.NFTKMLP.from_mlp(nn.Sequential(Doubled(nn.Linear(6, 9)), nn.ReLU(), nn.Linear(9, 3)))
    mlp = STACKS["relu"]()
    mlp[2].register_forward_hook(lambda module, args, out: out * 2)
    with pytest.raises(ValueError, match=r"mlp\[2\] must have no hooks"):
        nftk.NFTKMLP.from_mlp(mlp)


def test_torchvision_dropout_after_the_last_layer_warns():
    mlp = TorchvisionMLP(6, [9, 3], dropout=0.5).eval()
    with pytest.warns(UserWarning, match=r"the dropout \(p=0.5\) after the last layer is left out"):
        model = nftk.NFTKMLP.from_mlp(mlp)
    x = torch.randn(7, 6)
    torch.testing.assert_close(model(x), mlp(x))


def test_keywords_and_mode():
    model = nftk.NFTKMLP.from_mlp(STACKS["relu"]().eval(), constraint="simplex")
    assert model.constraint == nftk.constraints.Simplex()
    assert not model.training


@pytest.mark.parametrize(
    ("mlp", "kind", "message"),
    [
        (nn.Linear(3, 2), TypeError, "mlp must be an nn.Sequential with its own forward, got Linear"),
        (nn.Sequential(nn.Linear(3, 2)), ValueError, "mlp must have a hidden layer, got 1 linear layers"),
        (nn.Sequential(), ValueError, "mlp must have a hidden layer, got 0 linear layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), ValueError, r"mlp\[0\] must be nn.Linear, .* got Flatten"),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), ValueError, r"mlp\[0\] must be nn.Linear, .* got ReLU"),
        (TorchvisionMLP(3, [4, 2], nn.BatchNorm1d), ValueError, r"mlp\[1\] must be .* got BatchNorm1d"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(-1)),
            ValueError,
            r"mlp\[3\] must be .* got Softmax",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid()),
            ValueError,
            r"mlp must end with its last linear layer, got Sigmoid\(\) after it",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)),
            ValueError,
            r"mlp\[2\] must take the 4 outputs of the layer before, got in_features=5",
        ),
        (
            nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
            ValueError,
            r"mlp\[0\] must not drop inputs",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.AlphaDropout(0.2), nn.Linear(4, 2)),
            ValueError,
            r"mlp\[2\] must be nn.Dropout, got AlphaDropout",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Tanh(), nn.Linear(4, 2)),
            ValueError,
            r"mlp\[2\] must come before the dropout of its layer, got Tanh",
        ),
    ],
)
def test_errors(mlp, kind, message):
    with pytest.raises(kind, match=message):
        nftk.NFTKMLP.from_mlp(mlp)
