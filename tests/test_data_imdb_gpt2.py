"""nftk.data: a review as the mean of GPT-2's embeddings of its tokens."""

import sys

import numpy as np
import pytest
import torch
from imdb_files import (
    TEST,
    TRAIN,
    as_tokens,
    folder_of_reviews,  # noqa: F401  (a fixture)
    own_cache,  # noqa: F401  (a fixture)
    small_tokenizer,  # noqa: F401  (a fixture)
)
from safetensors.torch import save_file

from nftk.data import DataError, GPT2Encoder, load_data, load_imdb


class TestGPT2:
    @pytest.fixture
    def matrix(self):
        return torch.randn(260, 7)

    @pytest.mark.parametrize("kind", ["wte", "transformer", "bfloat16", "npz", "only", "npy"])
    def test_means(self, folder, tokenizer, matrix, tmp_path, monkeypatch, kind):
        monkeypatch.setattr("nftk.data.encoders.ROWS", 2)
        path = tmp_path / {"npz": "a.npz", "only": "a.npz", "npy": "a.npy"}.get(kind, "a.safetensors")
        if kind == "npy":
            np.save(path, matrix.numpy())
        elif kind == "only":
            np.savez(path, anything=matrix.numpy())
        elif kind == "npz":
            np.savez(path, **{"wte.weight": matrix.numpy(), "wpe.weight": np.ones((4, 7))})
        else:
            matrix = matrix.bfloat16() if kind == "bfloat16" else matrix
            name = "transformer.wte.weight" if kind == "transformer" else "wte.weight"
            save_file({"wpe.weight": torch.ones(4, 7), name: matrix}, path)
        split = load_imdb(folder, encoder="gpt2", embeddings=path)
        assert split.name == "imdb-gpt2"
        for part, reviews in ((split.x_train, TRAIN), (split.x_test, TEST)):
            for row, (text, _) in zip(part, reviews, strict=True):
                ids = tokenizer([text])[0]
                mean = sum(matrix[int(i)].double() for i in ids) / len(ids)
                torch.testing.assert_close(row.double(), mean, rtol=1e-5, atol=1e-6)

    def test_beside_the_tokens(self, folder, matrix):
        save_file({"wte.weight": matrix}, folder / "gpt2" / "model.safetensors")
        assert load_data("imdb-gpt2", folder).in_features == 7

    def test_another_matrix(self, folder, matrix, tmp_path):
        np.save(tmp_path / "a.npy", matrix.numpy())
        first = load_imdb(folder, encoder="gpt2", embeddings=tmp_path / "a.npy")
        np.save(tmp_path / "a.npy", 2 * matrix.numpy())
        second = load_imdb(folder, encoder="gpt2", embeddings=tmp_path / "a.npy")
        assert torch.equal(second.x_train, 2 * first.x_train)

    def test_refused(self, folder, matrix, tmp_path):
        holed = matrix.clone()
        holed[3, 3] = torch.nan
        cases = {
            "rows.npy": (matrix[:-1], r"must be a matrix with 260 rows, one for each token, got shape \[259, 7\]"),
            "flat.npy": (matrix[:, 0], r"must be a matrix with 260 rows, one for each token, got shape \[260\]"),
            "whole.npy": (matrix.int(), "must be floating-point numbers, got torch.int32"),
            "nan.npy": (holed, "must be finite in float32, got a NaN or an infinity"),
        }
        for name, (values, said) in cases.items():
            np.save(tmp_path / name, values.numpy())
            with pytest.raises(DataError, match=f"{name}: embeddings {said}$"):
                load_imdb(folder, encoder="gpt2", embeddings=tmp_path / name)
        save_file({"lm_head": matrix}, tmp_path / "head.safetensors")
        np.savez(tmp_path / "two.npz", a=matrix, b=matrix)
        for name, found in (("head.safetensors", "lm_head"), ("two.npz", "a, b")):
            rule = f"must hold the matrix wte.weight or transformer.wte.weight, got {found}$"
            with pytest.raises(DataError, match=rule):
                load_imdb(folder, encoder="gpt2", embeddings=tmp_path / name)
        for name in ("a.safetensors", "a.npz", "a.npy"):
            for body in (b"", b"PK\3\4 no archive", b"\x93NUMPY", b"text"):
                (tmp_path / name).write_bytes(body)
                with pytest.raises(
                    DataError, match=f"{name}: embeddings must be a .safetensors, .npz or .npy file, got"
                ):
                    load_imdb(folder, encoder="gpt2", embeddings=tmp_path / name)
        with pytest.raises(
            DataError, match="none.npy: embeddings must be a .safetensors, .npz or .npy file, got no file"
        ):
            load_imdb(folder, encoder="gpt2", embeddings=tmp_path / "none.npy")

    def test_transformers(self, folder, matrix, monkeypatch):
        class Fake:
            class GPT2Model:
                @classmethod
                def from_pretrained(cls, name):
                    assert name == "gpt2"
                    model = torch.nn.Module()
                    model.wte = torch.nn.Embedding(260, 7, _weight=matrix)
                    return model

        monkeypatch.setitem(sys.modules, "transformers", Fake)
        split = load_data("imdb-gpt2", folder)
        assert (split.in_features, split.x_train.requires_grad) == (7, False)

    def test_neither_file_nor_transformers(self, folder, monkeypatch):
        class Offline:
            class GPT2Model:
                @classmethod
                def from_pretrained(cls, name):
                    raise OSError("We couldn't connect\nto the hub")

        rule = (
            r"gpt2: embeddings must come from a file that embeddings names \(or gpt2/model.safetensors in the data "
            r"folder\), or from the package transformers with a network \(pip install transformers\), got "
        )
        for fake, found in ((None, ".*transformers.*"), (Offline, "We couldn't connect")):
            monkeypatch.setitem(sys.modules, "transformers", fake)
            with pytest.raises(DataError, match=f"^nftk.data: {rule}{found}$"):
                load_data("imdb-gpt2", folder)

    def test_transform_without_fit(self, tokenizer, matrix, tmp_path):
        np.save(tmp_path / "a.npy", matrix.numpy())
        assert GPT2Encoder(tmp_path / "a.npy").transform(as_tokens(tokenizer, ["a", "film"])).shape == (2, 7)
