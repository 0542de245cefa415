"""python bench/tables.py [--check]: write the tables of README.md and bench/README.md from the records."""

import functools
import itertools
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def step_table(root=ROOT):
    """Time of a training step in units of the plain MLP's."""
    lines = ["| shape, batch | plain MLP | NFTKMLP | loop over readouts |", "|---|---|---|---|"]
    for name in ("mnist-10x256", "mnist-20x256", "reviews-5x128", "ragged"):
        path = root / "bench" / "results" / f"training_step_{name}.json"
        if not path.exists():
            continue
        record = read(path)
        steps, batch = record["steps"], record["shape"]["batch"]
        ratios = [f"{steps[model]['ratio_to_plain']:.2f}" for model in ("nftk", "loop")]
        lines.append(f"| {name}, {batch} | {steps['plain']['ms_50']:.2f} ms | {ratios[0]}x | {ratios[1]}x |")
    return "\n".join(lines)


NONE_YET = "Not yet run on a GPU."
# the order of columns; what is not named here comes after
PROVIDERS = (
    "eager-loop", "eager-stacked", "graph-loop", "graph-stacked", "unfused", "two-loop", "torch.func", "compile",
    "compile-max", "matmul", "plain", "plain-graph", "torch", "nftk-torch", "nftk", "nftk-graph", "triton",
    "triton-graph", "cuda",
)  # fmt: skip
# no way to do the work, but a rate to compare with
RATES = {"matmul-2048"}


def folders(on_gpu, root=ROOT):
    """The folders of records, one a device."""
    found = sorted(path for path in (root / "bench" / "results").glob("*") if path.is_dir())
    return [path for path in found if (path.name != "cpu") is on_gpu]


def op_table(op, on_gpu, root=ROOT):
    """One line a case and pass: what has to move and be computed, and each provider's time."""
    parts = []
    for folder in folders(on_gpu, root):
        records = [read(path) for path in sorted(folder.glob(f"{op}_*.json"))]
        if records:
            parts.append(f"{_told(records)}\n\n{_lines(records)}")
    return "\n\n".join(parts) or (NONE_YET if on_gpu else "No record.")


def _told(records):
    """The machines and ceilings of some records, in a sentence."""
    machine, found = records[0]["machine"], [record["ceilings"] for record in records]
    commits = ", ".join(sorted({record["machine"]["commit"] for record in records}))
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread{'s'[: machine['threads'] > 1]}"
    rates = ", ".join(
        f"{word} {_span([1e3 * one['matmul_tflop_s'][word] for one in found])}" for word in found[0]["matmul_tflop_s"]
    )
    return (
        f"{where}; torch {machine['torch']}; {machine['date']}; {commits}. "
        f"Ceilings: copy {_span([one['copy_gb_s'] for one in found])} GB/s, matmul {rates} GFLOP/s."
    )


def _span(values):
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def _lines(records):
    present = {row["provider"] for record in records for row in record["rows"]} - RATES
    names = [name for name in PROVIDERS if name in present] + sorted(present - set(PROVIDERS))
    head = ["case", "pass", "MB", "MFLOP", "floor, ms", *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for record in sorted(records, key=lambda record: (record["shape"]["batch"], record["case"], record["precision"])):
        rows = {(row["pass"], row["provider"]): row for row in record["rows"]}
        for kind in dict.fromkeys(row["pass"] for row in record["rows"]):
            first = next(row for row in record["rows"] if row["pass"] == kind)
            work = [f"{first['bytes'] / 1e6:.3g}", f"{first['flops'] / 1e6:.3g}", f"{first['floor_ms']:.3g}"]
            cells = [_cell(rows.get((kind, name)), "gpu" in record["machine"]) for name in names]
            lines.append("| " + " | ".join([f"{record['case']}, {record['precision']}", kind, *work, *cells]) + " |")
    return "\n".join(lines)


def _cell(row, on_gpu):
    if row is None:
        return "-"
    share = f"{100 * row['floor_share']:.0f} %"
    return f"{row['ms_50']:.3g} / {row['wall_ms_50']:.3g}, {share}" if on_gpu else f"{row['ms_50']:.3g}, {share}"


def floor_table(root=ROOT):
    """empirical_ntk on a CPU in units of its floor, and what it takes of memory."""
    lines = ["| all ten kernels | floor | nftk | plain PyTorch, two loops |", "|---|---|---|---|"]
    for name, said in (("256-full", "256 points, full"), ("2000-trace", "2,000 points, trace")):
        path = root / "bench" / "results" / "cpu" / f"empirical_ntk_{name}-highest.json"
        if not path.exists():
            continue
        record = read(path)
        rows = {row["provider"]: row for row in record["rows"]}
        floor = rows["nftk"]["flops"] / rows["matmul-2048"]["tflop_s"] / 1e12
        cells = [
            f"{rows[one]['ms_50'] / 1e3:.2f} s, {rows[one]['ms_50'] / 1e3 / floor:.2f}x" for one in ("nftk", "two-loop")
        ]
        lines.append("| " + " | ".join([said, f"{floor:.2f} s", *cells]) + " |")
    for path in sorted((root / "bench" / "results" / "cpu").glob("memory_*.json")):
        record = read(path)
        peak, output = (f"{record[key] / 2**30:.2f} GiB" for key in ("peak_bytes", "output_bytes"))
        data = {"mnist": "MNIST images", "random": "random inputs"}[record["data"]]
        lines.append(
            f"\nUnder a `memory_budget` of {record['budget_bytes'] / 2**30:g} GiB, the traces of {record['points']:,} "
            f"{data}: {peak} at most beside inputs and {output} of output, in {record['seconds']:.0f} s."
        )
    return "\n".join(lines) if len(lines) > 2 else "No record."


def peer_table(root=ROOT):
    """Other libraries' time for the same ten kernels, in units of nftk's in the same run."""
    path = root / "bench" / "results" / "cpu" / "peers_empirical_ntk.json"
    if not path.exists():
        return "No record."
    record = read(path)
    peers = {
        "nftk": "nftk",
        "two-loop": "plain PyTorch, two loops",
        "nngeometry": "nngeometry",
        "neural-tangents": "neural-tangents, its fastest",
        "torch.func": "torch.func",
    }
    lines = [f"| points | {' | '.join(peers.values())} |", "|---" * (len(peers) + 1) + "|"]
    for points in sorted({row["points"] for row in record["rows"]}):
        timed = [row for row in record["rows"] if row["points"] == points and "ms_50" in row]
        cells = [f"{points}, full"]
        for peer in peers:
            of = [row for row in timed if row["provider"].startswith(peer)]
            best = min(of, key=lambda row: row["ms_50"], default=None)
            times = 1.0 if best is None else best["ratio_to_nftk"]
            ratio = "" if peer == "nftk" else f", {times:.{2 if times < 10 else 0}f}x"
            cells.append("-" if best is None else f"{best['ms_50'] / 1e3:.3g} s{ratio}")
        lines.append("| " + " | ".join(cells) + " |")
    machine = record["machine"]
    told = f"{machine['cpu']}, {machine['threads']} thread{'s'[: machine['threads'] > 1]}; torch {machine['torch']}"
    return "\n".join([*lines, f"\n{told}; {', '.join(record['packages'])}; {machine['date']}; {machine['commit']}."])


def convolutional_table(root=ROOT):
    """Time of nngeometry for the kernel of a convolutional network, in units of nftk's in the same run."""
    path = root / "bench" / "results" / "cpu" / "peers_convolutional_ntk.json"
    if not path.exists():
        return "No record."
    record = read(path)
    rows = {(row["points"], *row["provider"].split()): row for row in record["rows"]}
    lines = ["| images | nftk | nngeometry |", "|---|---|---|"]
    for points, peer, form in rows:
        if peer == "nngeometry":
            ours, theirs = rows[points, "nftk", form], rows[points, peer, form]
            cells = f"{ours['ms_50'] / 1e3:.3g} s | {theirs['ms_50'] / 1e3:.3g} s, {theirs['ratio_to_nftk']:.1f}x"
            lines.append(f"| {points:,}, {form} | {cells} |")
    machine = record["machine"]
    return "\n".join([*lines, f"\n{machine['cpu']}, {machine['threads']} thread{'s'[: machine['threads'] > 1]}; "
                      f"torch {machine['torch']}; {machine['date']}; {machine['commit']}."])  # fmt: skip


def project_table(root=ROOT):
    """Random projections against a matrix that is made and multiplied, and against the product alone."""
    lines = ["| kind, rows | product alone | matrix and product | nftk |", "|---|---|---|---|"]
    for kind, rows in itertools.product(("rademacher", "gaussian", "sjlt"), (16, 128, 512)):
        path = root / "bench" / "results" / "cpu" / f"project_{kind}-{rows}.json"
        if path.exists():
            seconds = read(path)["cpu_seconds"]
            alone, whole, ours = (seconds[name] for name in ("product alone", "matrix and product", "nftk"))
            lines.append(f"| {kind}, {rows} | {alone:.2f} s | {whole:.2f} s | {ours:.2f} s, {ours / whole:.2f}x |")
    return "\n".join(lines) if len(lines) > 2 else "No record."


def infinite_table(root=ROOT):
    """infinite_ntk on a CPU against eager torch, and against neural-tangents' stax, each in a run of its own."""
    lines = ["| ten kernels | nftk | weighted sum alone | plain PyTorch |", "|---|---|---|---|"]
    machine = None
    for activation, dtype in itertools.product(("relu", "erf", "gelu"), ("float64", "float32")):
        path = root / "bench" / "results" / "cpu" / f"infinite_ntk_{activation}-{dtype}.json"
        if path.exists():
            record = read(path)
            machine = record["machine"]
            median = {name: statistics.median(times) for name, times in record["cpu_seconds"].items()}
            ours = median["cpp"]
            cells = [f"{ours:.2f} s", f"{median['cpp, weighted']:.2f} s"]
            cells.append(f"{median['eager']:.2f} s, {median['eager'] / ours:.1f}x")
            lines.append(f"| {activation}, {dtype} | " + " | ".join(cells) + " |")
    if machine is None:
        return "No record."
    threads = f"{machine['threads']} thread{'s'[: machine['threads'] > 1]}"
    lines.append(
        f"\nSeconds of CPU time; {machine['cpu']}, {threads}; torch {machine['torch']}; {machine['date']}; "
        f"{machine['commit']}."
    )
    path = root / "bench" / "results" / "cpu" / "peers_infinite_ntk.json"
    if path.exists():
        record = read(path)
        rows = {row["provider"]: row for row in record["rows"]}
        lines += [
            "",
            "| ten kernels, float64 | nftk | stax, as it comes | stax, compiled together |",
            "|---|---|---|---|",
        ]
        for activation in ("relu", "erf", "gelu"):
            them = [rows[f"neural-tangents {activation}{how}"] for how in ("", " compiled")]
            cells = [f"{one['ms_50'] / 1e3:.2f} s, {one['ratio_to_nftk']:.1f}x" for one in them]
            ours = f"{rows[f'nftk {activation}']['ms_50'] / 1e3:.2f} s"
            lines.append("| " + " | ".join([activation, ours, *cells]) + " |")
        machine = record["machine"]
        threads = f"{machine['threads']} thread{'s'[: machine['threads'] > 1]}"
        packages = ", ".join(name for name in record["packages"] if name.startswith(("jax", "neural")))
        lines.append(f"\n{threads}; {packages}; {machine['date']}; {machine['commit']}.")
    return "\n".join(lines)


def experiment_table(name, number=0, root=ROOT):
    """One of the tables that nftk reproduce wrote, as it stands there."""
    path = root / "results" / f"{name}.md"
    if not path.exists():
        return "No record."
    tables = re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
    return tables[number].rstrip()


def mnist_omega_table(root=ROOT):
    """MNIST by ridge regression on ten infinite kernels: what learning Omega gains."""
    path = root / "bench" / "results" / "mnist_omega.json"
    if not path.exists():
        return "No record."
    record = read(path)
    runs = [run["test_accuracy"] for run in record["runs"]]
    depths = [name for name in runs[0] if name.startswith("depth ")]
    best = [max(run[depth] for depth in depths) for run in runs]
    lines = ["| kernel | test accuracy | above the best depth |", "|---|---|---|"]
    for name in (*depths, "uniform", *record["learned_above"]):
        values = [run[name] for run in runs]
        gains = [100 * (value - other) for value, other in zip(values, best, strict=True)]
        gain = f"{statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})"
        lines.append(f"| {name} | {_spread(values)} | {gain} |")
    return "\n".join(lines)


def target_table(root=ROOT):
    """Every target of the GPU records, met or not."""
    lines = []
    for folder in folders(True, root):
        for path in sorted(folder.glob("*.json")):
            record = read(path)
            for one in record.get("targets", []):
                value = "-" if one["value"] is None else f"{one['value']:.3g}"
                met = {True: "met", False: "not met", None: "not measured"}[one["met"]]
                names = " against ".join(one[side] for side in ("ours", "theirs") if side in one) or "-"
                work = f"{record['op']} {record['case']}, {record['precision']}"
                lines.append(f"| {folder.name} | {work} | {one['target']} | {value} | {met} | {names} |")
    head = ["| GPU | work | target | value | | by |", "|---|---|---|---|---|---|"]
    return "\n".join(head + lines) if lines else NONE_YET


def fit_table(root=ROOT):
    """A step within nftk.fit, as one CUDA graph and without."""
    lines = []
    for folder in folders(True, root):
        for path in sorted(folder.glob("fit_*_graph.json")):
            beside = path.with_name(path.name.replace("_graph", "_eager"))
            times = [f"{read(one)['step_ms']:.3g}" if one.exists() else "-" for one in (path, beside)]
            lines.append(f"| {folder.name} | {read(path)['case']} | {times[0]} | {times[1]} |")
    head = ["| GPU | shape | step as a graph, ms | without, ms |", "|---|---|---|---|"]
    return "\n".join(head + lines) if lines else NONE_YET


def mnist_table(root=ROOT):
    """Seconds of training to 97.4 % on MNIST, by seed."""
    lines = []
    for folder in folders(True, root):
        for path in sorted(folder.glob("mnist_*.json")):
            record = read(path)
            for run in record["runs"]:
                reached = run["seconds_to_goal"]
                shown = "-" if reached is None else f"{reached:.2f} s"
                best = f"{100 * max(run['test_accuracy']):.2f} %"
                whole = f"{len(run['seconds'])} epochs in {run['seconds'][-1]:.2f} s"
                cells = (folder.name, record["precision"], str(run["seed"]), shown, f"{best}, {whole}")
                lines.append("| " + " | ".join(cells) + " |")
    head = ["| GPU | precision | seed | to 97.4 % | best |", "|---|---|---|---|---|"]
    return "\n".join(head + lines) if lines else NONE_YET


def resource_table(root=ROOT):
    """The compiled kernels at the paper's shape and at the large batch: registers and shared memory, by GPU."""
    record = read(root / "bench" / "results" / "resources.json")
    cases = ("mnist-10x256, 50", "10x256, 65536", "10x256, 65536, bfloat16")
    rows = {(row["case"], row["kernel"], row["capability"]): row for row in record["rows"]}
    capabilities = sorted({capability for _, _, capability in rows})
    lines = [
        "| case | kernel | " + " | ".join(f"sm_{c}" for c in capabilities) + " |",
        "|---|---|" + "---|" * len(capabilities),
    ]
    for case in (*cases, *(name for name in dict.fromkeys(case for case, _, _ in rows) if name.startswith("infinite"))):
        for kernel in dict.fromkeys(kernel for name, kernel, _ in rows if name == case):
            cells = []
            for capability in capabilities:
                row = rows[case, kernel, capability]
                spills = f", {row['spills']} B spilled" if row["spills"] else ""
                cells.append(f"{row['registers']}, {row['shared'] / 1024:.0f} KiB, {row['products']}{spills}")
            lines.append(f"| {case} | {kernel} | " + " | ".join(cells) + " |")
    spilled = sum(row["spills"] > 0 for row in record["rows"])
    lines.append(
        f"\n{len(record['rows'])} kernels compiled with Triton {record['triton']}, {spilled} of them with spills."
    )
    return "\n".join(lines)


TABLES = {
    "docs/surrogates.md": {
        "two_digits": functools.partial(experiment_table, "two-digits"),
        "ten_digits": functools.partial(experiment_table, "ten-digits"),
        "ten_digits_probabilities": functools.partial(experiment_table, "ten-digits", 1),
        "poisoned": functools.partial(experiment_table, "poisoned"),
        "poisoned_surrogates": functools.partial(experiment_table, "poisoned", 1),
        "poisoned_modules": functools.partial(experiment_table, "poisoned", 2),
        "counterfactual": functools.partial(experiment_table, "counterfactual"),
        "projections": functools.partial(experiment_table, "projections"),
        "trntk": functools.partial(experiment_table, "projections", 1),
        "convolutional": convolutional_table,
    },
    "docs/reproduction.md": {
        "choice": functools.partial(experiment_table, "choice"),
        "table1": functools.partial(experiment_table, "table1"),
        "mse": functools.partial(experiment_table, "table1", 1),
        "figure2": functools.partial(experiment_table, "figure2"),
        "starts": functools.partial(experiment_table, "sparsity"),
        "earned": functools.partial(experiment_table, "sparsity", 1),
        "stability": functools.partial(experiment_table, "stability"),
        "theorem1": functools.partial(experiment_table, "theorem1"),
    },
    "README.md": {
        "table1": functools.partial(experiment_table, "table1"),
        "starts": functools.partial(experiment_table, "sparsity"),
        "earned": functools.partial(experiment_table, "sparsity", 1),
        "stability": functools.partial(experiment_table, "stability"),
        "step": step_table,
        "ntk": floor_table,
        "peers": peer_table,
        "infinite": infinite_table,
        "theorem1": functools.partial(experiment_table, "theorem1"),
        "mnist_omega": mnist_omega_table,
    },
    "bench/README.md": {
        **{
            f"{op} {'gpu' if on_gpu else 'cpu'}": functools.partial(op_table, op, on_gpu)
            for op in ("readout", "network", "step", "tangent_gram", "empirical_ntk")
            for on_gpu in (False, True)
        },
        "ratio": step_table,
        "ntk": floor_table,
        "peers": peer_table,
        "project": project_table,
        "infinite": infinite_table,
        "mnist_omega": mnist_omega_table,
        "targets": target_table,
        "fit": fit_table,
        "mnist": mnist_table,
        "resources": resource_table,
    },
}


def filled(text, tables):
    """Return a page's text with each table between its two marks replaced."""
    for name, table in tables.items():
        begin, end = f"<!-- table {name}: bench/tables.py -->\n", "<!-- end -->"
        head, rest = text.split(begin)
        _, tail = rest.split(end, 1)
        text = f"{head}{begin}{table()}\n{end}{tail}"
    return text


def _spread(values):
    if not values:
        return "-"
    mean, low, high = (100 * v for v in (statistics.mean(values), min(values), max(values)))
    return f"{mean:.2f} % ({low:.2f} to {high:.2f})"


def main():
    stale = []
    for page, tables in TABLES.items():
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = filled(old, tables)
        if new != old:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"{' and '.join(stale)}: not what the records say; run python bench/tables.py")


if __name__ == "__main__":
    main()
