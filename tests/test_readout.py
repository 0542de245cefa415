"""nftk.ops.readout: torch and the Triton kernels (under the interpreter) against the definition in float64.

The kernels' tests were seen red on each of the faults listed in tests/mutants.py, which plants them again:
``python tests/mutants.py readout``.
"""

import copy

import pytest
import torch
from kernel_checks import compile_and_list, device_work, error, guarded, slack
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import nftk
from nftk import _dispatch
from nftk.reference import readouts_reference, weighted_sum_reference

# (B, widths, d): one of each, ragged, exact tiles, one layer, two tiles of outputs, many layers
SHAPES = [
    (1, (1,), 1),
    (7, (5, 3), 3),
    (37, (5, 40, 17, 1), 10),
    (32, (32, 16, 48), 16),
    (33, (65,), 2),
    (18, (20, 33), 37),
    (2, (3,) * 20, 2),
]
IDS = [f"B{b}-{'x'.join(map(str, w[:4]))}{'...' if len(w) > 4 else ''}-d{d}" for b, w, d in SHAPES]
# in tiles of 16: two blocks of rows, and layers of one tile, of two and of one unit
RAGGED = (18, (5, 20, 17, 1), 5)
# every two of shape, with_readouts and dtype
IN_PAIRS = [
    pytest.param(shape, (n + k) % 2 == 0, dtype, id=f"{name}-{(n + k) % 2 == 0}-{dtype}")
    for n, (shape, name) in enumerate(zip(SHAPES, IDS, strict=True))
    for k, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16))
]


def make_inputs(shape, dtype, requires_grad=False, layout="rows"):
    b, widths, d = shape
    g = torch.Generator().manual_seed(0)

    def draw(rows, cols, scale=1.0):
        values = (torch.randn(rows, cols, generator=g, dtype=torch.float64) * scale).to(dtype)
        return guarded(values, layout).requires_grad_(requires_grad)

    hs = [draw(b, n) for n in widths]
    return hs, draw(d, sum(widths), max(widths) ** -0.5), draw(d, len(widths))


def truth(hs, readout_weight, omega, scales=None):
    vs = readout_weight.split([h.shape[1] for h in hs], 1)
    f_l = readouts_reference(hs, vs)
    if scales is not None:
        f_l = f_l * torch.tensor(scales, dtype=f_l.dtype)[:, None]
    return weighted_sum_reference(f_l, omega), f_l


def wide(hs, readout_weight, omega):
    doubles = [t.detach().double().requires_grad_() for t in (*hs, readout_weight, omega)]
    return doubles[:-2], *doubles[-2:]


def flat(hs, readout_weight, omega):
    return [*hs, readout_weight, omega]


def compare(inputs, scales, with_readouts, **keywords):
    """Values and all gradients are at most twice as far from the truth as eager torch's in that dtype."""
    doubles = wide(*inputs)
    exact = truth(*doubles, scales)
    plain = truth(*inputs, scales)
    ours = nftk.ops.readout(*inputs, readout_scales=scales, return_readouts=with_readouts, **keywords)
    ours = ours if with_readouts else (ours,)
    more = slack(inputs[1].dtype)
    for name, a, b, c in zip(("f", "f_l"), ours, plain, exact, strict=False):
        assert a.shape == c.shape
        assert a.dtype is inputs[1].dtype
        assert error(a, c) <= 2 * error(b, c) + more, f"{name}: {error(a, c):.1e}, eager {error(b, c):.1e}"
    seeds = [torch.randn(f.shape, dtype=torch.float64) for f in exact[: len(ours)]]
    got = torch.autograd.grad(ours, flat(*inputs), [s.to(a.dtype) for s, a in zip(seeds, ours, strict=True)])
    eager = torch.autograd.grad(plain[: len(ours)], flat(*inputs), [s.to(inputs[1].dtype) for s in seeds])
    want = torch.autograd.grad(exact[: len(ours)], flat(*doubles), seeds)
    for i, (a, b, c) in enumerate(zip(got, eager, want, strict=True)):
        assert error(a, c) <= 2 * error(b, c) + more, f"input {i}: {error(a, c):.1e}, eager {error(b, c):.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("with_readouts", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_torch(shape, with_readouts, dtype):
    compare(make_inputs(shape, dtype, True), None, with_readouts, backend="torch")


@pytest.mark.parametrize(("shape", "with_readouts", "dtype"), IN_PAIRS)
def test_triton(small_tiles, shape, with_readouts, dtype):
    compare(make_inputs(shape, dtype, True), None, with_readouts, backend="triton")


@pytest.mark.slow
def test_a_hundred_layers(small_tiles):
    compare(make_inputs((2, (3,) * 100, 2), torch.float32, True), None, False, backend="triton")


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("with_readouts", [False, True])
def test_splits_and_scales(small_tiles, splits, with_readouts):
    small_tiles(splits)
    compare(make_inputs(RAGGED, torch.float32, True), (0.5, 2.0, 1.0, 3.0), with_readouts, backend="triton")
    compare(make_inputs(SHAPES[5], torch.float32, True), (0.5, 2.0), with_readouts, backend="triton")


def test_default_tiles(grid):
    """The tiles that auto takes, at a shape with two blocks of rows and a ragged layer of two tiles."""
    compare(make_inputs((66, (70, 5), 3), torch.float32, True), None, False, backend="triton")
    compare(make_inputs((66, (70, 5), 80), torch.float32, True), None, True, backend="triton")


@pytest.mark.parametrize("order", ["backward", "random", "together"])
def test_bits_do_not_depend_on_who_arrives_last(small_tiles, grid, order):
    small_tiles(3)
    inputs = make_inputs(RAGGED, torch.float32, True)

    def everything():
        f = nftk.ops.readout(*inputs, backend="triton")
        return [f, *torch.autograd.grad(f.sin().sum(), flat(*inputs))]

    first = everything()
    grid.order = order
    for a, b in zip(first, everything(), strict=True):
        assert torch.equal(a, b)


def test_bits_with_several_tiles_of_outputs(small_tiles, grid):
    """Omega's counters are each tile's own: programs in any order, d beyond a tile."""
    small_tiles(2)
    inputs = make_inputs((33, (20, 17), 37), torch.float32, True)
    for order in ("forward", "backward", "random"):
        grid.order = order
        compare(inputs, None, True, backend="triton")


@pytest.mark.parametrize("with_readouts", [False, True])
def test_gradients_in_batches(small_tiles, with_readouts):
    """torch.autograd.grad(is_grads_batched=True), and a gradient that is not there."""
    inputs = make_inputs((4, (5, 3), 2), torch.float32, True)
    found = nftk.ops.readout(*inputs, return_readouts=with_readouts, backend="triton")
    f = found[0] if with_readouts else found
    seeds = torch.randn(3, 4, 2)
    got = torch.autograd.grad(f, flat(*inputs), seeds, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(f, flat(*inputs), seed, retain_graph=True) for seed in seeds]
    for a, b in zip(got, zip(*want, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b))


def test_hidden_states_of_two_dtypes(grid):
    hs, v, omega = make_inputs((4, (5, 3), 2), torch.float32)
    message = "no code for hidden states of different dtypes"
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(NotImplementedError, match=message):
        nftk.ops.readout([hs[0], hs[1].bfloat16()], v, omega, backend="triton")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_non_contiguous(small_tiles, backend):
    """Column-major inputs, a grad_output that is expanded, and one that is transposed."""
    inputs = make_inputs(RAGGED, torch.float32, True, "columns")
    doubles = wide(*inputs)
    f, exact = nftk.ops.readout(*inputs, backend=backend), truth(*doubles)[0]
    assert error(f, exact) < 1e-6
    for seed in (torch.ones(1, 1).expand(f.shape), torch.randn(f.shape[1], f.shape[0]).T):
        got = torch.autograd.grad(f, flat(*inputs), seed, retain_graph=True)
        want = torch.autograd.grad(exact, flat(*doubles), seed.double(), retain_graph=True)
        for a, b in zip(got, want, strict=True):
            assert error(a, b) < 2e-6


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_leading_dimensions_and_empty_batch(small_tiles, backend):
    hs, v, omega = make_inputs((12, (4, 3), 2), torch.float32)
    f, f_l = nftk.ops.readout(hs, v, omega, return_readouts=True, backend=backend)
    folded = [h.reshape(3, 2, 2, -1) for h in hs]
    g, g_l = nftk.ops.readout(folded, v, omega, return_readouts=True, backend=backend)
    torch.testing.assert_close(g, f.view(3, 2, 2, 2))
    torch.testing.assert_close(g_l, f_l.view(3, 2, 2, 2, 2))
    assert nftk.ops.readout([h[0] for h in hs], v, omega, backend=backend).shape == (2,)
    empty = [h[:0].requires_grad_() for h in hs]
    v.requires_grad_()
    f = nftk.ops.readout(empty, v, omega, backend=backend)
    assert f.shape == (0, 2)
    grads = torch.autograd.grad(f.sum(), [*empty, v])
    assert [g.shape for g in grads] == [(0, 4), (0, 3), v.shape]
    assert not grads[-1].any()


@pytest.mark.parametrize("with_readouts", [False, True])
@pytest.mark.parametrize("shape", [RAGGED, SHAPES[5]], ids=["narrow", "wide"])
def test_half_precision_holds_what_torch_holds(small_tiles, shape, with_readouts):
    """Omega times a scaled loss's gradient is beyond float16, Omega times V is not."""
    hs, v, omega = make_inputs(shape, torch.float32)
    inputs = [h.half().requires_grad_() for h in hs], (v / 64).half().requires_grad_(), (8 * omega).half()
    found = nftk.ops.readout(*inputs, return_readouts=with_readouts, backend="triton")
    found, doubles = found if with_readouts else (found,), wide(*inputs)
    seeds = [torch.full_like(f, 2.0**14) for f in found]
    got = torch.autograd.grad(found, inputs[0], seeds)
    exact = truth(*doubles)[: len(found)]
    for a, b in zip(got, torch.autograd.grad(exact, doubles[0], [s.double() for s in seeds]), strict=True):
        assert error(a, b) < 2e-3


def test_infinity_stays(small_tiles):
    """The parts that "highest" splits a number into make no NaN of an infinity."""
    hs, v, omega = make_inputs(RAGGED, torch.float32)
    hs[1][3, 7], v[4, 11] = torch.inf, -torch.inf
    f, exact = nftk.ops.readout(hs, v, omega, backend="triton"), truth(hs, v, omega)[0]
    assert f.isinf().any()
    torch.testing.assert_close(f, exact, equal_nan=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("wanted", ["h", "v", "omega"])
def test_only_the_wanted_gradient(small_tiles, wanted, backend):
    inputs = make_inputs(RAGGED, torch.float32)
    hs, v, omega = inputs
    target = {"h": hs[1], "v": v, "omega": omega}[wanted].requires_grad_()
    seed = torch.randn(18, 5)
    (got,) = torch.autograd.grad(nftk.ops.readout(*inputs, backend=backend), target, seed)
    (want,) = torch.autograd.grad(truth(*inputs)[0], target, seed)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_backward_repeats_and_inputs_are_left_alone(small_tiles, backend):
    inputs = make_inputs(RAGGED, torch.float32, True)
    before = copy.deepcopy([t.detach() for t in flat(*inputs)])
    f = nftk.ops.readout(*inputs, backend=backend)
    seed = torch.randn_like(f)
    first = torch.autograd.grad(f, flat(*inputs), seed, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(f, flat(*inputs), seed)
    for a, b, c in zip(kept, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    for a, b in zip(before, flat(*inputs), strict=True):
        assert torch.equal(a, b)


def test_derivatives_of_torch():
    inputs = flat(*make_inputs((3, (2, 3), 2), torch.float64, True))

    def f(*tensors):
        return nftk.ops.readout(tensors[:-2], *tensors[-2:], return_readouts=True, backend="torch")

    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("scales", [None, (0.5, 3.0)], ids=str)
@pytest.mark.parametrize("with_readouts", [False, True])
def test_second_derivative_of_triton(small_tiles, with_readouts, scales):
    inputs = make_inputs((7, (5, 3), 3), torch.float32, True)
    doubles = wide(*inputs)

    def second(tensors, call):
        f = call(*tensors)
        value = f[0].sin().sum() + f[1].cos().sum() if with_readouts else f[0].sin().sum()
        first = torch.autograd.grad(value, flat(*tensors), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), flat(*tensors))

    def ours(*tensors):
        found = nftk.ops.readout(*tensors, readout_scales=scales, return_readouts=with_readouts, backend="triton")
        return found if with_readouts else (found,)

    for a, b in zip(second(inputs, ours), second(doubles, lambda *t: truth(*t, scales)), strict=True):
        assert error(a, b) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("with_readouts", [False, True])
def test_registration(small_tiles, with_readouts, dtype):
    hs, v, omega = make_inputs((7, (5, 3), 3), dtype)
    forward = hs, v, omega, [1.0, 2.0], with_readouts, "highest", dtype, "triton"
    opcheck(torch.ops.nftk.readout.default, forward)
    grads = torch.randn(7, 3, dtype=dtype), torch.randn(7, 2, 3, dtype=dtype) if with_readouts else None
    opcheck(
        torch.ops.nftk.readout_bwd.default, (*grads, hs, v, omega, [1.0, 2.0], True, with_readouts, "highest", "triton")
    )


def test_transforms_of_torch():
    hs, v, omega = make_inputs((7, (5, 3), 3), torch.float64)

    def f(h, w):
        return nftk.ops.readout([h, hs[1]], v, w)

    def g(h, w):
        return truth([h, hs[1]], v, w)[0]

    torch.testing.assert_close(torch.func.jacrev(f)(hs[0], omega), torch.func.jacrev(g)(hs[0], omega))
    tangent = torch.randn_like(hs[0])
    ours = torch.func.jvp(lambda h: f(h, omega), (hs[0],), (tangent,))
    torch.testing.assert_close(ours, torch.func.jvp(lambda h: g(h, omega), (hs[0],), (tangent,)))
    batch = torch.stack([hs[0], 2 * hs[0]])
    torch.testing.assert_close(torch.func.vmap(f, (0, None))(batch, omega), torch.stack([g(h, omega) for h in batch]))


def test_transforms_of_triton(small_tiles):
    """jacrev and vmap are right; jvp is refused by name, never silently zero."""
    hs, v, omega = make_inputs((7, (5, 3), 3), torch.float32)

    def f(h, w):
        return nftk.ops.readout([h, hs[1]], v, w, backend="triton")

    def g(h, w):
        return truth([h, hs[1]], v, w)[0]

    torch.testing.assert_close(torch.func.jacrev(f)(hs[0], omega), torch.func.jacrev(g)(hs[0], omega))
    batch = torch.stack([hs[0], 2 * hs[0]])
    torch.testing.assert_close(torch.func.vmap(f, (0, None))(batch, omega), torch.stack([g(h, omega) for h in batch]))
    with pytest.raises(NotImplementedError, match=r"'triton' has no code for forward-mode derivatives \(jvp\)"):
        torch.func.jvp(lambda h: f(h, omega), (hs[0],), (hs[0],))


# torch 2.13 makes the instance itself, while it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("with_readouts", [False, True])
def test_compile(small_tiles, with_readouts):
    """One graph, with the kernels inside it forward and backward."""
    inputs = make_inputs((7, (5, 3), 3), torch.float32, True)

    def f(*tensors):
        found = nftk.ops.readout(tensors[:-2], *tensors[-2:], return_readouts=with_readouts, backend="triton")
        return found[0].sin() + found[1].sum(1) if with_readouts else found.sin()

    compiled, seen = compile_and_list(f)
    got, want = compiled(*flat(*inputs)), f(*flat(*inputs))
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(want)
    pairs = zip(
        torch.autograd.grad(got, flat(*inputs), seed), torch.autograd.grad(want, flat(*inputs), seed), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b)
    assert "nftk.readout.default" in seen
    assert "nftk.readout_bwd.default" in seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(small_tiles, dtype):
    """float32 tensors, products and f in autocast's dtype; gradients come back in float32."""
    inputs = make_inputs(RAGGED, torch.float32, True)
    with torch.autocast("cpu", dtype=dtype):
        ours, plain = (nftk.ops.readout(*inputs, backend=b) for b in ("triton", "torch"))
    assert ours.dtype is plain.dtype is dtype
    exact = truth(*wide(*inputs))[0]
    eps = torch.finfo(dtype).eps
    assert eps / 50 < error(ours, exact) <= 2 * error(plain, exact)
    seed = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, flat(*inputs), seed), torch.autograd.grad(plain, flat(*inputs), seed), strict=True
    ):
        assert a.dtype is b.dtype
        assert error(a, b) < 3 * eps


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("tf32", 5e-5, 1e-3), ("high", 5e-5, 1e-3), ("bf16", 5e-4, 1e-2)]
)
def test_precision(small_tiles, precision, low, high):
    """A lower precision is what was asked for, in the gradients too; test_triton has "highest"."""
    inputs = make_inputs((18, (33, 20), 10), torch.float32, True)
    doubles = wide(*inputs)
    f, exact = nftk.ops.readout(*inputs, precision=precision, backend="triton"), truth(*doubles)[0]
    assert low < error(f, exact) < high
    seed = torch.randn_like(f)
    got = torch.autograd.grad(f, flat(*inputs), seed)
    for a, b in zip(got, torch.autograd.grad(exact, flat(*doubles), seed.double()), strict=True):
        assert low < error(a, b) < high


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("shape", [RAGGED, (18, (20, 33), 37)], ids=["narrow", "wide"])
@pytest.mark.parametrize("with_readouts", [False, True])
def test_launches(small_tiles, grid, with_readouts, shape):
    """One launch forward, one backward, and no other work on the device: no memset, cast, copy or stack."""
    small_tiles(3)
    inputs = make_inputs(shape, torch.float32, True)
    call = lambda: nftk.ops.readout(*inputs, return_readouts=with_readouts, backend="triton")  # noqa: E731
    call()  # the counters' memory is made once
    torch.use_deterministic_algorithms(False)  # its NaN in fresh memory would count
    grid.launches.clear()
    with torch.profiler.profile() as forward:
        found = call()
    assert grid.launches == ["_readout_fwd_kernel"]
    found = found if with_readouts else (found,)
    seeds = [torch.ones(1).expand(f.shape) for f in found]
    with torch.profiler.profile() as backward:
        torch.autograd.grad(found, flat(*inputs), seeds)
    assert grid.launches == ["_readout_fwd_kernel", "_readout_bwd_kernel"]
    for profile in (forward, backward):
        assert device_work(profile) == []


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda h, v, o: (h[0], v, o), TypeError, "hidden_states must be a list with an entry a layer, got Tensor"),
        (lambda h, v, o: (None, v, o), TypeError, "hidden_states must be a list with an entry a layer, got NoneType"),
        (lambda h, v, o: ([], v, o), ValueError, "hidden_states must have an entry a layer, got none"),
        (lambda h, v, o: ([h[0], h[1][:3]], v, o), ValueError,
         r"hidden_states\[1\] must have shape \[7, n2\], got \[3, 3\]"),
        (lambda h, v, o: ([h[0], h[1][:, :0]], v, o), ValueError, r"hidden_states\[1\] must have at least one column"),
        (lambda h, v, o: (h, v[:, 1:], o), ValueError, r"readout_weight must have shape \[d, 8\], got \[3, 7\]"),
        (lambda h, v, o: (h, v, o.T), ValueError, r"omega must have shape \[3, 2\], got \[2, 3\]"),
        (lambda h, v, o: (h, v.double(), o), ValueError, "must share one dtype, but .*readout_weight is torch.float64"),
        (lambda h, v, o: (h, v, o.long()), TypeError, "omega must have a floating dtype, got torch.int64"),
        (lambda h, v, o: (h, v, [1]), TypeError, "omega must be a torch.Tensor, got list"),
        (lambda h, v, o: ([h[0].to_sparse(), h[1]], v, o), TypeError,
         r"hidden_states\[0\] must be dense, got torch.sparse_coo; to_dense\(\) makes it so"),
    ],
    ids=["tensor", "None", "none", "rows", "width", "readout", "omega", "dtype", "integer", "list", "sparse"],
)  # fmt: skip
def test_errors(change, kind, message):
    with pytest.raises(kind, match=message):
        nftk.ops.readout(*change(*make_inputs((7, (5, 3), 3), torch.float32)))


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"backend": "metal"}, ValueError, "backend must be one of 'auto', .* got 'metal'"),
        ({"backend": "cuda"}, NotImplementedError, r"backend must be one of .* or 'auto', got 'cuda'"),
        ({"backend": "triton"}, NotImplementedError, "'triton' has no code for torch.float64, because Triton sums in"),
        ({"precision": "low"}, ValueError, "precision must be one of 'highest', .* got 'low'"),
        ({"precision": ["tf32"]}, ValueError, "precision must be one of 'highest', .* got "),
        ({"readout_scales": 2.0}, TypeError, "readout_scales must be None or a list of 2 numbers, got float"),
        ({"readout_scales": [1.0, "a"]}, TypeError, r"readout_scales\[1\] must be a number, got 'a'"),
        ({"readout_scales": [1.0, float("nan")]}, ValueError, r"readout_scales\[1\] must be finite, got nan"),
        ({"readout_scales": [1.0]}, ValueError, "readout_scales must have 2 entries, one a layer, got 1"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_of_keywords(keywords, kind, message):
    with pytest.raises(kind, match=message):
        nftk.ops.readout(*make_inputs((7, (5, 3), 3), torch.float64), **keywords)


@pytest.mark.parametrize("problem", [None, "Triton is not installed; run"])
def test_triton_without_its_needs_is_refused(monkeypatch, problem):
    monkeypatch.setattr(_dispatch, "_TRITON_INTERPRETED", False)
    monkeypatch.setattr(_dispatch, "_TRITON_PACKAGE", problem)
    # no package would help tensors that are not on a GPU
    with pytest.raises(
        RuntimeError, match="'triton' is not available: it needs tensors on a CUDA GPU, and these are on 'cpu'"
    ):
        nftk.ops.readout(*make_inputs((7, (5, 3), 3), torch.float32), backend="triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert problem is None or _dispatch.why_not("triton", "cuda") == problem


def test_old_gpus_are_refused(monkeypatch):
    """By the capability of the GPU that the tensors are on, not of the current one; torch.compile can ask too."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device == "cuda:1" else (9, 0))
    torch._dynamo.reset()
    ask = torch.compile(lambda x: (x + 1, _dispatch._too_old("cuda:1")), backend="eager", fullgraph=True)
    assert "compute capability 8.0 (Ampere) or above" in ask(torch.ones(1))[1]
    monkeypatch.setattr(_dispatch, "_TRITON_INTERPRETED", False)
    monkeypatch.setattr(_dispatch, "_TRITON_PACKAGE", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = [_dispatch.why_not("triton", name) for name in ("cuda", "cuda:0", "cuda:1")]
    assert told[:2] == [None, None]
    assert "compute capability 8.0 (Ampere) or above" in told[2]
    chosen = [_dispatch.resolve("op", "auto", ("triton", "torch"), name) for name in ("cuda:0", "cuda:1")]
    assert chosen == ["triton", "torch"]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_vmap_over_none(small_tiles, backend):
    hs, v, omega = make_inputs((4, (5, 3), 2), torch.float32)
    none = hs[0].new_zeros(0, 4, 5)
    f, f_l = torch.vmap(lambda h: nftk.ops.readout([h, hs[1]], v, omega, return_readouts=True, backend=backend))(none)
    assert f.shape == (0, 4, 2)
    assert f_l.shape == (0, 4, 2, 2)


def test_auto_never_takes_the_interpreter(grid):
    nftk.ops.readout(*make_inputs((7, (5, 3), 3), torch.float32))
    assert grid.launches == []
