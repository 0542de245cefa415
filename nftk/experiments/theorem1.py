"""Theorem 1 of the paper, corrected: wide networks trained by equation 13 against ridge regression on their kernels.

Networks in the "ntk" parameterisation, Omega fixed and different for every class, trained by full gradient steps with
the proximal term until they stand. Each is compared, on test inputs and from its own f_0 (docs/errata.md, 1), with
ridge regression, rho = lambda N / 2 (3), on four kernels: its exact one at theta_0; the sum of its layers' kernels with
omega squared, which leaves the terms between layers out (2); and the infinite-width kernels, weighted by omega squared,
as it should be, and by omega, as the paper has it. An error is ||f_trained - f_ridge|| / ||f_exact - f_0||.
"""

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import nftk
from nftk._optional import require
from nftk.experiments.kept import kept
from nftk.experiments.record import Record, Request, table
from nftk.regression import ridge_from_proximal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK = (64, 128, 256)
DEPTH, FEATURES, OUTPUTS, TRAIN, TEST = 3, 8, 2, 24, 100
OMEGA = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.1]])
# rho, as a share of the largest eigenvalue of the limit's kernel: so many steps do until all has come to rest
RIDGE = 1 / 30
REST = 1e-4
KERNELS = {
    "exact": "the network's own kernel",
    "layers": "the sum of its layers' kernels, omega squared",
    "squared": "infinite width, omega squared",
    "linear": "infinite width, omega as in the paper",
}


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of norm sqrt(m), and targets that no layer has alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRAIN + TEST, FEATURES, generator=generator)
    x = x * math.sqrt(FEATURES) / x.norm(dim=1, keepdim=True)
    y = torch.stack((torch.sin(2 * x[:, 0]), x[:, 1] * x[:, 2]), 1)
    return x[:TRAIN], y[:TRAIN], x[TRAIN:]


def infinite(x: Tensor, x_test: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """The limit's kernels of training with training, and of test with training, weighted: each (d, n1, n2)."""
    x, x_test = x.double(), x_test.double()
    squares = omega.double()
    ours = nftk.infinite_ntk(x, depth=DEPTH).combine(squares)
    return ours, nftk.infinite_ntk(x_test, x, depth=DEPTH).combine(squares)


Pair = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """What all networks are given."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    limits: dict[str, Pair]
    proximal: float


def one(width: int, seed: int, problem: Problem) -> dict[str, Any]:
    """Train one network; errors of the four kernels, and how far its kernels are from the limits."""
    x, y, x_test, limits, proximal = problem
    torch.manual_seed(1000 * seed + width)
    model = nftk.NFTKMLP(FEATURES, [width] * DEPTH, OUTPUTS, parameterization="ntk", omega_init=OMEGA, constraint=None)
    model.omega.requires_grad_(False)
    trained = copy.deepcopy(model)
    ridge = ridge_from_proximal(proximal, TRAIN)
    largest = float(torch.linalg.eigvalsh(nftk.empirical_ntk(model, x, per="model").matrix()[0].double())[-1])
    lr = 1 / (2 / TRAIN * largest + proximal)
    steps = math.ceil(math.log(1 / REST) / (lr * proximal))
    started = time.perf_counter()
    nftk.fit(
        trained, (x, y), loss="mse", proximal=proximal, epochs=steps, batch_size=TRAIN, lr=lr, weight_decay=0.0
    )  # fmt: skip
    seconds = time.perf_counter() - started
    exact = nftk.kernel_prediction(model, (x, y), x_test, trained=trained, proximal=proximal)
    f_0, after = exact.initial, exact.trained
    assert after is not None
    with torch.no_grad():
        start = model(x).double()
    moved = (exact.kernel - f_0).norm()

    def error(regression: nftk.KernelRidge, k: Any, k_test: Any) -> float:
        regression.fit(k, y.double(), offset=start)
        return float((after - regression.outputs(k_test, offset=f_0)).norm() / moved)

    layers = nftk.empirical_ntk(model, x), nftk.empirical_ntk(model, x_test, x)
    squared = layers[0].combine(OMEGA).double()
    eye = torch.eye(OUTPUTS, dtype=torch.float64)
    distance = {
        name: float((squared - torch.einsum("ixy,ij->xyij", k, eye)).norm() / squared.norm())
        for name, (k, _) in limits.items()
    }
    return {
        "width": width,
        "seed": seed,
        "exact": exact.distance,
        "layers": error(nftk.KernelRidge(ridge, omega=OMEGA), *layers),
        **{name: error(nftk.KernelRidge(ridge), *pair) for name, pair in limits.items()},
        "kernel_distance": distance,
        "steps": steps,
        "seconds": round(seconds, 2),
    }


def _kept(folder: Path, width: int, seed: int, problem: Problem) -> dict[str, Any]:
    """The errors of one network, from disk where it has been trained already."""
    settings = f"{DEPTH} {FEATURES} {OUTPUTS} {TRAIN} {TEST} {OMEGA.tolist()} {problem.proximal!r} {REST}"
    return kept(folder, f"theorem1-{width}-seed{seed}", settings, lambda: one(width, seed, problem))


def run(request: Request) -> Record:
    """Train networks of all widths, and see how far they are from their kernels."""
    require("matplotlib", purpose="drawing theorem1.png", extra="app")
    widths = QUICK if request.quick else WIDTHS
    x, y, x_test = data()
    limits = {"squared": infinite(x, x_test, OMEGA), "linear": infinite(x, x_test, OMEGA.sqrt())}
    apart = (limits["linear"][0] - limits["squared"][0]).norm() / limits["squared"][0].norm()
    ridge = RIDGE * float(torch.linalg.eigvalsh(limits["squared"][0]).max())
    proximal = 2 * ridge / TRAIN
    runs = []
    for width in widths:
        for seed in range(request.seeds):
            runs.append(_kept(request.place.runs, width, seed, Problem(x, y, x_test, limits, proximal)))
            told = ", ".join(f"{kind} {runs[-1][kind]:.3f}" for kind in KERNELS)
            request.say(f"theorem 1, width {width}, seed {seed}: {told}")
    means = {
        kind: [sum(run[kind] for run in runs if run["width"] == width) / request.seeds for width in widths]
        for kind in KERNELS
    }
    slopes = {kind: slope(widths, values) for kind, values in means.items()}
    found = {
        "forms_apart": float(apart),
        "proximal": proximal,
        "ridge": ridge,
        "omega": OMEGA.tolist(),
        "depth": DEPTH,
        "features": FEATURES,
        "rest": REST,
        "train": TRAIN,
        "test": TEST,
        "widths": list(widths),
        "mean_errors": means,
        "slopes": slopes,
        "runs": runs,
    }
    head = ["width", *map(str, widths), "slope"]
    lines = [[KERNELS[kind], *(f"{v:.3f}" for v in means[kind]), f"{slopes[kind]:.2f}"] for kind in KERNELS]
    text = (
        "# Theorem 1, corrected\n\nDistance of trained networks from ridge regression on four kernels, relative, on "
        f"test inputs; mean of {request.seeds} networks of each width.\n\n{table(head, lines)}\n\n"
        f"{DEPTH} hidden layers, {FEATURES} features, {OUTPUTS} outputs, {TRAIN} training and {TEST} test inputs; "
        f"Omega {[[round(value, 2) for value in entries] for entries in OMEGA.tolist()]}, fixed; ridge {ridge:.3g}, "
        f"the proximal term {proximal:.3g}; trained until steps are {REST:g} of the first.\n"
    )
    return Record("theorem1", found, text, {"theorem1": plot(widths, means, request.seeds)})


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of the power of the width that fits the values best, by least squares of their logarithms."""
    logs, y = (torch.tensor(numbers, dtype=torch.float64).log() for numbers in (widths, values))
    logs, y = logs - logs.mean(), y - y.mean()
    return float((logs * y).sum() / logs.square().sum())


def plot(widths: Sequence[int], means: dict[str, list[float]], seeds: int) -> "Figure":
    """Errors over width."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    styles = {"exact": ("-", "o"), "layers": ("-", "^"), "squared": ("--", "s"), "linear": (":", "x")}
    for kind, (line, marker) in styles.items():
        axes.loglog(widths, means[kind], line, marker=marker, label=KERNELS[kind])
    axes.set(xlabel="width of the hidden layers", ylabel="distance from the trained network, relative")
    axes.set_xticks(list(widths), [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_title(f"{DEPTH} layers, {TRAIN} examples, mean of {seeds} networks", size=10)
    axes.legend(fontsize=8)
    return figure
