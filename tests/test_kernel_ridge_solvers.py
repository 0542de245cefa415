"""How KernelRidge solves: jitter, condition numbers, and conjugate gradients against Cholesky."""

import pytest
import torch
from regression_problems import (
    draw,
    rbf,
    relative,
    ridge_problem,  # noqa: F401  (a fixture)
)

import nftk
from nftk.regression import KernelWarning
from nftk.regression.conjugate_gradients import conjugate_gradients, nystrom
from nftk.regression.solve import condition_of

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def test_jitter_is_reported_and_bounded():
    x = draw(40, 2).float()
    k = (x @ x.T).double() @ (x @ x.T).double().T  # rank 2
    y = draw(40, 1, seed=1)
    with pytest.warns(KernelWarning) as told:
        ridge = nftk.KernelRidge(0.0).fit(k, y)
    assert any("is not positive definite in float64" in str(w.message) for w in told)
    scale = k.diagonal().mean()
    assert 0 < ridge.jitter_[0] <= 1e-6 * scale
    assert bool(torch.isfinite(ridge.dual_coef_).all())
    quiet = nftk.KernelRidge(1e-2).fit(k, y)
    assert quiet.jitter_.tolist() == [0.0]
    # what is told is what was added: several steps of it here
    below = torch.tensor([1.0, 1.0, -1e-9]).double()
    with pytest.warns(KernelWarning):
        mended = nftk.KernelRidge(0.0).fit(torch.diag(below), torch.ones(3).double())
    torch.testing.assert_close(mended.dual_coef_[:, 0], 1 / (below + mended.jitter_))
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -0.5]).double())
    for ridge in (0.1, "loo", "gcv"):
        with pytest.raises(ValueError, match=r"must be positive semi-definite, got the eigenvalue -0\.5"):
            nftk.KernelRidge(ridge).fit(indefinite, y[:3])
    with pytest.raises(ValueError, match=r"got a direction in which it is negative by more than the ridge 0\.1"):
        nftk.KernelRidge(0.1, solver="cg").fit(indefinite, y[:3])
    # a larger ridge hides it, and eigenvalues that rounding may have left are taken for 0, which is told
    nftk.KernelRidge(1.0, solver="cg").fit(indefinite, y[:3])
    with pytest.warns(KernelWarning, match=r"eigenvalues down to -1e-09 were taken for 0"):
        nftk.KernelRidge("loo", ridges=[1e-12]).fit(torch.diag(below), torch.ones(3).double())


@pytest.mark.parametrize("steps", [0, 6])
def test_the_first_jitter_and_its_steps(steps):
    """n eps of the mean diagonal, then ten times more until it helps."""
    below = -1e-16 if steps == 0 else -2e-10
    k = torch.diag(torch.tensor([1.0, 2.0, below], dtype=torch.float64))
    first = 3 * torch.finfo(torch.float64).eps * k.diagonal().mean()
    with pytest.warns(KernelWarning):
        found = nftk.KernelRidge(0.0).fit(k, torch.ones(3)).jitter_.item()
    assert found == pytest.approx(first.item() * 10**steps, rel=1e-12, abs=0)


def test_condition_number(problem):
    k, _, y = problem
    for power in (0, 3):
        ridge = nftk.KernelRidge(10.0**-power).fit(k, y)
        true = torch.linalg.cond(k + 10.0**-power * torch.eye(30).double())
        assert 0.5 * true <= ridge.condition_[0] <= 1.001 * true
    factor = torch.linalg.cholesky(torch.diag(torch.tensor([4.0, 1.0, 0.01]).double()))
    assert condition_of(factor[None]).item() == pytest.approx(400, rel=0.01)
    # the same system is fine in float64, and beyond float32's digits
    smooth = rbf(draw(30, 4), draw(30, 4), 4.0)
    nftk.KernelRidge(1e-6).fit(smooth, y)
    with pytest.warns(KernelWarning, match="condition number near .* beyond the digits of its dtype"):
        nftk.KernelRidge(1e-6).fit(smooth.float(), y)


@pytest.mark.parametrize("d", [1, 5])
def test_conjugate_gradients_match_cholesky(d):
    x, y = draw(200, 3), draw(200, d, seed=1)
    k = rbf(x, x)
    for ridge in (1e-4, 1.0):
        direct = nftk.KernelRidge(ridge).fit(k, y)
        iterated = nftk.KernelRidge(ridge, solver="cg", tolerance=1e-10).fit(k, y)
        assert relative(iterated.dual_coef_, direct.dual_coef_) < 1e-6
        assert iterated.residual_ <= 1e-10
        assert iterated.iterations_ < 60
        assert iterated.condition_ is None


def test_conjugate_gradients_with_columns_that_depend_on_each_other():
    x = draw(60, 3)
    y = draw(60, 2, seed=1)
    y = torch.cat((y, y.sum(1, keepdim=True), torch.zeros(60, 1)), 1)
    direct = nftk.KernelRidge(0.01).fit(rbf(x, x), y)
    iterated = nftk.KernelRidge(0.01, solver="cg").fit(rbf(x, x), y)
    assert relative(iterated.dual_coef_, direct.dual_coef_) < 1e-6


def test_preconditioner_pays_and_its_roots_are_inverse():
    x = draw(300, 2)
    k, y = rbf(x, x), draw(300, 2, seed=1)
    good = nystrom(lambda v: k @ v, 300, 60, 1e-3, k.device)
    none = nystrom(lambda v: k @ v, 300, 1, 1e-3, k.device)
    steps = [conjugate_gradients(lambda v: k @ v, y, 1e-3, p)[1] for p in (good, none)]
    # directions that are conjugate need no more products than the kernel has eigenvalues above the ridge
    assert 3 * steps[0] < steps[1] < 150
    torch.testing.assert_close(good.undo(good(y)), y)


def test_conjugate_gradients_that_do_not_arrive_say_so(monkeypatch, problem):
    k, _, y = problem
    with pytest.warns(KernelWarning, match="conjugate gradients stopped after"):
        nftk.KernelRidge(1e-9, solver="cg", tolerance=1e-30).fit(k, y)


@pytest.mark.parametrize("reduction", ["full", "diagonal", "scalar"])
def test_raw_inputs_by_conjugate_gradients_never_hold_the_kernel(reduction, monkeypatch):
    """The kernel is asked for in tiles, and the result is Cholesky's."""
    monkeypatch.setattr("nftk.regression.gram.TILE", 8)
    x, y, x_test = draw(30, 6), draw(30, 3, seed=2), draw(4, 6, seed=3)
    asked = []

    def kernel(a, b):
        asked.append(len(a))
        k = rbf(a, b)[None]
        if reduction == "scalar":
            return nftk.LayerKernels(torch.cat((k, k**2)), ("one", "two"), "scalar")
        tie = torch.tensor([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 3]]).double()
        full = torch.einsum("lxy,ij->lxyij", torch.cat((k, k**2)), tie)
        blocks = full if reduction == "full" else full.diagonal(dim1=3, dim2=4)
        return nftk.LayerKernels(blocks, ("one", "two"), reduction)

    omega = torch.tensor([[1.0, 0.5], [0.2, 1.0], [1.0, 1.0]])
    want = nftk.KernelRidge(0.01, kernel=kernel, omega=omega).fit(x, y).predict(x_test)
    asked.clear()
    iterated = nftk.KernelRidge(0.01, kernel=kernel, omega=omega, solver="cg").fit(x, y)
    assert max(asked) <= 9
    assert relative(iterated.predict(x_test), want) < 1e-6


def test_auto_takes_conjugate_gradients_beyond_the_budget(problem):
    k, _, y = problem
    assert nftk.KernelRidge(0.1).fit(k, y).iterations_ is None
    assert nftk.KernelRidge(0.1, memory_budget=8 * 30 * 30).fit(k, y).iterations_ > 0
    x = draw(30, 3)
    assert nftk.KernelRidge(0.1, kernel=rbf, memory_budget=8 * 30 * 30).fit(x, y).iterations_ > 0
