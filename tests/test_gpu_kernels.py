"""The Triton kernels on a GPU, compiled: what the interpreter cannot show. bench/gpu.sh calls it."""

from dataclasses import replace
from types import SimpleNamespace

import network_inputs as network
import pytest
import test_readout as readout
import torch
from kernel_checks import error, slack

import nftk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (B, widths, d): the small ones of the interpreter's tests, then what only a GPU does in time
READOUTS = [
    *readout.SHAPES,
    (3, (2,) * 100, 2),
    (50, (256,) * 10, 10),
    (4097, (300, 77, 128), 33),
    (1000, (256,) * 4, 1000),
]
NETWORKS = [*network.SHAPES, (50, 784, (256,) * 10, 10), (25, 768, (128,) * 5, 2), (5000, 75, (500, 301, 77), 37),
            (70, 10, (20,) * 100, 3), (3000, 200, (1024, 600), 64)]  # fmt: skip


def name(shape):
    return "-".join(str(part[:3] if isinstance(part, tuple) else part) for part in shape)


def on_gpu(value):
    if isinstance(value, list | tuple):
        return [on_gpu(part) for part in value]
    return None if value is None else value.detach().cuda().requires_grad_()


def close(ours, eager, exact, dtype, what):
    """At most twice eager's error on the same GPU."""
    assert error(ours, exact) <= 2 * error(eager, exact) + slack(dtype), (
        f"{what}: {error(ours, exact):.1e}, eager {error(eager, exact):.1e}"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_readouts", [False, True])
@pytest.mark.parametrize("shape", READOUTS, ids=name)
def test_readout(shape, with_readouts, dtype):
    inputs = on_gpu(readout.make_inputs(shape, dtype))
    doubles = readout.wide(*inputs)
    exact, plain = readout.truth(*doubles), readout.truth(*inputs)
    ours = nftk.ops.readout(*inputs, return_readouts=with_readouts)
    ours = ours if with_readouts else (ours,)
    exact, plain = exact[: len(ours)], plain[: len(ours)]
    seeds = [torch.randn_like(f) for f in exact]
    low = [s.to(dtype) for s in seeds]
    for a, b, c in zip(ours, plain, exact, strict=True):
        close(a, b, c, dtype, "value")
    tensors = readout.flat(*inputs)
    grads = (torch.autograd.grad(f, t, s) for f, t, s in
             ((ours, tensors, low), (plain, tensors, low), (exact, readout.flat(*doubles), seeds)))  # fmt: skip
    for i, (a, b, c) in enumerate(zip(*grads, strict=True)):
        close(a, b, c, dtype, f"input {i}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", NETWORKS, ids=name)
def test_network(shape, dtype):
    """Smooth activation, so that no unit's slope hangs on the last bit of its g."""
    i = SimpleNamespace(**{k: on_gpu(v) for k, v in vars(network.make_inputs(shape, dtype)).items()})
    doubles = network.wide(i)
    exact, plain = network.truth(doubles, "tanh"), network.truth(i, "tanh")
    ours = network.run(i, activation="tanh", backend="triton")
    close(ours, plain, exact, dtype, "value")
    with torch.no_grad():
        assert torch.equal(network.run(i, activation="tanh", backend="triton"), ours)
    seed = torch.randn_like(exact)
    tensors = network.flat(i)
    grads = (torch.autograd.grad(f, t, seed.to(f.dtype)) for f, t in
             ((ours, tensors), (plain, tensors), (exact, network.flat(doubles))))  # fmt: skip
    for n, (a, b, c) in enumerate(zip(*grads, strict=True)):
        close(a, b, c, dtype, f"input {n}")


@pytest.mark.parametrize("activation", network.NAMES)
def test_activations(activation):
    i = SimpleNamespace(**{k: on_gpu(v) for k, v in vars(network.make_inputs((40, 30, (50, 20), 7))).items()})
    exact = network.truth(network.wide(i), activation)
    close(network.run(i, activation=activation), network.truth(i, activation), exact, torch.float32, activation)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
@pytest.mark.parametrize("case", ["triton", "node", "readout by torch"])
def test_highest_whatever_torch_is_set_to(setting, case):
    i = SimpleNamespace(**{k: on_gpu(v) for k, v in vars(network.make_inputs((200, 300, (256, 256), 10))).items()})
    doubles = network.wide(i)
    torch.set_float32_matmul_precision(setting)
    try:
        if case == "readout by torch":
            hs = on_gpu([torch.randn(200, 256), torch.randn(200, 256)])
            ours = nftk.ops.readout(hs, i.readout_weight, i.omega, backend="torch")
            (grad,) = torch.autograd.grad(ours.sin().sum(), i.readout_weight)
            exact = readout.truth([h.double() for h in hs], doubles.readout_weight, doubles.omega)[0]
        else:
            ours = network.run(i, backend="triton" if case == "triton" else "torch")
            (grad,) = torch.autograd.grad(ours.sin().sum(), i.readout_weight)
            exact = network.truth(doubles)
    finally:
        torch.set_float32_matmul_precision("highest")
    (want,) = torch.autograd.grad(exact.sin().sum(), doubles.readout_weight)
    assert error(ours, exact) < 2e-6
    assert error(grad, want) < 1e-5


def model_and_batch(rows=50, **keywords):
    torch.manual_seed(0)
    return nftk.NFTKMLP(784, [256] * 10, 10, device="cuda", **keywords), torch.randn(rows, 784, device="cuda")


def test_the_same_bits_every_time():
    model, x = model_and_batch(3000)
    first = None
    for _ in range(20):
        f = model(x)
        found = [f.detach(), *torch.autograd.grad(f.sin().sum(), list(model.parameters()))]
        first = first or found
        for a, b in zip(first, found, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("columns", [2, 4, 8, 16])
def test_programs_that_share_a_block_of_rows(monkeypatch, columns):
    """The cooperative launch, many times over: waiting programs must neither hang nor read too early."""
    from nftk.kernels import choice

    model, x = model_and_batch()
    alone = model(x)
    want = torch.autograd.grad(alone.sin().sum(), list(model.parameters()))
    walk = choice.walk_tiles
    monkeypatch.setattr(choice, "walk_tiles", lambda *args: replace(walk(*args), splits=columns))
    for _ in range(200):
        f = model(x)
        torch.testing.assert_close(f, alone, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(f.sin().sum(), list(model.parameters())), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def kernels_of(call):
    """Names of all that a call starts on the GPU: kernels, memsets and copies."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def test_launches():
    torch.use_deterministic_algorithms(False)  # its NaN in fresh memory would count
    model, x = model_and_batch()
    with torch.no_grad():
        assert kernels_of(lambda: model(x)) == network.FORWARD
    f, seed = model(x), torch.ones(50, 10, device="cuda")
    parameters = list(model.parameters())
    assert kernels_of(lambda: torch.autograd.grad(f, parameters, seed, retain_graph=True)) == network.BACKWARD
    inputs = on_gpu(readout.make_inputs((5000, (256,) * 10, 10), torch.float32))
    f = nftk.ops.readout(*inputs)
    seed = torch.ones_like(f)
    assert kernels_of(lambda: nftk.ops.readout(*inputs)) == ["_readout_fwd_kernel"]
    backward = kernels_of(lambda: torch.autograd.grad(f, readout.flat(*inputs), seed, retain_graph=True))
    assert backward == ["_readout_bwd_kernel"]


def test_two_graphs_side_by_side():
    """Captured launches have counters of their own, so two graphs may run at once on two streams."""
    inputs = on_gpu(readout.make_inputs((64, (256,) * 10, 10), torch.float32))
    want = nftk.ops.readout(*inputs).detach()
    graphs, outs = [], []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            outs.append(nftk.ops.readout(*inputs))
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(100):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for out in outs:
        assert torch.equal(out, want)


@pytest.mark.parametrize("rows", [(50,), (50, 3000, 50, 3000)], ids=["one batch size", "two"])
def test_reduce_overhead(rows):
    """CUDA graph trees of torch.compile: their warm-up, captures and replays leave the counters whole."""
    model, _ = model_and_batch()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)
    for size in rows:
        x = torch.randn(size, 784, device="cuda")
        want = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
        for _ in range(5):  # warm-up, capture, replays
            torch.compiler.cudagraph_mark_step_begin()
            found = torch.autograd.grad(compiled(x).sin().sum(), list(model.parameters()))
            for a, b in zip(found, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_offsets_beyond_31_bits():
    """A batch whose states have more than 2^31 entries."""
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    rows = 2**31 // 2560 + 1000
    model, x = model_and_batch(rows)
    f = model(x)
    last = model(x[-64:])
    torch.testing.assert_close(f[-64:], last, rtol=1e-5, atol=1e-6)
    seed = torch.zeros_like(f)
    seed[-64:] = 1
    got = torch.autograd.grad(f, list(model.parameters()), seed)
    want = torch.autograd.grad(last, list(model.parameters()), seed[-64:])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_autocast_and_compile():
    model, x = model_and_batch(output_bias=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        low = model(x)
    assert low.dtype is torch.bfloat16
    assert 1e-4 < error(low, model(x)) < 0.05
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
