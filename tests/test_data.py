"""nftk.data: load_data, digits, DataSplit and Standardizer."""

import dataclasses
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_idx import write_folder
from test_data_npz import save

from nftk.data import DataError, DataSplit, Standardizer, load_data


def make_split(**replaced):
    parts = {
        "x_train": torch.rand(5, 4),
        "y_train": torch.tensor([0, 1, 2, 0, 1]),
        "x_test": torch.rand(2, 4),
        "y_test": torch.tensor([2, 0]),
        "class_names": ("a", "b", "c"),
        "name": "toy",
    }
    return DataSplit(**(parts | replaced))


def test_digits_are_fixed():
    split = load_data("digits")
    assert (split.x_train.shape, split.x_test.shape) == ((1347, 64), (450, 64))
    assert split.y_train.bincount().tolist() == [133, 136, 133, 137, 136, 136, 136, 134, 131, 135]
    assert split.y_test.bincount().tolist() == [45, 46, 44, 46, 45, 46, 45, 45, 43, 45]
    digest = hashlib.sha256(bytes(split.y_test.tolist())).hexdigest()
    assert digest == "761b0c5b17762fe1a05658c412faf0d248f1dbb10d8cd526c39ceca2dddd9bf4"
    assert (split.x_train.min(), split.x_train.max()) == (0, 1)
    assert (split.x_train * 16 == (split.x_train * 16).round()).all()
    assert (split.classes, split.image_shape, split.standardize) == (10, (8, 8), "global")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"the data set digits needs scikit-learn; run `pip install 'nftk\[app\]'`"):
        load_data("digits")


def test_load_data_by_path(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "digits")
    assert load_data(folder).name == load_data(str(folder)).name == str(folder)
    assert load_data(save(tmp_path / "set.npz")).in_features == 3
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").in_features == 64, "a name wins over a folder of that name"
    assert load_data("mnist", folder).in_features == 8
    assert load_data("./digits").name == "./digits"
    assert load_data(Path("digits")).in_features == 8


@pytest.mark.parametrize("source", ["cifar", "reviews", "none.npz", "no/such/folder", "", "a" * 5000, "nul\0"])
def test_load_data_unknown(source):
    with pytest.raises(DataError) as caught:
        load_data(source)
    assert str(caught.value) == (
        f"nftk.data: {source}: data must be digits, mnist, imdb, imdb-gpt2, a folder with the four idx files or an "
        ".npz file, got neither a name nor a path that exists"
    )


def test_split():
    split = make_split(image_shape=(2, 2), standardize="global")
    assert (split.in_features, split.classes) == (4, 3)
    assert repr(split) == "DataSplit('toy': 5 training and 2 test rows, 4 features, 3 classes)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.name = "other"
    assert split == split
    assert split != make_split()


def at(tensor, value):
    tensor = tensor.clone()
    tensor[-1] = value
    return tensor


BAD_SPLITS = {
    "dtype": (
        {"x_test": torch.ones(2, 4).double()},
        TypeError,
        "x_test must be a tensor of torch.float32, got torch.float64",
    ),
    "label dtype": (
        {"y_train": torch.zeros(5).int()},
        TypeError,
        "y_train must be a tensor of torch.int64, got torch.int32",
    ),
    "array": ({"x_train": np.ones((5, 4))}, TypeError, "x_train must be a tensor of torch.float32, got ndarray"),
    "dims": ({"x_train": torch.ones(5, 2, 2)}, DataError, "x_train must be 2-D and not empty, got shape [5, 2, 2]"),
    "no rows": ({"x_test": torch.ones(0, 4)}, DataError, "x_test must be 2-D and not empty, got shape [0, 4]"),
    "no columns": ({"x_train": torch.ones(5, 0)}, DataError, "x_train must be 2-D and not empty, got shape [5, 0]"),
    "one-hot": ({"y_test": torch.zeros(2, 3).long()}, DataError, "y_test must be 1-D and not empty, got shape [2, 3]"),
    "rows": ({"y_train": torch.tensor([0, 1])}, DataError, "y_train must have 5 rows, as x_train has, got 2"),
    "features": ({"x_test": torch.ones(2, 3)}, DataError, "x_test must have 4 features, as x_train has, got 3"),
    "nan": ({"x_train": at(torch.ones(5, 4), math.nan)}, DataError, "x_train must be finite, got nan in row 4"),
    "test inf": ({"x_test": at(torch.ones(2, 4), -math.inf)}, DataError, "x_test must be finite, got -inf in row 1"),
    "label": ({"y_test": torch.tensor([0, 3])}, DataError, "y_test must be in 0..2 (3 classes), got 3"),
    "negative": ({"y_train": torch.tensor([0, 1, 2, 0, -1])}, DataError, "y_train must be in 0..2 (3 classes), got -1"),
    "image": (
        {"image_shape": (2, 3)},
        DataError,
        "image_shape must have 4 pixels, as many as there are features, got 2 x 3",
    ),
    "no names": ({"class_names": ()}, DataError, "class_names must name 1 to 65536 classes, got 0"),
    "mode": ({"standardize": "none"}, DataError, "standardize must be 'global' or 'feature', got 'none'"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_split(case):
    replaced, error, text = BAD_SPLITS[case]
    with pytest.raises(error) as caught:
        make_split(**replaced)
    assert str(caught.value) == "nftk.data: toy: " + text


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5000, 700)], ids=str)
def test_standardizer(shape):
    # so far from 0 that a mean rounded to float32 would be off by a fortieth of the deviation
    x = torch.rand(shape) * 3 + 2**20
    truth = x.double().numpy()
    for mode, axis in (("global", None), ("feature", 0)):
        fitted = Standardizer.fit(x, mode)
        mean, scale = np.atleast_1d(truth.mean(axis)), np.atleast_1d(truth.std(axis))
        scale[scale == 0] = 1
        assert fitted.mean.dtype == fitted.scale.dtype == torch.float64
        np.testing.assert_allclose(fitted.mean.numpy(), mean, rtol=1e-13)
        np.testing.assert_allclose(fitted.scale.numpy(), scale, rtol=1e-10)
        out = fitted.transform(x)
        assert out.dtype == torch.float32
        np.testing.assert_allclose(out.numpy(), (truth - mean) / scale, rtol=1e-6, atol=1e-9)
    none = Standardizer.fit(x, "none")
    assert (none.mean.tolist(), none.scale.tolist()) == ([0], [1])
    assert torch.equal(none.transform(x), x)


def test_standardizer_sees_training_rows_only():
    split = make_split()
    before = Standardizer.fit(split.x_train, split.standardize)
    other = dataclasses.replace(split, x_test=split.x_test * 100 + 7)
    after = Standardizer.fit(other.x_train, other.standardize)
    assert before.to_dict() == after.to_dict()
    # and the test rows are moved by the training rows' numbers: their own mean would come out as 0
    assert before.transform(other.x_test).mean() > 5


def test_standardizer_constant_features():
    # the mean of three times 0.1 is not 0.1 in float64, and the deviation 1e-17
    x = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]], dtype=torch.float64)
    fitted = Standardizer.fit(x, "feature")
    assert fitted.scale[0] == 1
    assert fitted.transform(x)[:, 0].abs().max() < 1e-7
    assert Standardizer.fit(torch.full((4, 2), 0.1), "global").scale.tolist() == [1]


def test_standardizer_does_not_touch_its_input():
    x = torch.rand(6, 3, requires_grad=True)
    before = x.detach().clone()
    fitted = Standardizer.fit(x, "feature")
    out = fitted.transform(x)
    assert torch.equal(x, before)
    assert not fitted.mean.requires_grad
    out.sum().backward()
    torch.testing.assert_close(x.grad, (1 / fitted.scale).float().expand(6, 3))


def test_standardizer_dict():
    fitted = Standardizer.fit(torch.rand(9, 4), "feature")
    back = Standardizer.from_dict(json.loads(json.dumps(fitted.to_dict() | {"mode": "feature"})))
    assert torch.equal(back.mean, fitted.mean)
    assert torch.equal(back.scale, fitted.scale)


def standardizer_errors():
    fit, fitted = Standardizer.fit, Standardizer.fit(torch.rand(5, 3), "feature")
    nan = at(torch.ones(4, 3), math.nan)
    tiny = Standardizer(torch.zeros(1).double(), torch.full((1,), 1e-40).double())
    load = Standardizer.from_dict
    return {
        "nan": (lambda: fit(nan), DataError, "fit: x must be finite, got nan in row 3"),
        "transform nan": (lambda: fitted.transform(nan), DataError, "transform: x must be finite, got nan in row 3"),
        "overflow": (
            lambda: tiny.transform(torch.ones(2, 2)),
            DataError,
            "transform: x must stay finite when standardised, got inf in row 0",
        ),
        "empty": (lambda: fit(torch.ones(0, 3)), DataError, "fit: x must not be empty, got shape [0, 3]"),
        "dims": (lambda: fit(torch.ones(3)), ValueError, "fit: x must have shape [n, m], got [3]"),
        "dtype": (lambda: fit(torch.ones(3, 3).int()), TypeError, "fit: x must have a floating dtype, got torch.int32"),
        "mode": (
            lambda: fit(torch.ones(3, 3), "pixel"),
            ValueError,
            "fit: mode must be one of 'global', 'feature', 'none', got 'pixel'",
        ),
        "columns": (
            lambda: fitted.transform(torch.ones(2, 4)),
            ValueError,
            "transform: x must have 3 columns, as were fitted, got 4",
        ),
        "no key": (lambda: load({"mean": [0.0]}), DataError, "from_dict: scale must be a list of numbers, got None"),
        "text": (
            lambda: load({"mean": ["0"], "scale": [1]}),
            DataError,
            "from_dict: mean must be a list of numbers, got ['0']",
        ),
        "nan mean": (
            lambda: load({"mean": [math.nan], "scale": [1]}),
            DataError,
            "mean must be finite float64 numbers in one row, got tensor([nan]",
        ),
        "no entries": (
            lambda: load({"mean": [], "scale": []}),
            DataError,
            "mean must be finite float64 numbers in one row, got tensor([]",
        ),
        "lengths": (
            lambda: load({"mean": [0, 1], "scale": [1]}),
            DataError,
            "mean needs a positive scale for each entry, got 2 means, 1 scales and least scale 1",
        ),
        "zero scale": (
            lambda: load({"mean": [0], "scale": [0]}),
            DataError,
            "mean needs a positive scale for each entry, got 1 means, 1 scales and least scale 0",
        ),
    }


@pytest.mark.parametrize("case", standardizer_errors())
def test_standardizer_errors(case):
    call, error, text = standardizer_errors()[case]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value).startswith("nftk.data.Standardizer")
    assert text in str(caught.value)
