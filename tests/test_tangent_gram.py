"""ops.tangent_gram: on torch, and on the CUDA source as the CPU runs it (tests/cuda), through the operation itself."""

import pytest
import torch
from kernel_checks import compile_and_list, error
from torch.autograd import gradcheck, gradgradcheck

import nftk
from nftk.ops import tangent_gram_torch
from nftk.ops.tangent_gram import FORMS
from nftk.reference import tangent_gram_reference

op = nftk.ops.tangent_gram
# (n1, n2, d, channels a term): one, prime, across the edges of the small tiles below
SHAPES = [(1, 1, 1, (1,)), (7, 5, 3, (4, 2)), (13, 11, 2, (9, 1, 5)), (2, 9, 7, (3, 6))]


@pytest.fixture
def small(monkeypatch):
    """Tiles so small that small shapes have many."""
    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (6, 8)})
    monkeypatch.setattr(tangent_gram_torch, "_DIAGONAL", 2)


def make_inputs(shape, dtype=torch.float32, symmetric=False, requires_grad=False):
    """Triangular, as a walk back gives them: term t has a slice for every output from t on."""
    n1, n2, d, channels = shape
    n2 = n1 if symmetric else n2
    count = len(channels)
    s = [torch.randn(n1, n2, dtype=dtype) for _ in channels]
    a = [torch.randn(count - t, n1, d, c, dtype=dtype) for t, c in enumerate(channels)]
    b = None if symmetric else [torch.randn(count - t, n2, d, c, dtype=dtype) for t, c in enumerate(channels)]
    if symmetric:
        s = [x + x.T for x in s]
    for x in (*s, *a, *(b or ())):
        x.requires_grad_(requires_grad)
    return s, a, b


def reduced(full, form):
    if form == "trace":
        return full.diagonal(dim1=3, dim2=4).sum(-1)
    return full.diagonal(dim1=3, dim2=4) if form == "diagonal" else full


def truth_of(s, a, b, form, outputs=None):
    wide = [[x.double() for x in xs] for xs in (s, a, a if b is None else b)]
    outputs = outputs or [range(len(s) - x.shape[0], len(s)) for x in a]
    return reduced(tangent_gram_reference(*wide, outputs, 1 + max(o for term in outputs for o in term)), form)


def id_of(shape):
    return "-".join(map(str, shape[:3])) + "-" + "x".join(map(str, shape[3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=id_of)
@pytest.mark.parametrize("backend", ["torch", "cuda"])
def test_forward(request, small, shape, form, symmetric, dtype, backend):
    if backend == "cuda":
        request.getfixturevalue("cuda")
    s, a, b = make_inputs(shape, dtype, symmetric)
    out = op(s, a, b, form=form, backend=backend)
    truth = truth_of(s, a, b, form)
    assert out.shape == truth.shape
    assert out.dtype is dtype
    assert error(out, truth) <= (1e-14 if dtype is torch.float64 else 1e-6)
    if symmetric:
        mirror = {"full": (0, 2, 1, 4, 3), "trace": (0, 2, 1), "diagonal": (0, 2, 1, 3)}[form]
        assert torch.equal(out, out.permute(mirror))


@pytest.mark.parametrize("form", FORMS)
def test_outputs(small, form):
    """Slices to one output, apart, backward; an output without a term is 0."""
    s, a, b = make_inputs((5, 4, 3, (2, 3, 4)))
    places = [(0, 0, 3), (4, 3), (1,)]
    out = op(s, a, b, outputs=places, form=form)
    assert error(out, truth_of(s, a, b, form, places)) < 1e-6
    assert not out[2].any()


def test_outputs_are_handed_to_the_kernel_in_runs(cuda):
    s, a, b = make_inputs((5, 4, 3, (2, 3, 4)))
    # one run backward, one of the same, and two runs
    places = [(2, 1, 0), (0, 0), (1,)]
    assert error(op(s, a, b, outputs=places, backend="cuda"), truth_of(s, a, b, "full", places)) < 1e-6
    places = [(0, 0, 2), (2, 1), (1,)]
    assert error(op(s, a, b, outputs=places, backend="cuda"), truth_of(s, a, b, "full", places)) < 1e-6


def test_all_outputs_are_one_launch(cuda):
    s, a, b = make_inputs((5, 4, 3, (2, 3, 4)))
    before = cuda.launches
    op(s, a, b, backend="cuda")
    assert cuda.launches == before + 1


@pytest.mark.parametrize("form", FORMS)
def test_tiles_do_not_matter(monkeypatch, form):
    s, a, b = make_inputs((37, 29, 3, (5, 6)), torch.float64)
    whole = op(s, a, b, form=form)
    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (10, 7)})
    torch.testing.assert_close(op(s, a, b, form=form), whole, rtol=1e-13, atol=1e-13)


def test_memory_is_as_documented():
    s, a, b = make_inputs((4, 5, 3, (2,)))
    assert op(s, a, b).permute(0, 1, 3, 2, 4).is_contiguous()
    assert op(s, a, b, form="diagonal").permute(0, 3, 1, 2).is_contiguous()
    assert op(s, a, b, form="trace").is_contiguous()


@pytest.mark.parametrize("backend", ["torch", "cuda"])
def test_non_contiguous(request, small, backend):
    if backend == "cuda":
        request.getfixturevalue("cuda")
    s, a, b = make_inputs((7, 5, 3, (4, 2)))
    s = [x.T.contiguous().T for x in s]
    a = [torch.stack([x, x], -1)[..., 0] for x in a]
    b = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in b]
    assert error(op(s, a, b, backend=backend), truth_of(s, a, b, "full")) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_summed_in_32(dtype):
    s, a, b = (None if xs is None else [x.to(dtype) for x in xs] for xs in make_inputs((9, 8, 2, (300,))))
    out = op(s, a, b)
    assert out.dtype is dtype
    assert error(out, truth_of(s, a, b, "full")) < torch.finfo(dtype).eps


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["torch", "cuda"])
def test_gradients(request, small, form, symmetric, backend):
    if backend == "cuda":
        request.getfixturevalue("cuda")
    s, a, b = make_inputs((4, 3, 2, (3, 2)), torch.float64, symmetric, requires_grad=True)
    flat = [*s, *a, *(b or [])]

    def f(*xs):
        rest = list(xs[4:])
        return op(list(xs[:2]), list(xs[2:4]), rest or None, form=form, backend=backend)

    assert gradcheck(f, flat)
    if not symmetric:
        assert gradgradcheck(f, flat)


@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_registration(request, dtype, backend):
    if backend == "cuda":
        request.getfixturevalue("cuda")
    s, a, b = make_inputs((4, 3, 2, (3, 2)), dtype)
    settings = ([0, 1, 1], 2, "full", False, "highest", backend)
    torch.library.opcheck(torch.ops.nftk.tangent_gram.default, (s, a, b, *settings))


def test_transforms():
    s, a, b = make_inputs((4, 3, 2, (3, 2)), torch.float64)
    many = torch.stack([s[0], 2 * s[0]])
    batched = torch.func.vmap(lambda x: op([x, s[1]], a, b))(many)
    assert error(batched[1], op([2 * s[0], s[1]], a, b)) < 1e-14
    forward = torch.func.jacfwd(lambda x: op([x, s[1]], a, b))(s[0])
    reverse = torch.func.jacrev(lambda x: op([x, s[1]], a, b))(s[0])
    assert error(forward, reverse) < 1e-14


def test_transforms_of_the_kernel(cuda):
    s, a, b = make_inputs((4, 3, 2, (3, 2)), torch.float64)
    many = torch.stack([s[0], 2 * s[0]])
    batched = torch.func.vmap(lambda x: op([x, s[1]], a, b, backend="cuda"))(many)
    assert error(batched[1], op([2 * s[0], s[1]], a, b)) < 1e-14
    jacobian = torch.func.jacrev(lambda x: op([x, s[1]], a, b, backend="cuda"))(s[0])
    assert error(jacobian, torch.func.jacrev(lambda x: op([x, s[1]], a, b))(s[0])) < 1e-14
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        torch.func.jvp(lambda x: op([x, s[1]], a, b, backend="cuda"), (s[0],), (s[0],))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile(cuda):
    s, a, b = make_inputs((4, 3, 2, (3, 2)), requires_grad=True)
    compiled, seen = compile_and_list(lambda *xs: op(xs[:2], xs[2:4], xs[4:], backend="cuda"))
    out = compiled(*s, *a, *b)
    assert error(out, truth_of(s, a, b, "full")) < 1e-6
    assert any("nftk.tangent_gram" in name for name in seen)
    plain = op(s, a, b)
    grads = torch.autograd.grad(out.sum(), [*s, *a, *b])
    for ours, theirs in zip(grads, torch.autograd.grad(plain.sum(), [*s, *a, *b]), strict=True):
        assert error(ours, theirs) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_no_examples(form, n):
    s, a, b = make_inputs((*n, 2, (3,)))
    assert op(s, a, b, form=form).shape[1:3] == n


def test_precision_is_held(cuda):
    """tf32 and bf16 reach the kernel; "highest" is the default."""
    s, a, b = make_inputs((9, 8, 3, (200,)))
    truth = truth_of(s, a, b, "full")
    errors = [error(op(s, a, b, precision=p, backend="cuda"), truth) for p in ("highest", "high", "bf16")]
    assert errors[0] < 1e-6 < 5e-5 < errors[1] < 2e-3 < errors[2] < 2e-2


def test_errors(monkeypatch):
    s, a, b = make_inputs((4, 3, 2, (3, 2)))

    def refused(kind, text, *args, **keywords):
        with pytest.raises(kind, match=text):
            op(*args, **keywords)

    refused(TypeError, "s must be a list", s[0], a, b)
    refused(ValueError, "must have one entry a term, got 2 in s, 1 in a, 2 in b", s, a[:1], b)
    refused(ValueError, "must have one entry a term, got 0 in s", [], [], [])
    refused(ValueError, r"a\[1\] must have shape \[p, 4, 2, c\], got \[1, 3, 2, 2\]", s, [a[0], b[1]], b)
    refused(ValueError, r"b\[0\] must have shape \[2, 3, 2, 3\]", s, a, a)
    refused(ValueError, r"s\[0\] must be square where b is None, got \[4, 3\]", s, a)
    refused(
        ValueError,
        r"outputs must name one output a slice, \[2, 1\] of them, got \[2, 2\]",
        s,
        a,
        b,
        outputs=[(0, 1), (0, 1)],
    )
    refused(ValueError, r"outputs\[1\] must be at least 0, got -1", s, a, b, outputs=[(0, 1), (-1,)])
    refused(ValueError, "outputs must be below 3, the number of slices, got 3", s, a, b, outputs=[(0, 3), (1,)])
    refused(TypeError, r"outputs\[1\] must be a list", s, a, b, outputs=[(0, 1), 1])
    refused(ValueError, "form must be one of", s, a, b, form="sum")
    refused(ValueError, "inputs must share one dtype", [s[0].double(), s[1]], a, b)
    refused(ValueError, "a must have a slice in some term", s[:1], [a[0][:0]], [b[0][:0]])
    refused(NotImplementedError, "backend must be one of", s, a, b, backend="triton")
    refused(RuntimeError, "backend 'cuda' is not available", s, a, b, backend="cuda")
