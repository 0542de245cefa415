"""Kernels of a module against autograd of one example at a time, and a module to derive odd ones from."""

import torch
from torch import nn
from torch.func import functional_call

import nftk


def jacobian(model, x):
    """[n, d, P], one example at a time."""
    values = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    rows = []
    for e in range(len(x)):
        f = functional_call(model, values, (x[e : e + 1].clone(),))[0]
        of_outputs = [
            torch.autograd.grad(y, list(values.values()), retain_graph=True, materialize_grads=True, allow_unused=True)
            for y in f
        ]
        rows.append(torch.stack([torch.cat([g.flatten() for g in grads]) for grads in of_outputs]))
    return torch.stack(rows)


def assert_right(model, x1, x2=None):
    truth = jacobian(model, x1)
    other = truth if x2 is None else jacobian(model, x2)
    found = nftk.empirical_ntk(model, x1, x2, per="model", reduction="full").blocks[0]
    torch.testing.assert_close(found, torch.einsum("aip,bjp->abij", truth, other), rtol=1e-9, atol=1e-9)


class Two(nn.Module):
    """Two linear maps, used as its heirs do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.t = nn.Linear(4, 5), nn.Linear(5, 2), 1.0
        self.double()

    def forward(self, x):
        return self.b(self.a(x).mul(self.t).tanh())


def normal(n, *rest):
    return torch.randn(n, *(rest or (4,)), dtype=torch.float64, generator=torch.Generator().manual_seed(n))
