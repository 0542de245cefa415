"""python bench/peers/run.py: time other libraries' tangent kernels beside nftk's; README.md here says how."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _convolutional
import _machine

HERE = Path(__file__).resolve().parent
M, WIDTHS, D = 784, (256,) * 10, 10
# by points: which peers run; the rest take too long, or too much memory
PEERS = {32: ("nftk", "nngeometry", "neural_tangents"), 256: ("nftk", "nngeometry")}
LEFT_OUT = {(256, "torch.func")}
GOALS = {(32, "nngeometry"): 20, (256, "nngeometry"): 9, (32, "neural-tangents"): 50, (32, "torch.func"): 300}
# kernels of infinite width: peers, inputs, and what is promised
INFINITE, INFINITE_POINTS, INFINITE_FEATURES = ("nftk", "neural_tangents"), 2000, 30
INFINITE_GOALS = {"neural-tangents relu": 20, "neural-tangents relu compiled": 20, "eager relu": 6}
# the convolutional network of MNIST's experiments, which nngeometry takes too
CONVOLUTIONAL, CONVOLUTIONAL_FORMS = ("nftk", "nngeometry"), {100: ("full", "trace"), 2000: ("trace",)}
# enough of one way; what takes longer than this at once is timed once
SECONDS = 60.0


def environment(peer, folder):
    """Return the Python of a peer's environment, made where it is not there yet."""
    requirements = HERE / f"requirements-{peer.replace('_', '-')}.txt"
    if not requirements.exists():
        return sys.executable
    where = folder / peer
    python, stamp = where / "bin" / "python", where / "installed.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"making {where}", flush=True)
        venv.create(where, clear=True, with_pip=True)
        on_our_torch = peer == "nngeometry"
        options = ["--no-deps"] if on_our_torch else []
        subprocess.run([python, "-m", "pip", "install", "-q", *options, "-r", requirements], check=True)
        if on_our_torch:
            theirs = subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            (Path(theirs.stdout.strip()) / "nftk_environment.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        stamp.write_text(requirements.read_text())
    return python


class Peer:
    """A process that holds a peer."""

    def __init__(self, peer, folder, cores):
        # jax has no other way to be told how many threads
        self.process = subprocess.Popen(
            [environment(peer, folder), HERE / f"peer_{peer}.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip

    def ask(self, **asked):
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args[1]} ended: run it by hand to see why")
        return json.loads(answer)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def network(path, n):
    """Weights as NFTKMLP draws them, with biases that are not 0, and inputs, as numpy arrays."""
    rng, fan_in, arrays = np.random.default_rng(0), (M, *WIDTHS), {}
    for i, (a, b) in enumerate(zip(fan_in, WIDTHS, strict=False)):
        arrays |= {f"w{i}": rng.normal(0, (2 / a) ** 0.5, (b, a)), f"b{i}": rng.normal(0, 0.1, b)}
        arrays[f"v{i}"] = rng.normal(0, b**-0.5, (D, b))
    arrays["x"] = rng.normal(0, 1, (n, M))
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})


def infinite(peers, rounds, folder):
    """Rows of the kernels of infinite width, ten depths in float64, an activation at a time."""
    x, points = np.random.default_rng(0).normal(size=(INFINITE_POINTS, INFINITE_FEATURES)), INFINITE_POINTS
    np.savez(folder / "inputs.npz", x=x)
    offered = {name: peers[name].ask(do="load", path=str(folder / "inputs.npz"))["ways"] for name in INFINITE}
    rows = []
    for phi in ("relu", "erf", "gelu"):
        ways, truth, found = {}, None, {}
        for name, all_ways in offered.items():
            for way in (way for way in all_ways if phi in way.split()):
                peers[name].ask(do="save", way=way, path=str(folder / "kernels.npy"))
                kernels = np.load(folder / "kernels.npy")
                truth = kernels if truth is None else truth
                off = float(np.linalg.norm(kernels - truth) / np.linalg.norm(truth))
                # on the diagonal a plain acos has lost half its digits
                assert off < 1e-7, f"{way} differs from nftk by {off:.1e}"
                ways[way] = peers[name]
                found[way] = {"activation": phi, "points": points, "provider": way, "difference": off}
        rows += timed(found, ways, rounds, f"nftk {phi}")
    return rows


def convolutional(peers, rounds, folder):
    """Rows of the kernel of a convolutional network: all pairs of outputs, and the trace, each against nftk's."""
    return [
        row for points, forms in CONVOLUTIONAL_FORMS.items() for row in of_points(points, forms, peers, rounds, folder)
    ]


def of_points(points, forms, peers, rounds, folder):
    """Rows of one number of images."""
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(0, 1, (points, 1, 28, 28))}
    for i, shape in enumerate(_convolutional.SHAPES):
        arrays |= {
            f"w{i}": rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape),
            f"b{i}": rng.normal(0, 0.1, shape[0]),
        }
    np.savez(folder / "network.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
    rows, truth = [], {}
    offered = {name: peers[name].ask(do="load", path=str(folder / "network.npz"))["ways"] for name in CONVOLUTIONAL}
    for form in forms:
        ways, found = {}, {}
        for name, all_ways in offered.items():
            way = next(way for way in all_ways if way.endswith(form))
            answer = peers[name].ask(do="save", way=way, path=str(folder / "kernels.npy"))
            assert "failed" not in answer, answer
            kernel = np.load(folder / "kernels.npy")
            truth.setdefault(form, kernel)
            assert kernel.shape == truth[form].shape, f"{way}: {kernel.shape} instead of {truth[form].shape}"
            off = float(np.linalg.norm(kernel - truth[form]) / np.linalg.norm(truth[form]))
            assert off < 1e-5, f"{way} differs from nftk by {off:.1e}"
            ways[way], found[way] = peers[name], {"points": points, "provider": way, "difference": off}
        rows += timed(found, ways, rounds, f"nftk {form}")
    return rows


def compare(points, peers, rounds, folder):
    """Rows of one number of points: the kernels agree first, then all ways in turn, round by round."""
    ways, rows, truth = {}, {}, None
    network(folder / "network.npz", points)
    for name in PEERS[points]:
        for way in peers[name].ask(do="load", path=str(folder / "network.npz"))["ways"]:
            if (points, way) in LEFT_OUT:
                continue
            if way != "matmul-2048":
                # the call that compiles, too
                started = time.perf_counter()
                answer = peers[name].ask(do="save", way=way, path=str(folder / "kernels.npy"))
                print(f"{points} points, {way}: first call {time.perf_counter() - started:.1f} s", flush=True)
                if "failed" in answer:
                    rows[way] = {"points": points, "provider": way, **answer}
                    print(f"{points} points, {way}: {answer['failed']}", flush=True)
                    continue
                found = np.load(folder / "kernels.npy")
                truth = found if truth is None else truth
                assert found.shape == truth.shape, f"{way}: {found.shape} instead of {truth.shape}"
                off = float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
                assert off < 1e-5, f"{way} differs from nftk by {off:.1e}"
                rows[way] = {"points": points, "provider": way, "difference": off}
            else:
                rows[way] = {"points": points, "provider": way}
            ways[way] = peers[name]
    return timed(rows, ways, rounds, "nftk")


def timed(rows, ways, rounds, ours):
    """Rows with the times of all ways, in turn, round by round."""
    times = {way: [] for way in ways}
    for done in range(rounds):
        for way, peer in ways.items():
            if sum(filter(None, times[way])) < SECONDS or not done:
                times[way].append(peer.ask(do="time", way=way, seconds=0.3)["seconds"])
    for way, found in times.items():
        ratios = [t / base for t, base in zip(found, times[ours], strict=False)]
        low, middle, high = (1e3 * float(np.quantile(found, q)) for q in (0.2, 0.5, 0.8))
        rows[way] |= {"ms_20": low, "ms_50": middle, "ms_80": high, "times": len(found)}
        rows[way]["ratio_to_nftk"] = statistics.median(ratios)
        said = f"{middle:.1f} ms, {rows[way]['ratio_to_nftk']:.2f}x {ours}"
        print(f"{rows[way]['points']} points, {way}: {said}", flush=True)
    return list(rows.values())


def targets(rows):
    """The fastest way of each peer against what is promised."""
    found = []
    for (points, peer), goal in GOALS.items():
        ratios = {
            row["provider"]: row["ratio_to_nftk"]
            for row in rows
            if row["points"] == points and row["provider"].startswith(peer) and "ratio_to_nftk" in row
        }
        best = min(ratios, key=ratios.get, default=None)
        value = ratios.get(best)
        said = {"target": f"{points} points: >= {goal}x {peer}", "value": value, "met": value and value >= goal}
        found.append(said | {"ours": "nftk", "theirs": best})
    return found


def infinite_targets(rows):
    ratios = {row["provider"]: row["ratio_to_nftk"] for row in rows}
    return [
        {"target": f">= {goal}x {way}", "value": ratios[way], "met": ratios[way] >= goal}
        for way, goal in INFINITE_GOALS.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores that all may use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--points", type=int, nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--infinite", action="store_true", help="the kernels of infinite width instead")
    parser.add_argument("--convolutional", action="store_true", help="the kernel of a convolutional network instead")
    parser.add_argument("--environments", type=Path, default=HERE / "environments", help="where they are, or are made")
    parser.add_argument("--record", type=Path, default=HERE.parent / "results", help="folder for the record")
    given = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[: given.threads])
    names = list(dict.fromkeys(name for points in given.points for name in PEERS[points]))
    names = INFINITE if given.infinite else CONVOLUTIONAL if given.convolutional else names
    peers = {name: Peer(name, given.environments, cores) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        if given.infinite:
            rows = infinite(peers, given.rounds, Path(folder))
        elif given.convolutional:
            rows = convolutional(peers, given.rounds, Path(folder))
        else:
            rows = [row for points in given.points for row in compare(points, peers, given.rounds, Path(folder))]
    for peer in peers.values():
        peer.end()
    pins = [
        line
        for path in sorted(HERE.glob("requirements-*.txt"))
        # TRAK is not timed
        if path.name != "requirements-traker.txt"
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    if given.infinite:
        what = {
            "case": f"infinite_ntk, depth 10, {INFINITE_POINTS} points of {INFINITE_FEATURES} features",
            "precision": "float64",
            "targets": infinite_targets(rows),
        }
    elif given.convolutional:
        said = [
            {
                "target": f"{row['points']} points: faster than {row['provider']}",
                "value": row["ratio_to_nftk"],
                "met": row["ratio_to_nftk"] > 1,
            }
            for row in rows
            if row["provider"].startswith("nngeometry")
        ]
        what = {"case": "MNIST CNN, 33,194 parameters", "precision": "highest", "targets": said}
    else:
        what = {
            "case": "784-10x256-10",
            "precision": "highest",
            "shape": {"in_features": M, "hidden_features": WIDTHS, "out_features": D},
            "targets": targets(rows),
        }
    machine = _machine.machine("cpu") | {"threads": given.threads}
    record = {"op": "peers", **what, "rows": rows, "packages": pins, "machine": machine}
    kind = "infinite" if given.infinite else "convolutional" if given.convolutional else "empirical"
    path = given.record / "cpu" / f"peers_{kind}_ntk.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
