"""KernelSurrogate against scikit-learn on explicit features, its own objective, and as scikit-learn's estimator."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

import nftk
from nftk.regression import KernelWarning
from nftk.regression.gram import weighted
from nftk.surrogate import KernelSurrogate
from nftk.surrogate.layer_weights import learn_weights
from nftk.surrogate.multinomial import Multinomial
from nftk.surrogate.penalty import choose, held_out

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(n=60, features=8, classes=3, seed=0):
    """Explicit features, labels that depend on them, and the same for 15 test examples."""
    x = draw(n + 15, features, seed=seed)
    y = (x @ draw(features, classes, seed=seed + 1) + 0.5 * draw(n + 15, classes, seed=seed + 2)).argmax(1)
    return x[:n], y[:n], x[n:], y[n:]


def layered(n=60, classes=3, speaks=1):
    """Three layers' kernels, of which one alone has to do with the labels."""
    x, y, x_test, _ = problem(n, classes=classes)
    layers = [draw(n + 15, 8, seed=30 + layer) for layer in range(3)]
    layers[speaks] = torch.cat((x, x_test))
    k = torch.stack([z[:n] @ z[:n].T for z in layers])
    k_test = torch.stack([z[n:] @ z[:n].T for z in layers])
    names = ("a", "b", "c")
    return nftk.LayerKernels(k, names, "trace", symmetric=True), nftk.LayerKernels(k_test, names, "trace"), y


def objective(k, target, alpha, b, penalty):
    f = k @ alpha + b
    loss = (f.logsumexp(1) - (target * f).sum(1)).mean()
    return loss + penalty / 2 * (alpha * (k @ alpha)).sum()


# ---------------------------------------------------------------- what is minimised


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-5])
def test_logistic_is_that_of_scikit_learn_on_the_features(penalty):
    from sklearn.linear_model import LogisticRegression

    x, y, x_test, _ = problem()
    ours = KernelSurrogate(penalty=penalty).fit(x @ x.T, y)
    theirs = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-12, max_iter=100000, solver="newton-cg")
    theirs.fit(x.numpy(), y.numpy())
    w = x.T @ ours.dual_coef_
    np.testing.assert_allclose(w.T, theirs.coef_, atol=1e-5, rtol=1e-5)
    # of an intercept the mean over classes is free
    np.testing.assert_allclose(ours.intercept_ - ours.intercept_.mean(), theirs.intercept_, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(x_test @ x.T), theirs.predict_proba(x_test.numpy()), atol=1e-6)
    assert ours.converged_
    assert ours.residual_ <= 1e-8


def test_of_two_classes_logistic_is_the_sigmoid_at_half_the_penalty():
    from sklearn.linear_model import LogisticRegression

    x, y, x_test, _ = problem(classes=2)
    ours = KernelSurrogate(penalty=0.02).fit(x @ x.T, y)
    theirs = LogisticRegression(C=1 / (len(x) * 0.01), tol=1e-12, max_iter=100000, solver="newton-cg")
    theirs.fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(ours.decision_function(x_test @ x.T), theirs.decision_function(x_test.numpy()), 1e-5)


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_no_direction_lowers_the_objective(soft):
    """The gradient in alpha and b, by autograd from the definition, of a kernel with rank to spare."""
    x, y, _, _ = problem(30)
    k = torch.exp(-torch.cdist(x, x).square() / 8)
    target = draw(30, 3, seed=7).softmax(1) if soft else torch.nn.functional.one_hot(y, 3).double()
    found = KernelSurrogate(penalty=1e-3, target="probabilities" if soft else "labels").fit(k, target if soft else y)
    alpha, b = found.dual_coef_.clone().requires_grad_(), found.intercept_.clone().requires_grad_()
    value = objective(k, target, alpha, b, 1e-3)
    value.backward()
    assert float(value.detach()) == pytest.approx(found.objective_, rel=1e-12)
    assert float(alpha.grad.abs().max()) < 1e-7
    assert float(b.grad.abs().max()) < 1e-7
    # where the gradient in f vanishes the coefficients are the residuals
    torch.testing.assert_close(alpha.detach(), (target - found.predict_proba(k)) / (30 * 1e-3), atol=1e-4, rtol=1e-4)


def test_probabilities_of_the_network_are_met_where_the_kernel_can():
    x, _, x_test, _ = problem(40, 4)
    truth = torch.cat((x, x_test)) @ draw(4, 3, seed=3) + draw(3, seed=4)
    p = truth.softmax(1)
    found = KernelSurrogate(penalty=1e-9, target="probabilities").fit(x @ x.T, p[:40])
    torch.testing.assert_close(found.predict_proba(x_test @ x.T), p[40:], atol=1e-5, rtol=1e-4)
    assert found.classes_.tolist() == [0, 1, 2]
    assert found.score(x_test @ x.T, p[40:]) == 1
    assert found.score(x_test @ x.T, p[40:].argmax(1)) == 1


def test_svm_of_two_classes_is_scikit_learns():
    from sklearn.svm import SVC

    x, y, x_test, _ = problem(classes=2)
    penalty = 1 / (len(x) * 0.7)
    ours = KernelSurrogate("svm", penalty).fit(x @ x.T, y)
    theirs = SVC(C=0.7, kernel="precomputed", tol=1e-5).fit((x @ x.T).numpy(), y.numpy())
    np.testing.assert_allclose(
        ours.decision_function(x_test @ x.T), theirs.decision_function((x_test @ x.T).numpy()), rtol=1e-9
    )
    hinge = np.maximum(0, 1 - (2 * y.numpy() - 1) * theirs.decision_function((x @ x.T).numpy())).mean()
    dual = np.zeros(len(x))
    dual[theirs.support_] = theirs.dual_coef_[0]
    assert ours.objective_ == pytest.approx(hinge + penalty / 2 * dual @ (x @ x.T).numpy() @ dual)


def test_svm_of_more_classes_is_one_against_the_rest():
    from sklearn.svm import SVC

    x, y, x_test, _ = problem(classes=4)
    ours = KernelSurrogate("svm", 0.01).fit(x @ x.T, y)
    for c in range(4):
        machine = SVC(C=1 / (len(x) * 0.01), kernel="precomputed", tol=1e-5).fit((x @ x.T).numpy(), (y == c).numpy())
        want = machine.decision_function((x_test @ x.T).numpy())
        np.testing.assert_allclose(ours.outputs(x_test @ x.T)[:, c], want, rtol=1e-5)
    with pytest.raises(AttributeError, match="predict_proba is there for estimator 'logistic' only, got 'svm'"):
        ours.predict_proba(x_test @ x.T)
    assert not hasattr(ours, "predict_proba")


def test_ridge_is_kernel_ridge():
    k, k_test, y = layered()
    ours = KernelSurrogate("ridge", 0.01, weights=[1.0, 4.0, 0.25]).fit(k, y)
    theirs = nftk.KernelRidge(60 * 0.01, omega=[1.0, 2.0, 0.5]).fit(k, y)
    torch.testing.assert_close(ours.outputs(k_test), theirs.outputs(k_test), rtol=1e-10, atol=1e-10)
    assert ours.intercept_.tolist() == [0] * 3
    chosen = KernelSurrogate("ridge").fit(k, y)
    best = nftk.KernelRidge("loo", omega=torch.ones(3)).fit(k, y)
    assert chosen.penalty_ == pytest.approx(best.ridge_ / 60)
    torch.testing.assert_close(chosen.outputs(k_test), best.outputs(k_test), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
def test_layers_add_up(estimator):
    k, k_test, y = layered()
    found = KernelSurrogate(estimator, 0.01, weights=[1.0, 0.5, 2.0]).fit(k, y)
    parts = torch.einsum("ic,l,lxi->lxc", found.dual_coef_, found.weights_, k_test.blocks)
    torch.testing.assert_close(found.layer_outputs(k_test), parts, rtol=0, atol=1e-10)
    torch.testing.assert_close(parts.sum(0) + found.intercept_, found.outputs(k_test), rtol=0, atol=1e-10)
    summed = KernelSurrogate(estimator, 0.01).fit(weighted(k.blocks, found.weights_), y)
    want = summed.outputs(weighted(k_test.blocks, found.weights_))
    torch.testing.assert_close(found.outputs(k_test), want, rtol=1e-6, atol=1e-6)
    assert found.layer_names_ == ("a", "b", "c")


@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
@pytest.mark.parametrize("classes", [2, 3])
def test_learned_weights_find_the_layer_that_speaks(estimator, classes):
    k, _, y = layered(n=120, classes=classes)
    found = KernelSurrogate(estimator, 1.0, weights="learned").fit(k, y)
    share = found.weights_ * k.diagonal().mean(1)
    assert share[1] / share.sum() > 0.8
    assert found.weights_.min() >= 0
    assert float(share.sum()) == pytest.approx(float(k.diagonal().mean(1).sum()))
    learned = found.learning_
    assert learned.converged
    assert all(later <= earlier for earlier, later in zip(learned.objectives, learned.objectives[1:], strict=False))
    assert learned.objectives[-1] == found.objective_
    plain = KernelSurrogate(estimator, 1.0).fit(k, y)
    assert plain.objective_ == pytest.approx(learned.objectives[0], rel=1e-6)
    assert found.objective_ < plain.objective_


@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
def test_the_gap_bounds_what_other_weights_reach(estimator):
    """No weights on a grid of the simplex are below the objective less the gap."""
    k, _, y = layered(n=30, classes=2)
    found = KernelSurrogate(estimator, 0.2, weights="learned").fit(k, y)
    scales = k.diagonal().mean(1)
    least = found.objective_ - found.learning_.gap
    for i in range(5):
        for j in range(5 - i):
            shares = torch.tensor([i, j, 4 - i - j], dtype=torch.float64) / 4
            other = KernelSurrogate(estimator, 0.2, weights=shares * scales.sum() / scales).fit(k, y)
            assert other.objective_ >= least - 1e-6


def test_a_layer_without_a_kernel_gets_no_weight():
    k, _, y = layered()
    blocks = torch.cat((k.blocks, torch.zeros(1, 60, 60).double()))
    found = KernelSurrogate(penalty=0.3, weights="learned").fit(blocks, y)
    assert found.weights_[3] == 0
    assert found.layer_names_[3] == "layer 4"


def test_learning_that_is_cut_short_says_so():
    k, _, y = layered()
    with pytest.warns(KernelWarning, match="fit stopped at weights that may be .* of the objective above the best"):
        found = KernelSurrogate("ridge", 0.3, weights="learned", max_iterations=1).fit(k, y)
    assert not found.converged_
    assert found.weights_.tolist() == [1, 1, 1]


def test_learn_weights_stops_where_fits_are_too_rough_to_go_on():
    from nftk.surrogate.multinomial import Solution

    k, _, y = layered(n=20)
    rough = Solution(draw(20, 3), torch.zeros(3).double(), 1.0)
    weights, _, learning = learn_weights(k.blocks, 0.1, lambda *_: rough, tolerance=1e-9, max_iterations=50)
    assert weights.tolist() == [1, 1, 1]
    assert not learning.converged
    assert learning.objectives == [1.0]


# ---------------------------------------------------------------- the penalty


@pytest.mark.parametrize("estimator", ["logistic", "svm"])
def test_penalty_by_validation(estimator):
    """Against fits of the part that is left, on the part held out."""
    x, y, _, _ = problem(n=80, features=12)
    k, tried = x @ x.T, [0.001, 0.1, 10.0, 1.0, 0.01]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)
        found = KernelSurrogate(estimator, penalties=tried, seed=3).fit(k, y)
    kept, out = held_out(y, 0.2, 3)
    assert found.selection_.penalties.tolist() == sorted(tried, reverse=True)[: len(found.selection_.penalties)]
    for penalty, loss in zip(found.selection_.penalties.tolist(), found.selection_.losses.tolist(), strict=True):
        part = KernelSurrogate(estimator, penalty).fit(k[kept][:, kept], y[kept])
        outer = k[out][:, kept]
        want = 1 - part.score(outer, y[out])
        if estimator == "logistic":
            want = -part.predict_proba(outer).log()[range(len(out)), y[out]].mean().item()
        # while it searches logistic stops at a gradient of 1e-4
        assert loss == pytest.approx(want, abs=1e-3)
    assert found.penalty_ == found.selection_.penalties[found.selection_.losses.argmin()]
    alone = KernelSurrogate(estimator, found.penalty_).fit(k, y)
    torch.testing.assert_close(found.dual_coef_, alone.dual_coef_)
    again = KernelSurrogate(estimator, penalties=tried, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)
        assert torch.equal(again.fit(k, y).dual_coef_, found.dual_coef_)


def test_held_out_takes_its_share_of_each_class():
    y = torch.tensor([0] * 50 + [1] * 10 + [2])
    kept, out = held_out(y, 0.2, 0)
    assert y[out].bincount(minlength=3).tolist() == [10, 2, 0]
    assert sorted(kept.tolist() + out.tolist()) == list(range(61))
    assert not torch.equal(out, held_out(y, 0.2, 1)[1])
    assert torch.equal(out, held_out(y, 0.2, 0)[1])


def test_choice_takes_the_largest_of_equals_and_stops():
    asked = []

    def loss(penalty):
        asked.append(penalty)
        return {8.0: 3.0, 4.0: 1.0, 2.0: 1.0, 1.0: 2.0, 0.5: 2.0, 0.25: 0.0}[penalty]

    found = choose("op", [0.25, 8.0, 4.0, 2.0, 1.0, 0.5], loss, given=True)
    assert found.penalty == 4.0
    assert asked == [8.0, 4.0, 2.0, 1.0]
    with pytest.warns(KernelWarning, match="the best penalty .* is 1, the smallest that was tried; other penalties"):
        choose("op", [2.0, 1.0], lambda penalty: penalty, given=True)
    with pytest.warns(KernelWarning, match="the largest that was tried; the kernel may not suit"):
        choose("op", [2.0, 1.0], lambda penalty: -penalty, given=False)


# ---------------------------------------------------------------- scikit-learn


def test_clone_grid_search_pipeline_and_pickle():
    from sklearn.base import clone, is_classifier
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KernelCenterer

    x, y = load_digits(return_X_y=True)
    x, y = x[:150] / 16, y[:150]
    k = x @ x.T
    surrogate = KernelSurrogate(penalty=0.01)
    assert is_classifier(surrogate)
    search = GridSearchCV(make_pipeline(KernelCenterer(), surrogate), {"kernelsurrogate__penalty": [1e-3, 1e-1]}, cv=3)
    assert search.fit(k, y).best_score_ > 0.8
    assert cross_val_score(surrogate, k, y, cv=3).mean() > 0.8
    twin = clone(surrogate.set_params(estimator="ridge", weights=torch.ones(1)))
    assert twin.get_params()["estimator"] == "ridge"
    assert repr(twin) == "KernelSurrogate(estimator='ridge', penalty=0.01, weights=tensor([1.]))"
    fitted = KernelSurrogate(penalty=0.01).fit(k, y)
    for again in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert (again.predict(k) == fitted.predict(k)).all()
    assert isinstance(fitted.predict(k), np.ndarray)
    named = KernelSurrogate(penalty=0.01).fit(k, np.array(list("abcdefghij"))[y])
    assert named.predict(k[:1])[0] in "abcdefghij"


NO_KERNELS = {
    "check_positive_only_tag_during_fit", "check_estimators_dtypes", "check_decision_proba_consistency",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["logistic", "ridge", "svm"])
def test_estimator_checks(estimator):
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(KernelSurrogate(estimator, 0.1), on_fail=None, on_skip=None)
    assert len(found) > 30
    wrong = {r["check_name"]: str(r["exception"]) for r in found if r["status"] not in ("passed", "skipped")}
    # these hand over what is no kernel: an indefinite matrix, one rounded to integers, raw inputs
    assert wrong.keys() <= NO_KERNELS
    assert all(
        "must be positive semi-definite" in said or "unexpectedly" in said or "square" in said
        for said in wrong.values()
    )


def test_kinds_of_kernels_agree():
    k, k_test, y = layered()
    want = KernelSurrogate(penalty=0.1).fit(k, y).outputs(k_test)
    as_tensor = KernelSurrogate(penalty=0.1).fit(k.blocks, y)
    torch.testing.assert_close(as_tensor.outputs(k_test.blocks), want)
    as_array = KernelSurrogate(penalty=0.1).fit(k.blocks.numpy(), y.numpy())
    np.testing.assert_allclose(as_array.outputs(k_test.blocks.numpy()), want)
    single = k.to(torch.float32)
    near = KernelSurrogate(penalty=0.1).fit(single, y)
    assert near.dual_coef_.dtype is torch.float64
    torch.testing.assert_close(near.outputs(k_test), want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"estimator": "tree"}, ValueError, "estimator must be one of 'logistic', 'svm', 'ridge', got 'tree'"),
        ({"target": "logits"}, ValueError, "target must be one of 'labels', 'probabilities', got 'logits'"),
        ({"weights": "omega"}, ValueError, "weights must be one of 'learned', got 'omega'"),
        ({"weights": [1.0]}, ValueError, r"weights must have shape \[3\], one a layer, got \[1\]"),
        ({"weights": [1.0, -1.0, 0.0]}, ValueError, r"weights must be finite and at least 0, got \[1.0, -1.0, 0.0\]"),
        ({"weights": object()}, TypeError, r"weights must be None, 'learned' or numbers \[L\], got object"),
        ({"weights": [0.0] * 3}, ValueError, "the kernel must have a diagonal above 0, got the mean 0"),
        ({"penalty": 0.0}, ValueError, "penalty must be finite and above 0, got 0.0"),
        ({"penalty": 1.0, "penalties": [1.0]}, ValueError, "penalties must go with penalty=None, got penalty 1.0"),
        ({"penalties": []}, ValueError, "penalties must hold at least one number, got none"),
        ({"penalties": "1"}, TypeError, "penalties must be a list of numbers, got '1'"),
        ({"penalties": [1.0, -2.0]}, ValueError, r"penalties\[1\] must be finite and above 0, got -2.0"),
        ({"validation": 1.0}, ValueError, "validation must be below 1, got 1.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be at least 1, got 0"),
        ({"tolerance": 0}, ValueError, "tolerance must be finite and above 0, got 0"),
    ],
)
def test_settings_that_cannot_be(settings, error, sentence):
    k, _, y = layered()
    with pytest.raises(error, match="nftk.KernelSurrogate: " + sentence):
        KernelSurrogate(**settings).fit(k, y)


def test_kernels_and_targets_that_cannot_be():
    k, k_test, y = layered()
    fit = KernelSurrogate(penalty=0.1).fit

    def refused(sentence, call, *arguments, error=ValueError):
        with pytest.raises(error, match="nftk.KernelSurrogate: " + sentence):
            call(*arguments)

    full = nftk.LayerKernels(torch.ones(1, 2, 2, 3, 3), ("a",), "full")
    refused(r"X must be kernels with one number a pair \(trace, sum_logits, scalar\), got 'full'", fit, full, y[:2])
    refused(r"the training kernel must be square, .* got shape \[15, 60\]", fit, k_test, y)
    refused("X must be finite, got NaN", fit, k.blocks * float("nan"), y)
    refused("the training kernel must be symmetric", fit, k.blocks[0].triu(), y)
    refused("the training kernel must be positive semi-definite, got the eigenvalue", fit, _indefinite(), y)
    refused(r"X must hold a kernel of at least one example", fit, torch.ones(1, 0, 0), y[:0])
    refused(r"y must have shape \[60\]", fit, k, y[:5])
    refused("y must have examples of at least 2 classes, got 1 class", fit, k, torch.zeros(60).long())
    refused("y must have shape|y must be labels", fit, k, draw(60, 3))
    soft = KernelSurrogate(penalty=0.1, target="probabilities").fit
    refused("y must be probabilities of shape .60, C., .* got int64", soft, k, y)
    refused("y must be probabilities, at least 0 with rows that sum to 1, got", soft, k, torch.rand(60, 3).double())
    fitted = fit(k, y)
    refused("X must have the layers, reduction and normalization that fit was given", fitted.predict, k_test.blocks)
    refused("the kernel must have 60 columns, one a training example, got 59", fitted.predict, k_test[:, :59])
    with pytest.raises(RuntimeError if False else Exception, match="must be fitted before it predicts"):
        KernelSurrogate().predict(k_test)
    refused(
        "a penalty must be given where no class has an example to hold out", KernelSurrogate().fit, torch.eye(2), [0, 1]
    )
    before = fitted.dual_coef_
    refused("y must", fitted.fit, k, y[:5])
    assert fitted.dual_coef_ is before


def _indefinite():
    return torch.diag(torch.linspace(-1, 10, 60, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
def test_an_indefinite_kernel_is_refused(estimator):
    x, y, _, _ = problem()
    k = x @ x.T
    fit = KernelSurrogate(estimator, 0.01).fit
    with pytest.raises(ValueError, match="the training kernel must be positive semi-definite, got the eigenvalue -"):
        fit(k - 2 * torch.eye(60), y)
    # rounding is none, of a kernel of rank 8 of 60
    fit(k.float(), y)
    fit(k - 1e-8 * torch.eye(60), y)


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 3.0, 1e20, 1e200])
@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
def test_the_scale_of_kernel_and_penalty_is_free(estimator, scale):
    k, k_test, y = layered()
    k, k_test = k.blocks, k_test.blocks
    for settings in ({"penalty": 0.01}, {"penalties": [0.01, 0.1, 1.0]}, {"penalty": 1.0, "weights": "learned"}):
        scaled = {name: value for name, value in settings.items() if name == "weights"}
        if "penalty" in settings:
            scaled["penalty"] = settings["penalty"] * scale
        else:
            scaled["penalties"] = [p * scale for p in settings["penalties"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KernelWarning)
            one = KernelSurrogate(estimator, **settings).fit(k, y)
            other = KernelSurrogate(estimator, **scaled).fit(k * scale, y)
        assert other.converged_ == one.converged_
        assert other.penalty_ == pytest.approx(one.penalty_ * scale)
        # where libsvm stops, to its tolerance
        near = {"rtol": 0, "atol": 1e-3 if estimator == "svm" else 1e-5}
        torch.testing.assert_close(other.outputs(k_test * scale), one.outputs(k_test), **near)
        torch.testing.assert_close(other.weights_, one.weights_, **near)
        assert other.objective_ == pytest.approx(one.objective_, rel=1e-4)


def test_what_does_not_converge_says_so():
    x, y, _, _ = problem()
    with pytest.warns(KernelWarning, match="fit stopped at a gradient of .*, above the tolerance 1.0e-30"):
        found = KernelSurrogate(penalty=1e-3, tolerance=1e-30).fit(x @ x.T, y)
    assert not found.converged_
    assert found.residual_ < 1e-10


def test_a_start_near_by_gives_the_same():
    x, y, _, _ = problem()
    made = Multinomial("op", x @ x.T, torch.nn.functional.one_hot(y, 3).double())
    cold = made.solve(0.01, tolerance=1e-9, max_iterations=500)
    warm = made.solve(
        0.01, tolerance=1e-9, max_iterations=500, start=made.solve(0.02, tolerance=1e-9, max_iterations=500)
    )
    torch.testing.assert_close(warm.alpha, cold.alpha, rtol=1e-6, atol=1e-5)
    assert warm.iterations < cold.iterations
