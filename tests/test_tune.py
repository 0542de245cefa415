"""bench/tune.py without a GPU: what it tries, what it stores, and that kernels/choice.py reads it back."""

import concurrent.futures
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import _harness
import _kernels
import sanitize
import tune
from nftk.kernels import choice
from nftk.kernels.choice import Tiles

JOB = _kernels.Job("network_fwd", 50, 784, 10, 256, 10, "tf32")
MACHINE = {"gpu": "a GPU", "date": "2026-01-01"}


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """Let kernels/choice.py look for the choices of a GPU of capability 9.0 in an empty folder."""
    monkeypatch.setattr(choice, "STORED", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for cached in (choice.stored, choice.capability):
        cached.cache_clear()
    yield tmp_path / "sm_90.json"
    for cached in (choice.stored, choice.capability):
        cached.cache_clear()


def choose(job, rows=None, d=None):
    like = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: job.itemsize)
    return choice._choose(job.kernel, like, job.word, rows or job.rows, job.layers, job.width, d or job.d)


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_candidates(kernel):
    jobs = [job for job in tune.jobs() if job.kernel == kernel]
    assert {job.word for job in jobs} == set(tune.WORDS)
    for job in jobs:
        tried = tune.candidates(job)
        assert tried[0] == tune.default(job)
        assert 3 <= len(tried) == len(set(tried)) <= 30
        for tiles in tried:
            for size in (tiles.block_b, tiles.block_m, tiles.block_n):
                assert size >= 16
                assert size & (size - 1) == 0
    columns = {tiles.splits for tiles in tune.candidates(jobs[0])}
    if kernel in ("network_fwd", "network_bwd"):
        assert columns == set(tune.COLUMNS)


def test_fastest_is_stored_and_read_back(gpu):
    tried = tune.candidates(JOB)
    times = {tiles: 10.0 + i for i, tiles in enumerate(tried)}
    times[tried[4]] = 3.0
    clock = lambda call: times[call()]  # noqa: E731
    trials = [tune.trial(JOB, lambda t=t: t, lambda t=t: "off" if t == tried[2] else "", clock, t) for t in tried]
    fits = [t for t in trials if t.ms is not None]
    assert trials[2].reason == "off"
    entry = tune.best(JOB, trials)
    assert (entry["ms"], entry["default_ms"]) == (3.0, 10.0)
    assert (entry["tried"], entry["failed"]) == (len(fits), len(trials) - len(fits))

    tune.write(gpu, tune.merged({}, {JOB.kernel: [entry]}, MACHINE))
    assert json.loads(gpu.read_text())["machine"] == MACHINE
    assert choose(JOB) == tried[4]
    # a shape near by is served, one far away and another precision are not
    assert choose(JOB, rows=100) == tried[4]
    assert choose(JOB, rows=5000) == choice.default_tiles(JOB.kernel, JOB.word, 4, 5000, 256, 10)
    other = _kernels.Job("network_fwd", 50, 784, 10, 256, 10, "bf16")
    assert choose(other) == tune.default(other)


def test_no_time_no_entry():
    assert tune.best(JOB, []) is None
    assert tune.best(JOB, [tune.Trial(tune.default(JOB), None, "off")]) is None


def test_a_launch_that_fails_is_a_reason():
    def call():
        raise RuntimeError("out of resource: shared memory")

    told = tune.trial(JOB, call, lambda: "", lambda call: call(), tune.default(JOB))
    assert told.ms is None
    assert told.reason == "RuntimeError: out of resource: shared memory"


def test_merging_replaces_a_job_and_keeps_the_others():
    def entry(rows, ms):
        return {**JOB.key(), "rows": rows, "tiles": {}, "ms": ms}

    old = tune.merged({}, {"network_fwd": [entry(50, 2.0), entry(1024, 5.0)], "readout_fwd": [entry(50, 1.0)]}, {})
    new = tune.merged(old, {"network_fwd": [entry(50, 1.5)]}, MACHINE)
    assert [(e["rows"], e["ms"]) for e in new["kernels"]["network_fwd"]] == [(50, 1.5), (1024, 5.0)]
    assert [e["ms"] for e in new["kernels"]["readout_fwd"]] == [1.0]
    assert new["machine"] == MACHINE


def test_forced_tiles_are_taken_and_given_back():
    before = choice._choose
    tiles = Tiles(16, 16, 16, 0, 4, 2)
    job = _kernels.Job("readout_fwd", 33, 4, 3, 20, 5, "tf32")
    with tune.forced(tiles):
        assert _kernels.taken(job).block_b == 16
        assert _kernels.taken(job).splits >= 1
    assert choice._choose is before


def test_sanitize_covers_every_kernel():
    runs = [(job.kernel, job.word, tiles.splits) for job, _, tiles in sanitize.runs()]
    assert {run[:2] for run in runs} == {(kernel, word) for kernel in tune.KERNELS for word in tune.WORDS}
    assert {run[::2] for run in runs} == {(kernel, splits) for kernel in tune.KERNELS for splits in (1, 2)}


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_checker(grid, kernel, monkeypatch):
    """Right kernels pass, under the interpreter; a wrong value is told."""
    grid.order = "together"
    job = _kernels.Job(kernel, 18, 5, 2, 20, 3, "tf32x3")
    data = _kernels.Data(job, "cpu", [20, 7])
    with tune.forced(Tiles(16, 16, 16, 2, 4, 2)):
        wrong = _kernels.checker(job, "cpu", data)
        assert wrong() == ""
        launch = _kernels.call(job, "cpu", data)
        monkeypatch.setattr(_kernels, "call", lambda *args: lambda: {k: v * 1.001 for k, v in launch().items()})
        assert "is off by" in _kernels.checker(job, "cpu", data)()


class Pool(concurrent.futures.ThreadPoolExecutor):
    """Threads where tune takes processes."""

    def __init__(self, workers, context):
        super().__init__(1)


def test_tune(grid, monkeypatch):
    """All of it, with a clock that likes many splits and a compiler that fails once."""
    grid.order = "together"
    job = _kernels.Job("network_bwd_weights", 70, 5, 2, 20, 3, "tf32")
    tried = [tune.default(job), *(Tiles(16, 16, 16, splits, 4, 2) for splits in (1, 2, 3))]
    compiled = []

    def run_once(job, tiles):
        compiled.append(tiles)
        return "OutOfResources: shared memory" if tiles.splits == 3 else ""

    def device_times(call, milliseconds, *, cold):
        call()
        return [1.0 / choice._choose().splits if choice._choose().splits else 9.0]

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(tune, "jobs", lambda: [job])
    monkeypatch.setattr(tune, "candidates", lambda job: tried)
    monkeypatch.setattr(tune, "run_once", run_once)
    monkeypatch.setattr(_harness, "device_times", device_times)
    saved = []
    found, lines = tune.tune(60.0, "cpu", lambda found: saved.append({k: list(v) for k, v in found.items()}))
    assert saved == [found]
    (entry,) = found["network_bwd_weights"]
    assert len(compiled) == 4
    assert entry["tiles"]["splits"] == 2
    assert (entry["ms"], entry["default_ms"], entry["failed"]) == (0.5, 9.0, 1)
    assert "500.0 us (default 9000.0)" in lines[0]
    assert "OutOfResources" in lines[0]
    assert tune.tune(0.0, "cpu", saved.append) == ({}, [f"{job}: no time left"])
