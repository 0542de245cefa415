"""Kernels in one safetensors file: the blocks as they lie in memory, and what they are in the header."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nftk._files import replacing
from nftk.ops.tangent_gram_torch import as_blocks, as_memory
from nftk.tangent.layer_kernels import LayerKernels

_OP = "LayerKernels"
_KEY, _TENSOR = "nftk", "kernels"
_DTYPES = {"float32": "F32", "float64": "F64"}


def save(kernels: LayerKernels, path: str | Path) -> None:
    """Do the work of ``LayerKernels.save``."""
    memory = as_memory(kernels.reduction, kernels.blocks.detach()).cpu().contiguous()
    header = describe(kernels.names, kernels.reduction, kernels.normalization, kernels.symmetric)
    with replacing(path) as temporary:
        save_file({_TENSOR: memory}, str(temporary), metadata={_KEY: header})


def load(path: str | Path, device: torch.device | str) -> LayerKernels:
    """Do the work of ``LayerKernels.load``."""
    if not Path(path).is_file():
        raise ValueError(f"nftk.{_OP}.load: {path} must be a file, got none there")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get(_KEY, ""))["kernel"]
            memory = file.get_tensor(_TENSOR)
        blocks = as_blocks(header["reduction"], memory)
        return LayerKernels(
            blocks, tuple(header["names"]), header["reduction"], header["normalization"], header["symmetric"]
        )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"nftk.{_OP}.load: {path} must be a whole safetensors file of kernels, got {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"nftk.{_OP}.load: {path} must hold kernels that nftk wrote, got {reason}") from error


def describe(names: tuple[str, ...], reduction: str, normalization: str | None, symmetric: bool) -> str:
    """The header's text."""
    told = {
        "names": list(names), "reduction": reduction, "normalization": normalization, "symmetric": symmetric,
    }  # fmt: skip
    return json.dumps({"kernel": told})


def create(path: Path, shape: tuple[int, ...], dtype: torch.dtype, header: str) -> None:
    """Write a file that is whole but for its numbers, which are zeros that take no room on the disk yet."""
    name = str(dtype).removeprefix("torch.")
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(name).itemsize
    entry: dict[str, Any] = {"dtype": _DTYPES[name], "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {_KEY: header}, _TENSOR: entry}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


def open_memory(path: Path) -> "np.memmap[Any, Any]":
    """The numbers of a file that :func:`create` wrote, to be written into."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[_TENSOR]
    name = next(name for name, code in _DTYPES.items() if code == entry["dtype"])
    return np.memmap(path, np.dtype(name), "r+", offset=8 + length, shape=tuple(entry["shape"]))
