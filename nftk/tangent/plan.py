"""Under a budget of bytes: how many examples and which layers at a time, for the least work done twice."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from nftk._checks import check_integer
from nftk.ops.tangent_gram_torch import scratch_bytes
from nftk.tangent.chain import Chain
from nftk.tangent.request import Request

# of the free memory, beyond what the output takes
SHARE = 0.5
_COLUMNS = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A rectangle of some outputs: rows and columns of examples, outputs first to last."""

    outputs: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Groups of readouts that go back together, and how many rows and columns are held at once."""

    groups: tuple[tuple[int, int], ...]
    rows: int
    columns: int
    bytes: int  # at most, beyond inputs and output

    def tiles(self, groups: Sequence[tuple[int, int]], n1: int, n2: int, symmetric: bool) -> Iterator[Tile]:
        """All tiles in order, of these ranges of outputs: a block of rows is held while the columns pass by.

        With symmetric a tile is of the upper triangle; one whose rows and columns are the same range is symmetric.
        """
        for group in groups:
            for top in range(0, n1, self.rows):
                bottom = min(top + self.rows, n1)
                for left in range(top if symmetric else 0, n2, self.columns):
                    right = min(left + self.columns, n2)
                    if not symmetric or left >= bottom:
                        yield Tile(group, (top, bottom), (left, right))
                        continue
                    # rows is a multiple of columns, so that no tile straddles the end of the block
                    if left > top:
                        yield Tile(group, (top, left), (left, right))
                    yield Tile(group, (left, right), (left, right))


@dataclasses.dataclass(frozen=True)
class Costs:
    """Counted from the shapes; per example or per pair."""

    state_bytes: int
    delta_bytes: tuple[int, ...]  # by function: its deltas of all layers
    walk_flops: tuple[int, ...]
    forward_flops: int
    gram_flops: int  # of a pair, for the factors
    gram_bytes: int
    fixed_bytes: int


def costs(chain: Chain, request: Request, n1: int, n2: int) -> Costs:
    """Count what a plan for n1 and n2 examples needs to know."""
    widths, size, form = chain.widths, torch.finfo(chain.dtype).bits // 8, request.form
    d = 1 if request.reduction == "sum_logits" else chain.out_features
    deltas, walks = [], []
    depths = [r.layer for r in chain.readouts]
    for depth in depths if request.per == "layer" else [max(depths)]:
        inner = widths[1 : depth + 1]
        deltas.append(size * d * sum(inner))
        walks.append(2 * d * sum(n * later for n, later in zip(inner, inner[1:], strict=False)))
    forward = 2 * sum(n * later for n, later in zip(widths, widths[1:], strict=False))
    # h_l and phi', of which the last layer's g is alive beside them for a moment, and all f_l
    states = 2 * sum(widths[1:]) + max(widths) + (len(depths) * chain.out_features if request.include_omega else 0)
    # of a pair: a Gram matrix a layer, its factor where that is another matrix, and diagonals where outputs differ
    grams = 2 * len(widths) + (chain.out_features if request.include_omega else 0)
    if request.normalize is not None or request.weights is not None:
        grams += (len(depths) + 2) * (1 if form == "trace" else d)
    fixed = scratch_bytes(form, n1, n2, d, len(chain.layers), size, chain.device.type)
    return Costs(size * states, tuple(deltas), tuple(walks), forward, 2 * sum(widths), size * grams, fixed)


def make_plan(
    cost: Costs, n1: int, n2: int, *, symmetric: bool, sides_differ: bool, may_group: bool, budget: int, op: str
) -> Plan:
    """The plan with the fewest operations done twice whose memory stays under the budget, or ValueError."""
    # with sides_differ rows and columns have tangents of their own even where the examples are the same
    n1, n2 = max(n1, 1), max(n2, 1)
    walked_apart = not symmetric or sides_differ
    pairs = n1 * n2 * (0.5 if symmetric else 1.0)
    best: tuple[float, Plan] | None = None
    least = None
    for count in range(1, len(cost.delta_bytes) + 1) if may_group else (1,):
        groups = _split(cost.delta_bytes, count)
        each = cost.state_bytes + max(sum(cost.delta_bytes[a:b]) for a, b in groups)
        walks = sum(sum(cost.walk_flops[a:b]) + cost.forward_flops for a, b in groups)
        for columns in sorted({min(c, n2) for c in _COLUMNS}):
            whole = cost.fixed_bytes + each * (n1 + columns * walked_apart) + cost.gram_bytes * n1 * columns
            smallest = cost.fixed_bytes + each * (1 + columns) + cost.gram_bytes * columns
            least = min(smallest, whole, least or whole)
            if whole <= budget:
                rows, again, size = n1, n2 if walked_apart else 0, whole
            else:
                rows = (budget - cost.fixed_bytes - each * columns) // (each + cost.gram_bytes * columns)
                # columns that are among the rows held are taken from there, so blocks of rows are whole columns
                rows = min(rows - rows % columns if symmetric else rows, n1)
                if rows < 1:
                    continue
                again = -(-n1 // rows) * n2 // (2 if symmetric else 1)
                size = cost.fixed_bytes + each * (rows + columns) + cost.gram_bytes * rows * columns
            # narrow columns are slower by themselves
            work = (n1 + again) * walks * (1 + 8 / columns) + pairs * cost.gram_flops * len(groups)
            if best is None or work < best[0]:
                best = work, Plan(groups, rows, columns, size)
    if best is None:
        raise ValueError(f"nftk.{op}: memory_budget must be at least {least} bytes for this network, got {budget}")
    return best[1]


def _split(sizes: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """Cut 0 .. len(sizes) into count ranges of about equal sums."""
    groups: list[tuple[int, int]] = []
    total, start, passed = sum(sizes), 0, 0
    for i, size in enumerate(sizes):
        passed += size
        left = len(sizes) - i - 1
        if passed * count >= total * (len(groups) + 1) or left < count - len(groups):
            groups.append((start, i + 1))
            start = i + 1
    if start < len(sizes):
        groups.append((start, len(sizes)))
    return tuple(groups)


def free_bytes(device: torch.device) -> int:
    """What is free there: of the machine, of the limits around this process, or of the GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    found = [size for size in (_meminfo(), *_cgroup()) if size is not None]
    # a machine that does not tell: as much as a small one has
    return min(found, default=4 << 30)


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cgroup() -> Iterator[int]:
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            yield max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0)
        except (OSError, ValueError):
            continue  # not there, or "max"


def check_budget(budget: int | None, device: torch.device, op: str) -> int:
    """The budget in bytes: what was given, or the share of what is free."""
    return int(SHARE * free_bytes(device)) if budget is None else check_integer(op, "memory_budget", budget, 1)
