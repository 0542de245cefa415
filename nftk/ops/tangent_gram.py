"""tangent_gram: Gram matrices of tangents, weighted pair by pair and summed over terms; the core of empirical_ntk."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk._checks import check_choice, check_integer, check_list, check_same, check_shape, check_tensor
from nftk._dispatch import resolve
from nftk.ops import precision as precisions
from nftk.ops import tangent_gram_torch as torch_form
from nftk.ops.batching import register_loop
from nftk.ops.network_formula import transform_active
from nftk.ops.tangent_gram_torch import Term

_OP = "ops.tangent_gram"
SUPPORTED = ("cuda", "torch")  # fastest first
FORMS = ("full", "trace", "diagonal")


def tangent_gram(
    s: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor] | None = None,
    *,
    outputs: Sequence[Sequence[int]] | None = None,
    form: str = "full",
    precision: str = "highest",
    backend: str = "auto",
) -> Tensor:
    r"""Sums of Gram matrices of tangents, each term weighted by a factor per pair of examples.

    .. math:: out_o[x, x', i, j] = \sum_{t, q \to o} S_t[x, x'] \, \langle A_{t,q}[x, i], B_{t,q}[x', j] \rangle

    With S_t the Gram matrix of the inputs of a linear layer, and A, B the derivatives of d outputs in what the layer
    returns, this is that layer's block of the tangent kernel; a slice q is one of several functions (the readouts of
    NFT-K) that go back through the same layer. Sums run over terms in registers, so no product is ever stored.

    Args:
        s: S_t, shape ``(n1, n2)``, one a term. Any strides.
        a: A_t, shape ``(p_t, n1, d, c_t)``: p_t slices of c_t channels, which may differ by term.
        b: B_t, shape ``(p_t, n2, d, c_t)``. None: b is a and every S_t is symmetric, of which only the upper
            triangle is read; half of the work is done and the result is exactly symmetric.
        outputs: For each term the p_t outputs that its slices are added to, below the number of all slices. None: the
            last p_t of all, as many as the longest term has slices, as in the walk back through NFT-K's layers.
        form: ``"full"``; ``"trace"``, the sum over i = j; or ``"diagonal"``, i = j alone.
        precision: Of float32 products on a GPU: ``"highest"``, as exact as float32; ``"tf32"`` or ``"bf16"``.
            Sums are in float32 or better always; 16-bit inputs are widened first.
        backend: ``"auto"``: ``"cuda"`` on a GPU where the extension nftk._C has it, outside ``torch.func``
            transforms; else ``"torch"``. A named one is used or raises.

    Returns:
        All outputs in the dtype of the inputs. full: ``(L, n1, n2, d, d)``, a view on memory laid out
        ``(L, n1, d, n2, d)``; trace: ``(L, n1, n2)``; diagonal: ``(L, n1, n2, d)``, on memory ``(L, d, n1, n2)``.

    Raises:
        ValueError: If shapes, dtypes or devices disagree, an output is negative, or a name is unknown.
        TypeError: If an input is not a floating tensor, or not a list of them.
        NotImplementedError: If ``backend`` has no code for this call.
        RuntimeError: If ``backend`` exists but cannot run here; the message says why.

    Derivatives:
        Any order in s, a and b; ``vmap`` and ``jacrev`` work; ``jvp`` works on ``"torch"`` and raises on ``"cuda"``.

    Memory:
        Beside the output some tiles of a few megabytes; backward stores a few matrices as large as one output.

    References:
        Novak et al., Fast Finite Width Neural Tangent Kernel, ICML 2022, arXiv 2206.08720, section 3 (structured
        derivatives).

    Example:
        >>> import torch, nftk
        >>> s, a = torch.tensor([[2.0]]), torch.tensor([[[[1.0, 2.0], [0.0, 1.0]]]])  # one example, d = 2
        >>> nftk.ops.tangent_gram([s], [a]).reshape(2, 2)
        tensor([[10.,  4.],
                [ 4.,  2.]])
        >>> nftk.ops.tangent_gram([s], [a], form="trace")
        tensor([[[12.]]])
    """
    wanted = precisions.canonical(_OP, precision)
    check_choice(_OP, "form", form, FORMS)
    places = _check(s, a, b, outputs)
    first = s[0]
    lacks = {"cuda": cuda_lacks(first, backend)}
    chosen = resolve(_OP, backend, SUPPORTED, str(first.device), lacks)
    named = [o for term in places for o in term]
    if not named:
        raise ValueError(f"nftk.{_OP}: a must have a slice in some term, got none")
    size = 1 + max(named)
    narrow = first.dtype in (torch.float16, torch.bfloat16)
    if narrow:
        s, a, b = ([t.float() for t in ts] if ts is not None else None for ts in (s, a, b))  # type: ignore[assignment]
    memory = _run(s, a, b, places, size, form, wanted, chosen)
    return torch_form.as_blocks(form, memory.to(first.dtype) if narrow else memory)


def cuda_lacks(x: Tensor, backend: str) -> str | None:
    """What of a call the CUDA kernel has no code for; None for nothing."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode derivatives (jvp)"
    if backend == "auto" and transform_active():
        return "torch.func transforms as fast as torch's own operations"
    return None


def _run(
    s: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor] | None,
    places: Sequence[tuple[int, ...]],
    size: int,
    form: str,
    precision: str,
    backend: str,
) -> Tensor:
    symmetric = b is None
    plain = backend == "torch" and (
        transform_active() or torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", -1) >= 0
    )
    if plain and not (precision == "highest" and precisions.torch_would_round(s[0])):
        d, n1, n2 = a[0].shape[2], *s[0].shape
        shape = torch_form.memory_shape(form, size, n1, n2, d)
        with torch.autocast(s[0].device.type, enabled=False):
            return torch_form.formula(_terms(s, a, a if b is None else b, places), form, symmetric, shape, s[0])
    settings = (tuple(map(tuple, places)), size, form, symmetric, precision, backend)
    memory: Tensor = _TangentGram.apply(settings, *s, *a, *(() if b is None else b))  # type: ignore[no-untyped-call]
    return memory


def fill(
    out: Tensor,
    terms: Sequence[Term],
    form: str,
    symmetric: bool,
    identities: Sequence[torch_form.Identity],
    precision: str,
    backend: str,
) -> None:
    """Write the sums over out (shape as ``memory_shape`` has it, any strides), without derivatives or checks."""
    if backend == "cuda":
        from nftk.ops import tangent_gram_cuda

        tangent_gram_cuda.fill(out, terms, form, symmetric, precision)
        torch_form.add_identities(out, identities, form)
        return
    like = terms[0].s if terms else out
    with precisions.full_precision(like):
        torch_form.fill(out, terms, form, symmetric, identities)


def _terms(
    s: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor], places: Sequence[Sequence[int]]
) -> list[Term]:
    return [Term(*parts) for parts in zip(s, a, b, map(tuple, places), strict=True)]


_SCHEMA = (
    "(Tensor[] s, Tensor[] a, Tensor[] b, int[] places, int size, str form, bool symmetric, str precision, "
    "str backend) -> Tensor"
)


@torch.library.custom_op("nftk::tangent_gram", mutates_args=(), schema=_SCHEMA)
def _fwd(
    s: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    places: Sequence[int],
    size: int,
    form: str,
    symmetric: bool,
    precision: str,
    backend: str,
) -> Tensor:
    terms = _terms(s, a, a if symmetric else b, _regroup(places, a))
    out = _empty(a, b, size, form, symmetric)
    fill(out, terms, form, symmetric, (), precision, backend)
    return out


@_fwd.register_fake
def _(
    s: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    places: Sequence[int],
    size: int,
    form: str,
    symmetric: bool,
    precision: str,
    backend: str,
) -> Tensor:
    return _empty(a, b, size, form, symmetric)


register_loop(_fwd)


def _empty(a: Sequence[Tensor], b: Sequence[Tensor], size: int, form: str, symmetric: bool) -> Tensor:
    n1, d = a[0].shape[1:3]
    return a[0].new_empty(torch_form.memory_shape(form, size, n1, n1 if symmetric else b[0].shape[1], d))


def _regroup(places: Sequence[int], a: Sequence[Tensor]) -> list[tuple[int, ...]]:
    flat = iter(places)
    return [tuple(next(flat) for _ in range(term.shape[0])) for term in a]


class _TangentGram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: Any, *tensors: Tensor) -> Tensor:
        places, size, form, symmetric, precision, backend = settings
        s, a, b = _split(tensors, len(places))
        flat = [o for term in places for o in term]
        return _fwd(s, a, b, flat, size, form, symmetric, precision, backend)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        places, _, form, symmetric, precision, _ = ctx.settings
        s, a, b = _split(ctx.saved_tensors, len(places))
        exact = precisions.full_precision(grad) if precision == "highest" else contextlib.nullcontext()
        with exact, torch.autocast(grad.device.type, enabled=False):
            if symmetric:
                grad = torch_form.folded(grad, form)
            found = torch_form.gradients(grad, _terms(s, a, a if symmetric else b, places), form)
        grad_s, grad_a, grad_b = zip(*found, strict=True)
        if symmetric:
            return None, *grad_s, *(left + right for left, right in zip(grad_a, grad_b, strict=True))
        return None, *grad_s, *grad_a, *grad_b


def _split(tensors: Sequence[Tensor], terms: int) -> tuple[Sequence[Tensor], ...]:
    return tensors[:terms], tensors[terms : 2 * terms], tensors[2 * terms :]


def _check(s: Any, a: Any, b: Any, outputs: Any) -> list[tuple[int, ...]]:
    """Raise unless the inputs fit together; return the outputs of every term's slices."""
    lists = {"s": s, "a": a} | ({} if b is None else {"b": b})
    for name, given in lists.items():
        check_list(_OP, name, given)
        if len(given) != len(s) or not len(s):
            counts = ", ".join(f"{len(other)} in {key}" for key, other in lists.items())
            raise ValueError(f"nftk.{_OP}: {', '.join(lists)} must have one entry a term, got {counts}")
    named = {f"{name}[{t}]": x for name, given in lists.items() for t, x in enumerate(given)}
    for name, x in named.items():
        check_tensor(_OP, name, x)
    check_shape(_OP, "s[0]", s[0], ("n1", "n2"))
    check_shape(_OP, "a[0]", a[0], ("p", "n1", "d", "c"))
    (n1, n2), d = s[0].shape, a[0].shape[2]
    if b is None and n1 != n2:
        raise ValueError(f"nftk.{_OP}: s[0] must be square where b is None, got {list(s[0].shape)}")
    for t in range(len(s)):
        check_shape(_OP, f"s[{t}]", s[t], (n1, n2))
        check_shape(_OP, f"a[{t}]", a[t], ("p", n1, d, "c"))
        if b is not None:
            check_shape(_OP, f"b[{t}]", b[t], (a[t].shape[0], n2, d, a[t].shape[3]))
    check_same(_OP, "dtype", **named)
    check_same(_OP, "device", **named)
    return _places(outputs, [term.shape[0] for term in a])


def _places(outputs: Any, slices: list[int]) -> list[tuple[int, ...]]:
    if outputs is None:
        return [tuple(range(max(slices) - p, max(slices))) for p in slices]
    check_list(_OP, "outputs", outputs)
    for t, where in enumerate(outputs):
        check_list(_OP, f"outputs[{t}]", where)
    if [len(where) for where in outputs] != slices:
        got = [len(where) for where in outputs]
        raise ValueError(f"nftk.{_OP}: outputs must name one output a slice, {slices} of them, got {got}")
    places = [tuple(check_integer(_OP, f"outputs[{t}]", o, 0) for o in where) for t, where in enumerate(outputs)]
    most = max(map(max, filter(None, places)), default=0)
    if most >= sum(slices):
        raise ValueError(f"nftk.{_OP}: outputs must be below {sum(slices)}, the number of slices, got {most}")
    return places
