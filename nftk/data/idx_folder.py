"""A folder with the four idx files of MNIST and of the data sets that followed its form."""

import os
from pathlib import Path

import numpy as np

from nftk.data.arrays import Source, to_split
from nftk.data.errors import DataError, sentence
from nftk.data.idx import read_idx
from nftk.data.split import DataSplit

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_idx_folder(folder: str | os.PathLike[str], *, name: str | None = None) -> DataSplit:
    """Images and labels of a folder with the four idx files.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``, each with or
    without ``.gz``, each also in the spelling ``train-images.idx3-ubyte``; the plain file wins over the compressed.

    Args:
        folder: The folder.
        name: Name of the result; the folder as given by default.

    Returns:
        Images flattened to rows, bytes divided by 255 and other types as they are; 1 + the largest training label
        classes.

    Raises:
        DataError: If a file is missing or cannot be used, counts or image sizes disagree, or a label is out of range.

    """
    files = find_idx_files(Path(folder))
    for file, path in files.items():
        if path is None:
            here = "the other files only" if any(files.values()) else "none of the four"
            raise DataError(sentence(folder, "folder", f"hold the idx file {file} (or {file}.gz)", here))
    sources = [_read(path, file) for file, path in files.items() if path]
    return to_split(*sources, name=os.fspath(folder) if name is None else name)


def find_idx_files(folder: Path) -> dict[str, Path | None]:
    """Return the path of each of the four files, None where the folder lacks it."""
    found: dict[str, Path | None] = {}
    for file in IDX_FILES:
        spellings = (file, file + ".gz", file.replace("-idx", ".idx"), file.replace("-idx", ".idx") + ".gz")
        # only files: archives of MNIST exist that unpack to a folder of this name with the file in it
        paths = (folder / spelling for spelling in spellings if os.path.isfile(folder / spelling))
        found[file] = next(paths, None)
    return found


def _read(path: Path, file: str) -> Source:
    values = read_idx(path)
    kind, dims = ("pixels", 3) if "images" in file else ("labels", 1)
    name = f"{'training' if file.startswith('train') else 'test'} {kind}"
    if values.ndim != dims:
        raise DataError(sentence(path, name, f"have {dims} dimension{'s' * (dims > 1)}", values.ndim))
    if kind == "pixels" and values.dtype == np.uint8:
        values = np.divide(values, 255, dtype=np.float32)
    return Source(values, path, name)
