"""empirical_ntk into a file: of any module, finished where it was cut off."""

import functools

import pytest
import torch
from torch import nn

import nftk
from nftk.ops import tangent_gram_torch
from nftk.tangent import resumable


@pytest.fixture(autouse=True)
def _many_tiles(monkeypatch):
    """A note after each of many tiles."""
    monkeypatch.setattr(resumable, "_PATIENCE", 0.0)
    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (8, 8)})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)).double()


@pytest.fixture
def x():
    return torch.randn(200, 1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Stop(Exception):
    """Somebody's Ctrl-C."""


def stop_at(share):
    def tell(done, total):
        if done >= share * total:
            raise Stop

    return tell


@pytest.mark.parametrize("settings", [{"per": "module"}, {"per": "model", "reduction": "trace", "normalize": "cosine"}])
def test_a_file_holds_what_memory_would(model, x, tmp_path, settings):
    want = nftk.empirical_ntk(model, x[:20], x[20:], **settings)
    found = nftk.empirical_ntk(model, x[:20], x[20:], out=tmp_path / "k.safetensors", **settings)
    torch.testing.assert_close(found.blocks, want.blocks, rtol=1e-12, atol=1e-12)
    again = nftk.LayerKernels.load(tmp_path / "k.safetensors")
    assert (again.names, again.reduction, again.normalization) == (want.names, want.reduction, want.normalization)
    assert [p.name for p in tmp_path.iterdir()] == ["k.safetensors"]


def test_a_network_and_weights_go_into_a_file(tmp_path):
    network, x = nftk.NFTKMLP(5, [8, 8], 3), torch.randn(12, 5)
    want = nftk.empirical_ntk(network, x, weights=[1.0, 2.0])
    found = nftk.empirical_ntk(network, x, weights=[1.0, 2.0], out=str(tmp_path / "k"))
    torch.testing.assert_close(found.blocks, want.blocks, rtol=1e-5, atol=1e-6)


def test_cut_off_it_goes_on_and_ends_the_same(model, x, tmp_path):
    path, settings = tmp_path / "k", {"per": "module", "reduction": "trace", "memory_budget": 1 << 17}
    tiles = []
    nftk.empirical_ntk(model, x, out=tmp_path / "whole", progress=lambda done, total: tiles.append(done), **settings)
    assert len(tiles) > 3
    with pytest.raises(Stop):
        nftk.empirical_ntk(model, x, out=path, progress=stop_at(0.6), **settings)
    assert not path.exists()
    more = []
    found = nftk.empirical_ntk(model, x, out=path, progress=lambda done, total: more.append(done), **settings)
    assert 0 < len(more) < len(tiles)
    assert torch.equal(found.blocks, nftk.LayerKernels.load(tmp_path / "whole").blocks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k", "whole"]


@pytest.mark.parametrize("other", ["parameters", "inputs", "reduction", "outputs"])
def test_what_was_begun_with_something_else_is_refused(model, x, tmp_path, other):
    settings = {"per": "module", "reduction": "trace", "output_fn": lambda out: out[:, :2]}
    with pytest.raises(Stop):
        nftk.empirical_ntk(model, x, out=tmp_path / "k", progress=stop_at(0.0), **settings)
    if other == "parameters":
        with torch.no_grad():
            model[0].weight[0, 0, 0] += 1
    elif other == "inputs":
        x = x + 1
    elif other == "reduction":
        settings["reduction"] = "sum_logits"
    else:
        settings["output_fn"] = lambda out: out[:, 1:]
    with pytest.raises(ValueError, match=r"must be finished with the network, inputs and settings it was begun with"):
        nftk.empirical_ntk(model, x, out=tmp_path / "k", **settings)


class Scaled(nn.Module):
    """With plain attributes, which its state leaves out."""

    def __init__(self, t=1.0, table=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.t, self.table = nn.Linear(12, 3), t, torch.full((3,), table)
        self.register_buffer("shift", torch.zeros(3), persistent=False)
        self.double()

    def forward(self, x):
        return (self.inner(x[:, 0] * self.t) + self.table).tanh() + self.shift


def column(out, *, k=0):
    return out[:, k : k + 1]


def enclosing(k):
    return lambda out: out[:, k : k + 1]


def defaulting(k):
    return lambda out, k=k: out[:, k : k + 1]


CHANGES = {
    "number": (lambda: Scaled(1.0), lambda: Scaled(3.0), None, None),
    "tensor": (lambda: Scaled(), lambda: Scaled(table=1.0), None, None),
    "closure": (Scaled, Scaled, enclosing(0), enclosing(1)),
    "default": (Scaled, Scaled, defaulting(0), defaulting(1)),
    "partial": (Scaled, Scaled, functools.partial(column, k=0), functools.partial(column, k=1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_only_attributes_or_closures_tell_apart_is_refused(x, tmp_path, name):
    first, second, before, after = CHANGES[name]
    settings = {"per": "module", "reduction": "trace"}
    with pytest.raises(Stop):
        nftk.empirical_ntk(first(), x, out=tmp_path / "k", progress=stop_at(0.0), output_fn=before, **settings)
    with pytest.raises(ValueError, match=r"must be finished with the network, inputs and settings it was begun with"):
        nftk.empirical_ntk(second(), x, out=tmp_path / "k", output_fn=after, **settings)
    # the same, made anew, is finished
    same = enclosing(0) if name == "closure" else before
    nftk.empirical_ntk(first(), x, out=tmp_path / "k", output_fn=same, **settings)
    folder = tmp_path / "p"
    tangents = nftk.tangent.project_tangents
    tangents(first(), x, 4, per="module", out=folder, output_fn=before)
    tangents(first(), x, 4, per="module", out=folder, output_fn=same)
    with pytest.raises(ValueError, match="must be finished with the network and inputs it was begun with"):
        tangents(second(), x, 4, per="module", out=folder, output_fn=after)


def test_a_file_that_is_there_is_left_alone(model, x, tmp_path):
    (tmp_path / "k").write_text("mine")
    with pytest.raises(ValueError, match=r"nftk\.empirical_ntk: the file must not be there yet, got .*k"):
        nftk.empirical_ntk(model, x, per="model", out=tmp_path / "k")
    assert (tmp_path / "k").read_text() == "mine"
    with pytest.raises(ValueError, match="must be a folder that exists"):
        nftk.empirical_ntk(model, x, per="model", out=tmp_path / "none" / "k")
    with pytest.raises(ValueError, match="differentiable must go without out"):
        nftk.empirical_ntk(nftk.NFTKMLP(5, [4], 2), torch.randn(3, 5), out=tmp_path / "d", differentiable=True)
