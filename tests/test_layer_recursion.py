"""nftk.ops.layer_recursion and cosine_gap against the definition in float64, in every backend."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from kernel_checks import guarded
from torch.nn import functional

import nftk
from nftk import _dispatch
from nftk.ops import cosine_gap, layer_recursion
from nftk.ops.cosine_gap import directions
from nftk.ops.duals import Dual
from nftk.ops.layer_recursion import RecursionLayer
from nftk.reference import infinite_ntk as reference

ACTIVATIONS = {
    "relu": (Dual("leaky_relu", 0.0), reference.relu_dual),
    "leaky_relu": (Dual("leaky_relu", 0.2), reference.leaky_relu_dual(0.2)),
    "falling": (Dual("leaky_relu", -0.3), reference.leaky_relu_dual(-0.3)),
    "abs": (Dual("leaky_relu", -1.0), reference.leaky_relu_dual(-1.0)),
    "identity": (Dual("leaky_relu", 1.0), reference.identity_dual),
    "erf": (Dual("erf"), reference.erf_dual),
    "sin": (Dual("sin"), reference.sin_dual),
    "gelu": (Dual("gelu"), reference.gelu_dual),
    "series": (Dual("series", 0.0, functional.gelu, 40), reference.gelu_dual),
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
BACKENDS = pytest.mark.parametrize("backend", ["torch", "cpp"])


@pytest.fixture(autouse=True)
def _compiled(request):
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    reason = backend == "cpp" and _dispatch.why_not("cpp", "cpu")
    if reason:
        pytest.skip(reason)


def layers_of(dual, depth=3, w=1.7, b=0.3, r=0.6):
    return [RecursionLayer(dual, w, b, w, b, r, r)] * depth


def norms_of(x):
    return directions(x)[1] / math.sqrt(x.shape[1])


def make_inputs(n1, n2, m=6):
    x1, x2 = torch.randn(n1, m, dtype=torch.float64), torch.randn(n2, m, dtype=torch.float64)
    # numbers that float32 has, so that the truth is of the same inputs
    return x1.float().double(), x2.float().double()


def worst(found, truth):
    """Largest error over the largest entry, layer by layer."""
    scale = truth.abs().amax((1, 2), keepdim=True)
    return ((found.double() - truth).abs() / scale).max().item()


@pytest.mark.parametrize("b", [0.0, 0.3])
@pytest.mark.parametrize("name", ACTIVATIONS)
@DTYPES
@BACKENDS
def test_forward(backend, dtype, name, b):
    """Beyond a tile of 64 in both directions, both results, both bias cases."""
    dual, truth_dual = ACTIVATIONS[name]
    x1, x2 = make_inputs(70, 67)
    theta, nngp = reference.infinite_ntk_reference(x1, x2, truth_dual, [1.7] * 3, [b] * 3, [0.6] * 3)
    gap = guarded(cosine_gap(x1.to(dtype), x2.to(dtype)))
    call = (gap, norms_of(x1), norms_of(x2))
    tolerance = max(TOLERANCE[dtype], 1e-7 if name == "series" else 0)
    for get, truth in (("ntk", theta), ("nngp", nngp)):
        found = layer_recursion(*call, layers=layers_of(dual, b=b), get=get, backend=backend)
        assert found.dtype is dtype
        assert worst(found, truth) < tolerance


@pytest.mark.parametrize("n", [1, 5, 64, 65, 130])
@BACKENDS
def test_symmetric(backend, n):
    x = make_inputs(n, 1)[0]
    gap = cosine_gap(x)
    gap[torch.ones_like(gap, dtype=torch.bool).tril(-1)] = math.nan  # not to be read
    layers = layers_of(ACTIVATIONS["relu"][0])
    found = layer_recursion(gap, norms_of(x), layers=layers, backend=backend)
    assert torch.equal(found, found.mT)
    square = layer_recursion(cosine_gap(x), norms_of(x), norms_of(x), layers=layers, backend=backend)
    assert worst(found, square) < 1e-14


@BACKENDS
def test_mixed_layers_and_standard_numbers(backend):
    """Another activation and other numbers in each layer, and the tangent's own terms."""
    x1, x2 = make_inputs(9, 70)
    duals = [ACTIVATIONS[name] for name in ("relu", "series", "erf", "leaky_relu")]
    w, b, r, n = [1.2, 0.8, 2.0, 1.5], [0.1, 0.0, 0.4, 0.0], [0.5, 1.0, 2.0, 3.0], [30, 20, 10, 5]
    layers = [
        RecursionLayer(dual, *numbers)
        for (dual, _), *numbers in zip(
            duals, w, b, (6.0, *map(float, n[:-1])), [1.0] * 4, r, map(float, n), strict=True
        )
    ]
    steps = iter([d for _, dual in duals for d in (dual,) * 3])
    truth, _ = reference.infinite_ntk_reference(x1, x2, lambda *q: next(steps)(*q), w, b, r, n)
    found = layer_recursion(cosine_gap(x1, x2), norms_of(x1), norms_of(x2), layers=layers, backend=backend)
    assert worst(found, truth) < 1e-9


@DTYPES
@BACKENDS
def test_weights(backend, dtype):
    x1, x2 = make_inputs(70, 67)
    layers, weights = layers_of(ACTIVATIONS["relu"][0]), torch.randn(4, 3, dtype=dtype)
    call = (cosine_gap(x1.to(dtype), x2.to(dtype)), norms_of(x1), norms_of(x2))
    every = layer_recursion(*call, layers=layers, backend=backend)
    found = layer_recursion(*call, layers=layers, weights=weights, backend=backend)
    assert worst(found, torch.einsum("kl,lxy->kxy", weights.double(), every.double())) < TOLERANCE[dtype]


@pytest.mark.parametrize("vectors", ["baseline", "avx2", "avx512"])
def test_every_width_of_vectors(vectors, monkeypatch):
    """The same numbers to rounding, whatever registers the CPU has."""
    if _dispatch.why_not("cpp", "cpu"):
        pytest.skip(_dispatch.why_not("cpp", "cpu"))
    from nftk import _C

    names = ("baseline", "avx2", "avx512")
    if names.index(vectors) > names.index(_C.build_info()["vectors"]):
        pytest.skip(f"this CPU has no {vectors}")
    x1, x2 = make_inputs(70, 67)
    whole = _C.layer_recursion
    for dual, truth_dual in ACTIVATIONS.values():
        truth, _ = reference.infinite_ntk_reference(x1, x2, truth_dual, [1.7] * 3, [0.3] * 3, [0.6] * 3)
        with monkeypatch.context() as patch:
            patch.setattr(_C, "layer_recursion", lambda *a, **k: whole(*a, **k, vectors=vectors))
            for dtype, tolerance in TOLERANCE.items():
                found = layer_recursion(
                    cosine_gap(x1.to(dtype), x2.to(dtype)), norms_of(x1), norms_of(x2),
                    layers=layers_of(dual), backend="cpp",
                )  # fmt: skip
                assert worst(found, truth) < (max(tolerance, 1e-7) if dual.kind == "series" else tolerance)


def test_threads_change_nothing():
    if _dispatch.why_not("cpp", "cpu"):
        pytest.skip(_dispatch.why_not("cpp", "cpu"))
    x, layers = make_inputs(300, 1)[0], layers_of(ACTIVATIONS["gelu"][0])
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(layer_recursion(cosine_gap(x), norms_of(x), layers=layers, backend="cpp"))
    assert all(torch.equal(found[0], other) for other in found[1:])


def mp_relu(distance, depth):
    """Theta_l of relu at variance 2 of unit-variance inputs with 1 - cos = distance, in 50 digits."""
    with mpmath.workdps(50):
        cos, tangent, found = 1 - mpmath.mpf(distance), 2 * (1 - mpmath.mpf(distance)), []
        for _ in range(depth):
            angle = mpmath.acos(cos)
            cos = (mpmath.sin(angle) + (mpmath.pi - angle) * cos) / mpmath.pi
            passed = (mpmath.pi - angle) / (2 * mpmath.pi) * tangent
            found.append(cos + passed)
            tangent = 2 * (cos + passed)
        return torch.tensor([float(t) for t in found], dtype=torch.float64)


@pytest.mark.parametrize("distance", ["0", "1e-30", "1e-12", "1e-7", "1e-3", "0.6", "1.0", "1.7", "2.0"])
@DTYPES
@BACKENDS
def test_angles_to_both_ends_and_to_depth_100(backend, dtype, distance):
    """Every angle down to none, against 50 digits: a hundred layers lose no more than a hundred roundings."""
    exact = torch.tensor([[float(distance)]], dtype=torch.float64).to(dtype)
    gap = exact if float(distance) <= 1 else -(2 - exact)
    found = layer_recursion(
        gap, torch.ones(1), torch.ones(1), layers=[RecursionLayer(Dual("leaky_relu"))] * 100, backend=backend
    )
    truth = mp_relu(exact.item(), 100)
    own = torch.arange(2, 102, dtype=torch.float64)  # of an input with itself
    assert ((found.flatten().double() - truth) / own).abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["relu", "erf", "sin", "gelu"])
@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e3, 1e8])
@BACKENDS
def test_tiny_and_huge_norms(backend, scale, name):
    """float32 against float64 on the same inputs; the norms' squares are beyond float32's reach."""
    x = torch.randn(12, 8)
    x[1] = x[0] * 1.5
    x[2] = -x[0]
    x = (x * scale).float()
    layers = layers_of(ACTIVATIONS[name][0], b=0.0)
    wide = layer_recursion(cosine_gap(x.double()), norms_of(x), layers=layers, backend="torch")
    found = layer_recursion(cosine_gap(x), norms_of(x), layers=layers, backend=backend)
    own = wide.diagonal(dim1=1, dim2=2).sqrt()
    error = ((found.double() - wide) / (own[:, :, None] * own[:, None])).abs().max()
    # the phase of a sine of so large a number is not known in float32
    assert error < (1e-5 if name != "sin" or scale < 10 else 1.0)
    assert found.isfinite().all()


@BACKENDS
def test_inputs_of_zeros(backend):
    """Without biases nothing comes through; phi'(0) is torch's."""
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    gap, norms = cosine_gap(x), norms_of(x)
    assert gap[0, 0] == 1
    for name in ("relu", "leaky_relu", "erf", "sin", "gelu", "series"):
        found = layer_recursion(gap, norms, layers=layers_of(ACTIVATIONS[name][0], b=0.0), backend=backend)
        assert found.isfinite().all()
        assert found[:, 0].abs().max() < 1e-15
    # the bias's own parameter, as in "standard": T_1 = 1 and E[phi' phi'] = 0.2 * 0.2, then 0.2 * 0.6
    layer = RecursionLayer(Dual("leaky_relu", 0.2), 1.0, 0.0, 2.0, 1.0, 1.0, 1.0)
    found = layer_recursion(gap, norms, layers=[layer], backend=backend)[0]
    torch.testing.assert_close(found[0], torch.tensor([0.04, 0.12], dtype=torch.float64))


@BACKENDS
def test_gradients(backend):
    """By name against the same formula differentiated by torch, and that against finite differences."""
    x1, x2 = make_inputs(3, 4)
    layers = layers_of(ACTIVATIONS["gelu"][0])[:2] + layers_of(ACTIVATIONS["relu"][0])[:1]
    named = {
        "gap": cosine_gap(x1, x2),
        "norms1": norms_of(x1),
        "norms2": norms_of(x2),
        "weights": torch.rand(2, 3).double(),
    }

    def call(gap, norms1, norms2, weights, backend=backend):
        return layer_recursion(gap, norms1, norms2, layers=layers, weights=weights, backend=backend)

    tensors = [t.clone().requires_grad_() for t in named.values()]
    assert torch.autograd.gradcheck(call, tensors)
    out = call(*tensors)
    direction = torch.randn_like(out)
    found = torch.autograd.grad(out, tensors, direction)
    truth = torch.autograd.grad(call(*tensors, backend="torch"), tensors, direction)
    for name, ours, theirs in zip(named, found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert torch.autograd.gradgradcheck(call, tensors)


@BACKENDS
def test_transforms(backend):
    x1, x2 = make_inputs(3, 4)
    gaps, layers = torch.stack([cosine_gap(x1, x2), cosine_gap(-x1, x2)]), layers_of(ACTIVATIONS["erf"][0])

    def call(gap):
        return layer_recursion(gap, norms_of(x1), norms_of(x2), layers=layers, backend=backend)

    torch.testing.assert_close(torch.func.vmap(call)(gaps), torch.stack([call(gap) for gap in gaps]))
    jacobian = torch.func.jacrev(call)(gaps[0])
    plain = torch.autograd.functional.jacobian(call, gaps[0])
    torch.testing.assert_close(jacobian, plain)
    if backend == "torch":
        _, tangent = torch.func.jvp(call, (gaps[0],), (gaps[1],))
        torch.testing.assert_close(tangent, torch.einsum("lxyab,ab->lxy", jacobian, gaps[1]))
    else:
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(call, (gaps[0],), (gaps[1],))


@DTYPES
def test_registration(dtype):
    if _dispatch.why_not("cpp", "cpu"):
        pytest.skip(_dispatch.why_not("cpp", "cpu"))
    from nftk.ops.layer_recursion import _fwd, rows_of

    x1, x2 = make_inputs(3, 4)
    layers = layers_of(ACTIVATIONS["relu"][0], depth=1)
    rows = [rows_of(norms_of(x), layers)[0] for x in (x1, x2)]
    numbers = [layers[0].dual.slope, *layers[0][1:]]
    gap = cosine_gap(x1.to(dtype), x2.to(dtype))
    torch.library.opcheck(_fwd, (gap, *rows, None, ["leaky_relu"], [0], numbers, True, False, "cpp"))


# torch's own: TorchDynamo makes an instance of each autograd.Function that it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@BACKENDS
def test_compile(backend):
    x1, x2 = make_inputs(3, 4)
    gap, n1, n2, layers = cosine_gap(x1, x2), norms_of(x1), norms_of(x2), layers_of(ACTIVATIONS["relu"][0])

    def call(gap):
        return layer_recursion(gap, n1, n2, layers=layers, backend=backend)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(call, backend="eager")(gap), call(gap))


# every activation with both forms and with and without biases, and these two with each other
@pytest.mark.parametrize(
    ("name", "symmetric", "b"),
    [(name, (n + k) % 2 == 0, (0.0, 0.3)[k]) for n, name in enumerate(ACTIVATIONS) if name != "series" for k in (0, 1)],
)
def test_triton(name, symmetric, b, grid):
    """In the interpreter: tiles cut at both edges, every form, in any order of programs."""
    dual, truth_dual = ACTIVATIONS[name]
    x1, x2 = make_inputs(9, 9 if symmetric else 70)
    x2 = x1 if symmetric else x2
    theta, nngp = reference.infinite_ntk_reference(x1, x2, truth_dual, [1.7] * 3, [b] * 3, [0.6] * 3)
    gap = cosine_gap(x1.float(), None if symmetric else x2.float())
    norms = (norms_of(x1), None if symmetric else norms_of(x2))
    weights = torch.rand(2, 3)
    for grid.order, get, truth in (("random", "ntk", theta), ("backward", "nngp", nngp)):
        call = {"layers": layers_of(dual, b=b), "get": get, "backend": "triton"}
        assert worst(layer_recursion(guarded(gap), *norms, **call), truth) < 2e-6
        found = layer_recursion(guarded(gap), *norms, weights=weights, **call)
        assert worst(found, torch.einsum("kl,lxy->kxy", weights.double(), truth)) < 2e-6


@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "erf", "gelu"])
def test_triton_numbers_by_layer_and_opposite_inputs(name, get, grid):
    """Every number of a layer another, as in "standard"; equal, opposite, and no inputs."""
    x = torch.randn(4, 5)
    x = torch.cat([x, -x, torch.zeros(1, 5)])
    dual = ACTIVATIONS[name][0]
    layers = [RecursionLayer(dual, 1.2, 0.0, 5.0, 0.5, 0.7, 30.0), RecursionLayer(dual, 0.8, 0.3, 30.0, 1.0, 1.1, 20.0)]
    for used in (layers, layers[:1]):
        truth = layer_recursion(cosine_gap(x.double()), norms_of(x), layers=used, get=get, backend="torch")
        found = layer_recursion(cosine_gap(x), norms_of(x), layers=used, get=get, backend="triton")
        assert worst(found, truth) < 2e-6
        opposite = [t[:, range(4), range(4, 8)] for t in (found, truth.float())]
        torch.testing.assert_close(*opposite, rtol=1e-4, atol=1e-5)


def test_triton_into_the_memory_of_the_gaps(grid):
    """As infinite_ntk does; with several sums each program must still find the gaps."""
    x, weights = make_inputs(70, 1)[0].float(), torch.rand(3, 4)
    # the last sum, whose memory has the gaps, comes first
    grid.order = "backward"
    for factors in (None, weights):
        truth = nftk.infinite_ntk(x, depth=4, weights=factors, backend="torch").blocks
        found = nftk.infinite_ntk(x, depth=4, weights=factors, backend="triton").blocks
        assert torch.equal(found, found.mT)
        assert worst(found, truth.double()) < 2e-6
    with pytest.raises(NotImplementedError, match=r"'triton' has no code for torch.float64"):
        nftk.infinite_ntk(x.double(), depth=1, backend="triton")
    with pytest.raises(NotImplementedError, match="activations without a closed form"):
        nftk.infinite_ntk(x, depth=1, activation="tanh", backend="triton")
    with pytest.raises(NotImplementedError, match="layers with different kinds"):
        nftk.infinite_ntk(x, depth=2, activation=["relu", "erf"], backend="triton")


COMPILED = """
import resources, torch
from nftk.kernels.layer_recursion import layer_recursion_fwd
from nftk.ops.duals import Dual
from nftk.ops.layer_recursion import RecursionLayer
kinds = ["leaky_relu", "erf", "sin", "gelu"]
for capability in resources.ARCHITECTURES:
    with resources.compiled(capability) as kernels:
        for kind in kinds:
            layers, x = [RecursionLayer(Dual(kind), 2.0, 0.1)] * 3, torch.empty(1000, 1000)
            rows = torch.empty(1 + 3 * layers[0].dual.rows, 1000)
            for weights in (None, torch.empty(2, 3)):
                out = torch.empty(3 if weights is None else 2, 1000, 1000)
                layer_recursion_fwd(out, x, rows, rows, layers, weights, True, True)
    assert len(kernels) == 2 * len(kinds)
    for kernel in kernels:
        used = resources.usage(kernel)
        assert used["spills"] == 0 and used["registers"] <= 168, (capability, used)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_compiles_for_three_gpus_without_spills(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    bench = Path(__file__).parent.parent / "bench"
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, cwd=bench)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["erf", "sin", "odd series"])
@BACKENDS
def test_equal_and_opposite_inputs_where_kernels_grow_apart(backend, name):
    """At weight_var 2 a rounding of a gap grows by a tenth to a fifth a layer: at depth 100 to anything."""
    dual = Dual("series", 0.0, torch.tanh, 64) if name == "odd series" else Dual(name)
    x = torch.randn(3, 5)
    x = torch.cat([x, -x])
    layers = layers_of(dual, depth=100, w=2.0, b=0.0)
    wide = layer_recursion(cosine_gap(x.double()), norms_of(x), layers=layers, backend="torch")
    norms = (norms_of(x), norms_of(x))
    for found in (
        layer_recursion(cosine_gap(x), norms[0], layers=layers, backend=backend),
        layer_recursion(cosine_gap(x, x.clone()), *norms, layers=layers, backend=backend),
    ):
        own, opposite = found.diagonal(dim1=1, dim2=2), found[:, range(6), [3, 4, 5, 0, 1, 2]]
        truth = wide.diagonal(dim1=1, dim2=2)
        assert ((own - truth) / truth).abs().max() < 5e-5
        assert ((opposite + truth) / truth).abs().max() < 5e-5


def test_gap_of_near_and_opposite_directions():
    """The difference of directions, in float32, has what a Gram matrix lost."""
    base = torch.randn(50, dtype=torch.float64)
    steps = torch.logspace(-7, 0, 15, dtype=torch.float64)[:, None] * torch.randn(15, 50, dtype=torch.float64)
    x = torch.cat([base + steps, -(base + steps)]).float()
    a, b = x.double(), base.float().double()
    with mpmath.workdps(40):
        dots = [[mpmath.fdot(p.tolist(), q.tolist()) for p, q in ((u, b), (u, u), (b, b))] for u in a]
        cosines = [dot / mpmath.sqrt(one * two) for dot, one, two in dots]
        truth = torch.tensor([float(1 - c if c >= 0 else -(1 + c)) for c in cosines], dtype=torch.float64)
    found = cosine_gap(x, base.float()[None])[:, 0].double()
    angle = (2 * found.abs()).sqrt() - (2 * truth.abs()).sqrt()
    assert angle.abs().max() < 1e-6
    assert torch.equal(found.signbit(), truth.signbit())
    assert torch.equal(cosine_gap(x[:3], 4 * x[:3]).diagonal(), torch.zeros(3))
    opposite = cosine_gap(x[:3], -4 * x[:3]).diagonal()
    assert torch.equal(opposite, torch.zeros(3))
    assert opposite.signbit().all()


def test_errors():
    gap, norms, layers = torch.ones(2, 3), torch.ones(2), [RecursionLayer(Dual("erf"))]

    def refused(kind, text, *args, **keywords):
        with pytest.raises(kind, match=text):
            layer_recursion(*args, **({"layers": layers} | keywords))

    refused(ValueError, r"gap must have shape \[2, 2\], got \[2, 3\]", gap, norms)
    refused(ValueError, "layers must have an entry a layer, got none", gap, norms, torch.ones(3), layers=[])
    refused(TypeError, "gap must be torch.float32 or torch.float64", gap.half(), norms, torch.ones(3))
    refused(ValueError, r"weights must have shape \[k, 1\]", gap, norms, torch.ones(3), weights=torch.ones(1, 2))
    refused(ValueError, "get must be one of 'ntk', 'nngp'", gap, norms, torch.ones(3), get="both")
    refused(ValueError, "backend must be one of", gap, norms, torch.ones(3), backend="gpu")
    refused(NotImplementedError, "'cuda'", gap, norms, torch.ones(3), backend="cuda")
    refused(ValueError, "weight_var must be finite and above 0", gap, norms, torch.ones(3),
            layers=[RecursionLayer(Dual("erf"), 0.0)])  # fmt: skip
    with pytest.raises(TypeError, match=r"x1 must be torch.float32 or torch.float64, got torch.float16"):
        cosine_gap(torch.ones(2, 3).half())
    with pytest.raises(ValueError, match=r"x2 must have shape \[n2, 3\]"):
        cosine_gap(torch.ones(2, 3), torch.ones(2, 4))
