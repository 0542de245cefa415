"""What csrc's CUDA kernels take of a GPU, against the record: a change that spills or grows shows here."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
RECORD = json.loads((BENCH / "results" / "cuda_resources.json").read_text())
# bytes that a block may have on sm_86, sm_89 and sm_120, which have least and run the code of sm_80 or newer
SHARED_LIMIT = 99 * 1024


def script():
    spec = importlib.util.spec_from_file_location("cuda_resources", BENCH / "cuda_resources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_record():
    """Four kinds of products in two tiles with two widths of copies, for three GPUs; nothing spills, all fits."""
    assert len(RECORD["rows"]) == 48
    assert len({(row["architecture"], row["kernel"]) for row in RECORD["rows"]}) == 48
    for row in RECORD["rows"]:
        assert row["spills"] == 0, row
        assert row["registers"] <= 255, row
        assert row["static_shared"] + row["dynamic_shared"] <= SHARED_LIMIT, row


@pytest.mark.slow
def test_kernels_compile_to_what_the_record_says():
    version = script().nvcc_version()
    if version is None:
        pytest.skip("no nvcc on the path")
    if version != RECORD["nvcc"]:
        pytest.skip(f"the record is of nvcc {RECORD['nvcc']}, this is {version}")
    done = subprocess.run(
        [sys.executable, BENCH / "cuda_resources.py", "--check", "90a"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
