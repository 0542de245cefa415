"""What a kernel will take, module by module, before it is computed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from nftk.tangent.chain import Chain
from nftk.tangent.modules.choice import Choice
from nftk.tangent.modules.examples import OutputFn
from nftk.tangent.modules.source import ModuleSource
from nftk.tangent.plan import check_budget
from nftk.tangent.request import Request, prepare
from nftk.tangent.sweep import Sweep

_OP = "tangent.plan"


@dataclasses.dataclass(frozen=True)
class Row:
    """Parameters that are used together.

    Attributes:
        module: Whose they are; a block of ``per="module"``.
        parameters: Their names.
        function: The torch function that takes them; empty where there is no rule for that.
        positions: How often an example uses them: 1 for a linear layer on a vector, pixels for a convolution.
        form: ``"gram"``, ``"gradients"`` of each example, or ``"torch.func"``, those by differentiating the whole
            model (``"autograd"``, one example at a time, where torch.vmap does not go through it).
        flops: Operations of the products of all pairs, counted.
        other_flops: Those of the form that was not taken; None where there is no other.
        bytes: Kept of an example.
        why: There is no rule.
    """

    module: str
    parameters: tuple[str, ...]
    function: str
    positions: int
    form: str
    flops: float
    other_flops: float | None
    bytes: int
    why: str


@dataclasses.dataclass(frozen=True)
class ModulePlan:
    """Made by :func:`nftk.tangent.plan`; print it.

    Attributes:
        rows: A row for all parameters that are used together.
        examples: Numbers of first and second examples.
        rows_at_once: First examples whose tangents are held at once.
        columns_at_once: Second examples, likewise.
        bytes: Of memory, at most, beside model, inputs and output.
    """

    rows: tuple[Row, ...]
    examples: tuple[int, int]
    rows_at_once: int
    columns_at_once: int
    bytes: int

    def __str__(self) -> str:
        head = ("module", "function", "positions", "form", "flops", "other form", "bytes an example", "why")
        lines = [head] + [
            (row.module, row.function, str(row.positions), row.form, f"{row.flops:.2g}",
             "" if row.other_flops is None else f"{row.other_flops:.2g}", str(row.bytes),
             f"{', '.join(row.parameters)}: {row.why}" if row.why else "")
            for row in self.rows
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        n1, n2 = self.examples
        size = f"{self.bytes / 2**20:.1f} MiB"
        held = f"{n1} x {n2} examples, {self.rows_at_once} x {self.columns_at_once} at once, {size} at most"
        return "\n".join([*table, held])


def plan(
    model: nn.Module,
    x1: Tensor | Mapping[str, Tensor],
    x2: Tensor | Mapping[str, Tensor] | None = None,
    *,
    per: Literal["module", "model"] = "module",
    reduction: Literal["full", "trace", "diagonal", "sum_logits"] = "full",
    normalize: Literal["cosine", "joint"] | None = None,
    weights: Tensor | Sequence[float] | None = None,
    memory_budget: int | None = None,
    output_fn: OutputFn | None = None,
) -> ModulePlan:
    """How :func:`nftk.empirical_ntk` will take the kernel of a module: the form of each product, and what it costs.

    The model is run on three examples. Parameters without a rule, with the reason, are differentiated with the whole
    model: right, but slower.

    Args:
        model: As for :func:`nftk.empirical_ntk`, but an NFTKMLP or a plain multilayer perceptron, which have one form.
        x1: As there.
        x2: As there.
        per: As there.
        reduction: As there.
        normalize: As there.
        weights: As there.
        memory_budget: As there.
        output_fn: As there.

    Returns:
        The plan.

    Raises:
        ValueError: As there.
        NotImplementedError: If the model is an NFTKMLP or a plain multilayer perceptron.

    Example:
        >>> import torch, nftk
        >>> model = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> print(nftk.tangent.plan(model, torch.randn(100, 1, 8), memory_budget=1 << 30))
        module  function  positions  form       flops  other form  bytes an example  why
        0       conv1d    6          gradients  3.4e+05  1.1e+07     64
        ...
    """
    network, first, second = prepare(model, x1, x2, _OP, per=per, output_fn=output_fn)
    if isinstance(network, Chain):
        raise NotImplementedError(
            f"nftk.{_OP}: model must be another than an NFTKMLP or a plain multilayer perceptron, whose products are "
            f"all in Gram form, got {type(model).__name__}"
        )
    request = Request.checked(
        network, per, reduction, normalize, weights, False, "highest", "auto", device=network.device, op=_OP
    )
    sweep = Sweep(network, first, second, request, budget=check_budget(memory_budget, network.device, _OP), op=_OP)
    assert isinstance(sweep.source, ModuleSource)
    rows = tuple(_row(choice, network.mapped) for choice in sweep.source.choices)
    return ModulePlan(rows, (sweep.n1, sweep.n2), sweep.plan.rows, sweep.plan.columns, sweep.plan.bytes)


def _row(choice: Choice, mapped: bool) -> Row:
    site = choice.site
    form = choice.form if site.rule is not None else "torch.func" if mapped else "autograd"
    other = choice.gram_flops if choice.form == "gradients" else choice.gradient_flops
    function = "" if site.rule is None else site.rule.what
    return Row(site.block, site.parameters, function, site.positions, form, choice.flops, other, choice.bytes, site.why)
