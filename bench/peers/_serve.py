"""The one side of run.py: a process that holds a peer, and runs one call when a line on stdin says so."""

import json
import os
import sys
import time

import numpy as np


def main(load):
    """Answer each line of stdin with a line of JSON.

    load takes layers [(W, b)], readouts [V] (of a convolutional network none) and x, all numpy arrays, and returns the
    ways by name, each a pair of functions of nothing: the call that is timed, which returns when its result is there,
    and one that returns the kernels as an array, [L, n, d, n, d], or [L, n, n] of a trace.
    """
    # what a library prints must not come between
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ways = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = _answer(ways, load, **asked)
        except Exception as problem:
            found = {"failed": f"{type(problem).__name__}: {str(problem)[:300]}"}
        print(json.dumps(found), file=answers, flush=True)


def _answer(ways, load, do, path=None, way=None, seconds=0.0):
    if do == "load":
        with np.load(path) as held:
            layers = [(held[f"w{i}"], held[f"b{i}"]) for i in range(sum(name.startswith("w") for name in held))]
            readouts = [held[f"v{i}"] for i in range(sum(name.startswith("v") for name in held))]
            ways.clear()
            ways.update(load(layers, readouts, held["x"]))
        return {"ways": list(ways)}
    call, result = ways[way]
    if do == "save":
        np.save(path, result())
        return {}
    start = time.perf_counter()
    call()
    one = time.perf_counter() - start
    if one >= seconds:
        return {"seconds": one}
    count = int(seconds / one) + 1
    start = time.perf_counter()
    for _ in range(count):
        call()
    return {"seconds": (time.perf_counter() - start) / count}
