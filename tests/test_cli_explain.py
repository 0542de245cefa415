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
    others = [name for name in map(str, range(10)) if name != told["explained_class"]]
    assert call("explain", run, "--index", 7, "--class", others[0], *LIMIT).exit_code == 0
    assert (run / f"explain_7_class_{others[0]}.png").exists()
    assert (run / f"explain_7_class_{told['explained_class']}.png").read_bytes().startswith(b"\x89PNG")


def test_the_surrogate_is_fitted_once(run, monkeypatch):
    first = call("explain", run, "--index", 3, "--json", *LIMIT)
    assert first.exit_code == 0, first.stderr
    monkeypatch.setattr("nftk.surrogate.KernelSurrogate.fit", lambda *_: pytest.fail("fitted again"))
    again = json.loads(call("explain", run, "--index", 3, "--json", *LIMIT).stdout)
    assert {**again, "seconds": 0} == {**json.loads(first.stdout), "seconds": 0}
    # other examples, or another network, want another
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        raise call("explain", run, "--seed", 1, *LIMIT).exception


def test_surrogates_of_other_settings_stay(run, monkeypatch):
    for settings in (LIMIT, ("--limit", 140), ("--limit", 140, "--seed", 1)):
        assert call("explain", run, "--json", *settings).exit_code == 0
    assert {path.name for path in run.glob("surrogate*")} >= {
        f"surrogate_{name}.safetensors" for name in ("150_0", "140_0", "140_1")
    }
    monkeypatch.setattr("nftk.surrogate.KernelSurrogate.fit", lambda *_: pytest.fail("fitted again"))
    for settings in (LIMIT, ("--limit", 140), ("--limit", 140, "--seed", 1)):
        assert call("explain", run, "--json", *settings).exit_code == 0


@pytest.mark.parametrize("layers", [2, 5, 24])
def test_tables_fit_a_narrow_terminal(layers, monkeypatch, capsys):
    from nftk.cli.explain import show

    monkeypatch.setenv("COLUMNS", "80")
    names = [f"readout {i + 1}" for i in range(layers)]
    said = {name: -0.0123 * (i + 1) for i, name in enumerate(names)}
    row = {"example": 51234, "label": "Ankle boot of leather", "score": -0.123, "by_layer": said}
    show({
        "index": 7, "data": "fashion_mnist", "label": "Ankle boot", "explained_class": "Ankle boot", "output": 1.0,
        "intercept": 0.1, "picture": "a.png", "supporters": [row], "opposers": [row],
        "prediction": dict.fromkeys(("network", "surrogate"), {"class": "Ankle boot", "probability": 0.9}),
        "surrogate": {"agreement": 0.9, "compared": 200, "tau": 0.9, "training_examples": 1000},
        "layers": {name: {"for": 0.0, "against": value} for name, value in said.items()},
    })  # fmt: skip
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    table = shown[shown.index("Training examples") :]
    # of the rows and of the sum; the label's own end alone is cut
    assert table.count("…") == 2 * table.count("speaks")
    for i, value in enumerate(said.values()):
        assert table.count(f" {value:+.2g}") >= 3, i
    if layers > 2:
        assert f"1 to {layers} are readout 1 to readout {layers}" in " ".join(table.split())
    headings = [line.split()[4:] for line in table.splitlines() if "speaks" in line]
    assert sum(headings, []) == [str(i + 1) for i in range(layers)]


def test_a_seed_counts_where_the_limit_does_not(tmp_path):
    from nftk.cli.explain import _surrogate
    from nftk.cli.progress import Progress
    from nftk.cli.runs import load_run

    done = call("train", "--data", _blobs(tmp_path), "--out", tmp_path / "r", "--depth", 2, "--width", 8, "--json")
    assert done.exit_code == 0, done.stderr
    trained = load_run(tmp_path / "r", None, None)
    seeds = []

    def fit(self, k, p):
        seeds.append(self.seed)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nftk.surrogate.KernelSurrogate.fit", fit)
        for seed in (3, 4):
            with pytest.raises(KeyboardInterrupt):
                _surrogate(trained, 1000, seed, Progress(quiet=True))
    assert seeds == [3, 4]
    _surrogate(trained, 1000, 3, Progress(quiet=True))
    made = tmp_path / "r" / "surrogate_90_3.safetensors"
    # even under the other's name it is not taken for it
    made.rename(tmp_path / "r" / "surrogate_90_4.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nftk.surrogate.KernelSurrogate.fit", fit)
        with pytest.raises(KeyboardInterrupt):
            _surrogate(trained, 1000, 4, Progress(quiet=True))


def test_a_damaged_surrogate_is_fitted_anew(run):
    assert call("explain", run, *LIMIT, "--json").exit_code == 0
    (run / "surrogate_150_0.safetensors").write_bytes(b"nothing")
    done = call("explain", run, *LIMIT)
    assert done.exit_code == 0
    assert "fitting a surrogate to 150 training examples" in done.stderr


def test_tables_class_and_picture(run, tmp_path):
    done = call("explain", run, "--index", 2, "--class", 8, "--top", 3, "--out", tmp_path / "a.png", *LIMIT)
    assert done.exit_code == 0, done.stderr
    assert "class 8: " in done.stdout
    assert "network says" in done.stdout
    assert "1 is readout 1, 2 is readout 2" in done.stdout
    assert sum(line.strip().startswith("against ") for line in done.stdout.splitlines()) == 4
    assert (tmp_path / "a.png").stat().st_size > 1000
    again = call("explain", run, "--out", tmp_path / "a.png", *LIMIT)
    assert again.exit_code == 2
    assert "--out must not be there yet" in again.stderr
    assert call("explain", run, "--out", tmp_path / "a.png", "--overwrite", *LIMIT).exit_code == 0


def _blobs(folder):
    import numpy as np

    random = np.random.default_rng(0)
    y = random.integers(0, 3, 120)
    x = random.normal(size=(120, 6)) + 3 * np.eye(3)[y] @ random.normal(size=(3, 6))
    np.savez(folder / "blobs.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    return folder / "blobs.npz"


def test_data_without_pictures(tmp_path):
    _blobs(tmp_path)
    made = call(
        "train", "--data", tmp_path / "blobs.npz", "--out", tmp_path / "r", "--depth", 2, "--width", 8, "--json"
    )
    assert made.exit_code == 0, made.stderr
    done = call("explain", tmp_path / "r", "--index", 1, "--top", 200, "--json")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["supporters"]) < 90
    assert list((tmp_path / "r").glob("explain_1_class_?.png"))
    assert list((tmp_path / "r").glob("surrogate_*.safetensors"))
    # a new run in the folder leaves no picture of the one before
    call("train", "--data", tmp_path / "blobs.npz", "--out", tmp_path / "r", "--epochs", 1, "--overwrite", "--json")
    assert not list((tmp_path / "r").glob("explain_*.png"))
    assert not list((tmp_path / "r").glob("surrogate_*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--index", 450), "--index must be from 0 to 449, a test example of digits, got 450"),
        (("--index", -1), "--index must be from 0 to 449"),
        (("--top", 0), "--top must be at least 1, got 0"),
        (("--limit", 0), "--limit must be at least 1, got 0"),
        (("--limit", 2), "--limit must take training examples enough to hold some out, at least three"),
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

    for path in run.glob("surrogate_*"):
        path.unlink()
    monkeypatch.setattr("nftk.surrogate.KernelSurrogate.fit", interrupt)
    done = call("explain", run, *LIMIT)
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1].startswith("nftk: interrupted; nothing is saved before the surrogate is fitted")
    assert not list(run.glob("surrogate_*"))


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
