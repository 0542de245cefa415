"""What every bench shares: ceilings, clocks, counting, and correctness before time. bench/README.md explains a row."""

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROUNDS = {"cpu": 11, "cuda": 3}
# time given to one provider in one round of one pass
MILLISECONDS = {"cpu": 15.0, "cuda": 8.0}
# after so many seconds and three rounds no other round begins: a call may take a second itself
SECONDS = {"cpu": 60.0, "cuda": 12.0}
# larger than any L2 cache, so that writing it leaves nothing of the inputs there
FLUSH_BYTES = 256 << 20
# what may be lost beyond eager torch's error, relative: in the order of a sum, by rounding the operands of a product
ROUNDOFF = {
    "highest": 4 * torch.finfo(torch.float32).eps,
    "tf32": 2.0**-10,
    "bf16": torch.finfo(torch.bfloat16).eps,
    "float64": 16 * torch.finfo(torch.float64).eps,
}


class Work(NamedTuple):
    """The fewest bytes that must move, each input read once and each output written once, and the products' flops."""

    bytes: int
    flops: int

    def __add__(self, other):
        return Work(self.bytes + other.bytes, self.flops + other.flops)


class Unavailable(Exception):
    """A provider that cannot run here, with the reason."""


@dataclass
class Provider:
    """One way to do the work.

    Attributes:
        passes: The timed calls, by "forward", "backward" and "both"; a pass that the way does not have is left out.
        outputs: Computes what is compared with the truth, by name.
        truth: Its own truth where it does another thing than the others (the products alone, the plain MLP).
        work: Its own work, where it is no way to do the others' at all (a product to compare rates with).
    """

    passes: dict[str, Callable[[], Any]]
    outputs: Callable[[], dict[str, Tensor]]
    truth: dict[str, Tensor] | None = None
    work: Work | None = None


@dataclass
class Problem:
    """A case with its data.

    Attributes:
        makers: How each provider is made; eager torch is the first.
        truth: What is true, in float64.
        work: What each pass has to do.
        targets: What the rows are held to.
        slack: Relative error allowed to gradients on top: a g that rounds to the other side of 0 has another slope.
    """

    makers: dict[str, Callable[[], Provider]]
    truth: dict[str, Tensor]
    work: dict[str, Work]
    targets: Callable[[dict[tuple[str, str], dict]], list[dict]] = lambda rows: []
    slack: float = 0.0


@dataclass
class Measured:
    """What a case gave."""

    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    targets: list[dict] = field(default_factory=list)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Let torch's own float32 products take a precision, for the providers that follow it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def dtype_of(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "float64": torch.float64}.get(precision, torch.float32)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str) -> dict[str, Any]:
    """Copy bandwidth, bytes read and written, in GB/s, and torch.matmul's best rate in TFLOP/s by precision.

    A ceiling is what was reached once, so each is the fastest of its runs.
    """
    on_gpu = device == "cuda"
    source = torch.randint(0, 255, ((2 << 30) if on_gpu else (256 << 20),), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = device_times if on_gpu else functools.partial(host_times, batches=6)
    span = 60.0 if on_gpu else 400.0
    seconds = min(clock(functools.partial(target.copy_, source), span)) * 1e-3
    found: dict[str, Any] = {"copy_gb_s": 2 * source.numel() / seconds / 1e9, "matmul_tflop_s": {}, "matmul_sizes": {}}
    del source, target
    for precision in ("highest", "tf32", "bf16", "float64") if on_gpu else ("highest",):
        rates = {}
        with matmul_precision(precision):
            for n in (4096, 6144, 8192) if on_gpu else (1024, 1536, 2048):
                a, b = (torch.randn(n, n, device=device, dtype=dtype_of(precision)) for _ in range(2))
                out = torch.empty_like(a)
                seconds = min(clock(functools.partial(torch.mm, a, b, out=out), span)) * 1e-3
                rates[n] = 2 * n**3 / seconds / 1e12
        found["matmul_tflop_s"][precision] = max(rates.values())
        found["matmul_sizes"][precision] = {str(n): rate for n, rate in rates.items()}
    return found


_flush: list[Tensor] = []


def device_times(call: Callable[[], Any], milliseconds: float, *, cold: bool = True) -> list[float]:
    """Times of single calls on a GPU, in ms, by events.

    Before each one the L2 cache is overwritten, or with cold=False the GPU is kept busy, so that the host is ahead.
    """
    if not _flush:
        _flush.append(torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda"))

    def run(n):
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(n)]
        for start, end in pairs:
            _flush[0].zero_() if cold else torch.cuda._sleep(200_000)
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    call()
    first = run(3)
    guess = statistics.median(first)
    return first if 3 * guess > milliseconds else run(max(3, min(200, round(milliseconds / max(guess, 1e-3)))))


def host_times(call: Callable[[], Any], milliseconds: float, device: str = "cpu", batches: int = 3) -> list[float]:
    """Mean times of calls that follow each other at once, in ms, by the host's clock, a few batches of them."""

    def run(n):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(n):
            call()
        synchronize(device)
        return (time.perf_counter() - start) * 1e3 / n

    guess = run(1)
    if guess > 8 * milliseconds:
        return [guess]
    n = max(1, min(1000, round(milliseconds / batches / max(guess, 1e-3))))
    return [run(n) for _ in range(batches)]


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of a CUDA graph of a call; it gives the captured call's own result, written anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay():
        graph.replay()
        return result

    return replay


def products(pairs: list[tuple[Tensor, Tensor]], device: str) -> tuple[Callable[[], Any], Callable[[], dict], dict]:
    """The products alone, on a GPU in one CUDA graph, into memory that is there: the call, its outputs, the truth."""
    outs = [torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device) for a, b in pairs]

    def call():
        for (a, b), out in zip(pairs, outs, strict=True):
            torch.mm(a, b, out=out)

    call = captured(call) if device == "cuda" else call

    def outputs():
        call()
        return {str(i): out for i, out in enumerate(outs)}

    return call, outputs, {str(i): a.double() @ b.double() for i, (a, b) in enumerate(pairs)}


def reference_product(n: int, device: str, dtype: torch.dtype = torch.float32) -> Provider:
    """torch.matmul of two n x n matrices, timed in turn with the rest: the rate that a share of it is of."""
    call, outputs, truth = products([tuple(torch.randn(2, n, n, device=device, dtype=dtype))], device)
    return Provider({"forward": call}, outputs, truth, Work(3 * n * n * dtype.itemsize, 2 * n**3))


def error(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth; NaN stays NaN."""
    scale = truth.norm().item()
    return (found.detach().double() - truth).norm().item() / (scale or 1.0)


def check(name: str, provider: Provider, problem: Problem, eager: dict[str, float], precision: str) -> float:
    """Assert that each output is at most twice as far from the truth as eager torch's, and return the largest error.

    eager is filled by the first provider that is checked against the common truth, which must be eager torch itself
    and is held to a bound of its own: a hundred roundings.
    """
    own = provider.truth is not None
    truth = problem.truth if provider.truth is None else provider.truth
    found = {key: t.detach().clone() for key, t in provider.outputs().items()}
    if missing := set(truth) - set(found):
        raise AssertionError(f"{name} gave no {', '.join(sorted(missing))}")
    errors = {key: error(found[key], truth[key]) for key in truth}
    for key, value in errors.items():
        allowed = 100 * ROUNDOFF[precision] if own or key not in eager else 2 * eager[key] + ROUNDOFF[precision]
        allowed += problem.slack * key.startswith("grad")
        if not value <= allowed:
            raise AssertionError(f"{name}: {key} is off by {value:.2e}, allowed {allowed:.2e}")
    if not own and not eager:
        eager.update(errors)
    return max(errors.values(), default=0.0)


def measure(problem: Problem, case: Any, device: str, limits: dict | None, may_compile: Callable[[], bool]) -> Measured:
    """Make and check every provider, then time all that passed, in turn, round by round; limits None: no clock."""
    found, ready, eager = Measured(), {}, {}
    with matmul_precision(case.precision):
        for name, make in problem.makers.items():
            try:
                if name.startswith("compile") and not may_compile():
                    raise Unavailable("no time left to compile, or timing is off")
                provider = make()
                found.errors[name] = check(name, provider, problem, eager, case.precision)
                ready[name] = provider
                found.calls[name] = provider.passes.get("both") or next(iter(provider.passes.values()))
            except Unavailable as reason:
                found.missing[name] = str(reason)
            except Exception as problem_of_it:
                reason = f"{type(problem_of_it).__name__}: {str(problem_of_it)[:500]}"
                # a compiler that cannot be had, or breaks, is no fault of ours
                (found.missing if name.startswith("compile") else found.failed)[name] = reason
        problem.truth.clear()
        for provider in ready.values():
            provider.truth = None
        if limits is None:
            return found
        for kind, work in problem.work.items():
            calls = {name: p.passes[kind] for name, p in ready.items() if kind in p.passes}
            for name, times in clocked(calls, device).items():
                own = ready[name].work or work
                found.rows[name, kind] = row(name, kind, times, own, limits, case.precision) | {
                    "error": found.errors[name]
                }
    found.targets = problem.targets(found.rows)
    return found


def clocked(calls: dict[str, Callable[[], Any]], device: str) -> dict[str, dict[str, list[float]]]:
    """Times of calls, taken in turn so that ratios hold while the machine's speed drifts."""
    times: dict[str, dict[str, list[float]]] = {name: {"ms": [], "wall_ms": []} for name in calls}
    began = time.perf_counter()
    for done in range(ROUNDS[device]):
        if done >= 3 and time.perf_counter() - began > SECONDS[device]:
            break
        for name, call in calls.items():
            if device == "cuda":
                times[name]["ms"] += device_times(call, MILLISECONDS[device])
            times[name]["wall_ms"] += host_times(call, MILLISECONDS[device], device)
    if device == "cuda":
        for name, call in calls.items():
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            times[name]["peak_mb"] = [(torch.cuda.max_memory_allocated() - before) / 1e6]
    else:
        for found in times.values():
            # one clock on a CPU: what a caller waits is what it takes
            found["ms"] = found["wall_ms"]
    return times


def row(
    name: str, kind: str, times: dict[str, list[float]], work: Work, limits: dict, precision: str
) -> dict[str, Any]:
    """One line of a record."""
    quantiles = {f"{key}_{q}": quantile(times[key], q / 100) for key in ("ms", "wall_ms") for q in (20, 50, 80)}
    seconds = quantiles["ms_50"] * 1e-3
    rates = {"gb_s": work.bytes / seconds / 1e9, "tflop_s": work.flops / seconds / 1e12}
    floor = max(work.bytes / limits["copy_gb_s"] / 1e6, work.flops / limits["matmul_tflop_s"][precision] / 1e9)
    return {
        "provider": name,
        "pass": kind,
        **quantiles,
        **({"peak_mb": times["peak_mb"][0]} if "peak_mb" in times else {}),
        "bytes": work.bytes,
        "flops": work.flops,
        **rates,
        "copy_share": rates["gb_s"] / limits["copy_gb_s"],
        "matmul_share": rates["tflop_s"] / limits["matmul_tflop_s"][precision],
        "floor_ms": floor,
        "floor_share": floor / quantiles["ms_50"],
    }


def quantile(values: list[float], q: float) -> float:
    """The value below which a share q of the values lies, between two of them by proportion."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def faster(rows: dict, ours: tuple[str, ...], theirs: tuple[str, ...], kind: str, goal: float) -> dict[str, Any]:
    """A target "at least goal times as fast", the fastest of ours against the fastest of theirs, by the wall clock."""
    of = {name: row["wall_ms_50"] for (name, passed), row in rows.items() if passed == kind}
    mine, other = ([name for name in of if name in names] for names in (ours, theirs))
    said = f"{kind}: >= {goal:g}x {' or '.join(theirs)}"
    if not mine or not other:
        return {"target": said, "value": None, "met": None}
    best, rival = min(mine, key=of.__getitem__), min(other, key=of.__getitem__)
    value = of[rival] / of[best]
    return {"target": said, "value": value, "met": value >= goal, "ours": best, "theirs": rival}


def at_least(rows: dict, name: str, kind: str, column: str, goal: float) -> dict[str, Any]:
    """A target for a share in a row."""
    found = rows.get((name, kind), {}).get(column)
    met = None if found is None else found >= goal
    return {"target": f"{kind}: {column} >= {goal:g}", "value": found, "met": met, "ours": name}
