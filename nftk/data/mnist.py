"""MNIST: found in a folder, or downloaded once from public mirrors and checked."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nftk.data.download import RemoteFile, download
from nftk.data.errors import DataError, sentence
from nftk.data.idx_folder import find_idx_files, load_idx_folder
from nftk.data.split import DataSplit

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# sizes and sums of the four original files
FILES = {
    "train-images-idx3-ubyte.gz": RemoteFile(
        9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": RemoteFile(28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": RemoteFile(
        1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": RemoteFile(4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
OFFLINE = "without a network, put the four idx files in a folder and name it in NFTK_DATA or with --data-dir"


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    files: Mapping[str, RemoteFile] = FILES,
    progress: bool = False,
) -> DataSplit:
    """The MNIST images of handwritten digits, 60,000 for training and 10,000 for the test.

    Looked for in ``data_dir``, itself or its folder ``mnist``; without ``data_dir``, likewise in the folder that the
    environment variable ``NFTK_DATA`` names; then in the cache, ``nftk/mnist`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``, to which the files are downloaded where they are missing or damaged. Files of the first two places
    are used as they are, those of the cache only with the right sha256.

    Args:
        data_dir: Folder with the files. When it is given, no other place is tried and nothing is downloaded.
        mirrors: Addresses to download from, see ``download_mnist``.
        files: The files of the mirrors, see ``download_mnist``.
        progress: Show a progress bar for a download, if standard error is a terminal.

    Returns:
        Pixels in 0..1, one image of 28 x 28 a row; ten classes.

    Raises:
        DataError: If ``data_dir`` lacks a file, a file is damaged, or no mirror could be reached.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
        Proc. IEEE 86(11), 1998.

    """
    if data_dir is not None:
        folder = _find(Path(data_dir))
        if folder is None:
            rule = "hold the four MNIST idx files, itself or in its folder mnist"
            missing = [file for file, path in find_idx_files(Path(data_dir)).items() if path is None]
            raise DataError(sentence(data_dir, "data folder", rule, f"no {missing[0]}"))
        return load_idx_folder(folder, name="mnist")
    # an empty variable is one that is not set
    folder = _find(Path(os.environ["NFTK_DATA"])) if os.environ.get("NFTK_DATA") else None
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(cache) / "nftk" / "mnist"
        download_mnist(folder, mirrors, files=files, progress=progress)
    return load_idx_folder(folder, name="mnist")


def download_mnist(
    folder: str | os.PathLike[str],
    mirrors: Sequence[str] = MIRRORS,
    *,
    files: Mapping[str, RemoteFile] = FILES,
    progress: bool = False,
) -> None:
    """Make a folder hold the four MNIST files with the right sha256.

    A file that is there and has the right sum is left alone; one with another sum is downloaded again and replaced.
    A file appears under its name only when it is whole and its sum agrees.

    Args:
        folder: Where the files go; made if it is missing.
        mirrors: Addresses that end in a slash, tried in turn for each file.
        files: Size and sha256 of each file, by name.
        progress: Show a progress bar, if standard error is a terminal.

    Raises:
        DataError: If a file could be had from no mirror, or the folder cannot be written.

    """
    for name, remote in files.items():
        try:
            download(Path(folder), name, remote, mirrors, progress=progress)
        except DataError as error:
            raise DataError(f"{error}; {OFFLINE}") from error


def _find(folder: Path) -> Path | None:
    for candidate in (folder, folder / "mnist"):
        if all(find_idx_files(candidate).values()):
            return candidate
    return None
