"""The ridge that KernelRidge chooses, by leave-one-out and by generalised cross-validation, against brute force."""

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

import nftk
from nftk.regression import KernelWarning

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def brute_force(k, y, ridge, d=1):
    """Mean squared leave-one-out error by leaving each example out; a joint kernel's examples have d rows."""
    n, total = len(k) // d, 0.0
    for i in range(n):
        out = torch.arange(i * d, i * d + d)
        kept = torch.tensor([j for j in range(len(k)) if j not in out])
        system = k[kept][:, kept] + ridge * torch.eye(len(kept)).double()
        total += float((y[out] - k[out][:, kept] @ torch.linalg.solve(system, y[kept])).square().sum())
    return total / n


@pytest.mark.parametrize("form", ["shared", "by output", "joint"])
def test_leave_one_out_is_exact(problem, form):
    k, _, y = problem
    grid = [1e-3, 1e-2, 0.1, 1.0, 10.0]
    if form == "shared":
        given, want = k, [brute_force(k, y, r) for r in grid]
    elif form == "by output":
        given = layers("diagonal", depth=1).blocks[0].movedim(-1, 0)
        want = [sum(brute_force(given[i], y[:, i : i + 1], r) for i in range(3)) for r in grid]
    else:
        given = layers("full", depth=1).blocks[0]
        matrix = given.permute(0, 2, 1, 3).reshape(90, 90)
        want = [brute_force(matrix, y.reshape(-1, 1), r, 3) for r in grid]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)  # of a best at the end of the grid
        ridge = nftk.KernelRidge("loo", ridges=grid).fit(given, y)
    torch.testing.assert_close(ridge.selection_.errors, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=0)
    assert ridge.ridge_ == grid[int(np.argmin(want))]
    fixed = nftk.KernelRidge(ridge.ridge_).fit(given, y)
    torch.testing.assert_close(ridge.dual_coef_, fixed.dual_coef_, rtol=1e-8, atol=1e-9)


def test_gcv_is_its_definition(problem):
    k, _, y = problem
    grid = [1e-2, 0.1, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)
        found = nftk.KernelRidge("gcv", ridges=grid).fit(k, y).selection_.errors
    for ridge, error in zip(grid, found.tolist(), strict=True):
        hat = k @ torch.linalg.inv(k + ridge * torch.eye(30).double())
        rest = torch.eye(30).double() - hat
        assert error == pytest.approx(float((rest @ y).square().sum() / 30 / (rest.trace() / 30) ** 2), rel=1e-8)


def test_gcv_of_outputs_has_a_leverage_each(problem):
    """The error of each output by its own trace; that of outputs that are tied by the trace of them all."""
    y = problem[2]
    for form in ("diagonal", "full"):
        blocks = layers(form, depth=1).blocks[0]
        given = blocks.movedim(-1, 0) if form == "diagonal" else blocks
        pieces = given if form == "diagonal" else given.permute(0, 2, 1, 3).reshape(1, 90, 90)
        targets = y.T[..., None] if form == "diagonal" else y.reshape(1, 90, 1)
        want = []
        for ridge in (1e-2, 0.1, 1.0):
            size = pieces.shape[-1]
            rests = [torch.eye(size).double() - k @ torch.linalg.inv(k + ridge * torch.eye(size)) for k in pieces]
            each = [
                (rest @ t).square().sum() / 30 / (rest.trace() / size) ** 2
                for rest, t in zip(rests, targets, strict=True)
            ]
            want.append(float(sum(each)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KernelWarning)
            found = nftk.KernelRidge("gcv", ridges=[1e-2, 0.1, 1.0]).fit(given, y).selection_.errors
        np.testing.assert_allclose(found, want, rtol=1e-8)


def test_eigenvalues_that_rounding_left_below_zero_are_zero():
    """In the errors and in the coefficients: at a ridge below them the sign of K + rho I would turn."""
    below, y = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64)), torch.ones(3).double()
    for how in ("loo", "gcv"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KernelWarning)
            found = nftk.KernelRidge(how, ridges=[1e-12, 1e-10]).fit(below, y)
            want = nftk.KernelRidge(how, ridges=[1e-12, 1e-10]).fit(below.clamp(min=0), y)
        torch.testing.assert_close(found.selection_.errors, want.selection_.errors)
        torch.testing.assert_close(found.dual_coef_, want.dual_coef_)


@pytest.mark.parametrize("how", ["loo", "gcv"])
def test_a_choice_without_grounds(problem, how):
    """Of ridges that are all as good the largest is taken, and told; one example leaves none to be predicted from."""
    k, k_test, _ = problem
    zeros = torch.zeros(30).double()
    for ridges in (None, [0.0, 1.0, 1e-3]):
        with pytest.warns(KernelWarning, match=f"every ridge has the same error by '{how}'") as told:
            found = nftk.KernelRidge(how, ridges=ridges).fit(k, zeros)
        assert len(told) == 1
        assert found.ridge_ == found.selection_.ridges.max()
        assert found.predict(k_test).tolist() == [0.0] * 7
    with pytest.warns(KernelWarning, match="every ridge has the same error"):
        assert nftk.KernelRidge(how, ridges=[0.5, 2.0]).fit(0 * k, zeros + 1).ridge_ == 2
    with pytest.raises(ValueError, match=f"X must have at least 2 examples for ridge '{how}', got n_samples = 1"):
        nftk.KernelRidge(how).fit(k[:1, :1], zeros[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nftk.KernelRidge(how, ridges=[0.5]).fit(k, zeros).ridge_ == 0.5


@pytest.mark.parametrize("power", [1000, -1000])
def test_a_choice_for_huge_and_tiny_targets(problem, power):
    k, _, y = problem
    for how in ("loo", "gcv"):
        found, want = (nftk.KernelRidge(how).fit(k, scale * y) for scale in (2.0**power, 1.0))
        assert found.ridge_ == want.ridge_
        assert torch.equal(found.dual_coef_, 2.0**power * want.dual_coef_)


def test_continuous_choice_is_no_worse_than_a_fine_grid():
    x = draw(40, 2)
    y = torch.sin(2 * x[:, 0]) + 0.3 * draw(40, seed=5)
    for how in ("loo", "gcv"):
        free = nftk.KernelRidge(how, kernel=rbf).fit(x, y)
        grid = np.logspace(-4, 2, 400).tolist()
        best = nftk.KernelRidge(how, kernel=rbf, ridges=grid).fit(x, y).selection_.errors.min()
        assert free.selection_.errors.min() <= best * (1 + 1e-9)
        assert free.selection_.ridges.diff().min() >= 0


def test_a_choice_at_the_end_is_told(problem):
    k, _, y = problem
    with pytest.warns(KernelWarning, match="the largest that was tried; a wider grid"):
        nftk.KernelRidge("loo", ridges=[1e-4, 1e-3]).fit(k, y)
