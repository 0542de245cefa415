"""KernelRidge as an estimator of scikit-learn's: what fit leaves, labels, scores, searches, and life without it."""

import copy
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from regression_problems import (
    draw,
    layers,
    rbf,
    ridge_problem,  # noqa: F401  (a fixture)
)
from torch import nn

import nftk

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def test_a_failed_refit_changes_nothing(problem):
    k, k_test, y = problem
    x, x_test = draw(30, 4), draw(7, 4, seed=1)
    for ridge, good, new in (
        (nftk.KernelRidge(0.1), k, k_test),
        (nftk.KernelRidge(0.1, omega=[1.0, 0.5]), layers("scalar"), layers("scalar", 7, 30)),
        (nftk.KernelRidge(0.1, kernel=rbf), x, x_test),
        (nftk.KernelRidge(0.1, kernel=rbf), x.numpy(), x_test.numpy()),
        (nftk.MultipleKernelRidge(0.1, kernel=lambda a, b: rbf(a, b)[None]), x, x_test),
    ):
        labels = y.argmax(1)
        ridge.fit(good, labels)
        before, state = ridge.predict(new), dict(vars(ridge))
        other = good[:20, :20] if getattr(ridge, "kernel", None) == "precomputed" else good[:20, :3]
        for bad in (torch.full((20,), math.nan), torch.ones(19), None):
            with pytest.raises(ValueError, match="y must"):
                ridge.fit(other, bad)
        with pytest.raises(ValueError, match="offset must have shape"):
            ridge.fit(other, y[:20], offset=y)
        assert set(vars(ridge)) == set(state)
        assert all(vars(ridge)[name] is value for name, value in state.items())
        assert (ridge.predict(new) == before).all()
    indefinite = torch.diag(torch.tensor([1.0, -1.0, 1.0]).double())
    ridge = nftk.KernelRidge(0.1).fit(k, y)
    before = ridge.predict(k_test)
    with pytest.raises(ValueError, match="positive semi-definite"):
        ridge.fit(indefinite, torch.ones(3))
    assert torch.equal(ridge.predict(k_test), before)


def test_parameters_set_after_fit_are_for_the_next_fit():
    x, x_test, labels = draw(30, 4), draw(7, 4, seed=1), draw(30, 3, seed=2).argmax(1)
    ridge = nftk.KernelRidge(0.1, kernel=rbf, kernel_params={"width": 2.0}).fit(x, labels)
    learned = nftk.MultipleKernelRidge(0.1, kernel="infinite", kernel_params={"depth": 2}).fit(x, labels)
    for fitted, others in (
        (ridge, {"kernel": "infinite", "kernel_params": {"depth": 2}, "omega": [1.0, 1.0], "task": "regression"}),
        (learned, {"kernel": "precomputed", "kernel_params": None, "task": "regression", "normalize": "trace"}),
    ):
        before, decided = fitted.outputs(x_test), fitted.predict(x_test)
        fitted.set_params(**others)
        assert torch.equal(fitted.outputs(x_test), before)
        assert torch.equal(fitted.decision_function(x_test), before)
        assert torch.equal(fitted.predict(x_test), decided)


def test_what_fit_was_given_may_change_afterwards():
    x, x_test, y = draw(20, 4), draw(7, 4, seed=1), draw(20, 2, seed=2)
    omega, params = torch.tensor([[1.0, 0.5], [0.2, 1.0]]).double(), {"depth": 2, "weight_var": [2.0, 1.0]}
    ridge = nftk.KernelRidge(0.1, "infinite", omega=omega, kernel_params=params).fit(x, y)
    before = ridge.predict(x_test)
    x.mul_(2)
    omega.mul_(2)
    params["weight_var"][0] = 1.0
    params["activation"] = "erf"
    assert torch.equal(ridge.predict(x_test), before)


def test_nothing_of_the_fit_before_is_left():
    """scikit-learn has feature_names_in_ of tables only, and n_features_in_ of matrices."""
    ridge = nftk.KernelRidge().fit(rbf(draw(20, 2), draw(20, 2)), draw(20))
    ridge.feature_names_in_ = np.array(["a"] * 20)
    ridge.fit(rbf(draw(9, 2), draw(9, 2)).expand(2, -1, -1), draw(9, 2))
    assert not hasattr(ridge, "feature_names_in_")
    assert not hasattr(ridge, "n_features_in_")


@pytest.mark.parametrize("weights", [np.arange(7.0), torch.arange(7), [0, 0, 0, 1, 2, 3, 0]])
def test_score_with_weights_is_that_of_scikit_learn(problem, weights):
    from sklearn.metrics import accuracy_score, r2_score

    k, k_test, y = problem
    ridge = nftk.KernelRidge(0.1).fit(k, y)
    want = r2_score(y[:7].numpy(), ridge.predict(k_test).numpy(), sample_weight=np.asarray(weights))
    assert ridge.score(k_test, y[:7], weights) == pytest.approx(want)
    assert ridge.score(k_test, y[:7], sample_weight=[2.0] * 7) == pytest.approx(ridge.score(k_test, y[:7]))
    labels = y.argmax(1)
    named = nftk.KernelRidge(0.1).fit(k, labels)
    want = accuracy_score(labels[:7], named.predict(k_test), sample_weight=np.asarray(weights))
    assert named.score(k_test, labels[:7], weights) == pytest.approx(want)
    learned = nftk.MultipleKernelRidge(0.1).fit(k[None], labels)
    want = accuracy_score(labels[:7], learned.predict(k_test[None]), sample_weight=np.asarray(weights))
    assert learned.score(k_test[None], labels[:7], weights) == pytest.approx(want)
    constant = torch.full((7,), 2.0).double()
    flat = nftk.KernelRidge(0.1).fit(k, y[:, 0])
    assert flat.score(k_test, constant, weights) == r2_score(constant, flat.predict(k_test), sample_weight=weights) == 0


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_score_of_huge_and_tiny_targets(problem, size):
    k, k_test, y = problem
    want = nftk.KernelRidge(0.1).fit(k, y).score(k_test, y[:7])
    assert nftk.KernelRidge(0.1).fit(k, size * y).score(k_test, size * y[:7]) == pytest.approx(want)


def test_labels(problem):
    k, k_test, y = problem
    for labels in (y.argmax(1), np.array(["a", "b", "c"])[y.argmax(1)], y.argmax(1).numpy() * 7 - 3):
        ridge = nftk.KernelRidge(0.1).fit(k, labels)
        one_hot = nn.functional.one_hot(y.argmax(1), 3).double()
        outputs = nftk.KernelRidge(0.1).fit(k, one_hot).predict(k_test)
        torch.testing.assert_close(ridge.outputs(k_test), outputs)
        assert list(ridge.predict(k_test)) == [ridge.classes_[i] for i in outputs.argmax(1)]
        assert ridge.score(k, labels) >= 0.9
        torch.testing.assert_close(ridge.decision_function(k_test), outputs)
    assert nftk.KernelRidge().fit(k, y.argmax(1)).predict(k_test).dtype is torch.int64
    binary = nftk.KernelRidge(0.1).fit(k, y[:, 0] > 0)
    assert binary.decision_function(k_test).shape == (7,)
    assert ((binary.decision_function(k_test) > 0) == binary.predict(k_test)).all()


def test_task_decides_over_the_dtype(problem):
    k, k_test, y = problem
    counts = torch.arange(30) % 5
    assert nftk.KernelRidge(task="regression").fit(k, counts).predict(k_test).dtype is torch.float64
    assert nftk.KernelRidge(task="classification").fit(k, counts.double()).classes_.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(AttributeError, match="labels only"):
        _ = nftk.KernelRidge(task="regression").decision_function
    with pytest.raises(ValueError, match="Unknown label type"):
        nftk.KernelRidge(task="classification").fit(k, y[:, 0])


def several(a, b):
    """A kernel for the checks, at module level so that it pickles."""
    return rbf(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["infinite", several], ids=["infinite", "callable"])
@pytest.mark.parametrize("task", ["auto", "classification", "regression"])
def test_estimator_checks(task, kernel):
    """All checks of scikit-learn's pass; what it skips needs pandas, or its array API switched on."""
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own data are hard on purpose
        found = check_estimator(nftk.KernelRidge(0.1, kernel=kernel, task=task), on_fail=None, on_skip=None)
    assert len(found) > 40
    assert [(r["check_name"], r["exception"]) for r in found if r["status"] not in ("passed", "skipped")] == []
    assert len([r for r in found if r["status"] == "skipped"]) <= 2


def test_grid_search_pipeline_clone_and_pickle():
    from sklearn.base import clone, is_classifier, is_regressor
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    x, y = x[:300], y[:300]
    ridge = nftk.KernelRidge(kernel=several, task="classification", omega=None)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), ridge),
        {"kernelridge__ridge": [1e-2, 1.0], "kernelridge__kernel_params": [None]},
        cv=3,
    ).fit(x[:200], y[:200])
    assert search.score(x[200:], y[200:]) > 0.85
    twin = clone(ridge.set_params(ridge=0.5, omega=torch.ones(2)))
    assert twin.ridge == 0.5
    assert torch.equal(twin.omega, torch.ones(2))
    assert is_classifier(ridge)
    assert not is_regressor(ridge)
    assert is_regressor(nftk.KernelRidge(task="regression"))
    # a precomputed kernel is cut in both its sides
    k = several(*[torch.from_numpy(x / 16)] * 2).numpy()
    assert cross_val_score(nftk.KernelRidge(0.01, task="classification"), k, y, cv=3).mean() > 0.85
    fitted = nftk.KernelRidge(0.01).fit(k, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict(k) == fitted.predict(k)).all()
    assert (copy.deepcopy(fitted).predict(k) == fitted.predict(k)).all()
    with pytest.raises(ValueError, match="a parameter must be one of 'ridge', .* got 'alpha'"):
        ridge.set_params(alpha=1.0)
    assert repr(nftk.KernelRidge(2.0, solver="cg")) == "KernelRidge(ridge=2.0, solver='cg')"


def test_works_without_scikit_learn():
    code = """
import sys
sys.modules["sklearn"] = None
import numpy as np, torch, nftk
k = np.eye(4)
ridge = nftk.KernelRidge(1.0)
try:
    ridge.predict(k)
except RuntimeError as error:
    assert "fitted" in str(error)
assert np.allclose(ridge.fit(k, np.arange(4.0)).predict(k), np.arange(4.0) / 2)
assert ridge.fit(k, ["a", "b", "a", "b"]).predict(k).tolist() == ["a", "b", "a", "b"]
assert ridge.score(k, ["a", "b", "a", "b"]) == 1.0
for bad in (np.full((4, 4), np.nan), np.eye(4)[:, :3], np.ones(4)):
    try:
        ridge.fit(bad, np.arange(4.0))
    except ValueError as error:
        assert str(error).startswith("nftk.KernelRidge"), error
    else:
        raise AssertionError(bad)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
