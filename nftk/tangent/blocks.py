"""What the blocks of a kernel are made of, and one rectangle of them."""

import dataclasses

import torch
from torch import Tensor

from nftk.ops.tangent_gram_torch import Identity, Term
from nftk.tangent.chain import Chain
from nftk.tangent.walk import Tangents


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """1{i = j} weight[i] times a Gram matrix."""

    weight: Tensor  # [d]
    state: int | None = None  # of h_l
    readouts: bool = False  # of all f_l of output i; else the matrix of ones, where state is None too


@dataclasses.dataclass(frozen=True)
class Block:
    """Sum of some terms."""

    name: str
    terms: tuple[tuple[int, int], ...] = ()  # (k, function): what layer k adds to it
    diagonals: tuple[Diagonal, ...] = ()


def blocks_of(chain: Chain, per: str, include_omega: bool) -> list[Block]:
    """The blocks of ``per="layer"`` or ``per="module"``; the sum of the latter is ``per="model"``."""
    ones = torch.ones_like(chain.readouts[0].weight[:, 0]).detach()
    if per == "layer":
        return [
            Block(
                readout.name,
                tuple((k, i) for k in range(1, readout.layer + 1)),
                _readout_diagonals(chain, i, ones),
            )
            for i, readout in enumerate(chain.readouts)
        ]
    found = [Block(layer.name, ((k, 0),)) for k, layer in enumerate(chain.layers, 1)]
    # a layer above the last readout that counts is no part of f
    weights = [ones if chain.omega is None else chain.omega[:, i].square() for i in range(len(chain.readouts))]
    own = [_readout_diagonals(chain, i, w) for i, w in enumerate(weights)]
    found.append(Block(chain.readout_name, diagonals=tuple(d for ds in own for d in ds)))
    if chain.output_bias:
        found.append(Block("output_bias", diagonals=(Diagonal(ones),)))
    if include_omega:
        found.append(Block("omega", diagonals=(Diagonal(ones, readouts=True),)))
    return found


def _readout_diagonals(chain: Chain, i: int, weight: Tensor) -> tuple[Diagonal, ...]:
    readout = chain.readouts[i]
    gram = Diagonal(weight * readout.scale**2, state=readout.layer)
    return (gram, Diagonal(weight)) if readout.bias else (gram,)


class Rectangle:
    """Terms and diagonals of some blocks over two sets of examples."""

    def __init__(self, chain: Chain, left: Tangents, right: Tangents) -> None:
        self.chain, self.left, self.right = chain, left, right
        self._grams: dict[int, Tensor] = {}

    def gram(self, layer: int) -> Tensor:
        """<h_l[x], h_l[x']>."""
        if layer not in self._grams:
            self._grams[layer] = self.left.states[layer] @ self.right.states[layer].mT
        return self._grams[layer]

    def factor(self, k: int) -> Tensor:
        """S_k: Gram matrix of what layer k takes in, and of its bias."""
        layer = self.chain.layers[k - 1]
        bias = 0.0 if layer.bias is None else layer.bias_scale**2
        gram = self.gram(k - 1)
        # a parameter's own tangent: with scale 1 and no bias the matrix itself
        return gram if (layer.scale, bias) == (1.0, 0.0) else gram * layer.scale**2 + bias

    def terms(self, blocks: list[Block], outputs: list[int]) -> list[Term]:
        """Terms of tangent_gram, block b added to outputs[b]."""
        owners = {term: o for block, o in zip(blocks, outputs, strict=True) for term in block.terms}
        found = []
        for k, functions in self.left.functions.items():
            if any((k, f) in owners for f in functions):
                places = tuple(owners[k, f] for f in functions)
                found.append(Term(self.factor(k), self.left.deltas[k], self.right.deltas[k], places))
        return found

    def identities(
        self, blocks: list[Block], outputs: list[int], left: Tensor | None, right: Tensor | None
    ) -> list[Identity]:
        """Diagonals of tangent_gram; left and right are factors per block, example and output, [b, n, d or 1]."""
        found = []
        for b, (block, output) in enumerate(zip(blocks, outputs, strict=True)):
            for diagonal in block.diagonals:
                gram = self._diagonal_gram(diagonal)
                if left is not None and right is not None:
                    scale = left[b].mT.unsqueeze(2) * right[b].mT.unsqueeze(1)  # [d or 1, n1, n2]
                    gram = gram * (scale if scale.shape[0] > 1 or gram.ndim == 3 else scale[0])
                found.append(Identity(gram, diagonal.weight.to(gram.dtype), output))
        return found

    def _diagonal_gram(self, diagonal: Diagonal) -> Tensor:
        if diagonal.state is not None:
            return self.gram(diagonal.state)
        left, right = self.left.readouts, self.right.readouts
        if diagonal.readouts and left is not None and right is not None:
            return left.transpose(0, 1) @ right.permute(1, 2, 0)
        return self.left.states[0].new_ones(len(self.left), len(self.right))


def self_kernels(chain: Chain, blocks: list[Block], x: Tangents, *, form: str) -> Tensor:
    """Theta[x, x] of every block and output, [b, n, d]; with form "trace" their sum, [b, n, 1]."""
    squares = {layer: h.square().sum(1) for layer, h in enumerate(x.states)}
    found = []
    for block in blocks:
        total = x.states[0].new_zeros(len(x), 1)
        for k, function in block.terms:
            layer = chain.layers[k - 1]
            bias = 0.0 if layer.bias is None else layer.bias_scale**2
            delta = x.deltas[k][x.functions[k].index(function)]
            length = torch.linalg.vector_norm(delta, dim=-1).square()  # [n, d]
            total = total + (squares[k - 1] * layer.scale**2 + bias)[:, None] * _maybe_summed(length, form)
        for diagonal in block.diagonals:
            if diagonal.state is not None:
                value = squares[diagonal.state][:, None]
            elif diagonal.readouts and x.readouts is not None:
                value = x.readouts.square().sum(2)
            else:
                value = torch.ones_like(squares[0])[:, None]
            total = total + _maybe_summed(value * diagonal.weight, form)
        found.append(total.expand(-1, chain.out_features) if form != "trace" else total)
    return torch.stack(found)


def _maybe_summed(x: Tensor, form: str) -> Tensor:
    return x.sum(1, keepdim=True) if form == "trace" else x


def apply_scale(x: Tangents, blocks: list[Block], scale: Tensor) -> None:
    """Multiply the deltas of every block by its factor, [b, n, d or 1], in place."""
    for b, block in enumerate(blocks):
        for k, function in block.terms:
            x.deltas[k][x.functions[k].index(function)].mul_(scale[b].unsqueeze(-1))


def scaled(x: Tangents, blocks: list[Block], scale: Tensor | None) -> Tangents:
    """The same out of place."""
    if scale is None:
        return x
    factors = {term: scale[b] for b, block in enumerate(blocks) for term in block.terms}
    deltas = {
        k: delta * torch.stack([factors[k, function] for function in x.functions[k]]).unsqueeze(-1)
        for k, delta in x.deltas.items()
    }
    return dataclasses.replace(x, deltas=deltas)
