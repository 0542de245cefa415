"""empirical_ntk in torch's modes: derivatives, 16 bits, inference mode, autocast, threads."""

import copy
import threading

import pytest
import torch
from chain_examples import OneReadout, inputs, make_model
from jacobian_kernels import jacobian_kernel
from kernel_checks import error
from torch import nn

import nftk

ntk = nftk.empirical_ntk


def test_results_are_detached():
    model = make_model("relu")
    x = inputs(model)[0].requires_grad_()
    assert not ntk(model, x).blocks.requires_grad


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("reduction", ["full", "trace"])
def test_differentiable(reduction, symmetric):
    torch.manual_seed(0)
    model = nftk.NFTKMLP(3, [4, 2], 2, activation="tanh", dtype=torch.float64)
    x1, x2 = inputs(model, 3, 2)
    x2 = None if symmetric else x2
    parameters = dict(model.named_parameters())

    def through(x, *values):
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(
            Kernel(model, reduction), {f"model.{n}": v for n, v in given.items()}, (x, x2)
        )

    start = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert error(through(x1, *start), ntk(model, x1, x2, reduction=reduction, per="model").blocks) < 1e-13
    assert torch.autograd.gradcheck(through, (x1.requires_grad_(), *start))


class Kernel(nn.Module):
    def __init__(self, model, reduction):
        super().__init__()
        self.model, self.reduction = model, reduction

    def forward(self, x1, x2):
        return ntk(self.model, x1, x2, per="model", reduction=self.reduction, differentiable=True).blocks


def test_differentiable_errors():
    model = make_model("relu")
    x = inputs(model)[0]
    with pytest.raises(ValueError, match="differentiable must go without out and memory_budget"):
        ntk(model, x, differentiable=True, memory_budget=1 << 30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_taken_over(dtype):
    model = make_model("relu", torch.float32).to(dtype)
    x = inputs(model)[0].to(dtype)
    k = ntk(model, x)
    assert k.blocks.dtype is torch.float32
    assert torch.equal(k.blocks, ntk(copy.deepcopy(model).float(), x.float()).blocks)


def test_frozen_parameters_count():
    model = make_model("relu")
    x = inputs(model)[0]
    before = ntk(model, x)
    model.hidden[0].requires_grad_(False)
    assert torch.equal(ntk(model, x).blocks, before.blocks)


@pytest.mark.parametrize("n", [(0, 3), (3, 0), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("normalize", [None, "cosine"])
def test_few_examples(n, normalize):
    model = make_model("relu")
    x1, x2 = inputs(model, *n)
    assert ntk(model, x1, x2, normalize=normalize).blocks.shape == (3, *n, 4, 4)
    assert ntk(model, x1, normalize=normalize).blocks.shape == (3, n[0], n[0], 4, 4)


@pytest.mark.parametrize(
    "phi", ["gelu", nn.Mish(), nn.LeakyReLU(0.2, inplace=True), nn.Hardtanh(inplace=True)], ids=str
)
def test_inference_mode_and_functions_in_place(phi):
    model = nftk.NFTKMLP(4, [8, 6], 3, activation=phi, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    k = ntk(model, x)
    truth = jacobian_kernel(OneReadout(model, 1), x, x)
    assert error(k.blocks[1], truth) < 1e-12
    with torch.inference_mode():
        assert torch.equal(ntk(model, x).blocks, k.blocks)
        assert torch.equal(ntk(model, x.clone()).blocks, k.blocks)


def test_autocast_changes_nothing():
    model, x = make_model("relu", torch.float32), torch.randn(5, 5)
    want, own = ntk(model, x).blocks, nftk.tangent.self_kernels(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ntk(model, x).blocks, want)
        assert torch.equal(nftk.tangent.self_kernels(model, x), own)
        assert error(ntk(model, x, differentiable=True).blocks, want) < 1e-6


def test_threads_can_share_a_model():
    model = make_model("relu")
    x = inputs(model)[0]
    want, found = ntk(model, x).blocks, []
    threads = [threading.Thread(target=lambda: found.append(ntk(model, x).blocks)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(k, want) for k in found)


def test_grad_mode_and_default_dtype_are_left_alone():
    model = make_model("relu", torch.float32)
    x = inputs(model, dtype=torch.float32)[0]
    with torch.inference_mode():
        k = ntk(model, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(ntk(model, x).blocks, k.blocks)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.is_grad_enabled()
