"""importance, its faithfulness, canonicalize and prune: against what can be counted by hand."""

import copy
import importlib
import warnings

import pytest
import torch
from torch.nn import functional

import nftk
from nftk import modules
from nftk.interpret import deletion_curve, rank_correlation, stability
from nftk.interpret import logit_parts as parts_module


@pytest.fixture(params=[None, 7], ids=["one batch", "batches of 7"])
def _rows(request, monkeypatch):
    """With small batches, what is merged across them is seen."""
    if request.param:
        monkeypatch.setattr(parts_module, "ENTRIES", request.param * 12)
        monkeypatch.setattr(importlib.import_module("nftk.modules.canonicalize"), "ENTRIES", request.param * 12)


def network(d=4, layers=3, seed=0, **keywords):
    torch.manual_seed(seed)
    omega = torch.rand(d, layers) + 0.1
    return nftk.NFTKMLP(5, [9] * layers, d, dtype=torch.float64, omega_init=omega, **keywords)


def data(n=60, d=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=generator).double(), torch.randint(d, (n,), generator=generator)


def rescaled(model, c):
    """The same function with other scales, both freedoms of the errata's number 6."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, v in enumerate(other.readout_weights()):
            v.div_(c[:, layer, None])
        other.omega.mul_(c)
        a, (first, second, *_), (v, *_) = 3.0, other.hidden, other.readout_weights()
        first.weight.mul_(a), v.div_(a), second.weight.div_(a)
        if first.bias is not None:
            first.bias.mul_(a)
    return other


def zeroed(model, i, layer):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.omega[i, layer] = 0
    return other


def test_omega_is_omega():
    model, (x, _) = network(), data()
    found = nftk.importance(model, x)
    assert torch.equal(found, model.omega.detach())
    found.zero_()
    assert model.omega.min() > 0


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("d", [1, 4])
def test_contribution_is_the_share_of_the_variance(d):
    model, (x, _) = network(d, output_bias=True), data()
    with torch.no_grad():
        f = model(x) if d == 1 else model(x) - model(x).mean(1, keepdim=True)
        said = model.readouts(x) * model.omega.T
        said = said if d == 1 else said - said.mean(2, keepdim=True)
    expected = torch.empty(d, 3).double()
    for i in range(d):
        for layer in range(3):
            expected[i, layer] = torch.cov(torch.stack([said[:, layer, i], f[:, i]]))[0, 1] / f[:, i].var()
    found = nftk.importance(model, x, kind="contribution")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(d).double(), rtol=1e-12, atol=0)


def test_contribution_survives_logits_far_from_zero():
    model, (x, _) = network(output_bias=True), data()
    near = nftk.importance(model, x, kind="contribution")
    with torch.no_grad():
        model.output_bias.fill_(1e6)
    torch.testing.assert_close(nftk.importance(model, x, kind="contribution"), near, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("measure", ["accuracy", "loss"])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_ablation_is_what_zeroing_each_entry_costs(d, measure, loss):
    model, (x, y) = network(d, output_bias=True), data(d=d)
    before = nftk.evaluate(model, (x, y), loss)
    expected = torch.empty(d, 3).double()
    for i in range(d):
        for layer in range(3):
            after = nftk.evaluate(zeroed(model, i, layer), (x, y), loss)
            expected[i, layer] = before.accuracy - after.accuracy if measure == "accuracy" else after.loss - before.loss
    found = nftk.importance(model, x, y, "ablation", measure=measure, loss=loss)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_of_equal_logits_the_first_is_the_answer_here_too():
    model = nftk.NFTKMLP(3, [3, 3], 3, activation="identity", bias=False, omega_init=1.0, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.hidden:
            layer.weight.copy_(torch.eye(3))
        for v in model.readout_weights():
            v.copy_(torch.eye(3))
    # logits tie before, after, and both
    x = torch.tensor([[1, 2, 2], [2, 1, 0], [1, 1, 1], [2, 1, 1], [0, 0, 0]]).double()
    for y in (torch.zeros(5).long(), torch.ones(5).long(), torch.full((5,), 2)):
        found = nftk.importance(model, x, y, "ablation")
        before = nftk.evaluate(model, (x, y)).accuracy
        for i in range(3):
            for layer in range(2):
                expected = before - nftk.evaluate(zeroed(model, i, layer), (x, y)).accuracy
                assert found[i, layer] == pytest.approx(expected, abs=1e-12)


def test_ablation_of_a_certain_answer_keeps_its_digits():
    model, (x, _) = network(), data()
    with torch.no_grad():
        model.readout_weight.mul_(300)
    y = model(x).argmax(1)
    expected = functional.cross_entropy(zeroed(model, 1, 2)(x), y) - functional.cross_entropy(model(x), y)
    found = nftk.importance(model, x, y, "ablation", measure="loss")
    assert found.isfinite().all()
    assert float(found[1, 2]) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["contribution", "ablation"])
def test_two_kinds_do_not_see_scales_and_omega_does(kind):
    model, (x, y) = network(), data()
    c = torch.linspace(0.2, 5, 12).view(4, 3).double()
    other = rescaled(model, c)
    torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        nftk.importance(other, x, y, kind, measure="loss"), nftk.importance(model, x, y, kind, measure="loss"),
        rtol=1e-9, atol=1e-11,
    )  # fmt: skip
    assert rank_correlation(nftk.importance(other, x), nftk.importance(model, x)) < 0.9


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_refit_lets_the_other_layers_make_up(loss):
    model, (x, y) = network(), data(200)
    # layers 2 and 3 say the same, so that either can stand in for the other
    with torch.no_grad():
        first, second, third = model.readout_weights()
        model.hidden[2].weight.copy_(torch.eye(9)), model.hidden[2].bias.zero_(), third.copy_(second)
    y = (model(x) + 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(2))).argmax(1)
    found = nftk.importance(model, x, y, "ablation", measure="loss", loss=loss, refit=True)
    assert found.shape == (4, 3)
    assert found.min() > -1e-6, "a fit with one entry less cannot be better"
    assert found[:, 1:].abs().max() < 1e-5, "what another layer says too is not lost"
    assert found[:, 0].max() > 1e-3
    accuracy = nftk.importance(model, x, y, "ablation", loss=loss, refit=True)
    assert accuracy[:, 1:].abs().max() <= 2 / 200


def test_refit_never_gains_by_a_constraint():
    # L-BFGS stops short of the minimum, here by 2e-10 at a tolerance of 1e-9
    model, (x, _) = network(layers=4, seed=1), data(60, seed=1)
    y = (model(x) + 0.3 * torch.randn(60, 4, generator=torch.Generator().manual_seed(1))).argmax(1)
    found = nftk.importance(model, x, y, "ablation", measure="loss", refit=True)
    assert found.min() >= -1e-14
    assert found.max() > 0


def test_refit_is_no_worse_than_the_network_without_the_entry():
    # labels that the readouts tell apart: the best factors of all are then large, and with one less a poor start
    torch.manual_seed(0)
    model, x = nftk.NFTKMLP(8, [16] * 5, 6).double(), torch.randn(300, 8).double()
    with torch.no_grad():
        model.omega.mul_(40)
        f = model(x)
    y = f.argmax(1)
    lost, refit = (nftk.importance(model, x, y, "ablation", measure="loss", refit=refit) for refit in (False, True))
    # the best fit with all entries has a loss of 0 at least, that without this one at most the network's without it
    assert (refit <= functional.cross_entropy(f, y) + lost).all()
    assert refit.max() > 1e-3


def test_refit_of_an_empty_network_is_quiet():
    model, (x, y) = network(), data()
    with torch.no_grad():
        model.omega.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nftk.importance(model, x, y, "ablation", measure="loss", refit=True).abs().max() == 0
        with torch.no_grad():
            model.omega[1, 2] = 0.5
        found = nftk.importance(model, x, y, "ablation", measure="loss", refit=True)
    assert found.count_nonzero() <= 1
    assert found.min() >= -1e-14


def test_refit_of_mse_is_non_negative_least_squares():
    from scipy.optimize import nnls

    model, (x, y) = network(), data(200)
    found = nftk.importance(model, x, y, "ablation", measure="loss", loss="mse", refit=True)
    said = model.readouts(x).detach().numpy()
    target = functional.one_hot(y, 4).double().numpy()
    for i in range(4):
        whole = nnls(said[:, :, i], target[:, i])[1] ** 2 / 200
        for layer in range(3):
            kept = [other for other in range(3) if other != layer]
            expected = nnls(said[:, kept, i], target[:, i])[1] ** 2 / 200 - whole
            assert float(found[i, layer]) == pytest.approx(expected, abs=1e-6)


def test_closed_entries_cost_nothing_and_stay_closed():
    model, (x, y) = network(), data(100)
    with torch.no_grad():
        model.omega[:, 1] = 0
        model.omega[2, 0] = 0
    for refit in (False, True):
        found = nftk.importance(model, x, y, "ablation", measure="loss", refit=refit)
        assert found[:, 1].abs().max() == 0
        assert found[2, 0] == 0
    assert nftk.importance(model, x, kind="contribution")[:, 1].abs().max() < 0.5


def test_importance_leaves_the_network_as_it_was():
    model, (x, y) = network(dropout=0.5), data()
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in ("omega", "contribution", "ablation"):
        assert torch.equal(nftk.importance(model, x, y, kind), nftk.importance(model, x, y, kind))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"model": torch.nn.Linear(5, 4)}, TypeError, "model must be an NFTKMLP, got Linear"),
        ({"x": torch.zeros(3, 6).double()}, ValueError, r"x must have shape \[n, 5\]"),
        ({"x": torch.zeros(0, 5).double()}, ValueError, "with n at least 1"),
        ({"x": torch.zeros(3, 5)}, TypeError, "x must be torch.float64"),
        ({"x": torch.full((60, 5), torch.nan).double()}, ValueError, "x must be finite"),
        ({"kind": "gradient"}, ValueError, "kind must be one of 'omega', 'contribution', 'ablation'"),
        ({"kind": "contribution", "refit": True}, ValueError, "refit must go with kind='ablation', got kind='contrib"),
        ({"refit": True}, ValueError, "refit must go with kind='ablation', got kind='omega'"),
        ({"kind": "ablation", "refit": "no"}, TypeError, "refit must be True or False, got 'no'"),
        ({"measure": "f1"}, ValueError, "measure must be one of"),
        ({"kind": "ablation", "y": None}, TypeError, "y must be an int64 tensor of labels, got NoneType"),
        ({"y": torch.zeros(60)}, TypeError, "got dtype torch.float32"),
        ({"y": torch.zeros(59).long()}, ValueError, r"y must have shape \[60\]"),
        ({"y": torch.full((60,), 4)}, ValueError, r"y must be in 0..3, got 4"),
        ({"kind": "contribution", "x": torch.ones(60, 5).double()}, ValueError, "every logit vary"),
    ],
)
def test_bad_input_ends_in_a_sentence(change, error, sentence):
    x, y = data()
    given = {"model": network(), "x": x, "y": y, "kind": "omega"} | change
    with pytest.raises(error, match=f"nftk.importance: .*{sentence}"):
        nftk.importance(**given)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("kind", ["omega", "contribution", "ablation"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_network_that_is_not_finite_is_refused(value, kind, refit):
    if refit and kind != "ablation":
        pytest.skip("refit is of ablation alone")
    x, y = data()
    broken = network()
    with torch.no_grad():
        broken.omega[2, 1] = value
    with pytest.raises(
        ValueError, match="nftk.importance: model must have a finite Omega, got a NaN or an infinity in"
    ):
        nftk.importance(broken, x, y, kind, refit=refit)
    for part in ("hidden", "bias"):
        broken = network(output_bias=True)
        with torch.no_grad():
            (broken.hidden[1].weight if part == "hidden" else broken.output_bias)[0] = value
        if kind == "omega":
            assert nftk.importance(broken, x).isfinite().all()
            continue
        with pytest.raises(
            ValueError, match="nftk.importance: model must give finite readouts and logits, .* in row 0"
        ):
            nftk.importance(broken, x, y, kind, refit=refit)
    with pytest.raises(ValueError, match="nftk.interpret.deletion_curve: model must give finite readouts and logits"):
        deletion_curve(broken, x, y, broken.omega)


@pytest.mark.usefixtures("_rows")
def test_the_row_that_is_not_finite_is_named():
    model, (x, _) = network(activation="identity"), data()
    x[33] = 1e308
    with pytest.raises(ValueError, match="in row 33"):
        nftk.importance(model, x, kind="contribution")


def test_contributions_of_two_classes_are_one_row():
    model, (x, _) = network(2), data()
    first, second = nftk.importance(model, x, kind="contribution")
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        model.omega[1] = 0
    assert nftk.importance(model, x, kind="contribution")[1].abs().min() > 0


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("output_bias", [False, True])
def test_deletion_curve_is_the_accuracy_of_each_smaller_network(output_bias):
    model, (x, y) = network(output_bias=output_bias), data()
    with torch.no_grad():
        model.omega[3, 1] = 0
        if output_bias:
            # of the logits' size, so that without it other answers win
            model.output_bias.copy_(model(x).std() * torch.tensor([0.5, -0.5, 1.0, 0.0]))
    ranking = nftk.importance(model, x, y, "ablation", measure="loss")
    curve = deletion_curve(model, x, y, ranking)
    other, expected = copy.deepcopy(model), [nftk.evaluate(model, (x, y)).accuracy]
    for entry in ranking.flatten().argsort(stable=True).tolist():
        i, layer = divmod(entry, 3)
        if other.omega[i, layer] == 0:
            continue
        with torch.no_grad():
            other.omega[i, layer] = 0
        expected.append(nftk.evaluate(other, (x, y)).accuracy)
    torch.testing.assert_close(curve.accuracy, torch.tensor(expected).double())
    assert curve.shares.tolist() == pytest.approx([step / 11 for step in range(12)])
    mean = sum((a + b) / 2 for a, b in zip(expected, expected[1:], strict=False)) / 11
    assert curve.area == pytest.approx(mean)


def test_rank_correlation_and_stability():
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert rank_correlation(a, a**3) == 1
    assert rank_correlation(a, -a, "kendall") == -1
    assert rank_correlation(a, torch.ones(2, 2)) != rank_correlation(a, torch.ones(2, 2))
    assert stability([a, a, -a]) == pytest.approx(-1 / 3)
    with pytest.raises(ValueError, match="importances must be at least two, got 1"):
        stability([a])
    with pytest.raises(
        TypeError, match="nftk.interpret.stability: importances must be a list of tensors, got generator"
    ):
        stability(a for _ in range(3))
    with pytest.raises(ValueError, match=r"importance must have shape \[2, 2\], got \[4\]"):
        rank_correlation(a, a.flatten())
    with pytest.raises(ValueError, match="got a NaN"):
        rank_correlation(a, a * torch.nan)


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("keywords", [{}, {"parameterization": "ntk"}], ids=["standard", "ntk"])
def test_canonicalize_takes_the_scales_away_and_leaves_the_function(keywords):
    model, (x, _) = network(**keywords), data()
    before = copy.deepcopy(model.state_dict())
    canonical = model.canonicalize(x)
    torch.testing.assert_close(canonical(x), model(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(canonical.readouts(x).std(0, correction=0), torch.ones(3, 4).double())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    c = torch.linspace(0.2, 5, 12).view(4, 3).double()
    again = rescaled(model, c).canonicalize(x)
    torch.testing.assert_close(again.omega, canonical.omega, rtol=1e-9, atol=0)


def test_canonicalize_leaves_a_constant_readout_alone():
    model, (x, _) = network(), data()
    with torch.no_grad():
        model.hidden[2].weight.zero_(), model.hidden[2].bias.fill_(0.3)
    canonical = model.canonicalize(x)
    assert torch.equal(canonical.omega[:, 2], model.omega[:, 2])
    torch.testing.assert_close(canonical(x), model(x))
    with pytest.raises(ValueError, match="with n at least 2"):
        model.canonicalize(x[:1])
    with pytest.raises(
        TypeError, match=r"data must be torch.float64 on cpu, as the model is, got torch.float32 on cpu"
    ):
        model.canonicalize(x.float())


def test_canonicalize_measures_in_eval_mode_and_keeps_the_mode():
    model, (x, _) = network(dropout=0.5).train(), data()
    canonical = model.canonicalize(x)
    assert canonical.training
    assert model.training
    torch.testing.assert_close(canonical.eval().readouts(x).std(0, correction=0), torch.ones(3, 4).double())
    assert not model.eval().canonicalize(x).training


def test_canonicalize_sees_a_deviation_that_is_small_beside_its_mean():
    model, (x, _) = network(), data()
    with torch.no_grad():
        model.hidden[2].bias.fill_(1e4)
    said = model.readouts(x)[:, 2]
    assert (said.std(0) < 1e-2 * said.mean(0).abs()).all()
    torch.testing.assert_close(model.canonicalize(x).readouts(x)[:, 2].std(0, correction=0), torch.ones(4).double())


@pytest.mark.parametrize("closed", [(), (2,), (0,), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keywords", [{}, {"output_bias": True}, {"parameterization": "ntk", "activation": "tanh"}])
def test_prune_computes_the_same_with_less(closed, keywords):
    model, (x, _) = network(**keywords), data()
    with torch.no_grad():
        model.omega[:, list(closed)] = 0
        model.omega[1] = 0
    small = model.prune()
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small(x[0]), model(x[0]), rtol=1e-12, atol=1e-12)
    still = [layer for layer in range(3) if layer not in closed]
    assert small.open_layers == tuple(still)
    assert len(small.hidden) == (max(still) + 1 if still else 0)
    assert len(small.readouts) == len(still)
    count = sum(p.numel() for p in small.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        model.hidden[0].weight.zero_()
    assert not torch.equal(small(x), model(x)) or not still
    restored = copy.deepcopy(small)
    restored.load_state_dict(small.state_dict())
    assert torch.equal(restored(x), small(x))


def test_prune_says_what_it_takes():
    with pytest.raises(ValueError, match=r"nftk.PrunedMLP: x must have shape \[..., 5\], got \[2, 4\]"):
        network().prune()(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="nftk.PrunedMLP: model must be an NFTKMLP, got list"):
        modules.PrunedMLP([1, 2])
    model, (x, _) = network(activation="tanh"), data()
    torch.testing.assert_close(modules.PrunedMLP(model)(x), model(x), rtol=1e-12, atol=1e-12)


def test_what_was_frozen_stays_so():
    model = network(output_bias=True)
    assert all(p.requires_grad for p in model.prune().parameters())
    for parameter in (model.omega, model.readout_weight, model.output_bias, *model.hidden[1].parameters()):
        parameter.requires_grad_(False)
    small = model.prune()
    trainable = {name for name, p in small.named_parameters() if p.requires_grad}
    assert trainable == {f"hidden.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")}
