"""Writing files whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside path; moved onto path when the block ends, removed if it raises."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"nftk: {path} must be in a folder that exists, got no {path.parent}")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except (OSError, RuntimeError) as error:
            # the names of temporary files are nobody's business, and torch gives none at all
            reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
            raise OSError(getattr(error, "errno", None) or errno.EIO, reason, str(path)) from error
        # mkstemp makes files that only their owner may read; give them what open() would have
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
