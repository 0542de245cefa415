"""The machine and the commit, as every record has them."""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import torch


def machine(device):
    """What a reader must know to judge a time."""
    told = _output("git", "describe", "--always", "--dirty", cwd=Path(__file__).parent)
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    known = {
        "commit": told,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": time.strftime("%Y-%m-%d"),
    }
    return known | (gpu() if device == "cuda" else {})


def gpu():
    """What is known of the GPU."""
    import triton

    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gb": round(found.total_memory / 1e9, 1),
        "l2_mb": round(getattr(found, "L2_cache_size", 0) / 1e6, 1),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
    }


def _output(*command, cwd=None):
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd).stdout.strip()


def _lines(path):
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
