"""nftk.ops.project and project_transpose against the matrix built whole, entry by entry."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import compile_and_list, error, guarded

from nftk.ops import project, project_transpose
from nftk.ops.philox import philox
from nftk.ops.project import _bwd, _fwd
from nftk.reference import projection_reference
from nftk.reference.project import philox_reference

KINDS = ("rademacher", "gaussian", "sjlt")
TOLERANCE = {torch.float64: 1e-14, torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SEED = 0x9E3779B97F4A7C15 >> 1  # both halves of the key count
FULL = 0xFFFFFFFF
# Random123's kat_vectors: counter, key, words
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


def entries(k, p, *, backend="torch", dtype=torch.float32, **settings):
    """The matrix, read off by projecting the identity, exactly."""
    found = project(torch.eye(p, dtype=dtype), k, backend=backend, **settings).mT
    return found.contiguous()


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    assert philox_reference(counter, key) == words
    found = philox(*(torch.tensor([c]) for c in counter), key[0] | key[1] << 32)
    assert tuple(word.item() & FULL for word in found) == words


@pytest.mark.parametrize("kind", KINDS)
def test_reference_by_hand(kind):
    """The first known answer is column 0 of seed 0: its signs, the first normal number, the first row."""
    if kind == "rademacher":
        column = projection_reference(128, 1, seed=0)[:, 0] * math.sqrt(128)
        bits = [w >> i & 1 for w in KNOWN[0][2] for i in range(32)]
        assert torch.equal(column.round(), 1.0 - 2 * torch.tensor(bits, dtype=torch.float64))
    words = philox_reference((0, 0, 0, KINDS.index(kind)), (0, 0))
    column = projection_reference(8, 1, seed=0, kind=kind, nonzeros=2)[:, 0]
    if kind == "gaussian":
        u, v = ((w >> 9) / 2**23 + 2**-24 for w in words[:2])
        wanted = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v) / math.sqrt(8)
        assert column[0].item() == pytest.approx(wanted)
    elif kind == "sjlt":
        # of 2^31 values of the upper 31 bits a fourth belongs to each of the four rows of a block
        for t in range(2):
            row = (words[t] >> 1) // 2**29
            assert column[4 * t + row].item() == pytest.approx((-1 if words[t] & 1 else 1) / math.sqrt(2))
        assert (column != 0).sum() == 2


@pytest.mark.parametrize("offset", [0, 2**32 - 3, 2**40 + 17])
@pytest.mark.parametrize(("n", "p", "k"), [(1, 1, 1), (7, 13, 5), (3, 40, 131), (2, 3, 1030)])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_transpose(kind, n, p, k, offset):
    s = min(k, 5)
    matrix = projection_reference(k, p, seed=SEED, kind=kind, offset=offset, nonzeros=s)
    settings = {"seed": SEED, "kind": kind, "offset": offset, "nonzeros": s}
    x, y = torch.randn(n, p).double(), torch.randn(n, k).double()
    for dtype, tolerance in TOLERANCE.items():
        a, b = x.to(dtype), y.to(dtype)
        assert error(project(guarded(a), k, **settings), a.double() @ matrix.mT) < tolerance
        assert error(project_transpose(guarded(b), p, **settings), b.double() @ matrix) < tolerance


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize(("n", "p", "k"), [(1, 1, 1), (5, 70, 130), (66, 33, 7)])
def test_triton(kind, n, p, k, grid):
    """In the interpreter: tiles cut at every edge, splits, blocks, any order of programs."""
    for grid.order, offset in (("random", 2**32 - 2), ("backward", 0)):
        settings = {"seed": SEED, "kind": kind, "offset": offset, "backend": "triton"}
        matrix = projection_reference(k, 2 * p, seed=SEED, kind=kind, offset=offset)
        x, y = torch.randn(n, p), torch.randn(n, k)
        for layout in ("rows", "columns"):
            found = project(guarded(x, layout), k, blocks=2, **settings)
            truth = torch.stack([x.double() @ part.mT for part in matrix.split(p, 1)])
            # of a tensor core's truncated sums and a polynomial for the cosine
            assert error(found, truth) < 2e-6
            found = project_transpose(guarded(y, layout), p, **settings)
            assert error(found, y.double() @ matrix[:, :p]) < 2e-6


def test_triton_splits_of_long_inputs(grid):
    """p is cut among programs, unevenly, and the parts are added in their order."""
    x = torch.randn(3, 32 * 37 + 5)
    for kind in ("rademacher", "gaussian"):
        grid.launches.clear()
        found = [project(x, 9, seed=1, kind=kind, backend="triton") for grid.order in ("random", "backward")]
        assert grid.launches == ["_project_kernel"] * 2
        assert error(found[0], project(x.double(), 9, seed=1, kind=kind)) < 2e-6
        assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_16_bits(dtype, grid):
    x = torch.randn(4, 50).to(dtype)
    for kind in ("rademacher", "gaussian"):
        found = project(x, 20, seed=1, kind=kind, backend="triton")
        assert found.dtype is dtype
        assert error(found, project(x.double(), 20, seed=1, kind=kind)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_triton_transpose_of_blocks(dtype, tolerance, grid):
    """The gradient of a projection in blocks: their sum."""
    y = torch.randn(2, 3, 140).to(dtype)
    for kind in ("rademacher", "gaussian"):
        found, truth = (
            _bwd(t, 140, 37, SEED, kind, 5, 2, 4, backend) for t, backend in ((y, "triton"), (y.double(), "torch"))
        )
        assert found.dtype is dtype
        assert error(found, truth) < tolerance


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_signs_are_the_same_to_the_bit(backend, request):
    """For any batch, any pieces in any order, any backend, across the word's and the tile's edges."""
    if backend == "triton":
        request.getfixturevalue("grid")
    k, p, offset = 150, 80, 2**32 - 40
    whole = projection_reference(k, p, seed=SEED, offset=offset).sign().float()
    settings = {"seed": SEED, "backend": backend}
    assert torch.equal(entries(k, p, offset=offset, **settings).sign(), whole)
    for size in (7, 33):
        pieces = [entries(k, min(size, p - at), offset=offset + at, **settings) for at in range(0, p, size)]
        assert torch.equal(torch.cat(pieces, 1).sign(), whole)
    # rows do not depend on how many there are
    assert torch.equal(entries(40, p, offset=offset, **settings).sign(), whole[:40])
    blocks = project(torch.eye(10), k, offset=offset, blocks=8, **settings)
    assert torch.equal(blocks.flatten(0, 1).mT.sign(), whole)


def test_normal_numbers_are_the_same_to_rounding(grid):
    """Between backends, dtypes and the definition: 4e-7 in numbers up to 5.8."""
    k, p = 132, 300
    truth = projection_reference(k, p, seed=3, kind="gaussian") * math.sqrt(k)
    for backend, dtype in (("torch", torch.float64), ("torch", torch.float32), ("triton", torch.float32)):
        found = entries(k, p, seed=3, kind="gaussian", backend=backend, dtype=dtype).double() * math.sqrt(k)
        assert (found - truth).abs().max() < (1e-14 if dtype is torch.float64 else 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_changes_no_sjlt_and_no_float64(kind):
    """Any batch: an SJLT's sums have one order; dense ones are BLAS's, alike to rounding."""
    x = torch.randn(50, 700, dtype=torch.float64)
    whole = project(x, 60, seed=1, kind=kind)
    parts = torch.cat([project(part, 60, seed=1, kind=kind) for part in x.split(7)])
    assert torch.equal(whole, parts) if kind == "sjlt" else error(parts, whole) < 1e-15


@pytest.mark.parametrize("tiles", [(1024, 256, 1 << 14, 1 << 16), (256, 7, 16, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_change_nothing(kind, tiles, monkeypatch):
    from nftk.ops import project_torch

    truth = projection_reference(300, 90, seed=SEED, kind=kind)
    for name, size in zip(("_ROWS", "_COLUMNS", "_CALLS", "_SORTED"), tiles, strict=True):
        monkeypatch.setattr(project_torch, name, size)
    assert error(entries(300, 90, seed=SEED, kind=kind, dtype=torch.float64), truth) < 1e-14
    y = torch.eye(300, dtype=torch.float64)
    assert error(project_transpose(y, 90, seed=SEED, kind=kind), truth) < 1e-14


def bound(kind, a, b, k, s=4):
    """Variance of an estimate of <a, b>: of signs exactly, of normal numbers exactly, of an SJLT with s | k exactly."""
    total = a.square().sum() * b.square().sum() + (a @ b) ** 2
    return (total - (0 if kind == "gaussian" else 2 * (a.square() * b.square()).sum())) / k


@pytest.mark.parametrize("k", [16, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_unbiased_with_the_stated_variance(kind, k):
    """2,000 projections: the mean within four of its standard errors, the variance within a tenth."""
    a = torch.randn(12, dtype=torch.float64)
    b = a + torch.randn(12, dtype=torch.float64)
    b[0], a[0] = 3.0, 3.0  # one large entry, which signs gain by
    both = torch.stack([a, b])
    # columns that follow are other projections
    u, v = project(both, k, seed=7, kind=kind, blocks=2000).unbind(1)
    found, variance = (u * v).sum(1), bound(kind, a, b, k)
    assert abs(found.mean() - a @ b) < 4 * (variance / 2000).sqrt()
    assert found.var() / variance == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_normalised_and_apart(kind):
    """E[P^T P] = I: no two columns, seeds, kinds or offsets share signs."""
    matrix = entries(4096, 40, seed=5, kind=kind, dtype=torch.float64)
    gram = matrix.mT @ matrix
    # in an SJLT some columns meet in one row of their four, by chance
    most = {"rademacher": 0.09, "gaussian": 0.15, "sjlt": 0.51}[kind]
    assert (gram - torch.eye(40)).abs().max() < most
    assert (gram - torch.eye(40)).square().mean() < 2 / 4096
    for other in ({"seed": 6}, {"seed": 5 + 2**32}, {"seed": 5, "offset": 2**32}):
        apart = matrix.mT @ entries(4096, 40, kind=kind, dtype=torch.float64, **other)
        assert apart.abs().max() < most
        assert apart.square().mean() < 2 / 4096


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint(kind):
    """<P x, y> = <x, P^T y>."""
    x, y = torch.randn(3, 4, 50, dtype=torch.float64), torch.randn(3, 4, 33, dtype=torch.float64)
    left = (project(x, 33, seed=2, kind=kind, offset=9) * y).sum()
    right = (x * project_transpose(y, 50, seed=2, kind=kind, offset=9)).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    for call, t in (
        (lambda t: project(t, 5, seed=1, kind=kind), x),
        (lambda t: project(t, 5, seed=1, kind=kind, blocks=3), x),
        (lambda t: project_transpose(t, 6, seed=1, kind=kind), y),
    ):
        assert torch.autograd.gradcheck(call, t)
        assert torch.autograd.gradgradcheck(lambda t, call=call: call(t) ** 2, t)


def test_gradients_triton(grid):
    x, weight = torch.randn(4, 40, requires_grad=True), torch.randn(3, 4, 9)
    for kind in ("rademacher", "gaussian"):
        matrix = projection_reference(9, 120, seed=1, kind=kind)
        (project(x, 9, seed=1, kind=kind, blocks=3, backend="triton") * weight).sum().backward()
        truth = sum(w.double() @ part for w, part in zip(weight, matrix.split(40, 1), strict=True))
        assert error(x.grad, truth) < 2e-6
        x.grad = None


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind):
    x, tangent = torch.randn(5, 2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def call(x):
        return project(x, 4, seed=1, kind=kind)

    def back(y):
        return project_transpose(y, 6, seed=1, kind=kind)

    assert torch.allclose(torch.func.vmap(call, in_dims=1, out_dims=1)(x), call(x))
    assert torch.allclose(torch.func.vmap(torch.func.vmap(call))(x), call(x))
    assert torch.allclose(torch.func.vmap(back)(call(x)), back(call(x)))
    matrix = projection_reference(4, 6, seed=1, kind=kind)
    assert torch.allclose(torch.func.jacrev(call)(x[0, 0]), matrix)
    value, slope = torch.func.jvp(call, (x[0],), (tangent,))
    assert torch.equal(value, call(x[0]))
    assert torch.equal(slope, call(tangent))
    assert torch.equal(torch.func.jvp(back, (value,), (slope,))[1], back(slope))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_registration(kind, dtype):
    torch.library.opcheck(_fwd, (torch.randn(3, 7, dtype=dtype), 9, 7, 1, kind, 2, 2, 4, "torch"))
    torch.library.opcheck(_bwd, (torch.randn(2, 3, 9, dtype=dtype), 9, 7, 1, kind, 2, 2, 4, "torch"))


# torch's own: TorchDynamo makes an instance of each autograd.Function that it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile():
    call, seen = compile_and_list(lambda x: project(x, 4, seed=1).square().sum())
    x = torch.randn(3, 6, requires_grad=True)
    call(x).backward()
    found, x.grad = x.grad, None
    project(x, 4, seed=1).square().sum().backward()
    assert torch.allclose(found, x.grad)
    assert any("nftk.project_transpose" in name for name in seen)


def test_shapes_and_nothing():
    assert project(torch.randn(6), 3, seed=0).shape == (3,)
    assert project(torch.randn(2, 5, 6), 3, seed=0, blocks=4).shape == (4, 2, 5, 3)
    for kind in KINDS:
        assert project(torch.randn(0, 6), 3, seed=0, kind=kind, nonzeros=2).shape == (0, 3)
        assert torch.equal(project(torch.randn(2, 0), 3, seed=0, kind=kind, nonzeros=2), torch.zeros(2, 3))
        assert project_transpose(torch.randn(2, 3), 0, seed=0, kind=kind, nonzeros=2).shape == (2, 0)
        assert project(torch.randn(2, 6), 3, seed=0, kind=kind, nonzeros=2, blocks=0).shape == (0, 2, 3)


def test_memory():
    """P has 2^29 entries, 2 GiB; what is alive at once is some tiles of it."""
    code = """
import resource, torch
from nftk.ops import project
x = torch.randn(2, 1 << 19)
project(x[:, :9000], 1024, seed=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
project(x, 1024, seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024  # KiB


COMPILED = """
import resources, torch
from nftk.kernels.project import project_fwd, project_transpose_fwd
from nftk.ops.project_torch import Matrix
for capability in resources.ARCHITECTURES:
    with resources.compiled(capability) as kernels:
        for kind in ("rademacher", "gaussian"):
            matrix = Matrix(1024, 7, kind, 0, 1, 4)
            project_fwd(torch.empty(512, 100000), matrix)
            project_transpose_fwd(torch.empty(1, 512, 1024), 100000, matrix)
    assert len(kernels) == 4
    for kernel in kernels:
        used = resources.usage(kernel)
        assert used["spills"] == 0, (capability, used)
        # one call of Philox a thread, not one an entry: 18 high products of 20, two are of constants
        assert kernel.asm["ptx"].count("mul.hi.u32") <= 40
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_compiles_for_three_gpus_without_spills(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    bench = Path(__file__).parent.parent / "bench"
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, cwd=bench)
    assert done.returncode == 0, done.stderr


def test_errors(grid):
    x = torch.randn(2, 6)

    def refused(raised, text, *args, call=project, **keywords):
        with pytest.raises(raised, match=text):
            call(*args, **({"seed": 0} | keywords))

    refused(TypeError, "nftk.ops.project: x must be a torch.Tensor, got list", [1.0], 3)
    refused(TypeError, "x must have a floating dtype, got torch.int64", x.long(), 3)
    refused(ValueError, "x must have at least one dimension, got none", torch.tensor(1.0), 3)
    refused(ValueError, "k must be at least 1, got 0", x, 0)
    refused(TypeError, "k must be an integer, got 2.5", x, 2.5)
    refused(ValueError, r"k must be below 2\^31, got 2147483648", x, 2**31)
    refused(ValueError, "seed must be at least 0, got -1", x, 3, seed=-1)
    refused(ValueError, r"seed must be below 2\^63", x, 3, seed=2**63)
    refused(ValueError, "kind must be one of 'rademacher', 'gaussian', 'sjlt', got 'fjlt'", x, 3, kind="fjlt")
    refused(ValueError, r"offset must leave the last column below 2\^63", x, 3, offset=2**63 - 3)
    refused(ValueError, "nonzeros must be at most k, 3, got 4", x, 3, kind="sjlt")
    refused(NotImplementedError, "'triton' has no code for torch.float64", x.double(), 3, backend="triton")
    refused(NotImplementedError, "'triton' has no code for kind 'sjlt'", x, 5, kind="sjlt", backend="triton")
    refused(NotImplementedError, "'cuda'", x, 3, backend="cuda")
    refused(ValueError, "nftk.ops.project_transpose: p must be at least 0, got -1", x, -1, call=project_transpose)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda t: project(t, 3, seed=0, backend="triton"), (x,), (x,))
