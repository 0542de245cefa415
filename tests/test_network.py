"""nftk.ops.network: both paths against the definition, every derivative, every transform, every error."""

import importlib
import math

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import nftk
from nftk.ops import activations
from nftk.reference import network_reference

# the function of that name hides the module
network_module = importlib.import_module("nftk.ops.network")
NAMES = list(activations.BY_NAME)
# (B, m, widths, d): one of each, primes, equal widths, empty batch, wide output
SHAPES = [
    (1, 1, (1,), 1),
    (7, 5, (3, 11, 2), 3),
    (33, 17, (64, 64, 64, 64), 10),
    (0, 4, (3, 3), 2),
    (5, 3, (8, 8), 100),
]
IDS = [f"B{b}-m{m}-{'x'.join(map(str, w))}-d{d}" for b, m, w, d in SHAPES]


def make_inputs(shape, dtype=torch.float64, requires_grad=False):
    """Seeded inputs, each followed in memory by a row of NaN, so a read past the end shows."""
    b, m, widths, d = shape
    g = torch.Generator().manual_seed(0)

    def tensor(*size, scale=1.0):
        buffer = torch.full((size[0] + 1, *size[1:]), math.nan, dtype=dtype)
        buffer[: size[0]] = torch.randn(*size, generator=g, dtype=torch.float64) * scale
        return buffer[: size[0]].requires_grad_(requires_grad)

    fan_in = (m, *widths[:-1])
    weights = [tensor(n, k, scale=k**-0.5) for n, k in zip(widths, fan_in, strict=True)]
    biases = [tensor(n, scale=0.3) for n in widths]
    return tensor(b, m), weights, biases, tensor(d, sum(widths), scale=sum(widths) ** -0.5), tensor(d, len(widths))


def flat(inputs):
    x, weights, biases, readout_weight, omega = inputs
    return [x, *weights, *biases, readout_weight, omega]


def unflat(tensors):
    depth = (len(tensors) - 3) // 2
    return tensors[0], list(tensors[1 : 1 + depth]), list(tensors[1 + depth : -2]), tensors[-2], tensors[-1]


def truth(inputs, phi):
    x, weights, biases, readout_weight, omega = inputs
    widths = [w.shape[0] for w in weights]
    return network_reference(x, weights, biases, readout_weight.split(widths, 1), omega, phi)


def error(x, y):
    return ((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30)).item()


def path_of(f):
    return "one node" if type(f.grad_fn).__name__ == "OneNodeBackward" else "formula"


@pytest.fixture(params=["one node", "formula"])
def path(request, monkeypatch):
    if request.param == "formula":
        monkeypatch.setattr(network_module, "_ordinary_call", lambda device: False)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_forward_and_gradients(shape, name, dtype, path):
    phi = activations.BY_NAME[name].function
    inputs = make_inputs(shape, dtype, requires_grad=True)
    wide = unflat([t.detach().double().requires_grad_() for t in flat(inputs)])
    f, f_true = nftk.ops.network(*inputs, activation=name), truth(wide, phi)
    assert path_of(f) == path
    assert f.dtype is dtype
    assert f.is_contiguous()
    plain = truth(inputs, phi)
    eps = torch.finfo(dtype).eps
    assert error(f, f_true) <= 2 * error(plain, f_true) + 4 * eps
    grad = torch.randn(f.shape, dtype=torch.float64)
    got = torch.autograd.grad(f, flat(inputs), grad.to(dtype))
    eager = torch.autograd.grad(plain, flat(inputs), grad.to(dtype))
    want = torch.autograd.grad(f_true, flat(wide), grad)
    for i, (ours, theirs, exact) in enumerate(zip(got, eager, want, strict=True)):
        assert ours.shape == exact.shape
        assert error(ours, exact) <= 2 * error(theirs, exact) + 8 * eps, f"input {i}"


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "leaky_relu", "erf"])
def test_scales_and_missing_biases(name, path):
    """The scales of the "ntk" parameterisation, layers without a bias, and an output bias."""
    x, weights, biases, readout_weight, omega = make_inputs(SHAPES[1], requires_grad=True)
    output_bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    biases[1] = None
    a, c, r = (0.5, 2.0, 3.0), (0.7, 1.0, 1.5), (0.1, 0.2, 0.4)
    phi = activations.BY_NAME[name].function
    f = nftk.ops.network(
        x, weights, biases, readout_weight, omega, output_bias=output_bias, activation=name,
        weight_scales=a, bias_scales=c, readout_scales=r,
    )  # fmt: skip
    assert path_of(f) == path
    inputs = [x, *weights, biases[0], biases[2], readout_weight, omega, output_bias]
    zero = torch.zeros(weights[1].shape[0], dtype=torch.float64)
    scaled = (
        x,
        [w * s for w, s in zip(weights, a, strict=True)],
        [(zero if b is None else b) * s for b, s in zip(biases, c, strict=True)],
        readout_weight,
        omega * torch.tensor(r, dtype=torch.float64),
    )
    want = truth(scaled, phi) + output_bias
    torch.testing.assert_close(f, want)
    assert f.is_contiguous()
    grad = torch.randn_like(f)
    for ours, exact in zip(torch.autograd.grad(f, inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name, path):
    inputs = flat(make_inputs((3, 2, (3, 2), 2), requires_grad=True))

    def f(*tensors):
        return nftk.ops.network(*unflat(tensors), activation=name)

    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


def test_second_derivative_where_inputs_depend_on_each_other():
    """The recomputed backward must not differentiate one input through another: W_1 hangs on x, W_2 on W_1."""
    x, weights, biases, readout_weight, omega = make_inputs((3, 4, (3, 2), 2), requires_grad=True)

    def through(call):
        w_1 = weights[0] * x.sum()
        w_2 = weights[1] * w_1.mean()
        f = call((x, [w_1, w_2], biases, readout_weight, omega))
        (first,) = torch.autograd.grad(f.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *weights, omega])

    got = through(lambda inputs: nftk.ops.network(*inputs, activation="tanh"))
    want = through(lambda inputs: truth(inputs, torch.tanh))
    for ours, exact in zip(got, want, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("wanted", ["x", "last weight", "first bias", "omega", "readout"])
def test_only_the_wanted_gradient(wanted, path):
    """Frozen inputs cost nothing and change nothing: the walk back stops where it may."""
    inputs = make_inputs(SHAPES[1])
    x, weights, biases, readout_weight, omega = inputs
    target = {"x": x, "last weight": weights[-1], "first bias": biases[0], "omega": omega, "readout": readout_weight}
    target = target[wanted].requires_grad_()
    grad = torch.randn(7, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad(nftk.ops.network(*inputs, activation="silu"), target, grad)
    (want,) = torch.autograd.grad(truth(inputs, torch.nn.functional.silu), target, grad)
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_frozen_layers_get_no_work():
    x, weights, biases, readout_weight, omega = make_inputs(SHAPES[1])
    omega.requires_grad_()
    f = nftk.ops.network(x, weights, biases, readout_weight, omega)
    with torch.profiler.profile() as profile:
        f.sum().backward()
    assert not [e for e in profile.key_averages() if "threshold_backward" in e.key]


def test_inputs_are_left_alone_and_backward_repeats(path):
    inputs = make_inputs(SHAPES[2], requires_grad=True)
    before = [t.detach().clone() for t in flat(inputs)]
    f = nftk.ops.network(*inputs)
    grad = torch.randn_like(f)
    first = torch.autograd.grad(f, flat(inputs), grad, retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(f, flat(inputs), grad)
    for a, b, c in zip(kept, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert all(torch.equal(a, b) for a, b in zip(before, flat(inputs), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_batches(name, path):
    """torch.autograd.grad(is_grads_batched=True), which torch.autograd.functional's vectorize=True uses."""
    inputs = make_inputs(SHAPES[1], requires_grad=True)
    f, seeds = nftk.ops.network(*inputs, activation=name), torch.randn(4, 7, 3, dtype=torch.float64)
    got = torch.autograd.grad(f, flat(inputs), seeds, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(f, flat(inputs), seed, retain_graph=True) for seed in seeds]
    for ours, exact in zip(got, zip(*want, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(exact))


def test_changed_weight_is_noticed():
    inputs = make_inputs(SHAPES[1], requires_grad=True)
    f = nftk.ops.network(*inputs)
    with torch.no_grad():
        inputs[1][1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        f.sum().backward()


def test_non_contiguous(path):
    inputs = make_inputs(SHAPES[1], requires_grad=True)
    turned = unflat([t.mT.contiguous().mT if t.ndim == 2 else torch.stack([t, t], 1)[:, 0] for t in flat(inputs)])
    want = truth(inputs, torch.relu)
    got = nftk.ops.network(*turned)
    torch.testing.assert_close(got, want)
    grad = torch.randn(3, 7, dtype=torch.float64).T
    for a, b in zip(
        torch.autograd.grad(got, flat(inputs), grad), torch.autograd.grad(want, flat(inputs), grad), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0, 3), (1, 1, 1)], ids=str)
def test_leading_dimensions(lead, path):
    _, weights, biases, readout_weight, omega = make_inputs(SHAPES[1])
    x = torch.randn(*lead, 5, dtype=torch.float64, requires_grad=True)
    f = nftk.ops.network(x, weights, biases, readout_weight, omega)
    assert f.shape == (*lead, 3)
    want = truth((x.reshape(-1, 5), weights, biases, readout_weight, omega), torch.relu).view(*lead, 3)
    torch.testing.assert_close(f, want)
    torch.testing.assert_close(*[torch.autograd.grad(g.sum(), x)[0] for g in (f, want)])


class TestTransforms:
    """torch.func on the operation, without any help from the caller."""

    @staticmethod
    def pair(name="tanh"):
        x, *rest = make_inputs((4, 3, (5, 5), 2))
        phi = activations.BY_NAME[name].function
        return x, lambda x: nftk.ops.network(x, *rest, activation=name), lambda x: truth((x, *rest), phi)

    def test_jacrev_jacfwd_hessian(self):
        x, f, want = self.pair()
        torch.testing.assert_close(torch.func.jacrev(f)(x), torch.func.jacrev(want)(x))
        torch.testing.assert_close(torch.func.jacfwd(f)(x), torch.func.jacfwd(want)(x))
        torch.testing.assert_close(
            torch.func.hessian(lambda x: f(x).sum())(x), torch.func.hessian(lambda x: want(x).sum())(x)
        )

    def test_jvp_and_vmap(self):
        x, f, want = self.pair()
        t = torch.randn_like(x)
        torch.testing.assert_close(torch.func.jvp(f, (x,), (t,)), torch.func.jvp(want, (x,), (t,)))
        batch = torch.stack([x, 2 * x])
        torch.testing.assert_close(torch.func.vmap(f)(batch), torch.stack([want(x), want(2 * x)]))

    def test_vmap_over_omega(self):
        x, weights, biases, readout_weight, omega = make_inputs(SHAPES[1])
        stack = torch.stack([omega, -omega])
        got = torch.func.vmap(lambda o: nftk.ops.network(x, weights, biases, readout_weight, o))(stack)
        torch.testing.assert_close(got[1], truth((x, weights, biases, readout_weight, -omega), torch.relu))

    def test_forward_mode(self):
        x, f, want = self.pair()
        t = torch.randn_like(x)
        with forward_ad.dual_level():
            got = forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent
        torch.testing.assert_close(got, torch.func.jvp(want, (x,), (t,))[1])


class TestPathRule:
    """The rule in the docstring of nftk.ops.network, clause by clause."""

    def test_ordinary_call_takes_one_node(self):
        assert path_of(nftk.ops.network(*make_inputs(SHAPES[1], requires_grad=True))) == "one node"

    def test_callable_takes_the_formula(self):
        inputs = make_inputs(SHAPES[1], requires_grad=True)
        f = nftk.ops.network(*inputs, activation=lambda g: g**2)
        assert path_of(f) == "formula"
        torch.testing.assert_close(f, truth(inputs, torch.square))

    def test_autocast_takes_the_formula(self):
        inputs = make_inputs(SHAPES[1], torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            f = nftk.ops.network(*inputs)
        assert path_of(f) == "formula"
        assert f.dtype is torch.bfloat16

    def test_half_precision_takes_the_formula(self):
        inputs = make_inputs(SHAPES[1], torch.bfloat16, requires_grad=True)
        f = nftk.ops.network(*inputs)
        assert path_of(f) == "formula"
        assert error(f, truth(unflat([t.double() for t in flat(inputs)]), torch.relu)) < 0.03

    def test_subclass_takes_the_formula(self):
        class Marked(torch.Tensor):
            pass

        x, *rest = make_inputs(SHAPES[1])
        assert isinstance(nftk.ops.network(x.as_subclass(Marked), *rest), Marked)

    def test_a_name_or_its_torch_function_is_the_same(self):
        inputs = make_inputs(SHAPES[1], requires_grad=True)
        assert path_of(nftk.ops.network(*inputs, activation=torch.tanh)) == "one node"
        assert path_of(nftk.ops.network(*inputs, activation=torch.nn.GELU())) == "one node"
        assert path_of(nftk.ops.network(*inputs, activation=torch.nn.GELU(approximate="tanh"))) == "formula"
        assert path_of(nftk.ops.network(*inputs, activation=torch.nn.LeakyReLU(0.2))) == "formula"


def change(inputs, **new):
    x, weights, biases, readout_weight, omega = inputs
    named = {"x": x, "weights": weights, "biases": biases, "readout_weight": readout_weight, "omega": omega}
    return nftk.ops.network(**(named | new))


@pytest.mark.parametrize(
    ("new", "kind", "message"),
    [
        ({"x": torch.ones(7, 4).double()}, ValueError, r"x must have shape \[\.\.\., 5\], got \[7, 4\]"),
        ({"x": torch.ones(7, 5)}, ValueError, r"must share one dtype, but x is torch.float32"),
        ({"x": torch.ones(7, 5).long()}, TypeError, "x must have a floating dtype, got torch.int64"),
        ({"x": [[1.0] * 5]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"weights": []}, ValueError, "weights and biases must have one entry a layer, got 0 and 3"),
        ({"biases": [None]}, ValueError, "weights and biases must have one entry a layer, got 3 and 1"),
        ({"omega": torch.ones(3, 2).double()}, ValueError, r"omega must have shape \[3, 3\], got \[3, 2\]"),
        ({"readout_weight": torch.ones(3, 9).double()}, ValueError, r"readout_weight must have shape \[d, 16\]"),
        ({"output_bias": torch.ones(2).double()}, ValueError, r"output_bias must have shape \[3\], got \[2\]"),
        ({"activation": "swish"}, ValueError, "activation must be one of 'relu', .* got 'swish'"),
        ({"activation": 3}, TypeError, "'int' object is not iterable|activation must be"),
        ({"activation": ["relu", "tanh"]}, ValueError, "activation must be one or 3, one a layer, got 2"),
        ({"weight_scales": (1.0,)}, ValueError, "weight_scales must have 3 entries, one a layer, got 1"),
        ({"backend": "metal"}, ValueError, "backend must be one of 'auto', .* got 'metal'"),
        ({"backend": "cuda"}, NotImplementedError, "backend must be one of .*torch.* got 'cuda'"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_errors(new, kind, message):
    with pytest.raises(kind, match=message):
        change(make_inputs(SHAPES[1]), **new)


def test_error_names_the_layer():
    x, weights, biases, readout_weight, omega = make_inputs(SHAPES[1])
    with pytest.raises(ValueError, match=r"weights\[1\] must have shape \[n2, 3\], got \[11, 4\]"):
        nftk.ops.network(x, [weights[0], torch.ones(11, 4).double(), weights[2]], biases, readout_weight, omega)
    with pytest.raises(ValueError, match=r"biases\[2\] must have shape \[2\], got \[3\]"):
        nftk.ops.network(x, weights, [*biases[:2], torch.ones(3).double()], readout_weight, omega)
