"""The logistic surrogate's dual coefficients in directions that outputs do not tell: (Y - p) / (n penalty)."""

import pytest
import torch

from nftk.attribution import self_influence, top_k
from nftk.surrogate import KernelSurrogate

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")

SHARES = [0.1, 1e-3, 1e-6, 1e-8]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def low_rank(n=80, rank=6, classes=3):
    """A kernel of few directions, and labels that it cannot fit."""
    x = draw(n, rank)
    y = (x @ draw(rank, classes, seed=1) + draw(n, classes, seed=2)).argmax(1)
    return x @ x.T, y


def canonical(k, y, penalty, found):
    """Where the gradient in f vanishes, alpha is the residual of the probabilities."""
    target = torch.nn.functional.one_hot(y, len(found.classes_)).double()
    return (target - found.predict_proba(k)) / (len(y) * penalty)


def distance(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["low rank", "decaying"])
def test_the_dual_is_the_residual_in_every_direction(kind, share):
    k, y = low_rank()
    if kind == "decaying":
        x = draw(80, 6)
        k = torch.exp(-torch.cdist(x, x).square() / 40)
    penalty = share * float(k.diagonal().mean())
    found = KernelSurrogate(penalty=penalty).fit(k, y)
    assert found.converged_
    assert distance(found.dual_coef_, canonical(k, y, penalty, found)) < 1e-5


@pytest.mark.parametrize("share", SHARES)
def test_the_dual_is_that_of_the_kernel_with_full_rank(share):
    """Where K sees next to nothing it may see nothing."""
    k, y = low_rank()
    penalty = share * float(k.diagonal().mean())
    found = KernelSurrogate(penalty=penalty).fit(k, y)
    near = KernelSurrogate(penalty=penalty).fit(k + 1e-9 * torch.eye(len(k)), y)
    assert distance(near.dual_coef_, found.dual_coef_) < 1e-7 + 1e-11 / share


@pytest.mark.parametrize("share", [0.1, 1e-3, 1e-5])
def test_the_dual_is_that_of_the_kernel_in_float32(share):
    """Half of the directions that rounding adds have an eigenvalue below 0."""
    k, y = low_rank()
    penalty = share * float(k.diagonal().mean())
    assert float(torch.linalg.eigvalsh(k.float().double())[10]) < -1e-7
    found = KernelSurrogate(penalty=penalty).fit(k, y)
    single = KernelSurrogate(penalty=penalty).fit(k.float(), y)
    assert distance(single.dual_coef_, found.dual_coef_) < 1e-7 + 1e-9 / share
    torch.testing.assert_close(single.outputs(k), found.outputs(k), rtol=0, atol=1e-6 + 1e-8 / share)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_outputs_are_those_of_the_problem_on_features(share, dtype):
    """What alpha has in directions without a kernel is not seen, or where rounding would show it, cut off."""
    k, y = low_rank()
    penalty = share * float(k.diagonal().mean())
    found = KernelSurrogate(penalty=penalty).fit(k.to(dtype), y)
    s, u = torch.linalg.eigh(k.to(dtype).double())
    clean = (u * s.clamp(min=0)) @ u.T
    want = KernelSurrogate(penalty=penalty).fit(clean, y)
    moved = float((found.outputs(k.to(dtype)) - want.outputs(clean)).abs().max())
    assert moved < (1e-5 if dtype is torch.float64 else 0.03)
    assert found.objective_ == pytest.approx(want.objective_, rel=1e-9)
    assert found.residual_ <= 1e-8


@pytest.mark.parametrize("share", SHARES)
def test_of_equal_examples_with_two_labels_the_wrong_one_comes_first(share):
    x = torch.cat((draw(30, 3) * 0.2 + 2, draw(30, 3, seed=1) * 0.2 - 2))
    y = torch.arange(60) // 30
    x[7], x[8] = x[5], x[5]
    y[7] = 1
    k = x @ x.T
    penalty = share * float(k.diagonal().mean())
    found = KernelSurrogate(penalty=penalty).fit(k, y)
    alpha = found.dual_coef_
    torch.testing.assert_close(alpha[8], alpha[5], rtol=1e-6, atol=1e-6 / (60 * penalty))
    apart = torch.tensor([-1.0, 1.0]).double() / (60 * penalty)
    torch.testing.assert_close(alpha[7] - alpha[5], apart, rtol=1e-6, atol=0)
    assert top_k(self_influence(found, k, y)[0], 1).examples.tolist() == [7]


def test_learned_weights_have_the_same_dual():
    x, z = draw(60, 4), draw(60, 5, seed=1)
    y = (x[:, :3] + 0.3 * draw(60, 3, seed=2)).argmax(1)
    k = torch.stack((x @ x.T, z @ z.T))
    found = KernelSurrogate(penalty=0.3, weights="learned").fit(k, y)
    assert found.converged_
    assert distance(found.dual_coef_, canonical(k, y, 0.3, found)) < 1e-6
