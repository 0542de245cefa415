"""What every bench shares: the machine in its record, and correctness before time."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser):
    parser.addoption(
        "--record", default=str(RESULTS), help="Folder for the records; the committed ones are in bench/results."
    )


@pytest.fixture(scope="session")
def machine():
    """What a reader must know to judge a time."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "commit": told.stdout.strip(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": time.strftime("%Y-%m-%d"),
    }


@pytest.fixture
def record(request, machine):
    """Return a function that writes one record as a JSON file, replacing the last one of its name."""

    def write(name, result):
        folder = Path(request.config.getoption("--record"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result | {"machine": machine}, indent=2) + "\n")

    return write


def _lines(path):
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
