"""python bench/tune.py [--seconds 120]: find good tiles for this kind of GPU and store them for kernels/choice.py.

Tries a short list of tiles for each kernel, shape and precision, checks what each computes against float64 before it
is timed, and merges the fastest into kernels/tuned/sm_<capability>.json. Other processes compile ahead of the clock.
"""

import argparse
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import _kernels
import torch
from _kernels import Job
from nftk.kernels import choice
from nftk.kernels.choice import Tiles

KERNELS = ("network_fwd", "network_bwd", "network_bwd_weights", "readout_bwd", "readout_fwd")
COLUMNS = (1, 2, 4, 8, 16)
WORDS = ("tf32x3", "tf32", "bf16")
# (rows, m, layers, width, d): the paper's two kinds first; each serves shapes within a factor of 4 (kernels/choice.py)
SHAPES = [
    (50, 784, 10, 256, 10),
    (25, 768, 5, 128, 2),
    (65536, 784, 10, 256, 10),
    (1024, 784, 10, 256, 10),
    (8192, 784, 10, 1024, 10),
    (8192, 784, 10, 64, 10),
    (65536, 784, 10, 256, 256),
]
# programs that one multiprocessor could hold by registers; more tiles of accumulators than this spill
_MOST_ACCUMULATORS = 128 * 256


def jobs() -> list[Job]:
    """What is tuned, the most wanted first."""
    every = [
        Job(kernel, rows, m, layers, width, d, word)
        for (rows, m, layers, width, d), word, kernel in itertools.product(SHAPES, WORDS, KERNELS)
    ]
    return [job for job in every if job.d <= 64 or job.kernel.startswith("readout")]


def default(job: Job) -> Tiles:
    capability = choice.capability(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return choice.default_tiles(job.kernel, job.word, job.itemsize, job.rows, job.width, job.d, capability)


def candidates(job: Job) -> list[Tiles]:
    """The default and its neighbours, without repeats."""
    start = default(job)
    found = [start, *_neighbours(job, start)]
    if job.kernel in ("network_fwd", "network_bwd") and job.rows <= 256:
        # programs that share a block of rows each need a part of the columns
        for columns, block_m in itertools.product(COLUMNS[1:], (32, 64)):
            part = max(16, _power_of_two(math.ceil(job.width / columns)))
            found.append(Tiles(16, block_m, part, columns, 4, 3))
    return list(dict.fromkeys(t for t in found if _possible(job, t)))


def _neighbours(job: Job, start: Tiles) -> Iterable[Tiles]:
    change = dataclasses.replace
    if job.kernel == "readout_fwd":
        for block_b, block_n, stages in itertools.product((32, 64, 128), (64, 128), (2, 4)):
            yield change(start, block_b=block_b, block_n=block_n, num_stages=stages)
        yield change(start, splits=1)
        yield change(start, splits=job.layers)
    elif job.kernel == "readout_bwd":
        for block_b, block_n in itertools.product((32, 64, 128), (32, 64, 128)):
            yield change(start, block_b=block_b, block_n=block_n, num_warps=4 if block_b * block_n <= 4096 else 8)
        yield change(start, splits=1)
        yield change(start, num_stages=3)
    elif job.kernel == "network_bwd_weights":
        for block_m, block_n in ((32, 32), (32, 64), (64, 64), (64, 128), (128, 128)):
            for block_b in (32, 64):
                warps = 4 if block_m * block_n <= 4096 else 8
                yield change(start, block_b=block_b, block_m=block_m, block_n=block_n, num_warps=warps)
        yield change(start, splits=1)
    else:
        for block_b, block_n in itertools.product((16, 32) if job.rows <= 256 else (32, 64, 128), (64, 128, 256)):
            for block_m in (32, 64):
                warps = 4 if block_b * block_n <= 4096 else 8
                yield change(start, block_b=block_b, block_m=block_m, block_n=block_n, num_warps=warps)


def _possible(job: Job, tiles: Tiles) -> bool:
    walks = job.kernel in ("network_fwd", "network_bwd")
    if job.kernel == "network_bwd_weights":
        return True
    if walks and tiles.block_n > max(16, _power_of_two(job.width)):
        return False
    return tiles.block_b * tiles.block_n <= _MOST_ACCUMULATORS // (2 if tiles.num_warps == 4 else 1)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass
class Trial:
    """What one choice of tiles gave: a time, or why there is none."""

    tiles: Tiles
    ms: float | None
    reason: str = ""


def best(job: Job, trials: list[Trial]) -> dict | None:
    """The entry for the fastest trial, in the form that kernels/choice.py reads; None without a time."""
    timed = [trial for trial in trials if trial.ms is not None]
    if not timed:
        return None
    fastest = min(timed, key=lambda trial: trial.ms)
    usual = next((trial.ms for trial in timed if trial.tiles == default(job)), None)
    return {
        **job.key(),
        "tiles": dataclasses.asdict(fastest.tiles),
        "ms": fastest.ms,
        "default_ms": usual,
        "tried": len(timed),
        "failed": len(trials) - len(timed),
    }


def merged(old: dict, found: dict[str, list[dict]], machine: dict) -> dict:
    """Entries of both, the new one where both have one for the same job."""
    kernels = {kernel: list(entries) for kernel, entries in old.get("kernels", {}).items()}
    for kernel, entries in found.items():
        keys = [_key(entry) for entry in entries]
        kept = [entry for entry in kernels.get(kernel, []) if _key(entry) not in keys]
        kernels[kernel] = sorted(kept + entries, key=_key)
    return {"machine": machine, "kernels": kernels}


def _key(entry: dict) -> tuple:
    return tuple(entry[name] for name in ("rows", "layers", "width", "d", "precision", "itemsize"))


def write(path: Path, document: dict) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(path)


@contextlib.contextmanager
def forced(tiles: Tiles):
    """Let kernels/choice.py take these tiles, and fill in and bound their splits as it does."""
    before = choice._choose
    choice._choose = lambda *args, **keywords: tiles
    try:
        yield
    finally:
        choice._choose = before


def resolved(job: Job, tiles: Tiles) -> Tiles:
    """The tiles as a launch takes them, with their splits filled in."""
    with forced(tiles):
        return _kernels.taken(job)


def run_once(job: Job, tiles: Tiles) -> str:
    """In another process: compile a kernel by running it on few rows; returns what went wrong."""
    try:
        with forced(tiles):
            _kernels.call(dataclasses.replace(job, rows=min(job.rows, 64)), "cuda")()
        torch.cuda.synchronize()
    except Exception as problem:
        return f"{type(problem).__name__}: {str(problem)[:200]}"
    return ""


def trial(
    job: Job, call: Callable, check: Callable[[], str], clock: Callable[[Callable], float], tiles: Tiles
) -> Trial:
    """Check what a choice computes, then time it."""
    try:
        with forced(tiles):
            if tiles.splits and _kernels.taken(job).splits != tiles.splits:
                return Trial(tiles, None, "splits that do not fit the GPU")
            wrong = check()
            return Trial(tiles, None, wrong) if wrong else Trial(tiles, clock(call))
    except Exception as problem:
        return Trial(tiles, None, f"{type(problem).__name__}: {str(problem)[:200]}")


def tune(seconds: float, device: str, save: Callable[[dict], None]) -> tuple[dict[str, list[dict]], list[str]]:
    """Time what the seconds allow, saving after each job; returns entries by kernel, and a line for each job."""
    from _harness import device_times

    end = time.monotonic() + seconds
    found: dict[str, list[dict]] = {}
    lines = []
    workers = max(1, min(14, (os.cpu_count() or 1) - 2))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        # rows do not enter a compilation
        compiled: dict[tuple, concurrent.futures.Future] = {}
        for job in jobs():
            for tiles in candidates(job):
                key = _compilation(job, tiles)
                if key not in compiled:
                    compiled[key] = pool.submit(run_once, job, key[-1])
        for job in jobs():
            if time.monotonic() > end:
                lines.append(f"{job}: no time left")
                continue
            call, check = _kernels.call(job, device), _kernels.checker(job, device)
            trials = []
            for tiles in candidates(job):
                if time.monotonic() > end and trials:
                    break
                try:
                    reason = compiled[_compilation(job, tiles)].result(max(0.1, end - time.monotonic()))
                except concurrent.futures.TimeoutError:
                    reason = "not compiled in time"
                except concurrent.futures.process.BrokenProcessPool as problem:
                    reason = f"the compiling process died: {problem}"
                if reason:
                    trials.append(Trial(tiles, None, reason))
                    continue
                cold = job.bytes() > 64e6
                clock = lambda call, cold=cold: statistics.median(device_times(call, 5.0, cold=cold))  # noqa: E731
                trials.append(trial(job, call, check, clock, tiles))
            entry = best(job, trials)
            if entry is not None:
                found.setdefault(job.kernel, []).append(entry)
                save(found)
            lines.append(_told(job, entry, trials))
            print(lines[-1], flush=True)
        pool.shutdown(wait=False, cancel_futures=True)
    return found, lines


def _compilation(job: Job, tiles: Tiles) -> tuple:
    return job.kernel, job.word, job.sizes(), resolved(job, tiles)


def _told(job: Job, entry: dict | None, trials: list[Trial]) -> str:
    reasons = sorted({t.reason.split(":")[0] for t in trials if t.reason})
    if entry is None:
        return f"{job}: nothing ran ({'; '.join(reasons)})"
    usual = "-" if entry["default_ms"] is None else f"{entry['default_ms'] * 1e3:.1f}"
    tiles = tuple(entry["tiles"].values())
    failed = f"; {entry['failed']} left out ({'; '.join(reasons)})" if entry["failed"] else ""
    return f"{job}: {entry['ms'] * 1e3:.1f} us (default {usual}) with {tiles}{failed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=choice.STORED)
    told = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/tune.py: torch finds no CUDA GPU")
    path = told.out / f"sm_{choice.capability(torch.device('cuda'))}.json"
    import triton

    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    old = json.loads(path.read_text()) if path.exists() else {}
    found, _ = tune(told.seconds, "cuda", lambda found: write(path, merged(old, found, machine)))
    print(f"{sum(map(len, found.values()))} choices in {path}")


if __name__ == "__main__":
    main()
