"""Time of nftk.ops.tangent_gram: ten layers of one width, layer k in the outputs from k on, to all ten outputs."""

import functools
import itertools
from dataclasses import dataclass

import torch
from _harness import Problem, Provider, Unavailable, Work, at_least, captured, faster, reference_product

import nftk
from nftk._dispatch import why_not

BOTH = ("cpu", "cuda")
LAYERS, WIDTH = 10, 256


@dataclass(frozen=True)
class Case:
    """n1 x n2 examples of d outputs; n2 None: the symmetric form."""

    form: str
    n1: int
    n2: int | None = None
    d: int = 10
    precision: str = "highest"
    compiles: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cuda",)

    @property
    def name(self):
        return f"{self.form}-d{self.d}-{self.n1}x{self.n2 or 'same'}"

    @property
    def id(self):
        return f"{self.name}-{self.precision}"

    def sizes(self):
        sizes = {"batch": self.n1, "second_batch": self.n2, "out_features": self.d}
        return sizes | {"layers": LAYERS, "width": WIDTH, "form": self.form}


CASES = [
    Case("full", 256, compiles=("compile",), devices=BOTH),
    *(Case("full", 1024, precision=word) for word in ("highest", "tf32", "bf16", "float64")),
    *(Case("full", 1024, 1024, precision=word) for word in ("highest", "tf32", "bf16")),
    *(Case("trace", 10_000, precision=word) for word in ("highest", "tf32", "bf16")),
    Case("full", 64, devices=BOTH),
    Case("full", 256, 128, devices=BOTH),
    Case("full", 64, d=100, devices=BOTH),
    Case("full", 2000, d=1, devices=BOTH),
    Case("full", 10_000, d=1),
    Case("diagonal", 500, devices=BOTH),
    Case("diagonal", 4096),
    Case("trace", 500, devices=BOTH),
    Case("trace", 500, 1000, devices=BOTH),
    Case("trace", 4096, 4096),
    Case("trace", 2000, devices=BOTH),
]


def providers(case, device):
    names = ["unfused", *case.compiles, "matmul"]
    return [*names, "torch", "cuda"] if device == "cuda" else [*names, "matmul-2048", "torch"]


def pairs(case):
    """Inner products of one slice, each of WIDTH numbers (trace: of d times as many); a symmetric half is counted."""
    each = case.d if case.form == "full" else 1
    rows, columns = case.n1 * each, (case.n2 or case.n1) * each
    count = rows * columns if case.n2 else rows * (rows + 1) // 2
    return count * (case.d if case.form == "diagonal" else 1)


def work(case):
    size = 8 if case.precision == "float64" else 4
    n2, slices = case.n2 or case.n1, LAYERS * (LAYERS + 1) // 2
    depth = WIDTH * (case.d if case.form == "trace" else 1)
    tangents = slices * (case.n1 + (case.n2 or 0)) * case.d * WIDTH
    entries = case.n1 * n2 * {"full": case.d**2, "trace": 1, "diagonal": case.d}[case.form]
    moved = tangents + LAYERS * (case.n1 * n2 + entries)
    return {"forward": Work(moved * size, 2 * pairs(case) * depth * slices)}


def inputs(case, device):
    """S, A and B of every term; B is None in the symmetric form."""
    torch.manual_seed(0)
    kind = {"device": device, "dtype": torch.float64 if case.precision == "float64" else torch.float32}
    s = [torch.randn(case.n1, case.n2 or case.n1, **kind) for _ in range(LAYERS)]
    if case.n2 is None:
        s = [(x + x.mT) / 2 for x in s]
    # the last term has one slice, as the last layer is in its own readout alone
    a = [torch.randn(LAYERS - k, case.n1, case.d, WIDTH, **kind) for k in range(LAYERS)]
    return s, a, case.n2 and [torch.randn(LAYERS - k, case.n2, case.d, WIDTH, **kind) for k in range(LAYERS)]


def product(a, b, form):
    """Of one slice: [n1, d, n2, d], [n1, n2] or [d, n1, n2]."""
    if form == "full":
        (n1, d, _), n2 = a.shape, b.shape[0]
        return (a.flatten(0, 1) @ b.flatten(0, 1).mT).view(n1, d, n2, d)
    return a.flatten(1) @ b.flatten(1).mT if form == "trace" else a.transpose(0, 1) @ b.permute(1, 2, 0)


def unfused(s, a, b, form):
    """torch.matmul and a multiply-add, in the order of memory; the products are whole."""
    (n1, n2), d = s[0].shape, a[0].shape[2]
    shape = {"full": (n1, d, n2, d), "trace": (n1, n2), "diagonal": (d, n1, n2)}[form]
    out = s[0].new_zeros(LAYERS, *shape)
    for k in range(LAYERS):
        factor = s[k][:, None, :, None] if form == "full" else s[k]
        for q in range(LAYERS - k):
            out[k + q].addcmul_(product(a[k][q], b[k][q], form).to(out.dtype), factor)
    return out


def build(case, device):
    s, a, b = inputs(case, device)
    right = a if b is None else b
    truth = torch.stack(
        [
            sum(
                product(a[k][o - k].double(), right[k][o - k].double(), case.form)
                * (s[k].double()[:, None, :, None] if case.form == "full" else s[k].double())
                for k in range(o + 1)
            )
            for o in range(LAYERS)
        ]
    )

    def provider(call):
        return Provider({"forward": call}, lambda: {"out": call()})

    def eager(function=unfused):
        # with "bf16" the products of bfloat16 tensors, which are there: what torch has that is as fast
        left, other = a, right
        if case.precision == "bf16":
            left, other = ([x.bfloat16() for x in xs] for xs in (a, right))
        return provider(lambda: function(s, left, other, case.form))

    def ours(backend):
        if reason := why_not(backend, device):
            raise Unavailable(reason)
        word = case.precision if case.precision in ("tf32", "bf16") else "highest"
        run = functools.partial(nftk.ops.tangent_gram, s, a, b, form=case.form, precision=word, backend=backend)
        # in memory's order, as the others
        order = {"full": (0, 1, 3, 2, 4), "trace": (0, 1, 2), "diagonal": (0, 3, 1, 2)}[case.form]
        return provider(lambda: run().permute(order))

    makers = {
        "unfused": eager,
        "compile": lambda: eager(torch.compile(unfused, dynamic=False)),
        "matmul": lambda: floor(case, a, right, device),
        "matmul-2048": lambda: reference_product(2048, device),
        "torch": lambda: ours("torch"),
        "cuda": lambda: ours("cuda"),
    }
    wanted = {name: makers[name] for name in providers(case, device)}
    return Problem(wanted, {"out": truth}, work(case), functools.partial(targets, case, device))


def floor(case, a, b, device):
    """The products alone, into memory that is there; of the symmetric form strips from the diagonal on."""
    narrow = torch.bfloat16 if case.precision == "bf16" else a[0].dtype
    slices = [(x.to(narrow), y.to(narrow)) for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True)]
    if case.form == "diagonal":
        slices = [(x.transpose(0, 1), y.permute(1, 2, 0)) for x, y in slices]
    else:
        last = (0, 1) if case.form == "full" else (1, 2)
        slices = [(x.flatten(*last), y.flatten(*last).mT) for x, y in slices]
    rows = slices[0][0].shape[-2]
    ends = [rows * i // 8 for i in range(9)] if case.n2 is None else [0, rows]
    strips = [(slice(i, j), slice(i if case.n2 is None else 0, None)) for i, j in itertools.pairwise(ends)]
    outs = [torch.matmul(slices[0][0][..., i, :], slices[0][1][..., j]) for i, j in strips]

    def call():
        for x, y in slices:
            for (i, j), out in zip(strips, outs, strict=True):
                torch.matmul(x[..., i, :], y[..., j], out=out)

    run = captured(call) if device == "cuda" else call

    def outputs():
        run()
        return {str(i): out for i, out in enumerate(outs)}

    x, y = (one.double() for one in slices[-1])
    return Provider({"forward": run}, outputs, {str(n): x[..., i, :] @ y[..., j] for n, (i, j) in enumerate(strips)})


def targets(case, device, rows):
    """Of DESIGN's table, where the work fills a GPU; on a CPU the share that empirical_ntk's 1.5 asks for."""
    if device == "cpu":
        rate = rows.get(("matmul-2048", "forward"), {}).get("tflop_s")
        ours = rows.get(("torch", "forward"), {}).get("tflop_s")
        value = ours / rate if ours and rate else None
        met = None if value is None else value >= 1 / 1.5
        said = "forward: >= 1 / 1.5 of torch.matmul's rate at 2048, in turn"
        return [{"target": said, "value": value, "met": met, "ours": "torch"}]
    if case.n1 * case.d < 10_000:
        return []
    goal = 2.0 if case.n2 else 3.0
    share = at_least(rows, "cuda", "forward", "matmul_share", 0.7)
    return [share, faster(rows, ("cuda",), ("unfused",), "forward", goal)]


def bench_tangent_gram(bench):
    bench()
