"""Projected tangents in a folder: two mapped arrays, and a header that says what they are and how far they go."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

from nftk._files import write_text

_HEADER, _KEY = "header.json", "projected tangents"
ARRAYS = ("features", "own")
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
# seconds between two notes of what is done: each waits for the disk
_PATIENCE = 2.0


class FeatureFile:
    """A folder that is being filled, example by example.

    Args:
        op: Name for messages.
        folder: As :func:`held` leaves it.
        settings: What the numbers are, ready for JSON.
        identity: Checksum of what else they depend on.
        shapes: Of the arrays, (L, n, ...).
        dtype: Of the arrays.
        at_once: Examples a step, where nothing was begun; else what was begun with stays.
    """

    def __init__(
        self,
        op: str,
        folder: Path,
        settings: dict[str, Any],
        identity: str,
        shapes: tuple[tuple[int, ...], ...],
        dtype: torch.dtype,
        at_once: int,
    ) -> None:
        self.folder = folder
        begun = read_header(folder)
        if begun is None and any(folder.iterdir()):
            raise ValueError(f"nftk.{op}: out must be a new or empty folder, or one that was begun, got {folder}")
        if begun is not None:
            for name, value in settings.items():
                if begun["settings"].get(name) != value:
                    raise ValueError(
                        f"nftk.{op}: {folder} must be finished with the settings it was begun with, {name} "
                        f"{begun['settings'].get(name)}, got {value}"
                    )
            if begun["identity"] != identity:
                raise ValueError(
                    f"nftk.{op}: {folder} must be finished with the network and inputs it was begun with, got others"
                )
        self._header = begun or {"settings": settings, "identity": identity, "at_once": at_once, "done": 0}
        if begun is None:
            for name, shape in zip(ARRAYS, shapes, strict=True):
                _create(op, _path(folder, name), shape, dtype)
            self._write()
        self._arrays = [np.load(_path(folder, name), mmap_mode="r+") for name in ARRAYS]
        self._last = time.monotonic()

    @property
    def at_once(self) -> int:
        """Examples a step."""
        return int(self._header["at_once"])

    @property
    def done(self) -> int:
        """Examples that have reached the disk."""
        return int(self._header["done"])

    def tensors(self) -> list[Tensor]:
        """The arrays, to be written into."""
        return [torch.from_numpy(array) for array in self._arrays]

    def note(self, done: int, *, last: bool) -> None:
        """Write down that so many examples are done, after they have reached the disk; now and then, or at the last."""
        if not last and time.monotonic() - self._last < _PATIENCE:
            return
        for array in self._arrays:
            array.flush()
        self._header["done"] = done
        self._write()
        self._last = time.monotonic()

    def _write(self) -> None:
        write_text(self.folder / _HEADER, json.dumps({_KEY: self._header}, indent=1) + "\n")


@contextlib.contextmanager
def held(op: str, folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, and held against other processes where folders can be locked."""
    if not folder.parent.is_dir() or folder.exists() and not folder.is_dir():
        raise ValueError(f"nftk.{op}: out must be a folder in one that exists, got {folder}")
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"nftk.{op}: {folder} must be free, got another process that writes it") from None
        yield
    finally:
        if handle is not None:
            os.close(handle)


def read_header(folder: Path) -> dict[str, Any] | None:
    """What the folder says of itself; None where it says nothing."""
    try:
        found = json.loads((folder / _HEADER).read_text(encoding="utf-8"))[_KEY]
        whole = isinstance(found["settings"], dict) and isinstance(found["done"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def read(folder: Path) -> list[Tensor]:
    """The arrays, mapped: their pages are read when they are used, and changes stay in memory."""
    return [torch.from_numpy(np.load(_path(folder, name), mmap_mode="c")) for name in ARRAYS]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _create(op: str, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    array = np.lib.format.open_memmap(path, "w+", _DTYPES[dtype], shape)
    size = path.stat().st_size
    del array
    with path.open("r+b") as file:
        try:
            # a disk that fills up while a mapped file is written kills the process
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                path.unlink()
                raise ValueError(f"nftk.{op}: {path.parent} must have room for {size} bytes, got less") from None
