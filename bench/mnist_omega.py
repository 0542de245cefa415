"""MNIST by ridge regression on ten infinite-width kernels: learned Omega, equal weights, and each depth alone.

    NFTK_DATA=... python bench/mnist_omega.py [--seeds 0 1 2] [--train 5000] [--learn-on 1000] [--record FILE]

The training images are drawn by the seed; the test set is whole. Kernels have one size (normalize="trace"). Whatever is
chosen (Omega, and the ridge of every candidate, by exact leave-one-out) is chosen on the first --learn-on of the
training images alone, and then all of them are fitted. The test set chooses nothing.
"""

import argparse
import datetime
import json
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor

import nftk
from nftk.data import Standardizer, load_data

DEPTH = 10
RIDGES = [10.0**-e for e in range(8, 0, -1)]
TEST_ROWS = 500


def images(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised images in float64, and their labels."""
    data = load_data("mnist")
    standardizer = Standardizer.fit(data.x_train, data.standardize)
    kept = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed))[:count]
    x, x_test = (standardizer.transform(part).double() for part in (data.x_train[kept], data.x_test))
    return x, data.y_train[kept], x_test, data.y_test


def one(seed: int, count: int, learn_on: int) -> dict:
    """Everything for one draw of training images."""
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"seed {seed}, {time.perf_counter() - started:.0f} s: {text}", flush=True)

    x, y, x_test, y_test = images(seed, count)
    k = nftk.infinite_ntk(x, depth=DEPTH)
    say("kernels")
    few, y_few = k[:learn_on, :learn_on], y[:learn_on]
    scales = few.diagonal().mean(1)
    weights = {f"depth {i + 1}": torch.eye(DEPTH).double()[i] / scales.sqrt() for i in range(DEPTH)}
    weights["uniform"] = (1 / (DEPTH * scales)).sqrt()

    def chosen(omega: Tensor) -> float:
        return nftk.KernelRidge("loo", omega=omega, ridges=RIDGES).fit(few, y_few).ridge_

    ridges = {}
    for name, omega in weights.items():
        ridges[name] = chosen(omega)
        say(f"ridge of {name}: {ridges[name]:.0e}")
    learning = {}
    for name, settings in {
        "learned, regularized": {"per_class": True},
        "learned, loo": {"per_class": True, "objective": "loo"},
        "learned, loo, shared": {"per_class": False, "objective": "loo"},
    }.items():
        # at the ridge of equal weights, so small here that J sees little but interpolation; leave-one-out sees more
        learner = nftk.MultipleKernelRidge(ridges["uniform"], normalize="trace", tolerance=1e-3, **settings)
        learner.fit(few, y_few)
        weights[name] = learner.omega
        ridges[name] = chosen(learner.omega)
        learning[name] = {
            "eta": learner.eta_.tolist(),
            "iterations": learner.n_iter_,
            "converged": learner.converged_,
            "start": float(learner.history_[0]),
            "end": learner.objective_,
        }
        say(f"{name}: {learner.n_iter_} iterations, ridge {ridges[name]:.0e}, eta {learner.eta_.mean(0).tolist()}")
    fits = {}
    for name, omega in weights.items():
        fits[name] = nftk.KernelRidge(ridges[name], omega=omega).fit(k, y)
    say("fitted")
    right = dict.fromkeys(fits, 0)
    for rows, labels in zip(x_test.split(TEST_ROWS), y_test.split(TEST_ROWS), strict=True):
        k_test = nftk.infinite_ntk(rows, x, depth=DEPTH)
        for name, fitted in fits.items():
            right[name] += int((fitted.predict(k_test) == labels).sum())
    accuracy = {name: count / len(y_test) for name, count in right.items()}
    say(str(accuracy))
    return {
        "seed": seed,
        "test_accuracy": accuracy,
        "ridges": ridges,
        "learning": learning,
        "seconds": round(time.perf_counter() - started),
    }


def summary(runs: list[dict]) -> dict:
    """Mean accuracies, and how far the learned ones are above equal weights and above the best depth alone.

    The best depth is that of the test set itself, of each seed: no choice could have done better.
    """
    found = [run["test_accuracy"] for run in runs]
    depths = [name for name in found[0] if name.startswith("depth ")]
    means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def above(name: str) -> dict:
        gains = [(one[name] - max(one[depth] for depth in depths), one[name] - one["uniform"]) for one in found]
        return {
            other: {"mean": round(sum(each) / len(each), 6), "seeds": [round(gain, 6) for gain in each]}
            for other, each in zip(("best depth alone", "uniform"), zip(*gains, strict=True), strict=True)
        }

    return {
        "mean_test_accuracy": means,
        "learned_above": {name: above(name) for name in means if name.startswith("learned")},
    }


def main() -> None:
    """Run the seeds; the record is written after each."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--train", type=int, default=5000)
    arguments.add_argument("--learn-on", type=int, default=1000)
    arguments.add_argument("--record", type=Path, default=Path(__file__).parent / "results" / "mnist_omega.json")
    given = arguments.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    record = {
        "train": given.train,
        "learn_on": given.learn_on,
        "depth": DEPTH,
        "commit": commit,
        "date": str(datetime.date.today()),
        "versions": {"nftk": nftk.__version__, "torch": str(torch.__version__), "threads": torch.get_num_threads()},
        "runs": [],
    }
    for seed in given.seeds:
        record["runs"].append(one(seed, given.train, given.learn_on))
        record |= summary(record["runs"])
        given.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, value in record["mean_test_accuracy"].items():
        print(f"{name:30} {100 * value:.2f} %")
    for name, others in record["learned_above"].items():
        for other, gain in others.items():
            print(f"{name} less {other}: {100 * gain['mean']:+.2f} points")


if __name__ == "__main__":
    main()
