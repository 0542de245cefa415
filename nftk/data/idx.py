"""The idx format of the original MNIST files: a magic number, the dimensions, the items, all big-endian."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nftk.data.arrays import MAX_BYTES
from nftk.data.errors import DataError, reason, sentence

GZIP_MAGIC = b"\x1f\x8b"
# type codes of the third byte, from the description of the format on the MNIST page
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# the most that every supported numpy can hold
MAX_DIMENSIONS = 32
CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """Array in an idx file, plain or compressed with gzip.

    Compression is told by the content, whatever the name. A header is not believed: memory is taken as the data
    arrive, and never more than the header claims and one byte.

    Args:
        path: The file.

    Returns:
        The array, writable, in the machine's byte order: uint8, int8, int16, int32, float32 or float64.

    Raises:
        DataError: If the file cannot be read, its gzip stream is truncated or corrupt, its magic, type code or
            dimensions are wrong, it claims more than 4 GiB, or it holds fewer or more bytes than it claims.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(Path(folder, "labels"))
        array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if not compressed:
                return _read(file, path)
            with gzip.GzipFile(fileobj=file) as stream:
                return _read(stream, path)
    except EOFError as error:
        raise DataError(sentence(path, "file", "be a whole gzip stream", "a truncated one")) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(sentence(path, "file", "be an intact gzip stream", reason(error))) from error
    except OSError as error:
        raise DataError(sentence(path, "file", "be readable", reason(error))) from error


def _read(stream: BinaryIO | gzip.GzipFile, path: Path) -> np.ndarray[Any, Any]:
    magic = _take(stream, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        found = magic.hex(" ") or "an empty file"
        raise DataError(sentence(path, "idx magic", "be 00 00, a type code and a number of dimensions", found))
    if magic[2] not in DTYPES:
        codes = ", ".join(f"{code:02x}" for code in DTYPES)
        raise DataError(sentence(path, "idx type code", f"be one of {codes}", f"{magic[2]:02x}"))
    if not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise DataError(sentence(path, "idx file", f"have 1 to {MAX_DIMENSIONS} dimensions", magic[3]))
    header = _take(stream, 4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(sentence(path, "idx header", f"have {4 + 4 * magic[3]} bytes", 4 + len(header)))

    dtype = np.dtype(DTYPES[magic[2]])
    shape = np.frombuffer(header, dtype=">u4").tolist()
    # python integers: the product of a lying header passes 2^64
    size = math.prod(shape) * dtype.itemsize
    listing = " x ".join(map(str, shape))
    if not 0 < size <= MAX_BYTES:
        rule = f"claim 1 to {MAX_BYTES} bytes of data"
        raise DataError(sentence(path, "idx header", rule, f"{listing} items of {dtype.itemsize}"))
    # the byte too many shows that there is more, and makes gzip check its sum at the end of the stream
    data = _take(stream, size + 1)
    if len(data) != size:
        held = "more" if len(data) > size else len(data)
        rule = f"hold {size} bytes of data ({listing} items of {dtype.itemsize})"
        raise DataError(sentence(path, "idx file", rule, held))
    array: np.ndarray[Any, Any] = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _take(stream: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """Return the next size bytes, or what there is; read(size) itself would allocate all of size first."""
    data = bytearray()
    while chunk := stream.read(min(size - len(data), CHUNK)):
        data += chunk
    return data
