"""Which precision and which tiles a launch takes: what a tuning run stored for this kind of GPU, else a default.

``bench/tune.py`` writes the stored ones, ``kernels/tuned/sm_<capability>.json``; nothing is searched at a start.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORED = Path(__file__).parent / "tuned"
# what launches are cut for where there is no GPU to ask: under the interpreter, where one program runs at a time
_WITHOUT_GPU = 4
# a stored choice serves shapes within this factor of its own, in every size
_REACH = 4.0


_LOW = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of one launch, powers of two and at least 16.

    Attributes:
        block_b: Rows of the batch.
        block_m: Outputs (readout), inner depth of a product (the walks), rows of a weight (weight gradients).
        block_n: Columns of a layer.
        splits: Programs that share one tile's sum; for the walks, programs that share a block of rows. 0 in a
            default or stored choice: as many as fill the chip.
        num_warps: Warps a program.
        num_stages: Tiles in flight.
    """

    block_b: int
    block_m: int
    block_n: int
    splits: int
    num_warps: int
    num_stages: int


def options(tiles: Tiles, cooperative: bool = False, plain: bool = True) -> dict[str, Any]:
    """What a launch says to the compiler; plain: no scales, no readouts asked for, rows side by side in memory."""
    said: dict[str, Any] = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "enable_fp_fusion": True}
    if not plain:
        # left alone, the assembler spills a few bytes of the larger kernels to fit one more program on a multiprocessor
        said["maxnreg"] = 255
    return said | {"launch_cooperative_grid": True} if cooperative else said


def kernel_precision(dtype: torch.dtype, precision: str, out_dtype: torch.dtype) -> str:
    """The kernels' word for how operands of a dtype enter a product; a 16-bit out_dtype is autocast's wish."""
    for low in (dtype, out_dtype):
        if low in _LOW:
            return _LOW[low]
    return {"highest": "tf32x3", "tf32": "tf32", "bf16": "bf16"}[precision]


def readout_fwd_tiles(hs: Sequence[Tensor], d: int, precision: str) -> Tiles:
    """Tiles of readout's forward kernel; its splits divide the layers."""
    rows, widths = hs[0].shape[0], [h.shape[1] for h in hs]
    tiles = _choose("readout_fwd", hs[0], precision, rows, len(widths), max(widths), d)
    if tiles.splits == 0:
        # half a chip of programs or more: no split, which would cost a pass over the partial sums
        blocks = math.ceil(rows / tiles.block_b) * math.ceil(d / tiles.block_m)
        tiles = replace(tiles, splits=max(1, programs_at_once(hs[0].device) // max(blocks, 1)))
    return replace(tiles, splits=min(tiles.splits, len(widths)))


def readout_bwd_tiles(hs: Sequence[Tensor], d: int, precision: str, with_readouts: bool = False) -> Tiles:
    """Tiles of readout's backward kernel; its splits divide the rows. with_readouts: every f_l has a gradient too."""
    rows, widths = hs[0].shape[0], [h.shape[1] for h in hs]
    tiles = _choose("readout_bwd", hs[0], precision, rows, len(widths), max(widths), d)
    if with_readouts:
        # two sums a tile: from half the rows at a time, so that the registers hold all
        narrower = tiles.block_n if tiles.block_m <= 32 else max(16, tiles.block_n // 2)
        tiles = replace(tiles, block_b=max(16, tiles.block_b // 2), block_n=narrower)
    count = sum(math.ceil(n / tiles.block_n) for n in widths) * math.ceil(d / tiles.block_m)
    return _with_row_splits(tiles, rows, count, hs[0].device)


def walk_tiles(op: str, x: Tensor, widths: Sequence[int], d: int, precision: str, scaled: bool = False) -> Tiles:
    """Tiles of a walk over the layers, op "network_fwd" or "network_bwd"; splits are its columns of programs."""
    rows = x.shape[0]
    tiles = _choose(op, x, precision, rows, len(widths), max(widths), d)
    if scaled and op == "network_fwd" and precision == "tf32x3" and capability(x.device) < 90:
        # the scales of all layers lie in registers, which the split of both operands fills there
        tiles = replace(tiles, block_m=max(16, tiles.block_m // 2))
    blocks = math.ceil(rows / tiles.block_b)
    # programs that wait for each other must all be on the chip at once
    fits = tiles.splits > 1 and blocks * tiles.splits <= programs_at_once(x.device)
    return tiles if fits else replace(tiles, splits=1)


def weight_tiles(x: Tensor, widths: Sequence[int], d: int, precision: str) -> Tiles:
    """Tiles of network's weight gradients; its splits divide the rows."""
    rows, fan_in = x.shape[0], (x.shape[1], *widths[:-1])
    tiles = _choose("network_bwd_weights", x, precision, rows, len(widths), max(widths), d)
    pairs = zip(widths, fan_in, strict=True)
    count = sum(math.ceil(n / tiles.block_m) * math.ceil(k / tiles.block_n) for n, k in pairs)
    return _with_row_splits(tiles, rows, count, x.device)


def default_tiles(
    kernel: str, precision: str, itemsize: int, rows: int, width: int, d: int, capability: int = 90
) -> Tiles:
    """Tiles where nothing is stored, from what the products need and from the compiled kernels' resources.

    None of them spills: bench/results/resources.json has registers and shared memory of each.
    """
    block_d = min(64, _power_of_two(d))
    exact, old, columns = precision in ("tf32x3", "ieee"), capability < 90, _power_of_two(width)
    if kernel == "readout_fwd":
        # bound by the bytes of h: a few hundred of each row, three tiles in flight
        if block_d <= 32 or not exact:
            return Tiles(64, block_d, 256 // itemsize, 0, 4 if block_d == 16 else 8, 3)
        return Tiles(32 if old else 64, block_d, 32, 0, 8, 3)
    if kernel == "readout_bwd":
        if block_d == 16 or not exact:
            return Tiles(64, block_d, 64, 0, 4 if block_d <= 32 else 8, 2)
        if block_d == 32:
            return Tiles(32, block_d, 64, 0, 4, 2)
        return Tiles(32, block_d, 32 if old else 64, 0, 8, 2)
    if kernel == "network_bwd_weights":
        return Tiles(32 if exact else 64, 64, 64, 0, 4, 3)
    # the walks: as many columns of a layer at once as the registers hold; few rows where the batch is small
    back, crowded = kernel == "network_bwd", exact and block_d > 32
    depth = 64 if itemsize == 2 and (back or rows > 16 * 128) else 32
    if rows <= 16 * 128:
        block_n = min(columns, (64 if back else 128) if crowded else 256)
        return Tiles(16, depth, block_n, 1, 4 if back and block_n < 256 and not crowded else 8, 3)
    if crowded and (back or old):
        return Tiles(32, depth, min(columns, 64), 1, 8, 3)
    if precision == "tf32" and block_d > 32 and old and not back:
        return Tiles(32, depth, min(columns, 128), 1, 8, 3)
    narrow = exact and (back or capability < 100)
    # float32 operands, rounded to TF32 or 16 bits on the way
    narrow |= back and itemsize == 4 and (precision == "tf32" or capability >= 100)
    return Tiles(64, depth, min(columns, 64 if narrow else 128), 1, 8, 3)


@functools.cache
def capability(device: torch.device) -> int:
    """Compute capability of a GPU, 90 for 9.0."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def programs_at_once(device: torch.device) -> int:
    """Multiprocessors of a GPU: as many programs surely run at the same time."""
    if device.type != "cuda":
        return _WITHOUT_GPU
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _choose(kernel: str, like: Tensor, precision: str, rows: int, layers: int, width: int, d: int) -> Tiles:
    sizes = {"rows": rows, "layers": layers, "width": width, "d": d}
    best, nearest = None, math.inf
    for entry in stored(like.device).get(kernel, ()):
        if entry["precision"] != precision or entry["itemsize"] != like.element_size():
            continue
        apart = [abs(math.log2(max(sizes[name], 1) / entry[name])) for name in sizes]
        if max(apart) <= math.log2(_REACH) and sum(apart) < nearest:
            best, nearest = entry["tiles"], sum(apart)
    if best is not None:
        return Tiles(**best)
    return default_tiles(kernel, precision, like.element_size(), rows, width, d, capability(like.device))


@functools.cache
def stored(device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """What bench/tune.py found on this kind of GPU: for each kernel a list of shapes with their tiles."""
    if device.type != "cuda":
        return {}
    path = STORED / f"sm_{capability(device)}.json"
    if not path.exists():
        return {}
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["kernels"]
    return found


def _with_row_splits(tiles: Tiles, rows: int, count: int, device: torch.device) -> Tiles:
    """Fill the chip twice, so that its programs end at about the same time, but leave each some blocks of rows."""
    if tiles.splits:
        return tiles
    most = max(1, rows // (4 * tiles.block_b))
    return replace(tiles, splits=max(1, min(most, 2 * programs_at_once(device) // max(count, 1))))


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())
