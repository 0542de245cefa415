"""nftk.data: idx files and folders, with every way in which they can be bad."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nftk.data.idx as idx
from nftk.data import DataError, load_idx_folder, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def idx_bytes(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def images(n=3, height=2, width=4):
    return np.arange(n * height * width, dtype=np.uint8).reshape(n, height, width)


def write_folder(folder, *, suffix="", dot=False, **replaced):
    """Write the four files; train_labels=None leaves one out, bytes or an array replace it."""
    folder.mkdir(exist_ok=True)
    parts = {
        "train_images": images(),
        "train_labels": np.array([0, 2, 1], dtype=np.uint8),
        "t10k_images": images(2),
        "t10k_labels": np.array([1, 2], dtype=np.uint8),
    } | replaced
    for name, part in parts.items():
        if part is None:
            continue
        content = part if isinstance(part, bytes) else idx_bytes(part)
        file = name.replace("_", "-") + (".idx" if dot else "-idx") + ("3" if "images" in name else "1") + "-ubyte"
        (folder / (file + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return folder


def error_of(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("dtype", list(CODES))
def test_read(tmp_path, dtype, compressed):
    array = np.array([[1, 2, 3], [100, 5, 127]], dtype=dtype)
    content = idx_bytes(array)
    # the name says the opposite of the content
    path = tmp_path / ("array" if compressed else "array.gz")
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = read_idx(path)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


GOOD = idx_bytes(images())
GZ = gzip.compress(GOOD)
BAD_FILES = {
    "empty": (b"", "idx magic must be 00 00, a type code and a number of dimensions, got an empty file"),
    "short magic": (b"\0\0\x08", "idx magic must be .*, got 00 00 08$"),
    "wrong magic": (b"\x89PNG" + GOOD, "idx magic must be .*, got 89 50 4e 47$"),
    "type code": (b"\0\0\x0a\x01\0\0\0\x01\0", "idx type code must be one of 08, 09, 0b, 0c, 0d, 0e, got 0a$"),
    "no dimensions": (b"\0\0\x08\x00\x07", "idx file must have 1 to 32 dimensions, got 0$"),
    "many dimensions": (b"\0\0\x08\x21" + b"\0\0\0\x01" * 33 + b"\0", "must have 1 to 32 dimensions, got 33$"),
    "cut header": (GOOD[:10], "idx header must have 16 bytes, got 10$"),
    "empty dimension": (idx_bytes(images(0)), "must claim 1 to 4294967296 bytes of data, got 0 x 2 x 4 items of 1$"),
    "huge": (
        b"\0\0\x08\x02" + b"\xff" * 8 + b"\0",
        "must claim 1 to 4294967296 bytes of data, got 4294967295 x 4294967295 items of 1$",
    ),
    "too few": (GOOD[:-1], r"must hold 24 bytes of data \(3 x 2 x 4 items of 1\), got 23$"),
    "too many": (GOOD + b"\0", r"must hold 24 bytes of data \(3 x 2 x 4 items of 1\), got more$"),
    "too few in gzip": (gzip.compress(GOOD[:-4]), "must hold 24 bytes .*, got 20$"),
    "too many in gzip": (gzip.compress(GOOD + b"\0"), "must hold 24 bytes .*, got more$"),
    "truncated gzip": (GZ[:-12], "file must be a whole gzip stream, got a truncated one$"),
    "gzip without its sum": (GZ[:-8], "file must be a whole gzip stream, got a truncated one$"),
    "gzip header only": (GZ[:5], "file must be a whole gzip stream, got a truncated one$"),
    "wrong sum": (GZ[:-8] + b"\0\0\0\0" + GZ[-4:], "file must be an intact gzip stream, got CRC check failed"),
    "wrong length": (GZ[:-4] + b"\0\0\0\0", "file must be an intact gzip stream, got Incorrect length"),
    "corrupt gzip": (GZ[:10] + b"\xff" * 8 + GZ[18:], "file must be an intact gzip stream, got Error -3"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, case):
    content, text = BAD_FILES[case]
    path = tmp_path / "bad"
    path.write_bytes(content)
    found = error_of(read_idx, path)
    assert found.startswith(f"nftk.data: {path}: ")
    assert re.search(text, found), found


def test_unreadable_file(tmp_path):
    assert error_of(read_idx, tmp_path / "none").endswith("none: file must be readable, got No such file or directory")
    assert error_of(read_idx, tmp_path).endswith(": file must be readable, got Is a directory")


def test_header_is_not_believed(tmp_path, monkeypatch):
    # a claim of 4 GiB over nothing, and a stream far longer than its claim: neither is read or allocated
    asked = []
    take = idx._take
    monkeypatch.setattr(idx, "_take", lambda stream, size: asked.append(len(data := take(stream, size))) or data)
    claim = b"\0\0\x08\x01" + struct.pack(">I", 2**32 - 1)
    (tmp_path / "claim").write_bytes(gzip.compress(claim + b"123"))
    assert error_of(read_idx, tmp_path / "claim").endswith("got 3")
    bomb = b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(50 << 20)
    (tmp_path / "bomb").write_bytes(gzip.compress(bomb, 1))
    assert error_of(read_idx, tmp_path / "bomb").endswith("got more")
    assert asked == [4, 4, 3, 4, 4, 11]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", [False, True], ids=["dash", "dot"])
def test_folder(tmp_path, suffix, dot):
    split = load_idx_folder(write_folder(tmp_path / "set", suffix=suffix, dot=dot))
    assert split.name == str(tmp_path / "set")
    assert split.class_names == ("0", "1", "2")
    assert split.image_shape == (2, 4)
    assert split.standardize == "global"
    torch.testing.assert_close(split.x_train, torch.arange(24).reshape(3, 8) / 255)
    assert split.y_train.tolist() == [0, 2, 1]
    assert split.x_test.shape == (2, 8)
    assert split.y_test.tolist() == [1, 2]


def test_folder_of_floats(tmp_path):
    floats = images().astype(np.float32) / 7
    split = load_idx_folder(write_folder(tmp_path, train_images=floats, train_labels=np.array([0, 2, 1], np.int32)))
    np.testing.assert_array_equal(split.x_train.numpy(), floats.reshape(3, 8))
    # a folder of the file's name, as some archives unpack, is not the file
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "train-images.idx3-ubyte")
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    assert len(load_idx_folder(tmp_path).x_train) == 3


NAN = images().astype(np.float32)
NAN[1, 1, 2] = np.nan
BAD_FOLDERS = {
    "missing": (
        {"t10k_labels": None},
        "{0}: folder must hold the idx file t10k-labels-idx1-ubyte (or t10k-labels-idx1"
        "-ubyte.gz), got the other files only",
    ),
    "bad magic": (
        {"t10k_images": b"<htm"},
        "{0}/t10k-images-idx3-ubyte: idx magic must be 00 00, a type code and a number of dimensions, got 3c 68 74 6d",
    ),
    "counts": (
        {"train_labels": np.array([0, 1], np.uint8)},
        "{0}/train-labels-idx1-ubyte: training labels must have 3 entries, one for each row of training pixels, got 2",
    ),
    "test counts": (
        {"t10k_images": images(5)},
        "{0}/t10k-labels-idx1-ubyte: test labels must have 5 entries, one for each row of test pixels, got 2",
    ),
    "sizes": (
        {"t10k_images": images(2, 4, 2)},
        "{0}/t10k-images-idx3-ubyte: test pixels must have rows of shape [2, 4], like training pixels, got [4, 2]",
    ),
    "swapped": (
        {"train_images": np.array([0, 1], np.uint8)},
        "{0}/train-images-idx3-ubyte: training pixels must have 3 dimensions, got 1",
    ),
    "label images": (
        {"train_labels": images()},
        "{0}/train-labels-idx1-ubyte: training labels must have 1 dimension, got 3",
    ),
    "test label": (
        {"t10k_labels": np.array([1, 3], np.uint8)},
        "{0}/t10k-labels-idx1-ubyte: test labels must be in 0..2 (3 classes), got 3",
    ),
    "negative": (
        {"train_labels": np.array([0, -1, 2], np.int8)},
        "{0}/train-labels-idx1-ubyte: training labels must be in 0..65535, got -1",
    ),
    "nan": (
        {"train_images": NAN},
        "{0}/train-images-idx3-ubyte: training pixels must be finite in float32, got nan in row 1",
    ),
    "fraction": (
        {"train_labels": np.array([0, 0.5, 2])},
        "{0}/train-labels-idx1-ubyte: training labels must be whole numbers, got 0.5 in row 1",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(tmp_path, case):
    replaced, text = BAD_FOLDERS[case]
    assert error_of(load_idx_folder, write_folder(tmp_path, **replaced)) == "nftk.data: " + text.format(tmp_path)


def test_no_folder(tmp_path):
    assert error_of(load_idx_folder, tmp_path / "none").endswith(
        "none: folder must hold the idx file train-images-idx3-ubyte (or train-images-idx3-ubyte.gz), got none of "
        "the four"
    )


def test_real_mnist(data_dir):
    split = load_idx_folder(data_dir / "mnist")
    assert (split.x_train.shape, split.x_test.shape) == ((60000, 784), (10000, 784))
    assert split.y_train.bincount().tolist() == TRAIN_COUNTS
    assert split.y_test.bincount().tolist() == TEST_COUNTS
    assert split.image_shape == (28, 28)
    assert split.x_train.max() == 1
    # the published mean and deviation
    assert round(split.x_train.double().mean().item(), 4) == 0.1307
    assert round(split.x_train.double().std().item(), 4) == 0.3081


def mutations(content):
    """Bytes near valid ones: some replaced, cut at some place, something appended."""
    edit = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    return st.builds(
        lambda edits, cut, more: bytes(dict(edits).get(i, b) for i, b in enumerate(content))[:cut] + more,
        st.lists(edit, max_size=4),
        st.integers(0, len(content)) | st.just(len(content)),
        st.just(b"") | st.binary(max_size=8),
    )


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(gzip.compress) | mutations(GOOD) | mutations(GZ))
def test_fuzz(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.idx"
    path.write_bytes(content)
    try:
        array = read_idx(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert array.size > 0
