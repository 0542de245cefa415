"""nftk.data: where the reviews are looked for, files that are damaged, and the cache of what was computed."""

import gzip
import json
import sys

import numpy as np
import pytest
from imdb_files import (
    TRAIN,
    folder_of_reviews,  # noqa: F401  (a fixture)
    lines,
    own_cache,  # noqa: F401  (a fixture)
    same,
    write_imdb,
)

from nftk.data import DataError, LSAEncoder, load_imdb
from nftk.data import imdb as module


class TestFiles:
    @pytest.mark.parametrize("top", ["data", "data/imdb"])
    def test_given_folder(self, folder, tmp_path, top):
        assert len(load_imdb(tmp_path / top).x_train) == 5

    def test_all_in_one_folder(self, folder, tmp_path):
        flat = tmp_path / "flat"
        flat.mkdir()
        for path in (*folder.glob("imdb/*"), *folder.glob("gpt2/*")):
            path.rename(flat / path.name)
        assert len(load_imdb(flat).x_train) == 5

    def test_search_order(self, tmp_path, monkeypatch, cache):
        """data_dir, then NFTK_DATA, then the cache."""
        write_imdb(cache.parent, train=TRAIN[:2])
        assert len(load_imdb().x_train) == 2
        monkeypatch.setenv("NFTK_DATA", str(write_imdb(tmp_path / "env", train=TRAIN[:3])))
        assert len(load_imdb().x_train) == 3
        assert len(load_imdb(write_imdb(tmp_path / "given", train=TRAIN[:4])).x_train) == 4
        (tmp_path / "env" / "gpt2" / "vocab.bpe").unlink()
        assert len(load_imdb().x_train) == 2, "a folder in NFTK_DATA without all the files is passed over"
        with pytest.raises(DataError, match="got no encoder.json$"):
            load_imdb(tmp_path / "env")

    def test_missing(self, tmp_path):
        rule = (
            "the reviews must be in a folder that --data-dir or NFTK_DATA names: imdb_train.jsonl.gz and "
            "imdb_test.jsonl.gz in it or in its folder imdb, GPT-2's encoder.json and vocab.bpe in it or in its folder "
            "gpt2, got no imdb_train.jsonl.gz"
        )
        for where, given in (("imdb", None), (tmp_path, tmp_path)):
            with pytest.raises(DataError) as caught:
                load_imdb(given)
            assert str(caught.value) == f"nftk.data: {where}: {rule}"

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b'{"text": "x", "label": 1', "be a JSON object, got Expecting ',' delimiter"),
            (b"[" * 100_000, "be a JSON object, got "),
            (b"", "be a JSON object, got Expecting value"),
            (b"[1]", "be a JSON object, got list"),
            (b'{"label": 1}', "have a text and a label, got no text"),
            (b'{"text": "x"}', "have a text and a label, got no label"),
            (b'{"text": 5, "label": 1}', "have a text that is a string and not empty, got 5"),
            (b'{"text": "", "label": 1}', "have a text that is a string and not empty, got ''"),
            (b'{"text": "\\ud800", "label": 1}', r"have a text of whole characters, got '\ud800'"),
            (b'{"text": "x", "label": 2}', "have a label that is 0 or 1, got 2"),
            (b'{"text": "x", "label": true}', "have a label that is 0 or 1, got True"),
            (b'{"text": "x", "label": "1"}', "have a label that is 0 or 1, got '1'"),
            (b'{"text": "\xff", "label": 1}', "be UTF-8, got byte 0xff in column 11"),
        ],
        ids=[
            "cut",
            "deep",
            "blank",
            "list",
            "text",
            "label",
            "number",
            "empty",
            "half",
            "two",
            "bool",
            "string",
            "bytes",
        ],
    )
    @pytest.mark.parametrize("part", ["train", "test"])
    def test_malformed_line(self, tmp_path, line, said, part):
        body = lines(TRAIN[:2]).encode() + line + b"\n" + lines(TRAIN[2:]).encode()
        folder = write_imdb(tmp_path, **{part: gzip.compress(body)})
        with pytest.raises(DataError) as caught:
            load_imdb(folder)
        path = folder / "imdb" / f"imdb_{part}.jsonl.gz"
        assert str(caught.value).startswith(f"nftk.data: {path}: line 3 must {said}")
        assert "\n" not in str(caught.value)

    def test_damaged_gzip(self, tmp_path, cache):
        reviews = [(f"{i} {np.random.default_rng(i).integers(1 << 60)}", 0) for i in range(2000)]
        whole = gzip.compress(lines(reviews).encode())
        for body, said in (
            (whole[: len(whole) // 2], r"file must be a whole gzip stream, got one that breaks off after line \d{3}$"),
            (
                whole[:100] + b"\xff" * 50 + whole[150:],
                r"file must be an intact gzip stream, got after line \d+: Error",
            ),
            (whole[:-8] + bytes(8), r"file must be an intact gzip stream, got after line 2000: CRC check failed"),
            (b"text", r"file must be an intact gzip stream, got after line 0: Not a gzipped file"),
            (gzip.compress(b""), r"file must hold at least one review, got no line$"),
        ):
            folder = write_imdb(tmp_path / "data", train=body)
            with pytest.raises(DataError, match=said):
                load_imdb(folder)
        assert not list(cache.parent.rglob("*.npz")), "what is not whole is not cached"

    def test_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr("nftk.data.reviews.MAX_LINE", 1000)
        folder = write_imdb(tmp_path, train=[*TRAIN, ("x" * 1000, 0)])
        with pytest.raises(DataError, match="line 6 must be shorter than 1000 bytes, got more"):
            load_imdb(folder)
        monkeypatch.setattr("nftk.data.reviews.MAX_BYTES", 100)
        with pytest.raises(DataError, match="line 3 must be within the first 100 bytes, got more"):
            load_imdb(folder)


class TestCache:
    def test_second_load_computes_nothing(self, folder, monkeypatch):
        first = load_imdb(folder)
        monkeypatch.setattr(module, "_tokenise", None)
        monkeypatch.setattr(module, "_encode", None)
        assert same(load_imdb(folder), first)

    def test_another_encoder_takes_the_tokens(self, folder, monkeypatch, tmp_path):
        load_imdb(folder)
        np.save(tmp_path / "wte.npy", np.ones((260, 3), np.float32))
        monkeypatch.setattr(module, "_tokenise", None)
        assert load_imdb(folder, encoder="gpt2", embeddings=tmp_path / "wte.npy").in_features == 3

    @pytest.mark.parametrize("changed", ["train", "vocabulary", "merges", "tokenizers", "sklearn", "seed", "format"])
    def test_key(self, folder, cache, monkeypatch, changed):
        load_imdb(folder)
        before = {path.name for path in cache.iterdir()}
        if changed == "train":
            write_imdb(folder, train=[*TRAIN, ("more", 1)])
        elif changed == "vocabulary":
            path = folder / "gpt2" / "encoder.json"
            path.write_text(path.read_text() + " ")
        elif changed == "merges":
            path = folder / "gpt2" / "vocab.bpe"
            path.write_text(path.read_text().replace("o o\n", ""))
        elif changed == "seed":
            monkeypatch.setattr(LSAEncoder, "seed", 1)
        elif changed == "format":
            monkeypatch.setattr(module, "FORMAT", 0)
        else:
            monkeypatch.setattr(sys.modules[changed], "__version__", "0")
        split = load_imdb(folder)
        assert len(split.x_train) == 5 + (changed == "train")
        new = {path.name.split("-")[0] for path in cache.iterdir() if path.name not in before}
        assert new == ({"rows"} if changed in ("seed", "sklearn") else {"rows", "tokens"})

    @pytest.mark.parametrize("harm", ["cut", "bit", "empty", "other", "names"])
    def test_damaged(self, folder, cache, harm):
        first = load_imdb(folder)
        for path in sorted(cache.iterdir()):
            body = bytearray(path.read_bytes())
            if harm == "bit":
                body[body.index(b"NUMPY", body.index(b"NUMPY") + 2000) + 123] ^= 1  # in an array after the first
            path.write_bytes({"cut": body[: len(body) // 2], "bit": body}.get(harm, b""))
            if harm in ("other", "names"):
                inputs = "{}" if harm == "other" else json.dumps({})
                np.savez(path, inputs=np.array(inputs), **{} if harm == "names" else dict.fromkeys(module.ROWS, 0))
        damaged = {path: path.read_bytes() for path in cache.iterdir()}
        assert same(load_imdb(folder), first)
        assert all(path.read_bytes() != body for path, body in damaged.items()), "and mended"
        assert set(damaged) == set(cache.iterdir())

    def test_folder_that_cannot_be_made(self, folder, tmp_path):
        first = load_imdb(folder)
        (tmp_path / "file").write_bytes(b"")
        with pytest.warns(UserWarning, match=r"file/cache: cache must be writable, .* got Not a directory"):
            assert same(load_imdb(folder, cache_dir=tmp_path / "file" / "cache"), first)

    def test_full_disk(self, folder, cache, monkeypatch):
        def full(file, **entries):
            file.write(b"begun")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.warns(UserWarning, match="got No space left on device"):
            load_imdb(folder)
        assert list(cache.iterdir()) == []
