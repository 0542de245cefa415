"""Projected tangents of any module: gradients of each example, from their factors a piece at a time, times P's columns.

The columns are those of the parameters, in the order of ``named_parameters()``, whatever way a gradient is found. With
kind "kronecker" a linear map has rows + inputs columns instead, for the two factors of its P.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nftk.ops.precision import full_precision
from nftk.tangent.modules.examples import Examples
from nftk.tangent.modules.network import Held, Network, Site
from nftk.tangent.modules.products import own_gradients
from nftk.tangent.tangent_projection import PIECE, TangentProjection


class ModuleProjection(TangentProjection):
    """Which columns belong to which parameters, and the features of some examples."""

    order = "parameters"
    pieces = 3

    def __init__(
        self, network: Network, per: str, kind: str, summed: bool, k: int, seed: int, nonzeros: int, backend: str
    ) -> None:
        self.network, self.summed = network, summed
        names, outputs = ("model",) if per == "model" else network.blocks, 1 if summed else network.out_features
        super().__init__(names, outputs, k, kind, seed, nonzeros, backend)
        self._places = {site: 0 if per == "model" else network.blocks.index(site.block) for site in network.sites}
        if kind == "kronecker":
            _check_linear(network)
        self.columns = 0
        self._base: dict[str, int] = {}
        sites = {site.parameters[0]: site for site in network.sites}
        for name, parameter in network.parameters.items():
            self._base[name] = self.columns
            if kind != "kronecker":
                self.columns += parameter.numel()
            elif name in sites:
                self.columns += sites[name].outputs + sites[name].columns

    def entries(self) -> int:
        """Numbers of an example that are held at once, at most; a piece beside them."""
        c, size = self.outputs, torch.finfo(self.network.dtype).bits // 8
        kept = sum(c * site.size if self._keeps(site) else _factors(site, c) for site in self.network.sites)
        walked = self.network.walk_bytes // size + sum(_factors(site, 1) + site.size for site in self.network.sites)
        if any(site.rule is None for site in self.network.sites):
            # torch.func has all outputs at once
            walked += c * (self.network.walk_bytes // size + 3 * sum(s.size for s in self.network.sites if not s.rule))
        row = max([c * site.columns for site in self.network.sites if site.factored], default=0)
        return kept + walked + row + len(self.names) * c * (self.k + c) + c * self.k

    def fill(self, arrays: list[Tensor], x: Examples) -> None:
        """Add the features and the self-kernels of these examples to zeros."""
        held: list[Held] = []
        sites, n = self.network.sites, len(x)
        for i, found in self.network.gradients(x, summed=self.summed):
            for s, (site, own) in enumerate(zip(sites, found, strict=True)):
                kept = Held(None, self._ordered(site, own).view(n, 1, 1, 1, -1)) if self._keeps(site) else own
                if i == 0:
                    shape = (*kept.g.shape[:3], self.outputs, kept.g.shape[4])
                    held.append(Held(kept.a, kept.g.new_empty(shape)))
                held[s].g[:, :, :, i] = kept.g[:, :, :, 0]
        with torch.no_grad(), full_precision(arrays[0]):
            for site, own in zip(sites, held, strict=True):
                self._add([array[self._places[site]] for array in arrays], site, own)

    def _keeps(self, site: Site) -> bool:
        """Whether gradients are kept, and not the factors that they are made of."""
        if self.kind == "kronecker":
            return False
        if not site.factored or site.groups > 1 or (site.rule is not None and site.rule.what == "addmm"):
            return True
        return self.outputs * site.size <= _factors(site, self.outputs)

    def _ordered(self, site: Site, held: Held) -> Tensor:
        """Gradients of one output, [n, P], one parameter after the other."""
        found = own_gradients(site, held)[:, 0]
        if not site.factored or site.rule is None or site.rule.kind == "rows":
            return found
        rows = found.unflatten(1, (-1, site.columns))  # each row of the weight, and its bias
        weight = rows[..., : site.inputs]
        parts = [(weight.mT if site.rule.what == "addmm" else weight).flatten(1)]
        return torch.cat([*parts, rows[..., -1]], 1) if site.rule.bias else parts[0]

    def _add(self, arrays: list[Tensor], site: Site, held: Held) -> None:
        """Add features [n, C, k] and self-kernels [n, C, C]."""
        if self.kind == "kronecker":
            self._add_factored(arrays, site, held)
            _add_own(arrays[1], site, held)
        elif self._keeps(site):
            g = held.g[:, 0, 0]
            arrays[1].baddbmm_(g, g.mT)
            start = 0
            for name in site.parameters:
                stop = start + self.network.parameters[name].numel()
                arrays[0].add_(self._project(g[..., start:stop], self.k, self._base[name]))
                start = stop
        elif site.rule is not None and site.rule.kind == "rows":
            base, features = self._base[site.parameters[0]], arrays[0]
            for row, part in _used_rows(site, held):
                arrays[1].baddbmm_(part, part.mT)
                features.add_(self._project(part, self.k, base + row * site.outputs))
        else:
            self._add_linear(arrays, site, held)

    def _add_linear(self, arrays: list[Tensor], site: Site, held: Held) -> None:
        """Of a linear map: rows of its weight at a time."""
        n, _, s, c, rows = held.g.shape
        a, g = _matrices(held)
        _add_own(arrays[1], site, held)
        base = self._base[site.parameters[0]]
        # of one position P's columns of a row times a serve all outputs
        each = n * self.k if s == 1 else n * c * site.inputs
        step = max(1, PIECE // max(each, 1))
        for first in range(0, rows, step):
            stop = min(first + step, rows)
            offset = base + first * site.inputs
            if s == 1:
                piece = self._project(a[:, 0], self.k, offset, blocks=stop - first)  # [rows, n, k]
                arrays[0].baddbmm_(g[:, 0, :, first:stop], piece.transpose(0, 1))
            else:
                part = g[..., first:stop].flatten(2).mT @ a  # [n, C rows, inputs]
                arrays[0].add_(self._project(part.view(n, c, -1), self.k, offset))
        if len(site.parameters) > 1:
            arrays[0].add_(self._project(g.sum(1), self.k, self._base[site.parameters[1]]))

    def _add_factored(self, arrays: list[Tensor], site: Site, held: Held) -> None:
        """By two small projections, (P1 x P2) sum_s g_s a_s = sum_s P1 g_s x P2 a_s."""
        a, g = _matrices(held)
        if site.rule is not None and site.rule.bias:
            a = torch.cat([a, torch.ones_like(a[..., :1])], 2)
        base = self._base[site.parameters[0]]
        left = self._project(g, self.k1, base)  # [n, s, C, k1]
        right = self._project(a, self.k2, base + site.outputs)  # [n, s, k2]
        found = left.flatten(2).mT @ right  # [n, C k1, k2]
        arrays[0].add_(found.view(arrays[0].shape))


def _check_linear(network: Network) -> None:
    for site in network.sites:
        if site.rule is None or site.rule.kind != "products" or site.groups > 1:
            what = "torch.func" if site.rule is None else site.rule.what
            raise NotImplementedError(
                f"nftk.{network.op}: kind 'kronecker' must go with linear maps and convolutions of one group, got "
                f"{what} of {', '.join(site.parameters)}"
            )


def _matrices(held: Held) -> tuple[Tensor, Tensor]:
    """Of one group: a [n, positions, inputs], g [n, positions, C, outputs]."""
    assert held.a is not None
    return held.a[:, 0], held.g[:, 0]


def _factors(site: Site, c: int) -> int:
    """Numbers of a and g of an example."""
    if not site.factored:
        return c * site.size
    inputs = 2 if site.rule is not None and site.rule.kind == "rows" else site.inputs
    return site.groups * site.positions * (inputs + c * site.outputs)


def _add_own(own: Tensor, site: Site, held: Held) -> None:
    """Add <G_i, G_j> of an example's outputs, from positions or from the gradients, whichever is less."""
    a, g = _matrices(held)
    n, s, c, rows = g.shape
    bias = site.rule is not None and site.rule.bias
    if s * s * (c * c + c * rows) <= c * site.size:
        gram = a @ a.mT + bias  # [n, s, s]
        along = g.transpose(1, 2).flatten(1, 2)  # [n, C s, rows]
        products = (along @ along.mT).view(n, c, s, c, s) * gram[:, None, :, None]
        own.add_(products.sum((2, 4)))
        return
    step = max(1, PIECE // max(n * c * site.columns, 1))
    for first in range(0, rows, step):
        part = g[..., first : first + step].flatten(2)
        gradient = (part.mT @ a).view(n, c, -1)
        own.baddbmm_(gradient, gradient.mT)
    if bias:
        gradient = g.sum(1)
        own.baddbmm_(gradient, gradient.mT)


def _used_rows(site: Site, held: Held) -> Iterator[tuple[int, Tensor]]:
    """Of a table: numbers of rows that the examples use, and the gradients [n, C, columns] of rows in succession."""
    assert held.a is not None
    n, _, s, c, width = held.g.shape
    used, places = held.a.unique(return_inverse=True)
    edges = (used.diff() != 1).nonzero()[:, 0] + 1
    starts, stops = ([*ends] for ends in ((0, *edges.tolist()), (*edges.tolist(), len(used))))
    step = max(1, PIECE // max(n * c * width, 1))
    for start, end in zip(starts, stops, strict=True):
        for first in range(start, end, step):
            many = min(step, end - first)
            # rows elsewhere go into one that is left out
            inside = torch.where((places >= first) & (places < first + many), places - first, many)
            small = replace(site, inputs=many + 1)
            found = own_gradients(small, Held(inside, held.g)).view(n, c, many + 1, width)
            yield int(used[first]), found[:, :, :many].flatten(2)
