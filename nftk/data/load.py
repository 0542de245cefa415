"""load_data: what ``--data`` of the command line means."""

import os

from nftk.data.digits import load_digits
from nftk.data.errors import DataError, sentence
from nftk.data.idx_folder import load_idx_folder
from nftk.data.imdb import load_imdb
from nftk.data.mnist import load_mnist
from nftk.data.npz import load_npz
from nftk.data.split import DataSplit

# what is a data set whatever folders there are
NAMES = ("digits", "mnist", "imdb", "imdb-gpt2")


def load_data(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
) -> DataSplit:
    """Data set of a name, a folder with the four idx files, or an ``.npz`` archive.

    Args:
        source: ``"digits"``, ``"mnist"``, ``"imdb"``, ``"imdb-gpt2"`` (the same reviews by the encoder of the paper,
            see ``load_imdb``), or a path. A name wins over a file or folder that is called the same: ``"mnist"`` is the
            data set, ``"./mnist"`` or ``Path("mnist")`` the folder.
        data_dir: Folder in which ``"mnist"`` and ``"imdb"`` are found; the other sources do without.
        progress: Show a progress bar for a download or for encoding, if standard error is a terminal.

    Returns:
        The checked data, not standardised.

    Raises:
        DataError: If source is no name and no path, or its files cannot be used.

    Example:
        >>> split = load_data("digits")
        >>> split.x_train.shape, split.standardize
        (torch.Size([1347, 64]), 'global')
    """
    if source == "digits":
        return load_digits()
    if source == "mnist":
        return load_mnist(data_dir, progress=progress)
    if source in ("imdb", "imdb-gpt2"):
        return load_imdb(data_dir, encoder="lsa" if source == "imdb" else "gpt2", progress=progress)
    # os.path, since pathlib's tests raise for a name that is too long
    if os.path.isdir(source):
        return load_idx_folder(source)
    if os.path.isfile(source):
        return load_npz(source)
    rule = "be digits, mnist, imdb, imdb-gpt2, a folder with the four idx files or an .npz file"
    raise DataError(sentence(source, "data", rule, "neither a name nor a path that exists"))
