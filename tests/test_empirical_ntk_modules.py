"""empirical_ntk of any module against torch.func: the truth is the Jacobian over all parameters, none of our rules."""

import copy

import pytest
import torch
from jacobian_kernels import REDUCTIONS, reduced
from kernel_checks import error
from module_examples import MODELS, make, truth
from torch import nn

import nftk

# of the truth, which goes through torch.vmap
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
ntk = nftk.empirical_ntk


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_jacobians(name):
    model, x1, x2 = make(name)
    for second in (x2, None):
        other = x1 if second is None else second
        want = truth(model, x1, other)
        for reduction in REDUCTIONS:
            modules = ntk(model, x1, second, per="module", reduction=reduction)
            whole = ntk(model, x1, second, per="model", reduction=reduction)
            assert error(modules.blocks.sum(0), reduced(want, reduction)) <= 1e-10, reduction
            assert error(whole.blocks[0], reduced(want, reduction)) <= 1e-10, reduction
            assert whole.names == ("model",)
            if second is None:
                assert all(torch.equal(m, m.mT) for m in modules.matrix().flatten(0, -3))


@pytest.mark.parametrize("name", ["cnn", "transformer", "shared", "tied", "bare", "decomposed", "parametrized"])
def test_each_module_is_its_own_jacobians(name):
    model, x1, x2 = make(name)
    k = ntk(model, x1, x2, per="module")
    names = [n for n, _ in model.named_parameters()]
    owners = [n.rpartition(".")[0] or "model" for n in names]
    assert k.names == tuple(dict.fromkeys(owners))
    for block, owner in zip(k.blocks, k.names, strict=True):
        own = [n for n, o in zip(names, owners, strict=True) if o == owner]
        assert error(block, truth(model, x1, x2, own)) <= 1e-10, owner


@pytest.mark.parametrize("form", ["gram", "gradients"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["cnn", "transformer", "shared", "sequence first"])
def test_both_forms_give_the_same(monkeypatch, name, reduction, form):
    """Whatever the counted costs say."""
    from nftk.tangent.modules import choice

    def forced(*args):
        found = chosen(*args)
        changed = form if found.site.factored else found.form
        # the factors are kept, so that gradients are made tile by tile
        return choice.dataclasses.replace(found, form=changed, keeps_gradients=not found.site.factored)

    model, x1, x2 = make(name)
    want = ntk(model, x1, x2, per="module", reduction=reduction, normalize="cosine").blocks
    chosen = choice._choose
    monkeypatch.setattr(choice, "_choose", forced)
    for second, blocks in ((x2, want), (None, ntk(model, x1, per="module", reduction=reduction).blocks)):
        normalize = None if second is None else "cosine"
        found = ntk(model, x1, second, per="module", reduction=reduction, normalize=normalize)
        if second is not None:
            assert error(found.blocks, blocks) <= 1e-12
        else:
            assert error(found.blocks.sum(0), reduced(truth(model, x1), reduction)) <= 1e-10


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_float32_is_as_exact_as_eager(name):
    model, x1, x2 = make(name, dtype=torch.float32)
    wide = copy.deepcopy(model).double()
    want = truth(wide, *(x.double() if x.is_floating_point() else x for x in (x1, x2)))
    eager, ours = error(truth(model, x1, x2), want), error(ntk(model, x1, x2, per="model").blocks[0], want)
    assert ours <= 2 * eager + 2 * torch.finfo(torch.float32).eps, f"ours {ours:.1e}, eager {eager:.1e}"


@pytest.mark.parametrize("how", ["cosine", "joint"])
@pytest.mark.parametrize("per", ["module", "model"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_normalize(reduction, per, how):
    model, x1, x2 = make("cnn")
    rows, columns = (nftk.tangent.self_kernels(model, x, per=per, reduction=reduction) for x in (x1, x2))
    own = ntk(model, x1, per=per, reduction=reduction).diagonal()
    assert error(rows, own.diagonal(dim1=2, dim2=3) if reduction == "full" else own) < 1e-12
    want = ntk(model, x1, x2, per=per, reduction=reduction).normalize(how, rows, columns)
    got = ntk(model, x1, x2, per=per, reduction=reduction, normalize=how)
    assert got.normalization == how
    assert error(got.blocks, want.blocks) < 1e-12


def test_joint_blocks_add_up():
    model, x1, x2 = make("transformer")
    parts = ntk(model, x1, x2, per="module", reduction="trace", normalize="joint")
    assert (
        error(parts.blocks.sum(0), ntk(model, x1, x2, per="model", reduction="trace", normalize="cosine").blocks[0])
        < 1e-12
    )


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("normalize", [None, "cosine", "joint"])
def test_weights(normalize, symmetric):
    model, x1, x2 = make("transformer")
    x2 = None if symmetric else x2
    apart = ntk(model, x1, x2, per="module", normalize=normalize)
    for weights in (torch.rand(len(apart)), [(-1.5) ** i for i in range(len(apart))]):
        k = ntk(model, x1, x2, per="module", normalize=normalize, weights=weights)
        want = torch.tensordot(torch.as_tensor(weights).double(), apart.blocks, 1)
        assert k.blocks.shape == (1, *want.shape)
        assert error(k.blocks[0], want) < 1e-7


def test_the_model_is_left_as_it_was():
    model, x1, _ = make("bare")
    model.scale.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        k = ntk(model, x1, per="module")
    assert not k.blocks.requires_grad
    assert error(k.blocks, ntk(model, x1, per="module").blocks) < 1e-14
    for name, p in model.named_parameters():
        value, requires_grad, grad = before[name]
        assert torch.equal(p, value)
        assert p.requires_grad is requires_grad
        assert p.grad is grad
    with torch.inference_mode():
        assert error(ntk(model, x1.clone(), per="module").blocks, k.blocks) < 1e-14


def test_frozen_parameters_count():
    model, x1, _ = make("cnn")
    before = ntk(model, x1, per="module").blocks
    model.requires_grad_(False)
    assert torch.equal(ntk(model, x1, per="module").blocks, before)


def test_sixteen_bits_are_taken_over():
    model, x, _ = make("cnn", dtype=torch.float32)
    model.to(torch.bfloat16)
    k = ntk(model, x.bfloat16(), per="module")
    assert k.blocks.dtype is torch.float32
    assert torch.equal(k.blocks, ntk(copy.deepcopy(model).float(), x.bfloat16().float(), per="module").blocks)


def test_few_examples():
    model, x1, x2 = make("cnn")
    assert ntk(model, x1[:0], x2, per="module").blocks.shape == (7, 0, 4, 3, 3)
    assert ntk(model, x1, x2[:0], per="model", normalize="cosine").blocks.shape == (1, 5, 0, 3, 3)
    assert error(ntk(model, x1[:1], per="model").blocks[0], truth(model, x1[:1])) < 1e-12
    with pytest.raises(ValueError, match="x1 must have an example"):
        ntk(model, x1[:0], per="module")


def test_the_choice_follows_the_positions():
    """Gram form for few positions, gradients for many."""
    forms = {}
    for size in (4, 24):
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        plan = nftk.tangent.plan(model, torch.randn(40, 8, size, size), per="module", reduction="trace")
        forms[size] = [row.form for row in plan.rows]
    assert forms == {4: ["gram", "gram"], 24: ["gradients", "gram"]}


def test_a_plan_says_what_and_why():
    model, x, _ = make("bare")
    told = str(nftk.tangent.plan(model, x, per="module"))
    assert "torch.func" in told
    assert "the result of exp has no examples in it" in told
    assert "unused" not in told
    model, x, _ = make("transformer")
    plan = nftk.tangent.plan(model, x, per="module")
    assert {row.module for row in plan.rows} >= {"tokens", "places", "attention", "norm1", "query", "head"}
    assert all(row.bytes > 0 and row.flops > 0 for row in plan.rows)
    assert plan.rows_at_once >= 5
    assert str(plan).count("\n") >= len(plan.rows)


def test_plans_of_chains_are_refused():
    with pytest.raises(NotImplementedError, match="model must be another than an NFTKMLP or a plain"):
        nftk.tangent.plan(nn.Linear(3, 2), torch.randn(4, 3), per="module")
