"""nftk ridge: what it says, what it leaves, and what it refuses."""

import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nftk
from nftk.cli.app import app
from nftk.data import load_data

pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments):
    return CliRunner().invoke(app, ["ridge", "--threads", "1", *map(str, arguments)])


EMPIRICAL = ("--kernel", "empirical", "--depth", 2, "--width", 32, "--limit", 150)


def test_empirical_kernel_with_learned_omega(tmp_path):
    out = tmp_path / "run"
    done = call(*EMPIRICAL, "--learn-omega", "--each-depth", "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert json.loads((out / "summary.json").read_text()) == told
    assert sorted(p.name for p in out.iterdir()) == ["omega.png", "summary.json"]
    assert (out / "omega.png").read_bytes().startswith(b"\x89PNG")
    assert set(told["test_accuracy_of"]) == {"uniform", "learned", "depth 1", "depth 2"}
    assert told["test_accuracy"] == told["test_accuracy_of"]["learned"] > 0.85
    assert np.shape(told["omega"]) == (10, 2)
    assert told["learning"]["end"] < told["learning"]["start"]
    assert told["learning"]["converged"]
    assert len(told["alignment"]) == 2
    assert (told["training_examples"], told["test_examples"]) == (150, 450)


def test_numbers_are_those_of_the_library():
    done = call(*EMPIRICAL, "--ridge", 0.5, "--normalize", "none", "--json")
    assert done.exit_code == 0, done.stderr
    split = load_data("digits")
    kept = torch.randperm(len(split.x_train), generator=torch.Generator().manual_seed(0))[:150]
    standardizer = nftk.data.Standardizer.fit(split.x_train, split.standardize)
    x, x_test = standardizer.transform(split.x_train[kept]), standardizer.transform(split.x_test)
    torch.manual_seed(0)
    model = nftk.NFTKMLP(64, [32] * 2, 10, parameterization="ntk")
    k, k_test = (nftk.empirical_ntk(model, *pair, reduction="trace") / 10 for pair in ((x,), (x_test, x)))
    ridge = nftk.KernelRidge(0.5, omega=[0.5**0.5] * 2).fit(k, split.y_train[kept])
    assert json.loads(done.stdout)["test_accuracy"] == pytest.approx(ridge.score(k_test, split.y_test))
    done = call(*EMPIRICAL, "--ridge", 30.0, "--each-depth", "--json")
    told = json.loads(done.stdout)["test_accuracy_of"]
    for layer in range(2):
        one, one_test = k.blocks[layer].double(), k_test.blocks[layer].double()
        size = one.diagonal().mean()
        alone = nftk.KernelRidge(30.0).fit(one / size, split.y_train[kept])
        assert told[f"depth {layer + 1}"] == pytest.approx(alone.score(one_test / size, split.y_test))


def test_infinite_kernel():
    done = call("--depth", 3, "--limit", 200, "--learn-omega", "--shared", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["test_accuracy"] > 0.9
    assert told["omega"][0] == told["omega"][9]


def test_a_trained_network(tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "--out", str(run), "--depth", "2", "--width", "24", "--epochs", "2", "--json"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    done = call("--kernel", "empirical", "--run", run, "--limit", 150, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["depth"] == 2
    assert json.loads(done.stdout)["test_accuracy"] > 0.85


def test_table_and_progress():
    done = call(*EMPIRICAL, "--learn-omega", "--objective", "loo", "--constraint", "nonnegative")
    assert done.exit_code == 0, done.stderr
    assert "test_accuracy_of learned" in done.stdout
    assert "omega" not in done.stdout
    assert "learning Omega: 100%" in done.stderr
    assert "test examples: 100%" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--kernel", "rbf"), "--kernel must be infinite or empirical, got 'rbf'"),
        (("--ridge", "-1"), "--ridge must be a number above 0, loo or gcv, got '-1'"),
        (("--ridge", "much"), "--ridge must be a number above 0, loo or gcv, got 'much'"),
        (("--limit", "0"), "--limit must be at least 1, got 0"),
        (("--limit", "9"), "--limit must leave examples of all 10 classes, got 9 without class"),
        (("--depth", "0"), "--depth must be at least 1, got 0"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--objective", "aic"), "--objective must be regularized or loo"),
        (("--normalize", "max"), "--normalize must be trace or none"),
        (("--learn-omega", "--constraint", "nonnegative"), "--constraint must be a bounded set"),
        (("--run", "here"), "--run must go with --kernel empirical"),
        (("--kernel", "empirical", "--run", "nowhere"), "nowhere must be a run of nftk train"),
        (("--width", "8"), "--width must go with --kernel empirical, got --kernel infinite"),
        (("--kernel", "empirical", "--run", "r", "--width", "8"), "--width must not go with --run"),
        (("--kernel", "empirical", "--run", "r", "--depth", "8"), "--depth must not go with --run"),
        (("--kernel", "empirical", "--run", "r", "--activation", "erf"), "--activation must not go with --run"),
        (("--objective", "loo"), "--objective must go with --learn-omega"),
        (("--constraint", "simplex"), "--constraint must go with --learn-omega"),
        (("--shared",), "--per-class or --shared must go with --learn-omega"),
        (("--data", "nothing"), "data must be digits"),
        (("--kernel", "empirical", "--activation", "step", "--limit", "100"), "activation"),
    ],
)
def test_refusals(arguments, sentence, tmp_path):
    out = tmp_path / "out"
    done = call(*arguments, "--out", out)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_nothing_is_lost_by_accident(tmp_path):
    (tmp_path / "mine").write_text("x")
    done = call(*EMPIRICAL, "--out", tmp_path)
    assert done.exit_code == 2
    assert "--out must be a new or empty folder" in done.stderr
    assert call(*EMPIRICAL, "--out", tmp_path, "--overwrite", "--json").exit_code == 0
    assert (tmp_path / "mine").read_text() == "x"
    assert "got the file" in call(*EMPIRICAL, "--out", tmp_path / "mine").stderr


def test_overwrite_goes_with_out():
    done = call("--overwrite")
    assert (done.exit_code, done.stderr) == (2, "nftk: --overwrite must go with --out\n")


def test_out_is_tried_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("nftk.cli.ridge.load_data", lambda *_, **__: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("x")
    done = call("--out", tmp_path / "file" / "new" / "run")
    assert done.exit_code == 2
    assert done.stderr.startswith("nftk: --out must be a folder that can be written to, got")
    assert done.stderr.count("\n") == 1
    monkeypatch.setattr("nftk.cli.ridge.load_data", lambda *_, **__: interrupt())
    assert call("--out", tmp_path / "new" / "run").exit_code == 130
    assert not (tmp_path / "new").exists()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_every_warning_is_said(monkeypatch):
    """That of a series' tail is no KernelWarning."""
    monkeypatch.setattr(sys.modules["nftk.tangent.infinite_ntk"], "_TAIL", 0.0)
    done = call("--depth", 2, "--limit", 100, "--activation", "tanh")
    assert done.exit_code == 0, done.stderr
    sentences = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(sentences) == len(set(sentences))
    assert sum("nftk: warning: infinite_ntk: a series of order 64 leaves out" in line for line in sentences) >= 1
    told = json.loads(call("--depth", 2, "--limit", 100, "--activation", "tanh", "--json").stdout)
    assert any("a series of order 64" in sentence for sentence in told["warnings"])


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr("nftk.tangent.infinite_ntk", interrupt)
    done = call("--depth", 2, "--limit", 100)
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == (
        "nftk: interrupted; nothing is saved before the end, the same command starts from the beginning"
    )


def test_what_does_not_fit_is_said_first(monkeypatch):
    monkeypatch.setattr("nftk.cli.ridge.free_bytes", lambda device: 1 << 20)
    done = call(*EMPIRICAL)
    assert done.exit_code == 2
    assert "--limit must be at most some" in done.stderr
