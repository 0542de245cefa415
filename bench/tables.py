"""python bench/tables.py [--check]: write the README's tables from the records in bench/results and results."""

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def accuracy_table(root=ROOT):
    """The paper's MNIST networks: mean and range over the seeds of results/."""
    lines = [
        "| network | test accuracy, NFT-K | plain MLP beside it | seeds | zeros in Omega |",
        "|---|---|---|---|---|",
    ]
    for depth in (10, 20):
        runs = [read(path) for path in sorted((root / "results").glob(f"mnist-{depth}x256-seed*/summary.json"))]
        if not runs:
            continue
        ours = [run["test_accuracy"] for run in runs]
        plain = [run["baseline"]["test_accuracy"] for run in runs]
        zeros = sorted({run["zeros"] for run in runs})
        told = f"{zeros[0]} of {depth * 10}" if len(zeros) == 1 else f"{zeros[0]} to {zeros[-1]} of {depth * 10}"
        cells = (f"MNIST, {depth} x 256", _spread(ours), _spread(plain), str(len(runs)), told)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


TABLES = {"accuracy": accuracy_table, "step": step_table}


def filled(text):
    """Return the README's text with each table between its two marks replaced."""
    for name, table in TABLES.items():
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
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv:
        sys.exit("README.md is not what the records say; run python bench/tables.py" if old != new else 0)
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
