"""Plant faults in the kernels, one at a time, and see that the tests turn red: ``python tests/mutants.py``.

Works on a copy of the checkout. ``python tests/mutants.py readout`` takes those of the readout only, ``network``
those of the network; ``--list`` names them. Exits with 1 if a fault survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
READOUT = "tests/test_readout.py"
NETWORK = " ".join(
    f"tests/test_network_{part}.py" for part in ("triton", "triton_programs", "triton_transforms", "path")
)
TILES, WALK, FORWARD = "kernels/_tiles.py", "kernels/_walk.py", "kernels/network.py"
BACKWARD, WEIGHTS = "kernels/network_bwd.py", "kernels/network_weights.py"
BOTH = f"{READOUT} {NETWORK}"
RECURSION = " ".join(
    f"tests/test_layer_recursion.py::test_triton{name}"
    for name in ("_numbers_by_layer_and_opposite_inputs", "_into_the_memory_of_the_gaps", "")
)
RECURSIONS = "kernels/layer_recursion.py"
PROJECT = " ".join(
    f"tests/test_project.py::{name}"
    for name in ("test_triton", "test_triton_transpose_of_blocks", "test_signs_are_the_same_to_the_bit",
                 "test_normal_numbers_are_the_same_to_rounding", "test_triton_splits_of_long_inputs")
)  # fmt: skip
PROJECTS = "kernels/project.py"

# seconds; programs that wait for others which never start do so for ever
LONGEST = 1800

# most faults show in float32; torch's own path has none planted
QUICK = "not float16 and not bfloat16 and not test_torch"

# name: (tests, file, text, what it becomes); the text must be there once, or {n} says which of several
MUTANTS = {
    # masks, tile edges, ends
    "readout: mask of rows dropped": (READOUT, "kernels/readout.py", "mask=mask_b[:, None] & mask_n[None, :], other=0.0)\n        v_offsets", "mask=mask_n[None, :] & (rows[:, None] >= 0), other=0.0)\n        v_offsets"),
    "readout: mask of columns dropped": (READOUT, "kernels/readout.py", "mask=mask_b[:, None] & mask_n[None, :], other=0.0)\n        v_offsets", "mask=mask_b[:, None] & (cols[None, :] >= 0), other=0.0)\n        v_offsets"),
    "readout: mask of V's columns dropped": (READOUT, "kernels/readout.py", "mask=mask_d[None, :] & mask_n[:, None], other=0.0)\n        acc", "mask=mask_d[None, :] & (cols[:, None] >= 0), other=0.0)\n        acc"),
    "readout: f stored past its rows": (READOUT, "kernels/readout.py", "    mask = mask_b[:, None] & mask_d[None, :]\n    where", "    mask = mask_d[None, :] & (rows[:, None] <= B)\n    where"),
    "readout: last tile of a layer missed": (READOUT, "kernels/readout.py", "if column + BLOCK_N >= width:", "if column + BLOCK_N > width:"),
    "readout: layer ends a tile early": (READOUT, "kernels/readout.py", "if column + BLOCK_N >= width:", "if column + 2 * BLOCK_N >= width:"),
    "readout: accumulator not cleared": (READOUT, "kernels/readout.py", "            acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)\n\n", "\n"),
    "readout: omega of the next layer": (READOUT, "kernels/readout.py", "omega + outs * stride_od + layer * stride_ol, mask=mask_d, other=0.0).to(tl.float32)\n            total", "omega + outs * stride_od + (layer + 1) % L * stride_ol, mask=mask_d, other=0.0).to(tl.float32)\n            total"),
    "readout: f_l without its scale": (READOUT, "kernels/readout.py", "            if SCALED:\n                acc *= pick(scales, layer)\n", ""),
    "readout: a split left out": (READOUT, "kernels/readout.py", "            for s in range(splits):\n                total +=", "            for s in range(1, splits):\n                total +="),
    "readout: splits added as they arrive": (READOUT, "kernels/readout.py", "            total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)\n            for s in range(splits):\n", "            for s in range(splits - 1):\n"),
    "readout: column stride ignored": (READOUT, "kernels/readout.py", "DENSE=dense, SCALED=scaled, WITH_READOUTS=with_readouts,", "DENSE=True, SCALED=scaled, WITH_READOUTS=with_readouts,"),
    "readout: f_l unwritten": (READOUT, "kernels/readout.py", "            if WITH_READOUTS:\n                where", "            if WITH_READOUTS and (layer > 0):\n                where"),
    "readout: grad h without its weight": (READOUT, "kernels/readout.py", "dot_weighted(g, weight, r, v, grad_tile,", "dot_weighted(g, weight / weight, r, v, grad_tile,"),
    "readout: grad h of the wide kernel without its weight": (READOUT, "kernels/readout.py", "dot_weighted(g, weight, r, v, acc,", "dot_weighted(g, weight / weight, r, v, acc,"),
    "readout: grad V without omega": (READOUT, "kernels/readout.py", "grad_v = sums * weight[:, None]", "grad_v = sums"),
    "readout: grad h misses f_l": (READOUT, TILES, "            u += r.to(tl.float32)\n", "            pass\n"),
    "readout: grad h misses f_l in float16": (READOUT, TILES, "            acc = dot(r, v, acc, PRECISION)\n", "            pass\n"),
    "readout: grad h of the wide kernel misses f_l": (READOUT, "kernels/readout.py", "                r = tl.load(grad_readouts + offsets, mask=mask_g, other=0.0)\n            acc", "                r = 0.0 * g\n            acc"),
    "readout: grad omega of one tile only": (READOUT, "kernels/readout.py", "if layer_tiles == 1:", "if layer_tiles >= 1:"),
    "readout: grad omega sums a tile too few": (READOUT, "kernels/readout.py", "for t in range(first_tile, after):", "for t in range(first_tile, after - 1):"),
    "readout: rows of the last split missed": (READOUT, "kernels/readout.py", "for block in range(split * blocks // splits, (split + 1) * blocks // splits):", "for block in range(split * (blocks // splits), (split + 1) * (blocks // splits)):"),
    "readout: rows of grad unmasked": (READOUT, "kernels/readout.py", "        mask_g = mask_b[:, None] & mask_d[None, :]\n        g = tl.load(grad + rows[:, None] * stride_gb + outs[None, :] * stride_gd, mask=mask_g, other=0.0)\n        g = g", "        mask_g = (rows[:, None] >= 0) & mask_d[None, :]\n        g = tl.load(grad + rows[:, None] * stride_gb + outs[None, :] * stride_gd, mask=mask_g, other=0.0)\n        g = g"),
    "readout: grad strides ignored": (READOUT, "kernels/readout.py", "        rows, total, d, grad_tiles, splits,\n        *grad.stride(),", "        rows, total, d, grad_tiles, splits,\n        d, 1,"),
    # what both share
    "tiles: border of a layer one tile late": (BOTH, TILES, "reached = tile >= next_tile", "reached = tile > next_tile"),
    "tiles: first column of the layer off": (BOTH, TILES, "column = tl.where(reached, (tile - next_tile) * BLOCK, column)", "column = tl.where(reached, (tile - next_tile) * BLOCK + 1, column)"),
    "tiles: pick is off by one": (BOTH, TILES, "found = tl.where(index == j, values[j], found)", "found = tl.where(index == j, values[j - 1], found)"),
    "tiles: TF32 instead of three products": (BOTH, TILES, 'acc += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")', 'acc += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32")'),
    "network: Omega into the gradient, which float16 cannot hold": (NETWORK, BACKWARD, 'if PRECISION == "fp16":', 'if PRECISION == "none":'),
    "tiles: Omega into the gradient, which float16 cannot hold": (READOUT, TILES, 'if PRECISION == "fp16":\n        # g', 'if PRECISION == "none":\n        # g'),
    "tiles: counter left behind": (BOTH, TILES, "        tl.store(counter, 0)", "        pass"),
    "tiles: first to arrive, not last": (BOTH, TILES, "== arrivals - 1", "== 0"),
    "tiles: tanh cancels near 0": (NETWORK, TILES, "return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)", "return tl.exp(x) - 1.0"),
    "tiles: relu loses NaN": (NETWORK, TILES, "h = tl.where(g < 0, 0.0, g)", "h = tl.where(g > 0, g, 0.0)"),
    "tiles: slope of elu": (NETWORK, TILES, "slope = tl.where(saved > 0, 1.0, saved + 1.0)", "slope = tl.where(saved > 0, 1.0, saved)"),
    "tiles: slope of gelu": (NETWORK, TILES, "+ saved * density", "+ density"),
    # the walks
    "network: rows of x unmasked": (NETWORK, FORWARD, "        h = tl.load(below + local[:, None] * stride + ks[None, :], mask=mask_b[:, None] & mask_k[None, :], other=0.0)\n        w_mask", "        h = tl.load(below + local[:, None] * stride + ks[None, :], mask=mask_k[None, :] & (local[:, None] >= 0), other=0.0)\n        w_mask"),
    "network: depth of W unmasked": (NETWORK, FORWARD, "w_mask = (cols < n_out)[None, :] & mask_k[:, None]", "w_mask = (cols < n_out)[None, :] & (ks >= 0)[:, None]"),
    "network: depth of h unmasked": (NETWORK, FORWARD, "        h = tl.load(below + local[:, None] * stride + ks[None, :], mask=mask_b[:, None] & mask_k[None, :], other=0.0)\n        w_mask", "        h = tl.load(below + local[:, None] * stride + ks[None, :], mask=mask_b[:, None] & (ks >= 0)[None, :], other=0.0)\n        w_mask"),
    "network: columns stored past the width": (NETWORK, FORWARD, "mask = mask_b[:, None] & (cols < n_out)[None, :]", "mask = mask_b[:, None] & (cols <= n_out)[None, :]"),
    "network: rows stored past the batch": (NETWORK, FORWARD, "tl.store(f + where, total.to(f.dtype.element_ty), mask=mask_b[:, None] & mask_d[None, :])", "tl.store(f + where, total.to(f.dtype.element_ty), mask=(local >= 0)[:, None] & mask_d[None, :])"),
    "network: bias without its scale": (NETWORK, FORWARD, "g += (bias * bias_scale)[None, :]", "g += bias[None, :]"),
    "network: bias of a layer that has none": (NETWORK, FORWARD, "tuple(0 if b is None else len(b) for b in biases)", "tuple(len(w) for w in weights)"),
    "network: first column not moved on": (NETWORK, FORWARD, "                total += share\n            first_column += n_out", "                total += share\n            first_column += 0"),
    "network: scratch not taken in turns": (NETWORK, FORWARD, "target = base + layer % 2 * BLOCK_B * widest", "target = base"),
    "network: readout scale forgotten": (NETWORK, FORWARD, "                    share *= pick(readout_scales, layer)\n", "                    pass\n"),
    "network: a program skips the blocks beyond its first": (NETWORK, FORWARD, "    for block in range(group, tl.cdiv(B, BLOCK_B), groups):\n        # int64", "    for block in range(group, group + 1, groups):\n        # int64"),
    "network: programs do not wait": (NETWORK, WALK, "        while seen < arrivals:", "        while seen < 0:"),
    "network: shared counter left behind": (NETWORK, FORWARD, "(L + 1) * COLUMNS - 1:\n                tl.store(arrivals + group, 0)\n        else", "(L + 9) * COLUMNS - 1:\n                tl.store(arrivals + group, 0)\n        else"),
    "network: walk back's counter left behind above frozen layers": (NETWORK, BACKWARD, "== (L - first + 1) * COLUMNS - 1:", "== (L + 1) * COLUMNS - 1:"),
    "network: more programs wait than the chip holds": (NETWORK, "kernels/choice.py", "blocks * tiles.splits <= programs_at_once(x.device)", "blocks * tiles.splits <= 1 + programs_at_once(x.device)"),
    "network: walk back misses the layer above": (NETWORK, BACKWARD, "            n_above = n_out\n", "            n_above = 0\n"),
    "network: walk back takes its own weight": (NETWORK, BACKWARD, "above = pick(weights, tl.minimum(layer + 1, L - 1))", "above = pick(weights, layer)"),
    "network: walk back forgets the slope": (NETWORK, BACKWARD, "(acc * slope).to(deltas", "acc.to(deltas"),
    "network: walk back forgets the weight scale": (NETWORK, BACKWARD, "                acc *= weight_scale\n                v_offsets", "                v_offsets"),
    "network: walk back forgets the readout scale": (NETWORK, BACKWARD, "readout_column = omega_column * readout_scale", "readout_column = omega_column"),
    "network: grad x forgets its scale": (NETWORK, BACKWARD, "value = (acc * scale).to", "value = acc.to"),
    "network: slope from h where it needs g": (NETWORK, "nftk/ops/network_triton.py", '"tanh", "elu", "identity"))', '"tanh", "elu", "identity", "gelu"))'),
    # the weights
    "weights: a row block missed": (NETWORK, WEIGHTS, "for block in range(split * blocks // splits, (split + 1) * blocks // splits):", "for block in range(split * blocks // splits, (split + 1) * blocks // splits - 1):"),
    "weights: states of the layer itself": (NETWORK, WEIGHTS, "states + (first_column - n_in))", "states + first_column)"),
    "weights: bias summed for the wrong tile": (NETWORK, WEIGHTS, "if inside % across == 0:", "if inside % across == 1:"),
    "weights: tiles across miscounted": (NETWORK, WEIGHTS, "ms = inside // across * BLOCK_M", "ms = inside // (across + 1) * BLOCK_M"),
    "weights: offset of a layer off": (NETWORK, WEIGHTS, "next_offset += tl.cast(below, tl.int64) * widths[j]", "next_offset += tl.cast(below, tl.int64) * widths[j] + 1"),
    "weights: splits added as they arrive": (NETWORK, WEIGHTS, "                acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)\n                bias = tl.zeros([BLOCK_M], tl.float32)\n                for s in range(splits):", "                for s in range(splits - 1):"),
    "weights: weight scale forgotten": (NETWORK, WEIGHTS, "                acc *= pick(weight_scales, layer)\n", ""),
    "weights: frozen layers' tiles still counted": (NETWORK, WEIGHTS, "next_tile += tl.where(wanted, tl.cdiv", "next_tile += tl.where(wanted | True, tl.cdiv"),
    # the infinite-width recursion
    "recursion: a column too many": (RECURSION, RECURSIONS, "mask_j = j < n2", "mask_j = j <= n2"),
    "recursion: opposite directions taken for equal ones": (RECURSION, RECURSIONS, "return gap.to(tl.int32, bitcast=True) < 0", "return gap < 0"),
    "recursion: bias counted once in the sum of opposite examples": (RECURSION, RECURSIONS, "down = mismatch + 2.0 * shared + scale", "down = mismatch + shared + scale"),
    "recursion: tiles left of the last row's end skipped": (RECURSION, RECURSIONS, "wanted = (tl.program_id(0) + 1) * BLOCK_J >", "wanted = tl.program_id(0) * BLOCK_J >="),
    "recursion: gaps overwritten by the first sum": (RECURSION, RECURSIONS, "    if outputs > 1:", "    if outputs > 9:"),
    "recursion: the tangent's own bias forgotten": (RECURSION, RECURSIONS, "tl.load(p + 3) * kernel + tl.load(p + 4) +", "tl.load(p + 3) * kernel +"),
    "recursion: the tangent's own weight taken for the variance": (RECURSION, RECURSIONS, "tl.load(p + 3) * kernel", "weight_var * kernel"),
    "recursion: the readout's own number taken for the variance": (RECURSION, RECURSIONS, "value = tl.load(p + 6) * kernel", "value = readout_var * kernel"),
    "recursion: slope at 0 of an example of zeros": (RECURSION, RECURSIONS, "slopes = tl.where(tl.minimum(rho1, rho2) > 0, slopes, x1 * x2)", "slopes = tl.where(rho1 > 0, slopes, x1 * x2)"),
    "recursion: erf's arc sine beyond its polynomial": (RECURSION, RECURSIONS, "small = hat * hat < 0.5", "small = hat * hat < 0.9"),
    # random projections
    "project: high half of the column forgotten": (PROJECT, PROJECTS, "    high = (columns >> 32).to(tl.uint32)\n", "    high = (columns * 0).to(tl.uint32)\n"),
    "project: words in another order": (PROJECT, PROJECTS, "tl.join(tl.join(w0, w2), tl.join(w1, w3))", "tl.join(tl.join(w0, w1), tl.join(w2, w3))"),
    "project: bits from the other end": (PROJECT, PROJECTS, "shifts = (31 - tl.arange(0, 32))", "shifts = tl.arange(0, 32)"),
    "project: every 128 rows the same": (PROJECT, PROJECTS, "none + block.to(tl.uint32), none)", "none, none)"),
    "project: a float32 in two parts": (PROJECT, PROJECTS, "tl.dot(middle, signs, tl.dot(low, signs))", "tl.dot(middle, signs)"),
    "project: one part of a float32": (PROJECT, PROJECTS, "acc += tl.dot(high, signs, part)", "acc += tl.dot(high, signs)"),
    "project: sine for cosine": (PROJECT, PROJECTS, "a = tl.where(odd, sine, cosine)", "a = tl.where(odd, cosine, sine)"),
    "project: cosine's sign in one quarter": (PROJECT, PROJECTS, "(quarter % 4 == 1) | (quarter % 4 == 2), -a", "(quarter % 4 == 1) | (quarter % 4 == 3), -a"),
    "project: normal numbers in another order": (PROJECT, PROJECTS, "tl.join(tl.join(first * a, second * c), tl.join(first * b, second * d))", "tl.join(tl.join(first * a, first * b), tl.join(second * c, second * d))"),
    "project: a column too many": (PROJECT, PROJECTS, "mask_p = cols < p", "mask_p = cols <= p"),
    "project: steps that no split takes": (PROJECT, PROJECTS, "range(split * steps // splits, (split + 1) * steps // splits)", "range(split * (steps // splits), (split + 1) * (steps // splits))"),
    "project: blocks share their columns": (PROJECT, PROJECTS, "first = offset + repeat * p", "first = offset + repeat * 0"),
    "project: transposed blocks share their columns": (PROJECT, PROJECTS, "offset + repeat * p + cols", "offset + cols"),
    "project: transpose of the first 128 rows": (PROJECT, PROJECTS, "for step in range(repeats * across)", "for step in range(repeats)"),
    "project: rows beyond k read": (PROJECT, PROJECTS, "mask=mask_n[:, None] & (lanes < k)[None, :], other=0.0", "mask=mask_n[:, None] & (lanes <= k)[None, :], other=0.0"),
    # the operations
    "op: gradient of the inputs never asked for": (READOUT, "nftk/ops/readout.py", "need_h, need_v = any(ctx.needs_input_grad[3:])", "need_h, need_v = any(ctx.needs_input_grad[4:])"),
    "op: f_l marked as without gradient": (READOUT, "nftk/ops/readout.py", "        if not ctx.settings[1]:\n            ctx.mark", "        if True:\n            ctx.mark"),
    "op: second derivative by the kernels": (READOUT, "nftk/ops/readout.py", "if torch.is_grad_enabled() or is_batched(grad):\n            # the", "if is_batched(grad):\n            # the"),
    "op: jvp not refused": (READOUT, "nftk/ops/readout.py", 'if getattr(forward_ad, "_current_level", -1) >= 0:', "if False:"),
    "op: a cast before the launch": (READOUT, "nftk/ops/readout.py", "return readout_fwd(hs, v, weights, scales", "return readout_fwd(hs, v, weights.clone(), scales"),
    "op: second derivative without the scales": (READOUT, "nftk/ops/readout.py", "grad_omega.append((sums * v).sum(1) * r)", "grad_omega.append((sums * v).sum(1))"),
    "op: backward in another precision": (READOUT, "nftk/ops/readout.py", "need_h, need_v, precision, backend\n        )\n        split", "need_h, need_v, 'highest', backend\n        )\n        split"),
    "op: backward of the network in another precision": (NETWORK, "nftk/ops/network_triton.py", "first, needs, ctx.precision,", "first, needs, 'highest',"),
    "op: autocast in bfloat16 always": (BOTH, "nftk/ops/precision.py", "return torch.get_autocast_dtype(kind)", "return torch.bfloat16"),
    "op: a gradient that is not there": (NETWORK, "nftk/ops/network_triton.py", "if grad is None:", "if False:"),
    "op: states kept side by side by a copy": (NETWORK, "nftk/ops/network_triton.py", "_rows(x), [w.contiguous() for w in weights], biases", "_rows(x), [w.clone() for w in weights], biases"),
}  # fmt: skip


def plant(tree, file, text, becomes):
    """Change the one place that a fault is planted at."""
    path = tree / file
    source = path.read_text()
    assert source.count(text) == 1, f"{file} has {source.count(text)} of {text!r}"
    path.write_text(source.replace(text, becomes))


def copy(tree):
    """Copy what the tests need, with kernels/ where the package has it."""
    for name in ("nftk", "kernels", "tests", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results", "out"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "nftk" / "kernels").symlink_to(tree / "kernels")


def survives(name):
    """Whether the tests stay green with a fault planted."""
    tests, file, text, becomes = MUTANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy(tree)
        plant(tree, file, text, becomes)
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "-m", "not slow", "-k", QUICK, *tests.split()],
                cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{'red':9}{name}: hangs", flush=True)
            return False
        summary = done.stdout.strip().splitlines()[-1:] or [done.stderr[-200:]]
        failed = [line for line in done.stdout.splitlines() if line.startswith("____")][:1]
        # a store past the end can bring the interpreter down: red too
        assert done.returncode in (0, 1) or done.returncode < 0, done.stdout[-2000:] + done.stderr[-2000:]
        print(
            f"{'SURVIVED' if done.returncode == 0 else 'red':9}{name}: {(failed or summary)[0].strip(' _')[:90]}",
            flush=True,
        )
        return done.returncode == 0


def main():
    """Plant every fault whose name or tests match."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("match", nargs="?", default="", help="part of a fault's name, or of its tests' file")
    parser.add_argument("--list", action="store_true", help="name the faults, plant none")
    asked = parser.parse_args()
    names = [name for name, mutant in MUTANTS.items() if asked.match in name or asked.match in mutant[0]]
    if asked.list:
        print("\n".join(names))
        return
    left = [name for name in names if survives(name)]
    print(f"{len(names) - len(left)} of {len(names)} red")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
