"""The Large Movie Review Dataset: 50,000 reviews, each as the vector an encoder makes of its tokens."""

import hashlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nftk._optional import require
from nftk.data.bar import bar, spinner
from nftk.data.cache import Arrays, CachedArrays, cache_home, file_sha256
from nftk.data.encoders import Encoder, GPT2Encoder, LSAEncoder
from nftk.data.errors import DataError, reason, sentence
from nftk.data.reviews import read_reviews
from nftk.data.split import DataSplit
from nftk.data.tokens import Tokenizer, Tokens

REVIEWS = ("imdb_train.jsonl.gz", "imdb_test.jsonl.gz")
BPE = ("encoder.json", "vocab.bpe")
# texts that are tokenised at once
BATCH = 500
# what stands in a cache changes its meaning with this number
FORMAT = 1
TOKENS = ("ids_train", "offsets_train", "y_train", "ids_test", "offsets_test", "y_test", "duplicates", "vocabulary")
ROWS = ("x_train", "y_train", "x_test", "y_test", "duplicates")


def load_imdb(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    encoder: Literal["lsa", "gpt2"] | Encoder = "lsa",
    embeddings: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> DataSplit:
    """The Large Movie Review Dataset: 25,000 reviews for training and 25,000 for the test, one vector each.

    Four files are needed: imdb_train.jsonl.gz and imdb_test.jsonl.gz, with one JSON object a line that has a ``text``
    and a ``label``, 0 (negative) or 1; and encoder.json and vocab.bpe of GPT-2. The reviews are looked for in
    ``data_dir``, itself or its folder ``imdb``, the others beside them, in ``data_dir``, or in a folder ``gpt2`` there;
    without ``data_dir``, in the folder that the environment variable ``NFTK_DATA`` names, then in ``nftk`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``. Nothing is downloaded.

    Texts are encoded as they are, line breaks of HTML included. Tokens and vectors are cached under a name that
    depends on the files' sha256, the encoder, its settings and the versions of the libraries; files of the cache may
    be removed at any time.

    Args:
        data_dir: Folder with the files. When it is given, no other place is tried.
        encoder: ``"lsa"``, latent semantic analysis of the same tokens, fit on the training reviews only; ``"gpt2"``,
            the mean of the tokens' embeddings in GPT-2 small, as in the paper; or an object like ``LSAEncoder``.
        embeddings: File with GPT-2's embeddings, see ``GPT2Encoder``. None takes gpt2/model.safetensors beside the
            token files, else asks the package transformers.
        cache_dir: Folder of the cache; default ``nftk/imdb`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        progress: Show what is being done, if standard error is a terminal.

    Returns:
        768 features a review, two classes; ``test_duplicates`` has the test reviews whose very text is a training
        review too. The same bits each time on one machine with one number of threads.

    Raises:
        DataError: If a file is missing, a line of it is malformed, or an encoder returns what are no vectors.
        ImportError: If tokenizers, scipy or scikit-learn is not installed.

    References:
        A. L. Maas, R. E. Daly, P. T. Pham, D. Huang, A. Y. Ng, C. Potts, "Learning Word Vectors for Sentiment
        Analysis", ACL-HLT 2011, pp. 142-150.

    """
    files = _find(data_dir)
    chosen = _encoder(encoder, embeddings, files["encoder.json"].parent)
    folder = cache_home() / "imdb" if cache_dir is None else Path(cache_dir)
    shown = progress and sys.stderr.isatty()
    inputs = _inputs(files)
    rows_cache = CachedArrays(folder, "rows", inputs | {"encoder": chosen.name, "settings": chosen.settings()})
    rows = rows_cache.read(ROWS)
    if rows is None:
        tokens_cache = CachedArrays(folder, "tokens", inputs)
        tokens = tokens_cache.read(TOKENS)
        if tokens is None:
            tokens = _tokenise(files, shown=shown)
            tokens_cache.write(tokens)
        with spinner(f"encoding the reviews by {chosen.name}", shown=shown):
            rows = _encode(tokens, chosen)
        rows_cache.write(rows)
    x_train, y_train, x_test, y_test, duplicates = (torch.from_numpy(rows[name]) for name in ROWS)
    return DataSplit(
        *(x_train, y_train, x_test, y_test),
        class_names=("negative", "positive"),
        name="imdb" if chosen.name == "lsa" else f"imdb-{chosen.name}",
        test_duplicates=duplicates,
    )


def _find(data_dir: str | os.PathLike[str] | None) -> dict[str, Path]:
    """Return the path of each of the four files."""
    if data_dir is not None:
        tops = [Path(data_dir)]
    else:
        # an empty variable is one that is not set
        tops = [Path(os.environ["NFTK_DATA"])] if os.environ.get("NFTK_DATA") else []
        tops.append(cache_home())
    missing = ""
    for top in map(Path, map(os.path.abspath, tops)):
        found = _files((top, top / "imdb"), REVIEWS)
        if found:
            beside = found[REVIEWS[0]].parent
            found |= _files((beside, beside / "gpt2", top, top / "gpt2", top.parent / "gpt2"), BPE)
        if len(found) == 4:
            return found
        missing = missing or (BPE[0] if found else REVIEWS[0])
    rule = (
        f"be in a folder that --data-dir or NFTK_DATA names: {' and '.join(REVIEWS)} in it or in its folder imdb, "
        f"GPT-2's {' and '.join(BPE)} in it or in its folder gpt2"
    )
    raise DataError(sentence("imdb" if data_dir is None else data_dir, "the reviews", rule, f"no {missing}"))


def _files(folders: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """Return the paths of the files in the first folder that has them all, or nothing."""
    for folder in folders:
        paths = {name: folder / name for name in names}
        if all(map(os.path.isfile, paths.values())):
            return paths
    return {}


def _encoder(encoder: object, embeddings: str | os.PathLike[str] | None, folder: Path) -> Encoder:
    if embeddings is not None and encoder != "gpt2":
        raise DataError(sentence("imdb", "embeddings", "go with the encoder 'gpt2'", f"encoder {encoder!r:.60}"))
    if encoder == "lsa":
        return LSAEncoder()
    if encoder == "gpt2":
        beside = folder / "model.safetensors"
        return GPT2Encoder(beside if embeddings is None and beside.is_file() else embeddings)
    if not isinstance(encoder, Encoder):
        rule = "be 'lsa', 'gpt2' or an object with name, settings, fit and transform"
        raise DataError(sentence("imdb", "encoder", rule, f"{encoder!r:.60}"))
    return encoder


def _inputs(files: Mapping[str, Path]) -> dict[str, object]:
    """What tokens depend on."""
    sums: dict[str, object] = {}
    for name, path in files.items():
        try:
            sums[name] = file_sha256(path)
        except OSError as error:
            raise DataError(sentence(path, "file", "be readable", reason(error))) from error
    tokenizers = require("tokenizers", purpose="the data set imdb", extra="text")
    return {"format": FORMAT, "tokenizers": tokenizers.__version__, **sums}


def _tokenise(files: Mapping[str, Path], *, shown: bool) -> Arrays:
    tokenizer = Tokenizer(files["encoder.json"], files["vocab.bpe"])
    arrays = {"vocabulary": np.array(tokenizer.size)}
    digests: dict[str, list[bytes]] = {}
    for part, name in zip(("train", "test"), REVIEWS, strict=True):
        pieces, labels, digests[part] = [], [], []
        with bar(name, files[name].stat().st_size, shown=shown) as advance:
            reviews = read_reviews(files[name], advance)
            while batch := list(itertools.islice(reviews, BATCH)):
                texts = [text for text, _ in batch]
                pieces += tokenizer(texts)
                labels += [label for _, label in batch]
                # 16 bytes instead of the text: that two texts share them by chance is out of the question
                digests[part] += [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        arrays[f"ids_{part}"] = np.concatenate(pieces)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        arrays[f"y_{part}"] = np.array(labels, np.int64)
    known = set(digests["train"])
    arrays["duplicates"] = np.array([i for i, digest in enumerate(digests["test"]) if digest in known], np.int64)
    return arrays


def _encode(tokens: Arrays, encoder: Encoder) -> Arrays:
    rows = {name: tokens[name] for name in ROWS if name in tokens}
    vocabulary = int(tokens["vocabulary"])
    for part in ("train", "test"):
        texts = Tokens(tokens[f"ids_{part}"], tokens[f"offsets_{part}"], vocabulary)
        if part == "train":
            encoder.fit(texts)
        x = np.asarray(encoder.transform(texts))
        if x.dtype != np.float32 or x.ndim != 2 or len(x) != len(texts):
            rule = f"return float32 of shape [{len(texts)}, m] from transform"
            raise DataError(sentence("imdb", f"encoder {encoder.name}", rule, f"{x.dtype} of shape {list(x.shape)}"))
        rows[f"x_{part}"] = x
    return rows
