"""The counterfactual experiment on small stand-in data: every number of its table again, by another way."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nftk.attribution import draw_subsets
from nftk.data import DataSplit
from nftk.experiments import counterfactual, mnist_cnn
from nftk.experiments.counterfactual import OURS, TRAK, Sizes, margin_weights, margins
from nftk.experiments.networks import Place
from nftk.experiments.record import Request

SIZES = Sizes(train=40, test=6, choice_test=5, subsets=8, choice_subsets=4, repeats=1, epochs=1)


@pytest.fixture
def request_(monkeypatch, tmp_path):
    """Images of noise with a bright place a class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 10
    x = torch.rand(80, 28, 28, generator=generator)
    for i, label in enumerate(y):
        x[i, 2 * label : 2 * label + 6, 4:20] += 1.0
    split = DataSplit(
        x.reshape(80, -1)[:50], y[:50], x.reshape(80, -1)[50:], y[50:], class_names=tuple("0123456789"), name="stand-in"
    )
    monkeypatch.setattr(mnist_cnn, "load_data", lambda *_: split)
    monkeypatch.setattr(counterfactual, "QUICK", SIZES)
    monkeypatch.setattr(counterfactual, "SHARES", (1.0,))
    monkeypatch.setattr(counterfactual, "PENALTIES", (1e-1,))
    said = []
    return Request(Place(tmp_path / "runs"), seeds=2, quick=True, jobs=1, say=said.append)


def made(request):
    """Data, scores of both networks, and margins of the networks of the compared subsets, one by one."""
    place = Place(request.place.runs / "counterfactual")
    data = mnist_cnn.digits(place, 40, 11)
    networks = [counterfactual.network(place, data, seed, 1) for seed in range(2)]
    subsets, found = draw_subsets(40, 8, alpha=0.5, seed=0), []
    for i, subset in enumerate(subsets):
        model = mnist_cnn.train_cnn(data.x[subset], data.y[subset], seed=1000 + i, epochs=1)
        with torch.no_grad():
            p = model(data.x_test[:6]).double().softmax(1)[range(6), data.y_test[:6]]
        found.append((p / (1 - p)).log())
    return data, networks, subsets, torch.stack(found)


def rho(scores, subsets, truth):
    each = [spearmanr(subsets.double() @ row.double(), truth[:, i])[0] for i, row in enumerate(scores[:6])]
    return float(np.mean(each))


def test_the_table_says_what_networks_without_half_the_data_do(request_, tmp_path):
    record = counterfactual.run(request_)
    rows = {(row["method"], row["networks"], row["output"]): row for row in record.found["rows"]}
    data, networks, subsets, truth = made(request_)
    cosine = [found.kernels["embedding"].blocks[0, 40:, :40] for found in networks]
    single = np.mean([rho(scores, subsets, truth) for scores in cosine])
    assert rows["embedding cosine", 1, "margin"]["lds"] == pytest.approx(single)
    assert rows["embedding cosine", 2, "margin"]["lds"] == pytest.approx(rho(sum(cosine), subsets, truth))
    ours = rows[OURS, 2, "margin"]
    kernel, _, output = ours["settings"].split(", ")
    direct = [_left_out(found, data, kernel, output) for found in networks]
    assert ours["lds"] == pytest.approx(rho(sum(direct), subsets, truth), abs=1e-6)
    assert f"{ours['lds']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}]" in record.markdown
    assert "TRAK was not run" in record.markdown
    record.write(tmp_path, request_)
    json.loads((tmp_path / "counterfactual.json").read_text())


def _left_out(found, data, kernel, output):
    """Ridge regression again without each training example."""
    k, targets = found.kernels[kernel].blocks[0].double(), torch.eye(10, dtype=torch.float64)[data.y]
    rho = float(k[:40, :40].diagonal().mean())

    def predictions(rows):
        alpha = torch.linalg.solve(k[rows][:, rows] + rho * torch.eye(len(rows)), targets[rows])
        return k[40:][:, rows] @ alpha

    everything = torch.arange(40)
    moved = torch.stack([predictions(everything) - predictions(everything[everything != i]) for i in range(40)], 1)
    if output == "class":
        return moved[range(11), :, data.y_test]
    return torch.einsum("tic,tc->ti", moved, margin_weights(found.outputs[40:], data.y_test))


def test_margin_and_its_derivative():
    outputs = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 4, 9])
    margin, logit = margins(outputs, y)
    p = outputs.softmax(1)[range(3), y]
    torch.testing.assert_close(margin, (p / (1 - p)).log())
    assert torch.equal(logit, outputs[range(3), y])
    (slope,) = torch.autograd.grad(margin.sum(), outputs)
    torch.testing.assert_close(slope, margin_weights(outputs.detach(), y))


def test_settings_are_chosen_on_other_subsets_and_images(request_, monkeypatch):
    asked = []
    choose = counterfactual.choose
    monkeypatch.setattr(counterfactual, "choose", lambda *a: asked.append(a) or choose(*a))
    counterfactual.run(request_)
    side = asked[0][2]
    assert torch.equal(side.subsets, draw_subsets(40, 4, alpha=0.5, seed=1))
    assert (side.images, side.margin.shape) == (slice(6, None), (4, 5))
    made, _, _, groups = asked[0]
    names = [name for name in made if name.startswith(OURS)]
    best = max(names, key=lambda name: counterfactual.agreement([sum(made[name])], side).mean())
    assert choose(made, OURS, side, groups) == best


def test_interrupted_it_goes_on_where_it_was(request_, monkeypatch):
    trained = mnist_cnn.train_cnn
    seeds = []

    def interrupted(x, y, *, seed, epochs):
        if len(seeds) == 5:
            raise KeyboardInterrupt
        seeds.append(seed)
        return trained(x, y, seed=seed, epochs=epochs)

    with monkeypatch.context() as patch:
        patch.setattr(mnist_cnn, "train_cnn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            counterfactual.run(request_)
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(
            mnist_cnn, "train_cnn", lambda x, y, **given: again.append(given["seed"]) or trained(x, y, **given)
        )
        first = counterfactual.run(request_)
    assert not {*seeds} & {*again}
    assert sorted(seeds + again) == [0, 1, *range(1000, 1008), *range(2000, 2004)]
    for name in ("train_cnn", "trntk0", "candidates"):
        monkeypatch.setattr(mnist_cnn if name == "train_cnn" else counterfactual, name, None)
    assert counterfactual.run(request_).found == first.found


def test_traks_scores_are_compared_and_wrong_ones_refused(request_):
    counterfactual.run(request_)
    (given,) = (request_.place.runs / "counterfactual").glob("networks-*.pt")
    held = torch.load(given, weights_only=False)
    assert held["groups"] == [[0], [1], [0, 1]]
    assert held["train"][0].shape == (40, 1, 28, 28)
    scores = torch.randn(3, 11, 40, generator=torch.Generator().manual_seed(1))
    file = given.with_name(f"{given.stem}-trak.pt")
    torch.save({"8 0": scores, "8 1": torch.zeros(3, 11, 40) + scores.flip(0)}, file)
    record = counterfactual.run(request_)
    _, _, subsets, truth = made(request_)
    rows = {(row["method"], row["networks"], row["output"]): row for row in record.found["rows"]}
    best = scores if record.found["trak_on_choice"]["8 0"] >= record.found["trak_on_choice"]["8 1"] else scores.flip(0)
    assert rows[TRAK, 2, "margin"]["lds"] == pytest.approx(rho(best[2], subsets, truth))
    less = {entry["networks"]: entry["lds"] for entry in record.found["ours_less_trak"]}
    assert less[2] == pytest.approx(rows[OURS, 2, "margin"]["lds"] - rows[TRAK, 2, "margin"]["lds"])
    torch.save({"8 0": scores[:, :10]}, file)
    with pytest.raises(ValueError, match=r"TRAK's scores must have shape \[3, 11, 40\], got \[3, 10, 40\] for '8 0'"):
        counterfactual.run(request_)
