"""Products of the gradients of two sets of examples, from their factors or from the gradients themselves.

With factors the gradient is G = sum_s g_s a_s^T. Gram form: <G, G'> = sum_{s,s'} <a_s, a'_s'> <g_s, g'_s'>; the other
form makes G, a piece of its columns at a time. Products have the order of :func:`memory_shape`, of one output.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nftk.tangent.modules.network import Held, Site

# examples on the diagonal of a symmetric product that are not split into halves any more
_SMALLEST = 64
# entries of the matrices of the Gram form that are made at once: some megabytes, as the cache has
_IN_CACHE = 1 << 19


def gradients(site: Site, held: Held, first: int, last: int) -> Tensor:
    """A piece of the gradients, [n, q, d, p]: by g's entries first to last, in all groups."""
    g = held.g[..., first:last]  # [n, groups, positions, d, outputs]
    if not site.factored:
        return g.flatten(1, 2)
    assert held.a is not None
    assert site.rule is not None
    n, groups, positions, d, width = g.shape
    if site.rule.kind == "rows":
        table = g.new_zeros(n, site.inputs, d * width)
        places = held.a.unsqueeze(2).expand(n, positions, d * width)
        return table.scatter_add_(1, places, g.reshape(n, positions, d * width)).view(n, -1, d, width)
    back = g.reshape(n * groups, positions, d * width).mT
    found = (back @ held.a.reshape(n * groups, positions, -1)).view(n, groups, d, width, -1)
    if site.rule.bias:
        found = torch.cat([found, g.sum(2).unsqueeze(-1)], dim=-1)
    return found.flatten(3)


def own_gradients(site: Site, held: Held) -> Tensor:
    """The whole gradients, [n, d, P], in the order of groups, outputs and inputs; of a table rows first."""
    return gradients(site, held, 0, held.g.shape[-1]).transpose(1, 2).flatten(2)


def piece_bytes(site: Site, d: int, itemsize: int) -> int:
    """Bytes an example for the gradients by one entry of g, copies counted."""
    if not site.factored:
        return 2 * d * itemsize
    rows = site.rule is not None and site.rule.kind == "rows"
    columns = site.inputs if rows else site.groups * site.columns
    return itemsize * d * (3 * columns + site.groups * site.positions)


def add_gradients(
    product: Tensor, site: Site, left: Held, right: Held, form: str, scratch: int, symmetric: bool
) -> None:
    """Add products of the gradients, made in pieces of at most some bytes, but of one entry of g."""
    width, d = left.g.shape[-1], left.g.shape[3]
    # of a negative weight one side has the sign: then the sides differ where the examples do not
    same = symmetric and left.g.data_ptr() == right.g.data_ptr()
    examples = len(left.g) + (0 if same else len(right.g))
    each = max(piece_bytes(site, d, product.element_size()) * examples, 1)
    step = min(max(scratch // each, 1), width)
    for first in range(0, width, step):
        last = min(first + step, width)
        a = _flat(gradients(site, left, first, last), form)
        b = a if same else _flat(gradients(site, right, first, last), form)
        times = d if form == "full" else 1
        for rows, columns in rectangles(len(left.g), len(right.g), symmetric):
            part = product[..., _times(rows, times), _times(columns, times)]
            x, y = a[..., _times(rows, times), :], b[..., _times(columns, times), :].mT
            if form == "diagonal":
                part.baddbmm_(x, y)
            else:
                part.addmm_(x, y)


def _times(part: slice, times: int) -> slice:
    return slice(part.start * times, part.stop * times)


def _flat(x: Tensor, form: str) -> Tensor:
    """[n, q, d, p] as the rows of products."""
    if form == "trace":
        return x.flatten(1)
    if form == "full":
        return x.transpose(1, 2).flatten(2).flatten(0, 1)
    return x.permute(2, 0, 1, 3).flatten(2)


def rectangles(n1: int, n2: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """All pairs of examples; with symmetric some that reach the upper triangle, by halving."""
    parts = [slice(0, n1)] if symmetric else []
    if not symmetric:
        yield slice(0, n1), slice(0, n2)
    while parts:
        part = parts.pop()
        if part.stop - part.start <= _SMALLEST:
            yield part, part
            continue
        middle = (part.start + part.stop) // 2
        first, second = slice(part.start, middle), slice(middle, part.stop)
        yield first, second
        parts += [second, first]


def gram_entries(site: Site, d: int, form: str) -> int:
    """Entries of the matrices of the Gram form, for a pair."""
    kinds = {"trace": 1, "diagonal": d, "full": d * d}[form]
    return site.groups * site.positions**2 * (2 + 2 * kinds)


def add_gram(product: Tensor, site: Site, left: Held, right: Held, form: str, scratch: int, symmetric: bool) -> None:
    """Add products in Gram form, some pairs of examples at a time."""
    d = left.g.shape[3]
    entries = min(scratch // product.element_size(), _IN_CACHE)
    side = max(math.isqrt(entries // gram_entries(site, d, form)), 1)
    times = d if form == "full" else 1
    for top in range(0, len(left.g), side):
        rows = slice(top, min(top + side, len(left.g)))
        for start in range(top if symmetric else 0, len(right.g), side):
            columns = slice(start, min(start + side, len(right.g)))
            part = product[..., _times(rows, times), _times(columns, times)]
            part.add_(_gram(site, left.part(rows), right.part(columns), form))


def _gram(site: Site, left: Held, right: Held, form: str) -> Tensor:
    (n1, groups, s1, d, _), (n2, _, s2, _, _) = left.g.shape, right.g.shape
    of_inputs = _input_gram(site, left, right)  # [groups, n1 s1, n2 s2]
    if form == "trace":
        a, b = (x.g.transpose(0, 1).flatten(3).flatten(1, 2) for x in (left, right))  # [groups, n s, d outputs]
        return (a @ b.mT).mul_(of_inputs).view(groups, n1, s1, n2, s2).sum((0, 2, 4))
    if form == "diagonal":
        a, b = (x.g.permute(1, 3, 0, 2, 4).flatten(2, 3) for x in (left, right))  # [groups, d, n s, outputs]
        return (a @ b.mT).mul_(of_inputs.unsqueeze(1)).view(groups, d, n1, s1, n2, s2).sum((0, 3, 5))
    # output by position, so that sums run along memory
    a, b = (x.g.permute(1, 0, 3, 2, 4).flatten(1, 3) for x in (left, right))  # [groups, n d s, outputs]
    of_outputs = (a @ b.mT).view(groups, n1, d, s1, n2, d, s2)
    of_outputs.mul_(of_inputs.view(groups, n1, 1, s1, n2, 1, s2))
    return of_outputs.sum((0, 3, 6)).flatten(2).flatten(0, 1)


def _input_gram(site: Site, left: Held, right: Held) -> Tensor:
    assert left.a is not None
    assert right.a is not None
    assert site.rule is not None
    if site.rule.kind == "rows":
        same = left.a.reshape(-1, 1) == right.a.reshape(1, -1)
        return same.to(left.g.dtype).unsqueeze(0)
    a, b = (x.transpose(0, 1).flatten(1, 2) for x in (left.a, right.a))
    found = a @ b.mT
    return found.add_(1) if site.rule.bias else found


def squares(site: Site, held: Held, gram: bool, scratch: int) -> Tensor:
    """Squared norms of the gradients, [n, d], some examples at a time."""
    d, size, width = held.g.shape[3], held.g.element_size(), held.g.shape[-1]
    if site.factored and gram:
        each = size * gram_entries(site, d, "diagonal")
    else:
        each = piece_bytes(site, d, size)
    step = max(scratch // max(each, 1), 1)
    found = [held.g.new_zeros(0, d)]
    for start in range(0, len(held.g), step):
        part = held.part(slice(start, start + step))
        if site.factored and gram:
            found.append(_own_gram(site, part))
            continue
        total = held.g.new_zeros(len(part.g), d)
        across = min(max(scratch // max(each * len(part.g), 1), 1), width)
        for first in range(0, width, across):
            total += gradients(site, part, first, min(first + across, width)).square().sum((1, 3))
        found.append(total)
    return torch.cat(found)


def _own_gram(site: Site, held: Held) -> Tensor:
    assert held.a is not None
    assert site.rule is not None
    if site.rule.kind == "rows":
        own = (held.a.unsqueeze(1) == held.a.unsqueeze(2)).to(held.g.dtype).unsqueeze(1)  # [n, 1, s, s]
    else:
        own = held.a @ held.a.mT
        own = own + 1 if site.rule.bias else own
    g = held.g.transpose(2, 3)  # [n, groups, d, s, outputs]
    return (g @ g.mT).mul_(own.unsqueeze(2)).sum((1, 3, 4))
