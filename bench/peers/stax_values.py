"""Writes tests/data/stax_kernels.json: infinite-width kernels by neural-tangents' stax, which nftk is compared with.

Needs an environment of its own, jax[cpu] 0.4.30 and neural-tangents 0.6.5, and nothing of nftk.
"""

import json
import math
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
import neural_tangents as nt  # noqa: E402
from neural_tangents import stax  # noqa: E402

TARGET = Path(__file__).parents[2] / "tests" / "data" / "stax_kernels.json"
WEIGHT_VAR, BIAS_VAR, READOUT_VAR = 1.8, 0.2, 0.7
ACTIVATIONS = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}


def inputs(rows, shift):
    """Some numbers that need no generator."""
    return (
        np.sin(np.arange(rows * 5, dtype=np.float64).reshape(rows, 5) * 1.7 + shift) * np.arange(1, rows + 1)[:, None]
    )


def network(activation, depth):
    layers = []
    for _ in range(depth):
        layers += [stax.Dense(8, W_std=math.sqrt(WEIGHT_VAR), b_std=math.sqrt(BIAS_VAR)), activation()]
    return stax.serial(*layers, stax.Dense(1, W_std=math.sqrt(READOUT_VAR), b_std=None))[2]


def main():
    x1, x2 = inputs(4, 0.3), inputs(3, 1.1)
    found = {
        "versions": {"jax": jax.__version__, "neural_tangents": nt.__version__},
        "weight_var": WEIGHT_VAR, "bias_var": BIAS_VAR, "readout_var": READOUT_VAR,
        "x1": x1.tolist(), "x2": x2.tolist(), "kernels": {},
    }  # fmt: skip
    for name, activation in ACTIVATIONS.items():
        kernels = [network(activation, depth)(x1, x2, ("ntk", "nngp")) for depth in range(1, 11)]
        found["kernels"][name] = {
            kind: [np.asarray(getattr(k, kind)).tolist() for k in kernels] for kind in ("ntk", "nngp")
        }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
