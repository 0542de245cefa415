"""A kernel computed straight into a file, which goes on where it was cut off."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

from nftk.tangent.chain import Chain
from nftk.tangent.file_memory import create, is_as_created, open_memory
from nftk.tangent.kernel_file import describe
from nftk.tangent.modules.network import Network
from nftk.tangent.plan import Plan, Tile
from nftk.tangent.request import Request
from nftk.tangent.source import Inputs
from nftk.tangent.sweep import Sweep

# seconds between two notes of what is done: each waits for the disk
_PATIENCE = 2.0
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Written:
    """What :func:`compute_to_file` left."""

    path: Path
    sha256: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    tiles: int
    tiles_before: int  # of them, found done


class OtherKernelError(ValueError):
    """A file that another computation has begun."""


def compute_to_file(
    network: Chain | Network,
    x1: Inputs,
    x2: Inputs | None,
    request: Request,
    path: Path,
    *,
    budget: int,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    op: str,
) -> Written:
    """Compute a kernel into a file of :meth:`LayerKernels.save`'s form.

    Beside it grow PATH.partial, the file itself but for its name, and PATH.partial.tiles, one line for each tile that
    has reached the disk. Killed at any moment, the same call goes on after the last of these lines.

    Args:
        network: The network; a chain without gradients.
        x1: First inputs.
        x2: Second inputs, or None.
        request: What is asked for.
        path: The file.
        budget: Bytes of memory.
        overwrite: Whether to replace the file, and to forget what was begun of another kernel.
        progress: Called with the pairs of examples done and all of them.
        op: Name for messages.

    Returns:
        What was written, with its checksum.

    Raises:
        OtherKernelError: If what was begun there is of another network, other inputs or other settings; if another
            process is at it.
        ValueError: If the file is there already, or its folder has no room.
    """
    path = path.resolve()
    partial, journal = (path.with_name(path.name + suffix) for suffix in (".partial", ".partial.tiles"))
    fresh = Sweep(network, x1, x2, request, budget=budget, op=op)
    identity = _identity(fresh)
    with _locked(journal) as notes:
        begun = _read(notes)
        if begun is not None and not partial.exists():
            # killed after the last step but one: the file has its name, only these notes were left
            begun = None
            notes.truncate(0)
        if path.exists() and not overwrite:
            raise ValueError(f"nftk.{op}: the file must not be there yet, got {path}")
        if begun is not None and begun[0] != identity:
            if not overwrite:
                raise OtherKernelError(
                    f"nftk: {path} must be finished with the network, inputs and settings it was begun with, got "
                    f"others; give them again, or remove what was begun, {partial}"
                )
            begun = None
        sweep = Sweep(network, x1, x2, request, budget=budget, op=op, plan=begun[1]) if begun else fresh
        header = describe(sweep.names, request.reduction, request.normalize, sweep.symmetric)
        if begun is None or not is_as_created(partial, sweep.memory_shape(), sweep.like.dtype, header):
            begun = None
            _begin(sweep, partial, notes, identity, header)
        done = begun[2] if begun else set()
        tiles = sweep.tiles()
        memory = open_memory(partial, sweep.memory_shape(), sweep.like.dtype, header)
        note = _Notes(memory, notes, progress)
        try:
            sweep.run(torch.from_numpy(memory), done, note)
        finally:
            note.flush()
        checksum = sha256(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
        journal.unlink()
    return Written(path, checksum, tuple(sweep.memory_shape()), sweep.names, len(tiles), len(done))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


class _Notes:
    """Writes down which tiles are done, after they have reached the disk."""

    def __init__(self, memory: Any, file: IO[str], progress: Callable[[int, int], None] | None) -> None:
        self.memory, self.file, self.progress = memory, file, progress
        self.waiting: list[Tile] = []
        self.last = time.monotonic()

    def __call__(self, tile: Tile, passed: int, total: int) -> None:
        self.waiting.append(tile)
        if time.monotonic() - self.last > _PATIENCE:
            self.flush()
        if self.progress is not None:
            self.progress(passed, total)

    def flush(self) -> None:
        self.memory.flush()
        for tile in self.waiting:
            self.file.write(json.dumps(dataclasses.astuple(tile)) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.waiting.clear()
        self.last = time.monotonic()


def _begin(sweep: Sweep, partial: Path, notes: IO[str], identity: str, header: str) -> None:
    notes.truncate(0)
    partial.unlink(missing_ok=True)
    try:
        create(partial, sweep.memory_shape(), sweep.like.dtype, header)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        size = sweep.like.element_size() * math.prod(sweep.memory_shape())
        raise ValueError(f"nftk: {partial.parent} must have room for {size} bytes, got {error.strerror}") from None
    notes.write(json.dumps({"identity": identity, "plan": dataclasses.asdict(sweep.plan)}) + "\n")
    notes.flush()
    os.fsync(notes.fileno())


def _read(notes: IO[str]) -> tuple[str, Plan, set[Tile]] | None:
    """Identity, plan and tiles; None where nothing was begun. A last line that was cut off does not count."""
    notes.seek(0)
    lines = notes.read().split("\n")[:-1]
    try:
        first = json.loads(lines[0])
        plan = first["plan"]
        groups = tuple((a, b) for a, b in plan.pop("groups"))
        tiles = {Tile(*((a, b) for a, b in json.loads(line))) for line in lines[1:]}
        found = str(first["identity"]), Plan(groups, **plan), tiles
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    # what a cut-off line has left must not run into the next one
    notes.seek(sum(len(line.encode()) + 1 for line in lines))
    notes.truncate()
    return found


def _identity(sweep: Sweep) -> str:
    """Checksum of everything that the numbers depend on, but rounding."""
    total = hashlib.sha256(json.dumps(dataclasses.asdict(sweep.request)).encode())

    def add(x: torch.Tensor) -> torch.Tensor:
        total.update(f"{tuple(x.shape)} {x.dtype}".encode())
        total.update(x.detach().cpu().contiguous().numpy().data)
        return x

    total.update(json.dumps(sweep.source.describe(add)).encode())
    for x in (sweep.x1, sweep.x2):
        for tensor in () if x is None else (x,) if isinstance(x, torch.Tensor) else x:
            add(tensor)
    return total.hexdigest()


@contextlib.contextmanager
def _locked(journal: Path) -> Iterator[IO[str]]:
    """The journal, open, and held against other processes."""
    if fcntl is None:
        raise NotImplementedError(
            "nftk: kernels must go into files where these can be locked (Linux, macOS), got neither"
        )
    if not journal.parent.is_dir():
        raise ValueError(f"nftk: {journal.parent} must be a folder that exists, got none")
    while True:
        file = journal.open("a+", encoding="utf-8", newline="\n")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OtherKernelError(
                f"nftk: {journal} must be free, got another process that writes this kernel"
            ) from None
        # one that has just finished may have removed the file that was opened here
        if journal.exists() and os.path.samestat(os.fstat(file.fileno()), journal.stat()):
            break
        file.close()
    with file:
        try:
            yield file
        finally:
            if journal.exists() and not journal.stat().st_size:
                # nothing was begun
                journal.unlink()
