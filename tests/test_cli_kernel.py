"""nftk kernel: the file it leaves, and what is left when it is cut off at any moment."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import nftk
from nftk.cli.app import app
from nftk.data import load_data
from nftk.tangent import file_memory, kernel_file, resumable

pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    arguments = ["train", "--out", str(folder), "--depth", "3", "--width", "24", "--epochs", "1", "--json"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


def call(*arguments):
    return CliRunner().invoke(app, ["kernel", *map(str, arguments)])


def inputs(run, part="train"):
    data = load_data("digits")
    standardizer = nftk.data.Standardizer.fit(data.x_train, data.standardize)
    return standardizer.transform(data.x_train if part == "train" else data.x_test)


def test_the_file_holds_the_kernel(run, tmp_path):
    out = tmp_path / "k.safetensors"
    done = call(run, "--out", out, "--limit", 60, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    model = nftk.NFTKMLP.load(run / "model.safetensors")
    k = nftk.LayerKernels.load(out)
    want = nftk.empirical_ntk(model, inputs(run)[:60], reduction="trace")
    torch.testing.assert_close(k.blocks, want.blocks, rtol=1e-5, atol=1e-5)
    assert (k.names, k.reduction, k.symmetric) == (want.names, "trace", True)
    assert told["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert told["shape"] == [3, 60, 60]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.safetensors"]


def test_options_reach_the_kernel(run, tmp_path):
    out = tmp_path / "k"
    which = ("--limit", 20, "--rows", "test", "--columns", "train", "--per", "model", "--include-omega")
    how = ("--reduction", "full", "--normalize", "cosine", "--dtype", "float64", "--memory-budget", 64)
    done = call(run / "model.safetensors", "--out", out, *which, *how)
    assert done.exit_code == 0, done.stderr
    model = nftk.NFTKMLP.load(run / "model.safetensors").double()
    x1, x2 = inputs(run, "test")[:20].double(), inputs(run)[:20].double()
    want = nftk.empirical_ntk(model, x1, x2, per="model", include_omega=True, normalize="cosine")
    k = nftk.LayerKernels.load(out)
    torch.testing.assert_close(k.blocks, want.blocks, rtol=1e-12, atol=1e-12)
    assert k.normalization == "cosine"
    assert not k.symmetric


@pytest.fixture
def many_tiles(monkeypatch):
    """A note after each of many tiles."""
    monkeypatch.setattr(resumable, "_PATIENCE", 0.0)
    from nftk.ops import tangent_gram_torch

    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (16, 16)})


def interrupt_after(monkeypatch, tiles, error=KeyboardInterrupt):
    """Raise when so many tiles have been filled."""
    from nftk.tangent.sweep import Sweep

    fill, seen = Sweep._fill, []

    def counted(self, *args):
        fill(self, *args)
        seen.append(args[1])
        if len(seen) == tiles:
            raise error

    monkeypatch.setattr(Sweep, "_fill", counted)
    return seen


def test_interrupted_and_resumed(run, tmp_path, monkeypatch, many_tiles):
    whole, out = tmp_path / "whole", tmp_path / "k"
    options = ("--limit", 150, "--memory-budget", 1, "--reduction", "trace", "--json")
    assert json.loads(call(run, "--out", whole, *options).stdout)["tiles"] > 8
    with monkeypatch.context() as patched:
        seen = interrupt_after(patched, 7)
        stopped = call(run, "--out", out, *options)
    assert stopped.exit_code == 130
    assert "the finished tiles are kept" in stopped.stderr
    assert not out.exists()
    with monkeypatch.context() as patched:
        again = interrupt_after(patched, 10_000)
        told = json.loads(call(run, "--out", out, *options).stdout)
    # the seventh was filled, but not noted
    assert told["tiles_found_done"] == 6
    assert len(seen) + len(again) == told["tiles"] + 1
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k", "whole"]


KILLED = """
import sys, time
from nftk.tangent import resumable
from nftk.tangent.sweep import Sweep
from nftk.ops import tangent_gram_torch
tangent_gram_torch._TILE_TRACE = {"cpu": (16, 16)}
resumable._PATIENCE = 0.0
fill = Sweep._fill
def slow(self, *args):
    fill(self, *args)
    time.sleep(0.05)
Sweep._fill = slow
from nftk.cli.app import app
app(sys.argv[1:])
"""


@pytest.mark.slow
def test_kill_nine(run, tmp_path, many_tiles):
    """Killed again and again, at no moment of its choosing; the tiles noted are kept, and the file ends the same."""
    whole, out = tmp_path / "whole", tmp_path / "k"
    options = ["--limit", "200", "--memory-budget", "1", "--json"]
    tiles = json.loads(call(run, "--out", whole, *options).stdout)["tiles"]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, "kernel", str(run), "--out", str(out), *options]
    journal, noted = tmp_path / "k.partial.tiles", 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            lines = journal.read_text().count("\n") if journal.exists() else 0
            if lines > noted + 4:
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        lines = journal.read_text().count("\n") - 1
        assert lines > noted
        noted = lines
    # as if the last note had been cut in the middle
    journal.write_text(journal.read_text() + "[[0, 3], [0, 1")
    told = json.loads(call(run, "--out", out, *options).stdout)
    assert told["tiles_found_done"] == noted
    assert 0 < noted < tiles == told["tiles"]
    assert out.read_bytes() == whole.read_bytes()


def test_another_computation_is_not_mixed_in(run, tmp_path, monkeypatch, many_tiles):
    out = tmp_path / "k"
    options = ("--limit", 150, "--memory-budget", 1)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 5)
        assert call(run, "--out", out, *options).exit_code == 130
    for change in (("--limit", 149), ("--reduction", "full"), ("--dtype", "float64"), ("--normalize", "joint")):
        refused = call(run, "--out", out, *options, *change)
        assert refused.exit_code == 2
        assert "must be finished with the network, inputs and settings it was begun with" in refused.stderr
    other = tmp_path / "other-run"
    arguments = [
        "train",
        "--out",
        str(other),
        "--depth",
        "3",
        "--width",
        "24",
        "--epochs",
        "1",
        "--seed",
        "1",
        "--json",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "it was begun with" in call(other, "--out", out, *options).stderr
    # the budget is no part of the result: the tiles are those that were begun
    assert json.loads(call(run, "--out", out, "--limit", 150, "--json").stdout)["tiles_found_done"] == 4
    assert call(run, "--out", tmp_path / "whole", *options).exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    with monkeypatch.context() as patched:
        interrupt_after(patched, 5)
        assert call(run, "--out", tmp_path / "other", *options).exit_code == 130
    told = call(run, "--out", tmp_path / "other", "--limit", 20, "--overwrite", "--json")
    assert json.loads(told.stdout)["tiles_found_done"] == 0


def test_two_at_once(run, tmp_path):
    out = tmp_path / "k"
    with resumable._locked(tmp_path / "k.partial.tiles"):
        refused = call(run, "--out", out, "--limit", 20)
    assert refused.exit_code == 2
    assert "got another process that writes this kernel" in refused.stderr


def test_a_damaged_beginning_is_begun_anew(run, tmp_path):
    (tmp_path / "k.partial.tiles").write_text("no json\n")
    (tmp_path / "k.partial").write_text("no kernel")
    assert json.loads(call(run, "--out", tmp_path / "k", "--limit", 20, "--json").stdout)["tiles_found_done"] == 0
    nftk.LayerKernels.load(tmp_path / "k")


def test_no_room(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_memory.os, "posix_fallocate", full)
    refused = call(run, "--out", tmp_path / "k", "--limit", 20)
    assert refused.exit_code == 2
    assert "must have room for 4800 bytes, got No space left on device" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "empty", "another", "gone"])
def test_a_damaged_partial_file_is_begun_anew(run, tmp_path, monkeypatch, many_tiles, damage):
    out, partial = tmp_path / "k", tmp_path / "k.partial"
    options = ("--limit", 150, "--memory-budget", 1, "--json")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 7)
        assert call(run, "--out", out, *options).exit_code == 130
    if damage == "gone":
        partial.unlink()
    elif damage == "another":
        partial.write_bytes(bytes(partial.stat().st_size))
    else:
        os.truncate(partial, partial.stat().st_size // 4 if damage == "truncated" else 0)
    assert json.loads(call(run, "--out", out, *options).stdout)["tiles_found_done"] == 0
    whole = tmp_path / "whole"
    assert call(run, "--out", whole, *options).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_overwrite_resumes_its_own_and_replaces_at_the_end(run, tmp_path, monkeypatch, many_tiles):
    out = tmp_path / "k"
    out.write_text("the old one")
    options = ("--limit", 150, "--memory-budget", 1, "--overwrite", "--json")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 7)
        assert call(run, "--out", out, *options).exit_code == 130
    assert out.read_text() == "the old one"
    assert json.loads(call(run, "--out", out, *options).stdout)["tiles_found_done"] == 6
    nftk.LayerKernels.load(out)


def test_killed_after_the_file_got_its_name(run, tmp_path, monkeypatch, many_tiles):
    out = tmp_path / "k"
    with monkeypatch.context() as patched:
        patched.setattr(resumable, "_sync_folder", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(run, "--out", out, "--limit", 20).exit_code == 130
    assert (tmp_path / "k.partial.tiles").exists()
    assert call(run, "--out", out, "--limit", 20, "--overwrite").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k"]


def test_links_are_followed_and_the_run_is_safe(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert call(run, "--out", tmp_path / "link", "--limit", 5).exit_code == 0
    assert (tmp_path / "link").is_symlink()
    nftk.LayerKernels.load(tmp_path / "target")
    refused = call(run, "--out", run / "model.safetensors", "--limit", 5, "--overwrite")
    assert refused.exit_code == 2
    assert "--out must not be a file of the run itself" in refused.stderr
    nftk.NFTKMLP.load(run / "model.safetensors")


def test_a_lock_on_a_file_that_is_gone_is_no_lock(tmp_path, monkeypatch):
    """Another process finishes, and removes the journal, between the opening and the lock of this one."""
    journal, flock, calls = tmp_path / "k.partial.tiles", resumable.fcntl.flock, []

    def late(file, how):
        calls.append(how)
        if len(calls) == 1:
            journal.unlink()
        flock(file, how)

    monkeypatch.setattr(resumable.fcntl, "flock", late)
    with resumable._locked(journal) as notes:
        assert os.path.samestat(os.fstat(notes.fileno()), journal.stat())
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--rows", "all"], "--rows must be train or test, got 'all'"),
        (["--columns", "all"], "--columns must be train or test, got 'all'"),
        (["--dtype", "bfloat16"], "--dtype must be float32 or float64"),
        (["--memory-budget", "0"], "--memory-budget must be at least 1 MiB, got 0"),
        (["--device", "gpu"], "--device must be one that torch finds here, got 'gpu'"),
        (["--reduction", "sum"], "reduction must be one of"),
        (["--per", "layer", "--include-omega"], "include_omega must go with"),
        (["--data", "nothing.npz"], "data must be digits"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_bad_input(run, tmp_path, arguments, text):
    refused = call(run, "--out", tmp_path / "k", *arguments)
    assert refused.exit_code == 2
    assert text in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be(run, tmp_path):
    (tmp_path / "there").write_text("mine")
    for out, text in (
        (tmp_path / "there", "--out must not be there yet"),
        (tmp_path, "--out must be a file in a folder that exists"),
        (tmp_path / "no" / "k", "--out must be a file in a folder that exists"),
    ):
        refused = call(run, "--out", out)
        assert refused.exit_code == 2
        assert text in refused.stderr
    assert (tmp_path / "there").read_text() == "mine"
    assert call(run, "--out", tmp_path / "there", "--limit", 5, "--overwrite").exit_code == 0
    nftk.LayerKernels.load(tmp_path / "there")
    refused = call(tmp_path / "no-run", "--out", tmp_path / "k")
    assert refused.exit_code == 2
    assert "must be a run of nftk train" in refused.stderr


def test_the_file_is_what_safetensors_reads(tmp_path):
    from safetensors import safe_open

    header = kernel_file.describe(("a",), "trace", None, False)
    what = ((1, 2, 3), torch.float64, header)
    file_memory.create(tmp_path / "k", *what)
    assert file_memory.is_as_created(tmp_path / "k", *what)
    memory = file_memory.open_memory(tmp_path / "k", *what)
    memory[:] = 7
    memory.flush()
    with safe_open(str(tmp_path / "k"), framework="pt") as file:
        assert file.get_tensor("kernels").eq(7).all()
    assert nftk.LayerKernels.load(tmp_path / "k").blocks.shape == (1, 2, 3)
