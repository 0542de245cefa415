"""empirical_ntk against Jacobians: none of our formulas in the truth, only torch.func over the module itself."""

import copy
import threading

import numpy as np
import pytest
import torch
from kernel_checks import error
from torch import nn
from torch.profiler import ProfilerActivity, profile

import nftk
from nftk.ops import tangent_gram_torch
from nftk.reference import empirical_ntk_reference

ntk = nftk.empirical_ntk
REDUCTIONS = ("full", "trace", "diagonal", "sum_logits")


def swish_of_half(g):
    return g * torch.sigmoid(g / 2)


# sizes from 1 to 300, depths 1 to 12, d 1 to 20, every activation by name and a callable, both parameterisations
ARCHITECTURES = {
    "one of everything": (1, [1], 1, {}),
    "relu": (5, [7, 3, 9], 4, {"activation": "relu", "output_bias": True}),
    "no bias": (6, [5, 8], 3, {"activation": "leaky_relu", "bias": False}),
    "wide": (9, [300], 2, {"activation": "gelu"}),
    "deep": (4, [6] * 12, 2, {"activation": "tanh"}),
    "many outputs": (3, [11, 4], 20, {"activation": "silu"}),
    "ntk": (7, [8, 5, 6], 3, {"parameterization": "ntk", "activation": "erf", "bias_var": [0.3, 0.0, 1.2]}),
    "ntk, variances": (
        4,
        [6, 9],
        2,
        {"parameterization": "ntk", "activation": "sin", "weight_var": [1.0, 3.0], "readout_var": [0.5, 2.0]},
    ),
    "mixed": (5, [4, 6, 3], 5, {"activation": ["elu", "identity", swish_of_half], "output_bias": True}),
    "callable": (5, [4, 6], 3, {"activation": nn.Softplus(beta=2.0)}),
}


def make_model(name, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    m, widths, d, keywords = ARCHITECTURES[name]
    model = nftk.NFTKMLP(m, widths, d, dtype=dtype, **keywords)
    with torch.no_grad():
        model.omega.copy_(torch.rand(d, len(widths)) + 0.2)
        for layer in model.hidden:
            if layer.bias is not None:
                layer.bias.normal_()
    return model


class OneReadout(nn.Module):
    def __init__(self, model, layer):
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x):
        return self.model.readouts(x)[..., self.layer, :]


def jacobian_kernel(module, x1, x2, without=()):
    """Over all parameters of a module, or all but some."""
    everything = {name: p.detach() for name, p in module.named_parameters()}
    chosen = {name: p for name, p in everything.items() if name not in without}

    def function(p, x):
        return torch.func.functional_call(module, {**everything, **p}, (x,))

    return empirical_ntk_reference(function, chosen, x1, x2)


def reduced(full, reduction):
    if reduction == "sum_logits":
        return full.sum((-2, -1))
    diagonal = full.diagonal(dim1=-2, dim2=-1)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[reduction]


def inputs(model, n1=5, n2=4, dtype=torch.float64):
    m = model.in_features
    return torch.randn(n1, m, dtype=dtype), torch.randn(n2, m, dtype=dtype)


@pytest.fixture(params=["one tile", "small tiles"])
def tiles(request, monkeypatch):
    if request.param == "small tiles":
        for table in ("_TILE", "_TILE_TRACE"):
            monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (6, 8)})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_equal_jacobians(tiles, name):
    model = make_model(name)
    x1, x2 = inputs(model)
    for second in (x2, None):
        other = x1 if second is None else second
        kernels = {reduction: ntk(model, x1, second, reduction=reduction) for reduction in REDUCTIONS}
        for layer in range(len(model.hidden)):
            truth = jacobian_kernel(OneReadout(model, layer), x1, other)
            for reduction, k in kernels.items():
                want = reduced(truth, reduction)
                assert k.blocks[layer].shape == want.shape
                assert error(k.blocks[layer], want) <= 1e-11, (layer, reduction)
        assert kernels["full"].names == tuple(f"readout {i + 1}" for i in range(len(model.hidden)))


@pytest.mark.parametrize("include_omega", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_modules_add_up_to_the_model(name, include_omega):
    model = make_model(name)
    x1, x2 = inputs(model)
    truth = jacobian_kernel(model, x1, x2, without=() if include_omega else ("omega",))
    for reduction in REDUCTIONS:
        whole = ntk(model, x1, x2, per="model", reduction=reduction, include_omega=include_omega)
        parts = ntk(model, x1, x2, per="module", reduction=reduction, include_omega=include_omega)
        want = reduced(truth, reduction)
        assert error(whole.blocks[0], want) <= 1e-11
        assert error(parts.blocks.sum(0), want) <= 1e-11
        assert whole.names == ("model",)


@pytest.mark.parametrize("name", ["relu", "ntk", "mixed"])
def test_each_module_is_its_own_jacobians(name):
    model = make_model(name)
    x1, x2 = inputs(model)
    k = ntk(model, x1, x2, per="module", include_omega=True)
    everything = {n for n, _ in model.named_parameters()}
    for block, owner in zip(k.blocks, k.names, strict=True):
        own = {n for n in everything if n == owner or n.startswith(owner + ".")}
        assert own
        assert error(block, jacobian_kernel(model, x1, x2, without=everything - own)) <= 1e-11, owner


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_is_as_exact_as_eager(name):
    model = make_model(name, torch.float32)
    x1, x2 = inputs(model, 9, 8, torch.float32)
    wide = copy.deepcopy(model).double()
    for layer in range(len(model.hidden)):
        truth = jacobian_kernel(OneReadout(wide, layer), x1.double(), x2.double())
        eager = error(jacobian_kernel(OneReadout(model, layer), x1, x2), truth)
        ours = error(ntk(model, x1, x2).blocks[layer], truth)
        assert ours <= 2 * eager + 2 * torch.finfo(torch.float32).eps, f"ours {ours:.1e}, eager {eager:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_positive_and_exactly_symmetric(tiles, dtype):
    model = make_model("relu", dtype)
    x = inputs(model, 23, dtype=dtype)[0]
    for matrix in ntk(model, x).matrix():
        assert torch.equal(matrix, matrix.mT)
        values = torch.linalg.eigvalsh(matrix.double())
        assert values[0] >= -200 * torch.finfo(dtype).eps * values[-1]


# plain networks

MLPS = {
    "one layer": nn.Sequential(nn.Linear(4, 3)),
    "bare": nn.Linear(4, 3, bias=False),
    "deep": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
    "nested": nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.3)), nn.Identity(), nn.Linear(6, 3)
    ),
    "two in a row": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Softplus(), nn.Sigmoid(), nn.Linear(5, 3)),
}


@pytest.mark.parametrize("per", ["layer", "module", "model"])
@pytest.mark.parametrize("name", MLPS)
def test_plain_networks(name, per):
    model = copy.deepcopy(MLPS[name]).double().eval()
    x1, x2 = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    k = ntk(model, x1, x2, per=per)
    assert error(k.blocks.sum(0), jacobian_kernel(model, x1, x2)) <= 1e-11
    modules = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    names = {"layer": [modules[-1] or "model"], "module": [n or "model" for n in modules], "model": ["model"]}[per]
    assert list(k.names) == names


def test_from_mlp_agrees():
    mlp = copy.deepcopy(MLPS["deep"]).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    # the bias that from_mlp gives the middle layer is a parameter that the plain network lacks
    with_bias = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with_bias.load_state_dict({**mlp.state_dict(), "2.bias": torch.zeros(5, dtype=torch.float64)})
    taken = nftk.NFTKMLP.from_mlp(with_bias)
    last = ntk(taken, x).blocks[-1] + torch.eye(3, dtype=torch.float64)  # the output bias, in no Theta_l
    assert error(last, ntk(with_bias, x).blocks[0]) < 1e-13


def test_inputs_of_more_dimensions_are_flattened_where_the_network_does():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(4, 2, 3)
    assert torch.equal(ntk(model, x).blocks, ntk(model, x.flatten(1)).blocks)


# normalisation and weights


@pytest.mark.parametrize("per", ["layer", "module", "model"])
@pytest.mark.parametrize("how", ["cosine", "joint"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_normalize(tiles, reduction, how, per):
    model = make_model("mixed")
    x1, x2 = inputs(model, 7, 6)
    rows, columns = (nftk.tangent.self_kernels(model, x, per=per, reduction=reduction) for x in (x1, x2))
    own = ntk(model, x1, per=per, reduction=reduction).diagonal()
    assert error(rows, own.diagonal(dim1=2, dim2=3) if reduction == "full" else own) < 1e-13
    want = ntk(model, x1, x2, per=per, reduction=reduction).normalize(how, rows, columns)
    got = ntk(model, x1, x2, per=per, reduction=reduction, normalize=how)
    assert got.normalization == how
    assert error(got.blocks, want.blocks) < 1e-13
    assert error(ntk(model, x1, per=per, reduction=reduction, normalize=how).blocks,
                 ntk(model, x1, per=per, reduction=reduction).normalize(how).blocks) < 1e-13  # fmt: skip


def test_a_self_kernel_of_zero_gives_zero():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(3, 3)
    x[1] = 0
    k = ntk(model, x, reduction="trace", normalize="cosine").blocks[0]
    assert torch.equal(k[1], torch.zeros(3))
    assert error(k[[0, 2], [0, 2]], torch.ones(2)) < 1e-6


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("normalize", [None, "cosine", "joint"])
@pytest.mark.parametrize("per", ["layer", "module"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights(tiles, reduction, per, normalize, symmetric):
    model = make_model("relu")
    x1, x2 = inputs(model, 7, 6)
    x2 = None if symmetric else x2
    kinds = {"per": per, "reduction": reduction, "normalize": normalize}
    apart = ntk(model, x1, x2, **kinds)
    for weights in (torch.rand(len(apart)), [(-1.5) ** i for i in range(len(apart))], [0.0] * len(apart)):
        k = ntk(model, x1, x2, weights=weights, **kinds)
        want = torch.tensordot(torch.as_tensor(weights).double(), apart.blocks, 1)
        assert k.blocks.shape == (1, *want.shape)
        assert error(k.blocks[0], want) < 1e-7 if any(weights) else not k.blocks.any()
    assert torch.equal(k.blocks, k.blocks)
    assert k.names == ("weighted sum",)


def test_combine_of_the_blocks_leaves_out_cross_terms():
    """Erratum 2: the squared form approaches the kernel of f as width grows; the linear one does not."""
    gaps = {}
    for width in (32, 512):
        torch.manual_seed(0)
        model = nftk.NFTKMLP(6, [width] * 3, 2, parameterization="ntk")
        with torch.no_grad():
            model.omega.copy_(torch.tensor([[0.3, 1.0, 1.7], [1.5, 0.2, 0.8]]))
        x = torch.randn(12, 6)
        exact = ntk(model, x, per="model").blocks[0]
        k = ntk(model, x)
        gaps[width] = [error(k.combine(model.omega.detach(), power), exact) for power in (2, 1)]
    assert gaps[512][0] < 0.5 * gaps[32][0]
    assert gaps[512][1] > 2 * gaps[512][0]


# memory and output


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


# derivatives, dtypes, progress


def test_results_are_detached():
    model = make_model("relu")
    x = inputs(model)[0].requires_grad_()
    assert not ntk(model, x).blocks.requires_grad


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("reduction", ["full", "trace"])
def test_differentiable(reduction, symmetric):
    torch.manual_seed(0)
    model = nftk.NFTKMLP(3, [4, 2], 2, activation="tanh", dtype=torch.float64)
    x1, x2 = inputs(model, 3, 2)
    x2 = None if symmetric else x2
    parameters = dict(model.named_parameters())

    def through(x, *values):
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(
            Kernel(model, reduction), {f"model.{n}": v for n, v in given.items()}, (x, x2)
        )

    start = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert error(through(x1, *start), ntk(model, x1, x2, reduction=reduction, per="model").blocks) < 1e-13
    assert torch.autograd.gradcheck(through, (x1.requires_grad_(), *start))


class Kernel(nn.Module):
    def __init__(self, model, reduction):
        super().__init__()
        self.model, self.reduction = model, reduction

    def forward(self, x1, x2):
        return ntk(self.model, x1, x2, per="model", reduction=self.reduction, differentiable=True).blocks


def test_differentiable_errors():
    model = make_model("relu")
    x = inputs(model)[0]
    with pytest.raises(ValueError, match="differentiable must go without out and memory_budget"):
        ntk(model, x, differentiable=True, memory_budget=1 << 30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_taken_over(dtype):
    model = make_model("relu", torch.float32).to(dtype)
    x = inputs(model)[0].to(dtype)
    k = ntk(model, x)
    assert k.blocks.dtype is torch.float32
    assert torch.equal(k.blocks, ntk(copy.deepcopy(model).float(), x.float()).blocks)


def test_frozen_parameters_count():
    model = make_model("relu")
    x = inputs(model)[0]
    before = ntk(model, x)
    model.hidden[0].requires_grad_(False)
    assert torch.equal(ntk(model, x).blocks, before.blocks)


@pytest.mark.parametrize("n", [(0, 3), (3, 0), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("normalize", [None, "cosine"])
def test_few_examples(n, normalize):
    model = make_model("relu")
    x1, x2 = inputs(model, *n)
    assert ntk(model, x1, x2, normalize=normalize).blocks.shape == (3, *n, 4, 4)
    assert ntk(model, x1, normalize=normalize).blocks.shape == (3, n[0], n[0], 4, 4)


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


@pytest.mark.parametrize(
    "phi", ["gelu", nn.Mish(), nn.LeakyReLU(0.2, inplace=True), nn.Hardtanh(inplace=True)], ids=str
)
def test_inference_mode_and_functions_in_place(phi):
    model = nftk.NFTKMLP(4, [8, 6], 3, activation=phi, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    k = ntk(model, x)
    truth = jacobian_kernel(OneReadout(model, 1), x, x)
    assert error(k.blocks[1], truth) < 1e-12
    with torch.inference_mode():
        assert torch.equal(ntk(model, x).blocks, k.blocks)
        assert torch.equal(ntk(model, x.clone()).blocks, k.blocks)


def test_autocast_changes_nothing():
    model, x = make_model("relu", torch.float32), torch.randn(5, 5)
    want, own = ntk(model, x).blocks, nftk.tangent.self_kernels(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ntk(model, x).blocks, want)
        assert torch.equal(nftk.tangent.self_kernels(model, x), own)
        assert error(ntk(model, x, differentiable=True).blocks, want) < 1e-6


def test_many_outputs_of_few_examples_take_little_memory():
    model = nftk.NFTKMLP(3, [4, 5], 1000, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    k = ntk(model, x, reduction="diagonal", memory_budget=10 << 20)
    assert error(k.blocks.sum(-1), ntk(model, x, reduction="trace").blocks) < 1e-13


def test_threads_can_share_a_model():
    model = make_model("relu")
    x = inputs(model)[0]
    want, found = ntk(model, x).blocks, []
    threads = [threading.Thread(target=lambda: found.append(ntk(model, x).blocks)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(k, want) for k in found)


def test_grad_mode_and_default_dtype_are_left_alone():
    model = make_model("relu", torch.float32)
    x = inputs(model, dtype=torch.float32)[0]
    with torch.inference_mode():
        k = ntk(model, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(ntk(model, x).blocks, k.blocks)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.is_grad_enabled()


# the kernel's own source under it


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_cuda_source_gives_the_same(cuda, reduction, symmetric):
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        model = make_model("mixed", dtype)
        x1, x2 = inputs(model, 6, 5, dtype)
        x2 = None if symmetric else x2
        for kinds in ({}, {"normalize": "cosine"}, {"per": "model"}, {"per": "module"}, {"weights": [1.0, -2.0, 0.5]}):
            before = cuda.launches
            ours = ntk(model, x1, x2, reduction=reduction, backend="cuda", **kinds)
            assert cuda.launches == before + 1
            assert error(ours.blocks, ntk(model, x1, x2, reduction=reduction, backend="torch", **kinds).blocks) < bound


def test_omega_is_trained_through_kernels_of_the_extension(cuda):
    """Gradient steps on Omega fit a target kernel, which is the same combination at a hidden Omega."""
    model = make_model("mixed")
    x = inputs(model, 6)[0]
    k = ntk(model, x, backend="cuda")
    hidden = torch.rand(5, 3, dtype=torch.float64) + 0.5
    target = k.combine(hidden)
    omega = torch.full((5, 3), 0.9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([omega], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = (k.combine(omega) - target).square().sum() / target.square().sum()
        loss.backward()
        return loss

    first = closure().item()
    optimizer.step(closure)
    assert closure().item() < 1e-6 * first


# what is refused


class Doubled(nftk.NFTKMLP):
    def forward(self, x):
        return 2 * super().forward(x)


class Linear(nn.Module):
    """Another one, of the same name."""


def refusals():
    linear = nn.Linear(4, 4)
    tied = nftk.NFTKMLP(4, [4, 4], 2)
    tied.hidden[1].weight = tied.hidden[0].weight
    hooked = nftk.NFTKMLP(4, [4], 2)
    hooked.hidden[0].register_forward_hook(lambda *_: None)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
    mixed = nftk.NFTKMLP(4, [4], 2)
    mixed.omega.data = mixed.omega.data.double()
    broken = nftk.NFTKMLP(4, [4], 2)
    broken.omega.data[0, 0] = torch.nan
    relu, noise = nn.ReLU(), nn.RReLU()
    replaced = nn.Sequential(nn.Linear(4, 2))
    replaced[0].forward = lambda x: 0 * x[:, :2]
    hole = nn.Sequential(linear, relu, nn.Linear(4, 2))
    hole._modules["1"] = None
    return {
        "dropout": (nftk.NFTKMLP(4, [4], 2, dropout=0.5), ValueError, "must be in eval mode, got dropout 0.5"),
        "dropout of torch": (nn.Sequential(linear, relu, nn.Dropout(), linear), ValueError, "must be in eval mode"),
        "shared module": (nn.Sequential(linear, relu, linear), NotImplementedError, "must use every module once"),
        "shared weight": (tied, NotImplementedError, "the same parameter as hidden.0.weight and as hidden.1.weight"),
        "hook": (hooked, NotImplementedError, "must have hidden layers without hooks"),
        "parametrisation": (normed, NotImplementedError, "must have no hooks or parametrizations"),
        "prelu": (nn.Sequential(linear, nn.PReLU(), nn.Linear(4, 2)), NotImplementedError, "no parameters but"),
        "softmax": (
            nn.Sequential(linear, nn.Softmax(1), nn.Linear(4, 2)), NotImplementedError, "fixed function of each entry",
        ),
        "over the batch": (
            nftk.NFTKMLP(4, [4], 2, activation=lambda g: g - g.mean(0)), NotImplementedError, "fixed function of each",
        ),
        "a gate": (
            nftk.NFTKMLP(4, [6], 2, activation=lambda g: torch.cat((g[..., :3] * g[..., 3:], g[..., 3:]), -1)),
            NotImplementedError, "fixed function of each",
        ),
        "a flip": (nftk.NFTKMLP(4, [5], 2, activation=lambda g: g.flip(-1)), NotImplementedError, "fixed function of"),
        "batch norm": (
            nn.Sequential(linear, nn.BatchNorm1d(4, affine=False), relu, nn.Linear(4, 2)), ValueError, "in eval mode",
        ),
        "another forward": (replaced, NotImplementedError, "must have the forward of its class"),
        "chance": (nn.Sequential(linear, noise, nn.Linear(4, 2)), NotImplementedError, "fixed function of each entry"),
        "last activation": (nn.Sequential(linear, relu), NotImplementedError, "must end with its last nn.Linear"),
        "convolution": (nn.Sequential(nn.Conv1d(1, 1, 1), linear), NotImplementedError, "0 must be nn.Linear"),
        "own forward": (Doubled(4, [4], 2), NotImplementedError, "model must be an NFTKMLP, or an nn.Sequential"),
        "sizes": (nn.Sequential(linear, nn.Linear(3, 2)), ValueError, "must take the 4 outputs of the layer before"),
        "meta": (nftk.NFTKMLP(4, [4], 2, device="meta"), ValueError, "must have values, got some on the meta device"),
        "lazy": (nn.Sequential(nn.LazyLinear(2)), ValueError, "must have seen an input"),
        "a hole": (hole, ValueError, "every place of model must hold a module, got None at 1"),
        "compiled": (torch.compile(nn.Sequential(linear)), NotImplementedError, "OptimizedModule; give its ._orig_mod"),
        "parallel": (nn.DataParallel(nn.Sequential(linear)), NotImplementedError, "DataParallel; give its .module"),
        "another Linear": (nn.Sequential(Linear()), NotImplementedError, "got test_empirical_ntk.Linear"),
        "no module": (lambda x: x, TypeError, "model must be an nn.Module"),
        "nothing": (nn.Sequential(), NotImplementedError, "must hold an nn.Linear"),
        "dtypes": (mixed, ValueError, "must share one dtype and device"),
        "nan": (broken, ValueError, "parameters of model must be finite, got NaN or infinity in omega"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_models_refused(name):
    model, kind, text = refusals()[name]
    with pytest.raises(kind, match=text):
        ntk(model, torch.randn(3, 4))


def test_inputs_refused():
    model, x = make_model("relu", torch.float32), torch.randn(3, 5)

    def refused(kind, text, *args, **keywords):
        with pytest.raises(kind, match=text):
            ntk(model, *args, **keywords)

    refused(ValueError, r"x1 must have shape \[n, 5\], got \[3, 4\]", x[:, :4])
    refused(ValueError, r"x2 must have shape \[n, 5\], got \[5\]", x, x[0])
    refused(ValueError, "x2 must have the model's dtype, torch.float32, got torch.float64", x, x.double())
    refused(TypeError, "x1 must be a torch.Tensor, got ndarray", x.numpy())
    refused(ValueError, "x1 must be finite, got NaN", torch.full((3, 5), torch.nan))
    refused(ValueError, "per must be one of", x, per="block")
    refused(ValueError, "reduction must be one of", x, reduction="scalar")
    refused(ValueError, "normalize must be one of", x, normalize="trace")
    refused(ValueError, "include_omega must go with per='module' or 'model'", x, include_omega=True)
    refused(ValueError, "weights must go with per='layer' or 'module'", x, per="model", weights=[1.0])
    refused(ValueError, r"weights must have 3 numbers, one a block, got \[2\]", x, weights=torch.ones(2))
    refused(ValueError, r"weights must have 3 numbers, one a block, got \[3, 1\]", x, weights=torch.ones(3, 1))
    needed = torch.ones(3, requires_grad=True)
    refused(ValueError, "weights must not require gradients", x, weights=needed, differentiable=True)
    refused(ValueError, r"weights\[1\] must be finite", x, weights=[1.0, float("inf"), 0.0])
    refused(ValueError, "backend must be one of", x, backend="gpu")
    refused(NotImplementedError, "backend must be one of", x, backend="triton")
    refused(RuntimeError, "backend 'cuda' is not available", x, backend="cuda")
    refused(ValueError, "memory_budget must be at least 1", x, memory_budget=0)
    refused(TypeError, "memory_budget must be an integer", x, memory_budget=1.5)
    with pytest.raises(NotImplementedError, match="x1 must be all inputs at once, got one inside torch.vmap"):
        torch.vmap(lambda row: ntk(model, row[None]).blocks)(x)
    with pytest.raises(ValueError, match="include_omega must go with an NFTKMLP"):
        ntk(nn.Linear(5, 2), x, per="model", include_omega=True)
