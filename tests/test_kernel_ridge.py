"""KernelRidge against the closed form, gradient descent and scikit-learn."""

import numpy as np
import pytest
import torch
from regression_problems import (
    draw,
    layers,
    rbf,
    relative,
    ridge_problem,  # noqa: F401  (a fixture)
)
from torch import nn

import nftk
from nftk.regression import ridge_from_proximal

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def test_closed_form_with_offset(problem):
    k, k_test, y = problem
    f_0, f_0_test = draw(30, 3, seed=3), draw(7, 3, seed=4)
    want = f_0_test + k_test @ torch.linalg.inv(k + 0.3 * torch.eye(30, dtype=torch.float64)) @ (y - f_0)
    ridge = nftk.KernelRidge(0.3).fit(k, y, offset=f_0)
    assert relative(ridge.predict(k_test, offset=f_0_test), want) < 1e-12
    for call in (ridge.predict, ridge.outputs):
        with pytest.raises(ValueError, match="offset must be given, as it was in fit, got None"):
            call(k_test)
    with pytest.raises(ValueError, match="offset must be None"):
        nftk.KernelRidge().fit(k, y).predict(k_test, offset=f_0_test)


def test_agrees_with_scikit_learn(problem):
    from sklearn.kernel_ridge import KernelRidge

    k, k_test, y = (part.numpy() for part in problem)
    ours, theirs = nftk.KernelRidge(0.1).fit(k, y), KernelRidge(alpha=0.1, kernel="precomputed").fit(k, y)
    np.testing.assert_allclose(ours.predict(k_test), theirs.predict(k_test), rtol=1e-9)
    assert ours.score(k_test, y[:7]) == pytest.approx(theirs.score(k_test, y[:7]), rel=1e-9)
    assert isinstance(ours.predict(k_test), np.ndarray)
    one = nftk.KernelRidge(0.1).fit(k, y[:, 0])
    np.testing.assert_allclose(one.predict(k_test), ours.predict(k_test)[:, 0], rtol=1e-9)


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace", "sum_logits", "scalar"])
@pytest.mark.parametrize("shared", [True, False], ids=["omega (L,)", "omega (d, L)"])
def test_layer_kernels_with_omega(reduction, shared):
    """Against the joint system of all outputs, whose kernel is what LayerKernels.combine makes."""
    omega = torch.tensor([0.5, 2.0]) if shared else torch.tensor([[0.5, 2.0], [1.0, 0.1], [0.0, 3.0]])
    k, y = layers(reduction), draw(30, 3, seed=2)
    k_test = layers(reduction, 7, 30)
    ridge = nftk.KernelRidge(0.2, omega=omega)
    if reduction in ("trace", "sum_logits") and not shared:
        with pytest.raises(ValueError, match=r"omega must have shape \[2\], because"):
            ridge.fit(k, y)
        return

    def joint(kernels):
        c = kernels.combine(omega.double())
        if c.ndim == 4:
            return c.permute(0, 2, 1, 3).reshape(c.shape[0] * 3, c.shape[1] * 3)
        c = c.expand(3, -1, -1) if c.ndim == 2 else c
        return torch.einsum("ixy,ij->xiyj", c, torch.eye(3).double()).reshape(c.shape[1] * 3, -1)

    want = joint(k_test) @ torch.linalg.solve(joint(k) + 0.2 * torch.eye(90).double(), y.reshape(-1))
    assert relative(ridge.fit(k, y).predict(k_test).reshape(-1), want) < 1e-11


def test_one_matrix_an_output_and_full_blocks_as_tensors(problem):
    y = problem[2]
    for reduction in ("diagonal", "full"):
        k, k_test = layers(reduction, depth=1), layers(reduction, 7, 30, depth=1)
        want = nftk.KernelRidge(0.2, omega=[1.0]).fit(k, y).predict(k_test)
        as_tensor = (lambda c: c.blocks[0].movedim(-1, 0)) if reduction == "diagonal" else (lambda c: c.blocks[0])
        found = nftk.KernelRidge(0.2).fit(as_tensor(k), y).predict(as_tensor(k_test))
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
        as_array = nftk.KernelRidge(0.2).fit(as_tensor(k).numpy(), y).predict(as_tensor(k_test).numpy())
        np.testing.assert_allclose(as_array, want.numpy(), rtol=1e-10)


def test_rows_that_cross_tiles(monkeypatch, problem):
    """Tiles of 4 rows, so that joint kernels are cut within an example."""
    y = problem[2]
    for reduction in ("full", "diagonal", "scalar"):
        ridge = nftk.KernelRidge(0.2, omega=[1.0, 0.5])
        want = ridge.fit(layers(reduction), y).predict(layers(reduction, 7, 30))
        with monkeypatch.context() as patch:
            patch.setattr("nftk.regression.gram.TILE", 4)
            found = ridge.fit(layers(reduction), y).predict(layers(reduction, 7, 30))
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_float32_kernels_are_solved_in_float64(problem):
    k, _, y = problem
    rounded = k.float()
    want = torch.linalg.solve(rounded.double() + 1e-3 * torch.eye(30).double(), y)
    assert relative(nftk.KernelRidge(1e-3).fit(rounded, y).dual_coef_, want) < 1e-11


def test_raw_inputs_with_a_callable():
    x, y, x_test = draw(20, 3), draw(20, 2, seed=1), draw(5, 3, seed=2)
    want = nftk.KernelRidge(0.1).fit(rbf(x, x, 2.0), y).predict(rbf(x_test, x, 2.0))
    ridge = nftk.KernelRidge(0.1, kernel=rbf, kernel_params={"width": 2.0}).fit(x, y)
    assert relative(ridge.predict(x_test), want) < 1e-12
    np.testing.assert_allclose(ridge.predict(x_test.numpy()), want.numpy(), rtol=1e-12)
    with pytest.raises(ValueError, match=r"what kernel returns must have shape \[20, 20\]"):
        nftk.KernelRidge(kernel=lambda a, b: rbf(a, b)[:, 1:]).fit(x, y)
    with pytest.raises(TypeError, match=r"what kernel returns must be a torch\.Tensor, got str"):
        nftk.KernelRidge(kernel=lambda a, b: "no").fit(x, y)


@pytest.mark.parametrize("omega", [None, [0.5, 1.0, 0.2], [[0.5, 1.0, 0.2]] * 3, [[1.0, 0, 0], [0, 1, 1], [0.3, 1, 2]]])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_infinite_kernels(omega, solver):
    x, y, x_test = draw(20, 4), draw(20, 3, seed=1), draw(5, 4, seed=2)
    k, k_test = nftk.infinite_ntk(x, depth=3), nftk.infinite_ntk(x_test, x, depth=3)
    used = [3**-0.5] * 3 if omega is None else omega
    want = nftk.KernelRidge(0.1, omega=used).fit(k, y).predict(k_test)
    ridge = nftk.KernelRidge(0.1, "infinite", omega=omega, solver=solver, tolerance=1e-12).fit(x, y)
    torch.testing.assert_close(ridge.predict(x_test), want, rtol=1e-7, atol=1e-9)
    deeper = nftk.KernelRidge(0.1, "infinite", kernel_params={"depth": 5, "activation": "erf"}).fit(x, y)
    assert deeper.omega_.shape == (5,)
    with pytest.raises(ValueError, match="omega must have 3 rows, one a class or column of y, got 2"):
        nftk.KernelRidge(0.1, "infinite", omega=[[1.0, 1.0, 1.0]] * 2).fit(x, y)


def test_test_examples_in_tiles(monkeypatch):
    x, y, x_test = draw(20, 3), draw(20, 2, seed=1), draw(9, 3, seed=2)
    ridge = nftk.KernelRidge(0.1, kernel=rbf).fit(x, y)
    want = ridge.predict(x_test)
    monkeypatch.setattr("nftk.regression.kernel_estimator.TEST_BYTES", 8 * 20 * 2)
    torch.testing.assert_close(ridge.predict(x_test), want)


@pytest.mark.parametrize("loss", ["mse", "half_mse", "mean_mse"])
def test_ridge_from_proximal_is_where_training_ends(loss):
    """A linear model, whose kernel is exact, trained by equation 13 until it stands."""
    n, d, proximal = 12, 3, 0.05
    x, y, x_test = draw(n, 5), draw(n, d, seed=1), draw(4, 5, seed=2)
    start = draw(d, 5, seed=3)
    theta = start.clone().requires_grad_()
    for _ in range(4000):
        f = x @ theta.T
        square = (f - y).square().sum(1).mean()
        value = {"mse": square, "half_mse": square / 2, "mean_mse": nn.functional.mse_loss(f, y)}[loss]
        (gradient,) = torch.autograd.grad(value, theta)
        with torch.no_grad():
            theta -= 0.2 * (gradient + proximal * (theta - start))
    ridge = nftk.KernelRidge(ridge_from_proximal(proximal, n, d, loss)).fit(x @ x.T, y, offset=x @ start.T)
    torch.testing.assert_close(ridge.predict(x_test @ x.T, offset=x_test @ start.T), (x_test @ theta.T).detach())


def test_ridge_from_proximal_refuses_what_has_no_ridge():
    with pytest.raises(ValueError, match="loss must be one of 'mse'"):
        ridge_from_proximal(0.1, 10, 2, "cross_entropy")
    with pytest.raises(ValueError, match="n must be at least 1"):
        ridge_from_proximal(0.1, 0)


def test_targets_in_sixteen_bits(problem):
    k, k_test, y = problem
    for dtype in (torch.bfloat16, torch.float16):
        rounded = y.to(dtype)
        want = nftk.KernelRidge().fit(k, rounded.double())
        found = nftk.KernelRidge().fit(k, rounded)
        assert torch.equal(found.predict(k_test), want.predict(k_test))
        assert found.score(k, rounded) == want.score(k, rounded.double())
