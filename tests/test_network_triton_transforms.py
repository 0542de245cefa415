"""nftk.ops.network by the Triton kernels under torch's transforms: second derivatives, vmap, opcheck, compile."""

from types import SimpleNamespace

import pytest
import torch
from kernel_checks import compile_and_list, error
from network_inputs import SHAPES, flat, make_inputs, run, truth, wide
from torch.library import opcheck

import nftk


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_second_derivatives(small_tiles, name):
    i = make_inputs((5, 4, (3, 2), 2), requires_grad=True)
    doubles = wide(i)

    def second(inputs, f):
        first = torch.autograd.grad(f.sin().sum(), flat(inputs), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), flat(inputs))

    ours = second(i, run(i, activation=name, backend="triton"))
    for a, b in zip(ours, second(doubles, truth(doubles, name)), strict=True):
        assert error(a, b) < 1e-5


@pytest.mark.parametrize(("of_x", "of_the_rest"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_second_derivatives_of_two_dtypes(small_tiles, of_x, of_the_rest):
    """Autocast takes x and the parameters in different dtypes; the gradients are taken after it is left."""
    i = make_inputs((5, 4, (3, 2), 2))
    for name, value in vars(i).items():
        several = value if isinstance(value, list) else [value]
        dtype = of_x if name == "x" else of_the_rest
        several = [t.to(dtype).requires_grad_() for t in several]
        setattr(i, name, several if isinstance(value, list) else several[0])
    doubles = wide(i)

    def second(inputs, f):
        first = torch.autograd.grad(f.double().sin().sum(), flat(inputs), create_graph=True)
        return torch.autograd.grad(sum(g.double().square().sum() for g in first), flat(inputs))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = run(i, activation="tanh", backend="triton")
    for a, b, t in zip(second(i, f), second(doubles, truth(doubles, "tanh")), flat(i), strict=True):
        assert a.dtype is t.dtype
        assert error(a, b) < 0.05


@pytest.mark.parametrize("lead", [(4,), (4, 2), ()], ids=str)
def test_vmap_over_none(small_tiles, lead):
    """A batch of no examples has the right shape, through backward too."""
    i = make_inputs((4, 3, (5, 2), 2))

    def f(x):
        return run(SimpleNamespace(**{**vars(i), "x": x}), backend="triton")

    none = i.x.new_zeros(0, *lead, 3).requires_grad_()
    out = torch.vmap(f)(none)
    assert out.shape == (0, *lead, 2)
    assert torch.autograd.grad(out.sum(), none)[0].shape == (0, *lead, 3)


def test_gradients_in_batches_and_ensembles(small_tiles):
    """torch.autograd.grad(is_grads_batched=True); and backward through a vmap over weights."""
    i = make_inputs((4, 3, (5, 2), 2), requires_grad=True)
    f, seeds = run(i, backend="triton"), torch.randn(3, 4, 2)
    got = torch.autograd.grad(f, flat(i), seeds, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(f, flat(i), seed, retain_graph=True) for seed in seeds]
    for a, b in zip(got, zip(*want, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b))
    several = torch.stack([i.weights[0].detach(), 2 * i.weights[0].detach()]).requires_grad_()

    def member(w, backend):
        return nftk.ops.network(
            i.x.detach(),
            [w, i.weights[1].detach()],
            [None] * 2,
            i.readout_weight.detach(),
            i.omega.detach(),
            backend=backend,
        )

    grads = []
    for backend in ("triton", "torch"):
        out = torch.vmap(lambda w, backend=backend: member(w, backend))(several)
        grads.append(torch.autograd.grad(out.sin().sum(), several)[0])
    torch.testing.assert_close(*grads)


def test_transforms(small_tiles):
    """jacrev, vmap and a derivative of a derivative are right by name; jvp is refused by name, never silently zero."""
    i = make_inputs((5, 4, (3, 2), 2))

    def f(x, w):
        return run(
            SimpleNamespace(**{**vars(i), "x": x, "weights": [w, i.weights[1]]}), backend="triton", activation="tanh"
        )

    def g(x, w):
        return truth(SimpleNamespace(**{**vars(i), "x": x, "weights": [w, i.weights[1]]}), "tanh")

    w = i.weights[0]
    torch.testing.assert_close(torch.func.jacrev(f, (0, 1))(i.x, w), torch.func.jacrev(g, (0, 1))(i.x, w))
    batch = torch.stack([i.x, 2 * i.x])
    torch.testing.assert_close(torch.func.vmap(f, (0, None))(batch, w), torch.stack([g(x, w) for x in batch]))
    with pytest.raises(NotImplementedError, match=r"'triton' has no code for forward-mode derivatives \(jvp\)"):
        torch.func.jvp(lambda x: f(x, w), (i.x,), (i.x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_registration(small_tiles, name, dtype):
    i = make_inputs(SHAPES[1], dtype)
    i.x, i.readout_weight, i.omega = i.x.clone(), i.readout_weight.clone(), i.omega.clone()
    i.biases[1] = None
    ones = [1.0] * 3
    for training in (True, False):
        args = (i.x, i.omega, i.readout_weight, i.output_bias, i.weights, i.biases, name, ones, ones, ones, training,
                "highest", dtype)  # fmt: skip
        opcheck(torch.ops.nftk.network.default, args)
    _, states, pre = torch.ops.nftk.network(*args[:10], True, "highest", dtype)
    for needs in ([True] * 5, [False, True, False, False, False], [True, False, False, False, False]):
        grad = torch.randn(7, 3, dtype=dtype)
        args = (
            grad,
            i.x,
            i.omega,
            i.readout_weight,
            i.weights,
            states,
            pre,
            name,
            ones,
            ones,
            ones,
            0,
            needs,
            "highest",
        )
        opcheck(torch.ops.nftk.network_bwd.default, args)


# torch 2.13 makes the instance itself, while it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile(small_tiles):
    """One graph of a module, with the kernels inside it forward and backward."""
    model = nftk.NFTKMLP(5, [4, 3], 2, backend="triton", output_bias=True)
    x = torch.randn(6, 5, requires_grad=True)
    compiled, seen = compile_and_list(model)
    got, want = compiled(x), model(x)
    torch.testing.assert_close(got, want)
    tensors = [x, *model.parameters()]
    pairs = zip(torch.autograd.grad(got.sum(), tensors), torch.autograd.grad(want.sum(), tensors), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
    assert "nftk.network.default" in seen
    assert "nftk.network_bwd.default" in seen
