"""Which path nftk.ops.network takes on a GPU, and what its Triton kernels leave to others."""

import importlib

import pytest
import torch
from network_inputs import SHAPES, flat, make_inputs, run
from torch._subclasses.fake_tensor import FakeTensorMode

from nftk.ops import activations
from nftk.ops.explain import explain
from nftk.ops.network_formula import Plan

# the function of that name hides the module
network_module = importlib.import_module("nftk.ops.network")


@pytest.mark.parametrize(
    ("shape", "keywords", "message"),
    [
        ((2, 3, (4,), 65), {}, "more than 64 outputs, got 65"),
        ((2, 3, (1025,), 2), {}, "layers wider than 1024, got 1025"),
        ((2, 3, (1,) * 101, 2), {}, "more than 100 layers, got 101"),
        ((2, 3, (4, 4), 2), {"activation": ["relu", "tanh"]}, "different activations, got relu, tanh"),
        ((2, 3, (4, 4), 2), {"activation": torch.nn.LeakyReLU(0.3)}, "an activation without a name"),
    ],
    ids=["outputs", "width", "layers", "activations", "callable"],
)
def test_what_the_kernels_do_not_serve(shape, keywords, message):
    with pytest.raises(NotImplementedError, match=f"nftk.ops.network: backend 'triton' has no code for {message}"):
        run(make_inputs(shape), backend="triton", **keywords)


def plan(widths, names, callables=False):
    phis = [activations.resolve(torch.nn.LeakyReLU(0.3) if callables else name) for name in names]
    ones = (1.0,) * len(widths)
    return Plan(widths, tuple(phis), ones, ones, ones)


@pytest.mark.parametrize(
    ("widths", "d", "names", "dtype", "keywords", "taken"),
    [
        ((256,) * 10, 10, ["relu"] * 10, torch.float32, {}, "triton"),
        ((256, 100), 64, ["gelu"] * 2, torch.bfloat16, {}, "triton"),
        ((256, 100), 65, ["gelu"] * 2, torch.float32, {}, "layers"),
        ((2000, 100), 10, ["relu"] * 2, torch.float32, {}, "layers"),
        ((8, 8), 10, ["relu", "tanh"], torch.float32, {}, "layers"),
        ((8, 8), 10, ["relu"] * 2, torch.float32, {"callables": True}, "layers"),
        ((8, 8), 10, ["relu"] * 2, torch.float64, {}, "node"),
        ((8,) * 101, 10, ["relu"] * 101, torch.float32, {}, "node"),
        ((2000, 100), 10, ["relu"] * 2, torch.float32, {"setting": "high"}, "node"),
        ((256, 100), 10, ["relu"] * 2, torch.float32, {"setting": "high"}, "triton"),
        ((8, 8), 10, ["relu"] * 2, torch.float32, {"problem": "Triton is not installed"}, "node"),
        ((8, 8), 10, ["relu"] * 2, torch.bfloat16, {"problem": "Triton is not installed"}, "formula"),
        ((8, 8), 10, ["relu"] * 2, torch.float32, {"backend": "torch"}, "node"),
    ],
)  # fmt: skip
def test_the_rule_on_a_gpu(monkeypatch, widths, d, names, dtype, keywords, taken):
    """Which path "auto" takes for tensors on a CUDA device, as the docstring of nftk.ops.network says."""
    monkeypatch.setattr(network_module, "_ORDINARY", frozenset({torch.Tensor, *fake_types()}))
    monkeypatch.setattr("nftk._dispatch._TRITON_PACKAGE", keywords.get("problem"))
    monkeypatch.setattr("nftk._dispatch._TRITON_INTERPRETED", True)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: keywords.get("setting", "highest"))
    with FakeTensorMode():
        x, omega = (torch.empty(size, dtype=dtype, device="cuda") for size in ((50, 20), (d, len(widths))))
    found = network_module.path(
        plan(widths, names, keywords.get("callables", False)), keywords.get("backend", "auto"), x, (omega,)
    )
    assert found == taken
    if not {"setting", "problem", "backend"} & set(keywords):
        activation = torch.nn.LeakyReLU(0.3) if keywords else names
        told = explain(20, widths, d, activation, dtype)
        assert told.path == taken
        assert len(told.why) > 20


def fake_types():
    from torch._subclasses.fake_tensor import FakeTensor

    return {FakeTensor}


def test_layer_by_layer(small_tiles, grid, monkeypatch):
    """The fall-back: torch layer by layer, then the one launch of readout."""
    i = make_inputs(SHAPES[1], requires_grad=True)
    want = run(i, backend="torch", activation=["relu", "tanh", "gelu"])
    seed = torch.randn_like(want)
    grads = torch.autograd.grad(want, flat(i), seed)
    monkeypatch.setattr(network_module, "path", lambda *args: "layers")
    got = run(i, activation=["relu", "tanh", "gelu"])
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, flat(i), seed), grads, strict=True):
        torch.testing.assert_close(a, b)
    assert grid.launches == ["_readout_fwd_kernel", "_readout_bwd_kernel"]
