"""The command line as a person types it: what it leaves, what it says, and how it ends."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import nftk
from nftk.cli import main
from nftk.cli import train as training
from nftk.cli.app import app
from nftk.cli.settings import Settings
from nftk.modules.plain_mlp import plain_mlp

RUN_FILES = {"config.json", "history.jsonl", "model.safetensors", "omega.png", "summary.json"}


@pytest.fixture(scope="module", autouse=True)
def _wide_terminal():
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


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 260)
    x = random.normal(size=(260, 6)) + 3 * np.eye(3)[y] @ random.normal(size=(3, 6))
    x[:, 5] = 1000 + 50 * x[:, 5]
    np.savez(path, x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    return path


QUICK = ("--depth", 2, "--width", 16, "--epochs", 4, "--batch-size", 20, "--lr", 0.1)


@pytest.fixture(scope="module")
def run(npz, tmp_path_factory):
    """One finished run with a baseline, for the tests that only look."""
    out = tmp_path_factory.mktemp("run") / "one"
    done = command("train", "--data", npz, "--out", out, "--baseline", *QUICK)
    assert done.returncode == 0, done.stderr
    return out, done


class TestTrain:
    def test_leaves_the_files_of_the_contract(self, run):
        out, _ = run
        assert {p.name for p in out.iterdir()} == RUN_FILES | {"baseline_history.jsonl"}
        assert (out / "omega.png").read_bytes().startswith(b"\x89PNG")

    def test_summary(self, run):
        summary = json.loads((run[0] / "summary.json").read_text())
        assert 0.8 < summary["test_accuracy"] <= 1
        assert 0.8 < summary["baseline"]["test_accuracy"] <= 1
        assert summary["zeros"] == 0
        assert summary["seconds"] > 0
        assert summary["baseline"]["seconds"] > 0
        assert summary["epochs"] == 4
        model = nftk.NFTKMLP.load(run[0] / "model.safetensors")
        assert summary["parameters"] == sum(p.numel() for p in model.parameters()) == 6 * 16 + 17 * 16 + 16 + 3 * 34
        assert summary["baseline"]["parameters"] == 7 * 16 + 17 * 16 + 17 * 3

    def test_history_has_a_line_an_epoch(self, run):
        for name in ("history.jsonl", "baseline_history.jsonl"):
            lines = [json.loads(line) for line in (run[0] / name).read_text().splitlines()]
            assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
        summary = json.loads((run[0] / "summary.json").read_text())
        assert lines[-1]["test_accuracy"] == summary["baseline"]["test_accuracy"]

    def test_config_says_everything(self, run):
        config = json.loads((run[0] / "config.json").read_text())
        assert config["hidden_features"] == [16, 16]
        assert config["lr"] == 0.1
        assert config["lr_omega"] == 0.05
        assert config["weight_decay"] == 2e-6
        assert config["constraint"] == {"name": "nonnegative"}

    def test_on_a_pipe_there_is_a_line_an_epoch(self, run):
        done = run[1]
        assert len(re.findall(r"^nftk epoch \d of 4: loss [\d.]+, test accuracy", done.stderr, re.M)) == 4
        assert len(re.findall(r"^baseline epoch", done.stderr, re.M)) == 4
        assert "test_accuracy" in done.stdout

    def test_same_seed_same_bytes(self, run, npz, tmp_path):
        done = command("train", "--data", npz, "--out", tmp_path / "two", *QUICK, "--json")
        assert done.stderr == ""
        assert (
            json.loads(done.stdout)["test_accuracy"]
            == json.loads((run[0] / "summary.json").read_text())["test_accuracy"]
        )
        assert (tmp_path / "two" / "model.safetensors").read_bytes() == (run[0] / "model.safetensors").read_bytes()

    def test_options_reach_the_model(self, npz, tmp_path):
        done = command(
            "train", "--data", npz, "--out", tmp_path / "r", "--width", "8,4,8", "--epochs", 1, "--activation", "tanh",
            "--parameterization", "ntk", "--constraint", "groupsparse", "--max-layers", 2, "--loss", "mse",
            "--schedule", "alternating", "--output-bias", "--proximal", 0.1, "--standardize", "none", "--lr", 0.001,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        model = nftk.NFTKMLP.load(tmp_path / "r" / "model.safetensors")
        assert model.hidden_features == (8, 4, 8)
        assert model.config()["activation"] == "tanh"
        assert model.parameterization == "ntk"
        assert model.constraint == nftk.constraints.GroupSparse(max_layers=2)
        assert model.output_bias is not None

    def test_zero_epochs(self, npz, tmp_path):
        done = command("train", "--data", npz, "--out", tmp_path / "r", "--epochs", 0)
        assert done.returncode == 0, done.stderr

    def test_full_folder_is_not_overwritten_by_accident(self, run, npz, tmp_path):
        before = {p.name: p.read_bytes() for p in run[0].iterdir()}
        done = command("train", "--data", npz, "--out", run[0], *QUICK)
        assert done.returncode == 2
        assert "--out must be a new or empty folder" in done.stderr
        assert before == {p.name: p.read_bytes() for p in run[0].iterdir()}

    def test_overwrite(self, npz, tmp_path):
        for depth in (1, 2):
            done = command(
                "train", "--data", npz, "--out", tmp_path / "r", "--depth", depth, "--epochs", 1, "--overwrite"
            )
            assert done.returncode == 0, done.stderr
        assert len(nftk.NFTKMLP.load(tmp_path / "r" / "model.safetensors").hidden) == 2


@pytest.mark.slow
class TestDigits:
    """The README's main job: real images, no network."""

    def test_three_seeds(self, tmp_path):
        accuracies = []
        for seed in range(3):
            done = command("train", "--data", "digits", "--out", tmp_path / str(seed), "--seed", seed, "--json")
            assert done.returncode == 0, done.stderr
            summary = json.loads(done.stdout)
            assert summary["seconds"] < 120
            accuracies.append(summary["test_accuracy"])
        assert sum(accuracies) / 3 >= 0.97, accuracies


LONG = ("--depth", 2, "--width", 16, "--epochs", 60, "--batch-size", 5, "--baseline")


@pytest.fixture(scope="module")
def whole(npz, tmp_path_factory):
    """A run that nobody interrupts, in a process like those that are."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with start("train", "--data", npz, "--out", out, *LONG) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    return out


def resumed(out, *more):
    """Finish a run in a process with as many threads as the one that began it."""
    with start("train", "--resume", out, *more) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    return said


class TestInterrupt:
    def wait_for(self, process, text):
        """Read until the run says text."""
        for line in process.stderr:
            if text in line:
                return
        pytest.fail(f"the run ended before {text!r}")

    def same_end(self, a, b):
        assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
        assert (a / "omega.png").read_bytes() == (b / "omega.png").read_bytes()
        for name in ("history.jsonl", "baseline_history.jsonl"):
            left, right = ([json.loads(x) for x in (f / name).read_text().splitlines()] for f in (a, b))
            assert [{**x, "seconds": 0} for x in left] == [{**x, "seconds": 0} for x in right]

    @pytest.mark.parametrize("moment", ["nftk epoch 3 ", "baseline epoch 5 "])
    def test_ctrl_c_saves_and_says_how_to_resume(self, npz, tmp_path, whole, moment):
        out = tmp_path / "run"
        with start("train", "--data", npz, "--out", out, *LONG) as process:
            self.wait_for(process, moment)
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        assert process.returncode == 130
        assert "Traceback" not in said
        assert f"continue with: nftk train --resume {out}" in said
        assert not (out / "summary.json").exists()
        again = command("train", "--data", npz, "--out", out, *LONG)
        assert again.returncode == 2
        assert "interrupted run" in again.stderr
        resumed(out)
        self.same_end(whole, out)
        assert not list(out.glob("*.pt"))
        assert json.loads((out / "config.json").read_text()) == json.loads((whole / "config.json").read_text())

    def test_kill_9_and_resume_ends_the_same(self, npz, tmp_path, whole):
        out = tmp_path / "run"
        with start("train", "--data", npz, "--out", out, *LONG) as process:
            self.wait_for(process, "nftk epoch 7 ")
            time.sleep(0.01)
            process.kill()
        for name in ("config.json", "history.jsonl"):
            for line in (out / name).read_text().splitlines() if name.endswith("l") else [(out / name).read_text()]:
                json.loads(line)
        resumed(out)
        self.same_end(whole, out)

    def test_resume_of_a_finished_run_changes_nothing(self, run):
        before = {p.name: p.read_bytes() for p in run[0].iterdir()}
        done = command("train", "--resume", run[0], "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads((run[0] / "summary.json").read_text())
        done = command("train", "--resume", run[0], "--epochs", 9)
        assert done.returncode == 2
        assert "--epochs must be 4, got 9" in done.stderr
        assert before == {p.name: p.read_bytes() for p in run[0].iterdir()}

    def test_resume_takes_no_other_settings(self, run):
        done = command("train", "--resume", run[0], "--lr", 0.1)
        assert done.returncode == 2
        assert "--lr must not go with --resume" in done.stderr

    def test_resume_with_more_epochs_is_kept_in_the_settings(self, npz, tmp_path):
        out = tmp_path / "run"
        with start("train", "--data", npz, "--out", out, *LONG) as process:
            self.wait_for(process, "nftk epoch 3 ")
            process.kill()
        resumed(out, "--epochs", 61)
        assert json.loads((out / "summary.json").read_text())["epochs"] == 61
        assert json.loads((out / "config.json").read_text())["epochs"] == 61

    @pytest.mark.parametrize(
        "change",
        [
            {"constraint": "abc"},
            {"data": 5},
            {"epochs": "x"},
            {"loss": []},
            {"seed": "a"},
            {"hidden_features": [0]},
            {"speed": 1},
        ],
        ids=str,
    )
    def test_damaged_settings(self, run, tmp_path, change):
        config = json.loads((run[0] / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        for arguments in (("train", "--resume", tmp_path), ("evaluate", tmp_path)):
            done = command(*arguments)
            assert done.returncode == 2
            assert "config.json must hold the settings of a run" in done.stderr
            assert len(done.stderr.splitlines()) == 1

    def test_kills_while_writing_leave_nothing_behind(self, npz, tmp_path):
        out = tmp_path / "run"
        out.mkdir()
        (out / ".checkpoint.pt.abc.tmp").write_bytes(b"half")
        done = command("train", "--data", npz, "--out", out, *QUICK, "--overwrite")
        assert done.returncode == 0, done.stderr
        assert {p.name for p in out.iterdir()} == RUN_FILES

    def test_overwrite_leaves_nothing_of_the_old_run(self, npz, tmp_path):
        out = tmp_path / "run"
        command("train", "--data", npz, "--out", out, *QUICK)
        done = command("train", "--data", npz, "--out", out, "--depth", 3, "--lr", 1e30, "--overwrite")
        assert done.returncode == 1
        assert not (out / "model.safetensors").exists()

    def test_resume_of_nothing(self, tmp_path):
        done = command("train", "--resume", tmp_path)
        assert done.returncode == 2
        assert "must be a run of nftk train, got no config.json there" in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("weight_decay", 0.5), ("proximal", 5.0), ("lr_omega", 0.9), ("loss", "mse"), ("schedule", "alternating")],
)
def test_every_option_changes_the_network(run, npz, tmp_path, option, value):
    done = command("train", "--data", npz, "--out", tmp_path / "r", *QUICK, "--" + option.replace("_", "-"), value)
    assert done.returncode == 0, done.stderr
    a, b = (nftk.NFTKMLP.load(folder / "model.safetensors").state_dict() for folder in (run[0], tmp_path / "r"))
    assert not all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((tmp_path / "r" / "config.json").read_text())[option] == value


def test_seed_is_of_the_start_and_of_the_order(npz, tmp_path):
    starts = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        command("train", "--data", npz, "--out", out, "--epochs", 0, "--seed", seed)
        starts.append(nftk.NFTKMLP.load(out / "model.safetensors").hidden[0].weight)
    assert not torch.equal(*starts)
    keywords = [training._keywords(Settings("digits", (3,), 1, 5, 0.1, 0.1, seed=seed)) for seed in (1, 2)]
    assert [k["seed"] for k in keywords] == [1, 2]


def test_the_baseline_is_the_same_beside_any_network(npz, tmp_path):
    losses = []
    for i, more in enumerate(([], ["--output-bias", "--parameterization", "ntk"])):
        command("train", "--data", npz, "--out", tmp_path / str(i), *QUICK, "--baseline", "--lr", 0.01, *more)
        losses.append(json.loads((tmp_path / str(i) / "summary.json").read_text())["baseline"]["train_loss"])
    assert losses[0] == losses[1]
    assert "tanh" in repr(plain_mlp(nftk.NFTKMLP(4, [8], 3, activation="tanh")))


class TestEvaluate:
    def test_agrees_with_training(self, run):
        done = command("evaluate", run[0], "--json")
        assert done.returncode == 0, done.stderr
        result, summary = json.loads(done.stdout), json.loads((run[0] / "summary.json").read_text())
        assert result["test_accuracy"] == summary["test_accuracy"]
        assert result["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
        assert set(result["accuracy_by_class"]) == {"0", "1", "2"}

    def test_table_for_people(self, run):
        done = command("evaluate", run[0])
        assert "accuracy_by_class 2" in done.stdout

    def test_other_data_of_another_size(self, run):
        done = command("evaluate", run[0], "--data", "digits")
        assert done.returncode == 2
        assert re.search(r"data must have 6 features and 3 classes, .*got 64 and 10", done.stderr)

    def test_class_names_that_look_like_markup(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(20, 3))
        y = np.arange(20) % 2
        names = np.array(["cat [bold]", "[/dog]"])
        np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=names)
        done = command("train", "--data", tmp_path / "a.npz", "--out", tmp_path / "r [b]", *QUICK)
        assert done.returncode == 0, done.stderr
        assert "r [b]" in done.stdout
        told = command("evaluate", tmp_path / "r [b]").stdout
        assert "cat [bold]" in told
        assert "[/dog]" in told

    def test_unfinished_run(self, run, tmp_path):
        (tmp_path / "config.json").write_bytes((run[0] / "config.json").read_bytes())
        done = command("evaluate", tmp_path)
        assert done.returncode == 2
        assert f"must hold a finished run, got no model.safetensors; nftk train --resume {tmp_path}" in done.stderr

    def test_damaged_model(self, run, tmp_path):
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((run[0] / name).read_bytes())
        (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
        done = command("evaluate", tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


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


def test_idx_folder_trains(tmp_path):
    write_idx(tmp_path / "idx")
    done = command("train", "--data", tmp_path / "idx", "--out", tmp_path / "r", *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads((tmp_path / "r" / "config.json").read_text())["data"]) == tmp_path / "idx"


@pytest.mark.slow
def test_mnist_trains(data_dir, tmp_path):
    """The paper's network for one epoch, on the whole of MNIST."""
    done = command(
        "train",
        "--data",
        "mnist",
        "--data-dir",
        data_dir,
        "--depth",
        4,
        "--epochs",
        1,
        "--out",
        tmp_path / "r",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test_accuracy"] > 0.9
