"""empirical_ntk against Jacobians: none of our formulas in the truth, only torch.func over the module itself."""

import copy

import pytest
import torch
from chain_examples import ARCHITECTURES, OneReadout, inputs, make_model
from jacobian_kernels import REDUCTIONS, jacobian_kernel, reduced
from kernel_checks import error
from torch import nn

import nftk
from nftk.ops import tangent_gram_torch

ntk = nftk.empirical_ntk


@pytest.fixture(params=["one tile", "small tiles"])
def tiles(request, monkeypatch):
    if request.param == "small tiles":
        for table in ("_TILE", "_TILE_TRACE"):
            monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (6, 8)})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_equal_jacobians(tiles, name):
    model = make_model(name)
    x1, x2 = inputs(model)
    for second in (x2, None):
        other = x1 if second is None else second
        kernels = {reduction: ntk(model, x1, second, reduction=reduction) for reduction in REDUCTIONS}
        for layer in range(len(model.hidden)):
            truth = jacobian_kernel(OneReadout(model, layer), x1, other)
            for reduction, k in kernels.items():
                want = reduced(truth, reduction)
                assert k.blocks[layer].shape == want.shape
                assert error(k.blocks[layer], want) <= 1e-11, (layer, reduction)
        assert kernels["full"].names == tuple(f"readout {i + 1}" for i in range(len(model.hidden)))


@pytest.mark.parametrize("include_omega", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_modules_add_up_to_the_model(name, include_omega):
    model = make_model(name)
    x1, x2 = inputs(model)
    truth = jacobian_kernel(model, x1, x2, without=() if include_omega else ("omega",))
    for reduction in REDUCTIONS:
        whole = ntk(model, x1, x2, per="model", reduction=reduction, include_omega=include_omega)
        parts = ntk(model, x1, x2, per="module", reduction=reduction, include_omega=include_omega)
        want = reduced(truth, reduction)
        assert error(whole.blocks[0], want) <= 1e-11
        assert error(parts.blocks.sum(0), want) <= 1e-11
        assert whole.names == ("model",)


@pytest.mark.parametrize("name", ["relu", "ntk", "mixed"])
def test_each_module_is_its_own_jacobians(name):
    model = make_model(name)
    x1, x2 = inputs(model)
    k = ntk(model, x1, x2, per="module", include_omega=True)
    everything = {n for n, _ in model.named_parameters()}
    for block, owner in zip(k.blocks, k.names, strict=True):
        own = {n for n in everything if n == owner or n.startswith(owner + ".")}
        assert own
        assert error(block, jacobian_kernel(model, x1, x2, without=everything - own)) <= 1e-11, owner


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_is_as_exact_as_eager(name):
    model = make_model(name, torch.float32)
    x1, x2 = inputs(model, 9, 8, torch.float32)
    wide = copy.deepcopy(model).double()
    for layer in range(len(model.hidden)):
        truth = jacobian_kernel(OneReadout(wide, layer), x1.double(), x2.double())
        eager = error(jacobian_kernel(OneReadout(model, layer), x1, x2), truth)
        ours = error(ntk(model, x1, x2).blocks[layer], truth)
        assert ours <= 2 * eager + 2 * torch.finfo(torch.float32).eps, f"ours {ours:.1e}, eager {eager:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_positive_and_exactly_symmetric(tiles, dtype):
    model = make_model("relu", dtype)
    x = inputs(model, 23, dtype=dtype)[0]
    for matrix in ntk(model, x).matrix():
        assert torch.equal(matrix, matrix.mT)
        values = torch.linalg.eigvalsh(matrix.double())
        assert values[0] >= -200 * torch.finfo(dtype).eps * values[-1]


MLPS = {
    "one layer": nn.Sequential(nn.Linear(4, 3)),
    "bare": nn.Linear(4, 3, bias=False),
    "deep": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
    "nested": nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.3)), nn.Identity(), nn.Linear(6, 3)
    ),
    "two in a row": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Softplus(), nn.Sigmoid(), nn.Linear(5, 3)),
}


@pytest.mark.parametrize("per", ["layer", "module", "model"])
@pytest.mark.parametrize("name", MLPS)
def test_plain_networks(name, per):
    model = copy.deepcopy(MLPS[name]).double().eval()
    x1, x2 = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    k = ntk(model, x1, x2, per=per)
    assert error(k.blocks.sum(0), jacobian_kernel(model, x1, x2)) <= 1e-11
    modules = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    names = {"layer": [modules[-1] or "model"], "module": [n or "model" for n in modules], "model": ["model"]}[per]
    assert list(k.names) == names


def test_from_mlp_agrees():
    mlp = copy.deepcopy(MLPS["deep"]).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    # the bias that from_mlp gives the middle layer is a parameter that the plain network lacks
    with_bias = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with_bias.load_state_dict({**mlp.state_dict(), "2.bias": torch.zeros(5, dtype=torch.float64)})
    taken = nftk.NFTKMLP.from_mlp(with_bias)
    last = ntk(taken, x).blocks[-1] + torch.eye(3, dtype=torch.float64)  # the output bias, in no Theta_l
    assert error(last, ntk(with_bias, x).blocks[0]) < 1e-13


def test_inputs_of_more_dimensions_are_flattened_where_the_network_does():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(4, 2, 3)
    assert torch.equal(ntk(model, x).blocks, ntk(model, x.flatten(1)).blocks)


@pytest.mark.parametrize("per", ["layer", "module", "model"])
@pytest.mark.parametrize("how", ["cosine", "joint"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_normalize(tiles, reduction, how, per):
    model = make_model("mixed")
    x1, x2 = inputs(model, 7, 6)
    rows, columns = (nftk.tangent.self_kernels(model, x, per=per, reduction=reduction) for x in (x1, x2))
    own = ntk(model, x1, per=per, reduction=reduction).diagonal()
    assert error(rows, own.diagonal(dim1=2, dim2=3) if reduction == "full" else own) < 1e-13
    want = ntk(model, x1, x2, per=per, reduction=reduction).normalize(how, rows, columns)
    got = ntk(model, x1, x2, per=per, reduction=reduction, normalize=how)
    assert got.normalization == how
    assert error(got.blocks, want.blocks) < 1e-13
    assert error(ntk(model, x1, per=per, reduction=reduction, normalize=how).blocks,
                 ntk(model, x1, per=per, reduction=reduction).normalize(how).blocks) < 1e-13  # fmt: skip


def test_a_self_kernel_of_zero_gives_zero():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(3, 3)
    x[1] = 0
    k = ntk(model, x, reduction="trace", normalize="cosine").blocks[0]
    assert torch.equal(k[1], torch.zeros(3))
    assert error(k[[0, 2], [0, 2]], torch.ones(2)) < 1e-6


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("normalize", [None, "cosine", "joint"])
@pytest.mark.parametrize("per", ["layer", "module"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights(tiles, reduction, per, normalize, symmetric):
    model = make_model("relu")
    x1, x2 = inputs(model, 7, 6)
    x2 = None if symmetric else x2
    kinds = {"per": per, "reduction": reduction, "normalize": normalize}
    apart = ntk(model, x1, x2, **kinds)
    for weights in (torch.rand(len(apart)), [(-1.5) ** i for i in range(len(apart))], [0.0] * len(apart)):
        k = ntk(model, x1, x2, weights=weights, **kinds)
        want = torch.tensordot(torch.as_tensor(weights).double(), apart.blocks, 1)
        assert k.blocks.shape == (1, *want.shape)
        assert error(k.blocks[0], want) < 1e-7 if any(weights) else not k.blocks.any()
    assert k.names == ("weighted sum",)


def test_combine_of_the_blocks_leaves_out_cross_terms():
    """Erratum 2: the squared form approaches the kernel of f as width grows; the linear one does not."""
    gaps = {}
    for width in (32, 512):
        torch.manual_seed(0)
        model = nftk.NFTKMLP(6, [width] * 3, 2, parameterization="ntk")
        with torch.no_grad():
            model.omega.copy_(torch.tensor([[0.3, 1.0, 1.7], [1.5, 0.2, 0.8]]))
        x = torch.randn(12, 6)
        exact = ntk(model, x, per="model").blocks[0]
        k = ntk(model, x)
        gaps[width] = [error(k.combine(model.omega.detach(), power), exact) for power in (2, 1)]
    assert gaps[512][0] < 0.5 * gaps[32][0]
    assert gaps[512][1] > 2 * gaps[512][0]


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_cuda_source_gives_the_same(cuda, reduction, symmetric):
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        model = make_model("mixed", dtype)
        x1, x2 = inputs(model, 6, 5, dtype)
        x2 = None if symmetric else x2
        for kinds in ({}, {"normalize": "cosine"}, {"per": "model"}, {"per": "module"}, {"weights": [1.0, -2.0, 0.5]}):
            before = cuda.launches
            ours = ntk(model, x1, x2, reduction=reduction, backend="cuda", **kinds)
            assert cuda.launches == before + 1
            assert error(ours.blocks, ntk(model, x1, x2, reduction=reduction, backend="torch", **kinds).blocks) < bound


def test_omega_is_trained_through_kernels_of_the_extension(cuda):
    """Gradient steps on Omega fit a target kernel, which is the same combination at a hidden Omega."""
    model = make_model("mixed")
    x = inputs(model, 6)[0]
    k = ntk(model, x, backend="cuda")
    hidden = torch.rand(5, 3, dtype=torch.float64) + 0.5
    target = k.combine(hidden)
    omega = torch.full((5, 3), 0.9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([omega], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = (k.combine(omega) - target).square().sum() / target.square().sum()
        loss.backward()
        return loss

    first = closure().item()
    optimizer.step(closure)
    assert closure().item() < 1e-6 * first
