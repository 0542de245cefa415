"""Download of a file whose size and sha256 are known beforehand."""

import contextlib
import hashlib
import http.client
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nftk.data.bar import bar
from nftk.data.errors import DataError, reason, sentence

# seconds without a byte; a mirror that is reachable answers within one
TIMEOUT = 20
CHUNK = 1 << 16


class RemoteFile(NamedTuple):
    """What a file must be, wherever it comes from."""

    size: int
    sha256: str


def download(folder: Path, name: str, remote: RemoteFile, mirrors: Sequence[str], *, progress: bool = False) -> None:
    """Put the file in the folder unless it is there with the right sum; mirrors are tried in turn.

    Raises:
        DataError: If no mirror gave the file, or the folder cannot be written.

    """
    target = folder / name
    if _is_right(target, remote):
        return
    tried = []
    with _temporary(target) as file:
        for mirror in mirrors:
            try:
                with bar(name, remote.size, shown=progress and sys.stderr.isatty()) as advance:
                    wrong = _fetch(mirror + name, file, remote, advance)
                if wrong is None:
                    os.replace(file.name, target)
                    return
            except (OSError, http.client.HTTPException) as error:
                wrong = _why(error)
            tried.append(f"{mirror} ({wrong})")
    raise DataError(sentence(target, "file", "come from a mirror", "none of " + ", ".join(tried)))


def _is_right(path: Path, remote: RemoteFile) -> bool:
    try:
        return path.stat().st_size == remote.size and hashlib.sha256(path.read_bytes()).hexdigest() == remote.sha256
    except OSError:
        return False


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    # a new file beside the target, so that moving it there is one step; whatever happens, it is not left behind
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # of its own name, so that two downloads at once do not write into each other's file
        number, name = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".", suffix=".part")
    except OSError as error:
        raise DataError(sentence(target.parent, "folder", "be writable", reason(error))) from error
    try:
        os.close(number)
        with open(name, "wb") as file:
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _fetch(url: str, file: BinaryIO, remote: RemoteFile, advance: Callable[[int], None]) -> str | None:
    """Return what is wrong with what the address gives, or None and have it in the file."""
    file.seek(0)
    file.truncate()
    request = urllib.request.Request(url, headers={"User-Agent": "nftk"})
    total, digest = 0, hashlib.sha256()
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        # no further than the first chunk too many: a wrong address may answer without end
        while total <= remote.size and (chunk := response.read(CHUNK)):
            total += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    if total != remote.size:
        return f"{'more than' if total > remote.size else f'{total} of'} {remote.size} bytes"
    if digest.hexdigest() != remote.sha256:
        return f"sha256 {digest.hexdigest()[:12]}... where {remote.sha256[:12]}... is right"
    file.flush()
    return None


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        # it holds the connection open
        error.close()
        return f"HTTP status {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return reason(error.reason)
    return reason(error)
