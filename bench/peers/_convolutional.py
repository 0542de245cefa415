"""The convolutional network of MNIST's experiments, in torch alone: what nftk and nngeometry are both given."""

import torch
from torch import nn

# nftk.experiments.mnist_cnn: shapes of the weights; each convolution has relu and pooling behind it
SHAPES = ((16, 1, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 288), (10, 64))


def network(layers):
    """Of weights and biases as numpy arrays."""
    parts = []
    for w, _ in layers:
        if w.ndim == 4:
            parts += [nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        else:
            parts += [nn.Flatten()] * (not isinstance(parts[-1], nn.Linear | nn.ReLU))
            parts += [nn.Linear(w.shape[1], w.shape[0]), nn.ReLU()]
    found = nn.Sequential(*parts[:-1]).eval()
    with torch.no_grad():
        for parameter, value in zip(found.parameters(), (x for layer in layers for x in layer), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return found
