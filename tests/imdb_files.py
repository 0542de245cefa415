"""Movie reviews and a small vocabulary of GPT-2's kind, in files as nftk.data wants them."""

import gzip
import json

import numpy as np
import pytest
import torch

from nftk.data import Tokenizer, Tokens

TRAIN = [("a bad film", 0), ("dull, dull", 0), ("so good\n<br />", 1), ("a good film", 1), ("fine café", 1)]
TEST = [("good", 1), ("a bad film", 0), ("bad bad", 0), ("a good film", 1), ("a bad film ", 0)]
MERGES = [("Ġ", "f"), ("b", "a"), ("ba", "d"), ("o", "o")]


def lines(reviews):
    return "".join(json.dumps({"id": i, "text": text, "label": y}) + "\n" for i, (text, y) in enumerate(reviews))


def alphabet():
    """The 256 letters that stand for bytes, in GPT-2's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, plain), *(chr(256 + i) for i in range(68))]


def write_bpe(folder, letters=None):
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(letters or alphabet()), *("".join(pair) for pair in MERGES)]
    (folder / "encoder.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))


def write_imdb(folder, train=TRAIN, test=TEST):
    for part, reviews in (("train", train), ("test", test)):
        (folder / "imdb").mkdir(parents=True, exist_ok=True)
        body = reviews if isinstance(reviews, bytes) else gzip.compress(lines(reviews).encode(), mtime=0)
        (folder / "imdb" / f"imdb_{part}.jsonl.gz").write_bytes(body)
    write_bpe(folder / "gpt2")
    return folder


@pytest.fixture(name="cache", autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The cache of these tests, with neither the user's own nor NFTK_DATA in reach."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NFTK_DATA", raising=False)
    return tmp_path / "cache" / "nftk" / "imdb"


@pytest.fixture(name="folder")
def folder_of_reviews(tmp_path):
    return write_imdb(tmp_path / "data")


@pytest.fixture(name="tokenizer")
def small_tokenizer(folder):
    return Tokenizer(folder / "gpt2" / "encoder.json", folder / "gpt2" / "vocab.bpe")


def as_tokens(tokenizer, texts):
    ids = tokenizer(texts)
    return Tokens(np.concatenate(ids), np.cumsum([0, *map(len, ids)]), tokenizer.size)


def same(a, b):
    names = ("x_train", "y_train", "x_test", "y_test", "test_duplicates")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
