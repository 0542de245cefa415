"""Tangents of any module and their products, as a Sweep wants them."""

from collections.abc import Callable

import torch
from torch import Tensor

from nftk.ops.precision import full_precision
from nftk.ops.tangent_gram import fill
from nftk.ops.tangent_gram_torch import Term, memory_shape, mirrored
from nftk.tangent.modules.choice import (
    Choice,
    choose,
    costs,
    is_term,
    outputs_of,
    scratch_of,
    spare_bytes,
    walked_at_once,
)
from nftk.tangent.modules.examples import Examples
from nftk.tangent.modules.network import Held, Network
from nftk.tangent.modules.products import add_gradients, add_gram, gradients, squares
from nftk.tangent.plan import Costs
from nftk.tangent.request import Request


class ModuleTangents:
    """Of n examples, what every site holds."""

    def __init__(self, n: int, held: list[Held]) -> None:
        self.n, self.held = n, held

    def __len__(self) -> int:
        return self.n

    def part(self, examples: slice) -> "ModuleTangents":
        """Some of the examples, as views."""
        return ModuleTangents(len(range(self.n)[examples]), [held.part(examples) for held in self.held])


class ModuleSource:
    """The tangents of a network of any kind, for one request.

    Args:
        network: What was read of the model.
        request: What is asked for.
        n1: Number of first examples.
        n2: Number of second examples.
        symmetric: Whether they are the same.
        budget: Bytes of memory.
    """

    def __init__(self, network: Network, request: Request, n1: int, n2: int, symmetric: bool, budget: int) -> None:
        self.network, self.request = network, request
        self.choices = choose(network, request, n1, n2, symmetric)
        self.outputs = outputs_of(network, request)
        spare = spare_bytes(network, request, self.choices, n1, n2, budget)
        self.scratch = scratch_of(spare)
        self.walked = walked_at_once(network, request, self.choices, spare)
        self._sizes = n1, n2, spare

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.network.blocks)

    def costs(self) -> Costs:
        """What a plan needs to know."""
        return costs(self.network, self.request, self.choices, *self._sizes)

    def tangents(self, x: Examples, group: slice) -> ModuleTangents:
        """Walk forward and back through some examples at a time."""
        held: list[Held] = []
        for start in range(0, len(x), self.walked):
            part = slice(start, min(start + self.walked, len(x)))
            for i, found in self.network.gradients(x[part], summed=self.request.reduction == "sum_logits"):
                if not held:
                    held = [self._empty(len(x), s, own) for s, own in enumerate(found)]
                for choice, whole, own in zip(self.choices, held, found, strict=True):
                    if choice.keeps_gradients:
                        whole.g[part, 0, 0, i] = gradients(choice.site, own, 0, own.g.shape[-1]).flatten(1)
                        continue
                    if i == 0 and whole.a is not None and own.a is not None:
                        whole.a[part] = own.a
                    whole.g[part, :, :, i] = own.g[:, :, :, 0]
        return ModuleTangents(len(x), held)

    def _empty(self, n: int, s: int, like: Held) -> Held:
        choice, d = self.choices[s], self.outputs
        if choice.keeps_gradients:
            return Held(None, like.g.new_empty(n, 1, 1, d, choice.site.size))
        a = None if like.a is None else like.a.new_empty(n, *like.a.shape[1:])
        return Held(a, like.g.new_empty(n, *like.g.shape[1:3], d, like.g.shape[4]))

    def scale_(self, tangents: ModuleTangents, group: slice, scale: Tensor) -> None:
        """Multiply by a factor for each block, example and output, [b, n, d or 1]."""
        for choice, held in zip(self.choices, tangents.held, strict=True):
            place = self.network.blocks.index(choice.site.block)
            held.g.mul_(scale[place][:, None, None, :, None])

    def self_kernels(self, tangents: ModuleTangents, group: slice) -> Tensor:
        """Theta[x, x] of every block and output, [b, n, d]; with form "trace" their sum, [b, n, 1]."""
        dtype, device = self.network.dtype, self.network.device
        found = torch.zeros(self.blocks, len(tangents), self.outputs, dtype=dtype, device=device)
        for choice, held in zip(self.choices, tangents.held, strict=True):
            place = self.network.blocks.index(choice.site.block)
            found[place] += squares(choice.held_site, held, choice.form == "gram", self.scratch)
        return found.sum(2, keepdim=True) if self.request.form == "trace" else found

    def fill(
        self, target: Tensor, left: ModuleTangents, right: ModuleTangents, group: slice, symmetric: bool, *_: object
    ) -> None:
        """Write the blocks, or their sum, over target."""
        form, like = self.request.form, target
        places = [
            0 if self.request.one_output else self.network.blocks.index(choice.site.block) for choice in self.choices
        ]
        terms, others = [], []
        for choice, a, b, place in zip(self.choices, left.held, right.held, places, strict=True):
            if not is_term(choice):
                others.append((choice, a, b, place))
                continue
            assert a.a is not None
            assert b.a is not None
            assert choice.site.rule is not None
            factor = a.a[:, 0, 0] @ b.a[:, 0, 0].mT
            if choice.site.rule.bias:
                factor += 1
            terms.append(Term(factor, a.g[None, :, 0, 0], b.g[None, :, 0, 0], (place,)))
        if terms:
            fill(target, terms, form, symmetric, (), self.request.precision, self.request.backend)
        else:
            target.zero_()
        with full_precision(like):
            for place in dict.fromkeys(places):
                mine = [(choice, a, b) for choice, a, b, where in others if where == place]
                if mine:
                    self._add(target[place], mine, symmetric)

    def _add(self, out: Tensor, uses: list[tuple[Choice, Held, Held]], symmetric: bool) -> None:
        form, d = self.request.form, self.outputs
        n1, n2 = len(uses[0][1].g), len(uses[0][2].g)
        shape = memory_shape(form, 1, n1, n2, d)
        product = out.new_zeros(shape)[0]
        matrix = product.view(n1 * d, n2 * d) if form == "full" else product
        for choice, a, b in uses:
            add = add_gram if choice.form == "gram" else add_gradients
            add(matrix, choice.held_site, a, b, form, self.scratch, symmetric)
        out.add_(mirrored(product.unsqueeze(0), form)[0] if symmetric else product)

    def describe(self, add: Callable[[Tensor], Tensor]) -> list[object]:
        """Give every tensor that the kernel depends on, and return what else it depends on."""
        return [*self.network.describe(add), [list(site.parameters) for site in self.network.sites]]
