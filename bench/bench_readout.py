"""Time of nftk.ops.readout: from h_1 .. h_L, V and Omega to f, and the three gradients."""

import functools
import itertools

import torch
from _harness import Problem, Provider, Work, at_least, captured, faster, products
from _networks import MODES, grid, loop, paper, readout_inputs, readout_truth, stacked

import nftk

BOTH = ("cpu", "cuda")
CASES = [
    paper("mnist-10x256", compiles=("compile", "compile-max"), devices=BOTH),
    grid(65536, 256, compiles=("compile",)),
    grid(65536, 256, "tf32"),
    grid(65536, 256, "bf16"),
    grid(1024, 256),
    grid(1024, 256, "bf16"),
    grid(65536, 256, d=256),
    grid(65536, 256, "tf32", d=256),
    grid(65536, 256, "bf16", d=256),
    grid(8192, 64),
    grid(8192, 1024),
    paper("reviews-5x128", devices=BOTH),
    paper("mnist-20x256"),
    paper("reviews-10x128"),
    grid(2048, 256, devices=("cpu",)),
]


def providers(case, device):
    names = ["eager-loop", "eager-stacked"]
    if device == "cuda":
        names += ["graph-loop", "graph-stacked"]
    names += [name for name in MODES if name in case.compiles and not (device == "cpu" and name == "compile-max")]
    names += ["matmul", "torch"]
    return names + (["triton", "triton-graph"] if device == "cuda" else [])


def work(case):
    """Bytes and flops of each pass."""
    itemsize = 2 if case.precision == "bf16" else 4
    total, depth = sum(case.widths), len(case.widths)
    states, weights, outputs = case.batch * total, case.d * (total + depth), case.batch * case.d
    forward = Work((states + weights + outputs) * itemsize, 2 * states * case.d)
    backward = Work((2 * states + 2 * weights + outputs) * itemsize, 4 * states * case.d)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def build(case, device):
    hs, v, omega = readout_inputs(case, device)
    inputs = [t.requires_grad_() for t in (*hs, v, omega)]
    grad = torch.randn(case.batch, case.d, dtype=v.dtype, device=device)
    names = ["f", *(f"grad h_{i + 1}" for i in range(len(hs))), "grad V", "grad Omega"]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    f = readout_truth(wide[:-2], *wide[-2:])
    truth = dict(zip(names, [f.detach(), *torch.autograd.grad(f, wide, grad.double())], strict=True))
    del f, wide

    def provider(function, graph=False, split=True):
        """The three passes of a function of h, V and Omega; split: whether backward can run twice on one graph."""

        def forward():
            with torch.no_grad():
                return function(hs, v, omega)

        def both():
            out = function(hs, v, omega)
            return out, torch.autograd.grad(out, inputs, grad)

        if graph:
            forward, both = captured(forward), captured(both)

        def outputs():
            out, grads = both()
            return dict(zip(names, [out, *grads], strict=True))

        passes = {"forward": forward, "both": both}
        if split:
            out = function(hs, v, omega)
            passes["backward"] = lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)
        return Provider(passes, outputs)

    def floor():
        states, folded = torch.cat(hs, 1).detach(), v.detach().clone()
        runs = [
            products(pairs, device)
            for pairs in ([(states, folded.t())], [(grad, folded), (grad.t(), states)])
        ]  # fmt: skip
        forward, backward = (call for call, _, _ in runs)
        truths = [one for _, _, true in runs for one in true.values()]

        def outputs():
            every = itertools.chain.from_iterable(found().values() for _, found, _ in runs)
            return {str(i): t for i, t in enumerate(every)}

        def both():
            forward()
            backward()

        passes = {"forward": forward, "backward": backward, "both": both}
        return Provider(passes, outputs, {str(i): t for i, t in enumerate(truths)})

    ours = functools.partial(nftk.ops.readout, precision="tf32" if case.precision == "tf32" else "highest")
    makers = {
        "eager-loop": lambda: provider(loop),
        "eager-stacked": lambda: provider(stacked),
        "graph-loop": lambda: provider(loop, graph=True, split=False),
        "graph-stacked": lambda: provider(stacked, graph=True, split=False),
        **{
            name: lambda mode=mode: provider(torch.compile(loop, mode=mode, dynamic=False), split=False)
            for name, mode in MODES.items()
        },
        "matmul": floor,
        "torch": lambda: provider(functools.partial(ours, backend="torch")),
        "triton": lambda: provider(functools.partial(ours, backend="triton")),
        "triton-graph": lambda: provider(functools.partial(ours, backend="triton"), graph=True, split=False),
    }
    wanted = providers(case, device)
    makers = {name: makers[name] for name in wanted}
    return Problem(makers, truth, work(case), functools.partial(targets, case, device))


def targets(case, device, rows):
    """Of DESIGN's table: readout forward and backward on a GPU, L = 10, n = 256."""
    if device != "cuda" or case.widths != (256,) * 10:
        return []
    eager = ("eager-loop", "eager-stacked")
    if case.d >= 256:
        floors = {kind: rows.get(("matmul", kind), {}).get("ms_50") for kind in work(case)}
        found = []
        for kind, floor in floors.items():
            ours = rows.get(("triton", kind), {}).get("ms_50")
            value = floor / ours if floor and ours else None
            met = None if value is None else value >= 0.8
            said = f"{kind}: >= 0.8 of torch.matmul's rate on the same products"
            found.append({"target": said, "value": value, "met": met, "ours": "triton"})
        return found
    if case.batch >= 65536:
        shares = [at_least(rows, "triton", kind, "copy_share", 0.85) for kind in work(case)]
        return [*shares, *(faster(rows, ("triton",), eager, kind, 1.3) for kind in work(case))]
    return [faster(rows, ("triton",), eager, kind, 3.0) for kind in work(case)] if case.batch <= 1024 else []


def bench_readout(bench):
    bench()
