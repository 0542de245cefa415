"""The cases that are timed, their data and truth in float64, and the networks as one writes them in plain PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _harness import ROUNDOFF, dtype_of
from torch import Tensor, nn
from torch.nn import functional

import nftk
from nftk.reference import network_reference, readouts_reference, weighted_sum_reference


@dataclass(frozen=True)
class Case:
    """A shape in a precision.

    Attributes:
        name: The shape's name.
        batch: B.
        m: Inputs.
        widths: Of the hidden layers.
        d: Outputs.
        precision: "highest" and "tf32" of float32 tensors; "bf16": bfloat16 tensors.
        compiles: Modes of torch.compile that are timed.
        devices: Where.
    """

    name: str
    batch: int
    m: int
    widths: tuple[int, ...]
    d: int
    precision: str = "highest"
    compiles: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cuda",)

    @property
    def id(self) -> str:
        return f"{self.name}-{self.precision}"

    def sizes(self) -> dict:
        return {
            "in_features": self.m,
            "hidden_features": list(self.widths),
            "out_features": self.d,
            "batch": self.batch,
        }


# the paper's four: m, widths, d, batch
PAPER = {
    "mnist-10x256": (784, (256,) * 10, 10, 50),
    "reviews-5x128": (768, (128,) * 5, 2, 25),
    "mnist-20x256": (784, (256,) * 20, 10, 50),
    "reviews-10x128": (768, (128,) * 10, 2, 25),
}
MODES = {"compile": "default", "compile-max": "max-autotune"}


def paper(name: str, precision: str = "highest", compiles: Sequence[str] = (), devices=("cuda",)) -> Case:
    m, widths, d, batch = PAPER[name]
    return Case(name, batch, m, widths, d, precision, tuple(compiles), devices)


def grid(batch: int, width: int, precision: str = "highest", d: int = 10, compiles=(), devices=("cuda",)) -> Case:
    """Ten layers of one width."""
    name = f"10x{width}-batch{batch}" + (f"-d{d}" if d != 10 else "")
    return Case(name, batch, 784, (width,) * 10, d, precision, tuple(compiles), devices)


def readout_inputs(case: Case, device: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Random h_l, V and Omega of a case."""
    torch.manual_seed(0)
    kind = {"device": device, "dtype": dtype_of(case.precision)}
    hs = [torch.randn(case.batch, n, **kind) for n in case.widths]
    readout_weight = torch.randn(case.d, sum(case.widths), **kind) / math.sqrt(max(case.widths))
    return hs, readout_weight, torch.rand(case.d, len(case.widths), **kind)


def readout_truth(hs: Sequence[Tensor], readout_weight: Tensor, omega: Tensor) -> Tensor:
    widths = [h.shape[1] for h in hs]
    return weighted_sum_reference(readouts_reference(hs, readout_weight.split(widths, 1)), omega)


def loop(hs: Sequence[Tensor], readout_weight: Tensor, omega: Tensor) -> Tensor:
    """Equations 7 and 8 as one would write them down: a loop over the layers' readouts."""
    f = 0
    for i, (h, v) in enumerate(zip(hs, readout_weight.split([h.shape[-1] for h in hs], dim=1), strict=True)):
        f = f + omega[:, i] * functional.linear(h, v)
    return f


def stacked(hs: Sequence[Tensor], readout_weight: Tensor, omega: Tensor) -> Tensor:
    """All readouts as one batched product; widths must be equal."""
    width = hs[0].shape[1]
    weights = readout_weight.unflatten(1, (len(hs), width)).permute(1, 2, 0)  # [L, n, d]
    return (torch.bmm(torch.stack(tuple(hs)), weights) * omega.t()[:, None]).sum(0)


class LoopMLP(nftk.NFTKMLP):
    """The network with its readouts in a loop."""

    def forward(self, x):
        return loop(self.hidden_states(x), self.readout_weight, self.omega)


class StackedMLP(nftk.NFTKMLP):
    """The network with its readouts as one batched product."""

    def forward(self, x):
        return stacked(self.hidden_states(x), self.readout_weight, self.omega)


def plain_mlp(in_features: int, hidden: Sequence[int], out_features: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))


def make_model(case: Case, device: str, kind: type[nftk.NFTKMLP] = nftk.NFTKMLP, **keywords) -> nftk.NFTKMLP:
    """A network of a case; two of one case hold the same numbers."""
    torch.manual_seed(0)
    model = kind(case.m, case.widths, case.d, **keywords)
    with torch.no_grad():
        for layer in model.hidden:
            # a zero bias would hide one that is not added
            layer.bias.normal_(std=0.1)
    return model.to(device, dtype_of(case.precision))


def make_data(case: Case, device: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(case.batch, case.m, generator=g)
    y = torch.randint(0, case.d, (case.batch,), generator=g)
    return x.to(device, dtype_of(case.precision)), y.to(device)


def wide_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


def network_truth(case: Case, wide: dict[str, Tensor], x: Tensor) -> Tensor:
    """Output in the dtype of the parameters, by the definition."""
    depth = range(len(case.widths))
    return network_reference(
        x.to(wide["omega"].dtype),
        [wide[f"hidden.{i}.weight"] for i in depth],
        [wide[f"hidden.{i}.bias"] for i in depth],
        wide["readout_weight"].split(case.widths, 1),
        wide["omega"],
        torch.relu,
    )


def hidden_truth(model: nftk.NFTKMLP, x: Tensor) -> list[Tensor]:
    """All layers' inputs and the last h_l, in the model's dtype, for the floor's products."""
    with torch.no_grad():
        return [x, *model.hidden_states(x)]


def flips(case: Case) -> float:
    """Relative error of gradients from units whose g rounds to the other side of 0, where relu has another slope.

    The square root of their share, twice over: a share of the order of the rounding, and by chance a few at least.
    """
    return 2 * math.sqrt(2 / (case.batch * sum(case.widths))) + 2 * math.sqrt(4 * ROUNDOFF[case.precision])
