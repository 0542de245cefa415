"""nftk.ops.network by the Triton kernels (under the interpreter), against the definition in float64.

Seen red on each of the faults that tests/mutants.py plants: ``python tests/mutants.py network``.
"""

from types import SimpleNamespace

import pytest
import torch
from kernel_checks import error
from network_inputs import BACKWARD, NAMES, SHAPES, THREE, TWO, compare, flat, make_inputs, run, truth, wide

import nftk
from nftk.ops import activations

IDS = [f"B{b}-m{m}-{'x'.join(map(str, w))}-d{d}" for b, m, w, d in SHAPES]
# every shape in float32 and in one of the halves
HALVES = [torch.bfloat16, torch.float16, torch.bfloat16, torch.bfloat16, torch.float16]
IN_DTYPES = [
    pytest.param(shape, dtype, id=f"{name}-{dtype}")
    for shape, name, half in zip(SHAPES, IDS, HALVES, strict=True)
    for dtype in (torch.float32, half)
]


@pytest.mark.parametrize(("shape", "dtype"), IN_DTYPES)
def test_against_truth(small_tiles, shape, dtype):
    compare(make_inputs(shape, dtype, True))


@pytest.mark.parametrize("name", NAMES)
def test_activations(small_tiles, name):
    compare(make_inputs(SHAPES[1], requires_grad=True), activation=name)


@pytest.mark.parametrize("name", NAMES)
def test_activations_where_they_are_delicate(small_tiles, name):
    """Arguments near 0, where 1 - 1 would cancel, and far from it, where exp overflows; NaN stays NaN."""
    g = torch.tensor([1e-20, 1e-7, 1e-4, 1e-3, 0.01, 0.1, 0.24, 0.26, 0.49, 0.51, 1.0, 3.0, 9.0, 20.0, 89.0, 100.0])
    g = torch.cat([g, -g])[:, None]
    one = torch.ones(1, 1)
    for a in (g, g.half().float()):
        x = a.clone().requires_grad_()
        f = nftk.ops.network(x, [one], [None], one, one, activation=name, backend="triton")
        (got,) = torch.autograd.grad(f.sum(), x)
        y = a.double().requires_grad_()
        h = activations.BY_NAME[name].function(y)
        (want,) = torch.autograd.grad(h.sum(), y)
        torch.testing.assert_close(f.double(), h, rtol=2e-6, atol=1e-36)
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    nan = torch.full((1, 1), torch.nan)
    assert nftk.ops.network(nan, [one], [None], one, one, activation=name, backend="triton").isnan().all()


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_scales_and_missing_biases(small_tiles, name):
    small_tiles(2)
    i = make_inputs(THREE, requires_grad=True)
    i.biases[1] = i.output_bias = None
    scales = {"weight_scales": (0.5, 2.0, 3.0, 1.0), "bias_scales": (0.7, 1.0, 1.5, 2.0)}
    compare(i, activation=name, readout_scales=(0.1, 0.2, 0.4, 1.0), **scales)
    i.biases = [None] * 4
    compare(i, activation=name)


def test_default_tiles(grid):
    """The tiles that auto takes, with two blocks of rows, a ragged layer of two column tiles, and split sums."""
    compare(make_inputs((300, 6, (70, 5), 3), requires_grad=True))


@pytest.mark.parametrize("wanted", ["x", "weights", "biases", "readout_weight", "omega", "output_bias"])
@pytest.mark.parametrize("at", [0, -1])
def test_only_the_wanted_gradient(small_tiles, grid, wanted, at):
    """Frozen inputs change nothing, and no launch is made for them where none is needed."""
    i = make_inputs(SHAPES[1])
    target = getattr(i, wanted)
    target = (target[at] if isinstance(target, list) else target).requires_grad_()
    seed = torch.randn(7, 3)
    f = run(i, backend="triton", activation="silu")
    grid.launches.clear()
    (got,) = torch.autograd.grad(f, target, seed)
    (want,) = torch.autograd.grad(truth(i, "silu"), target, seed)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    walks = wanted in ("x", "weights", "biases")
    sums = wanted != "x"
    assert grid.launches == BACKWARD[:1] * walks + BACKWARD[1:] * sums


def test_half_precision_holds_what_torch_holds(small_tiles):
    """Omega times a scaled loss's gradient is beyond float16, Omega times V is not."""
    i = make_inputs(SHAPES[1])
    i.readout_weight, i.omega = i.readout_weight / 64, 8 * i.omega
    i = SimpleNamespace(**{
        k: [t.half().requires_grad_() for t in v] if isinstance(v, list) else v.half().requires_grad_()
        for k, v in vars(i).items()
    })  # fmt: skip
    f, exact = run(i, backend="triton"), truth(doubles := wide(i))
    seed = torch.full_like(f, 2.0**13)
    (got,), (want,) = torch.autograd.grad(f, i.x, seed), torch.autograd.grad(exact, doubles.x, seed.double())
    assert error(got, want) < 5e-3


def test_leading_dimensions_and_empty_batch(small_tiles):
    i = make_inputs((12, 5, (4, 3), 2))
    f = run(i, backend="triton")
    x = i.x
    i.x = x.reshape(3, 2, 2, 5)
    torch.testing.assert_close(run(i, backend="triton"), f.view(3, 2, 2, 2))
    i.x = x[0]
    torch.testing.assert_close(run(i, backend="triton"), f[0])
    i.x = x[:0].requires_grad_()
    i.weights[0].requires_grad_()
    i.omega.requires_grad_()
    f = run(i, backend="triton")
    assert f.shape == (0, 2)
    grads = torch.autograd.grad(f.sum(), [i.x, i.weights[0], i.omega])
    assert [tuple(g.shape) for g in grads] == [(0, 5), (4, 5), (2, 2)]
    assert not grads[1].any()
    assert not grads[2].any()


def test_non_contiguous_and_repeated(small_tiles):
    """Column-major inputs, an expanded and a transposed grad_output, backward twice, inputs untouched."""
    i = make_inputs(TWO, requires_grad=True, layout="columns")
    doubles, before = wide(i), [t.detach().clone() for t in flat(i)]
    f, exact = run(i, backend="triton"), truth(doubles)
    for seed in (torch.ones(1, 1).expand(f.shape), torch.randn(f.shape[1], f.shape[0]).T):
        got = torch.autograd.grad(f, flat(i), seed, retain_graph=True)
        again = torch.autograd.grad(f, flat(i), seed, retain_graph=True)
        want = torch.autograd.grad(exact, flat(doubles), seed.double(), retain_graph=True)
        for a, b, c in zip(got, again, want, strict=True):
            assert torch.equal(a, b)
            assert error(a, c) < 2e-6
    assert all(torch.equal(a, b) for a, b in zip(before, flat(i), strict=True))


class Nothing(torch.autograd.Function):
    """The identity, through which no gradient comes back."""

    @staticmethod
    def forward(ctx, f):
        return f.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_gradient_that_is_not_there(small_tiles, grid):
    """None comes back as None, without a launch."""
    i = make_inputs(SHAPES[1], requires_grad=True)
    out = Nothing.apply(run(i, backend="triton"))
    grid.launches.clear()
    assert torch.autograd.grad(out.sum(), flat(i), allow_unused=True) == (None,) * len(flat(i))
    assert grid.launches == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(small_tiles, dtype):
    """float32 tensors, products and f in autocast's dtype; gradients come back in float32."""
    i = make_inputs(TWO, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        ours, plain = (run(i, backend=b) for b in ("triton", "torch"))
    assert ours.dtype is plain.dtype is dtype
    doubles = wide(i)
    exact, eps = truth(doubles), torch.finfo(dtype).eps
    assert eps / 50 < error(ours, exact) <= 2 * error(plain, exact)
    seed = torch.randn_like(ours)
    got = torch.autograd.grad(ours, flat(i), seed)
    eager = torch.autograd.grad(plain, flat(i), seed)
    for a, b, c in zip(got, eager, torch.autograd.grad(exact, flat(doubles), seed.double()), strict=True):
        assert a.dtype is b.dtype
        # a sum of few rounded terms: eager's error is sometimes small by luck
        assert error(a, c) <= 2 * error(b, c) + 1.5 * eps


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("tf32", 5e-5, 2e-3), ("high", 5e-5, 2e-3), ("bf16", 5e-4, 2e-2)]
)
def test_precision(small_tiles, precision, low, high):
    """A lower precision is what was asked for; test_against_truth has "highest"."""
    i = make_inputs((18, 20, (33, 20), 10), requires_grad=True)
    doubles = wide(i)
    f, exact = run(i, precision=precision, backend="triton"), truth(doubles)
    assert low < error(f, exact) < high
    seed = torch.randn_like(f)
    got, want = torch.autograd.grad(f, flat(i), seed), torch.autograd.grad(exact, flat(doubles), seed.double())
    # all but the output bias, which is a plain sum
    for a, b in zip(got[:-1], want[:-1], strict=True):
        assert low / 10 < error(a, b) < 10 * high


@pytest.mark.parametrize("keywords", [{}, {"parameterization": "ntk", "bias_var": 0.1}, {"dropout": 0.2}], ids=str)
def test_training_a_module(small_tiles, keywords):
    """NFTKMLP(backend="triton") trains as NFTKMLP(backend="torch") does."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0).long()
    histories, models = [], []
    for backend in ("triton", "torch"):
        torch.manual_seed(1)
        models.append(nftk.NFTKMLP(6, [7, 5], 2, backend=backend, **keywords))
        histories.append(nftk.fit(models[-1], (x, y), (x, y), epochs=2, batch_size=12))
    assert histories[0].column("loss") == pytest.approx(histories[1].column("loss"), rel=1e-5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
