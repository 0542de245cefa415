"""LayerKernels: what can be done with kernels once they are there."""

import numpy as np
import pytest
import torch
from kernel_checks import error

import nftk
from nftk import LayerKernels


def make(reduction, n1=4, n2=None, d=3, depth=2, dtype=torch.float64):
    """Symmetric, positive kernels without n2."""
    a = torch.randn(depth, n1, d, 7, dtype=dtype)
    b = a if n2 is None else torch.randn(depth, n2, d, 7, dtype=dtype)
    full = torch.einsum("laic,lbjc->laibj", a, b).permute(0, 1, 3, 2, 4)
    blocks = {
        "full": full,
        "diagonal": full.diagonal(dim1=3, dim2=4),
        "trace": full.diagonal(dim1=3, dim2=4).sum(-1),
        "sum_logits": full.sum((3, 4)),
        "scalar": full[..., 0, 0],
    }[reduction]
    return LayerKernels(blocks, tuple(f"readout {i + 1}" for i in range(depth)), reduction, symmetric=n2 is None)


def test_combine_full_is_the_formula():
    k, omega = make("full"), torch.rand(3, 2, dtype=torch.float64)
    for power in (2, 1):
        want = sum(
            torch.diag(omega[:, i] ** (power / 2)) @ k.blocks[i] @ torch.diag(omega[:, i] ** (power / 2))
            for i in range(2)
        )
        assert k.combine(omega, power).shape == (4, 4, 3, 3)
        assert error(k.combine(omega, power), want) < 1e-14


def test_combine_agrees_over_reductions():
    torch.manual_seed(3)
    full = make("full")
    diagonal = LayerKernels(full.blocks.diagonal(dim1=3, dim2=4), full.names, "diagonal", symmetric=True)
    omega = torch.rand(3, 2, dtype=torch.float64)
    for power in (2, 1):
        got = diagonal.combine(omega, power)
        assert got.shape == (3, 4, 4)
        assert error(got, full.combine(omega, power).diagonal(dim1=2, dim2=3).permute(2, 0, 1)) < 1e-14
        shared = omega[0]
        assert error(diagonal.combine(shared, power), diagonal.combine(shared.expand(3, 2), power)) < 1e-14
        assert error(full.combine(shared, power), full.combine(shared.expand(3, 2), power)) < 1e-14


@pytest.mark.parametrize("reduction", ["trace", "sum_logits"])
def test_combine_without_classes(reduction):
    k, omega = make(reduction), torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert error(k.combine(omega), 0.25 * k.blocks[0] + 4 * k.blocks[1]) < 1e-15
    with pytest.raises(ValueError, match=r"omega must have shape \[2\], because .* has no classes left, got \[3, 2\]"):
        k.combine(torch.ones(3, 2))


def test_combine_scalar():
    k, omega = make("scalar"), torch.rand(5, 2, dtype=torch.float64)
    assert k.combine(omega).shape == (5, 4, 4)
    assert error(k.combine(omega)[3], omega[3, 0] ** 2 * k.blocks[0] + omega[3, 1] ** 2 * k.blocks[1]) < 1e-15
    assert k.combine(omega[0]).shape == (4, 4)


@pytest.mark.parametrize("reduction", ["full", "diagonal", "scalar"])
@pytest.mark.parametrize("power", [2, 1])
def test_combine_is_differentiable(reduction, power):
    k = make(reduction, n1=2, n2=3)
    omega = (torch.rand(3, 2, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: k.combine(w, power), omega)


def test_combine_errors():
    k = make("full")
    with pytest.raises(ValueError, match=r"omega must have shape \[3, 2\], got \[2, 3\]"):
        k.combine(torch.ones(2, 3))
    with pytest.raises(ValueError, match="omega must be at least 0 where power is not 2"):
        k.combine(-torch.ones(3, 2), power=1)
    k.combine(-torch.ones(3, 2))


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


def test_indexing_views_and_copies():
    k = make("full")
    part = k[1:3, ::2]
    assert part.blocks.data_ptr() == k.blocks[:, 1:3].data_ptr()
    assert torch.equal(part.blocks, k.blocks[:, 1:3, ::2])
    assert k[1].shape == (1, 4)
    assert k[-1, -1].shape == (1, 1)
    assert torch.equal(k[[2, 0], torch.tensor([1, 3])].blocks, k.blocks[:, [2, 0]][:, :, [1, 3]])
    assert torch.equal(k[torch.tensor([True, False, True, False])].blocks, k.blocks[:, [0, 2]])
    assert torch.equal(k[::-1].blocks, k.blocks.flip(1))
    assert torch.equal(k[np.array([1, 2])].blocks, k.blocks[:, 1:3])
    with pytest.raises(IndexError, match="an index must be below 4, got 4"):
        k[4]


def test_indexing_knows_symmetry():
    k = make("trace")
    assert k[:2, :2].symmetric
    assert k[[3, 1], [3, 1]].symmetric
    assert not k[:2].symmetric
    assert not k[:2, 2:].symmetric
    assert not k[[3, 1], [1, 3]].symmetric
    assert not make("trace", n2=4)[:2, :2].symmetric


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
    with pytest.raises(TypeError, match="a factor must be a number"):
        k * torch.ones(2)
    with pytest.raises(ValueError, match="a divisor must not be 0"):
        k / 0


def test_select():
    k = make("full", depth=3)
    part = k.select(["readout 3", 0, -2])
    assert part.names == ("readout 3", "readout 1", "readout 2")
    assert torch.equal(part.blocks, k.blocks[[2, 0, 1]])
    assert part.matrix().data_ptr() == part.blocks.data_ptr()
    with pytest.raises(ValueError, match="layers must be below 3 or among 'readout 1'.*got 'hidden.0'"):
        k.select(["hidden.0"])


def test_to():
    k = make("full").to(torch.float32)
    assert k.blocks.dtype is torch.float32
    assert k.blocks.permute(0, 1, 3, 2, 4).is_contiguous()


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace", "sum_logits", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_save_and_load(tmp_path, reduction, dtype):
    k = make(reduction, n2=5, dtype=dtype)
    k.save(tmp_path / "k.safetensors")
    back = LayerKernels.load(tmp_path / "k.safetensors")
    assert torch.equal(back.blocks, k.blocks)
    assert (back.names, back.reduction, back.symmetric) == (k.names, k.reduction, k.symmetric)
    assert back.matrix().data_ptr() == back.blocks.data_ptr()
    make(reduction).normalize().save(tmp_path / "k.safetensors")
    back = LayerKernels.load(tmp_path / "k.safetensors")
    assert back.normalization == "cosine"
    assert back.symmetric


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match="must be a file, got none there"):
        LayerKernels.load(tmp_path / "none")
    (tmp_path / "text").write_text("no kernels")
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        LayerKernels.load(tmp_path / "text")
    nftk.NFTKMLP(3, [4], 2).save(tmp_path / "model")
    with pytest.raises(ValueError, match="must hold kernels that nftk wrote"):
        LayerKernels.load(tmp_path / "model")
    make("full").save(tmp_path / "k")
    (tmp_path / "cut").write_bytes((tmp_path / "k").read_bytes()[:-8])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        LayerKernels.load(tmp_path / "cut")


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
