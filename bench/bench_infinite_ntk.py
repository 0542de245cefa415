"""Time of nftk.infinite_ntk: all layers at once, against the plain formula in eager torch, in one run.

On a CPU the whole function; on a GPU the recursion by itself too, against what its memory traffic takes at the rate
of a copy. neural-tangents lives in an environment of its own, so bench/peers has the comparison with it.
"""

import math
import resource
import statistics
import time

import _harness
import pytest
import torch

import nftk
from nftk.ops import cosine_gap, layer_recursion
from nftk.ops.cosine_gap import directions
from nftk.ops.duals import Dual
from nftk.ops.layer_recursion import RecursionLayer
from nftk.reference import infinite_ntk as reference

POINTS, FEATURES, DEPTH, ROUNDS = 2000, 30, 10, 5
GPU_POINTS, KINDS = 8192, {"relu": "leaky_relu", "erf": "erf", "gelu": "gelu"}
EAGER = {"relu": reference.relu_dual, "erf": reference.erf_dual, "gelu": reference.gelu_dual}
# eager torch over ours, DESIGN's table
GOALS = {torch.float64: 6.0, torch.float32: 5.0}


def eager(x, dual):
    """The definition as one writes it down; its norms are vectors, which is less than a matrix each."""
    norms = (x * x).sum(1) / x.shape[1]
    pair, theta, passed = x @ x.mT / x.shape[1], [], 0.0
    for _ in range(DEPTH):
        sigma, q = 2 * pair, 2 * norms
        pair, slopes = dual(sigma, q[:, None], q[None, :])
        norms = dual(q, q, q)[0]
        passed = slopes * (sigma + 2 * passed)
        theta.append(pair + passed)
    return torch.stack(theta)


@pytest.mark.parametrize("dtype", GOALS, ids=["float64", "float32"])
@pytest.mark.parametrize("activation", EAGER)
def bench_infinite_ntk(activation, dtype, request, record, folder, device):
    if device != "cpu":
        pytest.skip("times of a CPU")
    x = torch.randn(POINTS, FEATURES, dtype=dtype, generator=torch.Generator().manual_seed(0))
    calls = {
        "eager": lambda: eager(x, EAGER[activation]),
        "cpp": lambda: nftk.infinite_ntk(x, depth=DEPTH, activation=activation, backend="cpp").blocks,
        "cpp, weighted": lambda: (
            nftk.infinite_ntk(x, depth=DEPTH, activation=activation, backend="cpp", weights=[1 / DEPTH] * DEPTH).blocks
        ),
        "torch": lambda: nftk.infinite_ntk(x, depth=DEPTH, activation=activation, backend="torch").blocks,
    }
    errors = check(calls, x, activation)
    if request.config.getoption("benchmark_disable"):
        return
    seconds = {name: [] for name in calls}
    wall = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            before = time.process_time(), time.perf_counter()
            call()
            seconds[name].append(time.process_time() - before[0])
            wall[name].append(time.perf_counter() - before[1])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["eager"] / median["cpp"]
    result = {
        "op": "infinite_ntk",
        "case": f"{activation}, depth {DEPTH}, {POINTS} points of {FEATURES} features",
        "precision": str(dtype).split(".")[1],
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "errors": errors,
        "peak_mb_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "targets": [{"target": f">= {GOALS[dtype]:g}x eager", "value": ratio, "met": ratio >= GOALS[dtype]}],
    }
    record(f"{folder}/infinite_ntk_{activation}-{str(dtype).split('.')[1]}", result)


@pytest.mark.parametrize("activation", EAGER)
def bench_on_a_gpu(activation, request, record, folder, device, ceilings):
    if device != "cuda":
        pytest.skip("times of a GPU")
    x = torch.randn(GPU_POINTS, FEATURES, generator=torch.Generator().manual_seed(0)).to(device)
    keywords = {"depth": DEPTH, "activation": activation}
    means = torch.full((1, DEPTH), 1 / DEPTH, device=device)
    gap, norms = cosine_gap(x), directions(x)[1] / math.sqrt(FEATURES)
    layers = [RecursionLayer(Dual(KINDS[activation]), 2.0)] * DEPTH
    calls = {
        "eager": lambda: eager(x, EAGER[activation]),
        "triton": lambda: nftk.infinite_ntk(x, backend="triton", **keywords).blocks,
        "triton, weighted": lambda: nftk.infinite_ntk(x, backend="triton", weights=means, **keywords).blocks,
        "recursion": lambda: layer_recursion(gap, norms, layers=layers, backend="triton"),
        "recursion, weighted": lambda: layer_recursion(gap, norms, layers=layers, weights=means, backend="triton"),
    }
    errors = check(calls, x, activation)
    if request.config.getoption("benchmark_disable"):
        return
    clocks = {name: _harness.device_times(call, 100.0) for name, call in calls.items()}
    median = {name: statistics.median(values) for name, values in clocks.items()}
    # half of the angles are read, all entries written
    moved = {name: 4 * GPU_POINTS**2 * (0.5 + (1 if "weighted" in name else DEPTH)) for name in calls}
    share = {name: moved[name] / median[name] / 1e6 / ceilings["copy_gb_s"] for name in calls if "recursion" in name}
    result = {
        "op": "infinite_ntk",
        "case": f"{activation}, depth {DEPTH}, {GPU_POINTS} points of {FEATURES} features",
        "precision": "highest",
        "ms": clocks,
        "ratio_to_eager": {name: median["eager"] / value for name, value in median.items()},
        "copy_share": share,
        "errors": errors,
        "ceilings": ceilings,
        "targets": [
            {
                "target": ">= 80 % of copy bandwidth, all layers",
                "value": share["recursion"],
                "met": share["recursion"] >= 0.8,
            }
        ],
    }
    record(f"{folder}/infinite_ntk_{activation}-float32", result)


def check(calls, x, activation):
    """Each result against float64 on a part of the pairs, beside the diagonal, where plain acos has lost half."""
    part = x[:100].double().cpu()
    truth = nftk.infinite_ntk(part, depth=DEPTH, activation=activation, backend="torch").blocks
    apart = ~torch.eye(100, dtype=torch.bool)
    errors = {}
    for name, call in calls.items():
        wanted = truth.mean(0, keepdim=True) if "weighted" in name else truth
        found = call()[:, :100, :100].double().cpu()
        errors[name] = ((found - wanted)[:, apart].norm() / wanted[:, apart].norm()).item()
        assert errors[name] < (1e-5 if x.dtype is torch.float32 else 1e-12), (name, errors)
        assert math.isfinite(found.sum())
    return errors
