"""nftk.data: .npz archives, with every way in which they can be bad."""

import io
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nftk.data import DataError, load_npz


def arrays(**replaced):
    good = {
        "x_train": np.arange(12.0).reshape(4, 3),
        "y_train": np.array([0, 1, 2, 1]),
        "x_test": np.ones((2, 3)),
        "y_test": np.array([2, 0]),
    } | replaced
    return {key: value for key, value in good.items() if value is not None}


def save(path, **replaced):
    np.savez(path, **arrays(**replaced))
    return path


def error_of(path):
    with pytest.raises(DataError) as caught:
        load_npz(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"nftk.data: {path}: ")
    return text.removeprefix(f"nftk.data: {path}: ")


def test_read(tmp_path):
    split = load_npz(save(tmp_path / "set.npz", extra=np.array([None])))
    assert split.name == str(tmp_path / "set.npz")
    torch.testing.assert_close(split.x_train, torch.arange(12.0).reshape(4, 3))
    assert split.y_train.tolist() == [0, 1, 2, 1]
    assert split.y_test.tolist() == [2, 0]
    assert split.class_names == ("0", "1", "2")
    assert split.image_shape is None
    assert split.standardize == "feature"


VARIANTS = {
    "big-endian": {"x_train": np.arange(12).reshape(4, 3).astype(">f8"), "y_train": np.array([0, 1, 2, 1], ">i4")},
    "fortran": {"x_train": np.asfortranarray(np.arange(12.0).reshape(4, 3))},
    "bytes": {"x_train": np.arange(12, dtype=np.uint8).reshape(4, 3)},
    "half": {"x_train": np.arange(12, dtype=np.float16).reshape(4, 3)},
    "whole floats": {"y_train": np.array([0.0, 1.0, 2.0, 1.0]), "y_test": np.array([2.0, -0.0], np.float16)},
    "unsigned": {"y_train": np.array([0, 1, 2, 1], np.uint64)},
}


@pytest.mark.parametrize("case", VARIANTS)
def test_dtypes(tmp_path, case):
    split = load_npz(save(tmp_path / "set.npz", **VARIANTS[case]))
    assert split.x_train.dtype == torch.float32
    assert split.y_train.dtype == torch.int64
    torch.testing.assert_close(split.x_train, torch.arange(12.0).reshape(4, 3))
    assert split.y_train.tolist() == [0, 1, 2, 1]
    assert split.y_test.tolist() == [2, 0]


def test_bool_labels(tmp_path):
    split = load_npz(save(tmp_path / "set.npz", y_train=np.array([True, False] * 2), y_test=np.array([False, True])))
    assert split.y_train.tolist() == [1, 0, 1, 0]
    assert split.classes == 2


def test_images(tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    split = load_npz(save(tmp_path / "set.npz", x_train=x, x_test=x[:2]))
    assert split.image_shape == (2, 3)
    assert split.standardize == "global"
    torch.testing.assert_close(split.x_train, torch.arange(24.0).reshape(4, 6))
    x = x.reshape(4, 2, 3, 1)
    split = load_npz(save(tmp_path / "set.npz", x_train=x, x_test=x[:2]))
    assert split.image_shape is None
    assert split.in_features == 6


def test_class_names(tmp_path):
    split = load_npz(save(tmp_path / "set.npz", class_names=np.array(["ant", "bee", "cat", "dog"])))
    assert split.class_names == ("ant", "bee", "cat", "dog")
    assert split.classes == 4


def test_compressed(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", **arrays())
    assert load_npz(tmp_path / "set.npz").in_features == 3


NAN = np.ones((2, 3))
NAN[1, 0] = np.inf
BAD = {
    "missing": ({"y_test": None}, "archive must have the array y_test, got ['x_train', 'y_train', 'x_test']"),
    "object": (
        {"x_train": np.array([[1, None]] * 4)},
        "x_train must be an array of numbers, got an object array, which is never unpickled",
    ),
    "object labels": (
        {"y_test": np.array([1, "a"], object)},
        "y_test must be an array of numbers, got an object array, which is never unpickled",
    ),
    "text": ({"x_train": np.array([["a"]] * 4)}, "x_train must be an array of real numbers, got dtype <U1"),
    "complex": ({"x_test": np.ones((2, 3), complex)}, "x_test must be an array of real numbers, got dtype complex128"),
    "dates": ({"y_train": np.zeros(4, "M8[s]")}, "y_train must be an array of whole numbers, got dtype datetime64[s]"),
    "1-D": ({"x_train": np.ones(4)}, "x_train must have two dimensions or more and not be empty, got shape [4]"),
    "empty": (
        {"x_test": np.ones((0, 3)), "y_test": np.ones(0)},
        "x_test must have two dimensions or more and not be empty, got shape [0, 3]",
    ),
    "no features": (
        {"x_train": np.ones((4, 0))},
        "x_train must have two dimensions or more and not be empty, got shape [4, 0]",
    ),
    "one-hot": ({"y_train": np.eye(4)}, "y_train must be 1-D and not empty, got shape [4, 4]"),
    "infinite": ({"x_test": NAN}, "x_test must be finite in float32, got inf in row 1"),
    "overflow": ({"x_test": np.full((2, 3), 1e300)}, "x_test must be finite in float32, got inf in row 0"),
    "fraction": ({"y_train": np.array([0, 1, 1.5, 1])}, "y_train must be whole numbers, got 1.5 in row 2"),
    "nan label": ({"y_train": np.array([0, np.nan, 1, 1])}, "y_train must be whole numbers, got nan in row 1"),
    "inf label": ({"y_train": np.array([0, 1, 1, np.inf])}, "y_train must be whole numbers, got inf in row 3"),
    "negative": ({"y_test": np.array([0, -1])}, "y_test must be in 0..65535, got -1"),
    "giant": (
        {"y_train": np.array([0, 2**63, 1, 1], np.uint64)},
        "y_train must be in 0..65535, got 9223372036854775808",
    ),
    "identifiers": ({"y_train": np.array([0, 65536, 1, 1])}, "y_train must be in 0..65535, got 65536"),
    "test label": ({"y_test": np.array([0, 3])}, "y_test must be in 0..2 (3 classes), got 3"),
    "above the names": ({"class_names": np.array(["a", "b"])}, "y_train must be in 0..1 (2 classes), got 2"),
    "counts": ({"y_train": np.array([0, 1, 2])}, "y_train must have 4 entries, one for each row of x_train, got 3"),
    "features": ({"x_test": np.ones((2, 4))}, "x_test must have rows of shape [3], like x_train, got [4]"),
    "names": (
        {"class_names": np.array([1, 2, 3])},
        "class_names must be a 1-D array of strings, got dtype int64 and shape [3]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(tmp_path, case):
    replaced, text = BAD[case]
    assert error_of(save(tmp_path / "bad.npz", **replaced)) == text


def archive(**members):
    """A zip archive of the good arrays, with members replaced by raw bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for key, array in arrays().items():
            npy = io.BytesIO()
            np.lib.format.write_array(npy, array)
            target.writestr(key + ".npy", members.get(key, npy.getvalue()))
    return buffer.getvalue()


def npy(shape, data=b"", descr="<f8"):
    """An array file whose header claims any shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": descr})
    return buffer.getvalue() + data


GOOD = archive()
FLIPPED = bytearray(GOOD)
FLIPPED[GOOD.index(np.arange(12.0).tobytes()) + 20] ^= 1
BAD_BYTES = {
    "empty": (b"", "file must be a whole .npz (zip) archive, got File is not a zip file"),
    "text": (b"1,2,3\n", "file must be a whole .npz (zip) archive, got File is not a zip file"),
    "truncated": (GOOD[:-30], "file must be a whole .npz (zip) archive, got File is not a zip file"),
    "one bit": (bytes(FLIPPED), "x_train must be an intact array, got Bad CRC-32 for file 'x_train.npy'"),
    "no npy": (
        archive(x_train=b"hello, world"),
        "x_train must be an intact array, got the magic string is not correct",
    ),
    "huge": (
        archive(x_train=npy((2**40, 2**40))),
        "x_train must hold the 9671406556917033397649408 bytes that its "
        "shape [1099511627776, 1099511627776] claims, at most 4294967296, got 0",
    ),
    "too few": (
        archive(y_train=npy((4,), b"\0" * 24)),
        "y_train must hold the 32 bytes that its shape [4] claims, at most 4294967296, got 24",
    ),
    "too many": (
        archive(y_train=npy((4,), b"\0" * 40)),
        "y_train must hold the 32 bytes that its shape [4] claims, at most 4294967296, got 40",
    ),
    "negative": (
        archive(y_train=npy((-4,), b"")),
        "y_train must hold the -32 bytes that its shape [-4] claims, at most 4294967296, got 0",
    ),
    "no arrays": (b"PK\5\6" + b"\0" * 18, "archive must have the array x_train, got no array"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_bytes(tmp_path, case):
    content, text = BAD_BYTES[case]
    (tmp_path / "bad.npz").write_bytes(content)
    assert error_of(tmp_path / "bad.npz").startswith(text)


def test_unreadable(tmp_path):
    assert error_of(tmp_path / "none.npz") == "file must be readable, got No such file or directory"


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    trap = np.empty((4, 1), object)
    trap[0, 0] = Trap()
    error_of(save(tmp_path / "bad.npz", x_train=trap))
    # padded to the very size that its header claims, so that only the dtype tells
    payload = trap.dumps()
    payload += bytes(-len(payload) % 8)
    (tmp_path / "bad.npz").write_bytes(archive(x_train=npy((len(payload) // 8,), payload, "|O")))
    text = "x_train must be an array of numbers, got an object array, which is never unpickled"
    assert error_of(tmp_path / "bad.npz") == text
    # a pickle in the place of the .npy file
    (tmp_path / "bad.npz").write_bytes(archive(x_train=trap.dumps()))
    error_of(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(trap.dumps())
    error_of(tmp_path / "bad.npz")
    assert not (tmp_path / "sprung").exists()


HEADER = GOOD.index(b"{'descr'")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1) | st.integers(0, HEADER + 80), st.integers(0, 255)), max_size=4),
    st.just(len(GOOD)) | st.integers(0, len(GOOD)),
    st.just(b"") | st.binary(max_size=40),
)
@pytest.mark.filterwarnings("ignore:.*created on Python 2.*:UserWarning", "ignore:invalid escape:SyntaxWarning")
def test_fuzz(tmp_path_factory, edits, cut, more):
    content = bytearray(GOOD)
    for place, value in edits:
        content[place] = value
    _load_or_refuse(tmp_path_factory.getbasetemp() / "fuzz.npz", bytes(content[:cut]) + more)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("{}()[]'\",:<>|=fiuOSUV0123456789 \\#\n\tdescrshapefortran_orderTrueFalse"), max_size=60)
    | st.builds(
        "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}".format,
        st.sampled_from(["'<f8'", "'|O'", "'<i8'", "[('a', '<f8')]", "'<M8[s]'", "'V0'", "'(2,)f4'", "3", "None"]),
        st.sampled_from(["True", "False", "0"]),
        st.lists(st.integers(-3, 2**70) | st.integers(0, 4), max_size=4).map(tuple),
    ),
    st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0"]),
    st.binary(max_size=40),
)
@pytest.mark.filterwarnings("ignore:.*created on Python 2.*:UserWarning", "ignore:invalid:SyntaxWarning")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_fuzz_header(tmp_path_factory, header, version, data):
    # an archive with right sums, so that the header itself reaches the parser
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    content = archive(y_test=b"\x93NUMPY" + version + length + header.encode("latin1") + data)
    _load_or_refuse(tmp_path_factory.getbasetemp() / "fuzz.npz", content)


def _load_or_refuse(path, content):
    path.write_bytes(content)
    try:
        split = load_npz(path)
    except DataError as error:
        assert not re.search(r"\n", str(error))  # noqa: PT017 (either outcome is right)
    else:
        assert split.in_features >= 1
