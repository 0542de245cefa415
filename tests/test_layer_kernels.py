"""LayerKernels: what can be done with kernels once they are there."""

import json
import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
from kernel_checks import error
from safetensors import SafetensorError
from safetensors.torch import save_file

import nftk
from nftk import LayerKernels
from nftk.tangent import kernel_file


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


@pytest.mark.parametrize("reduction", ["full", "diagonal", "scalar"])
@pytest.mark.parametrize("shared", [True, False], ids=["(L,)", "(d, L)"])
def test_combine_with_power_1_is_linear_at_zero_weights(reduction, shared):
    """All of a shared weight's and the diagonal's entries are linear in omega, so 0 has their slope."""
    k = make(reduction, n1=2, n2=3)
    omega = torch.tensor([0.0, 0.5]) if shared else torch.tensor([[0.0, 0.5], [2.0, 0.0], [0.0, 0.0]])
    omega = omega.double().requires_grad_()

    def of_equal_classes(omega):
        found = k.combine(omega, power=1)
        return found.diagonal(dim1=2, dim2=3) if reduction == "full" and not shared else found

    got = torch.autograd.functional.jacobian(of_equal_classes, omega)
    want = torch.autograd.functional.jacobian(of_equal_classes, (omega + 1).detach())
    assert error(got, want) < 1e-14
    assert all(want.movedim(-1, 0)[i].any() for i in range(2))


def test_combine_with_power_1_and_two_classes():
    """Roots of two classes: their slope where both are positive, 0 where it does not exist."""
    k = make("full", n1=2, n2=3, depth=1)
    omega = torch.tensor([[0.0], [4.0], [9.0]], dtype=torch.float64, requires_grad=True)
    gradient = {}
    for i, j in ((0, 1), (1, 0), (1, 2)):
        (gradient[i, j],) = torch.autograd.grad(k.combine(omega, power=1)[..., i, j].sum(), omega)
    assert not gradient[0, 1].any()
    assert not gradient[1, 0].any()
    # sqrt(4 * 9) = 6 grows by 3/4 and 1/3
    total = k.blocks[0, ..., 1, 2].sum()
    torch.testing.assert_close(gradient[1, 2][:, 0], total * total.new_tensor([0, 0.75, 1 / 3]))


@pytest.mark.parametrize("reduction", ["full", "diagonal", "scalar"])
@pytest.mark.parametrize("power", [0.5, 1, 1.5, 2, 2.5, 3, 4])
def test_combine_has_finite_derivatives_at_zero_weights(reduction, power):
    k = make(reduction, n1=2, n2=3)
    omega = torch.zeros(3, 2, dtype=torch.float64)
    omega[0, 0] = 0.5
    for w in (omega, omega[0]):
        w = w.clone().requires_grad_()
        total = k.combine(w, power).square().sum() + k.combine(w, power).sum()
        (first,) = torch.autograd.grad(total, w, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), w)
        assert first.isfinite().all()
        assert second.isfinite().all()
        assert first.flatten()[0] != 0


@pytest.mark.parametrize("power", [2, 1])
def test_combine_under_transforms(power):
    k, omega = make("full", n1=2, n2=3), torch.rand(4, 3, 2, dtype=torch.float64)

    def combined(w):
        return k.combine(w, power)

    assert error(torch.vmap(combined)(omega)[3], combined(omega[3])) < 1e-15
    assert torch.func.hessian(lambda w: combined(w).sum())(omega[0]).isfinite().all()
    torch.compiler.reset()
    assert torch.equal(torch.compile(combined, fullgraph=True, backend="eager")(omega[0]), combined(omega[0]))


@pytest.mark.parametrize("power", [0, -1, float("nan"), float("inf")])
def test_combine_refuses_powers(power):
    with pytest.raises(ValueError, match=r"nftk.LayerKernels.combine: power must be finite and above 0, got "):
        make("full").combine(torch.ones(2), power)


def test_combine_errors():
    k = make("full")
    with pytest.raises(TypeError, match="combine: power must be a number, got '2'"):
        k.combine(torch.ones(2), "2")
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=f"combine: omega must be finite, got {bad}"):
            k.combine([1.0, bad])
    for bad in ("ab", [[1.0, 2.0], [3.0]], [None, 1.0], torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="combine: omega must be a tensor or a list of real numbers, got"):
            k.combine(bad)
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
    assert torch.equal(k[-1, -1].blocks, k.blocks[:, 3:, 3:])
    assert torch.equal(k[[2, 0], torch.tensor([1, 3])].blocks, k.blocks[:, [2, 0]][:, :, [1, 3]])
    assert torch.equal(k[torch.tensor([True, False, True, False])].blocks, k.blocks[:, [0, 2]])
    assert torch.equal(k[::-1].blocks, k.blocks.flip(1))
    assert torch.equal(k[:, 2::-2].blocks, k.blocks[:, :, [2, 0]])
    assert torch.equal(k[np.array([1, 2])].blocks, k.blocks[:, 1:3])
    assert torch.equal(k[(2,)].blocks, k.blocks[:, 2:3])
    for two in (np.int64(2), torch.tensor(2), -2, np.array(2)):
        assert torch.equal(k[:, two].blocks, k.blocks[:, :, 2:3])
        assert torch.equal(k[:, [two]].blocks, k.blocks[:, :, 2:3])


def test_indexing_lists_wrap():
    k = make("trace")
    for last in ([-1, 0, -4], (-1, 0, -4), np.array([-1, 0, -4]), torch.tensor([-1, 0, -4])):
        assert torch.equal(k[last, :].blocks, k.blocks[:, [3, 0, 0]])
    assert torch.equal(k[range(-2, 1)].blocks, k.blocks[:, [2, 3, 0]])


@pytest.mark.parametrize(
    "nothing", [[], (), torch.tensor([]), np.array([]), slice(3, 1), slice(0, 0), [False] * 4], ids=repr
)
def test_indexing_nothing(nothing):
    k = make("full")
    assert k[nothing, :].blocks.shape == (2, 0, 4, 3, 3)
    assert k[:, nothing].blocks.shape == (2, 4, 0, 3, 3)
    assert k[nothing, nothing].combine(torch.ones(2)).shape == (0, 0, 3, 3)


def test_indexing_keeps_gradients():
    k = make("trace")
    blocks = k.blocks.requires_grad_()
    k = LayerKernels(blocks, k.names, "trace")
    k[[0, 0], ::-1].blocks.sum().backward()
    assert torch.equal(blocks.grad[0, :, 0], torch.tensor([2.0, 0, 0, 0], dtype=torch.float64))


def test_indexing_errors():
    k = make("trace", n2=5)
    for bad in (4, -5, [0, 4], [-5], torch.tensor([4])):
        with pytest.raises(IndexError, match=r"nftk.LayerKernels: an index must be from -4 to 3, got (4|-5)$"):
            k[bad]
    with pytest.raises(IndexError, match="an index must be from -5 to 4, got 5"):
        k[0, 5]
    with pytest.raises(IndexError, match="there is nothing to index, got 0"):
        k[[]][0]
    for bad in (1.0, None, ..., "readout 1", {1}, 1j, torch.tensor(1.0), k):
        with pytest.raises(TypeError, match="an index must be an integer, a slice, a list of integers or a mask, got"):
            k[bad]
    for bad in (True, np.True_, torch.tensor(False)):
        with pytest.raises(TypeError, match="an index must be .* got (True|False)"):
            k[bad]
    for bad in ([0.0], [0, None], [True, 2], [[0, 1]], torch.ones(1, 1, dtype=torch.int64), ["a"], np.array([1.5])):
        with pytest.raises(TypeError, match="a list must hold integers, or a mask true and false, got"):
            k[bad]
    for bad in (slice(0, 1.5), slice("a", None), slice(None, None, 0)):
        with pytest.raises(
            (TypeError, ValueError), match=r"a slice must have integer ends and a step but 0, got slice"
        ):
            k[bad]
    with pytest.raises(IndexError, match=r"an index must have two parts at most, rows and columns, got 3.*select"):
        k[0, 1, 2]
    with pytest.raises(ValueError, match="a mask must have 4 entries, one an example, got 3"):
        k[[True, False, True]]


def test_kernels_are_no_sequence():
    k = make("trace")
    for walk in (list, iter, lambda k: zip(k, k.names, strict=True)):
        with pytest.raises(
            TypeError, match=r"nftk.LayerKernels: a loop must be over k.blocks or k.names, which .*layer"
        ):
            walk(k)
    for walk in (reversed, np.asarray, lambda k: "readout 1" in k):
        with pytest.raises(TypeError):
            walk(k)


def test_indexing_knows_symmetry():
    k = make("trace")
    assert k[:2, :2].symmetric
    assert k[0:2, :2].symmetric
    assert k[:9, :].symmetric
    assert k[-2:, 2:4].symmetric
    assert k[::2, 0:3:2].symmetric
    assert k[::-1, ::-1].symmetric
    assert k[1, 1].symmetric
    assert k[1, -3].symmetric
    assert k[1, 1:2].symmetric
    assert k[[3, 1], [3, 1]].symmetric
    assert k[[3, 1], (-1, 1)].symmetric
    assert k[[1, 2], torch.tensor([1, 2])].symmetric
    assert k[[False, True, True, False], 1:3].symmetric
    assert not k[:2].symmetric
    assert k[:].symmetric
    assert not k[:2, 2:].symmetric
    assert not k[:2, 1::-1].symmetric
    assert not k[1, 2].symmetric
    assert not k[[3, 1], [1, 3]].symmetric
    assert not k[[3, 1], [3, 1, 1]].symmetric
    assert not make("trace", n2=4)[:2, :2].symmetric
    assert not make("trace", n2=5)[:, :].symmetric


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


def write(path, kernel, tensor=None):
    """A file as save writes it, with a header of the caller's."""
    header = kernel if isinstance(kernel, str) else json.dumps({"kernel": kernel})
    tensor = torch.zeros(1, 2, 2) if tensor is None else tensor
    save_file({"kernels": tensor}, str(path), metadata={"nftk": header})
    return path


HEADER = {"names": ["a"], "reduction": "trace", "normalization": None, "symmetric": True}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("names", "a", "names must be a list of strings, got 'a'"),
        ("names", [1], r"names must be a list of strings, got \[1\]"),
        ("names", {"a": 1}, "names must be a list of strings, got"),
        ("names", None, "names must be a list of strings, got None"),
        ("names", ["a", "b"], "names must have 1 entries, one a block, got 2"),
        ("reduction", ["trace"], r"reduction must be one of .*, got \['trace'\]"),
        ("reduction", "traces", "reduction must be one of .*, got 'traces'"),
        ("normalization", 3, "normalization must be None or one of 'cosine', 'joint', got 3"),
        ("normalization", "cosines", "normalization must be None or one of 'cosine', 'joint', got 'cosines'"),
        ("normalization", ["joint"], "normalization must be None or one of"),
        ("symmetric", "yes", "symmetric must be True or False, got 'yes'"),
        ("symmetric", 1, "symmetric must be True or False, got 1"),
        ("symmetric", None, "symmetric must be True or False, got None"),
        ("reduction", "full", r"blocks must have 5 dimensions where reduction is 'full', got 3"),
        ("reduction", "diagonal", r"blocks must have 4 dimensions where reduction is 'diagonal', got 3"),
    ],
)
def test_load_checks_the_header(tmp_path, key, value, reason):
    LayerKernels.load(write(tmp_path / "k", HEADER))
    write(tmp_path / "k", HEADER | {key: value})
    with pytest.raises(
        ValueError, match=f"^nftk.LayerKernels.load: .*k must hold kernels that nftk wrote, got {reason}"
    ):
        LayerKernels.load(tmp_path / "k")
    write(tmp_path / "k", {name: told for name, told in HEADER.items() if name != key})
    with pytest.raises(ValueError, match=f"k must hold kernels that nftk wrote, got no {key!r} in its header"):
        LayerKernels.load(tmp_path / "k")


@pytest.mark.parametrize(
    "header",
    ["", "{", "3", "null", "[]", "{}", '{"kernel": 3}', '{"kernel": {}}', "[" * 100_000],
    ids=lambda header: header[:20],
)  # fmt: skip
def test_load_of_odd_headers(tmp_path, header):
    with pytest.raises(
        ValueError, match="^nftk.LayerKernels.load: .*k must hold kernels that nftk wrote, got "
    ) as seen:
        LayerKernels.load(write(tmp_path / "k", header))
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_load_of_odd_numbers(tmp_path, dtype):
    with pytest.raises(ValueError, match="k must hold kernels that nftk wrote, got blocks must have a floating dtype"):
        LayerKernels.load(write(tmp_path / "k", HEADER, torch.zeros(1, 2, 2).to(dtype)))


def test_load_checks_the_device_first(tmp_path):
    for bad in ("nonsense", "cuda:99", 3.4):
        with pytest.raises(
            ValueError, match=f"load: device must be one that torch can use here, got {bad!r}: "
        ) as seen:
            LayerKernels.load(tmp_path / "none", device=bad)
        assert "\n" not in str(seen.value)
    make("full").save(tmp_path / "k")
    assert LayerKernels.load(tmp_path / "k", torch.device("meta")).blocks.device.type == "meta"
    with pytest.raises(ValueError, match="must be a file, got a folder"):
        LayerKernels.load(tmp_path)


def test_save_writes_whole_files_only(tmp_path, monkeypatch):
    k = make("trace")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(ValueError, match="nftk.LayerKernels.save: .*folder must be a file, got a folder"):
        k.save(tmp_path / "folder")
    with pytest.raises(ValueError, match="must be in a folder that exists, got no .*missing"):
        k.save(tmp_path / "missing" / "k")
    k.save(tmp_path / "k")

    def fail(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(kernel_file, "save_file", fail)
    with pytest.raises(OSError, match="No space left on device.*k'"):
        (2 * k).save(tmp_path / "k")
    with pytest.raises(OSError, match="No space left on device.*new'"):
        k.save(tmp_path / "new")
    assert torch.equal(LayerKernels.load(tmp_path / "k").blocks, k.blocks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "k"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept"]


def test_save_onto_the_file_it_was_loaded_from(tmp_path):
    make("full")[[], :].save(tmp_path / "k")
    assert LayerKernels.load(tmp_path / "k").shape == (0, 4)
    k = make("full")
    k.save(tmp_path / "k")
    (2 * LayerKernels.load(tmp_path / "k")).save(tmp_path / "k")
    assert torch.equal(LayerKernels.load(tmp_path / "k").blocks, 2 * k.blocks)


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
