"""The trNTK paper's kernels, each against its definition written out."""

import pytest
import torch
from kernel_checks import error
from torch import nn
from torch.nn import functional as F

import nftk
from nftk import tangent


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    return model.double(), torch.randn(6, 2, 6, dtype=torch.float64), torch.randn(4, 2, 6, dtype=torch.float64)


def gradients(model, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])


def jacobian(model, x):
    f = model(x)
    return torch.stack([gradients(model, value) for value in f.flatten()]).view(*f.shape, -1)  # [n, d, P]


def cosine(k, a, b):
    return k / (a.sqrt()[:, None] * b.sqrt()[None])


def test_trntk_and_pntk():
    model, x1, x2 = make()
    j1, j2 = jacobian(model, x1), jacobian(model, x2)
    for function, a, b in (
        (tangent.trntk, j1.flatten(1), j2.flatten(1)),
        (tangent.pntk, j1.sum(1), j2.sum(1)),
    ):
        want = a @ b.mT
        assert error(function(model, x1, x2, normalize=None).blocks[0], want) < 1e-12
        want = cosine(want, a.square().sum(1), b.square().sum(1))
        assert error(function(model, x1, x2).blocks[0], want) < 1e-12
        joint = function(model, x1, x2, per="module", normalize="joint")
        assert joint.names == ("0", "3", "5")
        assert error(joint.blocks.sum(0), want) < 1e-12
    assert error(tangent.trntk0(model, x1, x2).blocks[0], j1.flatten(1) @ j2.flatten(1).mT) < 1e-12


def test_omega_counts():
    model = nftk.NFTKMLP(3, [4, 4], 2, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    j = jacobian(model, x).flatten(1)
    assert error(tangent.trntk0(model, x).blocks[0], j @ j.mT) < 1e-12


def test_loss_gradient_kernel():
    model, x1, x2 = make()
    y1, y2 = torch.randint(0, 3, (6,)), torch.randint(0, 3, (4,))
    a, b = (
        torch.stack([gradients(model, value) for value in F.cross_entropy(model(x), y, reduction="none")])
        for x, y in ((x1, y1), (x2, y2))
    )
    k = tangent.loss_gradient_kernel(model, x1, y1, x2, y2, per="module", normalize="joint")
    assert k.names == ("0", "3", "5")
    assert error(k.blocks.sum(0), cosine(a @ b.mT, a.square().sum(1), b.square().sum(1))) < 1e-12
    squared = tangent.loss_gradient_kernel(
        model, x1, F.one_hot(y1, 3).double(), loss=lambda f, y: (f - y).square().sum(1), normalize=None
    )
    grads = torch.stack([gradients(model, v) for v in (model(x1) - F.one_hot(y1, 3)).square().sum(1)])
    assert error(squared.blocks[0], grads @ grads.mT) < 1e-12
    with pytest.raises(ValueError, match="x2 and y2 must be given together"):
        tangent.loss_gradient_kernel(model, x1, y1, x2)
    with pytest.raises(ValueError, match=r"labels must be a tensor with an entry an example, got \[4\]"):
        tangent.loss_gradient_kernel(model, x1, y2)
    with pytest.raises(ValueError, match="loss must be one of 'cross_entropy'"):
        tangent.loss_gradient_kernel(model, x1, y1, loss="mse")


def outputs(model, x):
    found = []
    for module in model:
        x = module(x)
        if list(module.parameters()):
            found.append(x.detach().flatten(1))
    return found


def test_embedding_and_conjugate_kernel(monkeypatch):
    model, x1, x2 = make()
    for at_once in (256, 3):
        monkeypatch.setattr("nftk.tangent.named_kernels._AT_ONCE", at_once)
        a, b = torch.cat(outputs(model, x1), 1), torch.cat(outputs(model, x2), 1)
        want = cosine(a @ b.mT, a.square().sum(1), b.square().sum(1))
        assert error(tangent.embedding_kernel(model, x1, x2).blocks[0], want) < 1e-12
        joint = tangent.embedding_kernel(model, x1, x2, per="module", normalize="joint")
        assert joint.names == ("0", "3", "5")
        assert error(joint.blocks.sum(0), want) < 1e-12
        h1, h2 = model[:5](x1).detach(), model[:5](x2).detach()
        assert error(tangent.conjugate_kernel(model, x1, x2, normalize=None).blocks[0], h1 @ h2.mT) < 1e-12
        own = tangent.conjugate_kernel(model, x1)
        assert own.symmetric
        assert torch.equal(own.blocks, own.blocks.mT)
        assert error(own.diagonal(), torch.ones(1, 6)) < 1e-12
    assert not any(module._forward_hooks for module in model.modules())


def test_errors():
    model, x, _ = make()
    with pytest.raises(ValueError, match="modules must be among those of the model, got 'last'"):
        tangent.embedding_kernel(model, x, modules=["last"])
    with pytest.raises(ValueError, match="module must be given for a model without an nn.Linear"):
        tangent.conjugate_kernel(model[:3], x)
    with pytest.raises(ValueError, match="model must be in eval mode"):
        tangent.embedding_kernel(nn.Sequential(model, nn.Dropout()), x)
