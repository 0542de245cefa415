"""Findings of one piece of an experiment, made once and read again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nftk._files import write_text


def kept(folder: Path, name: str, settings: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What make returns, from the folder's file of this name and these settings where it is there and whole."""
    path = folder / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:10]}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (FileNotFoundError, ValueError):
        # not there, or cut off by a full disk
        pass
    found = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found) + "\n")
    return found
