"""nftk train: the files that it leaves, what it says, and that every option reaches the network."""

import json
import re
from pathlib import Path

import pytest
import torch
from cli_runs import (
    QUICK,
    RUN_FILES,
    blobs,  # noqa: F401  (a fixture)
    command,
    finished_run,  # noqa: F401  (a fixture)
    wide_terminal,  # noqa: F401  (a fixture)
    write_idx,
)

import nftk
from nftk.cli import train as training
from nftk.cli.settings import Settings
from nftk.modules.plain_mlp import plain_mlp


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
