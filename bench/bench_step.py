"""Time of one training step: NFTKMLP, the plain MLP of its shape, and the readouts in eager PyTorch.

A step is what nftk.fit does: zero_grad, forward, cross-entropy, backward, SGD for theta and for Omega, projection.
"""

import functools
import statistics
import time

import bench_network
import pytest
import torch
from _harness import Problem, Provider, Work, captured, faster, products
from _networks import (
    MODES,
    PAPER,
    Case,
    LoopMLP,
    StackedMLP,
    flips,
    grid,
    hidden_truth,
    make_data,
    make_model,
    network_truth,
    paper,
    plain_mlp,
    wide_parameters,
)
from torch.nn import functional

import nftk

BOTH = ("cpu", "cuda")
ALL = ("compile", "compile-max")
CASES = [
    paper("mnist-10x256", "highest", ALL, BOTH),
    paper("mnist-10x256", "tf32", ALL),
    paper("reviews-5x128", "highest", ALL, BOTH),
    paper("mnist-20x256", "highest", ALL),
    paper("reviews-10x128", "highest", ALL),
    paper("mnist-10x256", "bf16", ("compile",)),
    paper("reviews-5x128", "tf32", ("compile",)),
    paper("mnist-20x256", "tf32", ("compile",)),
    paper("reviews-10x128", "tf32", ("compile",)),
    grid(8192, 256, "tf32"),
    grid(8192, 1024, "tf32"),
]
LR, DECAY = 1e-3, 2e-6
# the shapes of the promise on a CPU, and the most that NFTKMLP's step may take there in units of the plain MLP's
RATIO = {name: Case(name, batch, m, widths, d) for name, (m, widths, d, batch) in PAPER.items() if "10x128" not in name}
RATIO["ragged"] = Case("ragged", 50, 784, (512, 384, 256, 192, 128, 64), 10)
GOAL, PROMISE = 1.10, 1.15


def make_step(model, x, y, run=None):
    """Return one training step on a model, with the optimisers of nftk.fit's defaults; run: its compiled form."""
    run = model if run is None else run
    omega = getattr(model, "omega", None)
    theta = [p for p in model.parameters() if p is not omega]
    optimizers = [torch.optim.SGD(theta, lr=LR, weight_decay=DECAY, fused=True)]
    if omega is not None:
        optimizers.append(torch.optim.SGD([omega], lr=LR, weight_decay=DECAY, fused=True))

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        functional.cross_entropy(run(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        if omega is not None:
            model.project_()

    return step


def step_truth(wide, loss, omega=None):
    """Gradients of all parameters in float64, and the parameters after the step."""
    gradients = torch.autograd.grad(loss, list(wide.values()))
    truth = {f"grad {name}": g for name, g in zip(wide, gradients, strict=True)}
    for (name, p), g in zip(wide.items(), gradients, strict=True):
        after = (p - LR * (g + DECAY * p)).detach()
        truth[f"next {name}"] = after.clamp_min(0) if name == omega else after
    return truth


def providers(case, device):
    names = ["eager-loop", "eager-stacked"]
    if device == "cuda":
        names += ["graph-loop", "graph-stacked"]
    names += [name for name in case.compiles if not (device == "cpu" and name == "compile-max")]
    names += ["matmul", "plain"]
    return names + (["plain-graph", "nftk-torch", "nftk", "nftk-graph"] if device == "cuda" else ["nftk"])


def work(case):
    """Bytes and flops of a step: the network's, and the update, which reads and writes each parameter once more."""
    fan_in, depth = (case.m, *case.widths[:-1]), len(case.widths)
    weights = sum(a * b for a, b in zip(fan_in, case.widths, strict=True))
    parameters = weights + sum(case.widths) + case.d * (sum(case.widths) + depth)
    return {"step": bench_network.work(case)["both"] + Work(3 * parameters * (2 if case.precision == "bf16" else 4), 0)}


def build(case, device):
    x, y = make_data(case, device)
    model = make_model(case, device)
    wide = wide_parameters(model)
    truth = step_truth(wide, functional.cross_entropy(network_truth(case, wide, x), y), "omega")

    def provider(model, truth=None, graph=False, mode=None):
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        run = None if mode is None else torch.compile(model, mode=mode, dynamic=False)
        step = make_step(model, x, y, run)
        step = captured(step) if graph else step

        def outputs():
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(start[name])
            step()
            named = list(model.named_parameters())
            return {f"grad {name}": p.grad for name, p in named} | {f"next {name}": p for name, p in named}

        return Provider({"step": step}, outputs, truth)

    def of(kind=nftk.NFTKMLP, backend="auto", **how):
        precision = "tf32" if case.precision == "tf32" else "highest"
        return provider(make_model(case, device, kind, backend=backend, precision=precision), **how)

    def plain(**how):
        torch.manual_seed(0)
        mlp = plain_mlp(case.m, case.widths, case.d).to(x)
        exact = plain_mlp(case.m, case.widths, case.d).to(device, torch.float64)
        exact.load_state_dict(mlp.state_dict())
        loss = functional.cross_entropy(exact(x.double()), y)
        return provider(mlp, step_truth(dict(exact.named_parameters()), loss), **how)

    def floor():
        call, outputs, true = products(all_products(model, x), device)
        return Provider({"step": call}, outputs, true)

    makers = {
        "eager-loop": lambda: of(LoopMLP),
        "eager-stacked": lambda: of(StackedMLP),
        "graph-loop": lambda: of(LoopMLP, graph=True),
        "graph-stacked": lambda: of(StackedMLP, graph=True),
        **{name: lambda mode=mode: of(LoopMLP, mode=mode) for name, mode in MODES.items()},
        "matmul": floor,
        "plain": plain,
        "plain-graph": lambda: plain(graph=True),
        "nftk-torch": lambda: of(backend="torch"),
        "nftk": of,
        "nftk-graph": lambda: of(graph=True),
    }
    makers = {name: makers[name] for name in providers(case, device)}
    return Problem(makers, truth, work(case), functools.partial(targets, case, device), flips(case))


def all_products(model, x):
    """Both factors of every product of a step, forward and back."""
    hs = hidden_truth(model, x)
    weights = [layer.weight.detach() for layer in model.hidden]
    folded, states = model.readout_weight.detach().clone(), torch.cat(hs[1:], 1)
    deltas, grad = [torch.randn_like(h) for h in hs[1:]], torch.randn_like(x[:, : len(model.omega)])
    pairs = [(h, w.t()) for h, w in zip(hs, weights, strict=False)] + [(states, folded.t()), (grad, folded)]
    pairs += [(grad.t(), states)] + [(delta, w) for delta, w in zip(deltas[1:], weights[1:], strict=True)]
    return pairs + [(delta.t(), h) for delta, h in zip(deltas, hs, strict=False)]


def targets(case, device, rows):
    """Of DESIGN's table: a step at the paper's shape on a GPU, each against the fastest of its kind."""
    if device != "cuda" or case.name not in PAPER:
        return []
    goals = {
        ("eager-loop", "eager-stacked"): 10.0,
        ("compile",): 3.0,
        ("graph-loop", "graph-stacked"): 2.0,
        ("compile-max",): 1.5,
    }
    return [faster(rows, ("nftk", "nftk-graph"), theirs, "step", goal) for theirs, goal in goals.items()]


def bench_step(bench):
    bench()


@pytest.mark.parametrize("shape", RATIO)
def bench_ratio(shape, record, device, ceilings):
    """The promise on a CPU: in turn, some steps each, so that the ratios hold while the machine's speed drifts."""
    if device != "cpu":
        pytest.skip("the promise is a CPU's")
    case = RATIO[shape]
    x, y = make_data(case, "cpu")
    ours, looped = make_model(case, "cpu"), make_model(case, "cpu", LoopMLP)
    torch.testing.assert_close(ours(x), looped(x), rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(functional.cross_entropy(m(x), y), list(m.parameters())) for m in (ours, looped)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    models = {"plain": plain_mlp(case.m, case.widths, case.d), "nftk": ours, "loop": looped}
    steps = {name: make_step(model, x, y) for name, model in models.items()}
    if ceilings is None:
        for step in steps.values():
            step()
        return
    times = {name: [] for name in steps}
    for _ in range(40):
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
    record(f"training_step_{shape}", {"shape": case.sizes(), "dtype": "float32", "steps": rows})
    if shape.startswith("mnist"):
        assert rows["nftk"]["ratio_to_plain"] <= PROMISE, rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", PAPER)
@pytest.mark.parametrize("cuda_graph", [None, False], ids=["graph", "eager"])
def bench_fit(shape, cuda_graph, device, record, ceilings, folder):
    """A step within nftk.fit itself: shuffling, batches, loss, accuracy and all; epochs after the first."""
    if device != "cuda":
        pytest.skip("nftk.fit captures its step on a GPU")
    case, steps = paper(shape), 400
    torch.manual_seed(0)
    x = torch.randn(case.batch * steps, case.m, device=device)
    y = torch.randint(0, case.d, (len(x),), device=device)
    epochs = 4 if ceilings is not None else 1
    history = nftk.fit(make_model(case, device), (x, y), batch_size=case.batch, epochs=epochs, cuda_graph=cuda_graph)
    if ceilings is None:
        return
    times = [epoch.seconds / steps * 1e3 for epoch in history[1:]]
    result = {"shape": case.sizes(), "dtype": "float32", "cuda_graph": cuda_graph is None, "steps": steps}
    name = "graph" if cuda_graph is None else "eager"
    record(f"{folder}/fit_{shape}_{name}", result | {"op": "fit", "case": shape, "step_ms": statistics.median(times)})
