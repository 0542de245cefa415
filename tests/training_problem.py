"""A small problem to train on, a network for it, and what two runs must share."""

import torch

import nftk


def toy(n=60, m=4, d=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, m, generator=g, dtype=torch.float64).to(dtype)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long() * (d > 2)


def make(dtype=torch.float32, **keywords):
    torch.manual_seed(2)
    return nftk.NFTKMLP(4, [8, 8], 3, dtype=dtype, **keywords)


def assert_same_parameters(a, b):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name


def without_seconds(history):
    return [{k: v for k, v in record.to_dict().items() if k != "seconds"} for record in history]
