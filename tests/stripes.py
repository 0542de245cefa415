"""Stripes in place of MNIST: images of its size that a small network learns in a second."""

import torch

from nftk.data import DataSplit


def stripes(examples, classes, train):
    """Noisy stripes whose phase is their class, so many examples, of which the first are for training."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(examples) % classes
    clean = torch.stack([(torch.arange(784) // 28 % classes == label).float() for label in range(classes)])
    x = (0.8 * torch.rand(examples, 784, generator=generator) + 0.2 * clean[y]).clamp(0, 1)
    names = tuple(map(str, range(classes)))
    return DataSplit(x[:train], y[:train], x[train:], y[train:], class_names=names, name="stripes")
