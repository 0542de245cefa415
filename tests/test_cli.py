"""The command line as a person types it: what it says of itself, and how it ends on bad input."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_runs import (
    blobs,  # noqa: F401  (a fixture)
    command,
    start,
    wide_terminal,  # noqa: F401  (a fixture)
    write_idx,
)

import nftk
from nftk.cli import main


class TestInfo:
    def test_json(self):
        done = command("info", "--json")
        told = json.loads(done.stdout)
        assert told["torch"] == torch.__version__
        assert told["backends"]["torch"] == {"usable": True}
        assert set(told["backends"]) == {"torch", "cpp", "triton", "cuda"}
        for state in (*told["backends"].values(), *told["devices"].values(), *told["packages"].values()):
            assert state["usable"] or len(state["why"]) > 20

    def test_table(self):
        told = command("info").stdout
        assert re.search(r"backends torch .* yes", told)
        assert re.search(r"backends triton .* (yes|no: )", told)

    def test_which_kernels_serve_which_shape(self):
        told = json.loads(command("info", "--json").stdout)["with backend='auto'"]
        assert told["on a GPU, 784-[256]*10-10"] == "triton: one launch forward, two backward"
        assert "layer by layer" in told["on a GPU, 784-[2048]*4-10"]
        assert "wider than 1024, got 2048" in told["on a GPU, 784-[2048]*4-10"]
        assert "more than 64 outputs, got 100" in told["on a GPU, 784-[256]*10-100"]
        assert told["on a GPU, 784-[256]*10-10, float64"].startswith("node: ")
        assert "CUDA GPU" in told["on a CPU"]

    def test_version(self):
        assert command("--version").stdout.strip() == nftk.__version__


class TestBadInput:
    """One sentence on standard error, exit 2, no traceback, nothing half-written."""

    def fails(self, tmp_path, *arguments):
        out = tmp_path / "out"
        done = command("train", "--out", out, *arguments)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stdout == ""
        return done.stderr, out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--data", "nowhere.npz"), "neither a name nor a path that exists"),
            (("--width", 0), "--width and --depth must be at least 1, got width 0"),
            (("--depth", 0), "--width and --depth must be at least 1, got width 128 and depth 0"),
            (("--width", "8,x"), "--width must be a number"),
            (("--width", "8,8", "--depth", 3), "--depth must be 2, as many as --width lists, got 3"),
            (("--epochs", -1), "nftk: --epochs must be at least 0, got -1"),
            (("--batch-size", 0), "nftk: --batch-size must be at least 1, got 0"),
            (("--lr", "nan"), "nftk: --lr must be finite and at least 0, got nan"),
            (("--constraint", "box"), "constraint must be one of"),
            (("--radius", 2), "--radius must go with a constraint that takes it, got --constraint nonnegative"),
            (("--constraint", "simplex", "--radius", -1), "radius must be finite and above 0, got -1"),
            (("--activation", "swish"), "activation must be one of"),
            (("--parameterization", "mup"), "--parameterization must be standard or ntk, got 'mup'"),
            (("--schedule", "random"), "--schedule must be joint or alternating, got 'random'"),
            (("--loss", "hinge"), "--loss must be cross_entropy or mse, got 'hinge'"),
            (("--standardize", "row"), "--standardize must be auto, global, feature or none, got 'row'"),
            (("--device", "abacus"), "nftk: --device must be one that torch can use here"),
            (("--device", "cuda:99"), "nftk: --device must be one that torch can use here"),
            (("--seed", 2**70), "--seed must be at least 0 and below 2**63"),
            (("--width", 10**12), "--width must leave a network that fits in memory"),
            (("--threads", 0), "threads must be at least 1, got 0"),
            (("--seed", -1), "--seed must be at least 0 and below 2**63, got -1"),
            (("--data", "mnist", "--data-dir", "nowhere"), "nowhere"),
        ],
    )
    def test_settings(self, tmp_path, arguments, message):
        said, out = self.fails(tmp_path, *arguments)
        assert message in said
        assert not out.exists()

    def test_files(self, tmp_path):
        cases = {
            "magic": ({"train_labels_idx1_ubyte": b"\0\0\7\1" + bytes(4)}, "train-labels-idx1-ubyte"),
            "range": ({"t10k_labels_idx1_ubyte": b"\0\0\10\1\0\0\0\12" + bytes([9] * 10)}, "labels must be in 0..2"),
            "truncated": ({"train_images_idx3_ubyte": b"\37\213\10\0abc"}, "train-images-idx3-ubyte"),
        }
        for name, (changes, message) in cases.items():
            write_idx(tmp_path / name, **changes)
            said, out = self.fails(tmp_path, "--data", tmp_path / name)
            assert message in said
            assert not out.exists()

    def test_nan(self, tmp_path):
        x = np.ones((5, 3))
        x[3, 1] = np.nan
        np.savez(tmp_path / "a.npz", x_train=x, y_train=np.zeros(5, int), x_test=x[:2], y_test=np.zeros(2, int))
        said, out = self.fails(tmp_path, "--data", tmp_path / "a.npz")
        assert "finite" in said
        assert not out.exists()

    def test_diverging_run_is_one_sentence_and_exit_1(self, tmp_path, npz):
        done = command("train", "--data", npz, "--out", tmp_path / "r", "--lr", 1e30, "--json")
        assert done.returncode == 1
        assert done.stdout == ""
        assert not list((tmp_path / "r").glob("*.pt"))
        assert re.fullmatch(r"nftk.fit: loss must stay finite, got \S+ at epoch \d+, step \d+ of 4; .*\n", done.stderr)

    def test_out_is_a_file(self, tmp_path):
        (tmp_path / "out").write_text("mine")
        done = command("train", "--out", tmp_path / "out")
        assert done.returncode == 2
        assert "--out must be a folder" in done.stderr
        assert (tmp_path / "out").read_text() == "mine"

    def test_unknown_option(self):
        done = command("train", "--speed", 3)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr

    def test_a_process_of_its_own_ends_the_same(self, tmp_path):
        with start("train", "--width", 0, "--out", tmp_path / "out") as process:
            out, err = process.communicate()
        assert (process.returncode, out) == (2, "")
        assert err == "nftk: --width and --depth must be at least 1, got width 0 and depth 5\n"

    def test_ctrl_c_while_imports_run(self, monkeypatch, capsys):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("nftk._optional.require", interrupted)
        heard = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
            # a second one must not cut the line off
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, heard)
        assert ended.value.code == 130
        assert capsys.readouterr().err == "nftk: interrupted\n"

    @pytest.mark.parametrize("content", [b"", b"junk", b"PK\3\4 and no more", b"\x80\x02}q\x00.", bytes(300)])
    def test_damaged_checkpoint(self, tmp_path, content):
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(content)
        x, y = torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"nftk.fit: .*checkpoint.pt must be a ") as raised:
            nftk.fit(nftk.NFTKMLP(3, [4], 2), (x, y), epochs=1, checkpoint=path, resume=True)
        if "whole" in str(raised.value):
            assert str(raised.value).endswith("; if it was cut off or damaged, remove it, and the run starts anew")

    def test_missing_typer_is_named_with_its_command(self):
        code = "import sys; sys.modules['typer'] = None; from nftk.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.strip() == "nftk: the command line needs typer; run `pip install 'nftk[app]'`"
