"""project_tangents: random projections of a network's tangents, without a gradient over parameters in memory."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nftk._checks import check_choice
from nftk._dispatch import resolve
from nftk.ops.precision import full_precision
from nftk.ops.project import SUPPORTED, checked_matrix, project
from nftk.tangent.chain import Chain
from nftk.tangent.choose_k import KINDS
from nftk.tangent.feature_file import FeatureFile, held
from nftk.tangent.plan import check_budget
from nftk.tangent.progress import Line
from nftk.tangent.projected_tangents import ProjectedTangents, factors
from nftk.tangent.request import detached, prepare
from nftk.tangent.walk import Tangents, tangents

_OP = "tangent.project_tangents"
# examples at a time: P is made anew for every so many
_MOST = 512
# numbers of one piece of P h, rows of a weight at a time
_PIECE = 1 << 22


def project_tangents(
    model: nn.Module,
    x: Tensor,
    k: int,
    *,
    per: Literal["layer", "module"] = "layer",
    kind: Literal["rademacher", "gaussian", "sjlt", "kronecker"] = "rademacher",
    seed: int = 0,
    reduction: Literal["trace", "sum_logits", "full"] = "trace",
    nonzeros: int = 4,
    out: str | Path | None = None,
    memory_budget: int | None = None,
    backend: str = "auto",
    progress: bool | Callable[[int, int], None] = False,
) -> ProjectedTangents:
    r"""Random projections of the gradients of a network's outputs, for kernels of many examples.

    .. math:: \phi_{l,i}(x) = P \, \partial f_{l,i}(x) / \partial \theta, \qquad
        E \langle \phi_{l,i}(x), \phi_{l,j}(x') \rangle = \Theta_l[i,j](x, x')

    Gradients are never formed: that of a weight is delta (x) h, so a row of the weight needs P's columns of that row
    times h, once for all outputs and layers. P's columns are those of :func:`nftk.ops.project`, the parameters in the
    order of the layers (each row of a weight, and its bias), then of the readouts.

    Args:
        model: An :class:`nftk.NFTKMLP`, or a plain multilayer perceptron, as for :func:`nftk.empirical_ntk`.
        x: Inputs, ``(n, m)``.
        k: Size of a projection; :func:`choose_k` finds it.
        per: ``"layer"``: of each readout f_l. ``"module"``: what each module's parameters add to f.
        kind: As for :func:`nftk.ops.project`; or ``"kronecker"``: P1 delta (x) P2 h with signs of sizes k1 k2 = k,
            nearly free, but with an error as if k were k / (k1 + k2 + 2).
        seed: Which P.
        reduction: Which kernel is meant, as there: ``"trace"`` and ``"full"`` need all outputs, ``"sum_logits"`` one.
        nonzeros: Of ``"sjlt"``.
        out: A folder to write to, mapped, with a header; where it was begun with the same network, inputs and settings
            it is finished, to the same bits. None: in memory.
        memory_budget: Bytes for what is held of examples at a time; None for half of what is free. At most 512
            examples are, and an upper bound of 16 MiB of float32 is added for pieces.
        backend: Of the projection.
        progress: True for a line on standard error; or a function of the examples done and all of them.

    Returns:
        The features, in the dtype of the network (float32 for 16 bits), and their errors.

    Raises:
        ValueError: If inputs do not fit or settings are out of range; if ``out`` holds something else.
        TypeError: If an input is of another kind.
        NotImplementedError: If the model is another than above, or ``backend`` has no code.
        RuntimeError: If ``backend`` cannot run here.

    References:
        Park et al., TRAK, ICML 2023, arXiv 2303.14186; Engel et al., Faithful and Efficient Explanations for Neural
        Networks via NTK Surrogate Models, ICLR 2024, arXiv 2305.14585, appendix.

    Example:
        >>> import torch, nftk
        >>> model, x = nftk.NFTKMLP(4, [8], 3), torch.randn(5, 4)
        >>> nftk.tangent.project_tangents(model, x, 64, kind="kronecker", reduction="full").kernel().blocks.shape
        torch.Size([1, 5, 5, 3, 3])
    """
    chain, x, _ = cast(tuple[Chain, Tensor, None], prepare(model, x, None, _OP))
    check_choice(_OP, "per", per, ("layer", "module"))
    check_choice(_OP, "kind", kind, KINDS)
    check_choice(_OP, "reduction", reduction, ("trace", "sum_logits", "full"))
    dense = "rademacher" if kind == "kronecker" else kind
    matrix = checked_matrix(_OP, k, seed, dense, 0, 1, nonzeros, 0)
    if kind == "kronecker" and matrix.k > 3 and factors(matrix.k)[0] == 1:
        raise ValueError(f"nftk.{_OP}: k must be a product of two numbers for kind 'kronecker', got {k}")
    lacks = {"triton": "torch.float64" if x.dtype is torch.float64 else "kind 'sjlt'" if kind == "sjlt" else None}
    chosen = resolve(_OP, backend, SUPPORTED, str(x.device), lacks)
    tell = Line("features") if progress is True else progress or None
    if tell is not None and not callable(tell):
        raise TypeError(f"nftk.{_OP}: progress must be True, False or a function of two numbers, got {progress!r}")
    chain, x, _ = cast(tuple[Chain, Tensor, None], detached(chain, x, None))
    work = _Projection(chain, per, kind, reduction == "sum_logits", matrix.k, matrix.seed, matrix.nonzeros, chosen)
    n, like = x.shape[0], x
    settings: dict[str, Any] = {
        "names": list(work.names), "reduction": reduction, "per": per, "kind": kind, "seed": matrix.seed,
        "nonzeros": matrix.nonzeros, "columns": work.columns,
    }  # fmt: skip
    shapes = work.shapes(n)
    at_once = _at_once(work, check_budget(memory_budget, x.device, _OP), x)
    if out is None:
        arrays = [like.new_zeros(shape) for shape in shapes]
        for start in range(0, n, at_once):
            stop = min(start + at_once, n)
            work.fill([a[:, start:stop] for a in arrays], x[start:stop])
            if tell is not None:
                tell(stop, n)
        features, own = arrays
    else:
        folder = Path(out).resolve()
        told = settings | {"k": matrix.k, "examples": n, "dtype": str(x.dtype)}
        with held(_OP, folder):
            file = FeatureFile(_OP, folder, told, _identity(chain, x, chosen), shapes, x.dtype, at_once)
            for start in range(file.done, n, file.at_once):
                stop = min(start + file.at_once, n)
                held_here = [like.new_zeros(shape) for shape in work.shapes(stop - start)]
                work.fill(held_here, x[start:stop])
                for target, source in zip(file.tensors(), held_here, strict=True):
                    target[:, start:stop] = source.to(target.device)
                file.note(stop, last=stop == n)
                if tell is not None:
                    tell(stop, n)
        return ProjectedTangents.load(folder)
    return ProjectedTangents(features, own, **settings | {"names": work.names})


@dataclasses.dataclass
class _Term:
    """Columns of one weight and its bias: how many rows, what a row is multiplied with, and where they begin."""

    rows: int
    size: int
    base: int


class _Projection:
    """Which columns belong to which parameters, and the features of some examples."""

    def __init__(
        self, chain: Chain, per: str, kind: str, summed: bool, k: int, seed: int, nonzeros: int, backend: str
    ) -> None:
        self.chain, self.per, self.kind, self.summed, self.k = chain, per, kind, summed, k
        self.k1, self.k2 = factors(k)
        self._how: dict[str, Any] = {
            "seed": seed, "kind": "rademacher" if kind == "kronecker" else kind, "nonzeros": min(nonzeros, k),
            "backend": backend,
        }  # fmt: skip
        self.columns, widths, d = 0, chain.widths, chain.out_features
        self.layers = [
            self._term(widths[i + 1], widths[i] + (layer.bias is not None)) for i, layer in enumerate(chain.layers)
        ]
        self.readouts = [self._term(d, widths[r.layer] + r.bias) for r in chain.readouts]
        self.output_bias = self._term(d, 1) if chain.output_bias and per == "module" else None
        names = [r.name for r in chain.readouts]
        if per == "module":
            names = [*(layer.name for layer in chain.layers), chain.readout_name]
            names += ["output_bias"] if self.output_bias else []
        self.names = tuple(names)

    def _term(self, rows: int, size: int) -> _Term:
        term = _Term(rows, size, self.columns)
        self.columns += rows + size if self.kind == "kronecker" else rows * size
        return term

    @property
    def outputs(self) -> int:
        """C."""
        return 1 if self.summed else self.chain.out_features

    def shapes(self, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the features and the self-kernels of n examples."""
        lead = (len(self.names), n, self.outputs)
        return (*lead, self.k), (*lead, self.outputs)

    def fill(self, arrays: list[Tensor], x: Tensor) -> None:
        """Add the features and the self-kernels of these examples to zeros."""
        wanted = range(len(self.chain.readouts)) if self.per == "layer" else None
        with torch.no_grad(), full_precision(x), torch.autocast(x.device.type, enabled=False):
            found = tangents(self.chain, x, wanted, summed=self.summed, with_readouts=False)
            self._layers(arrays, found)
            self._readouts(arrays, found)

    def _layers(self, arrays: list[Tensor], found: Tangents) -> None:
        for i, (layer, term) in enumerate(zip(self.chain.layers, self.layers, strict=True), 1):
            if i not in found.deltas:
                continue
            h = found.states[i - 1] * layer.scale
            if layer.bias is not None:
                h = torch.cat([h, h.new_full((len(h), 1), layer.bias_scale)], 1)
            places = found.functions[i] if self.per == "layer" else (i - 1,)
            self._add(arrays, places, h, found.deltas[i], term)

    def _readouts(self, arrays: list[Tensor], found: Tangents) -> None:
        d, omega = self.chain.out_features, self.chain.omega
        for i, (readout, term) in enumerate(zip(self.chain.readouts, self.readouts, strict=True)):
            h = found.states[readout.layer] * readout.scale
            if readout.bias:
                h = torch.cat([h, torch.ones_like(h[:, :1])], 1)
            own = h.new_ones(d) if omega is None or self.per == "layer" else omega[:, i]
            place = i if self.per == "layer" else len(self.chain.layers)
            self._add_diagonal(arrays, place, h, own, term)
        if self.output_bias is not None:
            ones = torch.ones_like(found.states[0][:, :1])
            self._add_diagonal(arrays, len(self.names) - 1, ones, ones.new_ones(d), self.output_bias)

    def _add(self, arrays: list[Tensor], places: tuple[int, ...], h: Tensor, deltas: Tensor, term: _Term) -> None:
        """Add delta (x) h for every function, deltas [functions, n, C, rows]."""
        features, own = arrays
        lengths = h.square().sum(1)[:, None, None]
        for place, delta in zip(places, deltas, strict=True):
            own[place] += delta @ delta.mT * lengths
        if self.kind == "kronecker":
            right = self._project(h, self.k2, term.base + term.rows)
            for place, delta in zip(places, deltas, strict=True):
                left = self._project(delta, self.k1, term.base)
                features[place] += (left.unsqueeze(3) * right[:, None, None]).flatten(2)
            return
        for first, stop, piece in self._pieces(h, term):
            # [rows, n, k], of which every output takes its own combination of rows
            for place, delta in zip(places, deltas, strict=True):
                features[place].baddbmm_(delta[..., first:stop], piece.transpose(0, 1))

    def _add_diagonal(self, arrays: list[Tensor], place: int, h: Tensor, own: Tensor, term: _Term) -> None:
        """Add own_c e_c (x) h for every output c."""
        features, squares = arrays
        lengths = h.square().sum(1)[:, None]
        if self.summed:
            squares[place, :, 0] += lengths * own.square().sum()
        else:
            squares[place].diagonal(dim1=1, dim2=2).add_(lengths * own.square())
        if self.kind == "kronecker":
            left = self._project(torch.diag(own), self.k1, term.base)  # [d, k1]
            left = left.sum(0, keepdim=True) if self.summed else left
            right = self._project(h, self.k2, term.base + term.rows)
            features[place] += (left[None, :, :, None] * right[:, None, None]).flatten(2)
            return
        for first, stop, piece in self._pieces(h, term):
            scaled = piece.mul_(own[first:stop, None, None])
            if self.summed:
                features[place, :, 0] += scaled.sum(0)
            else:
                features[place, :, first:stop] += scaled.transpose(0, 1)

    def _pieces(self, h: Tensor, term: _Term) -> Any:
        """Yield (first row, last, P's columns of these rows times h)."""
        many = max(1, _PIECE // max(len(h) * self.k, 1))
        for first in range(0, term.rows, many):
            stop = min(first + many, term.rows)
            yield first, stop, self._project(h, self.k, term.base + first * term.size, blocks=stop - first)

    def _project(self, x: Tensor, k: int, offset: int, blocks: int | None = None) -> Tensor:
        return project(x, k, offset=offset, blocks=blocks, **self._how)


def _at_once(work: _Projection, budget: int, x: Tensor) -> int:
    """Examples that fit a budget: their states, deltas and features, and a piece."""
    chain, functions = work.chain, len(work.chain.readouts) if work.per == "layer" else 1
    inner = sum(chain.widths[1:])
    each = 4 * sum(chain.widths) + 2 * functions * work.outputs * inner
    each += len(work.names) * work.outputs * (work.k + work.outputs) + work.k
    least = (each + _PIECE) * x.element_size()
    found = (budget // x.element_size() - _PIECE) // each
    if found < 1:
        raise ValueError(f"nftk.{_OP}: memory_budget must be at least {least} bytes for this network, got {budget}")
    return min(found, _MOST)


def _identity(chain: Chain, x: Tensor, backend: str) -> str:
    """Checksum of everything beside the settings that the numbers depend on."""
    total = hashlib.sha256(backend.encode())

    def add(t: Tensor) -> Tensor:
        total.update(f"{tuple(t.shape)} {t.dtype}".encode())
        total.update(t.detach().cpu().contiguous().numpy().data)
        return t

    chain.map(add)
    layers = [(layer.name, layer.activation.name, layer.scale, layer.bias_scale) for layer in chain.layers]
    total.update(json.dumps([layers, [(r.layer, r.scale, r.bias) for r in chain.readouts]]).encode())
    add(x)
    return total.hexdigest()
