"""empirical_ntk of any module against torch.func: the truth is the Jacobian over all parameters, none of our rules."""

import copy
import importlib
import importlib.util

import numpy as np
import pytest
import torch
from kernel_checks import error
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import nftk
from nftk.reference import empirical_ntk_reference

# of the truth, which goes through torch.vmap
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
ntk = nftk.empirical_ntk
REDUCTIONS = ("full", "trace", "diagonal", "sum_logits")


@pytest.fixture(scope="module")
def _torchvision():
    """One for CUDA beside a torch without: its operators do not load, and it only wants to describe two of them."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(h + self.inner(h).relu())


class Residual(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Identity()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


def resnet18(width=4):
    """Its layers and strides, at a 16th of its width."""
    blocks, inputs = [], width
    for stage in range(4):
        for i in range(2):
            outputs = width << stage
            blocks.append(Residual(inputs, outputs, 2 if stage and not i else 1))
            inputs = outputs
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 3))


class Transformer(nn.Module):
    """Two layers on tokens, the first with torch's own attention."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 8, padding_idx=0), nn.Embedding(5, 8)
        self.attention, self.norm1 = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.up, self.down, self.norm2 = nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(x.shape[1])[None])
        h = h + self.attention(self.norm1(h), self.norm1(h), self.norm1(h), need_weights=False)[0]
        h = h + F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return self.head(self.norm2(h + self.down(F.gelu(self.up(h)))).mean(1))


class Shared(nn.Module):
    """One convolution used three times, at two sizes, and one bias in two places."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv1d(2, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Linear(2, 3)

    def forward(self, x):
        h = self.norm(self.conv(x)).tanh()
        h = self.norm(self.conv(F.avg_pool1d(h, 2))).tanh()
        return self.last(self.conv(h).mean(2))


class Tied(nn.Module):
    """The table of tokens is also the readout."""

    def __init__(self):
        super().__init__()
        self.tokens, self.inner = nn.Embedding(6, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 6)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(self.inner(self.tokens(x)).tanh().mean(1))


class Bare(nn.Module):
    """Parameters of its own, used in every way that is not a module."""

    def __init__(self):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 4, 4))
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(()))
        self.matrix, self.slope = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3))
        self.factors = nn.ParameterList([nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 3))])
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, x):
        h = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        h = (h * self.scale).tanh() @ self.matrix.exp() + self.shift
        return F.softplus(h.mean(1) @ (self.factors[0] @ self.factors[1])) * self.slope.sigmoid()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.last = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.gru(x)[0][:, -1])


class SequenceFirst(nn.Module):
    """Examples along the second dimension inside, and several rows an example."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.first(x.transpose(0, 1)).tanh().transpose(0, 1)  # [n, s, 4]
        h = self.second(h.reshape(-1, 2)).tanh().view(len(x), -1, 3)
        return self.last(h).sum(1)


class Decomposed(nn.Module):
    """GPT-2's linear map, and two functions of torch that take a weight in other ways."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
        self.prelu, self.bilinear = nn.PReLU(5), nn.Bilinear(5, 5, 3)

    def forward(self, x):
        h = torch.addmm(self.bias, x, self.weight)
        return self.bilinear(self.prelu(h), h.cos())


def parametrized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding="same"), nn.GroupNorm(3, 6), nn.SiLU(),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect", bias=False), nn.MaxPool2d(2),
        nn.ConvTranspose2d(6, 2, 2), nn.Flatten(), nn.Linear(18, 3),
    )  # fmt: skip


def one_and_three_dimensions():
    return nn.Sequential(
        nn.Conv1d(2, 3, 2, dilation=3), nn.InstanceNorm1d(3, affine=True), nn.Unflatten(2, (1, 1, -1)),
        nn.Conv3d(3, 4, (1, 1, 2), stride=(1, 1, 2)), nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip


def tokens(n, vocabulary):
    return torch.randint(0, vocabulary, (n, 5))


MODELS = {
    "skip": (Skip, lambda n: torch.randn(n, 4)),
    "cnn": (cnn, lambda n: torch.randn(n, 2, 8, 8)),
    "1d and 3d": (one_and_three_dimensions, lambda n: torch.randn(n, 2, 11)),
    "resnet18": (resnet18, lambda n: torch.randn(n, 3, 16, 16)),
    "transformer": (Transformer, lambda n: tokens(n, 7)),
    "shared": (Shared, lambda n: torch.randn(n, 2, 6)),
    "tied": (Tied, lambda n: tokens(n, 6)),
    "bare": (Bare, lambda n: torch.randn(n, 3, 4)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 5, 3)),
    "sequence first": (SequenceFirst, lambda n: torch.randn(n, 6, 3)),
    "decomposed": (Decomposed, lambda n: torch.randn(n, 4)),
    "parametrized": (parametrized, lambda n: torch.randn(n, 4)),
}


def make(name, n1=5, n2=4, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    build, draw = MODELS[name]
    model, x1, x2 = build(), draw(n1), draw(n2)
    x1, x2 = (x.to(dtype) if x.is_floating_point() else x for x in (x1, x2))
    model.to(dtype).eval()
    model(x1)  # lazy sizes
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, x1, x2


def truth(model, x1, x2=None, names=None):
    """Over all parameters, or some."""
    if isinstance(model, Recurrent | Bare):
        return loop_truth(model, x1, x1 if x2 is None else x2, names)
    everything = {name: p.detach() for name, p in model.named_parameters()}
    chosen = everything if names is None else {name: everything[name] for name in names}

    def function(p, x):
        return torch.func.functional_call(model, {**everything, **p}, (x,))

    return empirical_ntk_reference(function, chosen, x1, x1 if x2 is None else x2)


def loop_truth(model, x1, x2, names=None):
    """By autograd through the model itself, for what functional_call does not reach."""
    chosen = [p for name, p in model.named_parameters() if names is None or name in names]
    jacobians = []
    for x in (x1, x2):
        f = model(x)
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(
                value, chosen, retain_graph=True, allow_unused=True, materialize_grads=True)])
            for value in f.flatten()
        ]  # fmt: skip
        jacobians.append(torch.stack(rows).view(*f.shape, -1))
    return torch.einsum("xip,yjp->xyij", *jacobians)


def reduced(full, reduction):
    if reduction == "sum_logits":
        return full.sum((-2, -1))
    diagonal = full.diagonal(dim1=-2, dim2=-1)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[reduction]


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_jacobians(name):
    model, x1, x2 = make(name)
    for second in (x2, None):
        other = x1 if second is None else second
        want = truth(model, x1, other)
        for reduction in REDUCTIONS:
            modules = ntk(model, x1, second, per="module", reduction=reduction)
            whole = ntk(model, x1, second, per="model", reduction=reduction)
            assert error(modules.blocks.sum(0), reduced(want, reduction)) <= 1e-10, reduction
            assert error(whole.blocks[0], reduced(want, reduction)) <= 1e-10, reduction
            assert whole.names == ("model",)
            if second is None:
                assert all(torch.equal(m, m.mT) for m in modules.matrix().flatten(0, -3))


@pytest.mark.parametrize("name", ["cnn", "transformer", "shared", "tied", "bare", "decomposed", "parametrized"])
def test_each_module_is_its_own_jacobians(name):
    model, x1, x2 = make(name)
    k = ntk(model, x1, x2, per="module")
    names = [n for n, _ in model.named_parameters()]
    owners = [n.rpartition(".")[0] or "model" for n in names]
    assert k.names == tuple(dict.fromkeys(owners))
    for block, owner in zip(k.blocks, k.names, strict=True):
        own = [n for n, o in zip(names, owners, strict=True) if o == owner]
        assert error(block, truth(model, x1, x2, own)) <= 1e-10, owner


@pytest.mark.parametrize("form", ["gram", "gradients"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["cnn", "transformer", "shared", "sequence first"])
def test_both_forms_give_the_same(monkeypatch, name, reduction, form):
    """Whatever the counted costs say."""
    from nftk.tangent.modules import choice

    def forced(*args):
        found = chosen(*args)
        changed = form if found.site.factored else found.form
        # the factors are kept, so that gradients are made tile by tile
        return choice.dataclasses.replace(found, form=changed, keeps_gradients=not found.site.factored)

    model, x1, x2 = make(name)
    want = ntk(model, x1, x2, per="module", reduction=reduction, normalize="cosine").blocks
    chosen = choice._choose
    monkeypatch.setattr(choice, "_choose", forced)
    for second, blocks in ((x2, want), (None, ntk(model, x1, per="module", reduction=reduction).blocks)):
        normalize = None if second is None else "cosine"
        found = ntk(model, x1, second, per="module", reduction=reduction, normalize=normalize)
        if second is not None:
            assert error(found.blocks, blocks) <= 1e-12
        else:
            assert error(found.blocks.sum(0), reduced(truth(model, x1), reduction)) <= 1e-10


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_float32_is_as_exact_as_eager(name):
    model, x1, x2 = make(name, dtype=torch.float32)
    wide = copy.deepcopy(model).double()
    want = truth(wide, *(x.double() if x.is_floating_point() else x for x in (x1, x2)))
    eager, ours = error(truth(model, x1, x2), want), error(ntk(model, x1, x2, per="model").blocks[0], want)
    assert ours <= 2 * eager + 2 * torch.finfo(torch.float32).eps, f"ours {ours:.1e}, eager {eager:.1e}"


# normalisation, weights, memory


@pytest.mark.parametrize("how", ["cosine", "joint"])
@pytest.mark.parametrize("per", ["module", "model"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_normalize(reduction, per, how):
    model, x1, x2 = make("cnn")
    rows, columns = (nftk.tangent.self_kernels(model, x, per=per, reduction=reduction) for x in (x1, x2))
    own = ntk(model, x1, per=per, reduction=reduction).diagonal()
    assert error(rows, own.diagonal(dim1=2, dim2=3) if reduction == "full" else own) < 1e-12
    want = ntk(model, x1, x2, per=per, reduction=reduction).normalize(how, rows, columns)
    got = ntk(model, x1, x2, per=per, reduction=reduction, normalize=how)
    assert got.normalization == how
    assert error(got.blocks, want.blocks) < 1e-12


def test_joint_blocks_add_up():
    model, x1, x2 = make("transformer")
    parts = ntk(model, x1, x2, per="module", reduction="trace", normalize="joint")
    assert (
        error(parts.blocks.sum(0), ntk(model, x1, x2, per="model", reduction="trace", normalize="cosine").blocks[0])
        < 1e-12
    )


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize("normalize", [None, "cosine", "joint"])
def test_weights(normalize, symmetric):
    model, x1, x2 = make("transformer")
    x2 = None if symmetric else x2
    apart = ntk(model, x1, x2, per="module", normalize=normalize)
    for weights in (torch.rand(len(apart)), [(-1.5) ** i for i in range(len(apart))]):
        k = ntk(model, x1, x2, per="module", normalize=normalize, weights=weights)
        want = torch.tensordot(torch.as_tensor(weights).double(), apart.blocks, 1)
        assert k.blocks.shape == (1, *want.shape)
        assert error(k.blocks[0], want) < 1e-7


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


# what is left as it was


def test_the_model_is_left_as_it_was():
    model, x1, _ = make("bare")
    model.scale.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        k = ntk(model, x1, per="module")
    assert not k.blocks.requires_grad
    assert error(k.blocks, ntk(model, x1, per="module").blocks) < 1e-14
    for name, p in model.named_parameters():
        value, requires_grad, grad = before[name]
        assert torch.equal(p, value)
        assert p.requires_grad is requires_grad
        assert p.grad is grad
    with torch.inference_mode():
        assert error(ntk(model, x1.clone(), per="module").blocks, k.blocks) < 1e-14


def test_frozen_parameters_count():
    model, x1, _ = make("cnn")
    before = ntk(model, x1, per="module").blocks
    model.requires_grad_(False)
    assert torch.equal(ntk(model, x1, per="module").blocks, before)


def test_sixteen_bits_are_taken_over():
    model, x, _ = make("cnn", dtype=torch.float32)
    model.to(torch.bfloat16)
    k = ntk(model, x.bfloat16(), per="module")
    assert k.blocks.dtype is torch.float32
    assert torch.equal(k.blocks, ntk(copy.deepcopy(model).float(), x.bfloat16().float(), per="module").blocks)


def test_few_examples():
    model, x1, x2 = make("cnn")
    assert ntk(model, x1[:0], x2, per="module").blocks.shape == (7, 0, 4, 3, 3)
    assert ntk(model, x1, x2[:0], per="model", normalize="cosine").blocks.shape == (1, 5, 0, 3, 3)
    assert error(ntk(model, x1[:1], per="model").blocks[0], truth(model, x1[:1])) < 1e-12
    with pytest.raises(ValueError, match="x1 must have an example"):
        ntk(model, x1[:0], per="module")


# mappings, output_fn, models of others


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.last = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, ids, mask):
        h = self.tokens(ids) * mask[..., None]
        return {"scores": self.last(h.sum(1)), "hidden": h}


def test_mappings_and_output_fn():
    torch.manual_seed(0)
    model = Named().double()
    x = {"ids": tokens(5, 6), "mask": torch.rand(5, 5, dtype=torch.float64)}
    k = ntk(model, x, {key: value[:2] for key, value in x.items()}, per="model", output_fn=lambda out: out["scores"])
    function = lambda p, i: torch.func.functional_call(model, p, (x["ids"], x["mask"]))["scores"]  # noqa: E731
    whole = empirical_ntk_reference(function, {n: p.detach() for n, p in model.named_parameters()}, None, None)
    assert error(k.blocks[0], whole[:, :2]) < 1e-12
    with pytest.raises(TypeError, match="model must return a tensor, or something with such .logits; output_fn"):
        ntk(model, x, per="model")
    with pytest.raises(ValueError, match=r"output_fn must return outputs of shape \[n, d\], here \[3, d\]"):
        ntk(model, x, per="model", output_fn=lambda out: out["hidden"])
    with pytest.raises(ValueError, match="tensors of x1 must share their first dimension, but"):
        ntk(model, {**x, "mask": x["mask"][:2]}, per="model", output_fn=lambda out: out["scores"])
    with pytest.raises(ValueError, match="x2 must have the entries of x1, ids, mask, got ids"):
        ntk(model, x, {"ids": x["ids"]}, per="model", output_fn=lambda out: out["scores"])


TRANSFORMERS = ("bert", "gpt2", "distilbert", "vit")


def hugging_face(kind):
    import transformers

    common = {"num_labels": 3}
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                         intermediate_size=12, max_position_embeddings=6, **common)  # fmt: skip
        return transformers.BertForSequenceClassification(config)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12,
                                               max_position_embeddings=6, **common)  # fmt: skip
        return transformers.DistilBertForSequenceClassification(config)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=6, pad_token_id=0,
                                         use_cache=False, **common)  # fmt: skip
        return transformers.GPT2ForSequenceClassification(config)
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                                    image_size=8, patch_size=4, **common)  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.mark.usefixtures("_torchvision")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_as_they_come(kind):
    pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    model = hugging_face(kind).double().eval()
    x = {"input_ids": torch.randint(1, 20, (4, 5)), "attention_mask": torch.ones(4, 5, dtype=torch.int64)}
    if kind == "vit":
        x = {"pixel_values": torch.randn(4, 3, 8, 8, dtype=torch.float64)}
    else:
        x["input_ids"][0, 3:], x["attention_mask"][0, 3:] = 0, 0
    k = ntk(model, x, {key: value[1:] for key, value in x.items()}, per="module")
    jacobian = []
    f = model(**x).logits
    for value in f.flatten():
        grads = torch.autograd.grad(
            value, list(model.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        jacobian.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(jacobian).view(*f.shape, -1)
    want = torch.einsum("xip,yjp->xyij", jacobian, jacobian)[:, 1:]
    assert error(k.blocks.sum(0), want) < 1e-10
    # its linear maps have a rule
    plan = nftk.tangent.plan(model, x, per="module")
    assert not [row for row in plan.rows if row.form == "torch.func" and "norm" not in row.module.lower()], plan


@pytest.mark.usefixtures("_torchvision")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_as_it_comes(name):
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm is not installed, or torchvision, which it needs")
    import timm

    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2} if "vit" in name else {}
    model = timm.create_model(name, pretrained=False, num_classes=2, **size).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    k = ntk(model, x, per="module")
    assert error(k.blocks.sum(0), loop_truth(model, x, x)) < 1e-10


# the plan


def test_the_choice_follows_the_positions():
    """Gram form for few positions, gradients for many."""
    forms = {}
    for size in (4, 24):
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        plan = nftk.tangent.plan(model, torch.randn(40, 8, size, size), per="module", reduction="trace")
        forms[size] = [row.form for row in plan.rows]
    assert forms == {4: ["gram", "gram"], 24: ["gradients", "gram"]}


def test_a_plan_says_what_and_why():
    model, x, _ = make("bare")
    told = str(nftk.tangent.plan(model, x, per="module"))
    assert "torch.func" in told
    assert "the result of exp has no examples in it" in told
    assert "unused" not in told
    model, x, _ = make("transformer")
    plan = nftk.tangent.plan(model, x, per="module")
    assert {row.module for row in plan.rows} >= {"tokens", "places", "attention", "norm1", "query", "head"}
    assert all(row.bytes > 0 and row.flops > 0 for row in plan.rows)
    assert plan.rows_at_once >= 5
    assert str(plan).count("\n") >= len(plan.rows)


def test_plans_of_chains_are_refused():
    with pytest.raises(NotImplementedError, match="model must be another than an NFTKMLP or a plain"):
        nftk.tangent.plan(nn.Linear(3, 2), torch.randn(4, 3), per="module")


# what is refused


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last(h - h.mean(0))


class Noisy(Centred):
    def forward(self, x):
        return self.last(F.dropout(self.first(x)))


def refusals():
    table = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Flatten(), nn.Linear(20, 2))
    conv = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(3, 2))
    broken = copy.deepcopy(conv)
    broken[0].weight.data[:] = torch.nan
    mixed = copy.deepcopy(conv)
    mixed[0].double()
    x, image = torch.randn(4, 3), torch.randn(4, 1, 3)
    return {
        "batch norm": (nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), conv[1], conv[2]), image, ValueError,
                       "model must be in eval mode, got BatchNorm1d"),
        "dropout": (nn.Sequential(conv, nn.Dropout()), image, ValueError, "model must be in eval mode, got Dropout"),
        "batch": (Centred(), x, ValueError, "model must give an example the same outputs in every batch"),
        "chance": (Noisy(), x, ValueError, "model must draw no random numbers, in eval mode"),
        "table": (table, tokens(4, 5), NotImplementedError, "an embedding must be without max_norm"),
        "nan": (broken, image, ValueError, "parameters of model must be finite, got NaN or infinity in 0.weight"),
        "dtypes": (mixed, image, ValueError, "must share one floating dtype and device"),
        "shape": (nn.Sequential(conv[0]), image, ValueError, r"model must return outputs of shape \[n, d\], here"),
        "nothing": (nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.LazyLinear(2)), image, ValueError,
                    "model must have seen an input"),
        "parallel": (nn.DataParallel(conv), image, NotImplementedError, "model must be a plain nn.Module"),
        "no parameters": (nn.Sequential(nn.Softmax(1), nn.Flatten()), image, ValueError, "model must have parameters"),
        "numbers": (conv, image.double(), ValueError, "x1 must have the model's dtype, torch.float32"),
        "infinite": (conv, image / 0, ValueError, "x1 must be finite"),
        "list": (conv, [1.0], TypeError, "x1 must be a torch.Tensor, got list"),
        "scalar": (conv, torch.tensor(1.0), ValueError, "x1 must have examples along its first dimension"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_refused(name):
    model, x, kind, text = refusals()[name]
    with pytest.raises(kind, match=text):
        ntk(model, x, per="module")


def test_settings_refused():
    model, x, _ = make("cnn")
    with pytest.raises(NotImplementedError, match="per='module' and per='model' take any module"):
        ntk(model, x)
    with pytest.raises(ValueError, match="output_fn must go with per='module' or 'model'"):
        ntk(model, x, output_fn=lambda f: f)
    with pytest.raises(TypeError, match="output_fn must be a function"):
        ntk(model, x, per="model", output_fn=1)
    with pytest.raises(NotImplementedError, match="differentiable must go with an NFTKMLP"):
        ntk(model, x, per="model", differentiable=True)
    with pytest.raises(ValueError, match="include_omega must go with an NFTKMLP"):
        ntk(model, x, per="model", include_omega=True)
    with pytest.raises(ValueError, match=r"memory_budget must be at least \d+ bytes"):
        ntk(model, x, per="model", memory_budget=1000)


def test_a_model_that_changes_its_ways_is_refused():
    class Fickle(Centred):
        def forward(self, x):
            h = self.first(x)
            return self.last(h) if len(x) < 4 else self.last(h) + self.last(0 * h) - self.last.bias

    with pytest.raises(NotImplementedError, match="model must use its parameters in the same way for every batch"):
        ntk(Fickle(), torch.randn(6, 3), per="model")
