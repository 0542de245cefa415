"""Each Triton kernel on data of its own, and what it should give by the formula; for tune.py and sanitize.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from _harness import ROUNDOFF, error, matmul_precision
from nftk.kernels import choice
from nftk.kernels.choice import Tiles
from torch import Tensor

# the kernels' words for a precision, torch's, and the dtype of the tensors
PRECISION = {"tf32x3": "highest", "ieee": "highest", "tf32": "tf32", "bf16": "bf16"}


@dataclass(frozen=True)
class Job:
    """A kernel at a shape in a precision (the kernels' word; "bf16" means bfloat16 tensors)."""

    kernel: str
    rows: int
    m: int
    layers: int
    width: int
    d: int
    word: str

    def __str__(self) -> str:
        return f"{self.kernel} {self.rows} x {self.m}-[{self.width}]*{self.layers}-{self.d} {self.word}"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.word == "bf16" else torch.float32

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def widths(self) -> list[int]:
        return [self.width] * self.layers

    def sizes(self) -> tuple[int, ...]:
        """All sizes but the rows: what a compilation depends on."""
        return self.m, self.layers, self.width, self.d

    def bytes(self) -> int:
        """Roughly what a call reads and writes."""
        return self.itemsize * self.layers * self.width * (2 * self.rows + self.width + self.d)

    def key(self) -> dict:
        """The job in the words of a stored choice."""
        return {
            "rows": self.rows,
            "layers": self.layers,
            "width": self.width,
            "d": self.d,
            "precision": self.word,
            "itemsize": self.itemsize,
        }


class Data:
    """Random tensors of a job, with states that an eager forward pass gives."""

    def __init__(self, job: Job, device: str, widths: list[int] | None = None) -> None:
        g = torch.Generator(device).manual_seed(0)
        self.widths = widths = job.widths if widths is None else widths
        self.scales = [1.0] * len(widths)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=g, device=device) * scale).to(job.dtype)

        fan_in = [job.m, *widths[:-1]]
        self.x = draw(job.rows, job.m)
        self.weights = [draw(n, k, scale=(2 / k) ** 0.5) for n, k in zip(widths, fan_in, strict=True)]
        self.biases = [draw(n, scale=0.1) for n in widths]
        self.v = draw(job.d, sum(widths), scale=max(widths) ** -0.5)
        self.omega = draw(job.d, len(widths)).abs()
        self.grad = draw(job.rows, job.d)
        self.states = torch.cat(hidden(self.x, self.weights, self.biases), 1).contiguous()
        self.deltas = draw(job.rows, sum(widths))

    def wide(self) -> "Data":
        """The same numbers in float64."""
        other = object.__new__(Data)
        for name, value in vars(self).items():
            listed = isinstance(value, list) and value and isinstance(value[0], Tensor)
            tensors = [t.double() for t in value] if listed else value
            setattr(other, name, value.double() if isinstance(value, Tensor) else tensors)
        return other


def hidden(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
    states = []
    for weight, bias in zip(weights, biases, strict=True):
        x = torch.relu(torch.nn.functional.linear(x, weight, bias))
        states.append(x)
    return states


def formula(kernel: str, t: Data) -> dict[str, Tensor]:
    """What a kernel should give, in the dtype of the data."""
    vs, hs = t.v.split(t.widths, 1), t.states.split(t.widths, 1)
    by_layer = list(zip(hs, vs, t.omega.unbind(1), strict=True))
    if kernel == "readout_fwd":
        return {"f": sum((h @ v.T) * w for h, v, w in by_layer)}
    if kernel == "network_fwd":
        states = hidden(t.x, t.weights, t.biases)
        f = sum((h @ v.T) * w for h, v, w in zip(states, vs, t.omega.unbind(1), strict=True))
        return {"f": f, "states": torch.cat(states, 1)}
    grad_v = torch.cat([w[:, None] * (t.grad.T @ h) for h, _, w in by_layer], 1)
    grad_omega = torch.stack([((t.grad.T @ h) * v).sum(1) for h, v, _ in by_layer], 1)
    if kernel == "readout_bwd":
        return {
            "grad h": torch.cat([(t.grad * w) @ v for _, v, w in by_layer], 1),
            "grad V": grad_v,
            "grad Omega": grad_omega,
        }
    deltas: list[Tensor] = []
    if kernel == "network_bwd":
        for layer in reversed(range(len(t.widths))):
            h, v, w = by_layer[layer]
            back = (t.grad * w) @ v
            if deltas:
                back = back + deltas[0] @ t.weights[layer + 1]
            deltas.insert(0, back * (h > 0))
        return {"deltas": torch.cat(deltas, 1), "grad x": deltas[0] @ t.weights[0]}
    below = [t.x, *hs[:-1]]
    parts = t.deltas.split(t.widths, 1)
    return {
        "grad W": torch.cat([(delta.T @ h).flatten() for delta, h in zip(parts, below, strict=True)]),
        "grad b": t.deltas.sum(0),
        "grad V": grad_v,
        "grad Omega": grad_omega,
    }


def taken(job: Job, t: Data | None = None) -> Tiles:
    """The tiles that kernels/choice.py gives a job."""
    rows = torch.empty(0, dtype=job.dtype) if t is None else t.x
    if t is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows = torch.empty(job.rows, 1, dtype=job.dtype, device=device).expand(job.rows, job.m)
    widths = job.widths if t is None else t.widths
    if job.kernel.startswith("readout"):
        hs = [rows[:, :1].expand(-1, n) for n in widths]
        choose = choice.readout_fwd_tiles if job.kernel == "readout_fwd" else choice.readout_bwd_tiles
        return choose(hs, job.d, job.word)
    if job.kernel == "network_bwd_weights":
        return choice.weight_tiles(rows, widths, job.d, job.word)
    return choice.walk_tiles(job.kernel, rows, widths, job.d, job.word)


def call(job: Job, device: str, t: Data | None = None) -> Callable[[], dict[str, Tensor]]:
    """Return the launch of a job's kernel with the tiles that kernels/choice.py gives at that moment."""
    from nftk.kernels.network import network_fwd
    from nftk.kernels.network_bwd import network_bwd
    from nftk.kernels.network_weights import network_bwd_weights
    from nftk.kernels.readout import readout_bwd, readout_fwd

    t = Data(job, device) if t is None else t
    ones, hs, word = t.scales, t.states.split(t.widths, 1), job.word

    def launch() -> dict[str, Tensor]:
        tiles = taken(job, t)
        if job.kernel == "readout_fwd":
            return {"f": readout_fwd(hs, t.v, t.omega, ones, False, word, job.dtype, tiles)[0]}
        if job.kernel == "readout_bwd":
            found = readout_bwd(t.grad, None, hs, t.v, t.omega, ones, True, True, word, tiles)
            return dict(zip(("grad h", "grad V", "grad Omega"), found, strict=True))
        if job.kernel == "network_fwd":
            f, states, _ = network_fwd(
                t.x, t.weights, t.biases, t.v, t.omega, None, "relu", ones, ones, ones,
                True, False, word, job.dtype, tiles,
            )  # fmt: skip
            return {"f": f, "states": states}
        if job.kernel == "network_bwd":
            found = network_bwd(
                t.grad, t.x, t.weights, t.v, t.omega, t.states, "relu", ones, ones, 0, True, word, tiles
            )  # fmt: skip
            return dict(zip(("deltas", "grad x"), found, strict=True))
        found = network_bwd_weights(
            t.grad, t.x, t.states, t.deltas, t.v, t.omega, t.widths, ones, ones, ones, 0,
            True, True, True, False, word, tiles,
        )  # fmt: skip
        return dict(zip(("grad W", "grad b", "grad V", "grad Omega"), found, strict=False))

    return launch


def checker(job: Job, device: str, t: Data | None = None) -> Callable[[], str]:
    """Return what says how a launch is wrong, or nothing: each output may lose twice what eager torch loses."""
    t = Data(job, device) if t is None else t
    launch, precision = call(job, device, t), PRECISION[job.word]
    truth = formula(job.kernel, t.wide())
    with matmul_precision(precision):
        eager = {name: error(value, truth[name]) for name, value in formula(job.kernel, t).items()}

    def wrong() -> str:
        for name, value in launch().items():
            if name in truth:
                off, allowed = (
                    error(value.reshape(truth[name].shape), truth[name]),
                    2 * eager[name] + ROUNDOFF[precision],
                )
                if not off <= allowed:
                    return f"{name} is off by {off:.1e}, allowed {allowed:.1e}"
        return ""

    return wrong
