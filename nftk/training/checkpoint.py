"""The whole state of a run in one file, written whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from nftk._files import replacing

_FORMAT = 1


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write the state of a run; a kill at any moment leaves the old file or the new one."""
    with replacing(path) as temporary:
        torch.save({"nftk_checkpoint": _FORMAT, **state}, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; only tensors and plain values are ever unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # what damaged bytes raise depends on where the damage is: struct.error, UnpicklingError, EOFError, IndexError, ...
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # of a file that may not be read nothing says that it is damaged
        readable = not (isinstance(error, OSError) and error.errno)
        remedy = "; if it was cut off or damaged, remove it, and the run starts anew" if readable else ""
        raise ValueError(f"nftk.fit: {path} must be a whole checkpoint, got {reason}{remedy}") from error
    if not isinstance(state, dict) or state.get("nftk_checkpoint") != _FORMAT:
        raise ValueError(f"nftk.fit: {path} must be a checkpoint of nftk.fit, format {_FORMAT}, got something else")
    return state


def check_settings(path: str | Path, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError, naming the setting, where a run would be continued with other settings than it had."""
    for name in now:
        if stored.get(name) != now[name]:
            raise ValueError(
                f"nftk.fit: {name} must be {stored.get(name)!r} to continue {path}, got {now[name]!r}; "
                "without resume=True and at another path a new run starts"
            )
