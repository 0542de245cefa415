"""GPT-2's byte-pair encoding, and texts as the numbers it gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nftk._optional import require
from nftk.data.errors import DataError, reason, sentence


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as token ids, one after the other.

    Args:
        ids: Ids of all texts, shape ``[t]``, uint16.
        offsets: Text i is ``ids[offsets[i]:offsets[i + 1]]``, shape ``[n + 1]``, int64; no text is empty.
        vocabulary: Number of ids there are, 50,257 for GPT-2.
    """

    ids: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    vocabulary: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Any:
        """How often each id occurs in each text, a float32 ``scipy.sparse.csr_matrix`` of ``[n, vocabulary]``."""
        sparse = require("scipy.sparse", purpose="counting tokens", extra="text")
        values = np.ones(len(self.ids), np.float32)
        shape = (len(self), self.vocabulary)
        counts = sparse.csr_matrix((values, self.ids.astype(np.int32), self.offsets), shape=shape)
        counts.sum_duplicates()
        return counts


class Tokenizer:
    """GPT-2's byte-pair encoding, from its two files.

    A text is taken as it is: no prefix space, no special tokens, so that ``<|endoftext|>`` in a text is six tokens.

    Args:
        vocabulary: The file encoder.json.
        merges: The file vocab.bpe.

    Raises:
        DataError: If a file is not what it should be, or there are more than 65,536 tokens.
        ImportError: If tokenizers is not installed.

    """

    def __init__(self, vocabulary: Path, merges: Path) -> None:
        tokenizers = require("tokenizers", purpose="GPT-2's byte-pair encoding", extra="text")
        try:
            self._tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
        # tokenizers raises bare Exceptions
        except Exception as error:
            rule = f"be a vocabulary of GPT-2's form, with {merges.name} beside it"
            raise DataError(sentence(vocabulary, "file", rule, reason(error))) from error
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        self._tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
        known = self._tokenizer.get_vocab()
        self.size = 1 + max(known.values(), default=-1)
        if self.size > 1 << 16:
            raise DataError(sentence(vocabulary, "ids", f"be in 0..{(1 << 16) - 1}", self.size - 1))
        # what has no token would be left out of a text without a word
        if missing := sorted(set(byte_level.alphabet()) - known.keys()):
            raise DataError(sentence(vocabulary, "vocabulary", "have a token for each of the 256 bytes", missing[0]))

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Ids of each text, uint16."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(text.ids, np.uint16) for text in encoded]
