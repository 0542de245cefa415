"""Modules of every kind, from a residual network to a GRU, with inputs and the kernels of their Jacobians."""

import torch
from jacobian_kernels import loop_truth
from torch import nn
from torch.nn import functional as F

from nftk.reference import empirical_ntk_reference


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
