"""The support vector machine where libsvm does not end, and what of it learned weights rest on."""

import time
import warnings

import pytest
import torch

from nftk.regression import KernelWarning
from nftk.surrogate import KernelSurrogate

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def contradicting(n=30):
    """A kernel of five directions, and labels that have nothing to do with it."""
    x = draw(n, 5)
    return x @ x.T, torch.arange(n) % 3


def test_libsvm_is_stopped_where_it_does_not_end():
    k, y = contradicting()
    start = time.monotonic()
    with pytest.warns(
        KernelWarning, match="fit stopped at libsvm's bound of 200000 steps, in 3 of 3 machines"
    ) as caught:
        found = KernelSurrogate("svm", 1e-8).fit(k, y)
    assert [w.category for w in caught] == [KernelWarning]
    assert time.monotonic() - start < 20
    assert not found.converged_
    assert torch.isfinite(found.outputs(k)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KernelSurrogate("svm", 0.1).fit(k, y).converged_


def test_max_iterations_bounds_libsvm():
    k, y = contradicting()
    with pytest.warns(KernelWarning, match="libsvm's bound of 200 steps, in 3 of 3 machines"):
        found = KernelSurrogate("svm", 1e-4, max_iterations=1).fit(k, y)
    assert not found.converged_
    with pytest.warns(KernelWarning, match="libsvm's bound of 400 steps, in 1 of 1 machines"):
        KernelSurrogate("svm", 1e-4, max_iterations=2).fit(k, y == 1)
    x = draw(2100, 2)
    with pytest.warns(KernelWarning, match="libsvm's bound of 210 steps"):
        KernelSurrogate("svm", 1e-3, max_iterations=1).fit(x @ x.T, torch.arange(2100) % 2)
    # beyond what a C int holds
    assert KernelSurrogate("svm", 0.1, max_iterations=10**12).fit(k, y).converged_


def test_the_search_ends_where_libsvm_stops():
    k, y = contradicting()
    with pytest.warns(KernelWarning) as caught:
        found = KernelSurrogate("svm", penalties=[1.0, 1e-3, 1e-7, 1e-8]).fit(k, y)
    told = [str(w.message) for w in caught if "the search of the penalty ended" in str(w.message)]
    assert len(told) == 1
    assert "ended at 1e-07, where a fit stopped at libsvm's bound of 200000 steps" in told[0]
    assert "smaller ones are not tried" in told[0]
    assert found.selection_.penalties.tolist() == [1.0, 1e-3, 1e-7]


def test_of_two_classes_the_energy_is_that_of_the_machine():
    """The slope of the least objective in a weight is -penalty / 2 times energy tr(alpha^T K_l alpha)."""
    from nftk.surrogate.support_vectors import support_vectors

    x, z = draw(40, 4), draw(40, 3, seed=1)
    y = (x[:, 0] + 0.3 * draw(40, seed=2) > 0).long()
    k, other, penalty, step = x @ x.T, z @ z.T, 0.05, 1e-3

    def least(weight):
        return support_vectors(k + weight * other, y, 2, penalty, tolerance=1e-8, seed=0, max_iterations=1000)

    at = least(0.5)
    slope = (least(0.5 + step).objective - least(0.5 - step).objective) / (2 * step)
    says = -penalty / 2 * at.energy * float((at.alpha * (other @ at.alpha)).sum())
    assert says == pytest.approx(slope, rel=0.02)
    # the norm that the machine's own objective has
    hinge = (1 - (2 * y - 1) * ((k + 0.5 * other) @ at.alpha + at.intercept).diff(dim=1)[:, 0]).clamp(min=0).mean()
    norm = at.energy * float((at.alpha * ((k + 0.5 * other) @ at.alpha)).sum())
    assert float(hinge) + penalty / 2 * norm == pytest.approx(at.objective, rel=1e-6)
