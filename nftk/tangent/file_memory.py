"""A file of kernels that is there in full before its numbers are, to be filled in place."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

_DTYPES = {torch.float32: ("F32", np.float32), torch.float64: ("F64", np.float64)}


def create(path: Path, shape: tuple[int, ...], dtype: torch.dtype, header: str) -> None:
    """Write a safetensors file as ``LayerKernels.save`` does, with zeros for its numbers, and room for them."""
    beginning, size = _beginning(shape, dtype, header)
    with path.open("xb") as file:
        file.write(beginning)
        file.truncate(len(beginning) + size)
        try:
            # a disk that fills up while a mapped file is written kills the process
            os.posix_fallocate(file.fileno(), 0, len(beginning) + size)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def is_as_created(path: Path, shape: tuple[int, ...], dtype: torch.dtype, header: str) -> bool:
    """Whether a file is one that :func:`create` wrote with these arguments, whole but for its numbers."""
    beginning, size = _beginning(shape, dtype, header)
    if not path.is_file() or path.stat().st_size != len(beginning) + size:
        return False
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def open_memory(path: Path, shape: tuple[int, ...], dtype: torch.dtype, header: str) -> "np.memmap[Any, Any]":
    """The numbers of a file that :func:`create` wrote with these arguments, to be written into."""
    beginning, _ = _beginning(shape, dtype, header)
    return np.memmap(path, _DTYPES[dtype][1], "r+", offset=len(beginning), shape=shape)


def _beginning(shape: tuple[int, ...], dtype: torch.dtype, header: str) -> tuple[bytes, int]:
    """What comes before the numbers, and how many bytes these are."""
    code, number = _DTYPES[dtype]
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(number).itemsize
    entry: dict[str, Any] = {"dtype": code, "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {"nftk": header}, "kernels": entry}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, size
