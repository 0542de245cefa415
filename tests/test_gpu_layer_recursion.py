"""The Triton kernel of layer_recursion on a GPU, by itself and through infinite_ntk, against float64 on the CPU."""

import pytest
import torch

import nftk
from nftk.ops import cosine_gap, layer_recursion
from nftk.ops.cosine_gap import directions
from nftk.ops.duals import Dual
from nftk.ops.layer_recursion import RecursionLayer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
ACTIVATIONS = ["relu", "leaky_relu", "identity", "erf", "sin", "gelu"]


def worst(found, truth):
    """Largest error over the largest entry, layer by layer."""
    assert found.is_cuda
    found = found.cpu().double()
    return ((found - truth).abs().amax((1, 2)) / truth.abs().amax((1, 2))).max().item()


@pytest.mark.parametrize("backend", ["auto", "triton", "torch"])
@pytest.mark.parametrize("b", [0.0, 0.3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_infinite_ntk(name, b, backend):
    """Tiles cut at both edges; the angles lie in the memory of the last kernel."""
    x1, x2 = torch.randn(203, 20), torch.randn(131, 20)
    # near, opposite and empty ones
    x1[1], x1[2], x1[3], x2[0] = x1[0] * 1.0001, -x1[0], 0, x1[0]
    settings = {"depth": 10, "activation": name, "bias_var": b, "weight_var": 1.7}
    weights = torch.rand(3, 10)
    for get in ("ntk", "nngp"):
        for right in (None, x2):
            there = None if right is None else right.cuda()
            wide = None if right is None else right.double()
            truth = nftk.infinite_ntk(x1.double(), wide, get=get, **settings, backend="torch").blocks
            found = nftk.infinite_ntk(x1.cuda(), there, get=get, **settings, backend=backend).blocks
            assert worst(found, truth) < 1e-5
            if right is None:
                assert torch.equal(found, found.mT)
            for some in (weights, weights[0]):
                truth_of = torch.einsum("kl,lxy->kxy", some.reshape(-1, 10).double(), truth)
                found = nftk.infinite_ntk(x1.cuda(), there, get=get, weights=some, **settings, backend=backend)
                assert worst(found.blocks, truth_of) < 1e-5


def test_float64_and_series_take_torch():
    x = torch.randn(50, 7, dtype=torch.float64)
    for settings in ({}, {"activation": "tanh"}, {"activation": ["relu", "erf", "gelu"]}):
        found = nftk.infinite_ntk(x.cuda(), depth=3, **settings).blocks
        torch.testing.assert_close(found.cpu(), nftk.infinite_ntk(x, depth=3, **settings).blocks)
        found = nftk.infinite_ntk(x.float().cuda(), depth=3, **settings).blocks
        torch.testing.assert_close(found.cpu(), nftk.infinite_ntk(x.float(), depth=3, **settings).blocks)


@pytest.mark.parametrize(("n1", "n2"), [(1, 1), (1, 300), (8, 64), (9, 65)])
def test_sizes(n1, n2):
    """Around a tile of 8 by 64; rows with gaps between them."""
    x1, x2 = torch.randn(n1, 5), torch.randn(n2, 5)
    layers = [RecursionLayer(Dual("gelu"), 1.5, 0.2)] * 4

    def call(x1, x2, backend):
        norms = [directions(x)[1] / 5**0.5 for x in (x1, x2)]
        gap = cosine_gap(x1, x2)
        room = gap.new_full((n1, n2 + 3), float("nan"))[:, :n2].copy_(gap)
        return layer_recursion(room, *norms, layers=layers, backend=backend)

    assert worst(call(x1.cuda(), x2.cuda(), "triton"), call(x1.double(), x2.double(), "torch")) < 2e-6


def test_more_than_2_to_the_31_entries():
    """Addresses are 64 bits wide: the last entries of 3 kernels of 30,000 x 30,000."""
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB")
    x = torch.randn(30000, 4)
    found = nftk.infinite_ntk(x.cuda(), depth=3, backend="triton").blocks
    truth = nftk.infinite_ntk(x[-50:].double(), depth=3).blocks
    assert worst(found[:, -50:, -50:], truth) < 1e-5
    assert worst(found[:, -50:, :50], nftk.infinite_ntk(x[-50:].double(), x[:50].double(), depth=3).blocks) < 1e-5
