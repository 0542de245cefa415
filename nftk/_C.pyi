"""The compiled parts of nftk, from csrc/: present where a C++ compiler was, tangent_gram where nvcc was too."""

from collections.abc import Sequence
from typing import Literal, TypedDict

class BuildInfo(TypedDict):
    """What the extension was built by and for."""

    cuda: bool
    cuda_version: str | None
    why_no_cuda: str | None
    # as NFTK_CUDA_ARCHS names them, then the one whose PTX is held for newer GPUs, as "100+PTX"
    architectures: list[str]
    compiler: str
    # the widest registers that this CPU has: "baseline", "avx2" or "avx512"
    vectors: str

# an entry of csrc/tangent_gram.h in its order; addresses, and strides counted in elements
TangentGramEntry = tuple[
    int,  # s
    tuple[int, int],  # its strides: sample 1, sample 2
    int,  # a
    tuple[int, int, int],  # slice, sample, row
    int,  # b
    tuple[int, int, int],
    int,  # channels
    int,  # slices
    int,  # first output
    int,  # output step
]

def build_info() -> BuildInfo:
    """What this extension was built by and for."""

# a layer of csrc/layer_recursion.h in its order
LayerRecursionEntry = tuple[
    int,  # kind, as in nftk.ops.duals.KINDS
    int,  # order
    float,  # slope
    float,  # weight_var
    float,  # bias_var
    float,  # own_weight
    float,  # own_bias
    float,  # readout_var
    float,  # own_readout
]

def layer_recursion(
    layers: Sequence[LayerRecursionEntry],
    *,
    gap: int,
    gap_strides: Sequence[int],
    sizes: Sequence[int],
    rows1: int,
    rows2: int,
    out: int,
    out_strides: Sequence[int],
    weights: int,
    outputs: int,
    tangent: bool,
    symmetric: bool,
    number: Literal["float32", "float64"],
    wide: bool,
    threads: int,
    vectors: Literal["auto", "baseline", "avx2", "avx512"] = "auto",
) -> None:
    """Run csrc/layer_recursion.h's function; tensors are addresses, strides are counted in elements.

    number is that of gap and out; rows1 and rows2 are of it too or, where wide, float64, and so is all work.
    weights are float64 and contiguous, (outputs, layers), or 0 for every layer's own matrix.
    """

def gaps_from_gram(
    *,
    gram: int,
    stride: int,
    sizes: tuple[int, int, int],
    u1: int,
    u2: int,
    near: float,
    upper: bool,
    number: Literal["float32", "float64"],
    threads: int,
) -> None:
    """Run csrc/layer_recursion.h's function in place; u1 and u2 are float64 and contiguous, sizes are n1, n2, m."""

def transpose(
    *,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    sizes: tuple[int, int],
    number: Literal["float32", "float64"],
) -> None:
    """Run csrc/transpose.h's function; sizes are the rows and columns of x."""

def tangent_gram(
    entries: Sequence[TangentGramEntry],
    *,
    out: int,
    out_strides: tuple[int, int, int, int, int],
    sizes: tuple[int, int, int],
    outputs: int,
    form: Literal["full", "trace", "diagonal"],
    symmetric: bool,
    accumulate: bool,
    number: Literal["float32", "float64"],
    precision: Literal["highest", "tf32", "bf16"],
    tile: Literal["automatic", "small", "large"] = "automatic",
    device: int,
    stream: int,
) -> None:
    """Launch csrc/tangent_gram.h's function.

    out_strides are of output, sample 1, row 1, sample 2, row 2; sizes are n1, n2, d.
    """
