"""nftk.ops.network by the Triton kernels (under the interpreter), against the definition in float64.

Seen red on each of the faults that tests/mutants.py plants: ``python tests/mutants.py network``.
"""

import importlib
from types import SimpleNamespace

import pytest
import torch
from kernel_checks import compile_and_list, device_work, error, guarded, slack
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import nftk
from nftk.ops import activations
from nftk.ops.explain import explain
from nftk.ops.network_formula import Plan

# the function of that name hides the module
network_module = importlib.import_module("nftk.ops.network")
NAMES = list(activations.BY_NAME)
# (B, m, widths, d): one of each, ragged, exact tiles, one layer and many outputs
SHAPES = [(1, 1, (1,), 1), (7, 5, (3, 11, 2), 3), (37, 9, (5, 40, 17, 1), 10), (32, 16, (32, 16, 48), 16),
          (18, 20, (65,), 37)]  # fmt: skip
IDS = [f"B{b}-m{m}-{'x'.join(map(str, w))}-d{d}" for b, m, w, d in SHAPES]
# in tiles of 16: two blocks of rows, and layers of one tile, of two and of one unit; THREE has another block
TWO, THREE = ((b, 5, (5, 20, 17, 1), 3) for b in (18, 33))
# every shape in float32 and in one of the halves
HALVES = [torch.bfloat16, torch.float16, torch.bfloat16, torch.bfloat16, torch.float16]
IN_DTYPES = [
    pytest.param(shape, dtype, id=f"{name}-{dtype}")
    for shape, name, half in zip(SHAPES, IDS, HALVES, strict=True)
    for dtype in (torch.float32, half)
]
FORWARD, BACKWARD = ["_network_fwd_kernel"], ["_network_bwd_kernel", "_network_bwd_weights_kernel"]


def make_inputs(shape, dtype=torch.float32, requires_grad=False, layout="dense"):
    """x, weights, biases, readout weight, omega, output bias; NaN behind each."""
    b, m, widths, d = shape
    g = torch.Generator().manual_seed(0)

    def draw(*size, scale=1.0, layout=layout):
        values = (torch.randn(*size, generator=g, dtype=torch.float64) * scale).to(dtype)
        return guarded(values, layout).requires_grad_(requires_grad)

    weights = [draw(n, k, scale=k**-0.5) for n, k in zip(widths, (m, *widths[:-1]), strict=True)]
    return SimpleNamespace(
        x=draw(b, m, layout="rows" if layout == "dense" else layout),
        weights=weights,
        biases=[draw(n, scale=0.3) for n in widths],
        readout_weight=draw(d, sum(widths), scale=max(widths) ** -0.5, layout="rows"),
        omega=draw(d, len(widths), layout="rows"),
        output_bias=draw(d),
    )


def flat(i):
    return [t for t in (i.x, *i.weights, *i.biases, i.readout_weight, i.omega, i.output_bias) if t is not None]


def wide(i):
    def double(t):
        return None if t is None else t.detach().double().requires_grad_()

    return SimpleNamespace(**{
        name: [double(t) for t in value] if isinstance(value, list) else double(value)
        for name, value in vars(i).items()
    })  # fmt: skip


def run(i, **keywords):
    return nftk.ops.network(i.x, i.weights, i.biases, i.readout_weight, i.omega, output_bias=i.output_bias, **keywords)


def truth(i, activation="relu", weight_scales=None, bias_scales=None, readout_scales=None):
    """Equations 1-3, 7, 8 as a loop, with the scales where they are given; no code of ours but the name of phi."""
    phi, depth = activations.BY_NAME[activation].function, len(i.weights)
    ones = [1.0] * depth
    vs = i.readout_weight.split([w.shape[0] for w in i.weights], 1)
    h, f = i.x, 0 if i.output_bias is None else i.output_bias
    for l in range(depth):  # noqa: E741
        g = torch.einsum("oi,bi->bo", i.weights[l], h) * (weight_scales or ones)[l]
        if i.biases[l] is not None:
            g = g + i.biases[l] * (bias_scales or ones)[l]
        h = phi(g)
        f = f + i.omega[:, l] * torch.einsum("dn,bn->bd", vs[l], h) * (readout_scales or ones)[l]
    return f


def compare(i, **keywords):
    """Value and every gradient at most twice as far from the truth as eager torch's in that dtype."""
    dtype, doubles = i.x.dtype, wide(i)
    formula = {k: v for k, v in keywords.items() if k != "precision"}
    exact, plain = truth(doubles, **formula), truth(i, **formula)
    ours = run(i, backend="triton", **keywords)
    assert ours.dtype is dtype
    assert error(ours, exact) <= 2 * error(plain, exact) + slack(dtype)
    with torch.no_grad():
        # without gradients the states go to scratch; the sums are the same
        assert torch.equal(run(i, backend="triton", **keywords), ours)
    seed = torch.randn(exact.shape, dtype=torch.float64)
    got = torch.autograd.grad(ours, flat(i), seed.to(dtype))
    eager = torch.autograd.grad(plain, flat(i), seed.to(dtype))
    want = torch.autograd.grad(exact, flat(doubles), seed)
    for n, (a, b, c) in enumerate(zip(got, eager, want, strict=True)):
        assert a.shape == c.shape
        assert error(a, c) <= 2 * error(b, c) + slack(dtype), f"input {n}: {error(a, c):.1e}, eager {error(b, c):.1e}"


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


def test_bits_do_not_depend_on_who_arrives_last(small_tiles, grid, monkeypatch):
    split_weight_sums(monkeypatch, 3)
    i = make_inputs(THREE, requires_grad=True)

    def everything():
        f = run(i, backend="triton")
        return [f, *torch.autograd.grad(f.sin().sum(), flat(i))]

    first = everything()
    compare(i)
    for grid.order in ("backward", "random", "together"):
        for a, b in zip(first, everything(), strict=True):
            assert torch.equal(a, b), grid.order


def split_weight_sums(monkeypatch, splits, columns=1):
    from nftk.kernels import choice

    def tiles(kernel, *args, **kwargs):
        return choice.Tiles(16, 16, 16, splits if kernel == "network_bwd_weights" else columns, 4, 2)

    monkeypatch.setattr(choice, "default_tiles", tiles)
    monkeypatch.setattr(choice, "programs_at_once", lambda device: 12)


@pytest.mark.parametrize(("columns", "name"), [(2, "gelu"), (3, "relu")])
def test_programs_that_share_a_block_of_rows(small_tiles, grid, monkeypatch, columns, name):
    """The cooperative launch: all programs at once, each a thread, waiting for each other after every layer."""
    i = make_inputs((18, 5, (5, 40, 17), 3), requires_grad=True)
    split_weight_sums(monkeypatch, 1)
    alone = run(i, backend="triton", activation=name)
    grads = torch.autograd.grad(alone.sin().sum(), flat(i))
    split_weight_sums(monkeypatch, 2, columns)
    grid.order = "together"
    for _ in range(2):  # the counters are back at zero for the second
        together = run(i, backend="triton", activation=name)
        assert torch.equal(together, alone)
        for a, b in zip(torch.autograd.grad(together.sin().sum(), flat(i)), grads, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            assert torch.equal(run(i, backend="triton", activation=name), alone)


@pytest.mark.parametrize("frozen", [1, 2])
def test_programs_that_share_a_block_leave_frozen_layers_alone(small_tiles, grid, monkeypatch, frozen):
    """The walk back ends above the frozen layers, and its counters are back at zero there too."""
    i = make_inputs((18, 5, (5, 40, 17), 3))
    wanted = [t.requires_grad_() for t in (*i.weights[frozen:], *i.biases[frozen:], i.omega)]
    grads = torch.autograd.grad(truth(i).sin().sum(), wanted)
    split_weight_sums(monkeypatch, 1, 2)
    grid.order = "together"
    for _ in range(2):
        for a, b in zip(torch.autograd.grad(run(i, backend="triton").sin().sum(), wanted), grads, strict=True):
            torch.testing.assert_close(a, b)


def test_no_more_programs_wait_for_each_other_than_the_chip_holds(monkeypatch):
    """Beyond that the stored columns are not taken: programs that are not on the chip would be waited for for ever."""
    from nftk.kernels import choice

    split_weight_sums(monkeypatch, 1, 3)
    monkeypatch.setattr(choice, "programs_at_once", lambda device: 14)
    for rows, splits in [(1, 3), (64, 3), (65, 1), (1000, 1)]:  # in blocks of 16
        for op in ("network_fwd", "network_bwd"):
            assert choice.walk_tiles(op, torch.empty(rows, 5), (7, 8), 2, "tf32x3").splits == splits, rows


def test_few_programs_walk_many_blocks(small_tiles, monkeypatch):
    """More blocks of rows than programs: each walks several, over the same scratch."""
    from nftk.kernels import choice

    monkeypatch.setattr(choice, "programs_at_once", lambda device: 1)
    compare(make_inputs((35, 5, (3, 20), 3), requires_grad=True))


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


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_launches(small_tiles, grid, monkeypatch, name):
    """One launch forward, two backward, and no other work on the device: no memset, cast, copy or stack."""
    split_weight_sums(monkeypatch, 2)
    i = make_inputs(TWO, requires_grad=True)
    run(i, backend="triton")  # the counters' memory is made once
    torch.use_deterministic_algorithms(False)  # its NaN in fresh memory would count
    grid.launches.clear()
    with torch.profiler.profile() as forward:
        f = run(i, activation=name, backend="triton")
    assert grid.launches == FORWARD
    seed = torch.ones(1).expand(f.shape)
    with torch.profiler.profile() as backward:
        torch.autograd.grad(f, flat(i), seed)
    assert grid.launches == FORWARD + BACKWARD
    for profile in (forward, backward):
        assert device_work(profile) == []


def test_gradients_are_taken_over_without_a_copy(small_tiles):
    """Parameters get views of the one buffer that the kernel wrote, so accumulating starts no work either."""
    i = make_inputs(SHAPES[1], requires_grad=True)
    run(i, backend="triton").sum().backward()
    assert len({w.grad.untyped_storage().data_ptr() for w in i.weights}) == 1
    assert all(w.grad.is_contiguous() for w in i.weights)


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
