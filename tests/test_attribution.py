"""Attribution against its definition, refits without the examples, and planted poison."""

import math

import pytest
import torch

import nftk
from nftk.attribution import (
    Attribution,
    attribute,
    bottom_k,
    draw_subsets,
    find_poisoned,
    leave_one_out,
    linear_datamodeling_score,
    rank_agreement,
    retrain,
    self_influence,
    top_k,
)
from nftk.surrogate import KernelSurrogate

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network():
    """A trained network of three layers, its kernels in float64 and labels."""
    torch.manual_seed(0)
    x = torch.randn(90, 6, dtype=torch.float64)
    y = (x[:, :3] + x[:, 3:]).argmax(1)
    model = nftk.NFTKMLP(6, [16] * 3, 3).double()
    nftk.fit(model, (x[:70], y[:70]), epochs=5)
    k = nftk.empirical_ntk(model, x[:70], reduction="trace")
    k_test = nftk.empirical_ntk(model, x[70:], x[:70], reduction="trace")
    return k, k_test, y


@pytest.mark.parametrize("intercept", ["apart", "spread"])
@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
def test_scores_are_their_definition_and_add_up(network, estimator, intercept):
    k, k_test, y = network
    scale = float(k.diagonal().mean())
    surrogate = KernelSurrogate(estimator, 1e-3 * scale, weights=[1.0, 0.5, 2.0]).fit(k, y[:70])
    found = attribute(surrogate, k_test, intercept=intercept)
    want = torch.einsum("ic,l,lxi->lxic", surrogate.dual_coef_, surrogate.weights_, k_test.blocks)
    if intercept == "spread":
        want = want + surrogate.intercept_ / (70 * 3)
        assert found.intercept.tolist() == [0] * 3
    torch.testing.assert_close(found.by_layer(), want, rtol=0, atol=1e-12 * float(want.abs().max()))
    size = 1e-10 * float(surrogate.outputs(k_test).abs().max())
    torch.testing.assert_close(found.by_layer().sum(0), found.scores(), rtol=0, atol=size)
    f = surrogate.outputs(k_test)
    torch.testing.assert_close(found.scores().sum(1) + found.intercept, f, rtol=0, atol=size)
    assert found.error < size
    each = torch.arange(20) % 3
    torch.testing.assert_close(found.scores(each), found.scores()[torch.arange(20), :, each])
    torch.testing.assert_close(found.by_layer(1), found.by_layer()[..., 1])
    torch.testing.assert_close(found.scores(torch.tensor(1)), found.scores(1))
    supports, opposes = found.layer_totals()
    assert (supports >= 0).all()
    assert (opposes <= 0).all()
    chosen = found.by_layer(found.predicted)
    torch.testing.assert_close(supports + opposes, chosen.sum(2))
    assert found.names == k.names
    assert repr(found).startswith("Attribution(20 test and 70 training examples, 3 classes, 3 layers; sums meet")


def test_what_does_not_add_up_is_refused(network, monkeypatch):
    k, k_test, y = network
    surrogate = KernelSurrogate("ridge", 1.0).fit(k, y[:70])
    outputs = surrogate.outputs(k_test)
    outputs[4, 1] += 1e-6 * outputs.abs().max()
    monkeypatch.setattr(KernelSurrogate, "outputs", lambda self, x: outputs)
    with pytest.raises(RuntimeError, match="scores must add up to the surrogate's outputs, got .* in test example 4"):
        attribute(surrogate, k_test)
    outputs[4, 1] = float("nan")
    with pytest.raises(RuntimeError, match="in test example 4"):
        attribute(surrogate, k_test)


def test_ranks():
    scores = torch.tensor([[1.0, 3.0, -2.0, 3.0], [0.0, -1.0, 5.0, 2.0]])
    assert top_k(scores, 2).examples.tolist() == [[1, 3], [2, 3]]
    assert top_k(scores, 2).scores.tolist() == [[3.0, 3.0], [5.0, 2.0]]
    assert bottom_k(scores, 1).examples.tolist() == [[2], [1]]
    with pytest.raises(ValueError, match="attribution.top_k: k must be at most the number of training examples, 4"):
        top_k(scores, 5)
    with pytest.raises(TypeError, match="scores must have a floating dtype"):
        bottom_k(scores.long(), 1)
    made = Attribution(
        scores[None], torch.ones(1), torch.ones(4, 2) * torch.tensor([1.0, -1.0]), torch.zeros(2),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2), ("k",),
    )  # fmt: skip
    # of the predicted classes, 0 and 1
    assert made.top_k(1).examples.tolist() == [[1], [1]]
    assert made.bottom_k(1, class_=0).examples.tolist() == [[2], [1]]
    for wrong, sentence in ((2, "from 0 to 1, got 2"), (torch.tensor([0, 7]), "got 7"), (torch.ones(2), "an integer")):
        with pytest.raises(ValueError, match=sentence):
            made.scores(wrong)


def test_ranks_and_explanations_do_not_depend_on_the_intercept(network):
    k, k_test, y = network
    surrogate = KernelSurrogate(penalty=float(k.diagonal().mean())).fit(k, y[:70])
    surrogate.intercept_ = surrogate.intercept_ + 100
    apart, spread = (attribute(surrogate, k_test, intercept=how) for how in ("apart", "spread"))
    for which in ("top_k", "bottom_k"):
        assert torch.equal(getattr(apart, which)(5).examples, getattr(spread, which)(5).examples)
    one, other = (nftk.attribution.explain(each, 2, top=70) for each in (apart, spread))
    assert len(one.supporters.examples) < 70
    assert torch.equal(one.supporters.examples, other.supporters.examples)
    torch.testing.assert_close(one.layers_against, other.layers_against)
    torch.testing.assert_close(one.opposers_by_layer, other.opposers_by_layer)
    assert one.intercept == pytest.approx(other.intercept)


NAN, INFINITE = float("nan"), float("inf")


def test_scores_that_are_not_finite_are_refused(network):
    k, _, y = network
    surrogate = KernelSurrogate("ridge", 1.0).fit(k, y[:70])
    fine = torch.ones(2, 2)
    for call, sentence in (
        (lambda bad: top_k(bad, 1), "top_k: scores"),
        (lambda bad: bottom_k(bad, 1), "bottom_k: scores"),
        (lambda bad: find_poisoned(bad), "find_poisoned: suspects"),
        (lambda bad: find_poisoned(fine, bad), "find_poisoned: clean"),
        (lambda bad: leave_one_out(bad, fine, fine, 1.0), "leave_one_out: k_train"),
        (lambda bad: leave_one_out(fine, bad, fine, 1.0), "leave_one_out: k_test"),
        (lambda bad: leave_one_out(fine, fine, bad, 1.0), "leave_one_out: y"),
        (lambda bad: self_influence(surrogate, k.blocks * bad[0, 1], y[:70]), "self_influence: own"),
    ):
        for wrong in (NAN, INFINITE):
            with pytest.raises(ValueError, match=f"nftk.attribution.{sentence} must be finite, got NaN or infinity"):
                call(torch.tensor([[1.0, wrong], [wrong, 2.0]]))


@pytest.mark.parametrize("flat", [False, True])
def test_leave_one_out_is_what_refits_say(flat):
    x, x_test = draw(25, 4), draw(6, 4, seed=1)
    k, k_test = (torch.exp(-torch.cdist(z, x).square() / 8) for z in (x, x_test))
    y = draw(25, seed=2) if flat else draw(25, 3, seed=2)
    found = leave_one_out(k, k_test, y, 0.1)
    whole = nftk.KernelRidge(0.1).fit(k, y).predict(k_test)
    for i in range(25):
        kept = torch.arange(25) != i
        without = nftk.KernelRidge(0.1).fit(k[kept][:, kept], y[kept]).predict(k_test[:, kept])
        torch.testing.assert_close(found[:, i], whole - without, rtol=1e-8, atol=1e-11)


def test_leave_one_out_agrees_with_the_scores_of_a_surrogate(network):
    k, k_test, y = network
    scale = float(k.diagonal().sum(0).mean())
    surrogate = KernelSurrogate("ridge", 0.1 * scale).fit(k, y[:70])
    target = torch.nn.functional.one_hot(y[:70], 3).double()
    gram, gram_test = k.blocks.sum(0), k_test.blocks.sum(0)
    effects = leave_one_out(gram, gram_test, target, 70 * surrogate.penalty_)
    agreement = rank_agreement(attribute(surrogate, k_test).scores(0), effects[..., 0], resamples=100)
    assert agreement.mean.value > 0.8
    assert agreement.mean.low <= agreement.mean.value <= agreement.mean.high
    for wrong, error, sentence in (
        ((gram[:, :5], gram_test, target, 1.0), ValueError, r"k_train must have shape \[70, 70\]"),
        ((gram, gram_test, target.long(), 1.0), TypeError, "y must have a floating dtype"),
        ((gram.triu(), gram_test, target, 1.0), ValueError, "k_train must be symmetric"),
        ((gram, gram_test, target, -1.0), ValueError, "ridge must be finite and at least 0, got -1"),
        ((gram[0, 0], gram_test, target, 1.0), ValueError, r"k_train must have shape \[n, n\], got \[\]"),
        ((gram, gram_test[0, 0], target, 1.0), ValueError, r"k_test must have shape \[n_test, 70\], got \[\]"),
        ((gram, gram_test, target[0, 0], 1.0), ValueError, r"y must have shape \[70, C\], got \[\]"),
    ):
        with pytest.raises(error, match="nftk.attribution.leave_one_out: " + sentence):
            leave_one_out(*wrong)


def test_datamodeling_score_is_the_mean_of_scipys_correlations():
    stats = pytest.importorskip("scipy.stats")
    scores, subsets, outputs = draw(5, 30), draw_subsets(30, 12, seed=1), draw(12, 5, seed=3)
    found = linear_datamodeling_score(scores, subsets, outputs)
    want = [stats.spearmanr(subsets.double() @ scores[i], outputs[:, i]).statistic for i in range(5)]
    torch.testing.assert_close(found.correlations, torch.tensor(want))
    assert found.mean.value == pytest.approx(sum(want) / 5)
    assert found.mean.low < found.mean.value < found.mean.high
    exact = linear_datamodeling_score(scores, subsets, (subsets.double() @ scores.T).exp())
    assert exact.mean.value == pytest.approx(1)
    assert str(found).startswith(f"{found.mean.value:.4f} [")


def test_datamodeling_score_without_constant_outputs():
    scores, subsets, outputs = draw(3, 10), draw_subsets(10, 8), draw(8, 3)
    outputs[:, 1] = 2.0
    found = linear_datamodeling_score(scores, subsets, outputs)
    assert found.constant == 1
    assert math.isnan(found.correlations[1])
    assert found.mean.value == pytest.approx(float(found.correlations[[0, 2]].mean()))
    assert str(found).endswith("; 1 test examples left out, constant")


def test_subsets_and_retraining(capsys):
    subsets = draw_subsets(11, 6, alpha=0.3, seed=2)
    assert subsets.sum(1).tolist() == [3] * 6
    assert torch.equal(draw_subsets(11, 4, alpha=0.3, seed=2), subsets[:4])
    assert not torch.equal(draw_subsets(11, 6, alpha=0.3, seed=3), subsets)
    targets, seen = draw(11), []

    def train(examples):
        seen.append(examples.tolist())
        return targets[examples].mean() * torch.ones(2)

    outputs = retrain(train, subsets, progress=True)
    assert seen == [subset.nonzero().flatten().tolist() for subset in subsets]
    assert outputs.shape == (6, 2)
    assert "retrained: 100%" in capsys.readouterr().err
    sizes = iter(range(1, 9))
    for wrong, error, sentence in (
        (lambda kept: torch.tensor([float("nan")]), ValueError, "must be finite, got NaN or infinity for subset 0"),
        (lambda kept: kept, TypeError, "what train returns must have a floating dtype, got torch.int64"),
        (lambda kept: torch.ones(next(sizes)), ValueError, r"one shape, got \[2\] for subset 1 after"),
    ):
        with pytest.raises(error, match=sentence):
            retrain(wrong, subsets)
    with pytest.raises(TypeError, match="subsets must be a boolean tensor .m, n_train., got dtype torch.int64"):
        retrain(train, subsets.long())
    with pytest.raises(ValueError, match="alpha must leave some of 4 examples in and some out, got 0.99"):
        draw_subsets(4, 1, alpha=0.99)
    with pytest.raises(ValueError, match=r"outputs must have shape \[6, 2\], got \[6, 3\]"):
        linear_datamodeling_score(draw(2, 11), subsets, draw(6, 3))
    with pytest.raises(ValueError, match="at least two entries"):
        rank_agreement(draw(3, 1), draw(3, 1))
    with pytest.raises(ValueError, match="a must be finite"):
        rank_agreement(draw(3, 2) * float("inf"), draw(3, 2))


def test_scores_foretell_retrained_ridge():
    """With subsets of a surrogate's own training set the score is high, and that of shuffled scores is near 0."""
    x, x_test = draw(80, 5), draw(10, 5, seed=1)
    y = (x @ draw(5, 1, seed=2)).squeeze(1)
    k, k_test = x @ x.T, x_test @ x.T
    scores = k_test * nftk.KernelRidge(5.0).fit(k, y).dual_coef_[:, 0]
    subsets = draw_subsets(80, 60)

    def train(kept):
        return nftk.KernelRidge(5.0).fit(k[kept][:, kept], y[kept]).predict(k_test[:, kept])

    outputs = retrain(train, subsets)
    found = linear_datamodeling_score(scores, subsets, outputs)
    shuffled = scores[:, torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert found.mean.value > 0.2
    assert found.mean.low > linear_datamodeling_score(shuffled, subsets, outputs).mean.value


def test_self_influence_is_the_score_for_itself(network):
    k, _, y = network
    surrogate = KernelSurrogate(penalty=float(k.diagonal().mean()) * 1e-2).fit(k, y[:70])
    own = self_influence(surrogate, k, y[:70])
    at = torch.arange(70)
    want = attribute(surrogate, k).by_layer()[:, at, at, y[:70]]
    torch.testing.assert_close(own, want)
    torch.testing.assert_close(self_influence(surrogate, k.blocks, y[:70]), want)
    torch.testing.assert_close(self_influence(surrogate, k.diagonal(), y[:70].numpy()), want)
    weighed = KernelSurrogate(penalty=0.1, weights=[1.0, 0.5, 2.0]).fit(k, y[:70])
    want = attribute(weighed, k).by_layer()[:, at, at, y[:70]]
    torch.testing.assert_close(self_influence(weighed, k, y[:70]), want)
    torch.testing.assert_close(self_influence(weighed, k.blocks.numpy(), y[:70]), want)
    renamed = nftk.LayerKernels(k.blocks, ("a", "b", "c"), k.reduction)
    for wrong in (renamed, nftk.LayerKernels(k.blocks, k.names, "scalar"), k.normalize()):
        with pytest.raises(ValueError, match="own must have the layers, reduction and normalization that fit"):
            self_influence(weighed, wrong, y[:70])
    with pytest.raises(TypeError, match="self_influence: own must be LayerKernels, a tensor or an array, got list"):
        self_influence(weighed, [1.0], y[:70])
    one = KernelSurrogate(penalty=1.0).fit(k.blocks[0], y[:70])
    assert self_influence(one, k.blocks[0], y[:70]).shape == (1, 70)
    with pytest.raises(ValueError, match=r"y must be labels of the surrogate, \[0, 1, 2\], got 9"):
        self_influence(surrogate, k, torch.full((70,), 9))
    with pytest.raises(ValueError, match=r"own must have shape \[3, 70\]"):
        self_influence(surrogate, k.blocks[:, :5], y[:70])
    with pytest.raises(TypeError, match="surrogate must be a KernelSurrogate, got int"):
        self_influence(1, k, y[:70])
    with pytest.raises(TypeError, match="surrogate must be a KernelSurrogate, got int"):
        attribute(1, k)


def test_self_influence_of_as_many_layers_as_examples():
    """Diagonals ``(L, n)`` have the shape of a kernel then, and are none."""
    x = draw(3, 4, 4)
    k, y = x @ x.mT, torch.tensor([0, 1, 2, 1])
    k = torch.cat((k, torch.eye(4).double()[None]))
    surrogate = KernelSurrogate(penalty=0.1, weights=[1.0, 0.5, 2.0, 3.0]).fit(k, y)
    diagonals = k.diagonal(dim1=1, dim2=2)
    want = surrogate.dual_coef_[torch.arange(4), y] * surrogate.weights_[:, None] * diagonals
    torch.testing.assert_close(self_influence(surrogate, diagonals, y), want)
    torch.testing.assert_close(self_influence(surrogate, k, y), want)


def test_self_influence_finds_wrong_labels():
    x = torch.cat((draw(40, 2) * 0.3 + 1.5, draw(40, 2, seed=1) * 0.3 - 1.5))
    y = torch.arange(80) // 40
    wrong = torch.tensor([3, 50, 71])
    y[wrong] = 1 - y[wrong]
    k = torch.exp(-torch.cdist(x, x).square())
    own = self_influence(KernelSurrogate(penalty=0.01).fit(k, y), k, y)[0]
    assert sorted(top_k(own, 3).examples.tolist()) == wrong.tolist()


def test_poison_is_found_in_the_layer_that_sees_it():
    """Stamped training examples of class 0 say 1; the second of two layers sees the stamp alone."""
    n, poisoned = 120, torch.arange(120) % 10 == 0
    y = torch.arange(n) % 2
    content = draw(n, 3) * 0.3 + torch.tensor([1.0, 0.0, 0.0]) * (2 * y[:, None] - 1)
    stamp = poisoned.double()[:, None] * 2
    labels = torch.where(poisoned, 1, y)
    assert (y[poisoned] == 0).all()
    k = torch.stack((content @ content.T, stamp @ stamp.T))
    surrogate = KernelSurrogate(penalty=1e-2).fit(k, labels)
    test_content = draw(30, 3, seed=5) * 0.3 - torch.tensor([1.0, 0.0, 0.0])
    attribution = attribute(
        surrogate, torch.stack((test_content @ content.T, 2.0 * torch.ones(30, 1).double() @ stamp.T))
    )
    assert (attribution.predicted == 1).all()
    clean = attribute(surrogate, torch.stack((-test_content @ content.T, torch.zeros(30, n).double())))
    found = find_poisoned(attribution.scores(1), clean.scores(1))
    precision, recall = found.precision_recall(poisoned, 12)
    assert (float(precision), float(recall)) == (1, 1)
    curve = found.precision_recall(poisoned)
    assert curve[0].shape == curve[1].shape == (n,)
    assert float(curve[1][-1]) == 1
    assert float(curve[0][-1]) == pytest.approx(0.1)
    content_says, stamp_says = attribution.by_layer(1).sum(2)
    assert (stamp_says > 0).all()
    assert (content_says < 0).all()
    # shares of 2/3 and 1/4 for the first, of 1/3 and 3/4 for the second, however large the scores
    of_sizes = find_poisoned(torch.tensor([[2e6, 1e6], [1.0, 3.0]]))
    torch.testing.assert_close(of_sizes.scores, torch.tensor([11 / 24, 13 / 24]).double())
    assert of_sizes.order.tolist() == [1, 0]
    # nor do clean scores, of 1/2, 1/2 and 0 here
    apart = find_poisoned(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[4e6, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(apart.scores, torch.tensor([0, -0.25, 0.25]).double())
    assert apart.order.tolist() == [2, 0, 1]
    for wrong, error, sentence in (
        ((poisoned.long(),), TypeError, "poisoned must be a boolean tensor"),
        ((torch.zeros(n).bool(),), ValueError, "poisoned must have an example that is, got none of 120"),
        ((poisoned, n + 1), ValueError, "k must be at most 120, got 121"),
    ):
        with pytest.raises(error, match=sentence):
            found.precision_recall(*wrong)
    with pytest.raises(ValueError, match="suspects must hold at least one example"):
        find_poisoned(torch.ones(0, 4))
    with pytest.raises(ValueError, match=r"clean must have shape \[n_clean, 4\], got \[1, 3\]"):
        find_poisoned(torch.ones(1, 4), torch.ones(1, 3))
