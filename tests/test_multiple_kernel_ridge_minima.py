"""The minima that MultipleKernelRidge finds over each set of weights, against an independent solver and brute force."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from regression_problems import (
    draw,
    independent,
    kernels,
    layered_problem,  # noqa: F401  (a fixture)
)

import nftk
from nftk import constraints
from nftk.regression import KernelWarning
from nftk.regression.descent import criterion, descend, support
from nftk.regression.objectives import Problem, leave_one_out, regularized


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


class Halves:
    """A user's set: two layers of weight a half each."""

    def project_(self, omega):
        omega.zero_()[:, :2] = 0.5
        return omega


def test_a_set_of_ones_own(data):
    _, k, y = data
    learned = nftk.MultipleKernelRidge(0.1, Halves()).fit(k, y)
    assert learned.eta_.tolist() == [[0.5, 0.5, 0.0, 0.0]] * 3
