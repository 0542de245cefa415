"""Where a Sweep has its tangents from: a chain of linear layers, or any module."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from nftk.ops.tangent_gram import fill
from nftk.tangent.blocks import Rectangle, apply_scale, blocks_of, self_kernels
from nftk.tangent.chain import Chain
from nftk.tangent.modules.network import Network
from nftk.tangent.modules.source import ModuleSource
from nftk.tangent.plan import Costs, costs
from nftk.tangent.request import Request
from nftk.tangent.walk import Tangents, tangents

# Tensor, or Examples of any module
Inputs = Any


class Source(Protocol):
    """Tangents of some examples, and the products of two such sets."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""

    @property
    def outputs(self) -> int:
        """Size d of a block of two examples; 1 where the outputs are summed."""

    def costs(self) -> Costs:
        """What a plan needs to know."""

    def tangents(self, x: Inputs, group: slice) -> Any:
        """Of all examples in x, for the blocks of a group; it has a length and ``part(examples)``."""

    def scale_(self, tangents: Any, group: slice, scale: Tensor) -> None:
        """Multiply by a factor for each block, example and output, [b, n, d or 1]."""

    def self_kernels(self, tangents: Any, group: slice) -> Tensor:
        """Theta[x, x] of every block and output, [b, n, d]; with form "trace" their sum, [b, n, 1]."""

    def fill(
        self, target: Tensor, left: Any, right: Any, group: slice, symmetric: bool, *scales: Tensor | None
    ) -> None:
        """Write the blocks of a group, or the sum of all, over target; with symmetric left and right are the same.

        The scales are those that left and right were multiplied with.
        """

    def describe(self, add: Callable[[Tensor], Tensor]) -> list[object]:
        """Give every tensor that the kernel depends on, and return what else it depends on, ready for JSON."""


class ChainSource:
    """Of an NFTKMLP or a plain multilayer perceptron."""

    def __init__(self, chain: Chain, request: Request, n1: int, n2: int) -> None:
        self.chain, self.request = chain, request
        self.parts = blocks_of(chain, request.per, request.include_omega)
        self._sizes = n1, n2

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.parts)

    @property
    def outputs(self) -> int:
        """Size d of a block of two examples; 1 where the outputs are summed."""
        return 1 if self.request.reduction == "sum_logits" else self.chain.out_features

    def costs(self) -> Costs:
        """What a plan needs to know."""
        return costs(self.chain, self.request, *self._sizes)

    def tangents(self, x: Tensor, group: slice) -> Tangents:
        """Walk forward and back."""
        wanted = range(len(self.parts))[group] if self.request.per == "layer" else None
        summed = self.request.reduction == "sum_logits"
        return tangents(self.chain, x, wanted, summed=summed, with_readouts=self.request.include_omega)

    def scale_(self, tangents: Tangents, group: slice, scale: Tensor) -> None:
        """Multiply the deltas."""
        apply_scale(tangents, self.parts[group], scale)

    def self_kernels(self, tangents: Tangents, group: slice) -> Tensor:
        """Of every block and output, or their sum."""
        return self_kernels(self.chain, self.parts[group], tangents, form=self.request.form)

    def fill(
        self, target: Tensor, left: Tangents, right: Tangents, group: slice, symmetric: bool, *scales: Tensor | None
    ) -> None:
        """All terms in one operation."""
        blocks = self.parts[group]
        outputs = [0] * len(blocks) if self.request.one_output else list(range(len(blocks)))
        rectangle = Rectangle(self.chain, left, right)
        identities = rectangle.identities(blocks, outputs, *scales)
        terms = rectangle.terms(blocks, outputs)
        fill(target, terms, self.request.form, symmetric, identities, self.request.precision, self.request.backend)

    def describe(self, add: Callable[[Tensor], Tensor]) -> list[object]:
        """All parameters, and what the layers are."""
        self.chain.map(add)
        scales = [(layer.name, layer.activation.name, layer.scale, layer.bias_scale) for layer in self.chain.layers]
        return [scales, [(r.layer, r.scale, r.bias) for r in self.chain.readouts]]


def source_of(
    network: Chain | Network, request: Request, n1: int, n2: int, *, symmetric: bool, budget: int
) -> ChainSource | ModuleSource:
    """The tangents of a network, for one request."""
    if isinstance(network, Chain):
        return ChainSource(network, request, n1, n2)
    return ModuleSource(network, request, n1, n2, symmetric, budget)


def like(network: Chain | Network) -> Tensor:
    """An empty tensor of the network's dtype and on its device."""
    return torch.empty(0, dtype=network.dtype, device=network.device)
