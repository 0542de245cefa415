"""nftk, torch.func's Jacobians and the formula in plain PyTorch, and torch.matmul to compare rates with.

Without layers: nftk.infinite_ntk and the recursion in plain PyTorch.
"""

import os
import sys
from pathlib import Path

import _convolutional
import _serve
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_empirical_ntk import jacobians, two_loop
from bench_infinite_ntk import DEPTH, EAGER, eager

import nftk


def infinite(x):
    ways = {}
    for name, dual in EAGER.items():
        ways[f"nftk {name}"] = lambda name=name: nftk.infinite_ntk(x, depth=DEPTH, activation=name).blocks
        ways[f"eager {name}"] = lambda dual=dual: eager(x, dual)
    return ways


def convolutional(layers, x):
    model, x = _convolutional.network(layers), torch.from_numpy(x)

    def kernel(reduction):
        return nftk.empirical_ntk(model, x, per="model", reduction=reduction).blocks

    return {
        "nftk full": (lambda: kernel("full"), lambda: kernel("full").transpose(2, 3).numpy()),
        "nftk trace": (lambda: kernel("trace"), lambda: kernel("trace").numpy()),
    }


def load(layers, readouts, x):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if layers and not readouts:
        return convolutional(layers, x)
    if not layers:
        return {name: (call, lambda call=call: call().numpy()) for name, call in infinite(torch.from_numpy(x)).items()}
    layers = [tuple(map(torch.from_numpy, layer)) for layer in layers]
    readouts, x = [torch.from_numpy(v) for v in readouts], torch.from_numpy(x)
    model = nftk.NFTKMLP(x.shape[1], [len(w) for w, _ in layers], len(readouts[0]))
    with torch.no_grad():
        for layer, (w, b) in zip(model.hidden, layers, strict=True):
            layer.weight.copy_(w)
            layer.bias.copy_(b)
        model.readout_weight.copy_(torch.cat(readouts, 1))
    square = torch.randn(2, 2048, 2048)
    ways = {
        "nftk": lambda: nftk.empirical_ntk(model, x).blocks.transpose(2, 3),
        "two-loop": lambda: two_loop(x, layers, readouts, "full"),
        "torch.func": lambda: jacobians(x, layers, readouts),
        "matmul-2048": lambda: square[0] @ square[1],
    }
    return {name: (call, lambda call=call: call().detach().numpy()) for name, call in ways.items()}


if __name__ == "__main__":
    _serve.main(load)
