"""nftk explain: what it says, what it leaves, and what it refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

import nftk
from nftk.cli.app import app

pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("explain") / "run"
    done = call("train", "--out", out, "--depth", 2, "--width", 24, "--epochs", 6, "--json")
    assert done.exit_code == 0, done.stderr
    return out


LIMIT = ("--limit", 150)


def test_explanation(run):
    done = call("explain", run, "--index", 7, "--json", *LIMIT)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["agree"]
    assert told["surrogate"]["training_examples"] == 150
    assert told["surrogate"]["agreement"] > 0.85
    assert told["surrogate"]["tau"] > 0.5
    assert len(told["supporters"]) == len(told["opposers"]) == 5
    scores = [row["score"] for row in told["supporters"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0 > told["opposers"][0]["score"]
    for row in told["supporters"] + told["opposers"]:
        assert sum(row["by_layer"].values()) == pytest.approx(row["score"], rel=1e-9)
    total = sum(layer["for"] + layer["against"] for layer in told["layers"].values())
    assert total + told["intercept"] == pytest.approx(told["output"], rel=1e-8)
    split = nftk.data.load_data("digits")
    assert told["label"] == str(int(split.y_test[7]))
    for row in told["supporters"]:
        assert row["label"] == str(int(split.y_train[row["example"]]))
    assert (run / "explain_7.png").read_bytes().startswith(b"\x89PNG")


def test_the_surrogate_is_fitted_once(run, monkeypatch):
    first = call("explain", run, "--index", 3, "--json", *LIMIT)
    assert first.exit_code == 0, first.stderr
    monkeypatch.setattr("nftk.surrogate.KernelSurrogate.fit", lambda *_: pytest.fail("fitted again"))
    again = json.loads(call("explain", run, "--index", 3, "--json", *LIMIT).stdout)
    assert {**again, "seconds": 0} == {**json.loads(first.stdout), "seconds": 0}
    # other examples, or another network, want another
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        raise call("explain", run, "--seed", 1, *LIMIT).exception


def test_a_damaged_surrogate_is_fitted_anew(run):
    assert call("explain", run, *LIMIT, "--json").exit_code == 0
    (run / "surrogate.safetensors").write_bytes(b"nothing")
    done = call("explain", run, *LIMIT)
    assert done.exit_code == 0
    assert "fitting a surrogate to 150 training examples" in done.stderr


def test_tables_class_and_picture(run, tmp_path):
    done = call("explain", run, "--index", 2, "--class", 8, "--top", 3, "--out", tmp_path / "a.png", *LIMIT)
    assert done.exit_code == 0, done.stderr
    assert "class 8: " in done.stdout
    assert "network says" in done.stdout
    assert "readout 2" in done.stdout
    assert done.stdout.count("│ against") == 4
    assert (tmp_path / "a.png").stat().st_size > 1000
    again = call("explain", run, "--out", tmp_path / "a.png", *LIMIT)
    assert again.exit_code == 2
    assert "--out must not be there yet" in again.stderr
    assert call("explain", run, "--out", tmp_path / "a.png", "--overwrite", *LIMIT).exit_code == 0


def test_data_without_pictures(tmp_path):
    import numpy as np

    random = np.random.default_rng(0)
    y = random.integers(0, 3, 120)
    x = random.normal(size=(120, 6)) + 3 * np.eye(3)[y] @ random.normal(size=(3, 6))
    np.savez(tmp_path / "blobs.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    made = call(
        "train", "--data", tmp_path / "blobs.npz", "--out", tmp_path / "r", "--depth", 2, "--width", 8, "--json"
    )
    assert made.exit_code == 0, made.stderr
    done = call("explain", tmp_path / "r", "--index", 1, "--top", 200, "--json")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["supporters"]) < 90
    assert (tmp_path / "r" / "explain_1.png").exists()
    # a new run in the folder leaves no picture of the one before
    call("train", "--data", tmp_path / "blobs.npz", "--out", tmp_path / "r", "--epochs", 1, "--overwrite", "--json")
    assert not list((tmp_path / "r").glob("explain_*.png"))
    assert not (tmp_path / "r" / "surrogate.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--index", 450), "--index must be from 0 to 449, a test example of digits, got 450"),
        (("--index", -1), "--index must be from 0 to 449"),
        (("--top", 0), "--top must be at least 1, got 0"),
        (("--limit", 0), "--limit must be at least 1, got 0"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--class", "ten"), "--class must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, or a number below 10, got 'ten'"),
        (("--out", "/nowhere/a.png"), "--out must be a file in a folder that exists, got /nowhere/a.png"),
        (("--data", "nothing"), "data must be"),
    ],
)
def test_refusals(run, arguments, sentence):
    done = call("explain", run, *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_run(tmp_path):
    done = call("explain", tmp_path)
    assert done.exit_code == 2
    assert "must be a run of nftk train, got no config.json there" in done.stderr


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    (run / "surrogate.safetensors").unlink(missing_ok=True)
    monkeypatch.setattr("nftk.surrogate.KernelSurrogate.fit", interrupt)
    done = call("explain", run, *LIMIT)
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1].startswith("nftk: interrupted; nothing is saved before the surrogate is fitted")
    assert not (run / "surrogate.safetensors").exists()


def test_explain_in_python():
    k = torch.tensor([[[2.0, -1.0, 0.5]], [[1.0, 3.0, -0.5]]], dtype=torch.float64)
    alpha = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-2.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([0.25, 0.0], dtype=torch.float64)
    f = (k.sum(0) @ alpha) + b
    made = nftk.attribution.Attribution(k, torch.ones(2), alpha, b, f, torch.zeros(2), ("a", "b"))
    found = nftk.attribution.explain(made, top=2)
    assert (found.class_, found.output, found.intercept) == (0, 5.25, 0.25)
    assert found.supporters.examples.tolist() == [0, 1]
    assert found.supporters_by_layer.tolist() == [[2.0, -1.0], [1.0, 3.0]]
    assert found.opposers.examples.tolist() == []
    assert found.layers_for.tolist() == [2.0, 5.0]
    assert found.layers_against.tolist() == [-2.0, 0.0]
    # the third's score is 0: it speaks neither for nor against
    every = nftk.attribution.explain(made, top=3)
    assert every.supporters.examples.tolist() == [0, 1]
    assert every.supporters.scores.tolist() == [3.0, 2.0]
    assert every.opposers.examples.tolist() == []
    with pytest.raises(ValueError, match="index must be below 1, the number of test examples, got 1"):
        nftk.attribution.explain(made, 1)
