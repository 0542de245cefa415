"""The comparison of kernels on a convolutional network: on stripes, with every number of the table made again."""

import functools
import json

import pytest
import torch
from stripes import stripes

import nftk
from nftk.experiments import mnist_cnn, ten_digits
from nftk.experiments.networks import Place
from nftk.experiments.record import Request

pytest.importorskip("scipy", reason="needs scipy for the surrogate")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Noisy stripes of ten phases in place of the digits, and fewer of everything."""
    monkeypatch.setattr(mnist_cnn, "load_data", lambda *_: stripes(240, 10, 160))
    draw = functools.partial(mnist_cnn.digits, train=100, test=60)
    monkeypatch.setattr(ten_digits, "digits", lambda place, *_: draw(place))
    monkeypatch.setattr(ten_digits, "EXAMPLES", 60)
    monkeypatch.setattr(ten_digits, "PENALTIES", (1e-2, 1e-3))
    monkeypatch.setattr(ten_digits, "PROJECTED", 64)
    monkeypatch.setattr(ten_digits, "RESAMPLES", 20)
    return Place(tmp_path / "runs")


def test_the_draw_is_the_same_whatever_is_asked_for(place):
    first, second = (mnist_cnn.digits(place, count, 30) for count in (50, 80))
    assert torch.equal(first.x, second.x[:50])
    assert first.x.shape == (50, 1, 28, 28)
    assert torch.equal(first.y_test, second.y_test)


def test_a_network_is_trained_once(place, monkeypatch):
    data = mnist_cnn.digits(place, 60, 10)
    model = mnist_cnn.trained_cnn(place, data.x, data.y, seed=1, epochs=1)
    monkeypatch.setattr(mnist_cnn, "train_cnn", None)
    again = mnist_cnn.trained_cnn(place, data.x, data.y, seed=1, epochs=1)
    assert not again.training
    assert torch.equal(model(data.x_test), again(data.x_test))
    with pytest.raises(TypeError):
        mnist_cnn.trained_cnn(place, data.x, 1 - data.y, seed=1, epochs=1)


@pytest.mark.filterwarnings("ignore:.*best penalty")
def test_the_table_says_what_surrogates_do(place, monkeypatch):
    request = Request(place, seeds=2, say=lambda line: None)
    monkeypatch.setattr(mnist_cnn, "EPOCHS", 1)
    monkeypatch.setattr(ten_digits, "EPOCHS", 1)
    record = ten_digits.run(request)
    assert json.dumps(record.found, allow_nan=False)
    found = record.found["networks"][1]["kernels"]
    assert list(found) == list(ten_digits.KERNELS)
    data = ten_digits.digits(place)
    model = mnist_cnn.trained_cnn(place, data.x, data.y, seed=1, epochs=1)
    with torch.no_grad():
        p, p_test = (model(x).double().softmax(1) for x in (data.x[:60], data.x_test))
    for name, kernel in (("trNTK", nftk.tangent.trntk), ("embedding", nftk.tangent.embedding_kernel)):
        k, k_test = kernel(model, data.x[:60]).blocks[0], kernel(model, data.x_test, data.x[:60]).blocks[0]
        fitted = nftk.surrogate.KernelSurrogate(penalties=(1e-2, 1e-3), target="probabilities").fit(k, p)
        faithful = nftk.surrogate.faithfulness(p_test, fitted.predict_proba(k_test), data.y_test, resamples=0)
        assert found[name]["probabilities"]["tau_correct"]["value"] == pytest.approx(
            faithful.tau_correct.value, abs=0.02
        )
        assert found[name]["probabilities"]["penalty"] == pytest.approx(fitted.penalty_)
    for name in ten_digits.KERNELS:
        taus = [n["kernels"][name]["labels"]["tau_correct"]["value"] for n in record.found["networks"]]
        mean = sum(taus) / 2
        assert f"| {name} | {mean:.3f} ±" in record.markdown
    # projections are of the same kernels: nearer to theirs than to the other
    projected = [name for name in found if name.startswith("projected")]
    assert len(projected) == 2


@pytest.mark.parametrize(
    ("better", "said"), [("trNTK", "trNTK is first"), ("pNTK", "trNTK is not first, but number 2")]
)
def test_it_is_said_plainly_whether_trntk_is_first(better, said):
    def tau(kernel):
        return {"trNTK": 0.5, "loss gradients (knows test labels)": 0.99, better: 0.9}.get(kernel, 0.1)

    networks = [{"kernels": {k: {"labels": {"tau_correct": {"value": tau(k)}}} for k in ten_digits.KERNELS}}]
    assert said in ten_digits._order(networks, "labels")
