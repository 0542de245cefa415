"""Run every Triton kernel once at small ragged shapes, for compute-sanitizer; each result is checked as well.

``compute-sanitizer --tool memcheck python bench/sanitize.py``; bench/gpu.sh does that.
"""

import dataclasses
import os
import sys

import _kernels
import torch
import tune
from nftk.kernels.choice import Tiles

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
        torch.cuda.synchronize()
    print(f"{count} launches, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    # each tensor an allocation of its own, so that a read past its end is one past an allocation
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    sys.exit(main() != 0)
