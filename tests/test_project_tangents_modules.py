"""project_tangents of any module: nftk.ops.project of torch.func's Jacobians, and none of our rules."""

import os
import sys

import pytest
import torch
from kernel_checks import error
from module_examples import MODELS, Bare, Recurrent, make
from torch import nn

import nftk
from nftk.ops import project
from nftk.tangent import ProjectedTangents, project_tangents

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
KINDS = ("rademacher", "gaussian", "sjlt")


def jacobians(model, x):
    """Of all parameters by name, [n, d, P]."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    if isinstance(model, Recurrent | Bare):
        # functional_call does not reach all of theirs
        f, chosen = model(x), list(model.parameters())
        rows = [
            torch.autograd.grad(value, chosen, retain_graph=True, allow_unused=True, materialize_grads=True)
            for value in f.flatten()
        ]
        return {
            name: torch.stack([row[i].flatten() for row in rows]).view(*f.shape, -1) for i, name in enumerate(params)
        }
    function = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))
    return {name: j.flatten(2) for name, j in function(params).items()}


def owner(name):
    return name.rpartition(".")[0] or "model"


def truth(model, x, k, kind, seed=9):
    """Features and own kernels of every block, parameters in the order of named_parameters()."""
    features, own, offset = {}, {}, 0
    for name, j in jacobians(model, x).items():
        place, size = owner(name), j.shape[-1]
        projected = project(j, k, seed=seed, kind=kind, offset=offset)
        features[place] = features.get(place, 0) + projected
        own[place] = own.get(place, 0) + j @ j.mT
        offset += size
    return torch.stack(list(features.values())), torch.stack(list(own.values())), tuple(features), offset


@pytest.fixture
def every_way(monkeypatch):
    """Pieces of one row, so that every loop over pieces is walked."""
    monkeypatch.setattr(sys.modules["nftk.tangent.modules.projection"], "PIECE", 7)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet18"])  # slow, and nothing new in it
def test_features_are_the_projected_jacobians(name, every_way):
    model, x, _ = make(name)
    for kind in KINDS if name == "cnn" else KINDS[:1]:
        features, own, names, columns = truth(model, x, 12, kind)
        for per, summed in (("module", False), ("model", True)):
            reduction = "sum_logits" if summed else "trace"
            found = project_tangents(model, x, 12, per=per, kind=kind, seed=9, reduction=reduction)
            want, squares = (t.sum(0, keepdim=True) if per == "model" else t for t in (features, own))
            if summed:
                want, squares = want.sum(2, keepdim=True), squares.sum((2, 3), keepdim=True)
            assert (found.names, found.columns) == (("model",) if per == "model" else names, columns)
            assert error(found.features, want) < 1e-12
            assert error(found.own, squares) < 1e-12


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("name", ["cnn", "transformer", "shared", "tied"])
def test_kept_gradients_and_factors_give_the_same(name, keeps, every_way, monkeypatch):
    """Whatever takes less memory."""
    module = sys.modules["nftk.tangent.modules.projection"]

    def forced(self, site):
        whole = not site.factored or site.groups > 1
        return whole or keeps

    model, x, _ = make(name)
    want = project_tangents(model, x, 12, per="module")
    monkeypatch.setattr(module.ModuleProjection, "_keeps", forced)
    found = project_tangents(model, x, 12, per="module")
    assert error(found.features, want.features) < 1e-12
    assert error(found.own, want.own) < 1e-12


@pytest.mark.parametrize("name", ["cnn", "transformer", "shared"])
def test_batches_change_nothing(name, monkeypatch):
    model, x, _ = make(name, n1=7, dtype=torch.float32)
    whole = project_tangents(model, x, 16, per="module")
    monkeypatch.setattr(sys.modules["nftk.tangent.project_tangents"], "_MOST", 3)
    parts = project_tangents(model, x, 16, per="module")
    alone = torch.cat([project_tangents(model, one[None], 16, per="module").features for one in x], 1)
    for found in (parts.features, alone):
        assert error(found, whole.features) < 1e-6
    assert error(parts.own, whole.own) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_products_estimate_the_kernels_of_the_modules(name, kind):
    """No entry beyond 5 standard errors, and all of them together within the bound."""
    model, x, other = make(name, n1=6, n2=4)
    exact = nftk.empirical_ntk(model, x, other, per="module", reduction="trace")
    p, q = (project_tangents(model, t, 512, per="module", kind=kind, seed=1) for t in (x, other))
    k, bound = p.kernel(q), p.error(q)
    assert k.names == exact.names
    errors = (k.blocks - exact.blocks) / bound.blocks
    assert errors.abs().max() <= 5
    assert errors.square().mean() <= 1.3


def convolutional():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4, bias=False), nn.Tanh(),
        nn.Linear(4, 2),
    )  # fmt: skip


def test_kronecker_of_linear_maps_and_convolutions():
    """P1 of a gradient's rows and P2 of its columns, a bias one more column."""
    model, x = convolutional().double(), torch.randn(3, 1, 8, 8).double()
    j, wanted, base = jacobians(model, x), [], 0
    for name in ("0", "4", "6"):
        weight = j[f"{name}.weight"].unflatten(2, (model[int(name)].weight.shape[0], -1))
        bias = [j[f"{name}.bias"].unsqueeze(-1)] if f"{name}.bias" in j else []
        matrix = torch.cat([weight, *bias], 3)  # [n, d, rows, columns]
        left = project(matrix.mT, 2, seed=1, offset=base)  # [n, d, columns, k1]
        base += matrix.shape[2]
        wanted.append(project(left.mT, 3, seed=1, offset=base).flatten(2))
        base += matrix.shape[3]
    found = project_tangents(model, x, 6, per="module", kind="kronecker", seed=1)
    assert error(found.features, torch.stack(wanted)) < 1e-12
    assert (found.names, found.columns) == (("0", "4", "6"), base)
    whole = project_tangents(model, x, 6, per="model", kind="kronecker", seed=1)
    assert error(whole.features[0], sum(wanted)) < 1e-12
    exact = nftk.empirical_ntk(model, x, per="module").blocks
    assert error(found.own, exact.diagonal(dim1=1, dim2=2).movedim(-1, 1)) < 1e-12
    errors, variance = [], []
    truth = nftk.empirical_ntk(model, x, per="module", reduction="trace").blocks
    for seed in range(15):
        p = project_tangents(model, x, 64, per="module", kind="kronecker", seed=seed)
        errors.append(p.kernel().blocks - truth)
        variance.append(p.error().blocks.square())
    assert torch.stack(errors).square().sum() <= torch.stack(variance).sum()


def test_kronecker_of_something_else_is_refused_by_name():
    model, x, _ = make("cnn")
    with pytest.raises(NotImplementedError, match=r"linear maps and convolutions of one group, got batch_norm of 1\.w"):
        project_tangents(model, x, 4, per="module", kind="kronecker")
    model, x, _ = make("transformer")
    with pytest.raises(NotImplementedError, match=r"got embedding of tokens\.weight"):
        project_tangents(model, x, 4, per="model", kind="kronecker")


def test_per_model_of_a_perceptron():
    torch.manual_seed(0)
    model, x = nftk.NFTKMLP(5, [7, 6], 3, output_bias=True).double(), torch.randn(4, 5).double()
    for kind in ("rademacher", "kronecker"):
        modules = project_tangents(model, x, 12, per="module", kind=kind)
        whole = project_tangents(model, x, 12, per="model", kind=kind)
        assert (whole.names, whole.columns) == (("model",), modules.columns)
        torch.testing.assert_close(whole.features[0], modules.features.sum(0))
    exact = nftk.empirical_ntk(model, x, per="model").blocks
    torch.testing.assert_close(whole.own[0], exact[0].diagonal(dim1=0, dim2=1).movedim(-1, 0))


def test_inputs_by_name_and_an_output_chosen():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(5, 3), nn.Linear(3, 2)

        def forward(self, tokens, scale):
            return {"other": tokens, "scores": self.last(self.table(tokens).sum(1) * scale)}

    torch.manual_seed(0)
    model = Two().double()
    x = {"tokens": torch.randint(0, 5, (4, 3)), "scale": torch.randn(4, 1).double()}

    def scores(returned):
        return returned["scores"]

    p = project_tangents(model, x, 4000, per="module", output_fn=scores)
    exact = nftk.empirical_ntk(model, x, per="module", reduction="trace", output_fn=scores)
    assert p.names == exact.names == ("table", "last")
    assert ((p.kernel() - exact).blocks.abs() <= 5 * p.error().blocks).all()
    torch.testing.assert_close(p.own.diagonal(dim1=2, dim2=3).sum(-1), exact.blocks.diagonal(dim1=1, dim2=2))


def test_a_perceptron_read_in_two_ways_is_not_mixed():
    """Its columns lie otherwise when it is read as any module."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(3, 4)
    p = project_tangents(model, x, 8, per="module")
    q = project_tangents(model, x, 8, per="module", output_fn=lambda f: f)
    assert (p.names, p.columns) == (q.names, q.columns)
    with pytest.raises(ValueError, match="other must share order, 'rows', got 'parameters'"):
        p.kernel(q)


def test_convolutions_in_a_folder_are_finished_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["nftk.tangent.project_tangents"], "_MOST", 4)
    monkeypatch.setattr(sys.modules["nftk.tangent.feature_file"], "_PATIENCE", 0.0)
    model, x, call = convolutional(), torch.randn(11, 1, 8, 8), {"per": "module", "seed": 5}

    def interrupted(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    whole, out = project_tangents(model, x, 24, **call), tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        project_tangents(model, x, 24, out=out, progress=interrupted, **call)
    seen = []
    found = project_tangents(model, x, 24, out=out, progress=lambda *a: seen.append(a), **call)
    assert seen == [(11, 11)]
    for again in (found, ProjectedTangents.load(out)):
        assert torch.equal(again.features, whole.features)
        assert torch.equal(again.own, whole.own)
        assert (again.names, again.order, again.per) == (whole.names, "parameters", "module")
    with pytest.raises(ValueError, match="the network and inputs it was begun with, got others"):
        project_tangents(model, x + 1, 24, out=out, **call)
    with pytest.raises(ValueError, match="the network and inputs it was begun with, got others"):
        project_tangents(model, x, 24, out=out, output_fn=lambda f: 2 * f, **call)
    with torch.no_grad():
        model[6].bias[0] += 1
    with pytest.raises(ValueError, match="the network and inputs it was begun with, got others"):
        project_tangents(model, x, 24, out=out, **call)
    assert {path.name for path in out.iterdir()} == {"features.npy", "own.npy", "header.json"}
    assert os.path.getsize(out / "features.npy") >= whole.features.numel() * 4


def test_memory_budget_and_16_bits():
    model, x = convolutional(), torch.randn(9, 1, 8, 8)
    whole = project_tangents(model, x, 24, per="module")
    small = project_tangents(model, x, 24, per="module", memory_budget=49 << 20)
    assert error(small.features, whole.features) < 1e-6
    with pytest.raises(ValueError, match=r"memory_budget must be at least \d+ bytes for this network, got 1000"):
        project_tangents(model, x, 24, per="module", memory_budget=1000)
    half = project_tangents(model.bfloat16(), x.bfloat16(), 24, per="module")
    assert half.features.dtype is torch.float32


def test_errors():
    model, x = convolutional(), torch.randn(3, 1, 8, 8)
    with pytest.raises(NotImplementedError, match="per='module' and per='model' take any module"):
        project_tangents(model, x, 8)
    with pytest.raises(ValueError, match="output_fn must go with per='module' or 'model', got per='layer'"):
        project_tangents(model, x, 8, output_fn=lambda f: f)
