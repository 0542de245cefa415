"""The experiments on data small enough for a test: each network trained once, and tables that say what was measured."""

import dataclasses
import json
import re

import pytest
import torch

import nftk
from nftk.constraints import Simplex
from nftk.data import DataSplit, load_digits
from nftk.experiments import choice, figure2, networks, settings, sparsity, stability, table1, theorem1
from nftk.experiments.held_zeros import HeldZerosSGD
from nftk.experiments.networks import Place, inputs_of, load, train, train_all
from nftk.experiments.recipe import Recipe
from nftk.experiments.record import Request, mean_and_deviation, spread, table
from nftk.experiments.relu_omega import ReluOmegaSGD, draw
from nftk.training import ProximalSGD

SMALL = Recipe("digits", 3, 16, epochs=2, batch_size=100, lr=0.1, train_limit=400, test_limit=200)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "runs")


@pytest.fixture
def _stand_ins(monkeypatch):
    """Digits in place of both data sets, with repeated rows as the reviews have them, and smaller rows."""
    digits = load_digits()
    split = DataSplit(
        digits.x_train, digits.y_train, digits.x_test, digits.y_test, class_names=digits.class_names, name="stand-in"
    )
    object.__setattr__(split, "test_duplicates", torch.tensor([0, 3]))
    monkeypatch.setattr(networks, "load_data", lambda *_: split)
    caches = networks.inputs, networks.checksum
    for cached in caches:
        cached.cache_clear()
    for name, base in list(settings.BASES.items()):
        small = dataclasses.replace(base, width=12, batch_size=50, lr=0.02, lr_omega=0.03, epochs=2)
        monkeypatch.setitem(settings.BASES, name, small)
    monkeypatch.setitem(settings.DEPTHS, "mnist", (2, 3))
    monkeypatch.setitem(settings.DEPTHS, "imdb", (1, 2))
    for depth in (2, 3):
        monkeypatch.setitem(settings.PAPER, ("mnist", depth), (97.25, 96.89))
    for depth in (1, 2):
        monkeypatch.setitem(settings.PAPER, ("imdb", depth), (None, None))
    monkeypatch.setattr(sparsity, "DEPTH", 3)
    monkeypatch.setattr(sparsity, "FORM_DEPTHS", (2, 3))
    monkeypatch.setattr(sparsity, "SET_SEEDS", 1)
    monkeypatch.setattr(stability, "EXAMPLES", 120)
    monkeypatch.setattr(stability, "REFIT_EXAMPLES", 40)
    for part in ("EPOCHS", "HELD_OUT"):
        monkeypatch.setitem(getattr(choice, part), "mnist", 2 if part == "EPOCHS" else 300)
        monkeypatch.setitem(getattr(choice, part), "imdb", 2 if part == "EPOCHS" else 300)
    yield
    for cached in caches:
        cached.cache_clear()


def lines():
    said = []
    return said, said.append


def test_a_recipe_has_one_name_and_every_setting_is_in_it():
    names = {SMALL.name()}
    for field in dataclasses.fields(Recipe):
        other = {"constraint": Simplex(2.0), "after": SMALL}.get(field.name)
        if other is None:
            now = getattr(SMALL, field.name)
            other = f"{now}x" if isinstance(now, str) else now + 1
        names.add(dataclasses.replace(SMALL, **{field.name: other}).name())
    assert len(names) == 1 + len(dataclasses.fields(Recipe))
    assert SMALL.name() == dataclasses.replace(SMALL).name()


def test_a_network_is_trained_once_and_found_again(place, monkeypatch):
    found = train(SMALL, place)
    model = load(SMALL, place)
    data = inputs_of(SMALL, place)
    assert len(data.train[0]) == 400
    assert len(data.test[0]) == 200
    assert nftk.evaluate(model, data.test).accuracy == found["test_accuracy"]
    assert found["omega"] == model.omega.tolist()
    assert [epoch["epoch"] for epoch in found["history"]] == [1, 2]
    monkeypatch.setattr(nftk, "fit", None)
    assert train(SMALL, place) == found


def test_a_killed_training_ends_as_one_that_was_not(place, tmp_path, monkeypatch):
    whole = train(SMALL, Place(tmp_path / "other"))
    fit = nftk.fit

    def killed(*args, **keywords):
        fit(*args, **keywords | {"epochs": 1})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nftk, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, place)
    assert networks.result(SMALL, place) is None
    assert train(SMALL, place)["omega"] == whole["omega"]
    for damaged in ('{"cut o', "{}", "[1, 2]"):
        (place.runs / SMALL.name() / networks.RESULT).write_text(damaged)
        assert train(SMALL, place)["omega"] == whole["omega"]
    (place.runs / SMALL.name() / networks.MODEL).unlink()
    assert train(SMALL, place)["omega"] == whole["omega"]
    model = place.runs / SMALL.name() / networks.MODEL
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"must be a whole safetensors file, got .*; remove .*seed0.*trains it again"):
        load(SMALL, place)


def test_networks_of_other_data_are_not_taken_for_ones_of_these(place, monkeypatch):
    train(SMALL, place)
    digits = load_digits()
    other = DataSplit(
        digits.x_train, 9 - digits.y_train, digits.x_test, digits.y_test, class_names=digits.class_names, name="other"
    )
    monkeypatch.setattr(networks, "load_data", lambda *_: other)
    for cached in (networks.inputs, networks.checksum):
        cached.cache_clear()
    with pytest.raises(ValueError, match=r"must be of the data that are found now, got others in .*seed0"):
        train_all([SMALL], place)
    for cached in (networks.inputs, networks.checksum):
        cached.cache_clear()


def test_omega_has_its_own_learning_rate(place):
    slow = dataclasses.replace(SMALL, lr_omega=1e-9, omega_start=0.5, weight_decay=0.0)
    assert torch.tensor(train(slow, place)["omega"]).sub(0.5).abs().max() < 1e-6
    fast = dataclasses.replace(slow, lr_omega=0.1)
    assert torch.tensor(train(fast, place)["omega"]).sub(0.5).abs().max() > 1e-3


def test_a_limit_is_a_draw_and_no_first_part():
    drawn = networks._first(torch.arange(1000), 100)
    assert len(drawn.unique()) == 100
    assert 350 < float(drawn.double().mean()) < 650
    assert torch.equal(networks._first(torch.arange(1000), 50), drawn[:50])


def test_held_out_examples_are_in_no_training_and_the_test_set_is_not_looked_at(place, monkeypatch):
    # every row is its own number, and the test rows have others
    x = torch.arange(60.0)[:, None]
    y = torch.arange(60) % 2
    split = DataSplit(x[:50], y[:50], x[50:], y[50:], class_names=("a", "b"), name="numbers")
    monkeypatch.setattr(networks, "load_data", lambda *_: split)
    networks.inputs.cache_clear()
    held = inputs_of(dataclasses.replace(SMALL, train_limit=0, test_limit=0, held_out=20), place)
    kept, left_out = (
        {round(float(v)) for v in part[0] * held.standardizer.scale + held.standardizer.mean}
        for part in (held.train, held.test)
    )
    networks.inputs.cache_clear()
    assert len(left_out) == 20
    assert kept | left_out == set(range(50))
    assert not kept & left_out


@pytest.mark.slow
def test_networks_side_by_side_are_those_trained_in_turn(place, tmp_path):
    recipes = [dataclasses.replace(SMALL, seed=seed) for seed in (0, 1)]
    recipes.append(dataclasses.replace(SMALL, after=recipes[1], l1=0.05, epochs=1))
    said, say = lines()
    side_by_side = train_all(recipes[2:] + recipes[:1], place, jobs=2, say=say)
    assert len(said) == 3, "the network that another goes on from is trained too"
    in_turn = train_all(recipes[2:] + recipes[:1], Place(tmp_path / "other"), say=say)
    assert [found["omega"] for found in side_by_side] == [found["omega"] for found in in_turn]
    assert train_all(recipes, place, jobs=2, say=None)[2]["omega"] == side_by_side[0]["omega"]


def test_omega_as_relu_is_what_autograd_makes_of_it():
    torch.manual_seed(0)
    w0, target = draw(4, 6, seed=3), torch.rand(4, 6)
    assert 0.2 < float((w0 < 0).float().mean()) < 0.8
    w = w0.clone().requires_grad_()
    plain = torch.optim.SGD([w], lr=0.3, weight_decay=0.1)
    omega = torch.nn.Parameter(w0.clone())
    ours = ReluOmegaSGD([omega], lr=0.3, weight_decay=0.1)
    assert torch.equal(omega.detach(), w0.clamp(min=0))
    for _ in range(5):
        for weights, optimizer in ((w.relu(), plain), (omega, ours)):
            optimizer.zero_grad()
            (weights - target).square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(omega.detach(), w.detach().clamp(min=0))
    assert bool((omega[w0 < 0] == 0).all()), "what starts below zero never comes back"


@pytest.mark.parametrize(("l1", "group"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.8), (0.2, 0.5)])
def test_proximal_step_is_the_minimiser_that_defines_it(l1, group):
    generator = torch.Generator().manual_seed(1)
    before, gradient = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    omega = torch.nn.Parameter(before.clone())
    omega.grad = gradient.clone()
    ProximalSGD([omega], lr=0.5, weight_decay=0.1, l1=l1, group=group).step()
    middle = before - 0.5 * (gradient + 0.1 * before)

    def objective(point):
        price = l1 * point.sum() + group * torch.linalg.vector_norm(point, dim=0).sum()
        return float((point - middle).square().sum() / 2 + 0.5 * price)

    best = objective(omega.detach())
    assert omega.min() >= 0
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(300):
            other = (omega.detach() + scale * torch.randn(3, 4, generator=generator, dtype=torch.float64)).clamp(min=0)
            assert objective(other) >= best - 1e-12
    if group:
        assert bool((omega == 0).all(0).any())


def test_a_layer_shorter_than_its_price_is_closed_and_a_longer_one_shortened():
    omega = torch.nn.Parameter(torch.tensor([[0.3, 3.0], [0.0, 4.0]]))
    omega.grad = torch.zeros(2, 2)
    ProximalSGD([omega], lr=0.5, group=2.0).step()
    torch.testing.assert_close(omega.detach(), torch.tensor([[0.0, 2.4], [0.0, 3.2]]))


def test_proximal_sgd_without_a_price_is_projected_sgd():
    a, b = (torch.nn.Parameter(torch.tensor([[0.5, -0.2], [1.0, 0.1]])) for _ in range(2))
    for omega, optimizer in (
        (a, ProximalSGD([a], lr=0.3, weight_decay=0.1)),
        (b, torch.optim.SGD([b], 0.3, weight_decay=0.1)),
    ):
        omega.grad = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
        optimizer.step()
    torch.testing.assert_close(a.detach(), b.detach().clamp(min=0))
    with pytest.raises(ValueError, match=r"nftk.training.ProximalSGD: l1 must be finite and at least 0, got -1"):
        ProximalSGD([a], lr=0.1, l1=-1.0)


@pytest.mark.usefixtures("_stand_ins")
def test_table1_says_what_the_networks_do(place, tmp_path):
    said, say = lines()
    request = Request(place, seeds=2, say=say)
    record = table1.run(request)
    assert len(record.found["rows"]) == 16
    row = next(
        r for r in record.found["rows"] if (r["loss"], r["data"], r["depth"], r["model"]) == ("mse", "imdb", 2, "nftk")
    )
    recipes = [settings.row("imdb", 2, seed=seed, loss="mse") for seed in (0, 1)]
    accuracies, without = [], []
    for recipe in recipes:
        model, (x, y) = load(recipe, place), inputs_of(recipe, place).test
        accuracies.append(nftk.evaluate(model, (x, y)).accuracy)
        kept = [i for i in range(len(x)) if i not in (0, 3)]
        without.append(nftk.evaluate(model, (x[kept], y[kept])).accuracy)
    assert row["accuracies"] == accuracies
    assert row["without_duplicates"] == pytest.approx(without)
    assert row["mean"] == pytest.approx(sum(accuracies) / 2)
    assert row["deviation"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert spread(accuracies, 100) in record.markdown
    assert row["duplicates"] == 2
    assert "2 test reviews are training reviews too" in record.markdown
    papers = {row["model"]: row["paper"] for row in record.found["rows"] if (row["data"], row["depth"]) == ("mnist", 2)}
    assert papers == {"nftk": 97.25, "mlp": 96.89}
    assert record.markdown.count("| MNIST | 2 | NFT-K |") == 2
    for line in re.findall(r"^\| MNIST \| 2 \|.*$", record.markdown, re.MULTILINE):
        assert ("| 97.25 |" in line) is ("NFT-K" in line)
        assert ("| 96.89 |" in line) is ("MLP" in line)
    paths = record.write(tmp_path / "out", request)
    assert {path.name for path in paths} == {"table1.md", "table1.json", "table1.png"}
    assert re.search(r"(about \d+ minutes|less than a minute) left", said[0])
    assert "left" not in said[-1]
    assert json.loads((tmp_path / "out" / "table1.json").read_text())["seeds"] == 2
    count = len(said)
    table1.run(request)
    assert len(said) == count, "nothing is trained again"


@pytest.mark.usefixtures("_stand_ins")
def test_figure2_draws_the_networks_of_the_table(place, tmp_path):
    request = Request(place, say=lines()[1])
    record = figure2.run(request)
    assert [network["recipe"]["omega_start"] for network in record.found["networks"]] == [
        1.0,
        1.0,
        "uniform",
        "uniform",
    ]
    for network, depth in zip(record.found["networks"], (2, 3), strict=False):
        assert network["omega"] == load(settings.row("mnist", depth), place).omega.tolist()
    names = {path.name for path in record.write(tmp_path, request)}
    assert {"figure2-2-from-1.png", "figure2-3-from-uniform.png", "figure2.md", "figure2.json"} < names


def test_with_squares_omega_cannot_start_from_1(tmp_path, data_dir):
    """The reason for the start of settings.row; what docs/reproduction.md says of it."""
    recipe = settings.row("mnist", 10, loss="mse", epochs=1, train_limit=500, test_limit=100)
    assert recipe.omega_start == "uniform"
    place = Place(tmp_path / "runs", str(data_dir))
    with pytest.raises(FloatingPointError, match="loss must stay finite, got nan at epoch 1, step [1-9] of 10"):
        train(dataclasses.replace(recipe, omega_start=1.0), place)
    assert train(recipe, place)["test_loss"] < 10


@pytest.mark.usefixtures("_stand_ins")
def test_sparsity_tells_zeros_of_the_start_from_zeros_that_are_earned(place, monkeypatch, tmp_path):
    monkeypatch.setattr(sparsity, "PRICES", (0.0, 0.5, 20.0))
    request = Request(place, seeds=2, say=lines()[1])
    record = sparsity.run(request)
    for depth in (2, 3):
        by_form = {entry["form"][:3]: entry for entry in record.found["starts"] if entry["depth"] == depth}
        assert by_form["(a)"]["start"] == [0, 0]
        assert all(0.2 < share < 0.8 for share in by_form["(c)"]["start"])
        assert by_form["(c)"]["start"] == by_form["(b)"]["start"], "the same draw"
        ends, starts = by_form["(c)"]["end"], by_form["(c)"]["start"]
        assert all(end >= start for end, start in zip(ends, starts, strict=True))
        assert max(by_form["(b)"]["end"]) < min(by_form["(c)"]["start"])
        # none of the zeros of (c) opens again: those at the start are so many of those at the end
        assert by_form["(c)"]["from_start"] == pytest.approx([s / e for s, e in zip(starts, ends, strict=True)])
        zero = (load(settings.row("mnist", depth, **sparsity.FORMS[by_form["(b)"]["form"]]), place).omega == 0).sum()
        assert by_form["(b)"]["end"][0] == pytest.approx(int(zero) / (10 * depth))
    points = {(point["kind"], point["name"]): point for point in record.found["points"]}
    assert points["l1", "0"]["zeros_share"] == 0
    assert points["l1", "20"]["zeros_share"] == 1
    assert points["group", "20"]["closed_layers"] == [3, 3]
    assert points["group", "20"]["pruned_difference"] < 1e-5
    assert points["l1", "0"]["accuracies"] == points["group", "0"]["accuracies"], "one network for both paths"
    assert points["l1", "0"]["accuracies"] == points["l1", "0"]["accuracies_at_price"]
    for kind in sparsity.KINDS:
        for stage, price in enumerate(sparsity.PRICES):
            for seed, closed in enumerate(points[kind, f"{price:g}"]["closed_layers"]):
                omega = load(sparsity.path(kind, seed)[stage], place).omega
                assert closed == int((omega == 0).all(0).sum())
    assert max(points["constraint", "GroupSparse(max_layers=10)"]["closed_layers"]) == 0
    assert len(points["constraint", "Simplex(1)"]["accuracies"]) == sparsity.SET_SEEDS
    dense = sum(points["l1", "0"]["accuracies"]) / 2
    for one in record.found["earned"]["two layers closed"]:
        lost = dense - sum(points[one["kind"], one["price"]]["accuracies"]) / 2
        assert one["points_lost"] == pytest.approx(100 * lost)
        assert f"{one['kind']} penalty at {one['price']}, {100 * lost:+.2f} points" in record.markdown
    assert "(c) relu of free weights" in record.markdown
    record.write(tmp_path, request)
    assert (tmp_path / "sparsity.png").stat().st_size > 1000


def test_the_lowest_price_of_each_penalty_is_taken_whatever_the_accuracy():
    def point(kind, name, zeros, accuracy):
        return {"kind": kind, "name": name, "zeros_share": zeros, "accuracies": [accuracy, accuracy]}

    points = [
        point("l1", "0.1", 0.9, 0.8), point("l1", "0.03", 0.6, 0.7), point("l1", "0.003", 0.1, 0.9),
        point("group", "0.01", 0.5, 0.85), point("constraint", "Simplex(1)", 1.0, 0.99),
    ]  # fmt: skip
    best = sparsity._best(points, 0.9, lambda point: point["zeros_share"] >= 0.5)
    assert [(one["kind"], one["price"], round(one["points_lost"], 6)) for one in best] == [
        ("l1", "0.03", 20.0), ("group", "0.01", 5.0),
    ]  # fmt: skip
    assert sparsity._best(points, 0.9, lambda point: point["zeros_share"] > 2) == []


def test_zeros_that_are_held_stay_and_the_others_move():
    omega = torch.nn.Parameter(torch.tensor([[0.0, 0.5], [0.3, 0.0]]))
    omega.grad = torch.full((2, 2), -1.0)
    HeldZerosSGD([omega], lr=0.1, weight_decay=0.1).step()
    assert torch.allclose(omega.detach(), torch.tensor([[0.0, 0.595], [0.397, 0.0]]))


def test_a_network_trained_on_with_its_zeros_held(place):
    # half of the draw is negative, and steps so small open few entries again
    stage = dataclasses.replace(SMALL, omega_start="xavier", lr_omega=1e-5, l1=0.1)
    zeros = torch.tensor(train(stage, place)["omega"]) == 0
    assert 0 < int(zeros.sum()) < zeros.numel()
    end = sparsity.held(stage)
    assert (end.l1, end.group, end.after) == (0, 0, stage)
    omega = torch.tensor(train(end, place)["omega"])
    assert bool((omega[zeros] == 0).all())
    assert not torch.equal(omega, torch.tensor(train(stage, place)["omega"]))


@pytest.mark.usefixtures("_stand_ins")
def test_stability_says_what_a_rescaling_does_to_each_importance(place, tmp_path):
    request = Request(place, seeds=2, say=lines()[1])
    record = stability.run(request)
    rows = {(row["data"], row["depth"], row["kind"]): row for row in record.found["rows"]}
    assert len(rows) == 4 * len(stability.KINDS)
    assert min(rows["mnist", 3, "contribution"]["rescaled"]) == pytest.approx(1, abs=0.01)
    assert max(rows["mnist", 3, "omega"]["rescaled"]) < 0.9
    assert rows["mnist", 3, "ablation_loss"]["with_ablation"] == [1, 1]
    assert all(0 <= area <= 1 for row in rows.values() for area in row["area"])
    assert record.markdown.count("| contribution |") == 4
    for row in rows.values():
        values = [torch.tensor(found, dtype=torch.float64) for found in row["values"]]
        within = stability._within_layers(values)
        for name, found in (("over_seeds", values), ("classes_over_seeds", within)):
            again = nftk.interpret.stability(found)
            # a constant importance has no order
            assert row[name] == (None if again != again else pytest.approx(again)), name
    assert "2 seeds, 120 test examples (40 where" in record.markdown
    record.write(tmp_path, request)


def test_what_an_importance_says_of_single_classes():
    both = torch.tensor([[0.3, 0.7], [0.3 + 1e-9, 0.7]])
    (nothing,) = stability._within_layers([both])
    assert not nothing.any()
    (left,) = stability._within_layers([torch.tensor([[1.0, 5.0], [3.0, 5.0]])])
    assert left.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


@pytest.mark.usefixtures("_stand_ins")
def test_choice_looks_at_held_out_examples_alone(place, monkeypatch):
    asked = []
    real = networks.inputs
    monkeypatch.setattr(networks, "inputs", lambda *a: asked.append(a) or real(*a))
    record = choice.run(Request(place, say=lines()[1]))
    assert {held_out for *_, held_out in asked} == {300}
    assert len(record.found["rows"]) == 4 * 3
    assert len({tuple(row["accuracy"]) for row in record.found["rows"]}) > 6


def test_theorem1_keeps_its_networks(place, monkeypatch):
    monkeypatch.setattr(theorem1, "QUICK", (16, 32))
    said, say = lines()
    request = Request(place, seeds=1, quick=True, say=say)
    record = theorem1.run(request)
    assert record.found["widths"] == [16, 32]
    assert record.found["mean_errors"]["exact"][1] < 0.5
    monkeypatch.setattr(theorem1, "one", None)
    assert theorem1.run(request).found == record.found
    cells = re.findall(r"\d\.\d{3}", record.markdown)
    assert cells[0] == f"{record.found['mean_errors']['exact'][0]:.3f}"


def test_slope_is_the_power_of_the_width():
    assert theorem1.slope([1, 10, 100], [5.0, 0.5, 0.05]) == pytest.approx(-1)
    assert theorem1.slope([64, 256], [1.0, 0.5]) == pytest.approx(-0.5)


def test_a_table_and_a_spread_read_as_they_should():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert spread([0.9, 0.92], 100) == "91.00 ± 1.41"
    assert spread([0.5]) == "0.50"
    assert mean_and_deviation([2.0]) == (2.0, None)
