"""What every bench shares: the device, the cases, the machine in its record, and the ceilings of the session."""

import gc
import json
import re
import sys
import time
from pathlib import Path

import _harness
import _machine
import pytest
import torch

RESULTS = Path(__file__).parent / "results"
# programs, not tests: nothing in them is to be imported for doctests
collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("bench_")]
collect_ignore.append("peers")


def pytest_addoption(parser):
    parser.addoption(
        "--record", default=str(RESULTS), help="Folder for the records; the committed ones are in bench/results."
    )
    parser.addoption("--device", choices=["cpu", "cuda"], help="Default: cuda where there is one.")
    parser.addoption(
        "--seconds",
        type=float,
        default=float("inf"),
        help="After so many, torch.compile is left out of what is to come.",
    )


def device_of(config):
    return config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc):
    """Give a bench that asks for a case and a provider all of its module's CASES for the device."""
    if "provider" not in metafunc.fixturenames:
        return
    device, pairs = device_of(metafunc.config), []
    for case in metafunc.module.CASES:
        if device in case.devices:
            # one worker for all of a case, where there are several
            marks = [pytest.mark.xdist_group(case.id)] if metafunc.config.pluginmanager.hasplugin("xdist") else []
            # a warning of a compiler says nothing of a time
            marks.append(pytest.mark.filterwarnings("ignore"))
            for provider in metafunc.module.providers(case, device):
                pairs.append(pytest.param(case, provider, id=f"{case.id}-{provider}", marks=marks))
    metafunc.parametrize(("case", "provider"), pairs)


@pytest.fixture(scope="session")
def device(request):
    return device_of(request.config)


@pytest.fixture(scope="session")
def ceilings(request, device):
    """Copy bandwidth and matmul rate of this session; None where timing is off."""
    return None if request.config.getoption("benchmark_disable") else _harness.ceilings(device)


@pytest.fixture(scope="session")
def _of_session():
    """The case that was measured last, so that its providers' benches share it."""
    return {"started": time.monotonic()}


@pytest.fixture
def measured(request, case, device, folder, ceilings, record, _of_session):
    """What measuring the case gave; done at the first of its providers, and recorded."""
    key = request.module.__name__, case.id
    if _of_session.get("key") == key:
        return _of_session["measured"]
    for stale in ("key", "measured"):
        _of_session.pop(stale, None)
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    limit = request.config.getoption("--seconds")

    def may_compile():
        # where only the running is tried, compilers would take most of the time
        return ceilings is not None and time.monotonic() - _of_session["started"] < limit

    problem = request.module.build(case, device)
    found = _harness.measure(problem, case, device, ceilings, may_compile)
    if ceilings is not None:
        op = request.module.__name__.removeprefix("bench_")
        result = {
            "op": op,
            "case": case.name,
            "precision": case.precision,
            "shape": case.sizes(),
            "rows": list(found.rows.values()),
            "targets": found.targets,
            "missing": found.missing,
            "failed": found.failed,
            "ceilings": ceilings,
        }
        record(f"{folder}/{op}_{case.id}", result)
    _of_session.update(key=key, measured=found)
    return found


@pytest.fixture
def bench(request, benchmark, measured, case, provider, device):
    """Return a function that reports a provider's row; pytest-benchmark's table has the wall clock's."""

    def run():
        if provider in measured.missing:
            pytest.skip(f"{case.id}, {provider}: {measured.missing[provider]}")
        if provider in measured.failed:
            pytest.fail(f"{case.id}, {provider}: {measured.failed[provider]}")
        call = measured.calls[provider]
        benchmark.group = f"{request.module.__name__.removeprefix('bench_')} {case.id}"
        for (name, kind), row in measured.rows.items():
            if name == provider:
                benchmark.extra_info[kind] = row

        def once():
            call()
            _harness.synchronize(device)

        with _harness.matmul_precision(case.precision):
            benchmark.pedantic(once, rounds=5, iterations=3, warmup_rounds=1)

    return run


@pytest.fixture(scope="session")
def folder(device):
    """Where the records of a device are: a folder of its name."""
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@pytest.fixture(scope="session")
def machine(device):
    return _machine.machine(device)


@pytest.fixture
def record(request, machine):
    """Return a function that writes one record as a JSON file, replacing the last one of its name."""

    def write(name, result):
        path = Path(request.config.getoption("--record")) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result | {"machine": machine}, indent=2) + "\n")

    return write
