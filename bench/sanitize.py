"""Run every kernel, of Triton and of csrc, at small ragged shapes, for compute-sanitizer; each result is checked too.

``compute-sanitizer --tool memcheck python bench/sanitize.py``; bench/gpu.sh does that.
"""

import dataclasses
import functools
import importlib
import itertools
import os
import sys
from typing import NamedTuple
from unittest import mock

import _kernels
import torch
import tune
from nftk.kernels.choice import Tiles

import nftk
from nftk._dispatch import why_not
from nftk.reference.tangent_gram import tangent_gram_reference

# rows, m, widths, d: across a tile edge, odd, a layer of one; and below a tile
RAGGED, SMALL = (37, 33, (40, 17, 70, 1), 10), (5, 7, (3, 5), 2)


def runs():
    """Every kernel in every precision, alone and with programs that share a sum or wait for each other."""
    for kernel in tune.KERNELS:
        cases = [(RAGGED, word, 2) for word in tune.WORDS] + [(RAGGED, "tf32x3", 1), (SMALL, "tf32x3", 1)]
        for (rows, m, widths, d), word, splits in cases:
            job = _kernels.Job(kernel, rows, m, len(widths), max(widths), d, word)
            # the smallest tiles, so that small shapes have many
            yield job, list(widths), Tiles(16, 16, 16, splits, 4, 2)
    # outputs that take more than one tile, where readout's backward has another form
    for kernel in ("readout_fwd", "readout_bwd"):
        yield _kernels.Job(kernel, 33, 4, 2, 20, 37, "tf32"), [20, 33], Tiles(16, 16, 16, 2, 4, 2)


class Gram(NamedTuple):
    """A launch of tangent_gram; n2 None: the symmetric form."""

    form: str
    n1: int
    n2: int | None
    d: int
    channels: tuple[int, ...]
    word: str
    tile: str

    # what the operands' rounding and the sums' order may cost
    ALLOWED = {"highest": 1e-6, "tf32": 2e-3, "bf16": 2e-2, "float64": 1e-14}


def gram_runs():
    """Every form, precision and tile, symmetric and not; a part of a tile, a few tiles, and one channel."""
    words, tiles = ("highest", "tf32", "bf16", "float64"), ("small", "large")
    for form, word, tile, n2 in itertools.product(("full", "trace", "diagonal"), words, tiles, (None, 29)):
        yield Gram(form, 37, n2, 5, (40, 17, 70, 1), word, tile)
    for word in words:
        yield Gram("full", 150, None, 1, (33,), word, "automatic")
        yield Gram("trace", 3, 200, 2, (8, 8), word, "automatic")


def gram_wrong(run, device, backend="cuda"):
    """Say how a launch of tangent_gram is wrong, or nothing."""
    torch.manual_seed(0)
    # drawn and checked on the CPU, so that the tools watch nothing but the kernel
    kind = {"dtype": torch.float64 if run.word == "float64" else torch.float32}
    n2, layers = run.n2 or run.n1, len(run.channels)
    s = [torch.randn(run.n1, n2, **kind) for _ in run.channels]
    if run.n2 is None:
        s = [(x + x.mT) / 2 for x in s]
    # rows that follow each other without a gap, so that they begin anywhere
    a = [torch.randn(layers - k, run.n1, run.d, c, **kind) for k, c in enumerate(run.channels)]
    b = None if run.n2 is None else [torch.randn(layers - k, n2, run.d, c, **kind) for k, c in enumerate(run.channels)]
    word = "highest" if run.word == "float64" else run.word
    there = [None if xs is None else [x.to(device) for x in xs] for xs in (s, a, b)]
    found = nftk.ops.tangent_gram(*there, form=run.form, precision=word, backend=backend).cpu()
    wide = [[x.double() for x in xs] for xs in (s, a, a if b is None else b)]
    truth = tangent_gram_reference(*wide, [tuple(range(k, layers)) for k in range(layers)], layers)
    if run.form != "full":
        truth = truth.diagonal(dim1=3, dim2=4)
        truth = truth.sum(-1) if run.form == "trace" else truth
    off = ((found.double() - truth).norm() / truth.norm()).item()
    return "" if off <= run.ALLOWED[run.word] else f"is off by {off:.1e}, allowed {run.ALLOWED[run.word]:.1e}"


def grams(device):
    """Return the numbers of launches of tangent_gram and of wrong ones, and print each of those."""
    if reason := why_not("cuda", device):
        print(f"tangent_gram: {reason}", flush=True)
        return 0, 1
    native, wrong, count = importlib.import_module("nftk._C"), 0, 0
    for run in gram_runs():
        forced = functools.partial(native.tangent_gram, tile=run.tile)
        with mock.patch.object(native, "tangent_gram", forced):
            said = gram_wrong(run, device)
        count += 1
        if said:
            wrong += 1
            print(f"{run}: {said}", flush=True)
    return count, wrong


def recursions(device):
    """Return the numbers of launches of layer_recursion and of wrong ones, and print each of those."""
    wrong = count = 0
    for phi, n2, b, k in itertools.product(("relu", "erf", "sin", "gelu"), (None, 29), (0.0, 0.3), (0, 1, 2)):
        torch.manual_seed(0)
        x1, x2 = torch.randn(137, 5), None if n2 is None else torch.randn(n2, 5)
        weights = torch.rand(k, 3) if k else None
        settings = {"depth": 3, "activation": phi, "bias_var": b, "weights": weights}
        there = [None if x is None else x.to(device) for x in (x1, x2)]
        found = nftk.infinite_ntk(*there, backend="triton", **settings).blocks.cpu().double()
        wide = [None if x is None else x.double() for x in (x1, x2)]
        truth = nftk.infinite_ntk(*wide, backend="torch", **settings).blocks
        off = ((found - truth).norm() / truth.norm()).item()
        count += 1
        # a NaN is not below anything
        if not off < 2e-6:
            wrong += 1
            print(f"infinite_ntk {phi}, n2 {n2}, bias_var {b}, {k} sums: is off by {off:.1e}", flush=True)
    return count, wrong


def main(device="cuda"):
    """Return the number of wrong results, and print each."""
    wrong = count = 0
    for job, widths, tiles in runs():
        data = _kernels.Data(job, device, widths)
        with tune.forced(tiles):
            said = _kernels.checker(job, device, data)()
        count += 1
        if said:
            wrong += 1
            print(f"{dataclasses.asdict(job)} widths {widths} splits {tiles.splits}: {said}", flush=True)
    if device == "cuda":
        for more, bad in (grams(device), recursions(device)):
            count, wrong = count + more, wrong + bad
        torch.cuda.synchronize()
    print(f"{count} launches, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    # each tensor an allocation of its own, so that a read past its end is one past an allocation
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    sys.exit(main() != 0)
