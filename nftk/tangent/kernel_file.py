"""Kernels in one safetensors file: the blocks as they lie in memory, and what they are in the header."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nftk._checks import check_choice, check_device
from nftk._files import replacing
from nftk.ops.tangent_gram_torch import as_blocks, as_memory
from nftk.tangent.layer_kernels import REDUCTIONS, SHAPES, LayerKernels

_OP = "LayerKernels"
_KEY, _TENSOR = "nftk", "kernels"


def save(kernels: LayerKernels, path: str | Path) -> None:
    """Do the work of ``LayerKernels.save``."""
    if Path(path).is_dir():
        raise ValueError(f"nftk.{_OP}.save: {path} must be a file, got a folder")
    memory = as_memory(kernels.reduction, kernels.blocks.detach()).cpu().contiguous()
    header = describe(kernels.names, kernels.reduction, kernels.normalization, kernels.symmetric)
    with replacing(path) as temporary:
        try:
            save_file({_TENSOR: memory}, str(temporary), metadata={_KEY: header})
        except SafetensorError as error:
            # replacing puts the path in the place of the temporary file's
            raise OSError(str(error)) from error


def load(path: str | Path, device: torch.device | str) -> LayerKernels:
    """Do the work of ``LayerKernels.load``."""
    place = check_device(f"{_OP}.load", device)
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "none there"
        raise ValueError(f"nftk.{_OP}.load: {path} must be a file, got {found}")
    try:
        with safe_open(str(path), framework="pt") as file:
            told = _told((file.metadata() or {}).get(_KEY, ""))
            check_choice(_OP, "reduction", told["reduction"], REDUCTIONS)
            memory = file.get_tensor(_TENSOR)
        if memory.ndim != len(SHAPES[told["reduction"]]):
            raise ValueError(
                f"blocks must have {len(SHAPES[told['reduction']])} dimensions where reduction is "
                f"{told['reduction']!r}, got {memory.ndim}"
            )
        kernels = LayerKernels(as_blocks(told["reduction"], memory), **told)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"nftk.{_OP}.load: {path} must be a whole safetensors file of kernels, got {error}") from error
    # RuntimeError also of a header nested too deep
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"nftk.{_OP}: ")
        raise ValueError(f"nftk.{_OP}.load: {path} must hold kernels that nftk wrote, got {reason}") from error
    return kernels.to(place)


def describe(names: tuple[str, ...], reduction: str, normalization: str | None, symmetric: bool) -> str:
    """The header's text."""
    told = {
        "names": list(names), "reduction": reduction, "normalization": normalization, "symmetric": symmetric,
    }  # fmt: skip
    return json.dumps({"kernel": told})


def _told(header: str) -> dict[str, Any]:
    """What :func:`describe` was told."""
    found = json.loads(header) if header else None
    kernel = found.get("kernel") if isinstance(found, dict) else None
    if not isinstance(kernel, dict):
        raise ValueError("no header that describes any")
    missing = [name for name in ("names", "reduction", "normalization", "symmetric") if name not in kernel]
    if missing:
        raise ValueError(f"no {missing[0]!r} in its header")
    return {name: kernel[name] for name in ("names", "reduction", "normalization", "symmetric")}
