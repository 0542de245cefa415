"""What empirical_ntk refuses of a network, its inputs and the settings, with the sentence that it says."""

import pytest
import torch
from chain_examples import make_model
from torch import nn

import nftk

ntk = nftk.empirical_ntk


class Doubled(nftk.NFTKMLP):
    def forward(self, x):
        return 2 * super().forward(x)


class Linear(nn.Module):
    """Another one, of the same name."""


def refusals():
    linear = nn.Linear(4, 4)
    tied = nftk.NFTKMLP(4, [4, 4], 2)
    tied.hidden[1].weight = tied.hidden[0].weight
    hooked = nftk.NFTKMLP(4, [4], 2)
    hooked.hidden[0].register_forward_hook(lambda *_: None)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
    mixed = nftk.NFTKMLP(4, [4], 2)
    mixed.omega.data = mixed.omega.data.double()
    broken = nftk.NFTKMLP(4, [4], 2)
    broken.omega.data[0, 0] = torch.nan
    relu, noise = nn.ReLU(), nn.RReLU()
    replaced = nn.Sequential(nn.Linear(4, 2))
    replaced[0].forward = lambda x: 0 * x[:, :2]
    hole = nn.Sequential(linear, relu, nn.Linear(4, 2))
    hole._modules["1"] = None
    return {
        "dropout": (nftk.NFTKMLP(4, [4], 2, dropout=0.5), ValueError, "must be in eval mode, got dropout 0.5"),
        "dropout of torch": (nn.Sequential(linear, relu, nn.Dropout(), linear), ValueError, "must be in eval mode"),
        "shared module": (nn.Sequential(linear, relu, linear), NotImplementedError, "must use every module once"),
        "shared weight": (tied, NotImplementedError, "the same parameter as hidden.0.weight and as hidden.1.weight"),
        "hook": (hooked, NotImplementedError, "must have hidden layers without hooks"),
        "parametrisation": (normed, NotImplementedError, "must have no hooks or parametrizations"),
        "prelu": (nn.Sequential(linear, nn.PReLU(), nn.Linear(4, 2)), NotImplementedError, "no parameters but"),
        "softmax": (
            nn.Sequential(linear, nn.Softmax(1), nn.Linear(4, 2)), NotImplementedError, "fixed function of each entry",
        ),
        "over the batch": (
            nftk.NFTKMLP(4, [4], 2, activation=lambda g: g - g.mean(0)), NotImplementedError, "fixed function of each",
        ),
        "a gate": (
            nftk.NFTKMLP(4, [6], 2, activation=lambda g: torch.cat((g[..., :3] * g[..., 3:], g[..., 3:]), -1)),
            NotImplementedError, "fixed function of each",
        ),
        "a flip": (nftk.NFTKMLP(4, [5], 2, activation=lambda g: g.flip(-1)), NotImplementedError, "fixed function of"),
        "batch norm": (
            nn.Sequential(linear, nn.BatchNorm1d(4, affine=False), relu, nn.Linear(4, 2)), ValueError, "in eval mode",
        ),
        "another forward": (replaced, NotImplementedError, "must have the forward of its class"),
        "chance": (nn.Sequential(linear, noise, nn.Linear(4, 2)), NotImplementedError, "fixed function of each entry"),
        "last activation": (nn.Sequential(linear, relu), NotImplementedError, "must end with its last nn.Linear"),
        "convolution": (nn.Sequential(nn.Conv1d(1, 1, 1), linear), NotImplementedError, "0 must be nn.Linear"),
        "own forward": (Doubled(4, [4], 2), NotImplementedError, "model must be an NFTKMLP, or an nn.Sequential"),
        "sizes": (nn.Sequential(linear, nn.Linear(3, 2)), ValueError, "must take the 4 outputs of the layer before"),
        "meta": (nftk.NFTKMLP(4, [4], 2, device="meta"), ValueError, "must have values, got some on the meta device"),
        "lazy": (nn.Sequential(nn.LazyLinear(2)), ValueError, "must have seen an input"),
        "a hole": (hole, ValueError, "every place of model must hold a module, got None at 1"),
        "compiled": (torch.compile(nn.Sequential(linear)), NotImplementedError, "OptimizedModule; give its ._orig_mod"),
        "parallel": (nn.DataParallel(nn.Sequential(linear)), NotImplementedError, "DataParallel; give its .module"),
        "another Linear": (nn.Sequential(Linear()), NotImplementedError, "got test_empirical_ntk_refused.Linear"),
        "no module": (lambda x: x, TypeError, "model must be an nn.Module"),
        "nothing": (nn.Sequential(), NotImplementedError, "must hold an nn.Linear"),
        "dtypes": (mixed, ValueError, "must share one dtype and device"),
        "nan": (broken, ValueError, "parameters of model must be finite, got NaN or infinity in omega"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_models_refused(name):
    model, kind, text = refusals()[name]
    with pytest.raises(kind, match=text):
        ntk(model, torch.randn(3, 4))


def test_inputs_refused():
    model, x = make_model("relu", torch.float32), torch.randn(3, 5)

    def refused(kind, text, *args, **keywords):
        with pytest.raises(kind, match=text):
            ntk(model, *args, **keywords)

    refused(ValueError, r"x1 must have shape \[n, 5\], got \[3, 4\]", x[:, :4])
    refused(ValueError, r"x2 must have shape \[n, 5\], got \[5\]", x, x[0])
    refused(ValueError, "x2 must have the model's dtype, torch.float32, got torch.float64", x, x.double())
    refused(TypeError, "x1 must be a torch.Tensor, got ndarray", x.numpy())
    refused(ValueError, "x1 must be finite, got NaN", torch.full((3, 5), torch.nan))
    refused(ValueError, "per must be one of", x, per="block")
    refused(ValueError, "reduction must be one of", x, reduction="scalar")
    refused(ValueError, "normalize must be one of", x, normalize="trace")
    refused(ValueError, "include_omega must go with per='module' or 'model'", x, include_omega=True)
    refused(ValueError, "weights must go with per='layer' or 'module'", x, per="model", weights=[1.0])
    refused(ValueError, r"weights must have 3 numbers, one a block, got \[2\]", x, weights=torch.ones(2))
    refused(ValueError, r"weights must have 3 numbers, one a block, got \[3, 1\]", x, weights=torch.ones(3, 1))
    needed = torch.ones(3, requires_grad=True)
    refused(ValueError, "weights must not require gradients", x, weights=needed, differentiable=True)
    refused(ValueError, r"weights\[1\] must be finite", x, weights=[1.0, float("inf"), 0.0])
    refused(ValueError, "backend must be one of", x, backend="gpu")
    refused(NotImplementedError, "backend must be one of", x, backend="triton")
    refused(RuntimeError, "backend 'cuda' is not available", x, backend="cuda")
    refused(ValueError, "memory_budget must be at least 1", x, memory_budget=0)
    refused(TypeError, "memory_budget must be an integer", x, memory_budget=1.5)
    with pytest.raises(NotImplementedError, match="x1 must be all inputs at once, got one inside torch.vmap"):
        torch.vmap(lambda row: ntk(model, row[None]).blocks)(x)
    with pytest.raises(ValueError, match="include_omega must go with an NFTKMLP"):
        ntk(nn.Linear(5, 2), x, per="model", include_omega=True)
