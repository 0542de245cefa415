"""What the tangent kernel has to know of any module: what its parameters are used for, and their gradients."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from nftk.ops.precision import full_precision
from nftk.tangent.modules.examples import Examples, OutputFn, outputs_of
from nftk.tangent.modules.identity import Identity
from nftk.tangent.modules.recording import Recording, Use, plain_torch
from nftk.tangent.modules.rules import Rule
from nftk.tangent.modules.whole import wanting, whole_gradients


@dataclass(frozen=True)
class Site:
    """Parameters of one module that are used together, and how their gradients are found.

    With a rule of kind "products" or "rows" the gradient of an example is sum_s g_s a_s^T over positions s, in each of
    ``groups``: a_s of ``inputs`` entries (of a table: a row's number, and ``inputs`` is the number of rows), g_s of
    ``outputs``.
    """

    block: str
    parameters: tuple[str, ...]
    size: int  # of all parameters
    rule: Rule | None  # None: by differentiating the whole model
    uses: tuple[int, ...] = ()
    why: str = ""  # there is no rule
    groups: int = 1
    positions: int = 1
    inputs: int = 1
    outputs: int = 1

    @property
    def factored(self) -> bool:
        """Whether there are factors a and g."""
        return self.rule is not None and self.rule.kind != "gradients"

    @property
    def columns(self) -> int:
        """Entries of the gradient for each entry of g."""
        return self.inputs + (self.rule is not None and self.rule.bias)


@dataclass
class Held:
    """Of n examples: factors of a site, or its gradients, which are g of one position."""

    a: Tensor | None  # [n, groups, positions, inputs]; of a table [n, positions]
    g: Tensor  # [n, groups, positions, d, outputs]; gradients: [n, 1, 1, d, P]

    def part(self, examples: slice) -> "Held":
        """Some of the examples, as views."""
        return Held(None if self.a is None else self.a[examples], self.g[examples])


@dataclass(frozen=True)
class Network:
    """A model and its sites."""

    model: nn.Module
    output_fn: OutputFn | None
    parameters: Mapping[str, Tensor]
    sites: tuple[Site, ...]
    blocks: tuple[str, ...]
    calls: tuple[tuple[str, tuple[str, ...]], ...]  # name and owners of every use
    expanded: frozenset[int]
    out_features: int
    walk_bytes: int  # of one example: what is alive while its gradients are found
    mapped: bool  # whether torch.vmap goes through the whole model
    op: str

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    @property
    def has_omega(self) -> bool:
        """Whether there is an Omega with a block of its own."""
        return False

    def block_names(self, per: str, include_omega: bool) -> tuple[str, ...]:
        """What the blocks are of."""
        return self.blocks

    def describe(self, add: Callable[[Tensor], Tensor]) -> list[object]:
        """Give every tensor that gradients depend on, and return what else they depend on, ready for JSON."""
        for x in self.model.state_dict().values():
            if isinstance(x, Tensor):
                add(x)
        identity = Identity(add)
        return [identity.of_module(self.model), identity.of(self.output_fn)]

    def gradients(self, x: Examples, *, summed: bool) -> Iterator[tuple[int, list[Held]]]:
        """For one output after another, its number and what every site holds of it, with d = 1.

        The factors a are those of the first output.
        """
        with plain_torch(), full_precision(torch.empty(0, dtype=self.dtype, device=self.device)):
            with wanting(self.parameters):
                f, uses, _ = run(self, x)
                ends = {name: get_gradient_edge(p) for name, p in self.parameters.items()}
            check_calls(self, uses)
            check_alone(self, f, x)
            with self._in_place():
                factors = [read(site, uses) if site.factored else None for site in self.sites]
            # what differentiates the whole model needs no way back from here
            edges = [edge for use in uses for edge in use.edges] if any(site.rule for site in self.sites) else []
            outputs = f.sum(1, keepdim=True) if summed else f
            whole = self._whole(x, summed)
            weights = powers_of_two(len(x), f)
            shares = 0.5 + torch.rand(outputs.shape[1], generator=torch.Generator().manual_seed(0)).to(f)
            weighted = outputs @ shares @ weights
            self._check_seen(weighted, ends)
            moved = self._marks(backward(weighted, edges, uses, keep=True), uses)
            along, size = (dict.fromkeys(moved, torch.zeros_like(weights)) for _ in range(2))
            for i in range(outputs.shape[1]):
                last = i + 1 == outputs.shape[1]
                grads = backward(outputs[:, i].sum(), edges, uses, keep=not last)
                found = []
                for s, site in enumerate(self.sites):
                    if site.rule is None:
                        found.append(Held(None, whole[s][:, i].reshape(len(x), 1, 1, 1, -1)))
                        continue
                    with self._in_place():
                        found.append(Held(factors[s], turned(site, uses, grads)))
                        place, length = marks(found[s].g)
                        along[s] = along[s] + shares[i] * place
                        size[s] = size[s] + shares[i] * length
                    if last and mixes(along[s], size[s], moved[s], weights):
                        raise NotImplementedError(self._moved(site))
                yield i, found

    def _check_seen(self, f: Tensor, ends: Mapping[str, GradientEdge]) -> None:
        """Raise where f depends on a parameter that has a rule by more than the uses that were seen."""
        whole = {name for site in self.sites if site.rule is None for name in site.parameters}
        unseen = reached(f, {name: edge for name, edge in ends.items() if name not in whole})
        # shut off by a zero, as on the examples that the model was read from, it is no harm
        used = [name for name, g in unseen.items() if g.to_dense().any()]
        if used:
            raise NotImplementedError(
                f"nftk.{self.op}: model must use {used[0]} in the same way for every batch, got a use that no torch "
                "function shows, which the examples that the model was read from did not have"
            )

    def _marks(self, grads: list[list[Tensor | None]], uses: list[Use]) -> dict[int, Tensor]:
        """Of every site with a rule, the mark of each example's factor g."""
        with self._in_place():
            return {s: marks(turned(site, uses, grads))[0] for s, site in enumerate(self.sites) if site.rule}

    def _moved(self, site: Site | None = None) -> str:
        where = "" if site is None else f" at {site.parameters[0]}"
        return (
            f"nftk.{self.op}: model must keep every example in its place in the batch, got examples that are "
            f"reordered, left out or of another size{where}, which those that the model was read from were not"
        )

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Takes what does not fit in a use for examples that are not in their places."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise NotImplementedError(self._moved()) from error

    def _whole(self, x: Examples, summed: bool) -> dict[int, Tensor]:
        """Gradients [n, d, P] of the sites without a rule."""
        found: dict[int, Tensor] = {}
        wanted = [s for s, site in enumerate(self.sites) if site.rule is None]
        if wanted:
            names = [name for s in wanted for name in self.sites[s].parameters]
            function = output_function(self)
            by_name = whole_gradients(self.model, self.parameters, names, x, function, summed=summed, map=self.mapped)
            for s in wanted:
                found[s] = torch.cat([by_name[name] for name in self.sites[s].parameters], dim=2)
        return found


def output_function(network: Network) -> Callable[[Examples], Tensor]:
    """Examples to outputs [n, d]."""

    def function(x: Examples) -> Tensor:
        # a copy, which a model may write into
        returned = x.map(torch.clone).given_to(network.model)
        return outputs_of(network.op, returned, network.output_fn, len(x)).to(network.dtype)

    return function


def run(network: Network, x: Examples) -> tuple[Tensor, list[Use], int]:
    """Outputs, the uses of parameters, and bytes of all results."""
    recording = Recording(network.parameters, len(x), network.expanded)
    with recording:
        f = output_function(network)(x.map(usable))
    return f, recording.uses, recording.bytes


def check_calls(network: Network, uses: list[Use]) -> None:
    """Raise where parameters are used in another way than when the model was read."""
    calls = tuple((use.name, use.owners) for use in uses)
    if calls != network.calls:
        raise NotImplementedError(
            f"nftk.{network.op}: model must use its parameters in the same way for every batch, got {len(calls)} uses "
            f"where the first examples had {len(network.calls)}, or others"
        )


def check_alone(network: Network, f: Tensor, x: Examples) -> None:
    """Raise where one of the examples has other outputs by itself."""
    n = len(x)
    if n < 2:
        return
    # somewhere, and not at the same place in every batch of another size
    e = int(torch.randint(n, (), generator=torch.Generator().manual_seed(n)))
    # with gradients, which the model may take itself
    alone, f = output_function(network)(x[e : e + 1].map(usable))[0].detach(), f.detach()
    size = torch.linalg.vector_norm(f, dim=1).max()
    if torch.linalg.vector_norm(alone - f[e]) > torch.finfo(f.dtype).eps ** 0.5 * size:
        raise ValueError(depends(network.op))


def depends(op: str) -> str:
    """What is said of a model that looks at its batch."""
    return (
        f"nftk.{op}: model must give an example the same outputs in every batch, in eval mode, got outputs that depend "
        "on the examples beside it or on chance"
    )


def powers_of_two(n: int, like: Tensor) -> Tensor:
    """A weight for each of n examples, which multiplies without rounding."""
    return torch.randint(-16, 16, (n,), generator=torch.Generator().manual_seed(n)).to(like).exp2()


def marks(g: Tensor) -> tuple[Tensor, Tensor]:
    """A number that tells the g of one example from that of another, linear in it; and the length of each."""
    rows = g.detach().reshape(len(g), -1)
    signs = torch.randint(2, (rows.shape[1],), generator=torch.Generator().manual_seed(0)).to(rows).mul_(2).sub_(1)
    return rows @ signs, torch.linalg.vector_norm(rows, dim=1)


def mixes(along: Tensor, size: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether weights on the outputs of examples are not those of their marks: g is of other examples."""
    if not len(along) == len(weighted) == len(weights):
        return True
    info = torch.finfo(along.dtype)
    # NaN is nobody's fault here; below the least normal number there is rounding
    return bool(((weighted - along * weights).abs() > info.eps**0.5 * size * weights + info.tiny * 2**20).any())


def reached(f: Tensor, ends: Mapping[str, GradientEdge]) -> dict[str, Tensor]:
    """Gradients in the parameters that f's graph reaches; it begins at the results of the uses that were seen."""
    if not (f.requires_grad and ends):
        return {}
    wanted: Any = list(ends.values())
    found = torch.autograd.grad(f, wanted, retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(ends, found, strict=True) if g is not None}


def usable(x: Tensor) -> Tensor:
    """A tensor that autograd can take."""
    return x.clone() if x.is_inference() else x.detach()


def backward(
    f: Tensor, edges: Sequence[Tensor | GradientEdge], uses: list[Use], *, keep: bool
) -> list[list[Tensor | None]]:
    """Gradients of f in the outputs of every use; None for those that it does not depend on."""
    found: list[Tensor | None] = [None] * len(edges)
    if f.requires_grad and edges:
        wanted: Any = edges  # tensors and edges, which torch's own types do not mix
        found = list(torch.autograd.grad(f, wanted, retain_graph=keep, allow_unused=True))
    grouped, start = [], 0
    for use in uses:
        grouped.append(found[start : start + len(use.edges)])
        start += len(use.edges)
    return grouped


def read(site: Site, uses: list[Use]) -> Tensor:
    """The factor a of all uses of a site, one after the other."""
    assert site.rule is not None
    assert site.rule.read is not None
    parts = [site.rule.read(uses[u]) for u in site.uses]
    a = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1 if site.rule.kind == "rows" else 2)
    return a if site.rule.kind == "rows" else a.to(_dtype(site, uses))


def turned(site: Site, uses: list[Use], grads: list[list[Tensor | None]]) -> Tensor:
    """The factor g, or the gradients, of one output: [n, groups, positions, 1, outputs]."""
    rule, parts = site.rule, []
    assert rule is not None
    for u in site.uses:
        given = grads[u]
        if rule.turn is not None:
            parts.append(rule.turn(uses[u], torch.zeros_like(uses[u].outputs[0]) if given[0] is None else given[0]))
        elif rule.gradients is not None:
            filled = [torch.zeros_like(out) if g is None else g for out, g in zip(uses[u].outputs, given, strict=True)]
            parts.append(rule.gradients(uses[u], list(filled)))
    dtype = _dtype(site, uses)
    if rule.turn is not None:
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).unsqueeze(3).to(dtype)
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    return total.reshape(total.shape[0], 1, 1, 1, -1).to(dtype)


def _dtype(site: Site, uses: list[Use]) -> torch.dtype:
    """That of the parameters; a model may go on in another."""
    use = uses[site.uses[0]]
    found: torch.dtype = use.leaves[use.places[0]].dtype
    return found
