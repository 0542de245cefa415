"""Reads a model: which rule each parameter has, checked against autograd on a few examples."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import CheckpointError

from nftk.tangent.modules.checks import check_model
from nftk.tangent.modules.examples import Examples, OutputFn, check_examples, joined
from nftk.tangent.modules.layout import PROBE, Layout, layout_of
from nftk.tangent.modules.network import (
    Held,
    Network,
    Site,
    backward,
    check_calls,
    depends,
    marks,
    mixes,
    output_function,
    powers_of_two,
    reached,
    read,
    run,
    turned,
)
from nftk.tangent.modules.products import own_gradients
from nftk.tangent.modules.recording import Use, plain_torch
from nftk.tangent.modules.rules import Rule, block_of, rule_of, split_by_block
from nftk.tangent.modules.whole import wanting, whole_gradients

# examples that the rules are tried on, and those that are searched for so many that differ
_PROBED, _SEARCHED = 8, 64
_MOVED = "examples are reordered or mixed in the batch"
_UNSEEN = "it has more uses than torch functions show"


def network_of(
    model: nn.Module, x1: Any, x2: Any, output_fn: OutputFn | None, op: str
) -> tuple[Network, Examples, Examples | None]:
    """Read a model and its inputs, or raise; 16 bits are taken over into float32."""
    parameters = check_model(model, op)
    dtype, device = (getattr(next(iter(parameters.values())), what) for what in ("dtype", "device"))
    first = check_examples(op, "x1", x1, dtype, device)
    second = None if x2 is None else check_examples(op, "x2", x2, dtype, device)
    if second is not None and (first.named or second.named) and set(second.tensors) != set(first.tensors):
        entries = ", ".join(first.tensors), ", ".join(second.tensors)
        raise ValueError(f"nftk.{op}: x2 must have the entries of x1, {entries[0]}, got {entries[1]}")
    if dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(model).float()
        parameters = dict(model.named_parameters())
        first, second = (None if x is None else x.map(_widened) for x in (first, second))  # type: ignore[assignment]
    probed = _probed(first, second)
    if not len(probed):
        raise ValueError(f"nftk.{op}: x1 must have an example, from which the model is read, got none")
    bare = Network(model, output_fn, parameters, (), (), (), frozenset(), 0, 0, True, op)
    modes = [(module, module.training) for module in model.modules()]
    with plain_torch():
        network = _study(bare, probed)
    assert all(module.training is mode for module, mode in modes)
    return network, first, second


def _probed(first: Examples, second: Examples | None) -> Examples:
    """Some of all examples in an order of their own, that differ where there are such."""
    parts = [first]
    if second is not None:
        given = (second.tensors[name] for name in first.tensors) if first.named else second
        parts.append(Examples(dict(zip(first.tensors, given, strict=True)), named=first.named))
    if len({tuple(t.shape[1:] for t in x) for x in parts}) > 1:
        # of two sizes: those of which there are more
        parts = [max(parts, key=len)]
    rows = [(x, i) for x in parts for i in range(len(x))]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    kept: list[Examples] = []
    alike: list[Examples] = []
    for x, i in (rows[place] for place in order[:_SEARCHED]):
        row = x[i : i + 1]
        known = any(all(torch.equal(a, b) for a, b in zip(row, other, strict=True)) for other in kept)
        (alike if known else kept).append(row)
        if len(kept) == _PROBED:
            break
    chosen = (kept + alike)[:_PROBED]
    return first[:0] if not chosen else joined(chosen)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _study(bare: Network, x: Examples) -> Network:
    """Find the sites in runs of three examples and of one of them alone."""
    three = x[[i % len(x) for i in range(PROBE)]]
    one = three[1:2]
    op, network = bare.op, bare
    before = _chance(network)
    kept = {name: buffer.clone() for name, buffer in bare.model.named_buffers()}
    f, uses, size = run(network, three)
    _check_buffers(network, kept)
    if any(not torch.equal(a, b) for a, b in zip(before, _chance(network), strict=True)):
        raise ValueError(
            f"nftk.{op}: model must draw no random numbers, in eval mode, got one that does, as active dropout would"
        )
    network, (f, uses, size) = _expanded(network, three, (f, uses, size))
    alone, single, _ = run(network, one)
    if not _close(f[1:2], alone):
        raise ValueError(depends(op))
    network = dataclasses.replace(
        network,
        out_features=f.shape[1],
        # what the forward pass leaves and what its way back needs beside it
        walk_bytes=2 * size // PROBE,
        calls=tuple((use.name, use.owners) for use in uses),
    )
    with wanting(network.parameters):
        truth, direction = _truth(network, three)
    sites, reasons = _sites(network, uses, single, truth)
    sites, reasons = _checked(network, sites, reasons, three, truth, direction)
    sites, reasons = _kept_apart(network, sites, reasons, x)
    sites += _remaining(network, reasons, truth)
    order = list(network.parameters)
    sites.sort(key=lambda site: order.index(site.parameters[0]))
    blocks = tuple(dict.fromkeys(block_of(name) for name in network.parameters))
    network = dataclasses.replace(network, sites=tuple(sites), blocks=blocks)
    return dataclasses.replace(network, mapped=_maps(network, three, truth, direction))


def _check_buffers(network: Network, kept: dict[str, Tensor]) -> None:
    """Raise where the model has changed its buffers, which are put back."""
    buffers = dict(network.model.named_buffers())
    changed = [name for name, value in kept.items() if not torch.equal(value, buffers[name])]
    for name in changed:
        buffers[name].copy_(kept[name])
    if changed:
        raise ValueError(
            f"nftk.{network.op}: model must leave its buffers as they are, in eval mode, got one that writes into "
            f"{changed[0]}"
        )


def _chance(network: Network) -> list[Tensor]:
    """State of torch's random numbers."""
    found = [torch.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(network.device)] if network.device.type == "cuda" else found


def _expanded(
    network: Network, three: Examples, before: tuple[Tensor, list[Use], int]
) -> tuple[Network, tuple[Tensor, list[Use], int]]:
    """Have what is one for all examples repeated for each, where the model takes that."""
    numbers = frozenset(
        i for i, use in enumerate(before[1])
        if not use.in_place and use.outputs and all(x.ndim > 1 and x.shape[0] == 1 for x in use.outputs)
    )  # fmt: skip
    if numbers:
        other = dataclasses.replace(network, expanded=numbers)
        try:
            after = run(other, three)
        except (RuntimeError, ValueError, TypeError):
            return network, before
        same = [use.owners for use in after[1]] == [use.owners for use in before[1]]
        if same and _close(before[0], after[0]) and _takes(network, other, three):
            return other, after
    return network, before


def _takes(network: Network, other: Network, three: Examples) -> bool:
    """Whether the same holds of five: a dimension that is as large as three examples may be another's."""
    five = three[[0, 1, 2, 0, 1]]
    try:
        return _close(run(network, five)[0], run(other, five)[0])
    except (RuntimeError, ValueError, TypeError):
        return False


def _truth(network: Network, x: Examples) -> tuple[dict[str, Tensor | None], Tensor]:
    """Gradients by autograd of the outputs along a random direction, in all parameters."""
    f = output_function(network)(x)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f)
    found: tuple[Tensor | None, ...] = (None,) * len(network.parameters)
    if f.requires_grad:
        total = (f * direction).sum()
        try:
            found = torch.autograd.grad(total, list(network.parameters.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotImplementedError(
                f"nftk.{network.op}: model must be one that torch.autograd.grad goes through, got: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
    dense = (None if g is None else g.to_dense() for g in found)
    return dict(zip(network.parameters, dense, strict=True)), direction


def _sites(
    network: Network, uses: list[Use], single: list[Use], truth: dict[str, Tensor | None]
) -> tuple[list[Site], dict[str, str]]:
    """Sites with a rule, and why the other parameters have none."""
    reasons: dict[str, str] = {}
    found: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    rules: dict[tuple[str, tuple[str, ...]], Rule] = {}
    if [use.owners for use in uses] != [use.owners for use in single]:
        return [], dict.fromkeys(network.parameters, "its uses depend on the number of examples")
    for u, (three, one) in enumerate(zip(uses, single, strict=True)):
        rule, why = _rule(three, one)
        if rule is None:
            reasons.update(dict.fromkeys(three.owners, why))
            continue
        key = (rule.kind if rule.kind != "gradients" else rule.what, rule.parameters)
        rules.setdefault(key, rule)
        found.setdefault(key, []).append(u)
    for name in network.parameters:
        keys = [key for key in found if name in key[1]]
        if len(keys) > 1:
            reasons[name] = f"it serves {' and '.join(key[0] + ' of ' + ', '.join(key[1]) for key in keys)}"
        elif any(key[1].count(name) > 1 for key in keys):
            reasons[name] = "one function takes it twice"
        elif not keys and name not in reasons and truth[name] is not None:
            reasons[name] = "no torch function is seen to take it"
    # parameters used together have one way
    while True:
        torn = [key for key in found if any(name in reasons for name in key[1])]
        if not torn:
            break
        for key in torn:
            why = next(reasons[name] for name in key[1] if name in reasons)
            for name in key[1]:
                reasons.setdefault(name, f"it is used with another: {why}")
            del found[key]
    sites = []
    for key, numbers in found.items():
        # several uses of one parameter: each reads by the rule of its own layouts
        layouts = {_signature(uses[u], single[u]) for u in numbers}
        if len(layouts) > 1:
            reasons.update(dict.fromkeys(key[1], "its uses lay their examples differently"))
            continue
        sizes = {name: network.parameters[name].numel() for name in key[1]}
        for rule in split_by_block(rules[key], list(sizes.values())):
            own = rule.parameters
            sites.append(Site(block_of(own[0]), own, sum(sizes[name] for name in own), rule, tuple(numbers)))
    return sites, reasons


def _rule(three: Use, one: Use) -> tuple[Rule | None, str]:
    if three.in_place:
        return None, f"{three.name} writes into its argument"
    inputs, outputs = _layouts(three, one)
    if inputs is None:
        return None, f"the inputs of {three.name} are not laid out example by example"
    if not any(outputs):
        return None, f"the result of {three.name} has no examples in it"
    return rule_of(three, inputs, outputs), ""


def _layouts(three: Use, one: Use) -> tuple[dict[int, Layout] | None, list[Layout | None]]:
    """Layouts of the tensors among the leaves that hold examples, or None; and of the outputs."""
    inputs: dict[int, Layout] = {}
    if len(three.leaves) != len(one.leaves) or len(three.outputs) != len(one.outputs):
        return None, []
    for i, (a, b) in enumerate(zip(three.leaves, one.leaves, strict=True)):
        if i in three.places or not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        layout = layout_of(a, b)
        if layout is not None and _close(layout.split(a)[1:2], layout.split(b)):
            inputs[i] = layout
        elif a.shape != b.shape or not _close(a, b):
            return None, []
    outputs = [layout_of(a, b) for a, b in zip(three.outputs, one.outputs, strict=True)]
    return inputs, [
        layout if layout is not None and _close(layout.split(a)[1:2], layout.split(b)) else None
        for layout, a, b in zip(outputs, three.outputs, one.outputs, strict=True)
    ]


def _signature(three: Use, one: Use) -> Any:
    inputs, outputs = _layouts(three, one)
    constants = [
        (i, x) for i, x in enumerate(three.leaves)
        if not isinstance(x, Tensor) and isinstance(x, int | float | str | bool | type(None))
    ]  # fmt: skip
    return tuple((inputs or {}).items()), tuple(outputs), tuple(constants), str(three.spec)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of another order of operations."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    if not a.numel():
        return True
    a, b = a.detach(), b.detach()
    gap, size = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(b))
    return gap <= torch.finfo(a.dtype).eps ** 0.5 * size or torch.equal(a, b)


def _checked(
    network: Network,
    sites: list[Site],
    reasons: dict[str, str],
    x: Examples,
    truth: dict[str, Tensor | None],
    direction: Tensor,
) -> tuple[list[Site], dict[str, str]]:
    """Keep the sites whose rule agrees with autograd, and that keep examples apart."""
    with wanting(network.parameters):
        f, uses, _ = run(network, x)
        ends = {name: get_gradient_edge(p) for name, p in network.parameters.items()}
    edges = [edge for use in uses for edge in use.edges]
    try:
        unseen = reached((f * direction).sum(), ends)
        grads = backward((f * direction).sum(), edges, uses, keep=True)
        first = backward((f[:1] * direction[:1]).sum(), edges, uses, keep=False)
    except CheckpointError:
        for site in sites:
            reasons.update(dict.fromkeys(site.parameters, "torch.utils.checkpoint runs it again"))
        return [], reasons
    most = max([float(g.abs().max()) for g in truth.values() if g is not None], default=0.0)
    kept = []
    for site in sites:
        if any(name in unseen for name in site.parameters):
            reasons.update(dict.fromkeys(site.parameters, _UNSEEN))
            continue
        try:
            sized = _sized(site, uses, grads)
            own = _gradients_of(sized, uses, grads)
            apart = _gradients_of(sized, uses, first)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reasons.update(dict.fromkeys(site.parameters, f"{site.rule.what}: {str(error).splitlines()[0]}"))  # type: ignore[union-attr]
            continue
        if apart[1:].any():
            reasons.update(dict.fromkeys(site.parameters, _MOVED))
            continue
        want = torch.cat([_flat(truth[n], network.parameters[n]) for n in site.parameters])
        gap = float(torch.linalg.vector_norm(own.sum(0) - _ordered(want, sized, network)))
        eps = torch.finfo(network.dtype).eps
        if gap <= eps**0.5 * float(torch.linalg.vector_norm(want)) + 16 * eps * most:
            kept.append(sized)
        else:
            reasons.update(dict.fromkeys(site.parameters, _UNSEEN))
    return kept, reasons


def _kept_apart(
    network: Network, sites: list[Site], reasons: dict[str, str], x: Examples
) -> tuple[list[Site], dict[str, str]]:
    """Keep the sites at which more examples are in their places too."""
    if not sites:
        return sites, reasons
    f, uses, _ = run(network, x)
    check_calls(network, uses)
    edges = [edge for use in uses for edge in use.edges]
    weights = powers_of_two(len(x), f)
    direction = torch.randn(f.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(f)
    grads = backward((f * direction).sum(), edges, uses, keep=True)
    weighted = backward((f * direction * weights[:, None]).sum(), edges, uses, keep=False)
    kept = []
    for site in sites:
        try:
            a = read(site, uses) if site.factored else None
            g, other = (turned(site, uses, found) for found in (grads, weighted))
            apart = (a is None or len(a) == len(x)) and not mixes(*marks(g), marks(other)[0], weights)
        except (RuntimeError, ValueError, TypeError, IndexError):
            apart = False
        if apart:
            kept.append(site)
        else:
            reasons.update(dict.fromkeys(site.parameters, _MOVED))
    return kept, reasons


def _gradients_of(site: Site, uses: list[Use], grads: list[list[Tensor | None]]) -> Tensor:
    a = read(site, uses) if site.factored else None
    return own_gradients(site, Held(a, turned(site, uses, grads)))[:, 0]


def _flat(g: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like).detach().flatten() if g is None else g.flatten()


def _ordered(want: Tensor, site: Site, network: Network) -> Tensor:
    """Gradients of the parameters, one after the other, in the order of :func:`own_gradients`."""
    if not site.factored:
        return want
    assert site.rule is not None
    weight = network.parameters[site.parameters[0]]
    matrix = want[: weight.numel()].view(weight.shape)
    if site.rule.kind == "rows":
        return matrix.flatten()
    matrix = matrix.mT if site.rule.what == "addmm" else matrix.flatten(1)
    if site.rule.bias:
        matrix = torch.cat([matrix, want[weight.numel() :, None]], dim=1)
    return matrix.flatten()


def _sized(site: Site, uses: list[Use], grads: list[list[Tensor | None]]) -> Site:
    if not site.factored:
        return dataclasses.replace(site, outputs=site.size)
    assert site.rule is not None
    a, g = read(site, uses), turned(site, uses, grads)
    inputs = site.rule.rows if site.rule.kind == "rows" else a.shape[3]
    return dataclasses.replace(site, groups=g.shape[1], positions=g.shape[2], inputs=inputs, outputs=g.shape[4])


def _remaining(network: Network, reasons: dict[str, str], truth: dict[str, Tensor | None]) -> list[Site]:
    """Sites of what has no rule; parameters that nothing depends on are in none."""
    return [
        Site(block_of(name), (name,), size := network.parameters[name].numel(), None, why=why, outputs=size)
        for name, why in reasons.items()
        if truth[name] is not None
    ]


def _maps(network: Network, x: Examples, truth: dict[str, Tensor | None], direction: Tensor) -> bool:
    """Whether torch.vmap goes through the whole model, and rightly."""
    names = [name for site in network.sites if site.rule is None for name in site.parameters]
    if not names:
        return True
    outputs = output_function(network)
    try:
        found = whole_gradients(network.model, network.parameters, names, x, outputs, summed=False, map=True)
    except Exception:
        # whatever torch.func meets there: one by one always works
        return False
    own = torch.cat([torch.einsum("ndp,nd->p", found[name], direction) for name in names])
    want = torch.cat([_flat(truth[name], network.parameters[name]) for name in names])
    return _close(own, want)
