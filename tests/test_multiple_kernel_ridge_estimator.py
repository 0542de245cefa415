"""MultipleKernelRidge as an estimator of scikit-learn's: refits, progress, checks and searches, and what it refuses."""

import math
import warnings

import pytest
import torch
from regression_problems import (
    draw,
    kernels,
    layered_problem,  # noqa: F401  (a fixture)
)

import nftk
from nftk import constraints


def test_progress(data):
    _, k, y = data
    told = []
    nftk.MultipleKernelRidge(0.1, progress=lambda done, total: told.append((done, total))).fit(k, y)
    assert told == [(1, 3), (2, 3), (3, 3)]


class Negative:
    def project_(self, omega):
        return omega.fill_(-1.0)


@pytest.mark.parametrize(
    ("settings", "change", "text"),
    [
        ({"ridge": 0.0}, {}, "ridge must be finite and above 0"),
        ({"constraint": "nonnegative"}, {}, "must be a bounded set .*'nonnegative': larger weights always lower"),
        ({"constraint": constraints.GroupSparse(max_layers=2)}, {}, "must be a bounded set"),
        ({"constraint": "none"}, {}, "constraint must be a set of non-negative weights, got none"),
        ({"constraint": "ball"}, {}, "constraint must be one of"),
        ({"constraint": Negative()}, {}, "must have non-negative, finite points only"),
        ({"objective": "aic"}, {}, "objective must be one of 'regularized', 'loo'"),
        ({"normalize": "cosine"}, {}, "normalize must be one of 'trace'"),
        ({"normalize": "trace"}, {"k": torch.zeros(2, 40, 40).double()}, "every kernel must have a trace above 0"),
        ({"tolerance": 0.0}, {}, "tolerance must be finite and above 0"),
        ({"max_iter": 0}, {}, "max_iter must be at least 1"),
        ({}, {"k": draw(2, 40, 39)}, "must be square"),
        ({}, {"k": draw(2, 40, 40)}, "kernel of layer 1 must be symmetric, got entries"),
        ({"per_class": 1}, {}, "per_class must be True, False or None, got 1"),
        ({"max_iter": 2.5}, {}, "max_iter must be an integer, got 2.5"),
        ({"kernel": "infinite", "kernel_params": "depth"}, {"k": draw(40, 3)}, "must be a dictionary, got str"),
        (
            {"objective": "loo"},
            {"k": torch.ones(2, 1, 1).double(), "y": torch.ones(1)},
            "at least 2 examples for objective 'loo', got n_samples = 1",
        ),
        ({}, {"k": torch.ones(2, 0, 0).double()}, "X must hold a kernel of at least one example"),
        ({}, {"k": draw(2, 3, 40, 40)}, r"must have shape \[L, n1, n2\], one matrix a layer"),
        ({}, {"k": torch.full((2, 40, 40), math.nan)}, "kernels must be finite"),
        ({}, {"y": draw(39, 3)}, r"y must have shape \[40\] or \[40, d\]"),
    ],
)
def test_errors(data, settings, change, text):
    given = {"k": data[1], "y": data[2]} | change
    with pytest.raises((ValueError, TypeError), match=text):
        nftk.MultipleKernelRidge(**settings).fit(given["k"], given["y"])


def test_layer_kernels_of_nan_are_refused():
    k = nftk.LayerKernels(torch.full((2, 5, 5), torch.nan), ("a", "b"), "scalar")
    with pytest.raises(ValueError, match="kernels must be finite, got NaN or infinity"):
        nftk.MultipleKernelRidge().fit(k, torch.ones(5))


def test_a_failed_refit_changes_nothing(data):
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1).fit(k, y)
    state = dict(vars(learned))
    for kernels_, targets in ((k[:2], draw(39, 3)), (-k, y), (k[:2] * math.nan, y.argmax(1))):
        with pytest.raises(ValueError, match="must"):
            learned.fit(kernels_, targets)
        assert set(vars(learned)) == set(state)
        assert all(vars(learned)[name] is value for name, value in state.items())


def test_errors_before_fit_and_of_outputs(data):
    _, k, y = data
    with pytest.raises(AttributeError, match="omega is learned by fit"):
        _ = nftk.MultipleKernelRidge().omega
    layered = nftk.LayerKernels(k[..., None].expand(-1, -1, -1, 2), tuple("abcd"), "diagonal", symmetric=True)
    with pytest.raises(ValueError, match="y must have 2 columns, as the kernels, got 3"):
        nftk.MultipleKernelRidge().fit(layered, y)
    with pytest.raises(ValueError, match="per_class must be True or None for 'diagonal'"):
        nftk.MultipleKernelRidge(per_class=False).fit(layered, y[:, :2])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["infinite", kernels], ids=["infinite", "callable"])
@pytest.mark.parametrize("task", ["auto", "classification", "regression"])
def test_estimator_checks(task, kernel):
    """All checks of scikit-learn's pass; what it skips needs pandas, or its array API switched on."""
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is an optional package")
    estimator = nftk.MultipleKernelRidge(0.1, kernel=kernel, task=task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own data are hard on purpose
        found = checks.check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(found) > 40
    assert [(r["check_name"], r["exception"]) for r in found if r["status"] not in ("passed", "skipped")] == []
    assert len([r for r in found if r["status"] == "skipped"]) <= 2


def test_grid_search_and_pipeline():
    pytest.importorskip("sklearn", reason="scikit-learn is an optional package")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    ridge = nftk.MultipleKernelRidge(kernel=kernels, task="classification", per_class=False, tolerance=1e-2)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), ridge), {"multiplekernelridge__ridge": [1e-2, 1.0]}, cv=2
    ).fit(x[:150], y[:150])
    assert search.score(x[150:300], y[150:300]) > 0.8
    assert search.best_estimator_[-1].omega_.shape == (10, 4)
