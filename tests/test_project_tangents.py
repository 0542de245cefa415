"""nftk.tangent.project_tangents: unbiased, within the stated errors, kept apart, and finished where it was cut off."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import nftk
from nftk.reference import projection_reference
from nftk.tangent import ProjectedTangents, choose_k, project_tangents
from nftk.tangent import project_tangents as function
from nftk.tangent.projected_tangents import factors

KINDS = ("rademacher", "gaussian", "sjlt", "kronecker")


def nftk_model(dtype=torch.float64, **keywords):
    torch.manual_seed(1)
    model = nftk.NFTKMLP(5, [7, 6], 3, output_bias=True, omega_init=0.7, **keywords).to(dtype)
    with torch.no_grad():
        model.omega.copy_(torch.rand(3, 2))
        for layer in model.hidden:
            layer.bias.normal_()
    return model


def plain_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)).double()


def gradients(model, x, per):
    """All gradients by name, as project_tangents orders them: each row of a weight, and its bias."""
    layers = model.hidden if isinstance(model, nftk.NFTKMLP) else [m for m in model if isinstance(m, nn.Linear)][:-1]
    params = dict(model.named_parameters())
    readouts = isinstance(model, nftk.NFTKMLP) and per == "layer"
    blocks = len(model.hidden) if readouts else 1

    def outputs(p, row):
        if readouts:
            with torch.nn.utils.stateless._reparametrize_module(model, p):
                return model.readouts(row)
        return torch.func.functional_call(model, p, (row,)).unsqueeze(-2)

    jacobians = [torch.func.jacrev(outputs)(params, row) for row in x]
    by_name = {name: torch.stack([j[name] for j in jacobians]) for name in params}  # [n, blocks, d, ...]
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    for layer in layers:
        parts = [by_name[names[id(layer.weight)]]]
        if layer.bias is not None:
            parts.append(by_name[names[id(layer.bias)]].unsqueeze(-1))
        found.append(torch.cat(parts, -1).flatten(3))
    if isinstance(model, nftk.NFTKMLP):
        widths = [layer.weight.shape[0] for layer in layers]
        found += [v.flatten(3) for v in by_name["readout_weight"].split(widths, -1)]
        if per == "module":
            found.append(by_name["output_bias"])
    else:
        last = model[-1]
        parts = [by_name[names[id(last.weight)]], by_name[names[id(last.bias)]].unsqueeze(-1)]
        found.append(torch.cat(parts, -1).flatten(3))
    return found, blocks


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("per", ["layer", "module"])
@pytest.mark.parametrize("model", [nftk_model, lambda: nftk_model(parameterization="ntk", bias_var=0.3), plain_model])
def test_features_are_the_projected_gradients(model, per, kind):
    """Entry by entry: the definition's matrix times torch.func's gradients, in the stated order."""
    model, x, k = model(), torch.randn(4, 5).double(), 20
    parts, blocks = gradients(model, x, per)
    sizes = [part.shape[-1] for part in parts]
    matrices = projection_reference(k, sum(sizes), seed=9, kind=kind).split(sizes, 1)
    projected = [part @ matrix.mT for part, matrix in zip(parts, matrices, strict=True)]  # [n, blocks, d, k]
    if per == "layer":
        truth = sum(projected).transpose(0, 1)
    else:
        layers = 2
        readouts = slice(layers, layers + (2 if isinstance(model, nftk.NFTKMLP) else 1))
        whole = [*projected[:layers], sum(projected[readouts]), *projected[readouts.stop :]]
        truth = torch.cat([part.transpose(0, 1) for part in whole])
    for reduction in ("trace", "full", "sum_logits"):
        found = project_tangents(model, x, k, per=per, kind=kind, seed=9, reduction=reduction)
        wanted = truth.sum(2, keepdim=True) if reduction == "sum_logits" else truth
        torch.testing.assert_close(found.features, wanted, rtol=1e-10, atol=1e-10)
        exact = nftk.empirical_ntk(model, x, per=per, reduction="sum_logits" if reduction == "sum_logits" else "full")
        assert found.names == exact.names
        own = exact.blocks.diagonal(dim1=1, dim2=2).movedim(-1, 1).reshape(found.own.shape)
        torch.testing.assert_close(found.own, own)


@pytest.mark.parametrize("kind", KINDS)
def test_unbiased_and_within_the_stated_error(kind):
    """50 seeds, both K, against the kernel in float64: no mean beyond 5 standard errors, no rms beyond the bound."""
    model, x = nftk_model(), torch.randn(3, 5).double()
    other, seeds = torch.randn(2, 5).double(), 50
    for per, k, reduction in (("layer", 16, "trace"), ("module", 64, "full"), ("layer", 16, "sum_logits")):
        if reduction == "sum_logits" and kind != "gaussian":
            continue
        truth = nftk.empirical_ntk(model, x, other, per=per, reduction=reduction)
        found, bounds = [], []
        for seed in range(seeds):
            one = {"per": per, "kind": kind, "seed": seed, "reduction": reduction}
            a, b = project_tangents(model, x, k, **one), project_tangents(model, other, k, **one)
            kernel = a.kernel(b)
            found.append(kernel.blocks)
            bounds.append(a.error(b).blocks.square())
        assert (kernel.names, kernel.reduction, kernel.symmetric) == (truth.names, reduction, False)
        found, variance = torch.stack(found), torch.stack(bounds).mean(0)
        error = found - truth.blocks
        assert (error.mean(0).abs() <= 5 * (variance / seeds).sqrt() + 1e-12).all()
        rms = error.square().mean(0)
        # of 50 seeds the mean square is itself known to some 40 %; over all entries to 10
        assert (rms <= 2.5 * variance + 1e-20).all()
        assert rms.sum() <= 1.2 * variance.sum()
        if kind == "gaussian" and reduction != "trace":
            assert rms.sum() >= 0.7 * variance.sum()  # a bound that is met, not one that is far away


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_one_set(kind):
    model, x = nftk_model(), torch.randn(4, 5).double()
    for reduction in ("trace", "sum_logits", "full"):
        p = project_tangents(model, x, 30, kind=kind, reduction=reduction)
        k = p.kernel()
        assert k.symmetric
        again = p.kernel(project_tangents(model, x, 30, kind=kind, reduction=reduction))
        torch.testing.assert_close(k.blocks, again.blocks)
        mirrored = k.blocks.transpose(1, 2)
        assert torch.equal(k.blocks, mirrored.transpose(3, 4) if reduction == "full" else mirrored)
        weights = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
        weighted = p.kernel(weights=weights)
        torch.testing.assert_close(weighted.blocks[0], 0.5 * k.blocks[0] - 2 * k.blocks[1])
        weighted.blocks.sum().backward()
        torch.testing.assert_close(weights.grad, k.blocks.flatten(1).sum(1))
        assert weighted.names == ("weighted sum",)


def test_errors_of_weighted_sums():
    """Modules are projected apart, layers share what lies below them."""
    model, x = nftk_model(), torch.randn(4, 5).double()
    p = project_tangents(model, x, 30, per="module")
    each, w = p.error().blocks, [1.0, 2.0, -0.5, 3.0]
    wanted = torch.einsum("l,lxy->xy", torch.tensor(w).double().square(), each.square()).sqrt()
    torch.testing.assert_close(p.error(weights=w).blocks[0], wanted)
    p = project_tangents(model, x, 30)
    each = p.error().blocks
    torch.testing.assert_close(p.error(weights=[1.0, -2.0]).blocks[0], each[0] + 2 * each[1])


def test_weighted_features_are_those_of_f():
    """Layers share the projection: the omega-weighted features are those of the output's own tangent in theta."""
    model, x = nftk_model(), torch.randn(4, 5).double()
    layers = project_tangents(model, x, 40).features  # [L, n, d, k]
    modules = project_tangents(model, x, 40, per="module").features[:3].sum(0)
    torch.testing.assert_close(torch.einsum("lndk,dl->ndk", layers, model.omega.detach()), modules)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_examples_change_nothing(kind, monkeypatch):
    model, x = nftk_model(torch.float32), torch.randn(11, 5)
    whole = project_tangents(model, x, 24, kind=kind, seed=3)
    module = sys.modules["nftk.tangent.project_tangents"]
    monkeypatch.setattr(module, "_MOST", 3)
    monkeypatch.setattr(sys.modules["nftk.tangent.chain_projection"], "PIECE", 100)
    parts = project_tangents(model, x, 24, kind=kind, seed=3)
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.own, whole.own)


def test_triton(grid):
    model, x = nftk_model(torch.float32), torch.randn(3, 5)
    for kind in ("rademacher", "gaussian", "kronecker"):
        found = project_tangents(model, x, 12, kind=kind, backend="triton")
        torch.testing.assert_close(
            found.features, project_tangents(model, x, 12, kind=kind).features, rtol=1e-4, atol=1e-5
        )
    assert grid.launches


def test_memory_budget():
    model, x = nftk_model(torch.float32), torch.randn(40, 5)
    small = project_tangents(model, x, 64, memory_budget=17 << 20)
    torch.testing.assert_close(small.features, project_tangents(model, x, 64).features)
    with pytest.raises(ValueError, match=r"memory_budget must be at least \d+ bytes for this network, got 1000"):
        project_tangents(model, x, 64, memory_budget=1000)


def interrupted(at):
    def tell(done, total):
        if done >= at:
            raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("kind", KINDS)
def test_folder_is_finished_to_the_same_bits(kind, tmp_path, monkeypatch):
    module, feature_file = (sys.modules[f"nftk.tangent.{name}"] for name in ("project_tangents", "feature_file"))
    monkeypatch.setattr(module, "_MOST", 4)
    monkeypatch.setattr(feature_file, "_PATIENCE", 0.0)
    model, x = nftk_model(torch.float32), torch.randn(15, 5)
    call = {"kind": kind, "seed": 5}
    whole = project_tangents(model, x, 24, **call)
    with pytest.raises(KeyboardInterrupt):
        project_tangents(model, x, 24, out=tmp_path / "p", progress=interrupted(8), **call)
    with pytest.raises(ValueError, match="must be finished, got 8 of 15 examples"):
        ProjectedTangents.load(tmp_path / "p")
    seen = []
    # another step would round otherwise: what was begun with stays
    monkeypatch.setattr(module, "_MOST", 3)
    found = project_tangents(model, x, 24, out=tmp_path / "p", progress=lambda *a: seen.append(a), **call)
    assert seen == [(12, 15), (15, 15)]
    finished = project_tangents(model, x, 24, out=tmp_path / "p", **call)
    for again in (found, ProjectedTangents.load(tmp_path / "p"), finished):
        assert torch.equal(again.features, whole.features)
        assert torch.equal(again.own, whole.own)
        assert (again.names, again.seed, again.kind) == (whole.names, 5, kind)
    assert torch.equal(found.kernel().blocks, whole.kernel().blocks)
    assert np.load(tmp_path / "p" / "features.npy", mmap_mode="r").shape == (2, 15, 3, 24)


KILLED = """
import os, signal, sys, torch, nftk
from nftk.tangent import project_tangents
sys.modules["nftk.tangent.project_tangents"]._MOST = 4
sys.modules["nftk.tangent.feature_file"]._PATIENCE = 0.0
torch.manual_seed(0)
model, x = nftk.NFTKMLP(5, [7, 6], 3), torch.randn(15, 5)
kill = lambda done, total: done >= 8 and os.kill(os.getpid(), signal.SIGKILL)
project_tangents(model, x, 24, out=sys.argv[1], progress=kill if len(sys.argv) > 2 else False)
"""


def test_killed_and_resumed(tmp_path):
    for folder, arguments, code in (("p", ["kill"], -signal.SIGKILL), ("p", [], 0), ("q", [], 0)):
        call = [sys.executable, "-c", KILLED, str(tmp_path / folder), *arguments]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    for name in ("features.npy", "own.npy"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()


def test_folder_of_something_else_is_refused(tmp_path):
    model, x, out = nftk_model(torch.float32), torch.randn(6, 5), tmp_path / "p"
    project_tangents(model, x, 24, out=out)

    def refused(text, *args, **keywords):
        with pytest.raises(ValueError, match=text):
            project_tangents(*args, **{"out": out} | keywords)

    refused("must be finished with the settings it was begun with, seed 0, got 1", model, x, 24, seed=1)
    refused("k 24, got 25", model, x, 25)
    refused("kind rademacher, got sjlt", model, x, 24, kind="sjlt")
    refused("the network and inputs it was begun with, got others", model, x + 1, 24)
    other = nftk_model(torch.float32)
    with torch.no_grad():
        other.omega[0, 0] += 1
    refused("the network and inputs it was begun with, got others", other, x, 24)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused("out must be a new or empty folder, or one that was begun", model, x, 24, out=tmp_path / "full")
    refused("out must be a folder in one that exists", model, x, 24, out=tmp_path / "no" / "p")
    header = json.loads((out / "header.json").read_text())["projected tangents"]
    assert header["done"] == 6
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused("must be free, got another process", model, x, 24)
    os.close(handle)
    with pytest.raises(ValueError, match="must be a folder of projected tangents"):
        ProjectedTangents.load(tmp_path / "full")


def test_choose_k_by_hand():
    assert choose_k(0.1) == 200
    assert choose_k(0.05, kind="gaussian") == 800
    # log(2 * 100 / 0.1) / (0.01 - 0.008 / 6)
    assert choose_k(0.2, probability=0.9, n=10) == math.ceil(math.log(2000) / (0.04 / 4 - 0.008 / 6))
    assert choose_k(0.2, probability=0.9) == math.ceil(math.log(40) / (0.04 / 4 - 0.008 / 6))
    assert choose_k(0.5, probability=0.5, kind="sjlt") == 16
    m = math.isqrt(choose_k(0.3, kind="kronecker"))
    assert 4 * (m + 1) / m**2 <= 0.09 < 4 * m / (m - 1) ** 2


@pytest.mark.parametrize("kind", KINDS)
def test_choose_k_keeps_its_promise(kind):
    """Of 200 projections of 8 vectors, at most a tenth have any pair beyond the error; and the rms rule."""
    n, p = 8, 12
    a = torch.randn(n, p, dtype=torch.float64)
    a[1] = a[0] + 0.1 * a[1]

    def errors(k, trials=200):
        if kind == "kronecker":
            k1, k2 = factors(k)
            one = nftk.ops.project(a[:, :3].contiguous(), k1, seed=1, blocks=trials)
            two = nftk.ops.project(a[:, 3:7].contiguous(), k2, seed=2, blocks=trials)
            vectors = (a[:, :3, None] * a[:, None, 3:7]).flatten(1)
            gram = (one @ one.mT) * (two @ two.mT)
        else:
            vectors, found = a, nftk.ops.project(a, k, seed=1, kind=kind, blocks=trials)
            gram = found @ found.mT
        lengths = vectors.norm(dim=1)
        return ((gram - vectors @ vectors.mT) / torch.outer(lengths, lengths)).abs()

    wide = 0.9 if kind in ("sjlt", "kronecker") else 0.5
    k = choose_k(wide, probability=0.9, n=n, kind=kind)
    assert (errors(k).flatten(1).amax(1) <= wide).double().mean() >= 0.9
    rms = errors(choose_k(0.3, kind=kind)).square().mean(0).sqrt()
    assert rms.max() <= 0.3 * 1.2  # of 200 trials


def test_errors():
    model, x = nftk_model(torch.float32), torch.randn(3, 5)

    def refused(raised, text, *args, **keywords):
        with pytest.raises(raised, match=text):
            function(*args, **keywords)

    refused(ValueError, "per must be one of 'layer', 'module', 'model', got 'x'", model, x, 8, per="x")
    refused(ValueError, "kind must be one of 'rademacher', 'gaussian', 'sjlt', 'kronecker'", model, x, 8, kind="x")
    refused(ValueError, "reduction must be one of", model, x, 8, reduction="diagonal")
    refused(ValueError, "k must be at least 1, got 0", model, x, 0)
    refused(ValueError, "k must be a product of two numbers for kind .*, got 13", model, x, 13, kind="kronecker")
    refused(ValueError, "nonzeros must be at most k, 3, got 4", model, x, 3, kind="sjlt")
    refused(TypeError, "progress must be True, False or a function", model, x, 8, progress="yes")
    refused(ValueError, r"x1 must have shape \[n, 5\], got \[3, 4\]", model, x[:, :4], 8)
    p = project_tangents(model, x, 8)
    with pytest.raises(ValueError, match="other must share seed, 0, got 1"):
        p.kernel(project_tangents(model, x, 8, seed=1))
    with pytest.raises(ValueError, match="other must share k, 8, got 9"):
        p.error(project_tangents(model, x, 9))
    with pytest.raises(TypeError, match="other must be ProjectedTangents, got Tensor"):
        p.kernel(x)
    with pytest.raises(ValueError, match=r"weights must have 2 numbers, one a block, got \[3\]"):
        p.kernel(weights=[1.0, 2.0, 3.0])
    for text, keywords in (
        ("error must be finite and above 0, got 0", {"error": 0}),
        ("error must be below 1 where probability is given, got 1.5", {"error": 1.5, "probability": 0.5}),
        ("probability must be below 1, got 1.0", {"error": 0.1, "probability": 1.0}),
        ("n must go with probability, got n=3 alone", {"error": 0.1, "n": 3}),
        ("n must be at least 1, got 0", {"error": 0.1, "probability": 0.5, "n": 0}),
    ):
        with pytest.raises(ValueError, match=text):
            choose_k(**keywords)
    assert repr(p) == "ProjectedTangents(2 blocks of 3 examples, 3 outputs (trace), k = 8, rademacher, seed 0)"
