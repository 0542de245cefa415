"""python bench/_memory.py N BUDGET FORM: peak memory of empirical_ntk beside inputs and output, as a line of JSON."""

import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from _networks import Case, make_model

import nftk
from nftk.data import load_data
from nftk.data.standardize import Standardizer


def memory(key):
    """VmRSS, what is resident now, or VmHWM, its most since it was reset; in bytes."""
    return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def main(n, budget, form):
    if os.environ.get("NFTK_DATA"):
        data = load_data("mnist")
        x, name = Standardizer.fit(data.x_train, data.standardize).transform(data.x_train)[:n].clone(), "mnist"
        del data
    else:
        x, name = torch.randn(n, 784), "random"
    model = make_model(Case("mnist-10x256", n, 784, (256,) * 10, 10), "cpu")
    size = 10 if form == "full" else 1
    # every page is there before the clock starts; in the order of LayerKernels' memory
    out = torch.ones(10, n, size, n, size).transpose(2, 3) if form == "full" else torch.ones(10, n, n)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = memory("VmRSS")
    start = time.perf_counter()
    nftk.empirical_ntk(model, x, reduction=form, memory_budget=budget, out=out)
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    rows = torch.randperm(n)[:8].sort().values
    few = nftk.empirical_ntk(model.double(), x[rows].double(), reduction=form).blocks
    there = out[:, rows][:, :, rows]
    found = {"peak_bytes": peak, "output_bytes": out.numel() * 4, "seconds": seconds, "data": name, "points": n}
    print(json.dumps(found | {"error": ((there - few).norm() / few.norm()).item(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
