"""Random projections against the exact kernel: measured errors beside the bound, time and memory, of two networks.

The convolutional network of MNIST, by module, and the NFTKMLP of Table 1, by layer; traces. An error is that of an
entry over the roots of its two self-kernels, over all pairs of two different examples and all blocks. Beside them the
exact trNTK of the convolutional network, against autograd example by example
(:mod:`nftk.experiments.sample_by_sample`).
"""

import contextlib
import ctypes
import gc
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import nftk
from nftk.experiments import sample_by_sample
from nftk.experiments.mnist_cnn import digits, trained_cnn
from nftk.experiments.networks import load, train_all
from nftk.experiments.record import Record, Request, table
from nftk.experiments.settings import row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, SEED = 200, 1
# of 819,000 parameters a projection to 4,096 takes minutes
KS, KS_MLP = (256, 1024, 4096), (256, 1024)
QUICK_POINTS, QUICK_KS = 20, (16, 64)
KINDS = ("rademacher", "gaussian", "sjlt", "kronecker")
CNN, MLP = "MNIST CNN", "NFTKMLP 784-10x256-10"


def run(request: Request) -> Record:
    """Both networks, every kind and K, one seed of the projection; then the exact trNTK."""
    quick, place = request.quick, request.place
    points, ks, ks_mlp = (QUICK_POINTS, QUICK_KS, QUICK_KS) if quick else (POINTS, KS, KS_MLP)
    torch.set_num_threads(1)
    data = digits(place)
    count, epochs = (200, 1) if quick else (len(data.x), 12)
    cnn = trained_cnn(place, data.x[:count], data.y[:count], seed=0, epochs=epochs)
    recipe = row("mnist", 10, quick=quick)
    train_all([recipe], place, jobs=1, say=request.say)
    mlp = load(recipe, place)
    x = data.x[:points]
    rows = compare(CNN, cnn, x, "module", ks, request.say) + compare(
        MLP, mlp, x.flatten(1), "layer", ks_mlp, request.say
    )
    exact = sample_by_sample.run(cnn, data.x[: 50 if quick else 2000], 2 if quick else 20, request.say)
    text = f"# Random projections\n\n{_said(points)}\n\n{_table(rows)}\n\n{sample_by_sample.markdown(exact)}\n"
    found = {"points": points, "seed": SEED, "rows": rows, "exact trNTK": exact}
    return Record("projections", found, text, {"projections": plot(rows)})


def compare(
    name: str, model: nn.Module, x: Tensor, per: str, ks: tuple[int, ...], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The exact kernel, and every kind and K that the network has."""

    def kernel() -> nftk.LayerKernels:
        return nftk.empirical_ntk(model, x, per=per, reduction="trace")  # type: ignore[arg-type]

    kernel()  # what is loaded and read once is no part of the times
    exact, seconds, peak = measured(kernel)
    found: list[dict[str, Any]] = [
        {"network": name, "kind": "exact", "k": None, "seconds": seconds, "peak_bytes": peak}
    ]
    roots = exact.diagonal().sqrt()  # [L, n]
    apart = ~torch.eye(len(x), dtype=torch.bool)
    for kind in KINDS:
        for k in ks:

            def features(kind: str = kind, k: int = k) -> nftk.tangent.ProjectedTangents:
                return nftk.tangent.project_tangents(model, x, k, per=per, kind=kind, seed=SEED)  # type: ignore[arg-type]

            p, seconds, peak = measured(features)
            estimate, kernel_seconds, _ = measured(p.kernel)
            sizes = roots.unsqueeze(2) * roots.unsqueeze(1)
            errors = ((estimate.blocks - exact.blocks) / sizes).abs()[:, apart]
            bounds = (p.error().blocks / sizes)[:, apart]
            within = float((errors <= 2 * bounds).double().mean())
            found.append({
                "network": name, "kind": kind, "k": k, "seconds": seconds, "kernel_seconds": kernel_seconds,
                "peak_bytes": peak, "bytes_an_example": p.features[:, 0].numel() * p.features.element_size(),
                "rms": _rms(errors), "percentile_95": float(errors.flatten().quantile(0.95)),
                "bound_rms": _rms(bounds), "within_two_bounds": within,
                "by_block": [[block, _rms(e), _rms(b)] for block, e, b in zip(p.names, errors, bounds, strict=True)],
            })  # fmt: skip
            say(f"{name}, {kind}, {k}: rms {found[-1]['rms']:.4f}, bound {found[-1]['bound_rms']:.4f}, {seconds:.1f} s")
    return found


def measured(call: Callable[[], Any]) -> tuple[Any, float, int | None]:
    """What a call returns, its seconds of CPU time, and the most memory that it took at once, where Linux tells."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        # what is free inside the process would be taken again without a trace
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before: int | None = _memory("VmRSS")
    except OSError:
        before = None
    start = time.process_time()
    result = call()
    seconds = time.process_time() - start
    return result, seconds, None if before is None else max(_memory("VmHWM") - before, 0)


def _memory(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def _said(points: int) -> str:
    return (
        f"{points} images of MNIST, traces; entries over the roots of their self-kernels, of two different images, "
        "over all modules or layers. The bound is the rms of `error()`; within: entries whose error is below twice "
        "their own bound. Seconds of CPU time on one thread; the kernel is that of the features."
    )


def _table(rows: list[dict[str, Any]]) -> str:
    errors = ["rms error", "bound", "95 % of errors below", "within"]
    head = ["network", "kind", "K", *errors, "features", "kernel", "memory"]
    lines = []
    for r in rows:
        memory = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.0f} MiB"
        if r["k"] is None:
            lines.append([r["network"], "exact", "", "", "", "", "", "", f"{r['seconds']:.1f} s", memory])
            continue
        errors = [f"{r[key]:.4f}" for key in ("rms", "bound_rms", "percentile_95")]
        errors.append(f"{100 * r['within_two_bounds']:.1f} %")
        times = [f"{r[key]:.1f} s" for key in ("seconds", "kernel_seconds")]
        lines.append([r["network"], r["kind"], str(r["k"]), *errors, *times, memory])
    return table(head, lines)


def plot(rows: list[dict[str, Any]]) -> "Figure":
    """Measured error and bound over K."""
    from matplotlib.figure import Figure

    figure = Figure((9, 4), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), (CNN, MLP), strict=True):
        for kind, marker in zip(KINDS, "osx^", strict=True):
            mine = [r for r in rows if (r["network"], r["kind"]) == (name, kind)]
            ks = [r["k"] for r in mine]
            (line,) = axes.loglog(ks, [r["rms"] for r in mine], marker, label=kind)
            axes.loglog(ks, [r["bound_rms"] for r in mine], color=line.get_color(), linewidth=1)
        axes.set_title(name, size=10)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set(xlabel="K", ylabel="rms error over roots of self-kernels" if name == CNN else "")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, title="measured; lines: bound", loc="outside right upper", fontsize=8)
    return figure
