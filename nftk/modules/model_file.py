"""One safetensors file for a network: its tensors, and its settings in the header. Nothing in it is ever executed."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nftk._files import replacing
from nftk.constraints import base as constraints

_KEY = "nftk"
Network = TypeVar("Network", bound=nn.Module)


def save(model: Any, path: str | Path, metadata: dict[str, str] | None) -> None:
    """Do the work of ``NFTKMLP.save``."""
    config = model.config()
    names = config["activation"] if isinstance(config["activation"], list) else [config["activation"]]
    if None in names:
        raise ValueError("nftk.NFTKMLP.save: activation must be a named one, got a callable; keep state_dict() instead")
    if model.constraint is not None and config["constraint"] is None:
        raise ValueError(
            f"nftk.NFTKMLP.save: constraint must be one of nftk.constraints, got {model.constraint!r}; "
            "keep state_dict() instead"
        )
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata={_KEY: json.dumps(config), **(metadata or {})})


def load(cls: type[Network], path: str | Path, device: torch.device | str) -> Network:
    """Do the work of ``NFTKMLP.load``."""
    metadata, tensors = read(path, device)
    try:
        config = json.loads(metadata[_KEY])
        constraint = constraints.from_config(config.pop("constraint"))
        dtype = tensors["omega"].dtype
        model = cls(**config, constraint=constraint, device="meta", dtype=dtype)
        model.load_state_dict(tensors, strict=True, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a network that nftk saved, got {reason}") from error
    return model.requires_grad_(True).eval()


def read(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the header's strings and the tensors of a file that :func:`save` wrote."""
    if not Path(path).is_file():
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a file, got none there")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            # cloned into memory of torch's own: where a tensor begins decides how a matrix product rounds
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a whole safetensors file, got {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a network that nftk saved, got no settings in its header")
    return metadata, tensors
