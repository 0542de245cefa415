"""LayerKernels: how they are laid out, and what can be done with kernels once they are there."""

import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
from kernel_checks import error
from layer_kernel_examples import make

from nftk import LayerKernels


def test_matrix_is_a_view_in_the_documented_layout():
    memory = torch.randn(2, 4, 3, 5, 3)
    k = LayerKernels(memory.permute(0, 1, 3, 2, 4), ("a", "b"), "full")
    assert k.matrix().data_ptr() == memory.data_ptr()
    assert torch.equal(k.matrix(), memory.view(2, 12, 15))
    assert make("diagonal").matrix().shape == (2, 3, 4, 4)
    assert make("trace").matrix().shape == (2, 4, 4)


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace"])
def test_diagonal(reduction):
    k = make(reduction)
    for i in range(4):
        assert torch.equal(k.diagonal()[:, i], k.blocks[:, i, i])
    with pytest.raises(ValueError, match="one set of examples with itself, got 2 rows and 4 columns"):
        k[:2].diagonal()


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace", "sum_logits"])
def test_normalize(reduction):
    k = make(reduction)
    cosine = k.normalize("cosine")
    own = cosine.diagonal()
    own = own.diagonal(dim1=2, dim2=3) if reduction == "full" else own
    assert error(own, torch.ones_like(own)) < 1e-14
    assert cosine.normalization == "cosine"
    assert cosine.symmetric
    joint = k.normalize("joint").diagonal()
    joint = joint.diagonal(dim1=2, dim2=3) if reduction == "full" else joint
    assert error(joint.sum(0), torch.ones_like(joint[0])) < 1e-14
    with pytest.raises(ValueError, match="must not be normalised yet, got 'cosine'"):
        cosine.normalize()


def test_normalize_rectangular_and_zero():
    k = make("trace")
    self_kernels = k.diagonal()
    part = k[:2].normalize("cosine", self_kernels[:, :2], self_kernels)
    assert error(part.blocks, k.normalize("cosine").blocks[:, :2]) < 1e-15
    with pytest.raises(ValueError, match="rows and columns must be given for two sets"):
        k[:2].normalize()
    with pytest.raises(ValueError, match=r"rows must have shape \[2, 2\], got \[2, 4\]"):
        k[:2].normalize("cosine", self_kernels, self_kernels)
    zero = LayerKernels(torch.zeros(1, 2, 2), ("a",), "trace", symmetric=True)
    assert torch.equal(zero.normalize().blocks, torch.zeros(1, 2, 2))


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace"])
@pytest.mark.parametrize("how", ["cosine", "joint"])
def test_normalize_has_gradients_at_a_zero_self_kernel(reduction, how):
    base = make(reduction)
    alive = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    mask = (alive[:, None] * alive).view(1, 4, 4, *[1] * (base.blocks.ndim - 3))
    blocks = (base.blocks * mask).requires_grad_()
    k = LayerKernels(blocks, base.names, reduction, symmetric=True).normalize(how)
    assert torch.equal(k[1].blocks, torch.zeros_like(k[1].blocks))
    (gradient,) = torch.autograd.grad(k.blocks.sin().sum(), blocks)
    assert not gradient[:, 1].any()
    assert not gradient[:, :, 1].any()
    # the others' are what they are without it
    others = blocks[:, alive.bool()][:, :, alive.bool()].detach().requires_grad_()
    k = LayerKernels(others, base.names, reduction, symmetric=True).normalize(how)
    (want,) = torch.autograd.grad(k.blocks.sin().sum(), others)
    assert error(gradient[:, alive.bool()][:, :, alive.bool()], want) < 1e-14


def test_normalize_refuses_types():
    k = make("trace")
    rows = k.diagonal()
    for bad, found in ((rows.tolist(), "list"), (rows.numpy(), "ndarray"), (1.0, "float")):
        with pytest.raises(TypeError, match=f"normalize: rows must be a torch.Tensor, got {found}"):
            k[:2].normalize("cosine", bad, rows)
        with pytest.raises(TypeError, match=f"normalize: columns must be a torch.Tensor, got {found}"):
            k.normalize("cosine", rows, bad)
    with pytest.raises(TypeError, match="normalize: rows must have a floating dtype, got torch.int64"):
        k.normalize("cosine", rows.long(), rows)
    with pytest.raises(ValueError, match="normalize: inputs must share one device, but rows is meta, blocks is cpu"):
        k.normalize("cosine", rows.to("meta"), rows)


def test_arithmetic():
    k = make("trace")
    assert torch.equal((k + k).blocks, 2 * k.blocks)
    assert torch.equal((k - k).blocks, 0 * k.blocks)
    assert torch.equal((3 * k / 3).blocks, 3 * k.blocks / 3)
    assert (k + k).symmetric
    with pytest.raises(ValueError, match="must share their reduction, got 'trace' and 'scalar'"):
        k + make("scalar")
    with pytest.raises(ValueError, match="must share their shape"):
        k + k[:2]
    with pytest.raises(ValueError, match="must share their names"):
        k + LayerKernels(k.blocks, ("a", "b"), "trace")
    with pytest.raises(ValueError, match="a divisor must not be 0"):
        k / 0


def test_arithmetic_with_signs_and_sums():
    k, other = make("trace"), make("trace")
    assert torch.equal((-k).blocks, -k.blocks)
    assert (-k).symmetric
    assert torch.equal(sum([k, other]).blocks, k.blocks + other.blocks)
    assert torch.equal(sum([k]).blocks, k.blocks)
    assert torch.equal((0.0 + k).blocks, k.blocks)
    assert torch.equal((k + 0).blocks, k.blocks)
    assert torch.equal((Fraction(1, 2) * k).blocks, k.blocks / 2)
    for two in (np.float32(2), np.int64(2), np.float64(2)):
        assert torch.equal((two * k).blocks, 2 * k.blocks)
        assert torch.equal((k * two).blocks, 2 * k.blocks)


def test_arithmetic_with_tensors():
    k = make("trace", dtype=torch.float32)
    two = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for found, want in ((k * two, 2 * k.blocks), (two * k, 2 * k.blocks), (k / two, k.blocks / 2)):
        assert torch.equal(found.blocks, want)
        assert found.blocks.dtype is torch.float32
    (slope,) = torch.autograd.grad((k * two).blocks.sum() + (two * k).blocks.sum(), two)
    torch.testing.assert_close(slope.float(), 2 * k.blocks.sum())
    (slope,) = torch.autograd.grad((k / two).blocks.sum(), two)
    torch.testing.assert_close(slope.float(), -k.blocks.sum() / 4)
    assert torch.equal((k * torch.tensor(2)).blocks, 2 * k.blocks)
    with pytest.raises(ValueError, match="a divisor must not be 0, got 0"):
        k / torch.tensor(0.0)
    for bad, found in (
        (torch.ones(2), r"torch.float32 \[2\]"),
        (torch.tensor(True), r"torch.bool \[\]"),
        (torch.tensor(1j), r"torch.complex64 \[\]"),
    ):
        with pytest.raises(TypeError, match=f"a factor must be a real number, or a tensor .. of one, got {found}"):
            bad * k
        with pytest.raises(TypeError, match=f"a divisor must be a real number, or a tensor .. of one, got {found}"):
            k / bad
    for bad in (torch.tensor(float("nan")), torch.tensor(float("inf")), float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="a factor must be finite, got"):
            k * bad
        with pytest.raises(ValueError, match="a divisor must be finite, got"):
            k / bad


@pytest.mark.parametrize(
    "other",
    ["a", None, True, 1j, [1.0], torch.ones(1), torch.ones(2), torch.tensor(True), torch.tensor(1j), np.ones(1)],
    ids=repr,
)  # fmt: skip
def test_arithmetic_refuses(other):
    k = make("trace")
    for work in (operator.add, operator.sub, operator.mul, operator.truediv):
        for a, b in ((k, other), (other, k)):
            with pytest.raises(TypeError):
                work(a, b)


def test_arithmetic_refuses_what_means_nothing():
    k = make("trace")
    for work in (
        lambda: k + 1, lambda: 1 + k, lambda: False + k, lambda: k - 0, lambda: 1 - k, lambda: 1 / k, lambda: k * k,
        lambda: k / k, lambda: k**2, lambda: torch.tensor(0.0) + k,
    ):  # fmt: skip
        with pytest.raises(TypeError, match="unsupported operand"):
            work()


def test_select():
    k = make("full", depth=3)
    part = k.select(["readout 3", 0, -2])
    assert part.names == ("readout 3", "readout 1", "readout 2")
    assert torch.equal(part.blocks, k.blocks[[2, 0, 1]])
    assert part.matrix().data_ptr() == part.blocks.data_ptr()
    with pytest.raises(ValueError, match="layers must be below 3 or among 'readout 1'.*got 'hidden.0'"):
        k.select(["hidden.0"])
    for bad in (1.5, True, None, 3, -4):
        with pytest.raises(ValueError, match=f"layers must be below 3 or among 'readout 1'.*got {bad}"):
            k.select([bad])
    assert k.select([]).blocks.shape == (0, 4, 4, 3, 3)
    assert k.select([]).combine([]).shape == (4, 4, 3, 3)
    assert k.select([]).combine(torch.zeros(3, 0)).shape == (4, 4, 3, 3)


def test_to():
    k = make("full").to(torch.float32)
    assert k.blocks.dtype is torch.float32
    assert k.blocks.permute(0, 1, 3, 2, 4).is_contiguous()


def test_repr():
    text = repr(make("full").to(torch.float32))
    assert text == (
        "LayerKernels(2 blocks of 4 x 4 examples (full, 3 outputs); symmetric; float32 on cpu, 1.1 KiB; "
        "readout 1, readout 2)"
    )
    assert "normalized: joint" in repr(make("trace").normalize("joint"))
    assert "readout 1, readout 2, ..., readout 6" in repr(make("trace", depth=6))


def test_construction_errors():
    with pytest.raises(ValueError, match="reduction must be one of"):
        LayerKernels(torch.zeros(1, 2, 2), ("a",), "sum")
    with pytest.raises(ValueError, match=r"blocks must have shape \[L, n1, n2\]"):
        LayerKernels(torch.zeros(2, 2), ("a",), "trace")
    with pytest.raises(ValueError, match="names must have 1 entries"):
        LayerKernels(torch.zeros(1, 2, 2), ("a", "b"), "trace")
    with pytest.raises(ValueError, match="two equal sizes"):
        LayerKernels(torch.zeros(1, 2, 2, 3, 4), ("a",), "full")
    with pytest.raises(ValueError, match="square where symmetric"):
        LayerKernels(torch.zeros(1, 2, 3), ("a",), "trace", symmetric=True)
    with pytest.raises(TypeError, match="blocks must be a torch.Tensor"):
        LayerKernels(np.zeros((1, 2, 2)), ("a",), "trace")
    for names in ("a", [1], {"a"}, None):
        with pytest.raises(TypeError, match="names must be a list of strings, got"):
            LayerKernels(torch.zeros(1, 2, 2), names, "trace")
    with pytest.raises(ValueError, match="normalization must be None or one of 'cosine', 'joint', got 'cos'"):
        LayerKernels(torch.zeros(1, 2, 2), ("a",), "trace", "cos")
    with pytest.raises(TypeError, match="symmetric must be True or False, got 1"):
        LayerKernels(torch.zeros(1, 2, 2), ["a"], "trace", symmetric=1)
    assert LayerKernels(torch.zeros(1, 2, 2), ["a"], "trace").names == ("a",)
