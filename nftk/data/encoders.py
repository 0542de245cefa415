"""Encoders: from the tokens of a text to one vector of numbers."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nftk._optional import require
from nftk.data.cache import READ_ERRORS, file_sha256
from nftk.data.errors import DataError, reason, sentence
from nftk.data.tokens import Tokens

WTE_NAMES = ("wte.weight", "transformer.wte.weight")
# texts whose ids are widened at a time
ROWS = 1024
LSA_PACKAGES = ("sklearn", "scipy", "numpy")


@runtime_checkable
class Encoder(Protocol):
    """What ``load_imdb`` asks of an encoder.

    ``name`` names it in files of the cache; ``settings`` returns all that its vectors depend on beside the tokens, fit
    for JSON; ``fit`` learns from the training tokens; ``transform`` returns float32 of shape ``[n, m]``.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def settings(self) -> Mapping[str, object]: ...  # noqa: D102

    def fit(self, tokens: Tokens) -> object: ...  # noqa: D102

    def transform(self, tokens: Tokens) -> np.ndarray[Any, Any]: ...  # noqa: D102


class LSAEncoder:
    """Latent semantic analysis: TF-IDF over tokens, then the leading singular directions of the training texts.

    The term frequency is 1 + log(count), a row has length 1, and the decomposition is randomised with a fixed seed:
    one machine with one number of threads gives the same bits each time.

    Args:
        features: Length of a vector, fewer where there are fewer training texts.

    References:
        S. Deerwester et al., "Indexing by latent semantic analysis", J. Am. Soc. Inf. Sci. 41(6), 1990.

    """

    name = "lsa"
    seed = 0

    def __init__(self, features: int = 768) -> None:
        self.features = features

    def settings(self) -> dict[str, object]:
        """All that the vectors depend on beside the tokens."""
        versions = {name: require(name, purpose="the encoder lsa", extra="text").__version__ for name in LSA_PACKAGES}
        return {"features": self.features, "seed": self.seed, **versions}

    def fit(self, tokens: Tokens) -> "LSAEncoder":
        """Learn document frequencies and directions from training texts."""
        text = require("sklearn.feature_extraction.text", purpose="the encoder lsa", extra="text")
        decomposition = require("sklearn.decomposition", purpose="the encoder lsa", extra="text")
        counts = tokens.counts()
        self._tfidf = text.TfidfTransformer(sublinear_tf=True).fit(counts)
        features = min(self.features, tokens.vocabulary)
        self._svd = decomposition.TruncatedSVD(features, n_iter=5, random_state=self.seed)
        self._svd.fit(self._tfidf.transform(counts))
        return self

    def transform(self, tokens: Tokens) -> np.ndarray[Any, Any]:
        """Vectors of texts, float32 of shape ``[n, m]``."""
        return np.asarray(self._svd.transform(self._tfidf.transform(tokens.counts())), np.float32)


class GPT2Encoder:
    """The mean over a text's tokens of GPT-2's token embeddings.

    Args:
        embeddings: The embedding matrix, ``[50257, 768]`` for GPT-2 small: a ``.safetensors`` file with ``wte.weight``
            or ``transformer.wte.weight`` (model.safetensors of GPT-2 is one), an ``.npz`` with one of these or with
            one array only, or an ``.npy``. None asks the package transformers for it, which needs a network once.

    Raises:
        DataError: If the file is missing or holds no such matrix, or transformers cannot give it.

    """

    name = "gpt2"

    def __init__(self, embeddings: str | os.PathLike[str] | None = None) -> None:
        self.path = None if embeddings is None else Path(embeddings)
        self._matrix: Tensor | None = None
        if self.path is not None and not self.path.is_file():
            raise DataError(sentence(self.path, "embeddings", "be a .safetensors, .npz or .npy file", "no file"))

    def settings(self) -> dict[str, object]:
        """All that the vectors depend on beside the tokens."""
        return {"embeddings": "gpt2 of transformers" if self.path is None else file_sha256(self.path)}

    def fit(self, tokens: Tokens) -> "GPT2Encoder":
        """Read the matrix; nothing is learned."""
        matrix = _from_transformers() if self.path is None else _read_matrix(self.path)
        where = self.path or "transformers"
        if matrix.ndim != 2 or len(matrix) < tokens.vocabulary or not matrix.shape[1]:
            rule = f"be a matrix with {tokens.vocabulary} rows, one for each token"
            raise DataError(sentence(where, "embeddings", rule, f"shape {list(matrix.shape)}"))
        self._matrix = matrix.float()
        if not torch.isfinite(self._matrix).all():
            raise DataError(sentence(where, "embeddings", "be finite in float32", "a NaN or an infinity"))
        return self

    def transform(self, tokens: Tokens) -> np.ndarray[Any, Any]:
        """Vectors of texts, float32 of shape ``[n, m]``; sums run in float32."""
        if self._matrix is None:
            self.fit(tokens)
        assert self._matrix is not None
        out = np.empty((len(tokens), self._matrix.shape[1]), np.float32)
        for first in range(0, len(tokens), ROWS):
            offsets = tokens.offsets[first : first + ROWS + 1]
            ids = torch.from_numpy(tokens.ids[offsets[0] : offsets[-1]].astype(np.int64))
            starts = torch.from_numpy(offsets[:-1] - offsets[0])
            means = torch.nn.functional.embedding_bag(ids, self._matrix, starts, mode="mean")
            out[first : first + ROWS] = means.numpy()
        return out


def _read_matrix(path: Path) -> Tensor:
    try:
        names, matrix = _open_safetensors(path) if path.suffix == ".safetensors" else _open_numpy(path)
    except (SafetensorError, *READ_ERRORS) as error:
        raise DataError(sentence(path, "embeddings", "be a .safetensors, .npz or .npy file", reason(error))) from error
    if matrix is None:
        rule = f"hold the matrix {' or '.join(WTE_NAMES)}"
        raise DataError(sentence(path, "embeddings", rule, ", ".join(names[:3]) or "no array"))
    if not matrix.is_floating_point():
        raise DataError(sentence(path, "embeddings", "be floating-point numbers", matrix.dtype))
    return matrix


def _open_safetensors(path: Path) -> tuple[list[str], Tensor | None]:
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
        found = next((name for name in WTE_NAMES if name in names), None)
        return names, None if found is None else file.get_tensor(found)


def _open_numpy(path: Path) -> tuple[list[str], Tensor | None]:
    # opened here, since np.load leaves a damaged file open
    with open(path, "rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [], torch.from_numpy(loaded)
        names = sorted(loaded)
        found = next((name for name in WTE_NAMES if name in names), names[0] if len(names) == 1 else None)
        return names, None if found is None else torch.from_numpy(loaded[found])


def _from_transformers() -> Tensor:
    try:
        transformers = importlib.import_module("transformers")
        matrix: Tensor = transformers.GPT2Model.from_pretrained("gpt2").wte.weight.detach()
        return matrix
    except (ImportError, OSError) as error:
        rule = (
            "come from a file that embeddings names (or gpt2/model.safetensors in the data folder), or from the "
            "package transformers with a network (pip install transformers)"
        )
        raise DataError(sentence("gpt2", "embeddings", rule, reason(error))) from error
