"""nftk.infinite_ntk against neural-tangents' values, the definition, quadrature, and finite networks."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import nftk
from nftk.reference import infinite_ntk as reference
from nftk.tangent import arguments_for, series_error

STAX = json.loads((Path(__file__).parent / "data" / "stax_kernels.json").read_text())
STAX_VARIANCES = {name: STAX[name] for name in ("weight_var", "bias_var", "readout_var")}


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("name", ["relu", "erf", "gelu"])
def test_neural_tangents(name, get):
    """Every depth 1 to 10 at once, as bench/peers/stax_values.py stored them."""
    x1, x2, truth = tensor(STAX["x1"]), tensor(STAX["x2"]), tensor(STAX["kernels"][name][get])
    for backend in ("auto", "torch"):
        k = nftk.infinite_ntk(x1, x2, depth=10, activation=name, get=get, backend=backend, **STAX_VARIANCES)
        assert k.reduction == "scalar"
        assert ((k.blocks - truth) / truth).abs().max() < 1e-6
        assert ((k.blocks - truth).abs().amax((1, 2)) / truth.abs().amax((1, 2))).max() < 1e-12
        k = nftk.infinite_ntk(
            x1.float(), x2.float(), depth=10, activation=name, get=get, backend=backend, **STAX_VARIANCES
        )
        assert ((k.blocks - truth).abs().amax((1, 2)) / truth.abs().amax((1, 2))).max() < 1e-5


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (torch.tanh, lambda u: 1 - torch.tanh(u) ** 2),
        (functional.silu, lambda u: u.sigmoid() * (1 + u * (1 - u.sigmoid()))),
        (torch.erf, lambda u: 2 / math.sqrt(math.pi) * torch.exp(-u * u)),
        (torch.sin, torch.cos),
        (lambda u: torch.exp(-u * u), lambda u: -2 * u * torch.exp(-u * u)),
    ],
    ids=["tanh", "silu", "erf", "sin", "bump"],
)
def test_quadrature_in_two_dimensions(function, slope):
    """Closed forms and series alike, against Gauss-Hermite quadrature of the definition."""
    x1, x2 = torch.randn(4, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    dual = reference.quadrature_dual(function, slope)
    truth, _ = reference.infinite_ntk_reference(x1, x2, dual, [1.0, 0.8], [0.2, 0.1], [1.0, 0.5])
    keywords = {"weight_var": [1.0, 0.8], "bias_var": [0.2, 0.1], "readout_var": [1.0, 0.5]}
    found = nftk.infinite_ntk(x1, x2, depth=2, activation=function, order=96, **keywords)
    bound = series_error(torch.cat([x1, x2]), depth=2, activation=function, order=96, **keywords)
    assert (found.blocks - truth).abs().max() < 1e-9 + 10 * bound
    assert bound < 1e-4


def test_series_of_a_corner():
    """relu as a callable: its error is within what is told, smaller with more terms, and none for equal inputs."""
    x = torch.randn(20, 5, dtype=torch.float64)
    truth = nftk.infinite_ntk(x, depth=1, get="nngp")
    errors = []
    for order in (8, 32, 128):
        told = series_error(x, depth=1, activation=lambda u: u.clamp_min(0), order=order)
        with pytest.warns(UserWarning, match=f"a series of order {order} leaves out up to"):
            k = nftk.infinite_ntk(x, depth=1, activation=lambda u: u.clamp_min(0), order=order, get="nngp")
        own = truth.diagonal().sqrt()
        errors.append(((k.blocks - truth.blocks) / (own[:, :, None] * own[:, None])).abs().max().item())
        assert errors[-1] <= told
        torch.testing.assert_close(k.diagonal(), truth.diagonal(), rtol=1e-12, atol=0)
    assert errors[2] < errors[1] / 4 < errors[0] / 16
    assert series_error(x, depth=3, activation="gelu") == 0


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_near_pairs_in_float32(backend):
    """What the plain formula loses near cos = 1, and ours does not: 1e-5, where it is beyond 5e-5."""
    base = torch.randn(1, 100, dtype=torch.float64)
    x = (base + torch.logspace(-7, -1, 60, dtype=torch.float64)[:, None] * torch.randn(60, 100)).float()
    truth = nftk.infinite_ntk(x.double(), depth=10, backend="torch").blocks
    found = nftk.infinite_ntk(x, depth=10, backend=backend).blocks

    def plain_dual(sigma, q1, q2):
        return reference.relu_dual(sigma, q1, q2)

    plain, _ = reference.infinite_ntk_reference(x, x, plain_dual, [2.0] * 10, [0.0] * 10, [1.0] * 10)
    scale = truth.diagonal(dim1=1, dim2=2).sqrt()
    ours, theirs = (((k.double() - truth) / (scale[:, :, None] * scale[:, None])).abs().max() for k in (found, plain))
    assert ours < 1e-5
    assert theirs > 5e-5


def near_and_opposite():
    """Distances from 1e-7 to 0.1 of one example, and some of the opposite ones; norms alike and apart."""
    base = torch.randn(1, 30, dtype=torch.float64)
    x = (base + torch.logspace(-7, -1, 20, dtype=torch.float64)[:, None] * torch.randn(20, 30)).float()
    return torch.cat([x, -x[::5], torch.randn(6, 30), torch.randn(4, 30) * torch.logspace(-2, 2, 4)[:, None]])


def to_own(found, truth):
    """Largest error, over the roots of what the two examples have with themselves."""
    own = truth.diagonal(dim1=1, dim2=2).sqrt()
    return ((found.double() - truth).abs() / (own[:, :, None] * own[:, None])).max().item()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    ("activation", "weight_var", "depth"),
    [
        ("relu", 2.0, 100), ("relu", 3.0, 100), ("gelu", 2.0, 100), ("gelu", 3.0, 50), ("gelu", 3.0, 100),
        ("erf", 2.0, 10), ("erf", 2.0, 11), ("erf", 3.0, 10), ("erf", 2.0, 100), ("erf", 1.0, 100), ("sin", 2.0, 100),
        ("sin", 3.0, 40), ("tanh", 2.0, 20),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*a series of order")
def test_float32_is_within_what_is_promised(activation, weight_var, depth, backend):
    """Every depth up to a hundred, near pairs and opposite ones: within 1e-5."""
    x, keywords = near_and_opposite(), {"depth": depth, "activation": activation, "weight_var": weight_var}
    truth = nftk.infinite_ntk(x.double(), backend="torch", **keywords).blocks
    found = nftk.infinite_ntk(x, backend=backend, **keywords).blocks
    assert to_own(found, truth) < 1e-5
    weights = torch.rand(2, depth)
    summed = torch.einsum("kl,lxy->kxy", weights.double(), truth)
    assert to_own(nftk.infinite_ntk(x, weights=weights, backend=backend, **keywords).blocks, summed) < 1e-5


@pytest.mark.parametrize("scale", [1e17, 1e20, 1e25, 1e30])
@pytest.mark.parametrize("backend", ["auto", "torch", "differentiable"])
def test_inputs_whose_squares_float32_does_not_hold(backend, scale):
    """A kernel of erf grows as the norm of its inputs, so that it is far from float32's end."""
    x = (torch.randn(6, 5) * scale).float()
    keywords = {"depth": 3, "activation": "erf"}
    truth = nftk.infinite_ntk(x.double(), backend="torch", **keywords).blocks
    chosen = {"differentiable": True} if backend == "differentiable" else {"backend": backend}
    found = nftk.infinite_ntk(x, **chosen, **keywords).blocks
    assert found.dtype is torch.float32
    assert to_own(found, truth) < 1e-5
    with pytest.raises((NotImplementedError, RuntimeError), match="'triton'"):
        nftk.infinite_ntk(x, backend="triton", **keywords)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_sine_of_huge_variance_has_no_kernel_with_others(backend, dtype):
    """exp(-r^2) is 0 there, times whatever."""
    x = torch.tensor([[1e3, 0, 0], [6e3, 8e3, 0], [1e5, 1e5, -1e5]], dtype=dtype)
    found = nftk.infinite_ntk(x, depth=1, activation="sin", weight_var=1e8, backend=backend).blocks[0]
    assert torch.equal(found - found.diag().diag(), torch.zeros_like(found))
    assert (found.diag() > 1e13).all()


def test_symmetric_is_exact_and_rectangular_agrees():
    x = torch.randn(150, 7)
    k = nftk.infinite_ntk(x, depth=3)
    assert k.symmetric
    assert torch.equal(k.blocks, k.blocks.mT)
    torch.testing.assert_close(nftk.infinite_ntk(x, x.clone(), depth=3).blocks, k.blocks, rtol=1e-5, atol=1e-6)
    assert (torch.linalg.eigvalsh(nftk.infinite_ntk(x.double(), depth=3).blocks) > -1e-10).all()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_and_out(backend, symmetric):
    x1, x2 = torch.randn(70, 7), None if symmetric else torch.randn(66, 7)
    every = nftk.infinite_ntk(x1, x2, depth=4, backend=backend)
    omega = torch.rand(3, 4)
    one = nftk.infinite_ntk(x1, x2, depth=4, weights=omega[0] ** 2, backend=backend)
    assert one.names == ("weighted sum",)
    torch.testing.assert_close(one.blocks[0], every.combine(omega[0]), rtol=1e-5, atol=1e-6)
    more = nftk.infinite_ntk(x1, x2, depth=4, weights=omega**2, backend=backend)
    torch.testing.assert_close(more.blocks, every.combine(omega), rtol=1e-5, atol=1e-6)
    room = torch.full((4, 70, 80), math.nan)[:, :, : every.shape[1]]
    into = nftk.infinite_ntk(x1, x2, depth=4, out=room, backend=backend)
    assert into.blocks.data_ptr() == room.data_ptr()
    assert torch.equal(room, every.blocks)
    array = np.zeros(every.blocks.shape, np.float32)
    nftk.infinite_ntk(x1, x2, depth=4, out=array, backend=backend)
    assert np.array_equal(array, every.blocks.numpy())


def test_activations_by_layer_and_slopes():
    x = torch.randn(6, 4, dtype=torch.float64)
    relu = nftk.infinite_ntk(x, depth=2, activation=["relu", nn.LeakyReLU(0.0)])
    torch.testing.assert_close(relu.blocks, nftk.infinite_ntk(x, depth=2).blocks)
    linear = nftk.infinite_ntk(x, depth=3, activation="identity", weight_var=1.0).blocks
    gram = x @ x.mT / 4
    torch.testing.assert_close(linear, torch.stack([2 * gram, 3 * gram, 4 * gram]))
    tanh_gelu = nftk.infinite_ntk(x, depth=1, activation=nn.GELU(approximate="tanh"), order=96)
    torch.testing.assert_close(
        tanh_gelu.blocks, nftk.infinite_ntk(x, depth=1, activation="gelu").blocks, rtol=5e-3, atol=5e-3
    )


def test_the_tail_of_a_series_is_told_of():
    """Of whichever set of examples has the larger, and where the graph is kept too; once."""
    small, large = torch.full((1, 2), 0.1, dtype=torch.float64), torch.full((1, 2), 30.0, dtype=torch.float64)
    keywords = {"depth": 1, "activation": "tanh"}
    assert series_error(small, **keywords) < 1e-3 < series_error(large, **keywords)
    for pair in ((small, large), (large, small), (large,)):
        for rest in ({}, {"differentiable": True}):
            with pytest.warns(UserWarning, match="a series of order 64 leaves out up to") as told:
                nftk.infinite_ntk(*pair, **keywords, **rest)
            assert len(told) == 1
            assert told[0].filename == __file__
    for rest in ({}, {"differentiable": True}):
        nftk.infinite_ntk(small, **keywords, **rest)


def test_biases_by_layer():
    """A layer without a bias has neither its term nor its parameter."""
    x = torch.randn(4, 6, dtype=torch.float64)
    model = nftk.NFTKMLP(6, [600, 400], 4, parameterization="standard", dtype=torch.float64)
    model.hidden[1].bias = None
    arguments = arguments_for(model)
    assert arguments["bias"] == (True, False)
    found = nftk.infinite_ntk(x, **arguments).blocks
    neither, both = (nftk.infinite_ntk(x, **(arguments | {"bias": bias})).blocks for bias in (False, True))
    torch.testing.assert_close(found[0], both[0])
    assert (found[1] > neither[1]).all()
    assert (found[1] < both[1]).all()
    truth = nftk.empirical_ntk(model, x, reduction="trace").blocks / 4
    # the last layer's bias alone is 0.5 to 1 of 240
    assert ((found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).max() < 0.15


def test_variances_as_arrays():
    x = torch.randn(3, 2)
    wanted = nftk.infinite_ntk(x, depth=2, weight_var=[1.5, 2.5], bias_var=0.5).blocks
    for make in (np.array, torch.tensor, tuple):
        assert torch.equal(nftk.infinite_ntk(x, depth=2, weight_var=make([1.5, 2.5]), bias_var=0.5).blocks, wanted)
    found = nftk.infinite_ntk(x, depth=2, weight_var=np.array([1.5, 2.5]), bias_var=np.float32(0.5)).blocks
    assert torch.equal(found, wanted)
    found = nftk.infinite_ntk(x, depth=2, weight_var=[1.5, 2.5], bias_var=np.array(0.5)).blocks
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("activation", "text"),
    [
        (nn.Softmax(dim=-1), r"must be elementwise on float64 tensors, got Softmax\(dim=-1\), which makes of a number"),
        (nn.Softmax(dim=0), "which makes of a number what its neighbours"),
        (lambda u: u.cumsum(0), "which makes of a number what its neighbours"),
        (nn.Dropout(0.5), "what its neighbours or chance say"),
        (nn.GLU(), r"which makes a torch.float64 \[2, 2\] of a \[2, 4\] tensor"),
        (lambda u: 1.0, r"which makes float of a \[2, 4\] tensor"),
        (nn.Linear(4, 4), r"got Linear\(in_features=4, out_features=4, bias=True\): "),
        (nn.Linear(4, 4).double(), "got Linear"),
        (nn.Sequential(nn.ReLU(), nn.Softmax(dim=-1)), "got Sequential"),
        (nn.PReLU(), r"got PReLU\(num_parameters=1\): "),
        (torch.log, "activation must be finite on all that comes to it"),
        (lambda u: torch.where(u.abs() > 9, torch.nan, u), "activation must be finite on all that comes to it"),
    ],
)
@pytest.mark.parametrize("differentiable", [True, False])
def test_what_is_no_activation_is_refused(activation, text, differentiable):
    with pytest.raises(ValueError, match=text) as refused:
        nftk.infinite_ntk(torch.ones(2, 3), depth=2, activation=activation, differentiable=differentiable)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=text):
        series_error(torch.ones(2, 3), depth=2, activation=activation)


def test_parameters_of_an_activation_may_be_float64():
    x = torch.randn(3, 2, dtype=torch.float64)
    with pytest.warns(UserWarning, match="a series"):
        found = nftk.infinite_ntk(x, depth=1, activation=nn.PReLU(init=0.2).double()).blocks
    torch.testing.assert_close(
        found, nftk.infinite_ntk(x, depth=1, activation=nn.LeakyReLU(0.2)).blocks, rtol=0, atol=0.02
    )


def test_differentiable():
    x1, x2 = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def call(x1, x2, activation="gelu"):
        return nftk.infinite_ntk(x1, x2, depth=2, bias_var=0.1, activation=activation, differentiable=True).blocks

    for activation in ("gelu", "relu", "erf", "sin"):
        inputs = (x1.clone().requires_grad_(), x2.clone().requires_grad_())
        assert torch.autograd.gradcheck(lambda a, b, phi=activation: call(a, b, phi), inputs)
    torch.testing.assert_close(call(x1, x2), nftk.infinite_ntk(x1, x2, depth=2, bias_var=0.1, activation="gelu").blocks)
    assert not nftk.infinite_ntk(x1.requires_grad_(), depth=2).blocks.requires_grad


def test_arguments_for():
    standard = arguments_for(nftk.NFTKMLP(6, [10, 30], 5, activation="tanh", bias=False))
    assert standard == {
        "depth": 2, "activation": ["tanh", "tanh"], "weight_var": (0.75, 0.5), "bias_var": 0.0,
        "readout_var": (20 / 15, 60 / 35), "parameterization": "standard", "widths": (10, 30),
        "bias": (False, False),
    }  # fmt: skip
    ntk = arguments_for(nftk.NFTKMLP(6, [10] * 2, 5, parameterization="ntk", bias=False, bias_var=0.5))
    assert ntk["bias_var"] == (0.0, 0.0)
    with pytest.raises(TypeError, match=r"model must be an nftk.NFTKMLP, got Linear"):
        arguments_for(nn.Linear(2, 3))


def mean_kernel(seeds, width, m, x, **settings):
    """Mean over draws of trace / d."""
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = nftk.NFTKMLP(m, width, 4, dtype=torch.float64, **settings)
        found.append(nftk.empirical_ntk(model, x, reduction="trace").blocks / 4)
    return torch.stack(found).mean(0), model


@pytest.mark.parametrize(
    "settings",
    [
        {"parameterization": "ntk", "bias_var": 0.3, "activation": "erf", "weight_var": [1.5, 2.5], "readout_var": 0.7},
        {"parameterization": "standard", "activation": ["relu", "gelu"]},
        {"parameterization": "standard", "activation": "tanh", "bias": False},
    ],
    ids=["ntk", "standard", "standard-without-biases"],
)
def test_finite_networks_have_it_on_average(settings):
    """A wrong coefficient anywhere is an error of some ten percent; at these widths the mean is within three."""
    x = torch.randn(5, 6, dtype=torch.float64)
    mean, model = mean_kernel(12, [600, 400], 6, x, **settings)
    truth = nftk.infinite_ntk(x, **arguments_for(model)).blocks
    assert ((mean - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).max() < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_finite_networks_approach_it_like_one_over_root_width(activation):
    """Ten seeds, every layer: the slope of the error over width lies in -0.6 to -0.4."""
    torch.manual_seed(100)
    x, widths = torch.randn(8, 10, dtype=torch.float64), [64, 128, 256, 512, 1024]
    truth = nftk.infinite_ntk(x, depth=3, activation=activation, bias_var=0.1).blocks
    errors = []
    for width in widths:
        squares = []
        for seed in range(10):
            torch.manual_seed(seed)
            model = nftk.NFTKMLP(
                10, [width] * 3, 4, activation=activation, parameterization="ntk", bias_var=0.1, dtype=torch.float64
            )
            found = nftk.empirical_ntk(model, x, reduction="full").blocks
            wanted = truth[..., None, None] * torch.eye(4, dtype=torch.float64)
            squares.append((found - wanted).square().sum((1, 2, 3, 4)) / wanted.square().sum((1, 2, 3, 4)))
        errors.append(torch.stack(squares).mean(0).sqrt())
    logs = torch.log(tensor(widths))
    centred = logs - logs.mean()
    slopes = (centred[:, None] * torch.log(torch.stack(errors))).sum(0) / centred.square().sum()
    assert ((slopes > -0.6) & (slopes < -0.4)).all(), slopes


MEMORY = r"""
import re, sys, torch, nftk

def peak():
    # not getrusage: it begins with the peak of the process that started this one
    return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) * 1024

backend = sys.argv[1]
x = torch.randn(1500, 8, dtype=torch.float64)
nftk.infinite_ntk(x[:200], depth=10, backend=backend)
before = peak()
k = nftk.infinite_ntk(x, depth=10, backend=backend)
print((peak() - before) / k.blocks.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_memory_is_that_of_the_kernels(backend):
    done = subprocess.run([sys.executable, "-c", MEMORY, backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 180 MB of kernels, and what the tiles of torch's formula take
    assert 0.9 < float(done.stdout) < (1.1 if backend == "auto" else 1.4)


def test_empty_and_single():
    assert nftk.infinite_ntk(torch.ones(0, 3), torch.ones(2, 3), depth=2).blocks.shape == (2, 0, 2)
    assert nftk.infinite_ntk(torch.ones(2, 3), torch.ones(0, 3), depth=2).blocks.shape == (2, 2, 0)
    assert nftk.infinite_ntk(torch.ones(0, 3), depth=2).blocks.shape == (2, 0, 0)
    torch.testing.assert_close(nftk.infinite_ntk(torch.ones(1, 1), depth=1).blocks, torch.tensor([[[2.0]]]))


def test_errors():
    x = torch.ones(2, 3)

    def refused(kind, text, *args, **keywords):
        with pytest.raises(kind, match=text):
            nftk.infinite_ntk(*(args or (x,)), **({"depth": 2} | keywords))

    refused(ValueError, "depth must be at least 1, got 0", depth=0)
    refused(ValueError, r"x1 must have shape \[n, m\], got \[3\]", torch.ones(3))
    refused(ValueError, r"x2 must have shape \[n2, 3\], got \[2, 4\]", x, torch.ones(2, 4))
    refused(ValueError, "share one dtype", x, x.double())
    refused(TypeError, "x1 must be torch.float32 or torch.float64, got torch.float16", x.half())
    refused(ValueError, "x1 must be finite", x / 0)
    refused(ValueError, "weight_var must be finite and above 0, got 0", weight_var=0)
    refused(ValueError, "bias_var must be a number or 2 numbers, one a layer, got 3", bias_var=[0, 0, 0])
    refused(ValueError, "activation must be one or 2, one a layer, got 1", activation=["relu"])
    refused(ValueError, "activation must be one of", activation="rely")
    refused(ValueError, "widths must be given with parameterization='standard'", parameterization="standard")
    refused(ValueError, "widths must be given with parameterization='standard', and only there", widths=[3, 3])
    refused(ValueError, "widths must have 2 entries", parameterization="standard", widths=[3])
    refused(TypeError, "widths must be a list with an entry a layer, got int", parameterization="standard", widths=5)
    refused(TypeError, "widths must be a list with an entry a layer, got str", parameterization="standard", widths="55")
    refused(ValueError, "bias_var must be 0 where bias is False, got 0.3", bias=False, bias_var=0.3)
    refused(ValueError, "bias_var must be 0 where bias is False, got 0.5", bias=[True, False], bias_var=[0.3, 0.5])
    refused(ValueError, "bias must be True or False, or 2 of them, one a layer, got 1", bias=1)
    refused(ValueError, "bias must be True or False, or 2 of them", bias=[True])
    refused(TypeError, "weight_var must be a number, got 'two'", weight_var="two")
    refused(TypeError, r"weight_var must be a number, got \[1.0, 2.0\]", weight_var=np.array([[1.0, 2.0], [1.0, 2.0]]))
    refused(ValueError, "weight_var must be a number or 2 numbers, one a layer, got 3", weight_var=np.ones(3))
    refused(ValueError, r"weights must have shape \[2\], got \[3\]", weights=torch.ones(3))
    refused(ValueError, "weights must be finite, got NaN", weights=[math.nan, 1.0])
    refused(ValueError, "weights must have at least one row", weights=torch.ones(0, 2))
    refused(ValueError, "out must have an entry of memory each", out=torch.ones(2, 2).expand(2, 2, 2))
    refused(ValueError, "out must have an entry of memory each", out=torch.ones(8).as_strided((2, 2, 2), (3, 2, 1)))
    refused(ValueError, "get must be one of", get="cov")
    refused(ValueError, r"out must have shape \[2, 2, 2\], got \[2, 2, 3\]", out=torch.ones(2, 2, 3))
    read_only = np.zeros((2, 2, 2), np.float32)
    read_only.flags.writeable = False
    refused(ValueError, "out must be writable, got a read-only array", out=read_only)
    refused(ValueError, "out must not require gradients", out=torch.ones(2, 2, 2, requires_grad=True))
    refused(ValueError, "out must have contiguous rows", out=torch.ones(2, 2, 2).mT)
    refused(ValueError, "differentiable must go without out", differentiable=True, out=torch.ones(2, 2, 2))
    refused(NotImplementedError, "'cuda'", backend="cuda")
