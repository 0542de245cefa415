"""nftk.data: the movie reviews, from small files made here and from the real ones, and nftk train on them."""

import dataclasses
import gzip
import json
import sys
import warnings

import numpy as np
import pytest
import torch
from cli_runs import command
from imdb_files import (
    TEST,
    TRAIN,
    as_tokens,
    folder_of_reviews,  # noqa: F401  (a fixture)
    own_cache,  # noqa: F401  (a fixture)
    same,
    small_tokenizer,  # noqa: F401  (a fixture)
    write_imdb,
)

import nftk
from nftk.data import DataError, Standardizer, load_data, load_imdb
from nftk.data import imdb as module


def tfidf(train, rows):
    """By its definition, in float64, each row of length 1."""
    document_frequency = (train > 0).sum(0)
    idf = np.log((1 + len(train)) / (1 + document_frequency)) + 1
    weighted = np.where(rows > 0, 1 + np.log(np.maximum(rows, 1)), 0) * idf
    return weighted / np.linalg.norm(weighted, axis=1, keepdims=True)


class TestLoad:
    def test_split(self, folder):
        split = load_data("imdb", folder)
        assert (split.name, split.class_names, split.standardize) == ("imdb", ("negative", "positive"), "feature")
        assert split.y_train.tolist() == [0, 0, 1, 1, 1]
        assert split.y_test.tolist() == [1, 0, 0, 1, 0]
        assert split.test_duplicates.tolist() == [1, 3], "the very text: a space more is another"
        assert (len(split.x_train), len(split.x_test)) == (5, 5)

    def test_lsa(self, folder, tokenizer):
        """With as many directions as training texts nothing of these is lost: products are those of TF-IDF."""
        split = load_imdb(folder)
        counts = [as_tokens(tokenizer, [text for text, _ in part]).counts().toarray() for part in (TRAIN, TEST)]
        train, test = (tfidf(counts[0], part.astype(float)) for part in counts)
        x_train, x_test = split.x_train.double().numpy(), split.x_test.double().numpy()
        np.testing.assert_allclose(x_train @ x_train.T, train @ train.T, atol=1e-6)
        np.testing.assert_allclose(x_test @ x_train.T, test @ train.T, atol=1e-6)

    def test_training_reviews_alone_are_learned_from(self, folder, tmp_path):
        other = write_imdb(tmp_path / "other", test=[("dull fine film", 0)] * 7)
        assert torch.equal(load_imdb(folder).x_train, load_imdb(other).x_train)

    def test_batches(self, folder, monkeypatch, tmp_path):
        whole = load_imdb(folder)
        monkeypatch.setattr(module, "BATCH", 2)
        assert same(load_imdb(folder, cache_dir=tmp_path / "another"), whole)

    def test_encoder_object(self, folder, cache):
        class Lengths:
            name = "lengths/../of texts"
            unit = 1.0

            def settings(self):
                return {"unit": self.unit}

            def fit(self, tokens):
                self.longest = int(np.diff(tokens.offsets).max())

            def transform(self, tokens):
                return np.diff(tokens.offsets)[:, None].astype(np.float32) / self.longest / self.unit

        encoder = Lengths()
        split = load_imdb(folder, encoder=encoder)
        assert split.name == "imdb-lengths/../of texts"
        assert split.x_train.max() == 1
        encoder.unit = 2.0
        assert load_imdb(folder, encoder=encoder).x_train.max() == 0.5, "settings are part of the key"
        assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["rows", "rows", "tokens"]
        encoder.unit = np.float64(3.0)  # which is float64 all through
        with pytest.raises(
            DataError, match=r"must return float32 of shape \[5, m\] from transform, got float64 of shape"
        ):
            load_imdb(folder, encoder=encoder)

    def test_encoder_refused(self, folder):
        with pytest.raises(DataError, match="imdb: encoder must be 'lsa', 'gpt2' or an object .* got 'word2vec'$"):
            load_imdb(folder, encoder="word2vec")
        with pytest.raises(DataError, match="embeddings must go with the encoder 'gpt2', got encoder 'lsa'$"):
            load_imdb(folder, embeddings="wte.npy")

    @pytest.mark.parametrize("package", ["tokenizers", "scipy", "sklearn"])
    def test_without_a_package(self, folder, monkeypatch, package):
        for name in list(sys.modules):
            if name.split(".")[0] == package:
                monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=r"^nftk: .* needs .*; run `pip install 'nftk\[text\]'`$"):
            load_imdb(folder)

    @pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
    def test_progress(self, folder, monkeypatch, capsys, terminal):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        monkeypatch.setenv("TERM", "xterm")
        load_data("imdb", folder, progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("imdb_test.jsonl.gz" in err and "encoding the reviews by lsa" in err) if terminal else err == ""


@pytest.mark.parametrize(
    ("duplicates", "error", "said"),
    [
        ([1], TypeError, "must be a tensor of torch.int64, got list"),
        (torch.tensor([1.0]), TypeError, "must be a tensor of torch.int64, got torch.float32"),
        (torch.tensor([1, 1]), DataError, r"must be different rows in 0..4, ascending, got \[1, 1\]"),
        (torch.tensor([2, 1]), DataError, r"must be different rows in 0..4, ascending, got \[2, 1\]"),
        (torch.tensor([-1]), DataError, r"must be different rows in 0..4, ascending, got \[-1\]"),
        (torch.tensor([1, 5]), DataError, r"must be different rows in 0..4, ascending, got \[1, 5\]"),
        (torch.tensor([[1]]), DataError, r"must be different rows in 0..4, ascending, got \[\[1\]\]"),
        (torch.tensor(1), DataError, "must be different rows in 0..4, ascending, got 1"),
    ],
)
def test_duplicates_refused(folder, duplicates, error, said):
    split = load_imdb(folder)
    with pytest.raises(error, match=f"imdb: test_duplicates {said}"):
        dataclasses.replace(split, test_duplicates=duplicates)


def test_no_duplicates(tmp_path):
    split = load_imdb(write_imdb(tmp_path, test=[("new", 1)]))
    assert split.test_duplicates.tolist() == []


class TestCommands:
    def test_train_and_evaluate(self, folder, tmp_path):
        run = tmp_path / "run"
        done = command("train", "--data", "imdb", "--data-dir", folder, "--out", run, "--epochs", 1, "--baseline")
        assert done.returncode == 0, done.stderr
        config = json.loads((run / "config.json").read_text())
        assert config["data"] == "imdb"
        assert config["hidden_features"] == [128] * 5
        assert (config["batch_size"], config["lr"], config["lr_omega"]) == (25, 0.1, 0.1)
        split = load_imdb(folder)
        x = Standardizer.fit(split.x_train, "feature").transform(split.x_test)
        right = nftk.NFTKMLP.load(run / "model.safetensors")(x).argmax(-1) == split.y_test
        summary = json.loads((run / "summary.json").read_text())
        without = right[[0, 2, 4]].double().mean().item()
        assert summary["test_accuracy"] == pytest.approx(right.double().mean().item())
        assert summary["test_accuracy_without_duplicates"] == pytest.approx(without)
        assert 0 <= summary["baseline"]["test_accuracy_without_duplicates"] <= 1
        told = json.loads(command("evaluate", run, "--json").stdout)
        assert told["test_accuracy_without_duplicates"] == pytest.approx(without)

    def test_without_duplicates_there_is_no_such_number(self, tmp_path):
        folder = write_imdb(tmp_path / "data", test=[("new", 1)])
        done = command("train", "--data", "imdb", "--data-dir", folder, "--out", tmp_path / "run", "--epochs", 1)
        assert done.returncode == 0, done.stderr
        assert "without" not in (tmp_path / "run" / "summary.json").read_text()

    def test_missing_files(self, tmp_path):
        done = command("train", "--data", "imdb", "--data-dir", tmp_path, "--out", tmp_path / "run")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"nftk.data: {tmp_path}: the reviews must be in a folder that --data-dir or")


@pytest.mark.slow
def test_real(data_dir, tmp_path):
    """Sizes, the 123 texts in both parts, and what a linear classifier makes of the features."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        split = load_imdb(data_dir, cache_dir=tmp_path)
    assert not caught
    assert (split.x_train.shape, split.x_test.shape) == ((25000, 768), (25000, 768))
    assert split.y_train.bincount().tolist() == split.y_test.bincount().tolist() == [12500, 12500]
    texts = {}
    for part in ("train", "test"):
        with gzip.open(data_dir / "imdb" / f"imdb_{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts[part] = [json.loads(line)["text"] for line in file]
    both = set(texts["train"]) & set(texts["test"])
    assert len(both) == 123
    assert split.test_duplicates.tolist() == [i for i, text in enumerate(texts["test"]) if text in both]
    standardizer = Standardizer.fit(split.x_train, split.standardize)
    x_train, x_test = (standardizer.transform(x).numpy() for x in (split.x_train, split.x_test))
    classifier = LogisticRegression(C=0.01, max_iter=300).fit(x_train, split.y_train.numpy())
    assert classifier.score(x_test, split.y_test.numpy()) > 0.88
    assert same(load_imdb(data_dir, cache_dir=tmp_path), split)
