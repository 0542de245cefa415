"""The experiment on poisoned MNIST, on small images: what is planted, and the numbers against a direct computation."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nftk.attribution import Suspicion, top_k
from nftk.data import load_digits
from nftk.experiments import poisoned
from nftk.experiments.mnist_cnn import Digits, trained_cnn
from nftk.experiments.networks import Place
from nftk.experiments.record import Request, spread
from nftk.surrogate import KernelSurrogate

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is an optional package")
pytest.importorskip("matplotlib", reason="matplotlib is an optional package")

SIZES = {"train": 300, "test": 120, "epochs": 25, "candidates": 150, "ordinary": 40}
MODULES = ("0", "3", "6", "10", "12")


def stand_in(*_):
    """Scikit-learn's digits as images of 28 x 28 without anything at the edge."""
    split = load_digits()
    x, x_test = (
        F.pad(F.interpolate(part.reshape(-1, 1, 8, 8), scale_factor=2.5), (4, 4, 4, 4))
        for part in (split.x_train[:300], split.x_test[:120])
    )
    return Digits((x - 0.2) / 0.3, split.y_train[:300], (x_test - 0.2) / 0.3, split.y_test[:120])


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(poisoned, "digits", stand_in)
    monkeypatch.setattr(poisoned, "QUICK", SIZES)
    monkeypatch.setattr(poisoned, "SHARE", 0.4)
    monkeypatch.setattr(poisoned, "PENALTIES", (1e-1, 1e-2))
    monkeypatch.setattr(poisoned, "PENALTY", 1e-2)


def test_a_share_of_one_class_is_stamped_and_relabelled():
    data = stand_in()
    x, y = data.x.clone(), data.y.clone()
    found = poisoned.poison(data.x, data.y, seed=1)
    assert torch.equal(data.x, x)
    assert torch.equal(data.y, y)
    members = y == 7
    assert int(found.rows.sum()) == round(0.1 * int(members.sum())) > 1
    assert bool(members[found.rows].all())
    assert found.y[found.rows].tolist() == [1] * int(found.rows.sum())
    assert torch.equal(found.y[~found.rows], y[~found.rows])
    assert torch.equal(found.x[~found.rows], x[~found.rows])
    square = torch.zeros(28, 28, dtype=torch.bool)
    square[24:27, 24:27] = True
    changed = (found.x != x)[found.rows][:, 0]
    assert bool((changed == square).all())
    assert bool((found.x[found.rows][:, 0][:, square] == x.max()).all())
    assert torch.equal(poisoned.poison(x, y, seed=1).rows, found.rows)
    assert not torch.equal(poisoned.poison(x, y, seed=2).rows, found.rows)


def test_places_make_precision_recall_and_average_precision():
    generator = torch.Generator().manual_seed(0)
    scores, marked = torch.randn(60, generator=generator), torch.arange(60) % 7 == 0
    suspicion = Suspicion(top_k(scores, 60).examples, scores)
    places = poisoned.ranks(suspicion, marked)
    for k in (1, 9, 30, 60):
        precision, recall = suspicion.precision_recall(marked, k)
        assert poisoned.precision(places, k) == pytest.approx(float(precision))
        assert poisoned.recall(places, k) == pytest.approx(float(recall))
    expected = sklearn.metrics.average_precision_score(marked.numpy(), scores.numpy())
    assert poisoned.average_precision(places) == pytest.approx(expected)
    assert poisoned.numbers([[1, 2], [2, 4, 5]]) == {
        "precision": [1, pytest.approx(1 / 3)],
        "recall_at_twice": [1, 1],
        "average_precision": [1, pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)],
    }


def test_half_counts_the_images_that_carry_half_of_what_speaks_for():
    assert poisoned.half(torch.tensor([[3.0, -9.0, 1.0, 1.0]])) == 1
    assert poisoned.half(torch.tensor([[2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 0.0, -3.0]])) == 1.5


def jacobians(model, x):
    """Gradients of all outputs by module, a list of [n, 10, P_l] in float64."""
    model = model.double()
    parameters = dict(model.named_parameters())

    def outputs(parameters, one):
        return torch.func.functional_call(model, parameters, (one[None],))[0]

    found = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))(parameters, x.double())
    return [
        torch.cat([part.flatten(2) for name, part in found.items() if name.split(".")[0] == module], dim=2).detach()
        for module in MODULES
    ]


@pytest.mark.usefixtures("_small")
def test_the_record_is_what_a_direct_computation_says(tmp_path):
    request = Request(Place(tmp_path), seeds=1, quick=True, say=lambda _: None)
    record = poisoned.run(request)
    (run,) = record.found["runs"]
    data = stand_in()
    given = poisoned.poison(data.x, data.y, seed=0)
    model = trained_cnn(request.place, given.x, given.y, seed=0, epochs=25)
    assert len(list(tmp_path.glob("mnist-cnn-*"))) == 1, "the network of the record, found again"

    # the images that are asked
    before = data.x_test[data.y_test == 7]
    after = before.clone()
    after[:, :, 24:27, 24:27] = data.x.max()
    with torch.no_grad():
        hit = model(after).argmax(1) == 1
        said = model(data.x_test).argmax(1)
    clean = data.x_test[:40][said[:40] == 1]
    assert (run["suspects"], run["clean"]) == (int(hit.sum()), len(clean))
    assert run["attack_success"] == pytest.approx(float(hit.double().mean()))
    assert run["clean_accuracy"] == pytest.approx(float((said == data.y_test).double().mean()))
    assert run["attack_success"] > 0.9
    assert run["unstamped_as_target"] < 0.2
    rows, n = given.rows[:150], int(hit.sum())
    assert (run["poisoned"], run["poisoned_in_training"]) == (int(rows.sum()), int(given.rows.sum()))

    # kernels from Jacobians
    asked = torch.cat((after[hit], before[hit], clean))
    train_parts, asked_parts = jacobians(model, given.x[:150]), jacobians(model, asked)
    own, own_asked = (sum(j.square().sum((1, 2)) for j in parts).sqrt() for parts in (train_parts, asked_parts))
    k = torch.stack([torch.einsum("ncp,mcp->nm", j, j) for j in train_parts]) / (own[:, None] * own)
    k_asked = torch.stack(
        [torch.einsum("ncp,mcp->nm", a, j) for a, j in zip(asked_parts, train_parts, strict=True)]
    ) / (own_asked[:, None] * own)
    surrogate = KernelSurrogate(penalty=1e-2).fit(k.sum(0), given.y[:150])
    alpha = surrogate.dual_coef_

    def places(scores):
        shares = scores / scores.abs().sum(1, keepdim=True)
        suspicion = shares[:n].mean(0) - shares[2 * n :].mean(0)
        return [place for place, i in enumerate(suspicion.argsort(descending=True).tolist(), 1) if rows[i]]

    def alike(found, expected):
        # kernels in float32 may exchange neighbours
        assert len(found) == len(expected)
        assert poisoned.average_precision(found) == pytest.approx(poisoned.average_precision(expected), abs=0.02)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2

    by_module = k_asked * alpha[:, 1]
    told = run["surrogates"]["trntk 0.01"]
    alike(told["places"], places(by_module.sum(0)))
    positive = by_module.sum(0)[:n].clamp(min=0)
    assert told["poison_share"] == pytest.approx(float((positive[:, rows].sum(1) / positive.sum(1)).mean()), rel=1e-3)
    of_source = (k_asked * alpha[:, 7]).sum(2)
    margin = by_module.sum(2) - of_source
    totals = by_module.clamp(min=0).sum(2)
    for i, name in enumerate(MODULES):
        module = told["modules"][name]
        alike(module["places"], places(by_module[i]))
        assert module["share_suspects"] == pytest.approx(float((totals[i] / totals.sum(0))[:n].mean()), rel=1e-3)
        assert module["share_clean"] == pytest.approx(float((totals[i] / totals.sum(0))[2 * n :].mean()), rel=1e-3)
        moved = float((margin[i, :n] - margin[i, n : 2 * n]).mean())
        assert module["margin_moved"] == pytest.approx(moved, abs=1e-3 * float(margin.abs().max()))
    alike(run["similar"]["trntk"], places(k_asked.sum(0)))
    itself = alpha[torch.arange(150), given.y[:150]] * k.sum(0).diagonal()
    alike(
        told["self_influence"],
        [place for place, i in enumerate(itself.argsort(descending=True).tolist(), 1) if rows[i]],
    )
    # and it is found
    assert poisoned.precision(told["places"], len(told["places"])) > 0.8

    # the table says it
    found = {row["method"]: row for row in record.found["rows"]}
    values = found["trNTK attribution, penalty 0.01"]
    assert values["precision"] == [poisoned.precision(told["places"], run["poisoned"])]
    of_itself = told["self_influence"], found["self-influence, penalty 0.01"]
    assert of_itself[1]["precision"] == [poisoned.precision(of_itself[0], len(of_itself[0]))]
    assert "self-influence, penalty 0.1" in found
    cells = [spread(values[name]) for name in ("precision", "recall_at_twice", "average_precision")]
    assert f"| trNTK attribution, penalty 0.01 | {' | '.join(cells)} |" in record.markdown
    sum_of_modules = sum(told["modules"][name]["margin_moved"] for name in MODULES)
    assert f"The stamp moves the output for 1 over that for 7 by {sum_of_modules:.2f}" in record.markdown
    rows = [line for line in record.markdown.splitlines() if line.startswith("| conv 1 |")]
    alone = [run["surrogates"][f"trntk {penalty}"]["modules"]["0"]["places"] for penalty in ("0.1", "0.01")]
    assert [line.split(" | ")[-2:] for line in rows] == [
        [f"{poisoned.precision(alone[0], len(alone[0])):.2f}", f"{poisoned.precision(alone[1], len(alone[1])):.2f} |"]
    ]
    files = {path.name for path in record.write(tmp_path / "out", request)}
    assert files == {"poisoned.png", "poisoned.md", "poisoned.json"}
    assert json.loads((tmp_path / "out" / "poisoned.json").read_text())["rows"] == record.found["rows"]


@pytest.mark.usefixtures("_small")
def test_findings_are_kept_and_an_attack_that_fails_is_told(tmp_path, monkeypatch):
    request, data = Request(Place(tmp_path), quick=True), stand_in()
    with monkeypatch.context() as patch:
        patch.setattr(poisoned, "one", lambda request, data, seed, sizes: {"seed": seed})
        assert poisoned._found(request, data, 3, SIZES) == {"seed": 3}
        patch.setattr(poisoned, "one", None)
        assert poisoned._found(request, data, 3, SIZES) == {"seed": 3}
    constant = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(constant[1].weight)
    constant[1].bias.data = torch.eye(10)[0]
    monkeypatch.setattr(poisoned, "trained_cnn", lambda *_, **__: constant)
    with pytest.raises(RuntimeError, match="the network of seed 0 gives no stamped image the label 1"):
        poisoned.one(request, data, 0, SIZES)
