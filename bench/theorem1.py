"""Theorem 1 of the paper, corrected: wide networks trained by equation 13 against ridge regression on their kernels.

    python bench/theorem1.py [--quick] [--record DIR]

Networks in the "ntk" parameterisation, Omega fixed and different for every class, trained by full gradient steps with
the proximal term until they stand. Each is compared, on test inputs and from its own f_0 (docs/errata.md, 1), with
ridge regression, rho = lambda N / 2 (3), on four kernels: its exact one at theta_0; the sum of its layers' kernels with
omega squared, which leaves the terms between layers out (2); and the infinite-width kernels, weighted by omega squared,
as it should be, and by omega, as the paper has it. An error is ||f_trained - f_ridge|| / ||f_exact - f_0||.
"""

import argparse
import copy
import datetime
import json
import math
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor

import nftk
from nftk.regression import ridge_from_proximal

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK = (64, 128, 256)
SEEDS, DEPTH, FEATURES, OUTPUTS, TRAIN, TEST = 3, 3, 8, 2, 24, 100
OMEGA = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.1]])
# rho, as a share of the largest eigenvalue of the limit's kernel: so many steps do until all has come to rest
RIDGE = 1 / 30
REST = 1e-4


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
    return tuple(nftk.infinite_ntk(a, b, depth=DEPTH).combine(squares) for a, b in ((x, None), (x_test, x)))


def one(width: int, seed: int, x: Tensor, y: Tensor, x_test: Tensor, limits: dict, proximal: float) -> dict:
    """Train one network; errors of the four kernels, and how far its kernels are from the limits."""
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
    with torch.no_grad():
        start = model(x).double()
    moved = (exact.kernel - f_0).norm()

    def error(regression: nftk.KernelRidge, k: object, k_test: object) -> float:
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


def measure(widths: tuple[int, ...], seeds: int = SEEDS) -> dict:
    """All networks, and means and slopes over them."""
    x, y, x_test = data()
    limits = {"squared": infinite(x, x_test, OMEGA), "linear": infinite(x, x_test, OMEGA.sqrt())}
    apart = (limits["linear"][0] - limits["squared"][0]).norm() / limits["squared"][0].norm()
    ridge = RIDGE * float(torch.linalg.eigvalsh(limits["squared"][0]).max())
    proximal = 2 * ridge / TRAIN
    runs = []
    for width in widths:
        for seed in range(seeds):
            runs.append(one(width, seed, x, y, x_test, limits, proximal))
            print(runs[-1], flush=True)
    kinds = ("exact", "layers", "squared", "linear")
    means = {
        kind: [sum(run[kind] for run in runs if run["width"] == width) / seeds for width in widths] for kind in kinds
    }
    logs = torch.tensor(widths, dtype=torch.float64).log()
    slopes = {}
    for kind in kinds:
        values = torch.tensor(means[kind]).double().log()
        centred = logs - logs.mean()
        slopes[kind] = float((centred * values).sum() / centred.square().sum())
    return {
        "forms_apart": float(apart),
        "proximal": proximal,
        "ridge": ridge,
        "omega": OMEGA.tolist(),
        "train": TRAIN,
        "test": TEST,
        "widths": list(widths),
        "seeds": seeds,
        "mean_errors": means,
        "slopes": slopes,
        "runs": runs,
    }


def plot(record: dict, path: Path) -> None:
    """Errors over width."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    styles = {
        "exact": ("the network's own exact kernel", "-", "o"),
        "layers": ("its layers' kernels, omega squared", "-", "^"),
        "squared": ("infinite width, omega squared", "--", "s"),
        "linear": ("infinite width, omega (the paper's 15)", ":", "x"),
    }
    for kind, (label, line, marker) in styles.items():
        axes.loglog(record["widths"], record["mean_errors"][kind], line, marker=marker, label=label)
    axes.set(xlabel="width of the hidden layers", ylabel="distance from the trained network, relative")
    axes.set_xticks(record["widths"], [str(width) for width in record["widths"]])
    axes.minorticks_off()
    axes.set_title(f"{DEPTH} layers, {TRAIN} examples, mean of {record['seeds']} networks", size=10)
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Run, print, and write the record."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="widths up to 256, and no record unless --record")
    arguments.add_argument("--record", type=Path, help="folder for theorem1.json and theorem1.png")
    given = arguments.parse_args()
    record = measure(QUICK if given.quick else WIDTHS)
    folder = given.record or (None if given.quick else Path(__file__).parent / "results")
    for kind, means in record["mean_errors"].items():
        print(f"{kind:8} " + " ".join(f"{value:.4f}" for value in means) + f"  slope {record['slopes'][kind]:.2f}")
    if folder is not None:
        root = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=root
        ).stdout.strip()
        versions = {"nftk": nftk.__version__, "torch": str(torch.__version__), "threads": torch.get_num_threads()}
        record |= {"commit": commit, "date": str(datetime.date.today()), "device": "cpu", "versions": versions}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "theorem1.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        plot(record, folder / "theorem1.png")


if __name__ == "__main__":
    main()
