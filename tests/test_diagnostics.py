"""Alignment, rank, spectrum and drift against numbers worked out by hand or by numpy."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch

import nftk
from nftk.tangent import alignment, drift, effective_rank, spectrum


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spd(n, seed=0):
    x = draw(n, n + 2, seed=seed)
    return x @ x.T


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def layered(reduction, n=8, d=3):
    model = nftk.NFTKMLP(5, [6, 7], d, dtype=torch.float64)
    return nftk.empirical_ntk(model, draw(n, 5, seed=1), reduction=reduction)


# ---------------------------------------------------------------- alignment


@pytest.mark.parametrize("centred", [False, True])
def test_alignment_is_a_cosine(centred):
    k, y = torch.stack((spd(9), spd(9, seed=1))), draw(9, 2, seed=2) + 1
    h = torch.eye(9).double() - (1 / 9 if centred else 0)
    want = [cosine(h @ one @ h, h @ y @ y.T @ h) for one in k]
    np.testing.assert_allclose(alignment(k, y, centred=centred), want, rtol=1e-10)
    np.testing.assert_allclose(alignment(k[0], y, centred=centred), want[:1], rtol=1e-10)


def test_alignment_of_labels():
    y = torch.tensor([7, 3, 7, 9])
    same = (y[:, None] == y).double()
    assert alignment(same, y).item() == pytest.approx(1.0)
    assert alignment(torch.eye(4), y).item() == pytest.approx(4 / math.sqrt(4 * 6))


def test_alignment_of_names():
    x = torch.randn(4, 3)
    names, numbers = ["b", "a", "b", "c"], torch.tensor([1, 0, 1, 2])
    torch.testing.assert_close(alignment(x @ x.T, names), alignment(x @ x.T, numbers))
    torch.testing.assert_close(
        alignment(x @ x.T, [1.0, 0.5, 1.0, 2.0]), alignment(x @ x.T, torch.tensor([1, 0.5, 1, 2]))
    )


@pytest.mark.parametrize("centred", [False, True])
def test_alignment_of_reductions(centred):
    y = draw(8, 3, seed=5)
    h = torch.eye(8).double() - (1 / 8 if centred else 0)
    full = layered("full")
    for reduction in ("full", "diagonal", "trace"):
        torch.manual_seed(0)
        k = layered(reduction)
        torch.manual_seed(0)
        full = layered("full")
        found = alignment(k, y, centred=centred)
        target = torch.einsum("ax,xi,yj,yb->abij", h, y, y, h)
        blocks = torch.einsum("ax,lxyij,yb->labij", h, full.blocks, h)
        if reduction == "full":
            want = [cosine(block, target) for block in blocks]
        elif reduction == "diagonal":
            want = [[cosine(block[..., i, i], target[..., i, i]) for i in range(3)] for block in blocks]
        else:
            diagonal = [block.diagonal(dim1=2, dim2=3).sum(-1) for block in blocks]
            want = [cosine(block, target.diagonal(dim1=2, dim2=3).sum(-1)) for block in diagonal]
        np.testing.assert_allclose(found, want, rtol=1e-9)


def test_alignment_with_nothing_is_zero():
    assert alignment(torch.zeros(3, 3), torch.ones(3)).item() == 0
    assert alignment(torch.ones(3, 3), torch.ones(3), centred=True).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("labels", [[[1], [0], [1], [2]], [["b"], ["a"], ["b"], ["c"]], [[True], [False]] * 2])
def test_a_column_of_labels_is_labels_as_for_kernel_ridge(labels):
    k = spd(4)
    flat = [row[0] for row in labels]
    torch.testing.assert_close(alignment(k, labels), alignment(k, flat))
    if not isinstance(flat[0], str):
        torch.testing.assert_close(alignment(k, torch.tensor(labels)), alignment(k, flat))
        assert alignment(k, np.array(labels, dtype=float)) != alignment(k, flat)
    column = np.array(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of a column
        torch.testing.assert_close(
            nftk.KernelRidge().fit(k, column).dual_coef_, nftk.KernelRidge().fit(k, flat).dual_coef_
        )


# ---------------------------------------------------------------- sizes that squares cannot hold


@pytest.mark.parametrize("power", [1020, -1000])
def test_huge_and_tiny_kernels(power):
    """The very numbers of kernels of size 1: scaling by powers of two loses nothing."""
    k, moved, y, scale = spd(4) / 16, spd(4, 1) / 16, draw(4, 2), 2.0**power
    for centred in (False, True):
        want = alignment(k, y, centred=centred)
        assert torch.equal(alignment(scale * k, y, centred=centred), want)
        assert torch.equal(alignment(k, scale * y, centred=centred), want)
    for kind in ("entropy", "participation"):
        assert torch.equal(effective_rank(scale * k, kind), effective_rank(k, kind))
    found, want = spectrum(scale * k, first=1), spectrum(k, first=1)
    assert torch.equal(found.exponent, want.exponent)
    assert torch.equal(found.values, scale * want.values)
    assert torch.equal(torch.stack(drift(scale * k, scale * moved)), torch.stack(drift(k, moved)))


def test_outputs_of_very_different_size():
    """Each output's matrix by a scale of its own."""
    sizes, y = torch.tensor([1e200, 1.0, 1e-200], dtype=torch.float64), draw(4, 3)
    k = nftk.LayerKernels(spd(4)[None, ..., None] * sizes, ("one",), "diagonal", symmetric=True)
    for found in (effective_rank(k), effective_rank(k, "participation"), spectrum(k, first=1).exponent):
        torch.testing.assert_close(found[0], found[0, 1].expand(3))
    torch.testing.assert_close(alignment(k, y * sizes)[0, 2], alignment(spd(4), y[:, 2])[0])


def test_the_smallest_kernel_there_is():
    least = torch.eye(3).double() * 5e-324
    for kind in ("entropy", "participation"):
        assert effective_rank(least, kind).item() == pytest.approx(3)
    assert alignment(least, torch.eye(3)).item() == pytest.approx(1)
    assert torch.stack(drift(least, 3 * least)).flatten().tolist() == pytest.approx([2, 0, 3])


# ---------------------------------------------------------------- rank and spectrum


def test_effective_rank():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0]).double()
    q = torch.linalg.qr(draw(4, 4))[0]
    k = q @ torch.diag(values) @ q.T
    p = values / 8
    assert effective_rank(k).item() == pytest.approx(float(torch.exp(-(p * p.log()).sum())))
    assert effective_rank(k, "participation").item() == pytest.approx(float(1 / p.square().sum()))
    for kind in ("entropy", "participation"):
        assert effective_rank(torch.eye(7), kind).item() == pytest.approx(7)
        assert effective_rank(torch.ones(7, 7), kind).item() == pytest.approx(1, abs=1e-5)
        assert effective_rank(torch.zeros(7, 7), kind).item() == 0
        assert effective_rank(layered("diagonal"), kind).shape == (2, 3)
        assert effective_rank(layered("full"), kind).shape == (2,)


def test_spectrum():
    q = torch.linalg.qr(draw(30, 30))[0]
    falls = 3 * torch.arange(1, 31).double() ** -1.5
    falls[0] = 100.0
    found = spectrum(q @ torch.diag(falls) @ q.T)
    np.testing.assert_allclose(found.values[0], falls, rtol=1e-9)
    assert found.exponent.item() == pytest.approx(1.5)
    assert found.counted.item() == 29
    assert spectrum(torch.diag(falls), first=1).exponent.item() > 1.6
    assert spectrum(torch.diag(falls), first=5, last=9).counted.item() == 5
    # what is left below the rounding of the dtype does not count
    rank = spectrum((q[:, :5] @ torch.diag(falls[1:6]) @ q[:, :5].T).float(), first=1)
    assert rank.counted.item() == 5
    assert math.isnan(spectrum(torch.ones(4, 4)).exponent.item())
    assert spectrum(layered("diagonal")).values.shape == (2, 3, 8)


# ---------------------------------------------------------------- drift


def test_drift():
    first, second = torch.stack((spd(5), spd(5, 1))), torch.stack((2 * spd(5), spd(5, 2)))
    moved = drift(first, second)
    np.testing.assert_allclose(moved.relative, [1.0, float((second[1] - first[1]).norm() / first[1].norm())])
    np.testing.assert_allclose(moved.turned, [0.0, 1 - cosine(first[1], second[1])], atol=1e-12)
    np.testing.assert_allclose(moved.grown, [2.0, float(second[1].norm() / first[1].norm())])


def test_drift_from_and_to_zeros():
    """Between zeros nothing has moved; a kernel of zeros has no direction, and no size to grow from."""
    one, zero = torch.eye(3), torch.zeros(3, 3)
    for pair, want in (
        ((zero, zero), (0, 0, 1)), ((zero, one), (math.inf, 1, math.inf)), ((one, zero), (1, 1, 0)),
    ):  # fmt: skip
        assert [x.item() for x in drift(*pair)] == list(want)
    both = drift(torch.stack((one, zero)), torch.stack((2 * one, zero)))
    assert both.relative.tolist() == [1.0, 0.0]


def test_drift_between_sizes_far_apart():
    moved = drift(1e-200 * torch.eye(2).double(), 1e100 * torch.eye(2).double())
    assert moved.grown.item() == pytest.approx(1e300)
    assert moved.relative.item() == pytest.approx(1e300)
    assert moved.turned.item() == pytest.approx(0)


def test_drift_of_training_falls_with_width():
    """Wide networks in the "ntk" parameterisation train lazily; narrow ones move their kernels."""
    x, y = draw(12, 3).float(), draw(12, 1, seed=1).float()
    found = []
    for width in (16, 1024):
        model = nftk.NFTKMLP(3, [width] * 2, 1, parameterization="ntk", omega_init=0.7)
        before = nftk.empirical_ntk(copy.deepcopy(model), x, reduction="trace")
        nftk.fit(model, (x, y), loss="mse", epochs=100, batch_size=12, lr=0.1, lr_omega=0.0, weight_decay=0.0)
        found.append(drift(before, nftk.empirical_ntk(model, x, reduction="trace")).relative)
    assert bool((found[1] < found[0] / 3).all())


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: alignment(torch.ones(3, 4), torch.ones(3)), "k must (be square|have shape)"),
        (lambda: alignment(torch.ones(3, 3), torch.ones(4)), r"y must have shape \[3\] or \[3, d\], got \[4\]"),
        (lambda: alignment(layered("diagonal"), torch.ones(8, 2)), "y must have 3 classes or columns, as k, got 2"),
        (lambda: effective_rank(torch.eye(3), "trace"), "kind must be one of"),
        (lambda: effective_rank(layered("trace")[:, :4]), "k must be square"),
        (lambda: alignment(draw(3, 3), torch.ones(3)), "k of layer 1 must be symmetric, got entries that differ by"),
        (lambda: effective_rank(draw(2, 3, 3)), "k of layer 1 must be symmetric"),
        (lambda: effective_rank(draw(3, 3), "participation"), "k of layer 1 must be symmetric"),
        (lambda: spectrum(torch.stack((torch.eye(3), draw(3, 3)))), "k of layer 2 must be symmetric"),
        (lambda: spectrum(layered("full")[:4, 4:]), "k of readout 1 must be symmetric"),
        (lambda: alignment(layered("diagonal")[:4, 4:], torch.ones(4, 3)), "k of readout 1 must be symmetric"),
        (lambda: alignment(torch.eye(3) * math.nan, torch.ones(3)), "k must be finite, got NaN or infinity"),
        (lambda: drift(torch.eye(3), torch.eye(3) / 0), "second must be finite, got NaN or infinity"),
        (lambda: alignment(torch.eye(3), [1.0, math.nan, 0.0]), "y must be finite"),
        (lambda: alignment(torch.eye(3), None), "y must be labels or targets, got None"),
        (lambda: alignment(torch.eye(3), ["a", None, "b"]), "y must be labels without None or NaN, got None"),
        (lambda: alignment(torch.eye(3), [["a", "b"]] * 3), "y must be numbers to serve as targets, got <U1"),
        (lambda: alignment(torch.eye(3), torch.ones(3), centred="no"), "centred must be True or False, got 'no'"),
        (lambda: spectrum(torch.eye(3), first=0), "first must be at least 1, got 0"),
        (lambda: spectrum(torch.eye(3), first=2.5), "first must be an integer, got 2.5"),
        (lambda: spectrum(torch.eye(3), last=2.5), "last must be an integer, got 2.5"),
        (lambda: spectrum(torch.eye(3), first=3, last=2), "last must be at least 3, got 2"),
        (
            lambda: drift(layered("trace"), layered("trace").select([1, 0])),
            r"must share their names, got \('readout 1',",
        ),
        (lambda: drift(layered("trace"), layered("diagonal")), "must share their reduction, got 'trace'"),
        (lambda: drift(torch.eye(3), torch.eye(4)), "second must have shape"),
        (lambda: drift(torch.ones(3), torch.ones(3)), r"first must have shape \[n1, n2\] or"),
    ],
)
def test_errors(call, text):
    with pytest.raises((ValueError, TypeError), match=text):
        call()
