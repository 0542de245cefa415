"""What a model does for some examples only, for some outputs only, or where torch functions do not show it."""

import pytest
import torch
from one_by_one import Two, assert_right, normal
from torch import nn
from torch.nn import functional as F

import nftk
from nftk.tangent import plan, project_tangents
from nftk.tangent.modules import study


class OneOutput(nn.Module):
    """The second output's path has the rare examples first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.h, self.k = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(5, 1)
        self.double()

    def forward(self, x):
        rare = x[:, 0] > 2.5
        order = torch.cat([rare.nonzero()[:, 0], (~rare).nonzero()[:, 0]])
        return torch.cat([self.h(self.a(x).tanh()), self.k(self.b(x[order]).tanh()[order.argsort()])], 1)


@pytest.mark.parametrize("reduction", ["full", "trace"])
def test_examples_that_are_reordered_for_one_output_are_refused(reduction):
    x = normal(60)
    x[:, 0].clamp_(max=2)
    x[41, 0], x[7, 0] = 3.0, 2.8
    with pytest.raises(NotImplementedError, match="model must keep every example in its place in the batch"):
        nftk.empirical_ntk(OneOutput(), x, per="module", reduction=reduction)
    with pytest.raises(NotImplementedError, match="model must keep every example in its place in the batch"):
        project_tangents(OneOutput(), x, 8, per="module")
    x[:, 0].clamp_(max=2)
    assert_right(OneOutput(), x)


class Product(torch.autograd.Function):
    """A function that is no torch function."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.mT @ x


class Gated(Two):
    """The first weight serves a second time, for inputs above 0."""

    def forward(self, x):
        return self.b(self.a(x).tanh()) + F.relu(x[:, :1]) * Product.apply(x, self.a.weight)[:, :2]


class Written(Two):
    """The same, written into a tensor."""

    def forward(self, x):
        h = x.new_zeros(5, 4)
        h[:] = self.a.weight
        return self.b(self.a(x).tanh()) + F.relu(x[:, :1]) * (x @ h.mT)[:, :2]


class Late(Two):
    """A third parameter that is first used where an input is above 0."""

    def __init__(self):
        super().__init__()
        self.late = nn.Parameter(torch.ones(2, 4, dtype=torch.float64))

    def forward(self, x):
        f = self.b(self.a(x).tanh())
        return f + F.relu(x[:, :1]) * Product.apply(x, self.late) if (x[:, 0] > 0).any() else f


class Suddenly(Two):
    """The first weight serves a second time, where an input is above 0."""

    def forward(self, x):
        f = self.b(self.a(x).tanh())
        return f + F.relu(x[:, :1]) * Product.apply(x, self.a.weight)[:, :2] if (x[:, 0] > 0).any() else f


@pytest.fixture
def rare(monkeypatch):
    """Inputs of which one is above 0, and is none of those that the model is read from."""
    monkeypatch.setattr(study, "_probed", lambda first, second: first[:6])
    x = normal(20)
    x[:, 0] = -x[:, 0].abs()
    x[13, 0] = 1.5
    return x


@pytest.mark.parametrize("model", [Gated, Written])
def test_uses_that_no_torch_function_shows_are_right_behind_a_gate(model, rare):
    assert_right(model(), rare)
    said = str(plan(model(), rare))
    assert "it has more uses than torch functions show" in said


@pytest.mark.parametrize("model", [Suddenly, Late])
def test_uses_that_come_later_are_refused(model, rare):
    name = "late" if model is Late else r"a\.weight"
    with pytest.raises(NotImplementedError, match=f"model must use {name} in the same way for every batch"):
        nftk.empirical_ntk(model(), rare, per="model")
    assert_right(model(), rare[:13])


def test_frozen_parameters_stay_so():
    model = Two()
    model.a.weight.requires_grad_(False)
    assert_right(model, normal(5))
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


class Masked(nn.Module):
    """A map over a picture, the same for all."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.mask, self.last = nn.Parameter(torch.randn(1, 4)), nn.Linear(4 * size, 2)
        self.double()

    def forward(self, x):
        return self.last((x * torch.sigmoid(self.mask)).flatten(1))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_dimension_may_be_as_large_as_what_is_tried(size):
    assert_right(Masked(size), normal(7, size, 4))


class Force(Two):
    """The gradient of an energy, as of a physical model."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_() if not x.requires_grad else x
            energy = self.b(self.a(x).tanh()).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_models_that_take_gradients_themselves():
    assert_right(Force(), normal(6))


@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients(table):
    torch.manual_seed(0)
    model = nn.Sequential(table(9, 4, sparse=True), nn.Flatten(), nn.Linear(4 if table is nn.EmbeddingBag else 12, 2))
    x = torch.randint(9, (6, 3))
    dense = nn.Sequential(table(9, 4), *model[1:])
    dense.load_state_dict(model.state_dict())
    found, want = (nftk.empirical_ntk(m.double(), x, per="model") for m in (model, dense))
    torch.testing.assert_close(found.blocks, want.blocks)


class OneBias(nn.Module):
    """One number is the bias of all outputs."""

    def __init__(self, shape, added):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias, self.added = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(shape)), added
        self.double()

    def forward(self, x):
        if self.added:
            return torch.addmm(self.bias, x, self.weight).tanh()
        return F.linear(x, self.weight.mT, self.bias).tanh()


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("added", [False, True], ids=["linear", "addmm"])
def test_one_bias_for_all_outputs(shape, added):
    if added or shape:
        assert_right(OneBias(shape, added), normal(6))


class Widening(nn.Module):
    """float32, but for its end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shift = nn.Linear(4, 2), nn.Parameter(torch.randn(2))

    def forward(self, x):
        return self.first(x).tanh().double() + self.shift


def test_a_model_may_end_in_another_dtype():
    x = normal(6).float()
    found = nftk.empirical_ntk(Widening(), x, per="model")
    want = nftk.empirical_ntk(Widening().double(), x.double(), per="model")
    torch.testing.assert_close(found.blocks.double(), want.blocks, rtol=1e-5, atol=1e-5)


class Counting(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


def test_models_that_write_into_buffers_are_refused_and_left_alone():
    model = Counting()
    with pytest.raises(
        ValueError, match="model must leave its buffers as they are, in eval mode, got one that writes into seen"
    ):
        nftk.empirical_ntk(model, normal(5), per="model")
    assert int(model.seen) == 0


class Whispering(Two):
    """Looks at its batch, a little, and only where an input is above 0."""

    def forward(self, x):
        f = super().forward(x)
        return f + 1e-5 * F.relu(x[:, :1]).sum()


def test_little_that_depends_on_the_batch_is_seen(rare):
    rare[:, 0] = rare[:, 0].abs()
    rare[:6, 0] = -1.0
    with pytest.raises(ValueError, match="model must give an example the same outputs in every batch"):
        nftk.empirical_ntk(Whispering(), rare, per="model")


def test_dropout_between_layers_of_one_layer_is_none():
    model = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (3, 4)), First(nn.GRU(4, 2, 1, dropout=0.0, batch_first=True)))
    model[2].inner.dropout = 0.3  # torch warns of it at once, and drops nothing
    assert_right(model.double(), normal(4, 3, 4))


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0][:, -1]


def test_an_even_kernel_keeps_its_rule_under_same_padding():
    model = nn.Sequential(nn.Conv1d(1, 2, 4, padding="same"), nn.Flatten(), nn.Linear(8, 2)).double()
    with pytest.warns(UserWarning, match="even kernel lengths"):
        said = str(plan(model, normal(5, 1, 4)))
    assert "conv1d" in said


class BiasFirst(nn.Module):
    """The bias is registered before the weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bias, self.other, self.weight = (nn.Parameter(torch.randn(*s)) for s in ((3,), (2, 3), (3, 4)))
        self.double()

    def forward(self, x):
        return F.linear(F.linear(x, self.weight, self.bias).tanh(), self.other)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_projections_have_the_columns_of_named_parameters(kind):
    from one_by_one import jacobian

    from nftk.reference import projection_reference

    model, x = BiasFirst(), normal(5)
    p = project_tangents(model, x, 16, per="model", reduction="full", kind=kind, seed=3)
    truth = jacobian(model, x)
    matrix = projection_reference(16, truth.shape[2], seed=3, kind=kind).double()
    torch.testing.assert_close(p.features[0], truth @ matrix.mT, rtol=1e-6, atol=1e-6)
