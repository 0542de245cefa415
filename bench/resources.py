"""Registers, spills and shared memory of every kernel, compiled for three GPUs on a machine that needs none.

``python bench/resources.py`` compiles what the launchers launch, at the paper's shapes and at wide ones, with the
tiles that "auto" takes, and writes bench/results/resources.json.
"""

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from nftk.kernels import choice
from nftk.kernels.layer_recursion import layer_recursion_fwd
from nftk.kernels.network import network_fwd
from nftk.kernels.network_bwd import network_bwd
from nftk.kernels.network_weights import network_bwd_weights
from nftk.kernels.project import project_fwd, project_transpose_fwd
from nftk.kernels.readout import readout_bwd, readout_fwd
from triton.backends.compiler import GPUTarget

from nftk.ops.duals import Dual
from nftk.ops.layer_recursion import RecursionLayer
from nftk.ops.network_triton import MOST_OUTPUTS, SLOPE_FROM_H
from nftk.ops.project_torch import Matrix

RECORD = Path(__file__).parent / "results" / "resources.json"
ARCHITECTURES = (80, 90, 100)
# of the A100, H200 and B200: what "auto" cuts the work for
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
# bytes of shared memory that one program may have (CUDA C++ programming guide, table of compute capabilities)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


class Driver:
    """What Triton asks of a driver when it compiles and does not launch."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        # Triton keeps compiled kernels by device
        return self.target.arch

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compiled(capability):
    """Collect what every launch inside compiles for a capability; nothing is launched."""
    kernels = []
    launch = triton.runtime.JITFunction.run

    def compile_only(self, *args, grid, warmup=False, **keywords):
        kernel = launch(self, *args, grid=grid, warmup=True, **keywords)
        kernels.append(kernel.result() if hasattr(kernel, "result") else kernel)

    before = triton.runtime.driver._active
    choice_before = choice.capability, choice.programs_at_once
    choice.capability = lambda device: capability
    choice.programs_at_once = lambda device: MULTIPROCESSORS[capability]
    triton.runtime.driver.set_active(Driver(capability))
    triton.runtime.JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        triton.runtime.JITFunction.run = launch
        triton.runtime.driver._active = before
        choice.capability, choice.programs_at_once = choice_before


def usage(kernel):
    """Registers a thread, bytes of stack (where spills go) and of shared memory a program."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    ptx = kernel.asm["ptx"]
    products = next((name for name in ("tcgen05.mma", "wgmma", "mma.sync") if name in ptx), "fma")
    return {
        "warps": kernel.metadata.num_warps,
        "registers": int(found["REG"]),
        "spills": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": kernel.metadata.shared,
        "products": products,
    }


class Case(NamedTuple):
    """A network, its batch and its precision, and what makes the compiler write another kernel.

    autocast: The dtype that autocast casts to. readouts: whether every f_l is asked for. scale: of all weights, biases
    and readouts. by_columns: the memory order of h, V and Omega. output_bias: whether there is one.
    """

    rows: int
    in_features: int
    widths: tuple[int, ...]
    d: int
    dtype: torch.dtype = torch.float32
    precision: str = "highest"
    phi: str = "relu"
    autocast: torch.dtype | None = None
    readouts: bool = False
    scale: float = 1.0
    by_columns: bool = False
    output_bias: bool = False


CASES = {
    "mnist-10x256, 50": Case(50, 784, (256,) * 10, 10),
    "mnist-10x256, 50, tf32": Case(50, 784, (256,) * 10, 10, precision="tf32"),
    "mnist-10x256, 50, bfloat16": Case(50, 784, (256,) * 10, 10, dtype=torch.bfloat16),
    "mnist-20x256, 50": Case(50, 784, (256,) * 20, 10),
    "reviews-5x128, 25": Case(25, 768, (128,) * 5, 2),
    "reviews-10x128, 25": Case(25, 768, (128,) * 10, 2),
    "10x256, 65536": Case(65536, 784, (256,) * 10, 10),
    "10x256, 65536, tf32": Case(65536, 784, (256,) * 10, 10, precision="tf32"),
    "10x256, 65536, bfloat16": Case(65536, 784, (256,) * 10, 10, dtype=torch.bfloat16),
    "10x64, 65536, gelu": Case(65536, 784, (64,) * 10, 32, phi="gelu"),
    "4x1024, 4096": Case(4096, 784, (1024,) * 4, 64),
    "4x1024, 4096, bfloat16": Case(4096, 784, (1024,) * 4, 64, dtype=torch.bfloat16),
    "ragged, 500": Case(500, 75, (500, 301, 77), 37, phi="tanh"),
    "100x64, 1024": Case(1024, 64, (64,) * 100, 10),
    "4x256, 8192, 1000 outputs": Case(8192, 784, (256,) * 4, 1000),
    # what the same shapes compile to otherwise
    "mnist-10x256, 50, ntk": Case(50, 784, (256,) * 10, 10, phi="gelu", scale=0.5, by_columns=True, output_bias=True),
    "10x256, 65536, ntk": Case(65536, 784, (256,) * 10, 32, phi="gelu", scale=0.5, by_columns=True, output_bias=True),
    "10x256, 65536, gelu, tf32": Case(65536, 784, (256,) * 10, 64, precision="tf32", phi="gelu", output_bias=True),
    "10x256, 65536, readouts": Case(65536, 784, (256,) * 10, 10, readouts=True),
    "10x256, 65536, readouts, float16": Case(65536, 784, (256,) * 10, 32, dtype=torch.float16, readouts=True),
    "10x256, 65536, readouts, autocast": Case(
        65536, 784, (256,) * 10, 64, autocast=torch.bfloat16, readouts=True, by_columns=True
    ),
    "10x256, 65536, autocast": Case(65536, 784, (256,) * 10, 10, autocast=torch.bfloat16),
    "4x256, 8192, 1000 readouts": Case(8192, 784, (256,) * 4, 1000, readouts=True, scale=0.5, by_columns=True),
    # sizes and strides of 1 are constants to the compiler
    "ones, 1": Case(1, 1, (1, 1), 1),
}
# what is checked again in CI: every kernel, at the paper's shape, at the large batch and where all is 1
CHECKED = ("mnist-10x256, 50", "10x256, 65536", "ones, 1")


def compile_case(case, capability):
    """Yield (kernel, resources) of all that forward and backward launch for a case."""
    total, depth = sum(case.widths), len(case.widths)

    out = case.autocast or case.dtype

    def empty(*size, dtype=case.dtype, by_columns=False):
        # never touched: only its shape, dtype, strides and alignment count
        return torch.empty(size[::-1], dtype=dtype).T if by_columns else torch.empty(size, dtype=dtype)

    x, grad, states = empty(case.rows, case.in_features), empty(case.rows, case.d, dtype=out), empty(case.rows, total)
    hs = list(empty(case.rows, total, by_columns=case.by_columns).split(case.widths, 1))
    grad_readouts = torch.empty(case.rows, depth, case.d, dtype=out) if case.readouts else None
    fan_in = (case.in_features, *case.widths[:-1])
    weights = [empty(n, k) for n, k in zip(case.widths, fan_in, strict=True)]
    biases = [empty(n) for n in case.widths]
    output_bias = empty(case.d) if case.output_bias else None
    readout_weight = empty(case.d, total, by_columns=case.by_columns)
    omega, scale = empty(case.d, depth, by_columns=case.by_columns), (case.scale,) * depth
    word = choice.kernel_precision(case.dtype, case.precision, out)
    keep = case.phi not in SLOPE_FROM_H

    def readout():
        tiles = choice.readout_fwd_tiles(hs, case.d, word)
        readout_fwd(hs, readout_weight, omega, scale, case.readouts, word, out, tiles)
        tiles = choice.readout_bwd_tiles(hs, case.d, word, case.readouts)
        readout_bwd(grad, grad_readouts, hs, readout_weight, omega, scale, True, True, word, tiles)

    def whole_network():
        scales = (scale, scale, scale)
        for training in (True, False):
            tiles = choice.walk_tiles("network_fwd", x, case.widths, case.d, word, case.scale != 1.0)
            network_fwd(x, weights, biases, readout_weight, omega, output_bias, case.phi, *scales, training,
                        training and keep, word, out, tiles)  # fmt: skip
        tiles = choice.walk_tiles("network_bwd", x, case.widths, case.d, word)
        network_bwd(grad, x, weights, readout_weight, omega, states, case.phi, scale, scale, 0, True, word, tiles)
        tiles = choice.weight_tiles(x, case.widths, case.d, word)
        network_bwd_weights(grad, x, states, states, readout_weight, omega, case.widths, *scales, 0, True, True,
                            True, case.output_bias, word, tiles)  # fmt: skip

    names = ["readout_fwd", "readout_bwd"]
    with compiled(capability) as kernels:
        readout()
        if case.d <= MOST_OUTPUTS:
            names += ["network_fwd", "network_fwd, no gradients", "network_bwd", "network_bwd_weights"]
            whole_network()
    assert len(kernels) == len(names), "a launch is missing, or there is one too many"
    yield from ((name, usage(kernel)) for name, kernel in zip(names, kernels, strict=True))


# activations of infinite_ntk with a kernel each; with biases, and with x2=None, which take the most
RECURSIONS = {f"infinite_ntk, {kind}": kind for kind in ("leaky_relu", "erf", "sin", "gelu")}


def compile_recursion(kind, capability):
    """Yield (kernel, resources) of the two forms: all layers, and a weighted sum of them."""
    layers = [RecursionLayer(Dual(kind), 2.0, 0.1)] * 10
    gap, points = torch.empty(2000, 2000), torch.empty(1 + len(layers) * layers[0].dual.rows, 2000)
    forms = {"layer_recursion": None, "layer_recursion, weighted": torch.empty(1, len(layers))}
    with compiled(capability) as kernels:
        for weights in forms.values():
            out = torch.empty(len(layers) if weights is None else 1, 2000, 2000)
            layer_recursion_fwd(out, gap, points, points, layers, weights, True, True)
    yield from ((name, usage(kernel)) for name, kernel in zip(forms, kernels, strict=True))


# kind, dtype of the inputs, and seed and first column, which have 32 bits or 64
PROJECTIONS = {
    "project, rademacher": ("rademacher", torch.float32, 3),
    "project, rademacher, far columns": ("rademacher", torch.float32, 1 << 40),
    "project, rademacher, bfloat16": ("rademacher", torch.bfloat16, 3),
    "project, gaussian": ("gaussian", torch.float32, 3),
    "project, gaussian, bfloat16": ("gaussian", torch.bfloat16, 3),
}


def compile_projection(kind, dtype, far, capability):
    """Yield (kernel, resources) of a projection of 512 rows, and of its transpose."""
    matrix = Matrix(1024, far, kind, far, 1, 4)
    x, y = torch.empty(512, 1 << 16, dtype=dtype), torch.empty(1, 512, 1024, dtype=dtype)
    with compiled(capability) as kernels:
        project_fwd(x, matrix)
        project_transpose_fwd(y, 1 << 16, matrix)
    yield from ((name, usage(kernel)) for name, kernel in zip(("project", "project_transpose"), kernels, strict=True))


def rows(cases, architectures):
    """One row a kernel, case and architecture."""
    found = [
        {"case": name, "capability": capability, "kernel": kernel} | used
        for capability in architectures
        for name in cases
        for kernel, used in compile_case(CASES[name], capability)
    ]
    found += [
        {"case": name, "capability": capability, "kernel": kernel} | used
        for capability in architectures
        for name, kind in RECURSIONS.items()
        for kernel, used in compile_recursion(kind, capability)
    ]
    return found + [
        {"case": name, "capability": capability, "kernel": kernel} | used
        for capability in architectures
        for name, settings in PROJECTIONS.items()
        for kernel, used in compile_projection(*settings, capability)
    ]


def main():
    """Compile everything and write the record, or print the rows of some as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="print what CI checks, for one architecture; write nothing"
    )
    asked = parser.parse_args()
    if asked.check:
        print(json.dumps(rows(CHECKED, (90,))))
        return
    record = {"triton": triton.__version__, "rows": rows(CASES, ARCHITECTURES)}
    text = ",\n".join("    " + json.dumps(row) for row in record["rows"])
    RECORD.write_text(f'{{\n  "triton": "{record["triton"]}",\n  "rows": [\n{text}\n  ]\n}}\n')
    worst = [row for row in record["rows"] if row["spills"] or row["shared"] > SHARED_LIMIT[row["capability"]]]
    for row in worst:
        print("spills or too much shared memory:", row)
    print(f"{len(record['rows'])} kernels compiled, {len(worst)} of them with spills or too much shared memory")


if __name__ == "__main__":
    main()
