"""Plant faults in the CUDA source, one at a time, and see the tests turn red: ``python tests/cuda/cuda_mutants.py``.

Works on copies of the sources. ``--list`` names the faults, a word takes those with it in their name, ``-j`` says how
many run at once. Exits with 1 if a fault survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KERNEL, ATOMS, LAUNCHER = "csrc/tangent_gram.cuh", "csrc/tangent_gram_atoms.cuh", "csrc/tangent_gram.cu"
WAIT = "        cp_async_wait<Stages::COUNT - 2>();\n"
START = "        loader.start(shared + (stage + Stages::COUNT - 1) % Stages::COUNT * Stages::BYTES);\n"

# name: (file, text, what it becomes), one or several times; each text must be there once
MUTANTS = {
    # barriers and copies
    "no barrier in the loop": (KERNEL, "        __syncthreads();\n" + START, START),
    "no barrier after the places": (KERNEL, "  __syncthreads();\n\n  const int lane", "  const int lane"),
    "barrier skipped by idle warps": (KERNEL, "        __syncthreads();\n" + START, "        if (row0 + warp_row < p.rows) __syncthreads();\n" + START),
    "idle warps leave early": (KERNEL, "  // places of this lane's first row and column\n", "  if (row0 + warp_row >= p.rows) return;\n"),
    "no wait for the copies": (KERNEL, WAIT, ""),
    "wait one group too lax": (KERNEL, WAIT, WAIT.replace("- 2", "- 1")),
    "copies start before the barrier": (KERNEL, WAIT, WAIT + START, START + "        const unsigned char* chunk", "        const unsigned char* chunk"),
    "no empty groups past the end": (KERNEL, "      }\n    }\n    cp_async_commit();\n", "      }\n      cp_async_commit();\n    }\n"),
    "a stage lost at the start": (KERNEL, "s < Stages::COUNT - 1; ++s", "s < Stages::COUNT - 2; ++s"),
    "wrong stage read": (KERNEL, "chunk = shared + stage * Stages::BYTES", "chunk = shared + (stage + 1) % Stages::COUNT * Stages::BYTES"),
    "wrong stage written": (KERNEL, "(stage + Stages::COUNT - 1) %", "(stage + Stages::COUNT - 2) %"),
    "stages written without the swizzle": (KERNEL, "group(row, x / GROUP_BYTES) * GROUP_BYTES + x % GROUP_BYTES", "row * ROW_BYTES + x"),
    "too little shared memory": (KERNEL, "SHARED_BYTES = COUNT * BYTES", "SHARED_BYTES = (COUNT - 1) * BYTES"),
    "large shared memory not asked for": (LAUNCHER, "cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)", "cudaSuccess"),
    # edges
    "channels beyond the last not masked": (KERNEL, "max(min(channels - channel, WIDTH), 0)", "max(min(channels - channel, WIDTH), WIDTH)"),
    "channels masked by whole vectors": (KERNEL, "max(min(channels - channel, WIDTH), 0)", "(channel < channels ? WIDTH : 0)"),
    "last channels dropped": (KERNEL, "(t.channels - channel + Stages::GROUP - 1)", "(t.channels - channel)"),
    "a row too many": (KERNEL, "inside = index < (", "inside = index <= ("),
    "columns end where rows end": (KERNEL, "(of_row ? p.rows : p.cols)", "p.rows"),
    "tiles at the edge not launched": (LAUNCHER, "return (count + size - 1) / size;", "return count < size ? 1 : count / size;"),
    "tile's columns begin at its rows": (KERNEL, "col0 = tile.n * Atom::BLOCK_N", "col0 = tile.n * Atom::BLOCK_M"),
    "band walked the wrong way": (KERNEL, "index % height, begin + index / height", "index / height, begin + index % height"),
    "band begins a column late": (KERNEL, "BAND * tile_m / tile_n) : 0", "BAND * tile_m / tile_n) + (band > 0) : 0"),
    # fragments
    "tf32x3: A's registers swapped": (ATOMS, "        split(x.y, a_big[h + 2], a_small[h + 2]);", "        split(x.y, a_big[3 - h], a_small[3 - h]);"),
    "tf32x3: B's registers swapped": (ATOMS, "split(x.x, b_big[j][0], b_small[j][0]);\n      split(x.y, b_big[j][1], b_small[j][1]);", "split(x.x, b_big[j][1], b_small[j][1]);\n      split(x.y, b_big[j][0], b_small[j][0]);"),
    "tf32x3: D's columns swapped": (ATOMS, "acc[i + h][j][0] += part[j][h][0];", "acc[i + h][j][0] += part[j][h][1];"),
    "tf32x3: D's halves swapped": (ATOMS, "acc[i + h][j][1] += part[j][h][1];", "acc[i + h][j][1] += part[j][1 - h][1];"),
    "tf32: A's registers swapped": (ATOMS, "{to_tf32(x.x), to_tf32(y.x), to_tf32(x.y), to_tf32(y.y)}", "{to_tf32(x.x), to_tf32(x.y), to_tf32(y.x), to_tf32(y.y)}"),
    "bf16: A's registers swapped": (ATOMS, "rounded(a[word(lane, i, step)]), rounded(a[word(lane, i + 1, step)])", "rounded(a[word(lane, i + 1, step)]), rounded(a[word(lane, i, step)])"),
    "bf16: half of the channels twice": (ATOMS, "right[j][h] = rounded(b[word(lane, j, step + h)])", "right[j][h] = rounded(b[word(lane, j, step)])"),
    "float64: halves of A swapped": (ATOMS, "upper, lower, right[j])", "lower, upper, right[j])"),
    "a lane reads its neighbour's word": (ATOMS, "group(lane / 4, step) * GROUP_WORDS + lane % 4", "group(lane / 4, step) * GROUP_WORDS + lane / 8"),
    "read without the swizzle": (ATOMS, "group(lane / 4, step) * GROUP_WORDS", "(lane / 4 * GROUPS + step) * GROUP_WORDS"),
    "warps' columns from the wrong place": (KERNEL, "chunk + Stages::A_BYTES + warp_col * ROW_BYTES", "chunk + Stages::A_BYTES + warp_row * ROW_BYTES"),
    # exactness
    "long sums in the tensor cores": (ATOMS, *sum(((f"mma_tf32(part[j][0], part[j][1], {x});", f"mma_tf32(acc[i][j], acc[i + 1][j], {x});") for x in ("a_small, b_big[j]", "a_big, b_small[j]", "a_big, b_big[j]")), ())),
    "a correction missing": (ATOMS, "mma_tf32(part[j][0], part[j][1], a_small, b_big[j]);", ";"),
    "the other correction missing": (ATOMS, "mma_tf32(part[j][0], part[j][1], a_big, b_small[j]);", ";"),
    "split by truncation": (ATOMS, "  big = to_tf32(x);", "  big = __float_as_uint(x) & ~0x1fffu;"),
    "small part not rounded": (ATOMS, "small = to_tf32(x - __uint_as_float(big))", "small = __float_as_uint(x - __uint_as_float(big))"),
    "runs without an end": (KERNEL, "if (++run == Atom::LONGEST_RUN || last)", "if (++run < 0 || last)"),
    # scale and sums
    "S transposed": (LAUNCHER, "Term t{e.s, e.s_stride1, e.s_stride2,", "Term t{e.s, e.s_stride2, e.s_stride1,"),
    "S by the row in a sample": (KERNEL, "max(rows[i * 8].sample, 0) * t.s_stride1", "max(rows[i * 8].row, 0) * t.s_stride1"),
    "S beyond the last row": (KERNEL, "max(rows[i * 8].sample, 0) * t.s_stride1", "rows[i * 8].sample * t.s_stride1"),
    "S beyond the last column": (KERNEL, "max(sample2, 0) * t.s_stride2", "sample2 * t.s_stride2"),
    "S of the column before": (KERNEL, "(&cols[j * 8 + e].sample)", "(&cols[j * 8].sample)"),
    "inner sum not cleared": (KERNEL, "        acc[i][j][e] = 0;\n", ""),
    "a run's end forgets the count": (KERNEL, "add_scaled(sum, acc, t, rows, cols), run = 0;", "add_scaled(sum, acc, t, rows, cols);"),
    "only the first row summed": (KERNEL, "row < t.summed; ++row", "row < 1; ++row"),
    "loader stays in the first row": (KERNEL, "if (++row_ == t.summed) row_ = 0, more_ = walk_.next();", "if (++row_ == t.summed) row_ = 0, more_ = walk_.next(); else row_ = t.summed - 1;"),
    # from slices to outputs
    "slice index not divided by the step": (KERNEL, "slice = beyond / t.output_step, slice_end", "slice = beyond, slice_end"),
    "outputs between two steps": (KERNEL, "} else if (beyond % t.output_step == 0) {", "} else {"),
    "one slice of many": (KERNEL, "slice = 0, slice_end = t.slices;", "slice = 0, slice_end = 1;"),
    "step 0 goes everywhere": (KERNEL, "if (beyond == 0) return true;", "return true;"),
    "slices beyond the last": (KERNEL, "slice >= 0 && slice < t.slices", "slice >= 0"),
    "every slice is the first": (KERNEL, "walk_.slice * from.slice", "0 * from.slice"),
    "outputs in the wrong order": (KERNEL, "output = p.outputs - 1 - result / p.batch", "output = result / p.batch", "+ output * p.out_output +", "+ (p.outputs - 1 - output) * p.out_output +"),
    "terms without channels kept": (LAUNCHER, "if (e.slices == 0 || e.channels == 0) continue;", "if (e.slices == 0) continue;"),
    "sum over no rows": (LAUNCHER, "  if (call.d == 0) return terms;\n", ""),
    # forms
    "diagonal: always row 0": (KERNEL, "(batch_ + row_) * from.row", "row_ * from.row"),
    "diagonal: second stride of rows forgotten": (KERNEL, "batch * (p.out_row1 + p.out_row2)", "batch * p.out_row1"),
    "trace: rows with gaps taken as one": (LAUNCHER, "flat = e.a_row == e.channels && e.b_row == e.channels &&", "flat ="),
    "trace: rows of B with gaps taken as one": (LAUNCHER, "e.a_row == e.channels && e.b_row == e.channels", "e.a_row == e.channels"),
    "full: rows of a sample mixed up": (KERNEL, "Place{index / p.per_sample, index % p.per_sample}", "Place{index % p.per_sample, index / p.per_sample}"),
    # symmetry
    "no mirror": (KERNEL, "if (p.symmetric && row != col) put(", "if (false) put("),
    "no mirror inside tiles on the diagonal": (KERNEL, "if (p.symmetric && row != col) put(", "if (p.symmetric && col >= row0 + Atom::BLOCK_M) put("),
    "both halves of a tile on the diagonal": (KERNEL, "|| (p.symmetric && row > col)) continue", ") continue"),
    "diagonal not written": (KERNEL, "(p.symmetric && row > col)) continue", "(p.symmetric && row >= col)) continue"),
    "tiles on the diagonal left out": (KERNEL, "col0 + Atom::BLOCK_N <= row0", "col0 <= row0"),
    "mirrored without swapping the rows": (KERNEL, "put(of_col + first(y)", "put(of_col + y.sample * p.out_sample1 + y.row * p.out_row2 + x.row * (p.out_row1 - p.out_row2)"),
    # launcher
    "accumulate ignored": (KERNEL, "accumulate ? reload(out) + value : value", "accumulate ? value : value"),
    "later launches overwrite": (LAUNCHER, "    p.accumulate = true;\n", ""),
    "later launches begin again": (LAUNCHER, "terms.begin() + std::ptrdiff_t(done)", "terms.begin()"),
    "alignment of rows not asked": (LAUNCHER, " || x.row * of_number % bytes", ""),
    "alignment of the base not asked": (LAUNCHER, "reinterpret_cast<uintptr_t>(x.data) % uintptr_t(bytes) || ", ""),
    "device not chosen": (LAUNCHER, "check(cudaSetDevice(device), \"choosing the device\");", "(void)device;"),
    "device not given back": (LAUNCHER, "~DeviceGuard() { cudaSetDevice(before_); }", "~DeviceGuard() {}"),
    "another stream": (LAUNCHER, "static_cast<cudaStream_t>(call.stream)", "static_cast<cudaStream_t>(nullptr)"),
    "small tiles always": (LAUNCHER, "large ? launch_all<Large>", "large && false ? launch_all<Large>"),
    "tf32 for highest": (LAUNCHER, "choose_tile<Tf32x3<Large>, Tf32x3<Small>>", "choose_tile<Tf32<Large>, Tf32<Small>>"),
    "bf16 for tf32": (LAUNCHER, "choose_tile<Tf32<Large>, Tf32<Small>>", "choose_tile<Bf16<Large>, Bf16<Small>>"),
}  # fmt: skip


def plant(tree, file, *edits):
    """Change the places that a fault is planted at."""
    path = tree / file
    source = path.read_text()
    for text, becomes in zip(edits[::2], edits[1::2], strict=True):
        assert source.count(text) == 1, f"{file} has {source.count(text)} of {text!r}"
        source = source.replace(text, becomes)
    path.write_text(source)


def survives(name):
    """Whether the tests stay green with a fault planted."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("csrc", "tests"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        plant(tree, *MUTANTS[name])
        plant(tree, "tests/tangent_gram_host.py", '"-O2"', '"-O1"')  # sooner compiled
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "tests/test_tangent_gram_cuda.py"],
            cwd=tree, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    lines = done.stdout.splitlines()
    # a source that does not compile, or with warnings, is no fault; a read past shared memory ends the process: red too
    assert "ERROR at setup" not in done.stdout, f"{name}: {done.stdout[-2000:]}"
    assert done.returncode in (0, 1) or done.returncode < 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    said = next((line[1:].strip() for line in lines if line.startswith("E  ")), "the process ended")
    where = next((line.strip(" _") for line in lines if line.startswith("____")), "")
    green = done.returncode == 0
    print(f"SURVIVED {name}" if green else f"red      {name}: {where} {said[:90]}", flush=True)
    return green


def main():
    """Plant every fault whose name has the word in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("match", nargs="?", default="", help="part of a fault's name")
    parser.add_argument("--list", action="store_true", help="name the faults, plant none")
    parser.add_argument("-j", type=int, default=1, help="faults at a time")
    asked = parser.parse_args()
    names = [name for name in MUTANTS if asked.match in name]
    if asked.list:
        print("\n".join(names))
        return
    with ThreadPoolExecutor(asked.j) as pool:
        left = sum(pool.map(survives, names))
    print(f"{len(names) - left} of {len(names)} red")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
