"""MultipleKernelRidge's gradients against finite differences, and the forms of kernels that it takes."""

import numpy as np
import pytest
import torch
from regression_problems import (
    draw,
    independent,
    kernels,
    layered_problem,  # noqa: F401  (a fixture)
    objective,
)

import nftk
from nftk.regression.objectives import Problem, leave_one_out, regularized


@pytest.mark.parametrize("which", [regularized, leave_one_out], ids=["regularized", "loo"])
@pytest.mark.parametrize("d", [1, 3], ids=["one row an example", "joint"])
def test_gradients_against_finite_differences(data, which, d):
    """For d = 3 the same 39 rows are 13 examples of 3 outputs each, left out together."""
    _, k, y = data
    targets = y[:39, :1] if d == 3 else y
    blocks = list(k[:, :39, :39]) if d == 3 else list(k)
    problem = Problem(blocks, torch.tensor([1.0, 2.0, 0.5, 1.0]).double(), targets, 0.1, len(targets) // d, "test")
    eta = torch.tensor([0.1, 0.4, 0.2, 0.3]).double()
    _, gradient = which(problem, eta)
    step = 1e-5
    for i in range(4):
        shift = step * torch.eye(4).double()[i]
        slope = (which(problem, eta + shift)[0] - which(problem, eta - shift)[0]) / (2 * step)
        assert gradient[i].item() == pytest.approx(slope, rel=1e-6)


def test_leave_one_out_objective_is_exact(data):
    _, k, y = data
    k, y = k[:, :12, :12], y[:12]
    eta = torch.tensor([0.1, 0.4, 0.2, 0.3]).double()
    kernel = torch.einsum("l,lxy->xy", eta, k)
    for d in (1, 3):
        targets = y if d == 1 else y[:, :1]
        total = 0.0
        for out in torch.arange(12).split(d):
            kept = torch.tensor([i for i in range(12) if i not in out])
            system = kernel[kept][:, kept] + 0.1 * torch.eye(len(kept)).double()
            error = targets[out] - kernel[out][:, kept] @ torch.linalg.solve(system, targets[kept])
            total += float(error.square().sum())
        problem = Problem(list(k), torch.ones(4).double(), targets, 0.1, 12 // d, "test")
        assert leave_one_out(problem, eta)[0] == pytest.approx(total / (12 / d), rel=1e-10)


def test_both_gradients_in_omega():
    """Issue and erratum 7: at fixed theta the loss has J's own gradient; at fixed alpha it has twice that.

    The network is linear in theta: f = sum_l omega_l Phi_l theta_l, so Theta_l = Phi_l Phi_l^T, theta_0 = 0.
    """
    n, ridge = 15, 0.3
    features = [draw(n, p, seed=p) for p in (3, 5, 8)]
    k = torch.stack([phi @ phi.T for phi in features])
    y, omega = draw(n, seed=1), torch.tensor([0.7, 0.4, 1.1]).double()

    def system(w):
        return torch.einsum("l,lxy->xy", w**2, k)

    alpha = torch.linalg.solve(system(omega) + ridge * torch.eye(n).double(), y)
    theta = [w * phi.T @ alpha for w, phi in zip(omega, features, strict=True)]
    stated = torch.stack([-2 * ridge / n * w * alpha @ block @ alpha for w, block in zip(omega, k, strict=True)])

    def loss_at_theta(w):
        f = sum(wl * phi @ t for wl, phi, t in zip(w, features, theta, strict=True))
        return (y - f).square().mean()

    def loss_at_alpha(w):
        return (y - system(w) @ alpha).square().mean()

    def minimised(w):
        return objective(k, y, w**2, ridge)

    def slopes(function):
        found = []
        for i in range(3):
            shift = 1e-6 * torch.eye(3).double()[i]
            found.append((function(omega + shift) - function(omega - shift)) / 2e-6)
        return torch.stack(found)

    torch.testing.assert_close(slopes(minimised), stated, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(slopes(loss_at_theta), stated, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(slopes(loss_at_alpha), 2 * stated, rtol=1e-6, atol=1e-9)
    # what the code has is the same, by way of eta = omega^2
    problem = Problem(list(k), torch.ones(3).double(), y[:, None], ridge, n, "test")
    value, gradient = regularized(problem, omega**2)
    torch.testing.assert_close(2 * omega * gradient, stated)
    assert value == pytest.approx(float(minimised(omega)))
    # the minimum over theta is J: loss and penalty add up to it
    penalty = ridge / n * sum(t.square().sum() for t in theta)
    assert value == pytest.approx(float(loss_at_theta(omega) + penalty))


def test_nonnegative_has_no_minimiser(data):
    """Erratum 7: every component of the gradient is negative, and scaling Omega up lowers J towards 0."""
    _, k, y = data
    problem = Problem(list(k), torch.ones(4).double(), y, 0.1, len(y), "test")
    eta = torch.full((4,), 0.25).double()
    values = []
    for scale in (1, 10, 100, 1000):
        value, gradient = regularized(problem, scale * eta)
        assert bool((gradient < 0).all())
        values.append(value)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.02 * values[0]


def test_predictions_are_those_of_kernel_ridge(data):
    x, k, y = data
    x_test = draw(7, 3, seed=9)
    k_test = kernels(x_test, x)
    learned = nftk.MultipleKernelRidge(0.1).fit(k, y)
    layered = nftk.LayerKernels(k, tuple("abcd"), "scalar", symmetric=True)
    plain = nftk.KernelRidge(0.1, omega=learned.omega_).fit(layered, y)
    test = nftk.LayerKernels(k_test, tuple("abcd"), "scalar")
    torch.testing.assert_close(learned.predict(k_test), plain.predict(test))
    torch.testing.assert_close(nftk.MultipleKernelRidge(0.1).fit(layered, y).predict(test), learned.predict(k_test))
    infinite = nftk.MultipleKernelRidge(0.1, kernel="infinite", kernel_params={"depth": 2}).fit(x, y)
    k2 = nftk.infinite_ntk(x, depth=2)
    torch.testing.assert_close(infinite.omega_, nftk.MultipleKernelRidge(0.1).fit(k2, y).omega_)
    raw = nftk.MultipleKernelRidge(0.1, kernel=kernels).fit(x, y)
    torch.testing.assert_close(raw.predict(x_test), learned.predict(k_test))
    np.testing.assert_allclose(raw.predict(x_test.numpy()), learned.predict(k_test).numpy())


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace", "sum_logits"])
def test_reductions(data, reduction):
    _, k, y = data
    tie = torch.tensor([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 3]]).double()
    full = torch.einsum("lxy,ij->lxyij", k, tie)
    diagonal = full.diagonal(dim1=3, dim2=4)
    blocks = {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1), "sum_logits": full.sum((3, 4))}
    layered = nftk.LayerKernels(blocks[reduction], tuple("abcd"), reduction, symmetric=True)
    learned = nftk.MultipleKernelRidge(0.1).fit(layered, y)
    assert learned.omega_.shape == (3, 4)
    if reduction == "diagonal":
        for i in range(3):
            eta, _ = independent(k * tie[i, i], y[:, i], 0.1)
            np.testing.assert_allclose(learned.eta_[i], eta, atol=1e-2)
        return
    assert torch.equal(learned.omega_[0], learned.omega_[2])
    shared = learned.eta_[0]
    if reduction == "full":
        joint = torch.stack([torch.kron(one, tie) for one in k])
        system = torch.einsum("l,lxy->xy", shared, joint) + 0.1 * torch.eye(120).double()
        want = 0.1 / 40 * torch.dot(y.reshape(-1), torch.linalg.solve(system, y.reshape(-1)))
        assert learned.objective_ == pytest.approx(float(want))
    with pytest.raises(ValueError, match=f"per_class must be False or None for {reduction!r} kernels"):
        nftk.MultipleKernelRidge(0.1, per_class=True).fit(layered, y)


def test_shared_weights_are_the_minimum_over_all_outputs_together(data):
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1, per_class=False, tolerance=1e-8).fit(k, y)
    from scipy.optimize import minimize_scalar

    # along any edge from the solution there is nothing lower
    for layer in range(4):
        corner = torch.eye(4).double()[layer]

        def along(t, corner=corner):
            eta = (1 - t) * learned.eta_[0] + t * corner
            return float(sum(objective(k, y[:, i], eta, 0.1) for i in range(3)))

        assert minimize_scalar(along, bounds=(0, 1), method="bounded").fun >= learned.objective_ * (1 - 1e-6)
    assert learned.objective_ == pytest.approx(along(0.0))


def test_normalize_trace(data):
    """Kernels of other sizes give the same predictions; without it, the larger one wins by its size."""
    _, k, y = data
    sizes = torch.tensor([1.0, 10.0, 0.1, 3.0]).double()
    scaled = k * sizes[:, None, None]
    plain = nftk.MultipleKernelRidge(0.1, normalize="trace", tolerance=1e-8).fit(k, y)
    found = nftk.MultipleKernelRidge(0.1, normalize="trace", tolerance=1e-8).fit(scaled, y)
    torch.testing.assert_close(found.eta_, plain.eta_, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.omega_.square() * sizes, plain.omega_.square(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.predict(scaled), plain.predict(k), atol=1e-4, rtol=1e-3)
    drawn = nftk.MultipleKernelRidge(0.1).fit(scaled, y)
    assert float(drawn.eta_[:, 1].sum()) > 2 * float(plain.eta_[:, 1].sum())


def test_offset(data):
    _, k, y = data
    f_0 = draw(40, 3, seed=8)
    shifted = nftk.MultipleKernelRidge(0.1).fit(k, y, offset=f_0)
    plain = nftk.MultipleKernelRidge(0.1).fit(k, y - f_0)
    torch.testing.assert_close(shifted.eta_, plain.eta_)
    torch.testing.assert_close(shifted.predict(k, offset=f_0), plain.predict(k) + f_0)


def test_labels_and_the_picture(data):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional package")
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.01).fit(k, y.argmax(1))
    assert learned.score(k, y.argmax(1)) > 0.9
    assert learned.predict(k).dtype is torch.int64
    figure = nftk.plot_omega(learned, class_names=["a", "b", "c"])
    shown = figure.axes[4].images[0].get_array()
    want = learned.omega_ / learned.omega_.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(np.ma.filled(shown, 0), want.numpy(), atol=1e-12)
