"""empirical_ntk within a memory budget, into memory of the caller's, and its progress."""

import numpy as np
import pytest
import torch
from chain_examples import inputs, make_model
from jacobian_kernels import REDUCTIONS
from kernel_checks import error
from torch.profiler import ProfilerActivity, profile

import nftk
from nftk.ops import tangent_gram_torch

ntk = nftk.empirical_ntk


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("per", ["layer", "module", "model"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
def test_the_budget_does_not_matter(monkeypatch, reduction, per, symmetric):
    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (4, 4)})
    model = make_model("relu")
    x1, x2 = inputs(model, 33, 21)
    x2 = None if symmetric else x2
    whole = ntk(model, x1, x2, per=per, reduction=reduction, normalize="cosine")
    plans = set()
    for budget in (14_000, 20_000, 40_000, 80_000):
        tiles = []
        try:
            k = ntk(
                model, x1, x2, per=per, reduction=reduction, normalize="cosine", memory_budget=budget,
                progress=lambda done, _, tiles=tiles: tiles.append(done),
            )  # fmt: skip
        except ValueError as refused:
            assert "memory_budget must be at least" in str(refused)  # noqa: PT017
            continue
        plans.add(len(tiles))
        torch.testing.assert_close(k.blocks, whole.blocks, rtol=1e-12, atol=1e-12)
        if symmetric:
            assert all(torch.equal(m, m.mT) for m in k.matrix().flatten(0, -3))
    assert len(plans) > 1
    assert max(plans) > 5


def test_a_budget_too_small_is_refused_with_the_least():
    model = make_model("relu")
    x = inputs(model, 9)[0]
    with pytest.raises(
        ValueError, match=r"memory_budget must be at least (\d+) bytes for this network, got 1000"
    ) as told:
        ntk(model, x, memory_budget=1000)
    least = int(str(told.value).split("at least ")[1].split()[0])
    ntk(model, x, memory_budget=least)
    with pytest.raises(ValueError, match="must be at least"):
        ntk(model, x, memory_budget=least - 1)


# what takes most of the memory: deltas, Gram matrices, states; and the tiles, which here are small
MEMORY = {
    "deltas": ((40, [64] * 4, 10), 300, {}, 10 << 20),
    "deltas, trace": ((40, [64] * 4, 10), 300, {"reduction": "trace"}, 4 << 20),
    "deltas of f": ((40, [64] * 4, 10), 300, {"per": "model", "include_omega": True}, 4 << 20),
    "normalised": ((40, [64] * 4, 10), 300, {"normalize": "joint"}, 10 << 20),
    "grams": ((3, [4] * 8, 1), 700, {"reduction": "trace"}, 3 << 20),
    "grams, weighted": ((3, [4] * 8, 1), 700, {"reduction": "diagonal", "weights": [1.0] * 8}, 3 << 20),
    "states": ((5, [2000], 3), 200, {"reduction": "sum_logits"}, 3 << 20),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_stays_under_the_budget(monkeypatch, name):
    """What torch allocates at once, beyond the output."""
    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (64, 64)})
    sizes, n, keywords, budget = MEMORY[name]
    model, x = nftk.NFTKMLP(*sizes), torch.randn(n, sizes[0])
    out = torch.zeros(ntk(model, x, **keywords).blocks.shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        ntk(model, x, out=out, memory_budget=budget, **keywords)
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    # and it is used: a plan that counted too much would be slow
    assert budget / 4 < most <= budget, f"{most / 2**20:.1f} MiB of {budget / 2**20:.1f}"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_out(tmp_path, reduction):
    model = make_model("relu", torch.float32)
    x1, x2 = inputs(model, 9, 8, torch.float32)
    want = ntk(model, x1, x2, reduction=reduction).blocks
    tensor = torch.full(want.shape, torch.nan)
    k = ntk(model, x1, x2, reduction=reduction, out=tensor)
    assert torch.equal(tensor, want)
    assert k.blocks.data_ptr() == tensor.data_ptr()
    array = np.memmap(tmp_path / "out", np.float32, "w+", shape=tuple(want.shape))
    ntk(model, x1, x2, reduction=reduction, out=array)
    array.flush()
    assert np.array_equal(np.memmap(tmp_path / "out", np.float32, "r", shape=tuple(want.shape)), want.numpy())


def test_out_errors(tmp_path):
    model = make_model("relu", torch.float32)
    x = inputs(model, dtype=torch.float32)[0]
    with pytest.raises(ValueError, match=r"out must have shape \[3, 5, 5\], got \[3, 5, 4\]"):
        ntk(model, x, reduction="trace", out=torch.empty(3, 5, 4))
    with pytest.raises(ValueError, match="out must have dtype torch.float32"):
        ntk(model, x, reduction="trace", out=torch.empty(3, 5, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match="out must be a torch.Tensor"):
        ntk(model, x, out=[1])
    array = np.zeros((3, 5, 5), np.float32)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        ntk(model, x, reduction="trace", out=array)
    with pytest.raises(TypeError, match="out must be an array that torch can write to"):
        ntk(model, x, reduction="trace", out=np.empty((3, 5, 5), dtype=">f4"))
    with pytest.raises(ValueError, match=r"out must have a place for every entry, got strides \(0, 5, 1\)"):
        ntk(model, x, reduction="trace", out=torch.empty(5, 5).expand(3, 5, 5))
    with pytest.raises(ValueError, match="out must not require gradients"):
        ntk(model, x, reduction="trace", out=torch.empty(3, 5, 5, requires_grad=True))


def test_progress(capsys):
    model = make_model("relu")
    x = inputs(model, 40)[0]
    seen = []
    ntk(model, x, memory_budget=60_000_000, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    ntk(model, x, progress=True)
    assert "kernel: 100%" in capsys.readouterr().err
    ntk(model, x)
    assert not capsys.readouterr().err


def test_many_outputs_of_few_examples_take_little_memory():
    model = nftk.NFTKMLP(3, [4, 5], 1000, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    k = ntk(model, x, reduction="diagonal", memory_budget=10 << 20)
    assert error(k.blocks.sum(-1), ntk(model, x, reduction="trace").blocks) < 1e-13
