"""For every site the cheaper of two forms, by counted operations, and what that takes; a table to be printed."""

import dataclasses
from collections.abc import Sequence

import torch

from nftk.ops.tangent_gram_torch import scratch_bytes as tile_bytes
from nftk.tangent.modules.network import Network, Site
from nftk.tangent.modules.products import gram_entries, piece_bytes
from nftk.tangent.plan import Costs
from nftk.tangent.request import Request

# operations that go entry by entry through memory, in units of those of a matrix product
_SLOW = 8
_MOST_SCRATCH = 64 << 20
_MOST_WALKED = 256


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the products of a site are taken.

    Attributes:
        site: The site.
        form: ``"gram"``, from factors; or ``"gradients"``, of each example.
        keeps_gradients: Whether gradients are kept, and not the factors that they are made of.
        gram_flops: Operations of the Gram form, over all pairs; None where there is none.
        gradient_flops: Of the other form.
        bytes: Kept of an example.
    """

    site: Site
    form: str
    keeps_gradients: bool
    gram_flops: float | None
    gradient_flops: float
    bytes: int

    @property
    def held_site(self) -> Site:
        """The site as what is kept of it has it: gradients are one position without factors."""
        if not self.keeps_gradients:
            return self.site
        return dataclasses.replace(self.site, rule=None, groups=1, positions=1, inputs=1, outputs=self.site.size)

    @property
    def flops(self) -> float:
        """Operations of the form chosen."""
        return self.gradient_flops if self.form == "gradients" or self.gram_flops is None else self.gram_flops


def choose(network: Network, request: Request, n1: int, n2: int, symmetric: bool) -> list[Choice]:
    """The choice for every site."""
    d = outputs_of(network, request)
    pairs = n1 * (n1 + 1) / 2 if symmetric else n1 * n2
    examples = n1 if symmetric else n1 + n2
    return [_choose(site, d, request.form, pairs, examples, network.dtype) for site in network.sites]


def outputs_of(network: Network, request: Request) -> int:
    """Functions that are differentiated: outputs, or their sum."""
    return 1 if request.reduction == "sum_logits" else network.out_features


def _choose(site: Site, d: int, form: str, pairs: float, examples: int, dtype: torch.dtype) -> Choice:
    size = torch.finfo(dtype).bits // 8
    kinds = d * d if form == "full" else d
    s, width, groups = site.positions, site.outputs, site.groups
    rows = site.rule is not None and site.rule.kind == "rows"
    entries = (site.inputs if rows else groups * site.columns) * width
    forming = 2.0 * d * entries * (1 if rows else s) if site.factored else 0.0
    gradient = pairs * 2 * kinds * entries + examples * forming
    kept = size * d * entries
    if not site.factored:
        return Choice(site, "gradients", True, None, gradient, kept)
    slow = _SLOW * s * s * (1 + (1 if form == "trace" else kinds))
    gram = pairs * groups * (2.0 * s * s * ((0 if rows else site.inputs) + kinds * width) + (0 if s == 1 else slow))
    factors = size * groups * s * (site.inputs + d * width) if not rows else 8 * s + size * s * d * width
    if gram <= gradient:
        return Choice(site, "gram", False, gram, gradient, factors)
    return Choice(site, "gradients", kept <= factors, gram, gradient, min(kept, factors))


def spare_bytes(network: Network, request: Request, choices: Sequence[Choice], n1: int, n2: int, budget: int) -> int:
    """What a budget leaves beyond the least that the kernel takes."""
    least = costs(network, request, choices, n1, n2, 0)
    return max(budget - least.fixed_bytes - 2 * least.state_bytes - least.gram_bytes, 0)


def scratch_of(spare: int) -> int:
    """Bytes that pieces of gradients and Gram matrices may take at once."""
    return min((1 << 12) + spare // 8, _MOST_SCRATCH)


def walk_bytes(network: Network, request: Request, choices: Sequence[Choice]) -> int:
    """Bytes of an example that are alive while its gradients are found."""
    size, d = torch.finfo(network.dtype).bits // 8, outputs_of(network, request)
    # of one output: gradients of every use, and the factors of gradients that are kept
    found = network.walk_bytes
    for c in choices:
        found += size * c.site.groups * c.site.positions * (c.site.outputs + c.site.inputs * c.keeps_gradients)
        found += size * c.site.size * c.keeps_gradients
    whole = [c.site.size for c in choices if c.site.rule is None]
    # torch.func has all outputs at once
    return found + (d * network.walk_bytes + 3 * d * size * sum(whole) if whole else 0)


def walked_at_once(network: Network, request: Request, choices: Sequence[Choice], spare: int) -> int:
    """Examples whose graph is alive at once."""
    return min(1 + spare // 4 // max(walk_bytes(network, request, choices), 1), _MOST_WALKED)


def costs(network: Network, request: Request, choices: Sequence[Choice], n1: int, n2: int, spare: int) -> Costs:
    """What a plan for n1 and n2 examples needs to know."""
    d, form = outputs_of(network, request), request.form
    size = torch.finfo(network.dtype).bits // 8
    kept = sum(choice.bytes for choice in choices)
    pieces = [piece_bytes(c.held_site, d, size) for c in choices if c.form == "gradients"]
    walked = min(walked_at_once(network, request, choices, spare), max(n1, n2, 1))
    grams = [size * gram_entries(c.site, d, form) for c in choices if c.form == "gram" and c.site.positions > 1]
    terms = sum(is_term(c) for c in choices)
    entries = {"full": d * d, "trace": 1, "diagonal": d}[form]
    fixed = tile_bytes(form, n1, n2, d, max(terms, 1), size, network.device.type) if terms else 0
    fixed += walked * walk_bytes(network, request, choices) + max(scratch_of(spare), *grams, 0)
    # a pair: the product, its sum over positions, what is mirrored; and a Gram matrix for each term
    pair = size * (2 * entries + 2 * terms)
    walks = (1 + d) * sum(2 * c.site.positions * c.site.size for c in choices)
    products = sum(c.flops for c in choices) / max(n1 * n2, 1)
    return Costs(kept + max(pieces, default=0), (0,), (int(walks),), 0, int(products), pair, fixed)


def is_term(choice: Choice) -> bool:
    """Whether it is a term of tangent_gram: one position, in Gram form."""
    site = choice.site
    rows = site.rule is not None and site.rule.kind == "rows"
    return choice.form == "gram" and site.positions == 1 and site.groups == 1 and not rows
