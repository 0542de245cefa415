"""empirical_ntk of any module within a memory budget, into memory of the caller's, and into a file after a stop."""

import numpy as np
import pytest
import torch
from jacobian_kernels import REDUCTIONS
from kernel_checks import error
from module_examples import make
from torch.profiler import ProfilerActivity, profile

import nftk

# of the truth, which goes through torch.vmap
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
ntk = nftk.empirical_ntk


def least_budget(model, x1, x2=None, **keywords):
    """As the refusal of a smaller one says it."""
    with pytest.raises(ValueError, match="memory_budget must be at least") as told:
        ntk(model, x1, x2, per="module", memory_budget=1, **keywords)
    return int(str(told.value).split("at least ")[1].split()[0])


# each pair of two of the three settings is in one of these
@pytest.mark.parametrize(
    ("name", "symmetric", "reduction"),
    [(name, (n + r) % 2 == 0, reduction) for n, name in enumerate(("cnn", "transformer", "bare"))
     for r, reduction in enumerate(REDUCTIONS)],
)  # fmt: skip
def test_the_budget_does_not_matter(name, symmetric, reduction):
    model, x1, x2 = make(name, 5, 4)
    x2 = None if symmetric else x2
    whole, tiles = ntk(model, x1, x2, per="module", reduction=reduction, normalize="cosine"), set()
    least = least_budget(model, x1, x2, reduction=reduction, normalize="cosine")
    for budget in (least, 2 * least, 1 << 30):
        seen = []
        k = ntk(model, x1, x2, per="module", reduction=reduction, normalize="cosine", memory_budget=budget,
                progress=lambda done, total, seen=seen: seen.append((done, total)))  # fmt: skip
        assert seen[-1][0] == seen[-1][1]
        tiles.add(len(seen))
        torch.testing.assert_close(k.blocks, whole.blocks, rtol=1e-11, atol=1e-11)
        if symmetric:
            assert all(torch.equal(m, m.mT) for m in k.matrix().flatten(0, -3))
    assert len(tiles) > 1
    assert max(tiles) > 5


MEMORY = {
    "gradients": ("cnn", 300, {"reduction": "trace"}, 12 << 20),
    "full": ("cnn", 100, {}, 12 << 20),
    "normalised": ("transformer", 200, {"normalize": "joint"}, 12 << 20),
    "sums": ("resnet18", 40, {"reduction": "sum_logits"}, 24 << 20),
    "bare": ("bare", 400, {"reduction": "diagonal"}, 6 << 20),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_stays_under_the_budget(name):
    """What torch allocates at once, beyond the output."""
    kind, n, keywords, budget = MEMORY[name]
    model, x, _ = make(kind, n, 1, torch.float32)
    out = torch.zeros(ntk(model, x, per="module", **keywords).blocks.shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        ntk(model, x, per="module", out=out, memory_budget=budget, **keywords)
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert budget / 8 < most <= budget, f"{most / 2**20:.1f} MiB of {budget / 2**20:.1f}"


def test_out(tmp_path):
    model, x1, x2 = make("cnn")
    want = ntk(model, x1, x2, per="module").blocks
    array = np.memmap(tmp_path / "out", np.float64, "w+", shape=tuple(want.shape))
    ntk(model, x1, x2, per="module", out=array)
    assert error(torch.from_numpy(array), want) < 1e-14


def test_resume(tmp_path):
    """Cut off in the middle, the same call goes on; with other inputs it does not."""
    from nftk.tangent.request import Request, prepare
    from nftk.tangent.resumable import OtherKernelError, compute_to_file

    model, x, other = make("cnn", 13, 13)
    request = Request("module", "trace", None, None, False, "highest", "torch")
    budget = 2 * least_budget(model, x, reduction="trace")

    def compute(x, progress=None):
        network, x, _ = prepare(model, x, None, "test", per="module")
        return compute_to_file(
            network, x, None, request, tmp_path / "k", budget=budget, progress=progress, op="test"
        )  # fmt: skip

    def stop(done, total):
        if 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(x, stop)
    with pytest.raises(OtherKernelError, match="must be finished with the network, inputs and settings"):
        compute(other)
    written = compute(x)
    assert 0 < written.tiles_before < written.tiles
    k = nftk.LayerKernels.load(tmp_path / "k")
    assert error(k.blocks, ntk(model, x, per="module", reduction="trace").blocks) < 1e-13
