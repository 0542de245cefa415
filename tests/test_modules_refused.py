"""Modules that could be read wrongly: right, against autograd of one example at a time, or refused by name."""

import pytest
import torch
from one_by_one import Two, assert_right, normal
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nftk
from nftk.tangent import project_tangents
from nftk.tangent.modules import study

BATCH = "model must give an example the same outputs in every batch"
CHANCE = "must draw no random numbers"


class Sorted(Two):
    def forward(self, x):
        o = x[:, 0].argsort()
        return self.b(self.a(x[o]).tanh()[o.argsort()])


class Centred(Two):
    def forward(self, x):
        return self.b(self.a(x - x.mean(0)).tanh())


class Dropped(Two):
    def forward(self, x):
        return self.b(F.dropout(self.a(x).tanh(), 0.05))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)
        self.double()

    def forward(self, x):
        r, out = x[:, 0] > 0, x.new_zeros(len(x), 2)
        out[r] = self.a(x[r])
        out[~r] = self.b(x[~r])
        return out


class Checkpointed(Two):
    reentrant = False

    def forward(self, x):
        return checkpoint(lambda h: self.b(h.tanh()), self.a(x), use_reentrant=self.reentrant)


class Doubling(Two):
    def forward(self, x):
        return self.b(self.a(x.mul_(2)).tanh())


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 1, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0].mean(1)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(4, 3, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.inner(x)[0].mean(1)


def in_order():
    """Of which the first three are in order."""
    x = normal(8)
    x[:, 0] = torch.tensor([-3.0, -2, -1, 2, -5, 1, 0, -7])
    return x


def test_models_that_reorder_examples_are_right():
    assert_right(Sorted(), in_order())
    assert_right(Sorted(), in_order()[:3], in_order()[3:])


@pytest.mark.parametrize("reduction", ["trace", "sum_logits"])
def test_examples_that_are_first_reordered_in_a_later_batch_are_refused(monkeypatch, reduction):
    # what the model is read from is in order, whatever is drawn
    monkeypatch.setattr(study, "_probed", lambda first, second: first[:3])
    with pytest.raises(NotImplementedError, match="model must keep every example in its place in the batch"):
        nftk.empirical_ntk(Sorted(), in_order(), per="module", reduction=reduction)
    with pytest.raises(NotImplementedError, match="model must keep every example in its place in the batch"):
        project_tangents(Sorted(), in_order(), 8, per="module", reduction=reduction)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_models_that_look_at_their_batch_are_refused(n):
    with pytest.raises(ValueError, match=BATCH):
        nftk.empirical_ntk(Centred(), normal(n), normal(3), per="model")
    x = normal(9)
    x[:3] = x[0]
    with pytest.raises(ValueError, match=BATCH):
        nftk.empirical_ntk(Centred(), x, per="model")
    # of two sizes, and one alone
    with pytest.raises(ValueError, match=BATCH):
        nftk.empirical_ntk(nn.Sequential(Spread(), Centred()), normal(n, 4, 2), normal(3, 4, 3), per="model")


def test_a_batch_is_looked_at_where_the_probe_is_alike(monkeypatch):
    monkeypatch.setattr(study, "_probed", lambda first, second: first[[0, 0, 0]])
    with pytest.raises(ValueError, match=BATCH):
        nftk.empirical_ntk(Centred(), normal(9), per="model")


class Spread(nn.Module):
    def forward(self, x):
        return x.mean(2)


def test_examples_that_are_alike_are_no_harm():
    assert_right(Two(), normal(1).expand(7, 4))
    assert_right(Two(), normal(1))


def test_chance_is_refused():
    for _ in range(5):
        with pytest.raises(ValueError, match=CHANCE):
            nftk.empirical_ntk(Dropped(), normal(6), per="model")
    for kind in (Attending, Remembering):
        model = kind().double()
        with pytest.raises(ValueError, match="model must be in eval mode, got dropout of"):
            nftk.empirical_ntk(model, normal(6, 3, 4), per="model")
        nftk.empirical_ntk(model.eval(), normal(6, 3, 4), per="model")


def test_experts_are_right_or_refused(monkeypatch):
    x = normal(10)
    x[:, 0] = torch.tensor([1.0, 2, 3, -1, -2, 1, -3, 2, -1, 1])
    assert_right(Experts(), x)
    assert_right(Experts(), x[:3], x[3:])
    monkeypatch.setattr(study, "_probed", lambda first, second: first[:3])
    with pytest.raises(NotImplementedError, match="examples that are reordered, left out or of another size"):
        nftk.empirical_ntk(Experts(), x, per="model")


def test_checkpoints():
    assert_right(Checkpointed(), normal(5))
    model = Checkpointed()
    model.reentrant = True
    with pytest.raises(NotImplementedError, match=r"model must be one that torch\.autograd\.grad goes through, got: "):
        nftk.empirical_ntk(model, normal(5), per="model")


def test_inputs_are_left_as_they_were():
    for model in (Doubling(), nn.Sequential(nn.ReLU(inplace=True), Two())):
        x = normal(6)
        before = x.clone()
        assert_right(model, x)
        assert torch.equal(x, before)


def test_no_outputs_and_complex_numbers():
    with pytest.raises(ValueError, match=r"output_fn must return at least one output, got \[\d, 0\]"):
        nftk.empirical_ntk(Two(), normal(5), per="model", output_fn=lambda f: f[:, :0])
    model = nn.Sequential(nn.Conv1d(1, 1, 1, dtype=torch.complex128), nn.Flatten())
    with pytest.raises(NotImplementedError, match=r"parameters of model must be real, got torch\.complex128"):
        nftk.empirical_ntk(model, normal(5, 1, 2).to(torch.complex128), per="model")
