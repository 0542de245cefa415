"""How the settings that the paper does not name were chosen: on training examples held out, never on the test set."""

import dataclasses
from typing import Any

from nftk.experiments.networks import train_all
from nftk.experiments.record import Record, Request, table
from nftk.experiments.settings import BASES, DEPTHS, QUICK, TITLES, row

# no seed of the tables; so many held out; epochs to look at: of MNIST as many as we had time for
SEED, HELD_OUT = 100, {"mnist": 10_000, "imdb": 5_000}
EPOCHS = {"mnist": 12, "imdb": 8}
STARTS: dict[str, Any] = {"1/L": "uniform", "1": 1.0}


def run(request: Request) -> Record:
    """Train each row with each start of Omega, and tell the accuracy on the examples held out, epoch by epoch."""
    recipes = {
        (data, depth, start): row(
            data, depth, seed=SEED, omega_start=STARTS.get(start, 1.0), model="mlp" if start == "MLP" else "nftk",
            **{"epochs": EPOCHS[data], "held_out": HELD_OUT[data]} | (QUICK if request.quick else {}),
        )
        for data in BASES for depth in DEPTHS[data] for start in (*STARTS, "MLP")
    }  # fmt: skip
    train_all(recipes.values(), request.place, jobs=request.jobs, say=request.say)
    rows, lines = [], []
    for (data, depth, start), recipe in recipes.items():
        (result,) = train_all([recipe], request.place)
        accuracy = [100 * epoch["test_accuracy"] for epoch in result["history"]]
        rows.append({"data": data, "depth": depth, "start": start, "accuracy": accuracy})
        last = min(BASES[data].epochs, len(accuracy)) - 1
        kind = "MLP" if start == "MLP" else f"NFT-K from {start}"
        lines.append([TITLES[data], str(depth), kind, f"{accuracy[last]:.2f}", " ".join(f"{a:.1f}" for a in accuracy)])
    head = ["data", "hidden layers", "network", "accuracy at the epoch taken, %", "epoch by epoch"]
    text = (
        "# The choice of Omega's start and of the epochs\n\n"
        f"Accuracy on training examples held out ({HELD_OUT['mnist']} of MNIST, {HELD_OUT['imdb']} reviews), seed "
        f"{SEED}. The settings are one for all rows of a data set, and the test set had no part in them.\n\n"
        f"{table(head, lines)}\n"
    )
    taken = {data: dataclasses.replace(base, seed=0).to_dict() for data, base in BASES.items()}
    return Record("choice", {"taken": taken, "rows": rows}, text)
