"""tangent_gram by nftk._C: one launch for all outputs, straight from the tensors' own memory."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nftk.ops.tangent_gram_torch import Term


def fill(out: Tensor, terms: Sequence[Term], form: str, symmetric: bool, precision: str) -> None:
    """Write the sums over out, shape as ``memory_shape`` has it, any strides; out must not overlap itself."""
    native: Any = importlib.import_module("nftk._C")
    # kept until after the launch; the allocator then hands their memory on in the stream's own order
    operands = [(term.s, _with_channels_together(term.a), _with_channels_together(term.b)) for term in terms]
    entries = [entry for term, parts in zip(terms, operands, strict=True) for entry in _entries(*parts, term.outputs)]
    if form == "full":
        n1, d, n2 = out.shape[1:4]
        strides = out.stride()
    elif form == "diagonal":
        d, n1, n2 = out.shape[1:]
        strides = (out.stride(0), out.stride(2), out.stride(1), out.stride(3), 0)
    else:
        n1, n2 = out.shape[1:]
        d = terms[0].a.shape[2] if terms else 1
        strides = (out.stride(0), out.stride(1), 0, out.stride(2), 0)
    native.tangent_gram(
        entries,
        out=out.data_ptr(),
        out_strides=tuple(strides),
        sizes=(n1, n2, d),
        outputs=out.shape[0],
        form=form,
        symmetric=symmetric,
        accumulate=False,
        number=str(out.dtype).removeprefix("torch."),
        precision=precision,
        device=out.device.index or 0,
        stream=torch.cuda.current_stream(out.device).cuda_stream if out.is_cuda else 0,
    )


def _with_channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _entries(s: Tensor, a: Tensor, b: Tensor, outputs: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """One entry a run of slices whose outputs are the same distance apart."""
    for first, count, step in _runs(outputs):
        yield (
            s.data_ptr(), s.stride(),
            a[first:].data_ptr(), a.stride()[:3],
            b[first:].data_ptr(), b.stride()[:3],
            a.shape[3], count, outputs[first], step,
        )  # fmt: skip


def _runs(outputs: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """First slice, number of slices, and the step from each one's output to the next one's."""
    first = 0
    while first < len(outputs):
        step = outputs[first + 1] - outputs[first] if first + 1 < len(outputs) else 0
        count = 1
        while first + count < len(outputs) and outputs[first + count] == outputs[first] + step * count:
            count += 1
        yield first, count, step
        first += count
