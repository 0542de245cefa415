"""Data sets: loaded, checked and standardised; every bad file ends in one sentence."""

from nftk.data.digits import load_digits
from nftk.data.download import RemoteFile
from nftk.data.encoders import Encoder, GPT2Encoder, LSAEncoder
from nftk.data.errors import DataError
from nftk.data.idx import read_idx
from nftk.data.idx_folder import load_idx_folder
from nftk.data.imdb import load_imdb
from nftk.data.load import load_data
from nftk.data.mnist import download_mnist, load_mnist
from nftk.data.npz import load_npz
from nftk.data.split import DataSplit
from nftk.data.standardize import Standardizer
from nftk.data.tokens import Tokenizer, Tokens

__all__ = [
    "DataError",
    "DataSplit",
    "Encoder",
    "GPT2Encoder",
    "LSAEncoder",
    "RemoteFile",
    "Standardizer",
    "Tokenizer",
    "Tokens",
    "download_mnist",
    "load_data",
    "load_digits",
    "load_idx_folder",
    "load_imdb",
    "load_mnist",
    "load_npz",
    "read_idx",
]
