"""The definitions against torch's own layers and against hand-written numbers."""

import torch
from torch import nn
from torch.nn import functional

from nftk import reference


def test_hidden_states_are_those_of_torch_layers():
    layers = [nn.Linear(3, 5).double(), nn.Linear(5, 2).double()]
    x = torch.randn(4, 3, dtype=torch.float64)
    states = reference.hidden_states_reference(
        x, [layer.weight for layer in layers], [layer.bias for layer in layers], torch.tanh
    )
    h1 = torch.tanh(layers[0](x))
    torch.testing.assert_close(states[0], h1)
    torch.testing.assert_close(states[1], torch.tanh(layers[1](h1)))


def test_readouts_and_weighted_sum():
    states = [torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)]
    readouts = [torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)]
    omega = torch.rand(3, 2, dtype=torch.float64)
    f_l = reference.readouts_reference(states, readouts)
    assert f_l.shape == (4, 2, 3)
    for layer in range(2):
        torch.testing.assert_close(f_l[:, layer], functional.linear(states[layer], readouts[layer]))
    f = reference.weighted_sum_reference(f_l, omega)
    torch.testing.assert_close(f, f_l[:, 0] * omega[:, 0] + f_l[:, 1] * omega[:, 1])


def test_network_by_hand():
    # h_1 = relu(2 * 3 - 1) = 5, h_2 = relu(-5 + 7) = 2; f = 10 * (4 * 5) + 0.5 * (3 * 2)
    def scalar(value):
        return torch.tensor([[float(value)]])

    f = reference.network_reference(
        scalar(3),
        [scalar(2), scalar(-1)],
        [torch.tensor([-1.0]), torch.tensor([7.0])],
        [scalar(4), scalar(3)],
        torch.tensor([[10.0, 0.5]]),
        torch.relu,
    )
    torch.testing.assert_close(f, scalar(203))
