"""One safetensors file for a network: its tensors, and its settings in the header. Nothing in it is ever executed."""

import json
import re
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


def save(model: Any, path: str | Path, metadata: dict[str, Any] | None) -> None:
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
    # cloned, so that tied weights are written twice: safetensors refuses shared memory
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    known = re.compile(r"hidden\.\d+\.(weight|bias)|readout_weight|omega|output_bias")
    strange = [name for name in tensors if not known.fullmatch(name)]
    if strange:
        raise ValueError(
            f"nftk.NFTKMLP.save: model must have no parameters but its own, got {strange[0]}; remove parametrizations "
            "first or keep state_dict()"
        )
    with replacing(path) as temporary:
        # one key: safetensors writes several in an order of its own, and the same network should be the same bytes
        header = json.dumps({"config": config, "metadata": metadata or {}})
        save_file(tensors, str(temporary), metadata={_KEY: header})


def load(cls: type[Network], path: str | Path, device: torch.device | str) -> Network:
    """Do the work of ``NFTKMLP.load``."""
    header, tensors = read(path, device)
    try:
        config = header["config"]
        constraint = constraints.from_config(config.pop("constraint"))
        dtype = tensors["omega"].dtype
        model = cls(**config, constraint=constraint, device="meta", dtype=dtype)
        model.load_state_dict(tensors, strict=True, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a network that nftk saved, got {reason}") from error
    return model.requires_grad_(True).eval()


def read(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the header (keys config, metadata) and the tensors of a file that :func:`save` wrote."""
    if not Path(path).is_file():
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a file, got none there")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            header = (file.metadata() or {}).get(_KEY)
            # cloned into memory of torch's own: where a tensor begins decides how a matrix product rounds
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"nftk.NFTKMLP.load: {path} must be a whole safetensors file, got {error}") from error
    try:
        found = json.loads(header or "")
        return {"config": found["config"], "metadata": found["metadata"]}, tensors
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"nftk.NFTKMLP.load: {path} must be a network that nftk saved, got a header without its settings"
        ) from error
