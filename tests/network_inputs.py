"""Inputs of nftk.ops.network, its definition, and how far a backend may be from it."""

from types import SimpleNamespace

import torch
from kernel_checks import error, guarded, slack

import nftk
from nftk.ops import activations

NAMES = list(activations.BY_NAME)
# (B, m, widths, d): one of each, ragged, exact tiles, one layer and many outputs
SHAPES = [(1, 1, (1,), 1), (7, 5, (3, 11, 2), 3), (37, 9, (5, 40, 17, 1), 10), (32, 16, (32, 16, 48), 16),
          (18, 20, (65,), 37)]  # fmt: skip
# in tiles of 16: two blocks of rows, and layers of one tile, of two and of one unit; THREE has another block
TWO, THREE = ((b, 5, (5, 20, 17, 1), 3) for b in (18, 33))
FORWARD, BACKWARD = ["_network_fwd_kernel"], ["_network_bwd_kernel", "_network_bwd_weights_kernel"]


def make_inputs(shape, dtype=torch.float32, requires_grad=False, layout="dense"):
    """x, weights, biases, readout weight, omega, output bias; NaN behind each."""
    b, m, widths, d = shape
    g = torch.Generator().manual_seed(0)

    def draw(*size, scale=1.0, layout=layout):
        values = (torch.randn(*size, generator=g, dtype=torch.float64) * scale).to(dtype)
        return guarded(values, layout).requires_grad_(requires_grad)

    weights = [draw(n, k, scale=k**-0.5) for n, k in zip(widths, (m, *widths[:-1]), strict=True)]
    return SimpleNamespace(
        x=draw(b, m, layout="rows" if layout == "dense" else layout),
        weights=weights,
        biases=[draw(n, scale=0.3) for n in widths],
        readout_weight=draw(d, sum(widths), scale=max(widths) ** -0.5, layout="rows"),
        omega=draw(d, len(widths), layout="rows"),
        output_bias=draw(d),
    )


def flat(i):
    return [t for t in (i.x, *i.weights, *i.biases, i.readout_weight, i.omega, i.output_bias) if t is not None]


def wide(i):
    def double(t):
        return None if t is None else t.detach().double().requires_grad_()

    return SimpleNamespace(**{
        name: [double(t) for t in value] if isinstance(value, list) else double(value)
        for name, value in vars(i).items()
    })  # fmt: skip


def run(i, **keywords):
    return nftk.ops.network(i.x, i.weights, i.biases, i.readout_weight, i.omega, output_bias=i.output_bias, **keywords)


def truth(i, activation="relu", weight_scales=None, bias_scales=None, readout_scales=None):
    """Equations 1-3, 7, 8 as a loop, with the scales where they are given; no code of ours but the name of phi."""
    phi, depth = activations.BY_NAME[activation].function, len(i.weights)
    ones = [1.0] * depth
    vs = i.readout_weight.split([w.shape[0] for w in i.weights], 1)
    h, f = i.x, 0 if i.output_bias is None else i.output_bias
    for l in range(depth):  # noqa: E741
        g = torch.einsum("oi,bi->bo", i.weights[l], h) * (weight_scales or ones)[l]
        if i.biases[l] is not None:
            g = g + i.biases[l] * (bias_scales or ones)[l]
        h = phi(g)
        f = f + i.omega[:, l] * torch.einsum("dn,bn->bd", vs[l], h) * (readout_scales or ones)[l]
    return f


def compare(i, **keywords):
    """Value and every gradient at most twice as far from the truth as eager torch's in that dtype."""
    dtype, doubles = i.x.dtype, wide(i)
    formula = {k: v for k, v in keywords.items() if k != "precision"}
    exact, plain = truth(doubles, **formula), truth(i, **formula)
    ours = run(i, backend="triton", **keywords)
    assert ours.dtype is dtype
    assert error(ours, exact) <= 2 * error(plain, exact) + slack(dtype)
    with torch.no_grad():
        # without gradients the states go to scratch; the sums are the same
        assert torch.equal(run(i, backend="triton", **keywords), ours)
    seed = torch.randn(exact.shape, dtype=torch.float64)
    got = torch.autograd.grad(ours, flat(i), seed.to(dtype))
    eager = torch.autograd.grad(plain, flat(i), seed.to(dtype))
    want = torch.autograd.grad(exact, flat(doubles), seed)
    for n, (a, b, c) in enumerate(zip(got, eager, want, strict=True)):
        assert a.shape == c.shape
        assert error(a, c) <= 2 * error(b, c) + slack(dtype), f"input {n}: {error(a, c):.1e}, eager {error(b, c):.1e}"
