"""The exact trNTK of a network against autograd example by example, in two ways.

"One by one": a forward pass of an example, and back from each of its outputs; then a matrix product an output. "Whole
graph": as torchntk's autograd_ntk, the code of Engel et al., arXiv 2305.14585, which goes back from one output of one
example through the graph of all examples at once, and again for every tensor of parameters. Both are timed on some
examples, and taken times as many as there are.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import nftk
from nftk.experiments.record import table

ROUNDS = 3


def run(model: nn.Module, x: Tensor, some: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of CPU time, all in turn, medians; and how far the kernels of some examples are apart."""
    n, d = len(x), model(x[:1]).shape[1]
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    f = model(x)
    calls: dict[str, Callable[[], Any]] = {
        "nftk": lambda: nftk.empirical_ntk(model, x, per="model", reduction="trace"),
        "one by one": lambda: one_by_one(model, x[:some]),
        "product": lambda: _product(torch.ones(n, size)),
        "whole graph": lambda: torch.autograd.grad(f[0, 0], parameters, create_graph=True),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
        told = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in times.items())
        say(f"exact trNTK, {n} examples, round {done + 1}: {told}")
    ours, each, product, back = (statistics.median(seconds) for seconds in times.values())
    few = one_by_one(model, x[:some])
    kernel = torch.einsum("xcp,ycp->xy", few, few)
    exact = nftk.empirical_ntk(model, x[:some], per="model", reduction="trace").blocks[0]
    gradients = each / some * n
    whole = gradients + d * product
    theirs = back * n * d * len(parameters) + d * product
    return {
        "examples": n, "outputs": d, "parameters": size, "timed_examples": some, "seconds": times,
        "nftk": ours, "one by one": whole, "one by one, gradients": gradients, "products": d * product,
        "whole graph": theirs, "ratio": whole / ours, "ratio to whole graph": theirs / ours,
        "difference": float((kernel - exact).norm() / exact.norm()),
    }  # fmt: skip


def one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    """Gradients [n, d, P], back from one output of one example after the other."""
    parameters, rows = list(model.parameters()), []
    for e in range(len(x)):
        f = model(x[e : e + 1])[0]
        for value in f:
            grads = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows).view(len(x), -1, len(rows[0]))


def _product(gradients: Tensor) -> Tensor:
    return gradients @ gradients.mT


def markdown(found: dict[str, Any]) -> str:
    """As a table."""
    n, ours = found["examples"], found["nftk"]
    lines = [
        ["nftk.empirical_ntk", f"{ours:.1f} s", "1"],
        ["one example and output after the other", f"{found['one by one']:.1f} s", f"{found['ratio']:.1f}"],
        [
            "the paper's code, through the graph of all examples",
            f"{found['whole graph']:.0f} s",
            f"{found['ratio to whole graph']:.0f}",
        ],
    ]
    text = (
        f"The exact trNTK of the convolutional network, {n} images, {found['parameters']} parameters. Gradients of the "
        f"others from {found['timed_examples']} examples, and from one step back, times as many as there are; products "
        f"of one output, times {found['outputs']}."
    )
    return f"{text}\n\n{table(['way', 'seconds of CPU time', 'times nftk'], lines)}"
