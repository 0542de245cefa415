"""nftk in this process or in one of its own, with small data and a finished run."""

import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from nftk.cli.app import app

RUN_FILES = {"config.json", "history.jsonl", "model.safetensors", "omega.png", "summary.json"}


@pytest.fixture(name="_wide_terminal", scope="module", autouse=True)
def wide_terminal():
    """Keep table rows on one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield


def command(*arguments):
    """Run nftk in this process, which saves importing torch each time; kills need one of their own, see start."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def start(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # what runs in a shell's background begins with Ctrl-C ignored, and so would what it starts
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = [sys.executable, "-c", f"{heard}; from nftk.cli import main; main()"]
    return subprocess.Popen(
        [*script, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(name="npz", scope="module")
def blobs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 260)
    x = random.normal(size=(260, 6)) + 3 * np.eye(3)[y] @ random.normal(size=(3, 6))
    x[:, 5] = 1000 + 50 * x[:, 5]
    np.savez(path, x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    return path


QUICK = ("--depth", 2, "--width", 16, "--epochs", 4, "--batch-size", 20, "--lr", 0.1)


@pytest.fixture(name="run", scope="module")
def finished_run(npz, tmp_path_factory):
    """One finished run with a baseline, for the tests that only look."""
    out = tmp_path_factory.mktemp("run") / "one"
    done = command("train", "--data", npz, "--out", out, "--baseline", *QUICK)
    assert done.returncode == 0, done.stderr
    return out, done


def write_idx(folder, **changes):
    folder.mkdir()
    sizes = {"train": 20, "t10k": 10}
    for part, n in sizes.items():
        images = np.random.default_rng(0).integers(0, 255, (n, 4, 4), dtype=np.uint8)
        labels = (np.arange(n) % 3).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + np.array([n, 4, 4], ">i4").tobytes() + images.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([n], ">i4").tobytes() + labels.tobytes()
        )
    for name, content in changes.items():
        (folder / name.replace("_", "-")).write_bytes(content)
