"""Fills the kernel of two sets of examples, tile by tile."""

import contextlib
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from nftk.ops.precision import full_precision
from nftk.ops.tangent_gram_torch import memory_shape, write_mirrored
from nftk.tangent.chain import Chain
from nftk.tangent.modules.network import Network
from nftk.tangent.plan import Plan, Tile, make_plan
from nftk.tangent.request import Request
from nftk.tangent.source import Inputs, Source, like, source_of

TileDone = Callable[[Tile, int, int], None]


class Sweep:
    """One kernel to be computed: of which network, for which examples, and in which order.

    Args:
        network: A chain, whose parameters carry no gradients; or any other network.
        x1: First inputs; of a chain ``(n1, m)``.
        x2: Second inputs; None: the first.
        request: What is asked for.
        budget: Bytes for everything beside inputs and output.
        op: Name for messages.
        plan: One made before, to go on with; None to make it.
    """

    def __init__(
        self,
        network: Chain | Network,
        x1: Inputs,
        x2: Inputs | None,
        request: Request,
        *,
        budget: int,
        op: str,
        plan: Plan | None = None,
    ) -> None:
        self.network, self.x1, self.x2, self.request = network, x1, x2, request
        self.form = request.form
        self.names = request.names(network)
        self.like = like(network)
        self.one_output = request.one_output
        self._apart = request.per == "layer"
        self.source: Source = source_of(network, request, self.n1, self.n2, symmetric=self.symmetric, budget=budget)
        # of a negative weight one side has the sign
        self._sides_differ = request.weights is not None and min(request.weights) < 0
        self.plan = plan or make_plan(
            self.source.costs(),
            self.n1,
            self.n2,
            symmetric=self.symmetric,
            sides_differ=self._sides_differ,
            # the sum of all blocks needs them all at once: a tile is written once, and can be written again
            may_group=self._apart and not self.one_output,
            budget=budget,
            op=op,
        )
        self._scales: tuple[Tensor | None, Tensor | None] = (None, None)

    @property
    def symmetric(self) -> bool:
        """Whether both sets of examples are the same."""
        return self.x2 is None

    @property
    def n1(self) -> int:
        """Number of first examples."""
        return len(self.x1)

    @property
    def n2(self) -> int:
        """Number of second examples."""
        return len(self.x1 if self.x2 is None else self.x2)

    def memory_shape(self) -> tuple[int, ...]:
        """Shape of the output, in the order of memory that is fastest."""
        return memory_shape(self.form, len(self.names), self.n1, self.n2, self.network.out_features)

    def tiles(self) -> list[Tile]:
        """All tiles, in the order in which :meth:`run` fills them."""
        groups = self._groups() if self._apart and not self.one_output else ((0, len(self.names)),)
        return list(self.plan.tiles(groups, self.n1, self.n2, self.symmetric))

    def _groups(self) -> tuple[tuple[int, int], ...]:
        """Ranges of blocks that are walked back together."""
        return self.plan.groups if self._apart and not self.one_output else ((0, self.source.blocks),)

    @torch.no_grad()
    def run(self, out: Tensor, done: Collection[Tile] = (), tile_done: TileDone | None = None) -> None:
        """Fill out, in memory's order with any strides and on any device, but for the tiles already done."""
        tiles = self.tiles()
        total = sum(map(_area, tiles))
        passed = 0
        exact = full_precision(self.like) if self.request.precision == "highest" else contextlib.nullcontext()
        with exact, torch.autocast(self.like.device.type, enabled=False):
            if self.request.normalize is not None:
                left = self.self_kernels(self.x1)
                right = left if self.x2 is None else self.self_kernels(self.x2)
                self._scales = self.scales(left, right)
            elif self.request.weights is not None:
                self._scales = self.scales(None, None)
            held: tuple[tuple[int, ...], Any] | None = None
            for tile in tiles:
                passed += _area(tile)
                if tile in done:
                    continue
                block = self._row_block(tile)
                key = (*tile.outputs, *block)
                if held is None or held[0] != key:
                    held = None  # freed before the next is made
                    held = key, self._scaled_tangents(self.x1, "left", block, tile.outputs)
                self._fill(out, tile, block, held[1])
                if tile_done is not None:
                    tile_done(tile, passed, total)

    def _row_block(self, tile: Tile) -> tuple[int, int]:
        top = tile.rows[0] - tile.rows[0] % self.plan.rows
        return top, min(top + self.plan.rows, self.n1)

    def _fill(self, out: Tensor, tile: Tile, block: tuple[int, int], held: Any) -> None:
        """One tile, and its mirror image where the kernel is symmetric."""
        rows, columns = slice(*tile.rows), slice(*tile.columns)
        left = held.part(slice(rows.start - block[0], rows.stop - block[0]))
        same_sides = self.symmetric and not self._sides_differ
        if same_sides and block[0] <= columns.start and columns.stop <= block[1]:
            right = held.part(slice(columns.start - block[0], columns.stop - block[0]))
        else:
            x = self.x1 if self.x2 is None else self.x2
            right = self._scaled_tangents(x, "right", tile.columns, tile.outputs)
        group = self._group(tile.outputs)
        scales = [self._scale(side, part, group) for side, part in (("left", rows), ("right", columns))]
        part = self._at(out, rows, columns)[tile.outputs[0] : tile.outputs[1]]
        on_diagonal = self.symmetric and tile.rows == tile.columns
        target = part if part.device == self.like.device else torch.empty_like(part, device=self.like.device)
        self.source.fill(target, left, right, group, on_diagonal, *scales)
        if target is not part:
            part.copy_(target)
        if self.symmetric and not on_diagonal:
            mirrors = self._at(out, columns, rows)[tile.outputs[0] : tile.outputs[1]]
            for mirror, upper in zip(mirrors, target, strict=True):
                write_mirrored(mirror, upper, self.form)

    def _at(self, out: Tensor, rows: slice, columns: slice) -> Tensor:
        return out[:, rows, :, columns] if self.form == "full" else out[..., rows, columns]

    def _group(self, outputs: tuple[int, int]) -> slice:
        """Which blocks a range of outputs is made of."""
        return slice(0, self.source.blocks) if self.one_output else slice(*outputs)

    def _scaled_tangents(self, x: Inputs, side: str, part: tuple[int, int], outputs: tuple[int, int]) -> Any:
        group = self._group(outputs)
        found = self.source.tangents(x[slice(*part)], group)
        scale = self._scale(side, slice(*part), group)
        if scale is not None:
            self.source.scale_(found, group, scale)
        return found

    def _scale(self, side: str, part: slice, group: slice) -> Tensor | None:
        whole = self._scales[side == "right"]
        return None if whole is None else whole[group, part]

    def self_kernels(self, x: Inputs) -> Tensor:
        """Theta[x, x] of all blocks, [b, n, d or 1], for as many examples at a time as the plan holds."""
        d = 1 if self.form == "trace" else self.network.out_features
        found = [self.like.new_zeros(self.source.blocks, 0, d)]
        with torch.no_grad(), full_precision(self.like), torch.autocast(self.like.device.type, enabled=False):
            for start in range(0, len(x), self.plan.columns):
                part = x[start : start + self.plan.columns]
                groups = [slice(*ends) for ends in self._groups()]
                pieces = [self.source.self_kernels(self.source.tangents(part, group), group) for group in groups]
                found.append(torch.cat(pieces))
        return torch.cat(found, dim=1)

    def scales(self, left: Tensor | None, right: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Factors of the tangents of both sides, [b, n, d or 1], from their self-kernels and the weights."""
        sides = [self._normalizer(left), self._normalizer(right)]
        if self.request.weights is not None:
            weights = self.like.new_tensor(self.request.weights)[:, None, None]
            # the root on either side, so that one walk serves both where the examples are the same
            roots = weights.sign() * weights.abs().sqrt(), weights.abs().sqrt()
            for i, (root, n) in enumerate(zip(roots, (self.n1, self.n2), strict=True)):
                side = sides[i]
                sides[i] = root.expand(-1, n, 1) if side is None else side * root
        return sides[0], sides[1]

    def _normalizer(self, squares: Tensor | None) -> Tensor | None:
        """1 / sqrt(self-kernel); 0 where that is 0, as of an example that no gradient reaches."""
        if squares is None:
            return None
        if self.request.normalize == "joint" or self.request.per == "model":
            squares = squares.sum(0, keepdim=True).expand_as(squares)
        positive = squares > 0
        return torch.where(positive, torch.where(positive, squares, 1).rsqrt(), 0)


def _area(tile: Tile) -> int:
    return math.prod(stop - start for start, stop in (tile.outputs, tile.rows, tile.columns))
