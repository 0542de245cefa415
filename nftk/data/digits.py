"""The embedded default: 1797 real images of digits that come with scikit-learn."""

import torch

from nftk._optional import require
from nftk.data.split import DataSplit


def load_digits() -> DataSplit:
    """Images of handwritten digits, 8 x 8, bundled with scikit-learn; no network and no file is needed.

    The split is fixed: 1347 training and 450 test images, stratified by class, the same on every machine.

    Returns:
        Pixels divided by 16, hence in 0..1; ten classes.

    References:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
        https://doi.org/10.24432/C50P49 (its test part).

    Example:
        >>> load_digits()
        DataSplit('digits': 1347 training and 450 test rows, 64 features, 10 classes)
    """
    datasets = require("sklearn.datasets", purpose="the data set digits", extra="app")
    selection = require("sklearn.model_selection", purpose="the data set digits", extra="app")
    x, y = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(x / 16, y, test_size=0.25, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = (torch.from_numpy(part) for part in parts)
    return DataSplit(
        x_train.float(),
        y_train.long(),
        x_test.float(),
        y_test.long(),
        class_names=tuple("0123456789"),
        name="digits",
        image_shape=(8, 8),
        standardize="global",
    )
