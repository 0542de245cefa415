"""Time of nftk.ops.project against a matrix built whole and multiplied; error and time of projected tangents.

On a CPU. The product alone, with a matrix that is there already, is the floor of a dense projection.
"""

import statistics
import time

import pytest
import torch

import nftk
from nftk.ops import project
from nftk.reference import projection_reference
from nftk.tangent import project_tangents

COLUMNS, SIZE, ROUNDS = 1 << 16, 1024, 5
KINDS = ("rademacher", "gaussian", "sjlt")
# of the network whose kernels are estimated
WIDTHS, POINTS = [128] * 4, 200


def whole(x, kind):
    """The matrix as torch makes it, and one product."""
    shape = (x.shape[1], SIZE)
    matrix = torch.randn(shape) if kind == "gaussian" else torch.randint(0, 2, shape).float().mul_(2).sub_(1)
    return x @ matrix / SIZE**0.5


def check(kind):
    """The entries are the definition's, at both ends of the columns."""
    x = torch.zeros(3, COLUMNS)
    x[:, :20], x[:, -20:] = torch.randn(3, 20), torch.randn(3, 20)
    parts = [projection_reference(SIZE, 20, seed=3, kind=kind, offset=at) for at in (0, COLUMNS - 20)]
    truth = x[:, :20].double() @ parts[0].mT + x[:, -20:].double() @ parts[1].mT
    error = ((project(x, SIZE, seed=3, kind=kind) - truth).norm() / truth.norm()).item()
    assert error < 1e-6, error
    return error


def medians(calls):
    """Median CPU seconds of each, in turns."""
    seconds = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            before = time.process_time()
            call()
            seconds[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


@pytest.mark.parametrize("rows", [16, 128, 512])
@pytest.mark.parametrize("kind", KINDS)
def bench_project(kind, rows, request, record, folder, device):
    if device != "cpu":
        pytest.skip("times of a CPU")
    error = check(kind)
    if request.config.getoption("benchmark_disable"):
        return
    x, matrix = torch.randn(rows, COLUMNS), torch.randn(COLUMNS, SIZE)
    calls = {
        "product alone": lambda: x @ matrix,
        "matrix and product": lambda: whole(x, kind),
        "nftk": lambda: project(x, SIZE, seed=3, kind=kind),
    }
    found = medians(calls)
    record(
        f"{folder}/project_{kind}-{rows}",
        {
            "op": "project",
            "case": f"{kind}, {rows} rows of {COLUMNS} to {SIZE}",
            "cpu_seconds": found,
            "error": error,
            "over matrix and product": found["nftk"] / found["matrix and product"],
            "over product": found["nftk"] / found["product alone"],
        },
    )


@pytest.mark.parametrize("k", [256, 1024])
@pytest.mark.parametrize("kind", [*KINDS, "kronecker"])
def bench_project_tangents(kind, k, request, record, folder, device):
    """Traces of a network's layer kernels: measured error against the stated one, time against the exact kernel."""
    if device != "cpu":
        pytest.skip("times of a CPU")
    torch.manual_seed(0)
    model, x = nftk.NFTKMLP(784, WIDTHS, 10), torch.randn(POINTS, 784)
    exact = nftk.empirical_ntk(model, x, reduction="trace")
    found = project_tangents(model, x, k, kind=kind)
    measured = (found.kernel().blocks - exact.blocks).square().mean((1, 2)).sqrt()
    stated = found.error().blocks.square().mean((1, 2)).sqrt()
    # all pairs share one projection: its own luck is in every entry
    assert (measured < 3 * stated).all(), (measured, stated)
    if request.config.getoption("benchmark_disable"):
        return
    seconds = medians({
        "exact": lambda: nftk.empirical_ntk(model, x, reduction="trace"),
        "features": lambda: project_tangents(model, x, k, kind=kind),
        "kernel of features": found.kernel,
    })  # fmt: skip
    record(
        f"{folder}/project_tangents_{kind}-{k}",
        {
            "op": "project_tangents",
            "case": f"{kind}, k = {k}, 784-4x128-10, {POINTS} points, trace",
            "cpu_seconds": seconds,
            "measured over stated error": (measured / stated).tolist(),
            "measured error over the largest entry": (measured / exact.blocks.amax((1, 2))).tolist(),
            "bytes of a feature": found.features[:, 0].numel() * 4,
        },
    )
