"""MultipleKernelRidge against an independent solver, finite differences and brute force."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import nftk
from nftk import constraints
from nftk.regression import KernelWarning
from nftk.regression.descent import criterion, descend, support
from nftk.regression.objectives import Problem, leave_one_out, regularized

WIDTHS = (0.5, 1.0, 2.0, 4.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernels(x1, x2):
    """Four matrices of very different smoothness, ``(4, n1, n2)``."""
    return torch.stack([torch.exp(-torch.cdist(x1, x2).square() / (2 * w**2 * x1.shape[1])) for w in WIDTHS])


@pytest.fixture
def data():
    x = draw(40, 3)
    y = torch.stack((torch.sin(3 * x[:, 0]), x[:, 1] ** 2, x[:, 2] + 0.1 * draw(40, seed=3)), 1)
    return x, kernels(x, x), y


def objective(k, y, eta, ridge):
    """J of one output, written down: (rho / N) y^T (K + rho I)^-1 y."""
    system = torch.einsum("l,lxy->xy", eta, k) + ridge * torch.eye(len(y)).double()
    return ridge / len(y) * torch.dot(y, torch.linalg.solve(system, y))


# ---------------------------------------------------------------- gradients


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


# ---------------------------------------------------------------- minima


def independent(k, y, ridge):
    """Minimum over the simplex by scipy's SLSQP, with numerical derivatives of the objective written down."""
    from scipy.optimize import minimize

    best = minimize(
        lambda eta: float(objective(k, y, torch.from_numpy(eta), ridge)) * 1e3,
        np.full(len(k), 1 / len(k)),
        method="SLSQP",
        bounds=[(0, 1)] * len(k),
        constraints={"type": "eq", "fun": lambda eta: eta.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return best.x, best.fun / 1e3


@pytest.mark.parametrize("constraint", ["simplex", "l1ball"])
def test_minimum_of_an_independent_solver(data, constraint):
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1, constraint, tolerance=1e-8).fit(k, y)
    total = 0.0
    for i in range(3):
        eta, value = independent(k, y[:, i], 0.1)
        np.testing.assert_allclose(learned.eta_[i], eta, atol=2e-3)
        total += value
    assert learned.objective_ <= total * (1 + 1e-6)
    assert learned.objective_ == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(learned.eta_.sum(1), torch.ones(3).double())
    torch.testing.assert_close(learned.omega_**2, learned.eta_)
    assert learned.converged_
    assert float(learned.gap_.max()) <= 1e-8 * learned.objective_


def test_gap_bounds_the_distance_to_the_minimum(data):
    _, k, y = data
    best = nftk.MultipleKernelRidge(0.1, tolerance=1e-8).fit(k, y).objective_
    for tolerance in (0.3, 1e-2, 1e-4):
        rough = nftk.MultipleKernelRidge(0.1, tolerance=tolerance).fit(k, y)
        assert 0 <= rough.objective_ - best <= float(rough.gap_.sum()) + 1e-12


@pytest.mark.parametrize("objective_name", ["regularized", "loo"])
@pytest.mark.parametrize("constraint", ["simplex", "groupsparse"])
def test_history_never_goes_up_and_the_end_is_stationary(data, objective_name, constraint):
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1, constraint, objective_name, tolerance=1e-6).fit(k, y)
    assert bool((learned.history_.diff() <= 0).all())
    assert learned.history_[-1] == learned.objective_ < learned.history_[0]
    assert len(learned.history_) == learned.n_iter_ + 1
    # no point of the set nearby is lower
    random = torch.Generator().manual_seed(1)
    which = {"regularized": regularized, "loo": leave_one_out}[objective_name]
    allowed = constraints.resolve(constraint)
    problems = [Problem(list(k), torch.ones(4).double(), y[:, i : i + 1], 0.1, 40, "test") for i in range(3)]
    for _ in range(30):
        near = learned.eta_ + 1e-3 * torch.randn(3, 4, generator=random).double()
        value = sum(which(p, row)[0] for p, row in zip(problems, allowed.project(near), strict=True))
        assert value >= learned.objective_ * (1 - 1e-6)


def test_groupsparse_drops_layers_for_all_classes(data):
    _, k, y = data
    limit = constraints.GroupSparse(radius=3**0.5, max_layers=2)
    learned = nftk.MultipleKernelRidge(0.1, limit).fit(k, y)
    assert int((learned.omega_ > 0).any(0).sum()) == 2
    assert bool(((learned.omega_ > 0).all(0) == (learned.omega_ > 0).any(0)).all())


def sparse_problems(k, y):
    return [Problem(list(k), torch.ones(len(k)).double(), y[:, i : i + 1], 0.1, len(y), "test") for i in range(3)]


@pytest.mark.parametrize("which", ["regularized", "loo"])
@pytest.mark.parametrize("limit", [(3**0.5, 1), (3**0.5, 2), (0.3, 3), (5.0, 4)], ids=str)
def test_groupsparse_with_max_layers_converges_among_the_layers_it_keeps(data, which, limit):
    """The set is not convex: the gap is of the kept layers, and for "regularized" bounds what these can reach."""
    _, k, y = data
    allowed = constraints.GroupSparse(*limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelWarning)
        learned = nftk.MultipleKernelRidge(0.1, allowed, which, tolerance=1e-6).fit(k, y)
    assert learned.converged_
    assert bool((learned.history_.diff() <= 0).all())
    kept = (learned.eta_ > 0).any(0)
    assert 1 <= int(kept.sum()) <= limit[1]
    if which == "regularized":
        # the best of these layers alone, over the convex set without the count
        places = kept.nonzero().flatten()
        free = constraints.GroupSparse(limit[0])
        best = nftk.MultipleKernelRidge(0.1, free, tolerance=1e-6).fit(k[places], y).objective_
        assert -1e-6 * best <= learned.objective_ - best <= float(learned.gap_.sum())
    # no step within the kept layers is lower, nor, where another could be added, with it
    random = torch.Generator().manual_seed(1)
    open_ = kept if int(kept.sum()) == limit[1] else torch.ones(4, dtype=torch.bool)
    objective_of = {"regularized": regularized, "loo": leave_one_out}[which]
    for _ in range(20):
        near = learned.eta_ + 1e-3 * torch.randn(3, 4, generator=random).double() * open_
        value = sum(
            objective_of(p, row)[0] for p, row in zip(sparse_problems(k, y), allowed.project(near), strict=True)
        )
        assert value >= learned.objective_ * (1 - 1e-5)


@pytest.mark.parametrize(("radius", "which"), [(3**0.5, "regularized"), (3**0.5, "loo"), (None, "loo")])
def test_layers_are_kept_for_what_they_weigh_and_not_for_their_place(data, radius, which):
    _, k, y = data
    limit = constraints.GroupSparse(radius, max_layers=2)
    found, turned = (nftk.MultipleKernelRidge(0.1, limit, which, max_iter=500).fit(each, y) for each in (k, k.flip(0)))
    assert torch.equal((found.eta_ > 0).any(0), (turned.eta_.flip(1) > 0).any(0))
    if which == "regularized":
        pairs = [k[list(pair)] for pair in itertools.combinations(range(4), 2)]
        best = min(nftk.MultipleKernelRidge(0.1, constraints.GroupSparse(radius)).fit(p, y).objective_ for p in pairs)
        assert found.objective_ == pytest.approx(best, rel=1e-4)


def test_max_layers_without_a_budget(data):
    """Not bounded, so for leave-one-out only, and without a gap: the criterion is a step within the kept layers."""
    _, k, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelWarning)
        found = nftk.MultipleKernelRidge(0.1, constraints.GroupSparse(max_layers=2), "loo", max_iter=500).fit(k, y)
    assert found.converged_
    assert int((found.eta_ > 0).any(0).sum()) == 2


def test_criterion_of_a_set_that_is_not_convex():
    """Layers that are shut count only where one more may be open."""
    eta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    gradient = torch.tensor([[-1.0, 0.5, -9.0], [0.5, -1.0, 0.0]]).double()
    two, three = (constraints.GroupSparse(2.0, max_layers=count) for count in (2, 3))
    # 2 max(|-1|, |-1|) - 2, and with the third layer 2 * 9 - 2
    assert criterion(two, eta, gradient) == pytest.approx(0.0)
    assert criterion(three, eta, gradient) == pytest.approx(16.0)
    free = constraints.GroupSparse(max_layers=2)
    flat = torch.tensor([[0.0, 1.0, -9.0], [1.0, 0.0, 0.0]]).double()
    assert criterion(free, eta, flat) == 0.0
    assert criterion(free, eta, flat - 1) > 0.1


class OneLayer:
    """A set of one's own that is not convex: all weight on one layer."""

    def project_(self, omega):
        best = omega.sum(0).argmax()
        omega.zero_()[:, best] = 1.0
        return omega


def test_a_set_of_ones_own_ends_where_no_step_is_lower(data):
    """The gradient at the first corner promises much of the second, which is higher; shorter steps lead nowhere."""

    def value(eta):
        x, y = eta[0].tolist()
        return 5 * x + 30 * y**2 - 9 * y, torch.tensor([[5.0, 60 * y - 9]]).double()

    end = descend(
        value,
        OneLayer(),
        torch.tensor([[1.0, 0.0]]).double(),
        tolerance=1e-4,
        max_iter=10,
    )
    assert end.converged
    assert end.eta.tolist() == [[1.0, 0.0]]
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1, OneLayer()).fit(k, y)
    assert learned.converged_
    assert sorted(learned.eta_[0].tolist()) == [0, 0, 0, 1]


def test_leave_one_out_over_nonnegative_is_bounded_below(data):
    _, k, y = data
    free = nftk.MultipleKernelRidge(0.1, "nonnegative", "loo", max_iter=500).fit(k, y)
    tied = nftk.MultipleKernelRidge(0.1, "simplex", "loo").fit(k, y)
    assert 0 < free.objective_ < tied.objective_
    assert bool(torch.isfinite(free.eta_).all())


def test_the_right_kernel_is_found():
    """Targets drawn from the process of one kernel: leave-one-out gives most weight to that one."""
    x = draw(150, 2)
    k = kernels(x, x)
    for true in (0, 2):
        y = torch.linalg.cholesky(k[true] + 1e-8 * torch.eye(150).double()) @ draw(150, 8, seed=5)
        learned = nftk.MultipleKernelRidge(0.01, objective="loo", per_class=False).fit(k, y)
        assert int(learned.eta_[0].argmax()) == true


@pytest.mark.parametrize("constraint", ["simplex", "groupsparse"])
@pytest.mark.parametrize("objective_name", ["regularized", "loo"])
def test_huge_and_tiny_targets(data, objective_name, constraint):
    """The very weights of targets of size 1; the objective goes with their square, as far as float64 holds it."""
    _, k, y = data
    y = y / 8
    plain = nftk.MultipleKernelRidge(0.1, constraint, objective_name).fit(k, y)
    for power in (260, 960, -260, -960):
        scaled = nftk.MultipleKernelRidge(0.1, constraint, objective_name).fit(k, 2.0**power * y)
        assert torch.equal(scaled.eta_, plain.eta_)
        assert torch.equal(scaled.dual_coef_, 2.0**power * plain.dual_coef_)
        assert torch.equal(scaled.history_, plain.history_ * 2.0**power * 2.0**power)
        assert torch.equal(scaled.gap_, plain.gap_ * 2.0**power * 2.0**power)
        assert scaled.converged_
    # decimal too: 1e78 is what an earlier version overflowed at
    torch.testing.assert_close(
        nftk.MultipleKernelRidge(0.1, constraint, objective_name).fit(k, 1e78 * y).eta_, plain.eta_, rtol=0, atol=1e-3
    )


def test_outputs_of_very_different_size(data):
    _, k, y = data
    sizes = torch.tensor([2.0**300, 1.0, 2.0**-300], dtype=torch.float64)
    assert torch.equal(
        nftk.MultipleKernelRidge(0.1).fit(k, y * sizes).eta_, nftk.MultipleKernelRidge(0.1).fit(k, y).eta_
    )


def test_targets_of_zeros_keep_equal_weights(data):
    _, k, y = data
    for which in ("regularized", "loo"):
        learned = nftk.MultipleKernelRidge(0.1, objective=which).fit(k, 0 * y)
        assert learned.eta_.tolist() == [[0.25] * 4] * 3
        assert learned.converged_
        assert learned.history_.tolist() == [0.0]


# ---------------------------------------------------------------- forms of kernels


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


# ---------------------------------------------------------------- parts, settings, errors


def test_support_is_the_largest_inner_product():
    random = torch.Generator().manual_seed(0)
    direction = torch.randn(3, 4, generator=random).double()
    for allowed in (
        constraints.Simplex(2.0),
        constraints.L1Ball(0.5),
        constraints.GroupSparse(),
        constraints.GroupSparse(radius=2.0),
        constraints.GroupSparse(radius=2.0, max_layers=2),
    ):
        most = support(allowed, direction)
        points = [allowed.project(100 * torch.randn(3, 4, generator=random).double()) for _ in range(200)]
        # far along the direction, the projection is where the support is reached
        reached = float((direction * allowed.project(1e6 * direction)).sum())
        assert most == pytest.approx(reached, rel=1e-5)
        assert max(float((direction * point).sum()) for point in points) <= most * (1 + 1e-12)
    # from directions that point out of the orthant, the point 0 is the best of the sets that hold it
    for allowed in (constraints.L1Ball(2.0), constraints.GroupSparse(2.0)):
        assert support(allowed, -direction.abs()) == 0
        mixed = torch.cat((-direction[:1].abs(), direction[1:].abs()))
        reached = float((mixed * allowed.project(1e6 * mixed)).sum())
        assert support(allowed, mixed) == pytest.approx(reached, rel=1e-5)
    assert support(constraints.NonNegative(), direction) is None
    assert support(constraints.GroupSparse(max_layers=2), direction) is None


def test_descent_finds_the_projection():
    """The nearest point of a set is what descent on the squared distance must find."""
    goal = draw(2, 5)
    for allowed in (constraints.Simplex(), constraints.L1Ball(), constraints.GroupSparse(), constraints.NonNegative()):
        end = descend(
            lambda eta: (float((eta - goal).square().sum()), 2 * (eta - goal)),
            allowed,
            torch.full((2, 5), 0.2).double(),
            tolerance=1e-10,
            max_iter=500,
        )
        torch.testing.assert_close(end.eta, allowed.project(goal), atol=1e-5, rtol=1e-5)
        assert end.history == sorted(end.history, reverse=True)


def test_stopping_early_is_told(data):
    _, k, y = data
    with pytest.warns(KernelWarning, match="stopped after 1 iterations with a relative gap"):
        stopped = nftk.MultipleKernelRidge(0.1, tolerance=1e-9, max_iter=1).fit(k, y)
    assert not stopped.converged_


def test_progress(data):
    _, k, y = data
    told = []
    nftk.MultipleKernelRidge(0.1, progress=lambda done, total: told.append((done, total))).fit(k, y)
    assert told == [(1, 3), (2, 3), (3, 3)]


class Halves:
    """A user's set: two layers of weight a half each."""

    def project_(self, omega):
        omega.zero_()[:, :2] = 0.5
        return omega


class Negative:
    def project_(self, omega):
        return omega.fill_(-1.0)


def test_a_set_of_ones_own(data):
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1, Halves()).fit(k, y)
    assert learned.eta_.tolist() == [[0.5, 0.5, 0.0, 0.0]] * 3


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
