"""nftk.data: the movie reviews, from small files made here and from the real ones."""

import dataclasses
import gzip
import json
import sys
import warnings

import numpy as np
import pytest
import torch
from cli_runs import command
from safetensors.torch import save_file

import nftk
from nftk.data import DataError, GPT2Encoder, LSAEncoder, Standardizer, Tokenizer, Tokens, load_data, load_imdb
from nftk.data import imdb as module

TRAIN = [("a bad film", 0), ("dull, dull", 0), ("so good\n<br />", 1), ("a good film", 1), ("fine café", 1)]
TEST = [("good", 1), ("a bad film", 0), ("bad bad", 0), ("a good film", 1), ("a bad film ", 0)]
MERGES = [("Ġ", "f"), ("b", "a"), ("ba", "d"), ("o", "o")]


def lines(reviews):
    return "".join(json.dumps({"id": i, "text": text, "label": y}) + "\n" for i, (text, y) in enumerate(reviews))


def alphabet():
    """The 256 letters that stand for bytes, in GPT-2's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, plain), *(chr(256 + i) for i in range(68))]


def merge(piece, ranks):
    """The definition of byte-pair encoding: always the merge of the lowest rank."""
    parts = list(piece)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of these tests, with neither the user's own nor NFTK_DATA in reach."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NFTK_DATA", raising=False)
    return tmp_path / "cache" / "nftk" / "imdb"


@pytest.fixture
def folder(tmp_path):
    return write_imdb(tmp_path / "data")


@pytest.fixture
def tokenizer(folder):
    return Tokenizer(folder / "gpt2" / "encoder.json", folder / "gpt2" / "vocab.bpe")


def as_tokens(tokenizer, texts):
    ids = tokenizer(texts)
    return Tokens(np.concatenate(ids), np.cumsum([0, *map(len, ids)]), tokenizer.size)


def tfidf(train, rows):
    """By its definition, in float64, each row of length 1."""
    document_frequency = (train > 0).sum(0)
    idf = np.log((1 + len(train)) / (1 + document_frequency)) + 1
    weighted = np.where(rows > 0, 1 + np.log(np.maximum(rows, 1)), 0) * idf
    return weighted / np.linalg.norm(weighted, axis=1, keepdims=True)


def same(a, b):
    names = ("x_train", "y_train", "x_test", "y_test", "test_duplicates")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


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
