"""Time and memory of nftk.empirical_ntk: the ten kernels of 784 - 10 x 256 - 10, apart by layer."""

import functools
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from _harness import Problem, Provider, Work, reference_product
from _networks import Case as Network
from _networks import make_model
from torch.func import jacrev, vmap

import nftk

BOTH = ("cpu", "cuda")
PROMISE = 1.5  # most time that may be taken, in units of the floor
FORM, BUDGET = "trace", 1 << 30


@dataclass(frozen=True)
class Case(Network):
    """A network and how many examples; the whole blocks, or their traces."""

    form: str = "full"

    def sizes(self):
        return super().sizes() | {"form": self.form}


def points(n, form, devices=BOTH, precision="highest"):
    return Case(f"{n}-{form}", n, 784, (256,) * 10, 10, precision, devices=devices, form=form)


CASES = [
    points(256, "full"),
    points(2000, "trace"),
    points(32, "full"),
    points(1024, "full", ("cuda",)),
    *(points(10_000, "trace", ("cuda",), word) for word in ("highest", "tf32")),
]


def providers(case, device):
    names = ["two-loop", "matmul-2048", "nftk"]
    return [*names, "torch.func"] if case.batch <= 32 else names


def work(case):
    """Forward, the walk back of all readouts, and the Gram matrices, of which a symmetric half is counted."""
    n, d, widths, depth = case.batch, case.d, (case.m, *case.widths), len(case.widths)
    inner = [a * b for a, b in itertools.pairwise(widths)]
    half = n * (n + 1) // 2
    rows = n * d * (n * d + 1) // 2 if case.form == "full" else half * d
    flops = 2 * n * sum(inner) + 2 * half * sum(widths)
    for k in range(1, depth + 1):
        # readouts k .. L come through layer k, and those above k through its successor's weights before
        flops += 2 * rows * widths[k] * (depth - k + 1)
        flops += 2 * n * d * inner[k] * (depth - k) if k < depth else 0
    entries = depth * n * n * (d * d if case.form == "full" else 1)
    return {"forward": Work(4 * (n * case.m + sum(inner) + entries), flops)}


def weights_of(model, dtype=None):
    """W_k, b_k and V_l, detached."""
    layers = [(layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)) for layer in model.hidden]
    return layers, [v.detach().to(dtype) for v in model.readout_weights()]


def two_loop(x, layers, readouts, form):
    """The formula as one writes it down: over readouts l, and back through the layers k <= l of each."""
    states, slopes, (n, d) = [x], [], (len(x), len(readouts[0]))
    for w, b in layers:
        g = states[-1] @ w.mT + b
        states.append(g.relu())
        slopes.append((g > 0).to(g))
    shape = (n, d, n, d) if form == "full" else (n, n)
    out = x.new_zeros(len(readouts), *shape)
    grams = [h @ h.mT for h in states]
    for i, v in enumerate(readouts):
        if form == "full":
            out[i].diagonal(dim1=1, dim2=3).add_(grams[i + 1].unsqueeze(-1))
        else:
            out[i] += d * grams[i + 1]
        delta = v * slopes[i].unsqueeze(1)  # [n, d, n_k]
        for k in range(i, -1, -1):
            if form == "full":
                flat = delta.flatten(0, 1)
                out[i] += (grams[k] + 1)[:, None, :, None] * (flat @ flat.mT).view(shape)
            else:
                flat = delta.flatten(1)
                out[i] += (grams[k] + 1) * (flat @ flat.mT)
            if k:
                delta = (delta @ layers[k][0]) * slopes[k - 1].unsqueeze(1)
    return out


def jacobians(x, layers, readouts):
    """torch.func's recipe, readout by readout: Jacobians of single examples, then a product a parameter."""

    def readout(parameters, one):
        *hidden, v = parameters
        for w, b in hidden:
            one = (w @ one + b).relu()
        return v @ one

    found = []
    for i, v in enumerate(readouts):
        by_parameter = vmap(jacrev(readout), (None, 0))([*layers[: i + 1], v], x)
        flat = [j.flatten(2) for j in torch.utils._pytree.tree_leaves(by_parameter)]
        found.append(sum(torch.einsum("xip,yjp->xiyj", j, j) for j in flat))
    return torch.stack(found)


def build(case, device):
    model = make_model(case, device)
    x = torch.randn(case.batch, case.m, generator=torch.Generator().manual_seed(1)).to(device)
    truth = {"kernels": two_loop(x.double(), *weights_of(model, torch.float64), case.form)}
    few = nftk.empirical_ntk(model.double(), x[:4].double(), reduction=case.form).blocks
    # the definition's own word for a few, so that the truth is not a formula's alone
    exact = jacobians(x[:4].double(), *weights_of(model))
    if case.form == "trace":
        exact = exact.diagonal(dim1=2, dim2=4).sum(-1)
    else:
        few = few.transpose(2, 3)
    part = truth["kernels"][:, :4, :, :4] if case.form == "full" else truth["kernels"][:, :4, :4]
    for found in (few, part):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    model.float()

    def provider(call):
        return Provider({"forward": call}, lambda: {"kernels": call()})

    def ours():
        precision = "tf32" if case.precision == "tf32" else "highest"
        blocks = nftk.empirical_ntk(model, x, reduction=case.form, precision=precision).blocks
        return blocks.transpose(2, 3) if case.form == "full" else blocks

    def by_hand():
        with torch.no_grad():
            return two_loop(x, *weights_of(model), case.form)

    makers = {
        "two-loop": lambda: provider(by_hand),
        "matmul-2048": lambda: reference_product(2048 if device == "cpu" else 8192, device),
        "nftk": lambda: provider(ours),
        "torch.func": lambda: provider(lambda: jacobians(x, *weights_of(model))),
    }
    makers = {name: makers[name] for name in providers(case, device)}
    return Problem(makers, truth, work(case), functools.partial(targets, case, device))


def targets(case, device, rows):
    """In units of the floor, flops at the rate of torch.matmul between the calls; and of torch.func's Jacobians."""
    ms = {name: row["ms_50"] for (name, _), row in rows.items()}
    found = []
    if case.batch >= 256 and {"matmul-2048", "nftk"} <= set(ms):
        floor = work(case)["forward"].flops / rows["matmul-2048", "forward"]["tflop_s"] / 1e9
        for name in ("nftk", "two-loop"):
            value = ms[name] / floor
            met = value <= PROMISE if name == "nftk" and device == "cpu" else None
            found.append({"target": f"<= {PROMISE}x the floor", "value": value, "met": met, "ours": name})
    if {"torch.func", "nftk"} <= set(ms):
        value = ms["torch.func"] / ms["nftk"]
        said = {"target": ">= 300x torch.func's Jacobians", "value": value, "met": value >= 300}
        found.append(said | {"ours": "nftk", "theirs": "torch.func"})
    return found


def bench_empirical_ntk(bench):
    bench()


@pytest.mark.parametrize("n", [5000])
def bench_memory(n, device, ceilings, record, folder):
    """What the ten traces of so many images take beside inputs and output, in a process of its own."""
    if device != "cpu":
        pytest.skip("on a GPU the rows above have the peak")
    if ceilings is None:
        n = 500
    child = [sys.executable, str(Path(__file__).with_name("_memory.py")), str(n), str(BUDGET), FORM]
    done = subprocess.run(
        child, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"] < 1e-5, found
    met = found["peak_bytes"] <= BUDGET
    if ceilings is not None:
        target = {"target": "peak beside inputs and output <= 1 GiB", "value": found["peak_bytes"] / 2**30, "met": met}
        case = {"op": "memory", "case": f"{n}-{FORM}", "precision": "highest", "budget_bytes": BUDGET}
        record(f"{folder}/memory_{n}-{FORM}", case | found | {"targets": [target]})
    assert met, found
