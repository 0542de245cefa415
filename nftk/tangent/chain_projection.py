"""Projected tangents of a chain of linear layers, without a gradient over parameters in memory."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from nftk.ops.precision import full_precision
from nftk.tangent.chain import Chain
from nftk.tangent.tangent_projection import PIECE, TangentProjection
from nftk.tangent.walk import Tangents, tangents


@dataclasses.dataclass
class _Term:
    """Columns of one weight and its bias: how many rows, what a row is multiplied with, and where they begin."""

    rows: int
    size: int
    base: int


class ChainProjection(TangentProjection):
    """Which columns belong to which parameters, and the features of some examples."""

    order = "rows"
    pieces = 1

    def __init__(
        self, chain: Chain, per: str, kind: str, summed: bool, k: int, seed: int, nonzeros: int, backend: str
    ) -> None:
        self.chain, self.summed, self.per_layer = chain, summed, per == "layer"
        has_output_bias = chain.output_bias and not self.per_layer
        names = [r.name for r in chain.readouts]
        if not self.per_layer:
            names = [*(layer.name for layer in chain.layers), chain.readout_name]
            names += ["output_bias"] if has_output_bias else []
        self._places = [0 if per == "model" else i for i in range(len(names))]
        outputs = 1 if summed else chain.out_features
        super().__init__(["model"] if per == "model" else names, outputs, k, kind, seed, nonzeros, backend)

        self.columns, widths, d = 0, chain.widths, chain.out_features
        self.layers = [
            self._term(widths[i + 1], widths[i] + (layer.bias is not None)) for i, layer in enumerate(chain.layers)
        ]
        self.readouts = [self._term(d, widths[r.layer] + r.bias) for r in chain.readouts]
        self.output_bias = self._term(d, 1) if has_output_bias else None

    def _term(self, rows: int, size: int) -> _Term:
        term = _Term(rows, size, self.columns)
        self.columns += rows + size if self.kind == "kronecker" else rows * size
        return term

    def entries(self) -> int:
        """Numbers of an example that are held at once, at most; a piece beside them."""
        chain, functions = self.chain, len(self.chain.readouts) if self.per_layer else 1
        inner = sum(chain.widths[1:])
        each = 4 * sum(chain.widths) + 2 * functions * self.outputs * inner
        return each + len(self.names) * self.outputs * (self.k + self.outputs) + self.k

    def fill(self, arrays: list[Tensor], x: Tensor) -> None:
        """Add the features and the self-kernels of these examples to zeros."""
        wanted = range(len(self.chain.readouts)) if self.per_layer else None
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
            places = found.functions[i] if self.per_layer else (self._places[i - 1],)
            self._add(arrays, places, h, found.deltas[i], term)

    def _readouts(self, arrays: list[Tensor], found: Tangents) -> None:
        d, omega = self.chain.out_features, self.chain.omega
        for i, (readout, term) in enumerate(zip(self.chain.readouts, self.readouts, strict=True)):
            h = found.states[readout.layer] * readout.scale
            if readout.bias:
                h = torch.cat([h, torch.ones_like(h[:, :1])], 1)
            own = h.new_ones(d) if omega is None or self.per_layer else omega[:, i]
            place = i if self.per_layer else self._places[len(self.chain.layers)]
            self._add_diagonal(arrays, place, h, own, term)
        if self.output_bias is not None:
            ones = torch.ones_like(found.states[0][:, :1])
            self._add_diagonal(arrays, self._places[-1], ones, ones.new_ones(d), self.output_bias)

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

    def _pieces(self, h: Tensor, term: _Term) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first row, last, P's columns of these rows times h)."""
        many = max(1, PIECE // max(len(h) * self.k, 1))
        for first in range(0, term.rows, many):
            stop = min(first + many, term.rows)
            yield first, stop, self._project(h, self.k, term.base + first * term.size, blocks=stop - first)
