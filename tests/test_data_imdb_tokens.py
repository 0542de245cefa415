"""nftk.data: GPT-2's tokens of a text, by hand and by the definition of byte-pair encoding."""

import json

import numpy as np
import pytest
from imdb_files import (
    MERGES,
    alphabet,
    folder_of_reviews,  # noqa: F401  (a fixture)
    own_cache,  # noqa: F401  (a fixture)
    small_tokenizer,  # noqa: F401  (a fixture)
    write_bpe,
)

from nftk.data import DataError, Tokenizer, Tokens


def merge(piece, ranks):
    """The definition of byte-pair encoding: always the merge of the lowest rank."""
    parts = list(piece)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


class TestTokens:
    def test_by_hand(self, tokenizer):
        byte = {letter: i for i, letter in enumerate(alphabet())}
        assert tokenizer.size == 260
        space_f, bad, oo = 256, 258, 259
        ids = tokenizer(["bad film", "foo", " b"])
        assert ids[0].tolist() == [bad, space_f, byte["i"], byte["l"], byte["m"]]
        assert ids[1].tolist() == [byte["f"], oo]
        assert ids[2].tolist() == [byte["Ġ"], byte["b"]]
        assert all(each.dtype == np.uint16 for each in ids)

    def test_nothing_of_a_text_is_lost(self, tokenizer):
        text = "a<br /><br />\r\n\tß 漢字 😀 e\u0301 <|endoftext|>\0"
        names = [*alphabet(), *("".join(pair) for pair in MERGES)]
        plain = {letter: i for i, letter in enumerate(alphabet())}
        order = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order += [i for i in range(256) if i not in order]
        found = bytes(order[plain[letter]] for i in tokenizer([text])[0] for letter in names[i])
        assert found.decode() == text

    def test_counts(self):
        counts = Tokens(np.array([2, 0, 2, 1], np.uint16), np.array([0, 3, 4]), 4).counts()
        assert counts.toarray().tolist() == [[1, 0, 2, 0], [0, 1, 0, 0]]

    def test_gpt2(self, data_dir):
        """Well-known encodings, and one against the merges made one by one."""
        tokenizer = Tokenizer(data_dir / "gpt2" / "encoder.json", data_dir / "gpt2" / "vocab.bpe")
        assert tokenizer.size == 50257
        known = {
            "Hello world": [15496, 995],
            "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
            "\n\n": [628],
            "a\n\nb": [64, 198, 198, 65],
            "<br /><br />": [27, 1671, 1220, 6927, 1671, 11037],
        }
        assert [each.tolist() for each in tokenizer(list(known))] == list(known.values())
        pieces = [
            "The",
            "Ġfilm",
            "Ġwasn",
            "'t",
            "Ġhalf",
            "-",
            "bad",
            "!!<",
            "br",
            "Ġ/><",
            "br",
            "Ġ/>",
            "CafÃ©",
            "Ġ1984",
        ]
        names = json.loads((data_dir / "gpt2" / "encoder.json").read_text())
        merges = (data_dir / "gpt2" / "vocab.bpe").read_text().splitlines()[1:]
        ranks = {tuple(line.split()): rank for rank, line in enumerate(merges)}
        truth = [names[part] for piece in pieces for part in merge(piece, ranks)]
        assert tokenizer(["The film wasn't half-bad!!<br /><br />Café 1984"])[0].tolist() == truth

    def test_damaged_files(self, folder):
        files = folder / "gpt2" / "encoder.json", folder / "gpt2" / "vocab.bpe"
        write_bpe(folder / "gpt2", letters=[*alphabet()[:-1], "left out"])
        with pytest.raises(DataError, match=r"encoder.json: vocabulary must have a token for each of the 256 bytes"):
            Tokenizer(*files)
        write_bpe(folder / "gpt2")
        files[1].write_text("#version: 0.2\nq q\n")
        with pytest.raises(DataError, match=r"encoder.json: file must be a vocabulary of GPT-2's form, with vocab.bpe"):
            Tokenizer(*files)
        write_bpe(folder / "gpt2")
        names = json.loads(files[0].read_text())
        files[0].write_text(json.dumps(names | {"big": 1 << 16}))
        with pytest.raises(DataError, match=r"encoder.json: ids must be in 0..65535, got 65536$"):
            Tokenizer(*files)
