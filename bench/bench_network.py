"""Time of the network operation, x to f, through NFTKMLP: forward alone, and with the gradients of all parameters."""

import contextlib
import dataclasses
import functools
import math

import torch
from _harness import Problem, Provider, Work, at_least, captured, faster, products
from _networks import (
    MODES,
    PAPER,
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

BOTH = ("cpu", "cuda")
ALL = ("compile", "compile-max")
CASES = [
    *(paper("mnist-10x256", p, ALL, BOTH if p == "highest" else ("cuda",)) for p in ("highest", "tf32", "bf16")),
    *(grid(65536, 256, p, compiles=("compile",) if p == "bf16" else ()) for p in ("highest", "tf32", "bf16")),
    *(paper("reviews-5x128", p, ALL) for p in ("bf16", "tf32", "highest")),
    grid(1024, 256, "tf32"),
    grid(4096, 64, "tf32"),
    *(grid(8192, 1024, p) for p in ("highest", "tf32", "bf16")),
    *(paper("mnist-20x256", p, ALL) for p in ("bf16", "tf32", "highest")),
    *(paper("reviews-10x128", p, ALL) for p in ("bf16", "tf32", "highest")),
    paper("reviews-5x128", devices=("cpu",)),
    grid(1024, 256, devices=("cpu",)),
]
# programs that share a block of rows
COLUMNS = (2, 4, 8, 16)


def providers(case, device):
    names = ["eager-loop", "eager-stacked"]
    if device == "cuda":
        names += ["graph-loop", "graph-stacked"]
    names += [name for name in case.compiles if not (device == "cpu" and name == "compile-max")]
    names += ["matmul", "plain", "torch"]
    if device != "cuda":
        return names
    names += ["triton", "triton-graph"]
    # what tuning chooses from, at one shape; the stored choice is in "triton" everywhere
    return names + [f"triton-columns-{n}" for n in COLUMNS if case.name == "mnist-10x256"]


def work(case):
    """Bytes and flops of each pass; in "both" the hidden states are written once and read once."""
    itemsize = 2 if case.precision == "bf16" else 4
    fan_in, total, depth = (case.m, *case.widths[:-1]), sum(case.widths), len(case.widths)
    weights = sum(a * b for a, b in zip(fan_in, case.widths, strict=True))
    parameters = weights + total + case.d * (total + depth)
    layers, readouts = 2 * case.batch * weights, 2 * case.batch * total * case.d
    ends, states = case.batch * (case.m + case.d), case.batch * total
    forward = Work((ends + parameters) * itemsize, layers + readouts)
    # backward reads x, grad f, all states and all parameters, and writes all gradients but that of x
    below = 2 * case.batch * (weights - case.m * case.widths[0])
    backward = Work((ends + states + 2 * parameters) * itemsize, layers + below + 2 * readouts)
    return {"forward": forward, "both": forward + backward + Work(states * itemsize, 0)}


@contextlib.contextmanager
def columns(count):
    """Let this many programs share a block of rows, each with its part of every layer."""
    from nftk.kernels import choice

    before = choice.walk_tiles

    def tiles(op, x, widths, d, precision):
        found = before(op, x, widths, d, precision)
        part = max(16, 1 << (math.ceil(max(widths) / count) - 1).bit_length())
        return dataclasses.replace(found, splits=count, block_n=min(part, 128), num_warps=4)

    choice.walk_tiles = tiles
    try:
        yield
    finally:
        choice.walk_tiles = before


def passes_of(model, x, grad, graph=False, around=contextlib.nullcontext):
    parameters = list(model.parameters())

    def forward():
        with torch.no_grad(), around():
            return model(x)

    def both():
        with around():
            f = model(x)
            return f, torch.autograd.grad(f, parameters, grad)

    return {kind: captured(call) if graph else call for kind, call in (("forward", forward), ("both", both))}


def build(case, device):
    x, _ = make_data(case, device)
    grad = torch.randn(case.batch, case.d, generator=torch.Generator().manual_seed(2)).to(x)
    keywords = {"precision": "tf32" if case.precision == "tf32" else "highest"}
    model = make_model(case, device)
    wide = wide_parameters(model)
    f = network_truth(case, wide, x)
    gradients = torch.autograd.grad(f, list(wide.values()), grad.double())
    truth = {"f": f.detach()} | {f"grad {name}": g for name, g in zip(wide, gradients, strict=True)}
    del f, gradients

    def provider(module, names, truth=None, only=None, **how):
        passes = passes_of(module, x, grad, **how)

        def outputs():
            if only == "forward":
                return {"f": passes["forward"]()}
            out, grads = passes["both"]()
            return {"f": out} | {f"grad {name}": g for name, g in zip(names, grads, strict=True)}

        kept = passes if only is None else {only: passes[only]}
        return Provider(kept, outputs, truth)

    def of(kind=None, backend="torch", **how):
        kinds = {} if kind is None else {"kind": kind}
        return provider(make_model(case, device, **kinds, backend=backend, **keywords), wide, **how)

    def compiled(mode):
        # backward is compiled in bench_step; here the operation of DESIGN's target, forward
        run = torch.compile(make_model(case, device, LoopMLP), mode=mode, dynamic=False)

        def forward():
            with torch.no_grad():
                return run(x)

        return Provider({"forward": forward}, lambda: {"f": forward()}, {"f": truth["f"]})

    def floor():
        hs = hidden_truth(model, x)
        weights = [layer.weight.detach() for layer in model.hidden]
        folded = model.readout_weight.detach().clone()
        states = torch.cat(hs[1:], 1)
        up = [(h, w.t()) for h, w in zip(hs, weights, strict=False)] + [(states, folded.t())]
        deltas = [torch.randn_like(h) for h in hs[1:]]
        back = [(delta, w) for delta, w in zip(deltas[1:], weights[1:], strict=True)]
        back += [(delta.t(), h) for delta, h in zip(deltas, hs, strict=False)] + [(grad, folded), (grad.t(), states)]
        (forward, outputs, true), (backward, _, _) = products(up, device), products(back, device)

        def both():
            forward()
            backward()

        return Provider({"forward": forward, "both": both}, outputs, true)

    def plain():
        torch.manual_seed(0)
        mlp = plain_mlp(case.m, case.widths, case.d).to(x)
        names = [name for name, _ in mlp.named_parameters()]
        exact = plain_mlp(case.m, case.widths, case.d).to(device, torch.float64)
        exact.load_state_dict(mlp.state_dict())
        out = exact(x.double())
        grads = torch.autograd.grad(out, list(exact.parameters()), grad.double())
        true = {"f": out.detach()} | {f"grad {name}": g for name, g in zip(names, grads, strict=True)}
        return provider(mlp, names, true)

    makers = {
        "eager-loop": lambda: of(LoopMLP),
        "eager-stacked": lambda: of(StackedMLP),
        "graph-loop": lambda: of(LoopMLP, graph=True),
        "graph-stacked": lambda: of(StackedMLP, graph=True),
        **{name: functools.partial(compiled, mode) for name, mode in MODES.items()},
        "matmul": floor,
        "plain": plain,
        "torch": lambda: of(),
        "triton": lambda: of(backend="triton"),
        "triton-graph": lambda: of(backend="triton", graph=True),
        **{
            f"triton-columns-{n}": lambda n=n: of(backend="triton", graph=True, around=lambda: columns(n))
            for n in COLUMNS
        },
    }
    makers = {name: makers[name] for name in providers(case, device)}
    return Problem(makers, truth, work(case), functools.partial(targets, case, device), flips(case))


def targets(case, device, rows):
    """Of DESIGN's table: network forward on a GPU."""
    if device != "cuda":
        return []
    ours = ("triton", "triton-graph", *(f"triton-columns-{n}" for n in COLUMNS))
    if case.name in PAPER:
        return [faster(rows, ours, ("compile-max",), "forward", 1.3 if case.precision == "highest" else 2.0)]
    if case.batch * max(case.widths) >= 8192 * 1024:
        return [at_least(rows, "triton", "forward", "matmul_share", 0.7)]
    return []


def bench_network(bench):
    bench()
