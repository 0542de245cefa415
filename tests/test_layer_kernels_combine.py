"""LayerKernels.combine: the kernel of the network from those of its layers and Omega."""

import pytest
import torch
from kernel_checks import error
from layer_kernel_examples import make

from nftk import LayerKernels


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
