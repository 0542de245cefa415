"""The trNTK paper's two digits: its training written out, its tau, and a table that says what was measured."""

import json

import pytest
import torch
from stripes import stripes
from torch.nn import functional as F

import nftk
from nftk.experiments import two_digits
from nftk.experiments.networks import Place
from nftk.experiments.record import Request
from nftk.experiments.two_digits import Group, TwoDigits, tau, train

pytest.importorskip("sklearn", reason="needs scikit-learn for the paper's surrogate")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Noisy stripes in place of MNIST, and digits that the experiment must leave out."""
    monkeypatch.setattr(two_digits, "load_data", lambda *_: stripes(600, 3, 450))
    monkeypatch.setattr(two_digits, "EPOCHS", 2)
    return Place(tmp_path / "runs")


def test_the_network_is_the_papers():
    model, x = TwoDigits(3), torch.rand(5, 784)
    assert [tuple(p.shape) for p in model.parameters()][::2] == [(100, 784), (100, 100), (100, 100), (1, 100)]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert abs(float(weights.mean())) < 0.02
    assert abs(float(weights.std()) - 1) < 0.02
    h = x
    for layer in model.layers[:-1]:
        h = F.relu(F.linear(h, layer.weight, layer.bias) / 10)
    assert torch.allclose(model(x), F.linear(h, model.layers[-1].weight, model.layers[-1].bias))


def test_steps_written_out_are_those_of_autograd():
    x, y = torch.rand(10, 784).double(), torch.arange(10) % 2
    ours = [TwoDigits(seed).double() for seed in (0, 1)]
    train(ours, x, y, epochs=2, seeds=(5, 6))
    for seed, model in enumerate(ours):
        theirs, start = TwoDigits(seed).double(), TwoDigits(seed).double()
        optimizer, generator = torch.optim.SGD(theirs.parameters(), two_digits.LR), torch.Generator()
        generator.manual_seed(5 + seed)
        for _ in range(2):
            for rows in torch.randperm(10, generator=generator).split(4):
                optimizer.zero_grad()
                F.mse_loss(torch.sigmoid(theirs(x[rows]))[:, 0], y[rows].double()).backward()
                optimizer.step()
        for a, b, c in zip(model.parameters(), theirs.parameters(), start.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)
            assert not torch.equal(b, c)


def test_the_papers_tau_leaves_out_what_is_saturated():
    p = torch.tensor([0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
    outputs = torch.tensor([9.0, -2.0, -1.0, 2.0, 1.0, -9.0])
    # one of six pairs is the wrong way round
    assert tau(outputs, p) == pytest.approx(4 / 6)


def test_only_zeros_and_ones_are_taken_the_first_of_each(place, monkeypatch):
    monkeypatch.setattr(two_digits, "TRAIN", 40)
    monkeypatch.setattr(two_digits, "TEST", 30)
    data = two_digits.digits(place, quick=False)
    split = two_digits.load_data()
    assert data.y.tolist() == [0] * 40 + [1] * 40
    assert torch.equal(data.x[40:], split.x_train[split.y_train == 1][:40])
    assert data.y_test.tolist() == [0] * 30 + [1] * 30


def test_the_table_says_what_surrogates_do(place, monkeypatch):
    said = []
    request = Request(place, seeds=2, quick=True, say=said.append)
    record = two_digits.run(request)
    assert len(said) == 1
    assert [network["seed"] for network in record.found["networks"]] == [0, 1]
    assert json.dumps(record.found)
    found = record.found["networks"][1]
    # the same by hand
    data, model = two_digits.digits(place, quick=True), TwoDigits(1)
    train([model], data.x, data.y, epochs=2, seeds=[1])
    with torch.no_grad():
        p, p_test = (torch.sigmoid(model(x)[:, 0]) for x in (data.x, data.x_test))
    assert found["test_accuracy"] == pytest.approx(float(((p_test > 0.5) == data.y_test).float().mean()))
    k, k_test = (nftk.tangent.trntk(model, x, data.x).blocks[0] for x in (data.x, data.x_test))
    ours = nftk.surrogate.KernelSurrogate
    fitted = ours("logistic", two_digits.PENALTY, target="probabilities").fit((k + k.mT) / 2, p.double())
    assert found["surrogates"]["probabilities"]["tau"] == pytest.approx(
        tau(fitted.decision_function(k_test), p_test), abs=0.02
    )
    for name in two_digits.SURROGATES:
        assert 0 <= found["surrogates"][name]["accuracy"] <= 1
    mean = sum(network["test_accuracy"] for network in record.found["networks"]) / 2
    assert f"test accuracy {100 * mean:.2f} ±" in record.markdown
    # a second run finds what the first left
    monkeypatch.setattr(two_digits, "_one", None)
    assert two_digits.run(request).found == record.found


def test_a_file_cut_off_is_made_anew(place):
    group = Group((0,), place, True)
    found = two_digits.one(group)
    (path,) = place.runs.iterdir()
    path.write_text("{")
    assert two_digits.one(group) == found
