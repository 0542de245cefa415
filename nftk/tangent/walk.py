"""One forward pass and one walk back: the factors of every block of the kernel, for some examples.

A block is a sum of terms S_k[x, x'] <delta_k[x, i], delta_k[x', j]>, one a linear layer k, where delta_k is the
derivative of a function's outputs in g_k. Which functions there are is what ``per`` says: every readout, or f alone.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from nftk.tangent.chain import Chain, hidden_states


@dataclasses.dataclass
class Tangents:
    """Of n examples."""

    states: list[Tensor]  # h_0 .. h_L, [n, n_k]
    deltas: dict[int, Tensor]  # by k = 1 .. L: [p_k, n, d, n_k], or d = 1 where the outputs are summed
    functions: dict[int, tuple[int, ...]]  # by k: the p_k functions
    readouts: Tensor | None = None  # all f_l, [n, d, L]

    def __len__(self) -> int:
        return self.states[0].shape[0]

    def part(self, examples: slice) -> "Tangents":
        """Some of the examples, as views."""
        return Tangents(
            [h[examples] for h in self.states],
            {k: delta[:, examples] for k, delta in self.deltas.items()},
            self.functions,
            None if self.readouts is None else self.readouts[examples],
        )


def tangents(chain: Chain, x: Tensor, wanted: Sequence[int] | None, *, summed: bool, with_readouts: bool) -> Tangents:
    """Walk forward and back; differentiable where autograd is on.

    Args:
        chain: The network.
        x: Inputs, shape ``(n, m)``.
        wanted: The readouts, by their place in ``chain.readouts``, each of which is a function; None: f is the only
            one.
        summed: Whether a function's outputs are summed, for sum_logits.
        with_readouts: Whether to return all f_l as well.

    Returns:
        The tangents; layers that no function goes back through have no deltas.
    """
    states, slopes = hidden_states(chain, x)
    deltas: dict[int, Tensor] = {}
    functions: dict[int, tuple[int, ...]] = {}
    back: Tensor | None = None  # deltas of layer k + 1
    names: tuple[int, ...] = ()
    for k in range(len(chain.layers), 0, -1):
        starting = [i for i, r in enumerate(chain.readouts) if r.layer == k and (wanted is None or i in wanted)]
        if back is None and not starting:
            continue
        seeds = [_seed(chain, i, wanted is None, summed) for i in starting]
        weight = None if back is None else chain.layers[k].scaled_weight
        back = _delta(seeds, back, weight, slopes[k - 1], apart=wanted is not None)
        names = (0,) if wanted is None else (*starting, *names)
        deltas[k], functions[k] = back, names
    outputs = None
    if with_readouts:
        outputs = torch.stack([states[r.layer] @ r.weight.mT * r.scale for r in chain.readouts], dim=-1)
    return Tangents(states, deltas, functions, outputs)


def _seed(chain: Chain, i: int, weighted: bool, summed: bool) -> Tensor:
    """Derivative of readout i, as it enters the function, in h_l: [d, n_l], or [1, n_l] where outputs are summed."""
    v = chain.readouts[i].weight * chain.readouts[i].scale
    if weighted and chain.omega is not None:
        v = v * chain.omega[:, i, None]
    return v.sum(0, keepdim=True) if summed else v


def _delta(seeds: list[Tensor], later: Tensor | None, weight: Tensor | None, slope: Tensor, *, apart: bool) -> Tensor:
    """Deltas of layer k from those of layer k + 1, all functions in one product: [p, n, d, n_k]."""
    # with apart the seeds are new functions, before those that came back; else all are parts of the one function
    n, width = slope.shape
    d = seeds[0].shape[0] if seeds else later.shape[2]  # type: ignore[union-attr]
    across = slope.unsqueeze(1)  # [n, 1, n_k]
    count = (len(seeds) if apart else 0) + (0 if later is None else later.shape[0])
    if torch.is_grad_enabled():
        back = [] if later is None or weight is None else [(later.flatten(0, 2) @ weight).view(-1, n, d, width)]
        if apart:
            return torch.cat([*(v.expand(1, n, d, width) for v in seeds), *back]) * across
        return sum([*back, *seeds]) * across.expand(1, n, 1, width)
    # written once, where it stays: as large as all that is kept
    delta = slope.new_empty(max(count, 1), n, d, width)
    returned = delta[len(seeds) :] if apart else delta
    if later is not None and weight is not None:
        torch.mm(later.flatten(0, 2), weight, out=returned.view(-1, width))
        if not apart:
            for v in seeds:
                delta.add_(v)
        returned.mul_(across)
    elif not apart:
        delta.copy_(sum(seeds).expand_as(delta)).mul_(across)  # type: ignore[union-attr]
    if apart:
        for slot, v in zip(delta, seeds, strict=False):
            torch.mul(v, across, out=slot)
    return delta
