"""Registers, spills and shared memory of csrc's CUDA kernels, compiled for three GPUs on a machine that needs none.

``python bench/cuda_resources.py`` compiles csrc/tangent_gram.cu and writes bench/results/cuda_resources.json;
``--check`` compiles for one architecture and says what differs from the record.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "bench" / "results" / "cuda_resources.json"
ARCHITECTURES = ("80", "90a", "100")
# of the assembler's report on a kernel: its name, then spills, then registers and static shared memory
REPORT = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    r"(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)
NAME = re.compile(r"tangent_gram_kernelINS_\d+([A-Z]\w*?)INS_4TileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)EEEEELi(\d+)E")


def nvcc_version():
    """As in "13.0.88"; None where there is no nvcc."""
    if shutil.which("nvcc") is None:
        return None
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def dynamic_shared(block_m, block_n):
    """Bytes that the launcher asks for: Ring::SHARED_BYTES of csrc/tangent_gram.cuh."""
    stages, row_bytes, place = 3, 128, 8
    return (block_m + block_n) * (stages * row_bytes + place)


def rows(architecture):
    """One row a kernel, compiled for an architecture."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        source = ROOT / "csrc" / "tangent_gram.cu"
        command = ["nvcc", "-std=c++17", "-O3", code, "-Xptxas", "-v", "-cubin", source, "-o", f"{folder}/out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or "warning" in done.stderr:
        sys.exit(done.stderr)
    found = []
    for name, stores, loads, registers, static in REPORT.findall(done.stderr):
        products, block_m, block_n, warp_m, warp_n, copies = NAME.search(name).groups()
        found.append({
            "architecture": architecture,
            "kernel": f"{products} {block_m}x{block_n}, warps {warp_m}x{warp_n}, copies of {copies} bytes",
            "registers": int(registers),
            "spills": int(stores) + int(loads),
            "static_shared": int(static or 0),
            "dynamic_shared": dynamic_shared(int(block_m), int(block_n)),
        })  # fmt: skip
    return sorted(found, key=lambda row: row["kernel"])


def differences(architecture):
    """What a fresh compilation has worse than the record, in words."""
    recorded = {row["kernel"]: row for row in json.loads(RECORD.read_text())["rows"]
                if row["architecture"] == architecture}  # fmt: skip
    found = {row["kernel"]: row for row in rows(architecture)}
    if found.keys() != recorded.keys():
        yield f"other kernels: {sorted(found.keys() ^ recorded.keys())}"
    for kernel in sorted(found.keys() & recorded.keys()):
        new, old = found[kernel], recorded[kernel]
        if new["spills"]:
            yield f"{kernel} spills {new['spills']} bytes"
        for key in ("registers", "static_shared", "dynamic_shared"):
            if new[key] > old[key]:
                yield f"{kernel}: {key} {new[key]}, recorded {old[key]}"


def main():
    """Compile and write the record, or hold one architecture against it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", choices=ARCHITECTURES, help="an architecture to hold against the record")
    asked = parser.parse_args()
    if asked.check:
        found = list(differences(asked.check))
        print("\n".join(found) or "as recorded")
        sys.exit(bool(found))
    with ThreadPoolExecutor(2) as pool:
        every = [row for part in pool.map(rows, ARCHITECTURES) for row in part]
    text = ",\n".join("    " + json.dumps(row) for row in every)
    RECORD.write_text(f'{{\n  "nvcc": "{nvcc_version()}",\n  "rows": [\n{text}\n  ]\n}}\n')
    print(f"{len(every)} kernels compiled, {sum(bool(row['spills']) for row in every)} of them with spills")


if __name__ == "__main__":
    main()
