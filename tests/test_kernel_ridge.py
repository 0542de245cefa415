"""KernelRidge against the closed form, brute force and scikit-learn, and as an estimator of scikit-learn's."""

import copy
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import nftk
from nftk.regression import KernelWarning, ridge_from_proximal
from nftk.regression.conjugate_gradients import conjugate_gradients, nystrom
from nftk.regression.solve import condition_of

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


def rbf(a, b, width=1.0):
    return torch.exp(-torch.cdist(a, b).square() / (2 * width**2 * a.shape[1]))


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def problem():
    """30 training and 7 test examples, 3 outputs."""
    x, x_test = draw(30, 4), draw(7, 4, seed=1)
    return rbf(x, x), rbf(x_test, x), draw(30, 3, seed=2)


def layers(reduction, n1=30, n2=30, d=3, depth=2):
    """Positive semi-definite layer kernels whose outputs and layers all differ."""
    found = []
    for layer in range(depth):
        x = draw(max(n1, n2), 6, seed=10 + layer)
        tie = draw(d, d, seed=20 + layer)
        tie = tie @ tie.T + torch.eye(d)
        k = rbf(x[:n1], x[:n2], 1 + layer)
        full = torch.einsum("xy,ij->xyij", k, tie) + torch.einsum(
            "xy,ij->xyij", x[:n1] @ x[:n2].T, torch.diag(torch.arange(1.0, d + 1, dtype=torch.float64))
        )
        found.append(
            {
                "full": full,
                "diagonal": full.diagonal(dim1=2, dim2=3),
                "trace": full.diagonal(dim1=2, dim2=3).sum(-1),
                "sum_logits": full.sum((2, 3)),
                "scalar": k,
            }[reduction]
        )
    names = tuple(f"layer {i}" for i in range(depth))
    return nftk.LayerKernels(torch.stack(found), names, reduction, symmetric=n1 == n2)


# ---------------------------------------------------------------- what it computes


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


# ---------------------------------------------------------------- what fit leaves


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
    assert learned.score(k_test[None], labels[:7], weights) == pytest.approx(want, abs=1)
    constant = torch.full((7,), 2.0).double()
    flat = nftk.KernelRidge(0.1).fit(k, y[:, 0])
    assert flat.score(k_test, constant, weights) == r2_score(constant, flat.predict(k_test), sample_weight=weights) == 0


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_score_of_huge_and_tiny_targets(problem, size):
    k, k_test, y = problem
    want = nftk.KernelRidge(0.1).fit(k, y).score(k_test, y[:7])
    assert nftk.KernelRidge(0.1).fit(k, size * y).score(k_test, size * y[:7]) == pytest.approx(want)


@pytest.mark.parametrize("form", ["matrix", "array", "by output", "layers", "inputs"])
def test_no_examples_are_refused_in_every_form(problem, form):
    k, _, y = problem
    given, empty, ridge = {
        "matrix": (k, k[:0], nftk.KernelRidge()),
        "array": (k.numpy(), k[:0].numpy(), nftk.KernelRidge()),
        "by output": (k.expand(3, -1, -1), k.expand(3, -1, -1)[:, :0], nftk.KernelRidge()),
        "layers": (layers("full"), layers("full", 0, 30), nftk.KernelRidge(omega=[1.0, 1.0])),
        "inputs": (draw(30, 4), draw(0, 4), nftk.KernelRidge(kernel=rbf)),
    }[form]
    ridge.fit(given, y)
    text = "Found array with 0 sample" if form == "array" else r"X must (have shape .* at least 1|hold .* example)"
    for call in (ridge.predict, ridge.outputs, lambda x: ridge.fit(x, y[:0])):
        with pytest.raises(ValueError, match=text):
            call(empty)


# ---------------------------------------------------------------- labels


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


# ---------------------------------------------------------------- choosing the ridge


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


# ---------------------------------------------------------------- policy of numerics


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


# ---------------------------------------------------------------- erratum 3


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


# ---------------------------------------------------------------- errors


def of_nan(reduction):
    k = layers(reduction)
    return nftk.LayerKernels(k.blocks * math.nan, k.names, reduction)


@pytest.mark.parametrize(
    ("settings", "change", "text"),
    [
        ({"ridge": -1.0}, {}, "ridge must be finite and at least 0, got -1.0"),
        ({"ridge": "aic"}, {}, "ridge must be one of 'loo', 'gcv', got 'aic'"),
        ({"ridges": [1.0]}, {}, "ridges must go with ridge 'loo' or 'gcv'"),
        ({"ridge": "loo", "ridges": []}, {}, "ridges must hold at least one number, got none"),
        ({"ridge": "loo", "ridges": 1.0}, {}, r"ridges must be a list of numbers, got 1\.0"),
        ({"ridge": "loo", "ridges": "1"}, {}, "ridges must be a list of numbers, got '1'"),
        ({"ridge": "loo", "ridges": ["a"]}, {}, r"ridges\[0\] must be a number, got 'a'"),
        ({"ridge": "loo", "ridges": [1.0, -1.0]}, {}, r"ridges\[1\] must be finite and at least 0, got -1\.0"),
        ({"ridge": "loo", "ridges": np.array([math.nan])}, {}, r"ridges\[0\] must be finite and at least 0, got nan"),
        ({"ridge": "loo", "solver": "cg"}, {}, "ridge must be a number for solver 'cg'"),
        ({"ridge": 0.0, "solver": "cg"}, {}, "ridge must be above 0 for conjugate gradients"),
        ({"solver": "lu"}, {}, "solver must be one of"),
        ({"kernel": "linear"}, {}, "kernel must be one of 'precomputed', 'infinite'"),
        ({"task": "ranking"}, {}, "task must be one of"),
        ({"omega": [1.0]}, {}, "omega must be None where the kernel is a tensor"),
        ({}, {"k": draw(30, 29)}, "must be square"),
        ({}, {"k": draw(30, 30)}, "must be symmetric"),
        ({}, {"k": draw(2, 30, 30, 2)}, r"X must have shape \[n1, n2\], \[d, n1, n2\] or"),
        ({}, {"k": torch.full((30, 30), math.nan)}, "X must be finite"),
        ({}, {"y": draw(29, 3)}, r"y must have shape \[30\] or \[30, d\], an entry an example, got \[29, 3\]"),
        ({}, {"y": torch.full((30,), math.inf)}, "y must be finite"),
        ({}, {"y": None}, "y must be labels or targets, got None"),
        ({}, {"y": ["a", None, "b"] * 10}, "y must be labels without None or NaN, got None"),
        ({}, {"y": np.array(["a", math.nan] * 15, dtype=object)}, "y must be labels without None or NaN, got nan"),
        ({}, {"y": np.array(["a", 1] * 15, dtype=object)}, "y must be labels that have an order, .* type int, str"),
        ({}, {"y": [[1.0, 2.0], [3.0]] * 15}, "y must be labels or targets of one shape, got "),
        ({}, {"y": torch.eye(30).to_sparse()}, "y must be dense"),
        ({}, {"y": [["a", "b"]] * 30}, "y must be numbers to serve as targets, got <U1"),
        ({}, {"offset": "x"}, "offset must be numbers, shape .*, got str"),
        ({}, {"offset": draw(30, 2)}, r"offset must have shape \[30, 3\], as the targets, got \[30, 2\]"),
        ({}, {"k": layers("scalar")}, r"omega must be given for the kernels of 2 layers, shape \[2\]"),
        ({"omega": [1.0] * 3}, {"k": layers("scalar")}, r"omega must have shape \[2\], got \[3\]"),
        ({"omega": torch.ones(2, 2)}, {"k": layers("scalar")}, "y must have 2 columns, one for each output"),
        ({"omega": [[1.0, 2], [2, 1]]}, {"k": layers("scalar")}, "y must have 2 columns, one for each output"),
        ({"omega": [math.nan, 1.0]}, {"k": layers("scalar")}, "omega must be finite"),
        ({"omega": "x"}, {"k": layers("scalar")}, "omega must be numbers"),
        ({"omega": [1.0, 1.0]}, {"k": of_nan("scalar")}, "kernels must be finite, got NaN or infinity"),
        ({"omega": [1.0, 1.0]}, {"k": of_nan("full")}, "kernels must be finite, got NaN or infinity"),
        ({}, {"offset": torch.full((30, 3), math.inf)}, "offset must be finite"),
        ({}, {"y": draw(30, 3).to(torch.complex64)}, "y must be real numbers, got complex64"),
        ({"kernel": "infinite", "kernel_params": {"depth": 0}}, {}, "depth in kernel_params must be at least 1, got 0"),
        ({"kernel": "infinite", "kernel_params": {"depth": "2"}}, {}, "depth in kernel_params must be an integer"),
        ({"kernel": "infinite", "kernel_params": {"weights": [1.0]}}, {}, "kernel_params must leave weights"),
        (
            {"kernel": "infinite", "omega": [1.0, 2.0]},
            {},
            "omega must have 3 columns, one a layer of kernel 'infinite'",
        ),
    ],
)
def test_errors(problem, settings, change, text):
    given = {"k": problem[0], "y": problem[2], "offset": None} | change
    with pytest.raises((ValueError, TypeError), match=text):
        nftk.KernelRidge(**settings).fit(given["k"], given["y"], offset=given["offset"])


def test_errors_of_predict(problem):
    k, k_test, y = problem
    with pytest.raises(ValueError, match="must be fitted before it predicts"):
        nftk.KernelRidge().predict(k_test)
    with pytest.raises(ValueError, match="X must have 30 features, as in fit, got 29"):
        nftk.KernelRidge().fit(k, y).predict(k_test[:, 1:])
    by_output = k.expand(3, -1, -1)
    with pytest.raises(ValueError, match="the kernel must have 30 columns, one a training example, got 29"):
        nftk.KernelRidge().fit(by_output, y).predict(k_test[:, 1:].expand(3, -1, -1))
    ridge = nftk.KernelRidge(omega=[1.0, 1.0]).fit(layers("diagonal"), y)
    with pytest.raises(ValueError, match=r"must be \('diagonal', None\), as in fit, got \('trace', None\)"):
        ridge.predict(layers("trace"))
    with pytest.raises(ValueError, match="the kernel must have 3 outputs, as the targets, got 2"):
        nftk.KernelRidge().fit(by_output, y).predict(k_test.expand(2, -1, -1))


def test_errors_of_score(problem):
    k, k_test, y = problem
    ridge, named = nftk.KernelRidge().fit(k, y), nftk.KernelRidge().fit(k, y.argmax(1))
    one = nftk.KernelRidge().fit(k, y[:, 0])
    for fitted, given, text in (
        (ridge, y[:7, :2], r"y must have shape \[7, 3\], as the predictions, got \[7, 2\]"),
        (ridge, y[:7, 0], r"y must have shape \[7, 3\], as the predictions, got \[7\]"),
        (ridge, y[:6], r"y must have shape \[7, 3\], as the predictions, got \[6, 3\]"),
        (one, y[:7], r"y must have shape \[7\], as the predictions, got \[7, 3\]"),
        (named, y[:7], r"y must have shape \[7\], as the predictions, got \[7, 3\]"),
        (named, 1, r"y must have shape \[7\], as the predictions, got \[\]"),
        (named, None, "y must be labels or targets, got None"),
    ):
        with pytest.raises(ValueError, match=text):
            fitted.score(k_test, given)
    assert one.score(k_test, y[:7, :1]) == one.score(k_test, y[:7, 0])
    for weights, text in (
        ([1.0] * 6, r"sample_weight must have shape \[7\], an entry an example, got \[6\]"),
        ([-1.0] + [1.0] * 6, "sample_weight must be finite and at least 0, got -1"),
        ([math.nan] * 7, "sample_weight must be finite and at least 0, got nan"),
        ([0.0] * 7, "sample_weight must have an entry above 0, got zeros"),
        ("heavy", "sample_weight must be numbers, got str"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            one.score(k_test, y[:7, 0], weights)


def test_targets_in_sixteen_bits(problem):
    k, k_test, y = problem
    for dtype in (torch.bfloat16, torch.float16):
        rounded = y.to(dtype)
        want = nftk.KernelRidge().fit(k, rounded.double())
        found = nftk.KernelRidge().fit(k, rounded)
        assert torch.equal(found.predict(k_test), want.predict(k_test))
        assert found.score(k, rounded) == want.score(k, rounded.double())


# ---------------------------------------------------------------- scikit-learn


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
