"""tangent_gram in torch's matrix products: in tiles that stay in the cache, and as a differentiable formula."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.ops.in_threads import in_threads, most_threads
from nftk.ops.transpose import copy_transposed_

# rows and columns of a tile of products. On a core of an EPYC a product of 640 x 1280 x 256 runs at the rate of a large
# one, and it and its sum stay in the cache; a GPU wants tiles that fill it
_TILE = {"cpu": (640, 1280), "cuda": (4096, 8192)}
# of the other forms, whose products are some d times deeper, or d of them at once
_TILE_TRACE = {"cpu": (512, 1024), "cuda": (4096, 8192)}
# a tile on the diagonal is so much smaller
_DIAGONAL = 4


class Term(NamedTuple):
    """S[x, x'] <A[q, x, i], B[q, x', j]> for every slice q, added to outputs[q]."""

    s: Tensor  # [n1, n2]
    a: Tensor  # [p, n1, d, c]
    b: Tensor  # [p, n2, d, c]
    outputs: tuple[int, ...]


class Identity(NamedTuple):
    """1{i = j} weight[i] gram[x, x'], added to one output."""

    gram: Tensor  # [n1, n2], or [d, n1, n2]
    weight: Tensor  # [d]
    output: int


def tile_sizes(form: str, d: int, device: str) -> tuple[int, int]:
    """How many examples of the first and of the second batch a tile takes."""
    rows, columns = (_TILE if form == "full" else _TILE_TRACE)["cpu" if device == "cpu" else "cuda"]
    # a tile of d outputs is no larger than one of a single one
    each = {"full": d, "trace": 1, "diagonal": math.isqrt(d)}[form]
    return max(rows // each, 1), max(columns // each, 1)


def scratch_bytes(form: str, n1: int, n2: int, d: int, terms: int, itemsize: int, device: str) -> int:
    """Bytes that :func:`fill` takes beyond its inputs and its output, at most."""
    rows, columns = tile_sizes(form, d, device)
    rows, columns = min(rows, n1), min(columns, n2)
    across = columns * (d if form == "full" else 1)
    down = rows * (1 if form == "trace" else d)
    # the product, its sum, a copy of the sum to be mirrored, and the factors of all terms where they are copied
    return most_threads(device) * itemsize * across * (3 * down + (rows * terms if form == "full" else 0))


def memory_shape(form: str, size: int, n1: int, n2: int, d: int) -> tuple[int, ...]:
    """Shape of the outputs, in the order of memory that :func:`fill` writes fastest."""
    return {"full": (size, n1, d, n2, d), "trace": (size, n1, n2), "diagonal": (size, d, n1, n2)}[form]


def as_blocks(form: str, memory: Tensor) -> Tensor:
    """The public view of that memory: examples first, then outputs of the network. Other forms are as they lie."""
    if form == "full":
        return memory.permute(0, 1, 3, 2, 4)
    return memory.permute(0, 2, 3, 1) if form == "diagonal" else memory


def as_memory(form: str, blocks: Tensor) -> Tensor:
    """The inverse of :func:`as_blocks`."""
    if form == "full":
        return blocks.permute(0, 1, 3, 2, 4)
    return blocks.permute(0, 3, 1, 2) if form == "diagonal" else blocks


@torch.no_grad()
def fill(out: Tensor, terms: Sequence[Term], form: str, symmetric: bool, identities: Sequence[Identity] = ()) -> None:
    """Write the sums of all terms over out, shape as :func:`memory_shape` has it, any strides.

    With symmetric only tiles that reach the upper triangle are computed, and mirrored bit by bit.
    """
    if out.numel() == 0:
        return
    by_output: list[list[tuple[int, list[int]]]] = [[] for _ in range(out.shape[0])]
    for t, term in enumerate(terms):
        for place in dict.fromkeys(term.outputs):
            by_output[place].append((t, [q for q, where in enumerate(term.outputs) if where == place]))
    operands = [[_factors_of(a, b, form) for a, b in zip(term.a, term.b, strict=True)] for term in terms]
    d = 1 if form == "trace" else out.shape[2] if form == "full" else out.shape[1]

    def fill_tiles(tiles: Iterator[tuple[slice, slice, bool]]) -> None:
        # one piece of memory for all tiles: the system takes as long to find a new one as some tiles to fill
        scratch: dict[str, Tensor] = {}
        for rows, columns, diagonal in tiles:
            height, width = rows.stop - rows.start, columns.stop - columns.start
            shape = {"full": (height, d, width * d), "trace": (height, width), "diagonal": (d, height, width)}[form]
            product, tile = (_part(scratch, name, shape, out) for name in ("product", "tile"))
            factors = [_factor(term.s[rows, columns], form, d) for term in terms]
            for place, uses in enumerate(by_output):
                _tile(uses, operands, factors, _places(rows, columns, form, d), form, product, tile)
                for identity in identities:
                    if identity.output == place:
                        view = tile
                        if form == "full":
                            view = tile.view(*tile.shape[:2], -1, d).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
                        _add_identity(view, identity.gram[..., rows, columns], identity.weight, form)
                if diagonal:
                    _mirror_within(tile, form)
                _store(out[place], tile, rows, columns, form, mirror=symmetric and not diagonal)

    in_threads(fill_tiles, list(_tiles(out, form, d, symmetric)), out.device)


def _tiles(out: Tensor, form: str, d: int, symmetric: bool) -> Iterator[tuple[slice, slice, bool]]:
    """Rows, columns, and whether the tile lies on the diagonal of a symmetric matrix."""
    n1, n2 = (out.shape[1], out.shape[3]) if form == "full" else (out.shape[-2], out.shape[-1])
    sizes = tile_sizes(form, d, out.device.type)
    if not symmetric:
        yield from ((*tile, False) for tile in _rectangles(slice(0, n1), slice(0, n2), sizes))
        return
    # halves again and again, because half of a tile on the diagonal is work for nothing
    smallest, parts = max(sizes[0] // _DIAGONAL, 1), [slice(0, n1)]
    while parts:
        part = parts.pop()
        if part.stop - part.start <= smallest:
            yield part, part, True
            continue
        middle = (part.start + part.stop) // 2
        first, second = slice(part.start, middle), slice(middle, part.stop)
        yield from ((*tile, False) for tile in _rectangles(first, second, sizes))
        parts += [second, first]


def _rectangles(rows: slice, columns: slice, sizes: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Tiles of equal sizes, at most as large as sizes says."""
    for top, bottom in _pieces(rows, sizes[0]):
        for left, right in _pieces(columns, sizes[1]):
            yield slice(top, bottom), slice(left, right)


def _pieces(part: slice, most: int) -> Iterator[tuple[int, int]]:
    length = part.stop - part.start
    count = -(-length // most)
    for i in range(count):
        yield part.start + length * i // count, part.start + length * (i + 1) // count


def _part(scratch: dict[str, Tensor], name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of that shape at the start of a piece of memory that grows with the largest."""
    size = math.prod(shape)
    if name not in scratch or scratch[name].numel() < size:
        scratch[name] = like.new_empty(size)
    return scratch[name][:size].view(shape)


def _factors_of(a: Tensor, b: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """The two matrices, or batches of them, of a slice's products; rows of the one, columns of the other are tiled."""
    a, b = (x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous() for x in (a, b))
    if form == "diagonal":
        return a.transpose(0, 1), b.permute(1, 2, 0)
    if form == "trace":
        return a.flatten(1), b.flatten(1).mT
    return a.flatten(0, 1), b.flatten(0, 1).mT


def _places(rows: slice, columns: slice, form: str, d: int) -> tuple[slice, slice]:
    """Where a tile's examples are in these matrices."""
    times = d if form == "full" else 1
    return slice(rows.start * times, rows.stop * times), slice(columns.start * times, columns.stop * times)


def _factor(s: Tensor, form: str, d: int) -> Tensor:
    if form != "full":
        return s
    # once a tile and term, for all outputs: torch then multiplies along contiguous memory
    return s.unsqueeze(-1).expand(*s.shape, d).reshape(s.shape[0], 1, -1)  # [rows, 1, columns d]


def _tile(
    uses: list[tuple[int, list[int]]],
    operands: list[list[tuple[Tensor, Tensor]]],
    factors: list[Tensor],
    place: tuple[slice, slice],
    form: str,
    product: Tensor,
    total: Tensor,
) -> None:
    """Write one tile of one output over total: [rows, d, columns d], [rows, columns] or [d, rows, columns]."""
    if not uses:
        total.zero_()
    flat = product.flatten(0, 1) if form == "full" else product
    for first, (t, slices) in enumerate(uses):
        for again, q in enumerate(slices):
            a, b = operands[t][q]
            left, right = a[..., place[0], :], b[..., place[1]]
            if form == "diagonal":
                flat.baddbmm_(left, right, beta=int(again > 0))
            elif again:
                flat.addmm_(left, right)
            else:
                torch.mm(left, right, out=flat)
        if first == 0:
            torch.mul(product, factors[t], out=total)
        else:
            total.addcmul_(product, factors[t])


def add_identities(out: Tensor, identities: Sequence[Identity], form: str) -> None:
    """Add them to outputs that another kernel has filled."""
    for identity in identities:
        view = out[identity.output]
        if form == "full":
            view = view.diagonal(dim1=1, dim2=3).permute(2, 0, 1)
        _add_identity(view, identity.gram, identity.weight, form)


def _add_identity(view: Tensor, gram: Tensor, weight: Tensor, form: str) -> None:
    """Add weight[i] gram to view [d, rows, columns]; to view [rows, columns] their sum, where form is "trace"."""
    if form != "trace":
        view.addcmul_(gram, weight[:, None, None])
    elif gram.ndim == 3:
        view.add_(torch.einsum("d,dxy->xy", weight, gram))
    else:
        view.addcmul_(gram, weight.sum())


def _mirror_within(tile: Tensor, form: str) -> None:
    square = tile.view(tile.shape[0] * tile.shape[1], -1) if form == "full" else tile
    square.copy_(square.triu() + square.triu(1).mT)


def _store(out: Tensor, tile: Tensor, rows: slice, columns: slice, form: str, *, mirror: bool) -> None:
    if form == "full":
        tile = tile.view(*tile.shape[:2], columns.stop - columns.start, -1)
        out[rows, :, columns].copy_(tile)
        if mirror:
            write_mirrored(out[columns, :, rows], tile, form)
        return
    out[..., rows, columns].copy_(tile)
    if mirror:
        write_mirrored(out[..., columns, rows], tile, form)


def write_mirrored(out: Tensor, tile: Tensor, form: str) -> None:
    """Write a tile, in the order of memory, to its place on the other side of the diagonal."""
    if form != "full":
        for matrix, mirror in zip(tile.view(-1, *tile.shape[-2:]), out.view(-1, *out.shape[-2:]), strict=True):
            copy_transposed_(mirror, matrix)
        return
    try:
        matrix, mirror = (x.view(x.shape[0] * x.shape[1], -1) for x in (tile, out))
    except RuntimeError:
        # outputs of an example that do not follow one another
        out.copy_(tile.permute(2, 3, 0, 1))
    else:
        copy_transposed_(mirror, matrix)


def formula(
    terms: Sequence[Term],
    form: str,
    symmetric: bool,
    shape: Sequence[int],
    like: Tensor,
    identities: Sequence[Identity] = (),
) -> Tensor:
    """The same in plain differentiable torch operations, with every product whole in memory; shape is the output's."""
    sums = list(like.new_zeros(()).expand(*shape).unbind())
    for s, a, b, outputs in terms:
        for q, place in enumerate(outputs):
            sums[place] = sums[place] + _product(a[q], b[q], form) * _broadcast(s, form)
    for gram, weight, place in identities:
        by_output = gram * weight[:, None, None]  # [d, n1, n2]
        if form == "full":
            by_output = torch.diag_embed(by_output.permute(1, 2, 0)).transpose(1, 2)
        sums[place] = sums[place] + (by_output.sum(0) if form == "trace" else by_output)
    out = torch.stack(sums)
    return mirrored(out, form) if symmetric else out


def mirrored(out: Tensor, form: str) -> Tensor:
    """The upper triangle on both sides of the diagonal."""
    square = _square(out, form)
    return (square.triu() + square.triu(1).mT).view(out.shape)


def folded(grad: Tensor, form: str) -> Tensor:
    """The gradient in what :func:`mirrored` took, given that in what it returned."""
    square = _square(grad, form)
    return ((square + square.mT).triu(1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1))).view(grad.shape)


def _square(out: Tensor, form: str) -> Tensor:
    return out.flatten(3, 4).flatten(1, 2) if form == "full" else out


def gradients(grad: Tensor, terms: Sequence[Term], form: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Gradients in S, A and B of every term, in differentiable torch operations."""
    found = []
    for s, a, b, outputs in terms:
        grad_s, grad_a, grad_b = torch.zeros_like(s), [], []
        factor = _broadcast(s, form)
        for q, place in enumerate(outputs):
            g = grad[place]
            product = g * _product(a[q], b[q], form)
            grad_s = grad_s + (
                product.sum((1, 3)) if form == "full" else product.sum(0) if form == "diagonal" else product
            )
            left, right = _pull_back(g * factor, a[q], b[q], form)
            grad_a.append(left)
            grad_b.append(right)
        found.append((grad_s, torch.stack(grad_a), torch.stack(grad_b)))
    return found


def _broadcast(s: Tensor, form: str) -> Tensor:
    return s[:, None, :, None] if form == "full" else s


def _product(a: Tensor, b: Tensor, form: str) -> Tensor:
    """All inner products of a [n1, d, c] and b [n2, d, c]."""
    (n1, d, _), n2 = a.shape, b.shape[0]
    if form == "full":
        return (a.flatten(0, 1) @ b.flatten(0, 1).mT).view(n1, d, n2, d)
    if form == "trace":
        return a.flatten(1) @ b.flatten(1).mT
    return a.transpose(0, 1) @ b.permute(1, 2, 0)


def _pull_back(g: Tensor, a: Tensor, b: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`_product` in a and b."""
    if form == "full":
        g = g.flatten(2, 3).flatten(0, 1)
        return (g @ b.flatten(0, 1)).view(a.shape), (g.mT @ a.flatten(0, 1)).view(b.shape)
    if form == "trace":
        return (g @ b.flatten(1)).view(a.shape), (g.mT @ a.flatten(1)).view(b.shape)
    return (g @ b.transpose(0, 1)).transpose(0, 1), (g.mT @ a.transpose(0, 1)).transpose(0, 1)
