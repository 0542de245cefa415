"""Arrays that took long to compute, kept in a folder under a name that their inputs determine."""

import hashlib
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nftk._files import replacing
from nftk.data.errors import reason, sentence

CHUNK = 1 << 20
# what numpy and zipfile raise for a file that is not theirs; an .npy in the archive's place is no context manager
READ_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, TypeError, AttributeError),
    *(zipfile.BadZipFile, zlib.error),
)
Arrays = dict[str, np.ndarray[Any, Any]]


def cache_home() -> Path:
    """The folder nftk in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "nftk"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class CachedArrays:
    """Named arrays of one computation, in one .npz file; its name holds a hash of the inputs, and it names them all.

    Args:
        folder: Where the file is; made when it is first needed.
        name: What the file's name begins with.
        inputs: All that the arrays depend on, fit for JSON.
    """

    def __init__(self, folder: Path, name: str, inputs: Mapping[str, object]) -> None:
        self.inputs = json.dumps(inputs, sort_keys=True)
        self.key = hashlib.sha256(self.inputs.encode()).hexdigest()[:16]
        self.path = folder / f"{name}-{self.key}.npz"

    def read(self, names: Sequence[str]) -> Arrays | None:
        """Return these arrays, or None where the file is missing, damaged or of other inputs."""
        try:
            # opened here, since np.load leaves a damaged file open
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                if str(archive["inputs"]) != self.inputs:
                    return None
                # each member is read to its end, where zipfile checks its CRC
                return {name: archive[name] for name in names}
        except READ_ERRORS:
            return None

    def write(self, arrays: Arrays) -> None:
        """Keep the arrays; where that cannot be, warn."""
        entries: dict[str, Any] = {"inputs": np.array(self.inputs), **arrays}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **entries)
        except (OSError, ValueError) as error:
            text = sentence(self.path.parent, "cache", "be writable, or the next load computes again", reason(error))
            warnings.warn(text, stacklevel=2)
