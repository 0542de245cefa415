"""The CUDA source of tangent_gram, run on the CPU: tests/cuda/README.md says how, and what that cannot show."""

import math
from typing import NamedTuple

import pytest
import tangent_gram_host as host
import torch
from kernel_checks import error, guarded
from tangent_gram_host import Entry, formula, strided, to_tf32

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
NUMBERS = ["highest", "tf32", "bf16", "float64"]
ROUNDED = {"highest": lambda x: x, "float64": lambda x: x, "tf32": to_tf32, "bf16": lambda x: x.bfloat16().float()}


class Case(NamedTuple):
    """Sizes, and channels of each entry. n2 None: the symmetric form."""

    n1: int
    n2: int | None
    d: int
    channels: tuple[int, ...]
    tile: str = "small"
    # how operands lie: rows at multiples of 16 bytes, at any element, or one after another without a gap
    layout: str = "aligned"


def dtype_of(number):
    return torch.float64 if number == "float64" else torch.float32


def make_entries(case, number, positive=False):
    """As a network of that many layers has them: entry k has a slice for each output from k on."""
    dtype = dtype_of(number)
    draw = torch.rand if positive else torch.randn

    def operand(p, n, c):
        values = draw(p, n, case.d, c, dtype=dtype)
        if case.layout == "flat":
            return values
        wide = 16 // values.element_size()
        return strided(values, wide) if case.layout == "aligned" else strided(values, 1, shift=1)

    entries = []
    for k, c in enumerate(case.channels):
        p = len(case.channels) - k
        a = operand(p, case.n1, c)
        b = a if case.n2 is None else operand(p, case.n2, c)
        s = draw(case.n1, case.n2 or case.n1, dtype=dtype)
        s = (s + s.T) / 2 if case.n2 is None else s
        entries.append(Entry(guarded(s, "columns" if k % 2 else "rows"), a, b, k))
    return entries


def empty_out(outputs, n1, n2, d, form, dtype):
    """A result to write to, between NaN; and the whole array, to see what else was written."""
    shape = {"full": (outputs, n1, d, n2, d), "trace": (outputs, n1, n2), "diagonal": (outputs, n1, d, n2)}[form]
    whole = torch.full([size + 1 for size in shape], math.nan, dtype=dtype)
    return whole[tuple(slice(size) for size in shape)], whole


def written_only(out, whole):
    return int(whole.isnan().sum()) == whole.numel() - out.numel() + int(out.isnan().sum())


def bare(number):
    """The precision that csrc is asked for."""
    return "highest" if number == "float64" else number


def check(library, entries, outputs, n1, n2, d, form, number, symmetric=False, **keywords):
    """Run, and hold the result against float64; returns it."""
    dtype = dtype_of(number)
    out, whole = empty_out(outputs, n1, n2, d, form, dtype)
    library.tangent_gram(entries, out, d, form, symmetric, precision=bare(number), **keywords)
    assert written_only(out, whole), "wrote beside the result"
    of_operands = ROUNDED[number]
    rounded = [Entry(e.s, of_operands(e.a), of_operands(e.b), e.first_output, e.output_step) for e in entries]
    truth = formula(rounded, outputs, n1, n2, d, form, torch.float64)
    plain = formula(rounded, outputs, n1, n2, d, form, dtype)
    size = formula(rounded, outputs, n1, n2, d, form, torch.float64, of=torch.abs)
    eps = torch.finfo(dtype).eps
    ours, eager = error(out, truth), error(plain, truth)
    if number == "highest":
        # a few numbers can be right by luck in eager
        assert ours <= 2 * eager + (1 if out.numel() > 100 else 4) * eps, f"ours {ours:.2e}, eager {eager:.2e}"
    else:
        # against the rounded operands: what the sums lose, which the tensor cores cut
        assert ours <= (1e-14 if number == "float64" else 1e-5)
    # and no single number is far off: in units of the sum of absolute values
    worst = ((out.double() - truth).abs() / size.clamp_min(1e-300)).max().item()
    assert worst <= {"highest": 6 * eps, "float64": 40 * eps}.get(number, 2e-5), f"{worst / eps:.1f} eps"
    if symmetric:
        mirrored = {"full": (0, 3, 4, 1, 2), "trace": (0, 2, 1), "diagonal": (0, 3, 2, 1)}[form]
        assert torch.equal(out, out.permute(mirrored))
    return out


CASES = [
    Case(1, 1, 1, (1,)),
    Case(7, 5, 3, (2, 9, 33)),
    Case(13, 11, 5, (17,), layout="unaligned"),  # 65 rows, 55 columns
    Case(3, 2, 70, (5, 8), layout="flat"),  # a sample is more than a tile
    Case(66, 1, 1, (40, 3), layout="unaligned"),
    Case(13, 14, 10, (31, 64), "large"),  # 130 rows, 140 columns
    Case(9, 3, 10, (37,), "large", "unaligned"),
    Case(1, None, 1, (3,), layout="flat"),
    Case(13, None, 5, (7, 35), layout="unaligned"),
    Case(43, None, 3, (12, 4)),  # 129 rows: three tiles
    Case(2, None, 70, (20,), layout="flat"),
    Case(13, None, 10, (33,), "large"),
]


def case_id(case):
    kind = f"{case.n1}-{case.n2 or 'sym'}-{case.d}"
    return f"{kind}-{'x'.join(map(str, case.channels))}-{case.tile}-{case.layout}"


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("form", host.FORMS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_forward(library, case, form, number):
    entries = make_entries(case, number)
    n2 = case.n2 or case.n1
    seed = CASES.index(case) + host.FORMS.index(form)
    check(library, entries, len(entries), case.n1, n2, case.d, form, number, case.n2 is None, tile=case.tile, seed=seed)


@pytest.mark.parametrize("number", ["highest", "float64"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "rectangular"])
def test_many_tiles(library, symmetric, number):
    """More tiles than one band of rows holds, and a band that is not full; the large one of float64 is not square."""
    n1, n2 = (577, 577) if symmetric else (600, 70)
    tile = "large" if number == "float64" else "small"
    n1, n2 = (n1 * 2, n2 * 2) if tile == "large" and symmetric else (n1, n2)
    entries = make_entries(Case(n1, None if symmetric else n2, 1, (3,)), number)
    check(library, entries, 1, n1, n2, 1, "full", number, symmetric, tile=tile)


@pytest.mark.parametrize(("number", "bound"), [("highest", 2e-7), ("tf32", 8e-6), ("bf16", 1e-5), ("float64", 1e-14)])
def test_long_sums(library, number, bound):
    """Of positive numbers: in the tensor cores alone, which truncate, they would drift toward zero."""
    entries = make_entries(Case(3, 4, 2, (6000,)), number, positive=True)
    out, _ = empty_out(1, 3, 4, 2, "full", dtype_of(number))
    library.tangent_gram(entries, out, 2, precision=bare(number))
    rounded = [Entry(e.s, ROUNDED[number](e.a), ROUNDED[number](e.b)) for e in entries]
    assert error(out, formula(rounded, 1, 3, 4, 2, "full", torch.float64)) < bound


@pytest.mark.parametrize("seed", range(3))
def test_highest_is_as_exact_as_float32(library, seed):
    torch.manual_seed(seed)
    entries = make_entries(Case(9, 8, 6, (600, 200)), "highest", positive=seed == 1)
    out, _ = empty_out(2, 9, 8, 6, "full", torch.float32)
    library.tangent_gram(entries, out, 6, seed=seed)
    truth, plain = (formula(entries, 2, 9, 8, 6, "full", dtype) for dtype in (torch.float64, torch.float32))
    assert error(out, truth) <= 2 * error(plain, truth) + torch.finfo(torch.float32).eps


def weighted(n, d, c, slices, first_output, output_step, dtype=torch.float32):
    return Entry(
        torch.randn(n, n, dtype=dtype), torch.randn(slices, n, d, c, dtype=dtype),
        torch.randn(slices, n, d, c, dtype=dtype), first_output, output_step,
    )  # fmt: skip


@pytest.mark.parametrize("form", host.FORMS)
def test_slices_and_outputs(library, form):
    """All slices to one output, to each third, backward; terms without channels; outputs 1 and 6 without terms."""
    steps = [(9, 4, 0, 0), (0, 2, 2, 3), (9, 2, 2, 3), (9, 3, 4, -1), (0, 1, 6, 0), (9, 1, 3, 0), (9, 1, 7, 5)]
    entries = [weighted(5, 3, *step) for step in steps]
    out = check(library, entries, 8, 5, 5, 3, form, "highest", seed=3)
    assert not out[1].any()
    assert not out[6].any()
    assert out[7].all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("form", host.FORMS)
def test_accumulate(library, form, symmetric):
    case = Case(9, None if symmetric else 7, 8, (5, 6))
    entries = make_entries(case, "float64")
    n2 = case.n2 or case.n1
    out, whole = empty_out(3, 9, n2, 8, form, torch.float64)
    before = torch.randn_like(out)
    out.copy_(before)
    library.tangent_gram(entries, out, 8, form, symmetric, accumulate=True)
    truth = formula(entries, 3, 9, n2, 8, form, torch.float64)
    assert written_only(out, whole)
    torch.testing.assert_close(out - before, truth, rtol=0, atol=1e-13)
    assert torch.equal(out[2], before[2])


@pytest.mark.parametrize("accumulate", [False, True])
def test_more_entries_than_one_launch_holds(library, accumulate):
    entries = [weighted(3, 2, 2, 1, k % 2, 1) for k in range(300)]
    out, whole = empty_out(2, 3, 3, 2, "full", torch.float32)
    before = torch.randn(out.shape) if accumulate else torch.zeros(out.shape)
    out.copy_(before if accumulate else out)
    assert library.tangent_gram(entries, out, 2, accumulate=accumulate) == 3
    assert written_only(out, whole)
    truth = before.double() + formula(entries, 2, 3, 3, 2, "full", torch.float64)
    assert error(out, truth) < 1e-6


def test_one_launch_for_all_outputs(library):
    entries = [weighted(3, 2, 2, 1, k, 1) for k in range(128)]
    out, _ = empty_out(128, 3, 3, 2, "trace", torch.float32)
    assert library.tangent_gram(entries, out, 2, "trace") == 1
    assert error(out, formula(entries, 128, 3, 3, 2, "trace", torch.float64)) < 1e-5


def test_strides(library):
    """S spread out of one number, A without its rows (stride 0), results whose samples and rows are swapped."""
    a, b = torch.randn(1, 6, 1, 5).expand(1, 6, 4, 5), torch.randn(2, 3, 4, 5).transpose(1, 2).reshape(2, 4, 3, 5)
    entries = [
        Entry(torch.randn(1, 1).expand(6, 3), a, b[:1].transpose(1, 2)),
        Entry(torch.randn(3, 6).T, torch.randn(2, 4, 6, 8)[..., 2:7].transpose(1, 2), b.transpose(1, 2), 0, 0),
    ]
    whole = torch.full((4, 3, 6, 4, 2), math.nan)
    out = whole.permute(4, 2, 3, 1, 0)[:, :, :, :, :]
    library.tangent_gram(entries, out[:1], 4)
    assert whole[..., 1].isnan().all()
    assert error(out[:1], formula(entries, 1, 6, 3, 4, "full", torch.float64)) < 1e-6


def test_diagonal_of_a_full_result(library):
    """In the diagonal form both strides of rows count."""
    entries = make_entries(Case(4, 3, 5, (6,)), "highest")
    whole = torch.full((1, 4, 5, 3, 5), math.nan)
    out = torch.diagonal(whole, dim1=2, dim2=4).permute(0, 1, 3, 2)
    library.tangent_gram(entries, out, 5, "diagonal", strides=whole.stride())
    assert whole.isnan().sum() == 4 * 3 * 20
    assert error(out, formula(entries, 1, 4, 3, 5, "diagonal", torch.float64)) < 1e-6


@pytest.mark.parametrize("gaps", ["", "a", "b", "ab"])
def test_trace_of_rows_with_and_without_gaps(library, gaps):
    """Rows that follow each other are one long row to the kernel: the same numbers in all."""
    a, b = torch.randn(2, 5, 3, 11), torch.randn(2, 4, 3, 11)
    a, b = (strided(x, 1) if name in gaps else x for name, x in (("a", a), ("b", b)))
    check(library, [Entry(torch.randn(5, 4), a, b)], 2, 5, 4, 3, "trace", "highest")


@pytest.mark.parametrize("form", host.FORMS)
@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (3, 0, 2, 4), (3, 2, 0, 4), (3, 2, 2, 0)], ids=str)
def test_empty(library, sizes, form):
    n1, n2, d, c = sizes
    entries = [Entry(torch.randn(n1, n2), torch.randn(2, n1, d, c), torch.randn(2, n2, d, c))]
    out, whole = empty_out(3, n1, n2, d, form, torch.float32)
    library.tangent_gram(entries, out, d, form, sizes=(n1, n2))
    assert written_only(out, whole)
    assert torch.equal(out, torch.zeros_like(out))


def test_no_rows_with_gaps(library):
    """A sum over no rows is 0, and nothing is read."""
    a = torch.empty_strided((2, 3, 0, 4), (15, 5, 5, 1))
    out, _ = empty_out(2, 3, 3, 0, "trace", torch.float32)
    library.tangent_gram([Entry(torch.randn(3, 3), a, a)], out, 0, "trace")
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("entries", [[], [Entry(torch.randn(2, 2), torch.randn(0, 2, 3, 4), torch.randn(0, 2, 3, 4))]])
def test_no_terms(library, entries):
    out, whole = empty_out(2, 2, 2, 3, "full", torch.float32)
    library.tangent_gram(entries, out, 3)
    assert written_only(out, whole)
    assert not out.any()
    out.fill_(7)
    library.tangent_gram(entries, out, 3, accumulate=True)
    assert (out == 7).all()


@pytest.mark.parametrize("number", ["highest", "float64"])
def test_schedules_agree(library, number):
    """Blocks, warps and lanes in other orders: the same bits."""
    case = Case(23, 22, 3, (35, 70, 5))
    entries = make_entries(case, number)
    first = check(library, entries, 3, 23, 22, 3, "full", number, tile="small")
    for seed in range(1, 5):
        assert torch.equal(check(library, entries, 3, 23, 22, 3, "full", number, tile="small", seed=seed), first)


def test_tiles_agree(library):
    entries = make_entries(Case(130, 129, 1, (20,)), "highest")
    small, large = (
        check(library, entries, 1, 130, 129, 1, "full", "highest", tile=tile) for tile in ("small", "large")
    )
    assert torch.equal(small, large)


@pytest.mark.parametrize(("number", "blocks"), [("highest", [9, 4, 4, 4]), ("float64", [9, 6, 6, 4])])
def test_tile_chosen(library, number, blocks):
    """Large tiles once each multiprocessor gets one; the engine has 4."""
    found = []
    for n1, n2, tile in [(130, 129, "small"), (130, 129, "large"), (130, 129, "automatic"), (128, 128, "automatic")]:
        entries = make_entries(Case(n1, n2, 1, (2,)), number)
        check(library, entries, 1, n1, n2, 1, "full", number, tile=tile)
        found.append(library.last_blocks())
    assert found == blocks


def test_device_and_stream(library):
    """Those that are asked for; afterwards the device from before is current again."""
    entries = [weighted(2, 2, 2, 1, 0, 1)]
    out, _ = empty_out(1, 2, 2, 2, "full", torch.float32)
    library.tangent_gram(entries, out, 2, device=1, stream=0x1230)
    assert library.last_launch() == (1, 0x1230)
    assert library.current_device() == 0
    with pytest.raises(RuntimeError, match=r"nftk.tangent_gram: choosing the device: invalid device ordinal"):
        library.tangent_gram(entries, out, 2, device=2)


def test_errors(library):
    entry = weighted(2, 3, 4, 3, 1, 2)
    out, _ = empty_out(4, 2, 2, 3, "full", torch.float32)
    with pytest.raises(ValueError, match="entry 0 has slices for outputs 1 to 5 of 4"):
        library.tangent_gram([entry], out, 3)
    with pytest.raises(ValueError, match="entry 0 has slices for outputs 1 to -3 of 4"):
        library.tangent_gram([Entry(entry.s, entry.a, entry.b, 1, -2)], out, 3)
    with pytest.raises(ValueError, match="symmetric result must be square"):
        library.tangent_gram([], out, 3, symmetric=True, sizes=(2, 1))
    with pytest.raises(ValueError, match="must not be negative"):
        library.tangent_gram([], out, -1)
    with pytest.raises(ValueError, match="must stay below"):
        library.tangent_gram([], out, 1 << 20, sizes=(1 << 20, 1))
    with pytest.raises(ValueError, match="more tiles"):
        library.tangent_gram([], out, 1, sizes=(1 << 30, 1 << 30))


def test_reads_and_writes_are_watched(library):
    """The engine's bounds: a row too many is told."""
    a = torch.randn(1, 2, 3, 4)
    out, _ = empty_out(1, 3, 2, 3, "full", torch.float32)
    with pytest.raises(RuntimeError, match="read outside of the arrays"):
        library.tangent_gram([Entry(torch.randn(3, 2), a, a)], out, 3)
    with pytest.raises(RuntimeError, match="write outside of the arrays"):
        library.tangent_gram([], out, 3, sizes=(4, 2))
