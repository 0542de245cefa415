"""Time of one training step on a CPU: NFTKMLP, the plain MLP of its shape, and the loop over readouts.

A step is what nftk.fit does: zero_grad, forward, cross-entropy, backward, SGD for theta and for Omega, projection.
"""

import statistics
import time

import pytest
import torch
from torch import nn
from torch.nn import functional

import nftk

# name: (in_features, hidden_features, out_features, batch); the first two are the paper's MNIST networks
SHAPES = {
    "mnist-10x256": (784, [256] * 10, 10, 50),
    "mnist-20x256": (784, [256] * 20, 10, 50),
    "reviews-5x128": (768, [128] * 5, 2, 25),
    "ragged": (784, [512, 384, 256, 192, 128, 64], 10, 50),
}
GOAL, PROMISE = 1.10, 1.15


class LoopMLP(nftk.NFTKMLP):
    """Equations 7 and 8 as one would write them down: a loop over the layers' readouts."""

    def forward(self, x):
        f = 0
        for i, (h, v) in enumerate(zip(self.hidden_states(x), self.readout_weights(), strict=True)):
            f = f + self.omega[:, i] * functional.linear(h, v)
        return f


def plain_mlp(in_features, hidden, out_features):
    layers = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))


def make_step(model, x, y):
    """Return one training step on a model, with the optimisers that nftk.fit takes by default."""
    omega = getattr(model, "omega", None)
    theta = [p for p in model.parameters() if p is not omega]
    optimizers = [torch.optim.SGD(theta, lr=1e-3, weight_decay=2e-6, fused=True)]
    if omega is not None:
        optimizers.append(torch.optim.SGD([omega], lr=1e-3, weight_decay=2e-6, fused=True))

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        if omega is not None:
            model.project_()

    return step


def make_steps(shape):
    """Return the three steps of a shape, after checking that they compute the same thing."""
    in_features, hidden, out_features, batch = SHAPES[shape]
    torch.manual_seed(0)
    x, y = torch.randn(batch, in_features), torch.randint(0, out_features, (batch,))
    ours, loop = nftk.NFTKMLP(in_features, hidden, out_features), LoopMLP(in_features, hidden, out_features)
    loop.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), loop(x), rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(functional.cross_entropy(m(x), y), list(m.parameters())) for m in (ours, loop)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    models = {"plain": plain_mlp(in_features, hidden, out_features), "nftk": ours, "loop": loop}
    return {name: make_step(model, x, y) for name, model in models.items()}


@pytest.mark.parametrize("model", ["plain", "nftk", "loop"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_step(benchmark, shape, model):
    """Each on its own, for pytest-benchmark's table."""
    benchmark.group = shape
    benchmark.pedantic(make_steps(shape)[model], rounds=30, iterations=5, warmup_rounds=5)


@pytest.mark.parametrize("shape", SHAPES)
def bench_ratio(shape, record):
    """In turn, twenty steps each, so that the ratios hold while the machine's speed drifts."""
    steps = make_steps(shape)
    times = {name: [] for name in steps}
    for _ in range(60):
        for name, step in steps.items():
            for _ in range(5):
                step()
            start = time.perf_counter()
            for _ in range(15):
                step()
            times[name].append((time.perf_counter() - start) / 15 * 1e3)
    rows = {}
    for name, values in times.items():
        low, middle, high = (statistics.quantiles(values, n=10)[i] for i in (1, 4, 7))
        ratios = [a / b for a, b in zip(values, times["plain"], strict=True)]
        rows[name] = {"ms_20": low, "ms_50": middle, "ms_80": high, "ratio_to_plain": statistics.median(ratios)}
    in_features, hidden, out_features, batch = SHAPES[shape]
    sizes = {"in_features": in_features, "hidden_features": hidden, "out_features": out_features, "batch": batch}
    record(f"training_step_{shape}", {"shape": sizes, "dtype": "float32", "steps": rows})
    if shape.startswith("mnist"):
        assert rows["nftk"]["ratio_to_plain"] <= PROMISE, rows
