"""Data sets in numpy's .npz archives."""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nftk.data.arrays import MAX_BYTES, Source, to_split
from nftk.data.errors import DataError, reason, sentence
from nftk.data.split import DataSplit

KEYS = ("x_train", "y_train", "x_test", "y_test")


def load_npz(path: str | os.PathLike[str], *, name: str | None = None) -> DataSplit:
    """Data set in an ``.npz`` archive with the arrays x_train, y_train, x_test and y_test.

    Nothing is ever unpickled: an object array is refused. Numbers are kept as they are, not divided by anything.

    Args:
        path: The archive. Inputs of more than two dimensions are flattened to rows, and ``[n, h, w]`` are images.
            Labels are integers from 0, or floats that are whole numbers. An optional array ``class_names`` of
            strings sets the number of classes, which is 1 + max(y_train) without it. Other arrays are left unread.
        name: Name of the result; the path as given by default.

    Returns:
        The checked data; ``standardize`` is ``"global"`` for images and ``"feature"`` for the rest.

    Raises:
        DataError: If the file is not a readable zip archive, an array is missing, damaged, of objects, not numeric,
            of wrong dimensions or not finite, counts disagree, or a label is out of range.

    """
    source, path = os.fspath(path), Path(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            stored = [member.removesuffix(".npy") for member in archive.namelist()]
            arrays = {key: _read(archive, path, key) for key in (*KEYS, "class_names") if key in stored}
    except DataError:
        raise
    except OSError as error:
        raise DataError(sentence(path, "file", "be readable", reason(error))) from error
    # beside BadZipFile, damaged directories raise what the code runs into: NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        raise DataError(sentence(path, "file", "be a whole .npz (zip) archive", reason(error))) from error
    for key in KEYS:
        if key not in arrays:
            raise DataError(sentence(path, "archive", f"have the array {key}", stored[:8] or "no array"))
    names = arrays.pop("class_names", np.empty(0, dtype="U1"))
    if names.dtype.kind != "U" or names.ndim != 1:
        found = f"dtype {names.dtype} and shape {list(names.shape)}"
        raise DataError(sentence(path, "class_names", "be a 1-D array of strings", found))
    sources = [Source(arrays[key], path, key) for key in KEYS]
    return to_split(*sources, name=source if name is None else name, class_names=names.tolist())


def _read(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray[Any, Any]:
    # numpy allocates what a header claims, so the claim is first held against the size that the archive lists
    try:
        info = archive.getinfo(key + ".npy")
        with archive.open(info) as member:
            shape, dtype = _read_header(member)
            claimed = math.prod(shape) * dtype.itemsize
            present = info.file_size - member.tell()
        if not dtype.hasobject and min(claimed, present) >= 0 and claimed == present <= MAX_BYTES:
            with archive.open(info) as member:
                array: np.ndarray[Any, Any] = np.lib.format.read_array(member, allow_pickle=False)
            return array
    # neither zipfile nor numpy's header parser says what it raises for damage
    except Exception as error:
        raise DataError(sentence(path, key, "be an intact array", reason(error))) from error
    if dtype.hasobject:
        raise DataError(sentence(path, key, "be an array of numbers", "an object array, which is never unpickled"))
    rule = f"hold the {claimed} bytes that its shape {list(shape)} claims, at most {MAX_BYTES}"
    raise DataError(sentence(path, key, rule, present))


def _read_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        # version 3.0, for fields with names in Unicode, ends in this function's error: such an array has no numbers
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return shape, dtype
