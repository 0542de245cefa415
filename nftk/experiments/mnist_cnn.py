"""The convolutional network of ten digits that the experiments on surrogates and on attribution share."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD

import nftk
from nftk._files import replacing
from nftk.data import Standardizer, load_data
from nftk.experiments.networks import SUBSET_SEED, Place

TRAIN, TEST = 5000, 1000
EPOCHS, BATCH_SIZE, LR, MOMENTUM, WEIGHT_DECAY = 12, 50, 0.02, 0.9, 5e-4


class Digits(NamedTuple):
    """A fixed draw of MNIST, standardised: images ``(n, 1, 28, 28)`` in float32, labels int64 ``(n,)``."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(place: Place, train: int = TRAIN, test: int = TEST) -> Digits:
    """So many examples of each side, the same in every call."""
    split = load_data("mnist", place.data_dir)
    kept = [_draw(len(x), count) for x, count in ((split.x_train, train), (split.x_test, test))]
    standardizer = Standardizer.fit(split.x_train, split.standardize)
    x, x_test = (
        standardizer.transform(images[rows]).reshape(-1, 1, 28, 28)
        for images, rows in zip((split.x_train, split.x_test), kept, strict=True)
    )
    return Digits(x, split.y_train[kept[0]], x_test, split.y_test[kept[1]])


def _draw(n: int, count: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(SUBSET_SEED))[:count]


def convolutional(seed: int) -> nn.Sequential:
    """Three convolutions, each with relu and pooling, and two linear layers: 33,194 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train_cnn(x: Tensor, y: Tensor, *, seed: int, epochs: int = EPOCHS) -> nn.Sequential:
    """Train from the start; the network comes back in eval mode."""
    with torch.random.fork_rng(devices=[]):
        model = convolutional(seed)

    def sgd(parameters: object) -> SGD:
        return SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)  # type: ignore[arg-type]

    nftk.fit(model, (x, y), epochs=epochs, batch_size=BATCH_SIZE, seed=seed, optimizer=sgd)
    return model.eval()


def trained_cnn(place: Place, x: Tensor, y: Tensor, *, seed: int, epochs: int = EPOCHS) -> nn.Sequential:
    """As :func:`train_cnn`, once for these data and settings: later calls find the weights in place.runs."""
    settings = f"1 {seed} {epochs} {BATCH_SIZE} {LR} {MOMENTUM} {WEIGHT_DECAY}"
    content = b"".join((settings.encode(), x.contiguous().numpy().tobytes(), y.numpy().tobytes()))
    path = place.runs / f"mnist-cnn-seed{seed}-{hashlib.sha256(content).hexdigest()[:10]}.pt"
    if path.exists():
        with torch.random.fork_rng(devices=[]):
            model = convolutional(seed)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = train_cnn(x, y, seed=seed, epochs=epochs)
    place.runs.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(model.state_dict(), temporary)
    return model
