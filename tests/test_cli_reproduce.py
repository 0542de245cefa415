"""nftk reproduce as a person types it; what the experiments themselves find is in test_experiments.py."""

import contextlib
import io
import json

import pytest

from nftk.cli import reproduce as reproducing
from nftk.cli.app import app
from nftk.experiments.record import Record


def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def asked(monkeypatch):
    """Experiments that only note what they are asked."""
    requests = []

    def run(request):
        requests.append(request)
        return Record("stand-in", {"found": 1}, "# A stand-in")

    for name in reproducing.EXPERIMENTS:
        monkeypatch.setitem(reproducing.EXPERIMENTS, name, run)
    return requests


def test_the_papers_experiments_run_in_turn_and_leave_their_files(asked, tmp_path):
    code, out, err = command(
        "reproduce", "--out", tmp_path / "out", "--runs", tmp_path / "runs", "--data-dir", tmp_path, "--json"
    )
    assert (code, err) == (0, "")
    assert list(json.loads(out)["files"]) == ["table1", "figure2", "sparsity", "stability", "theorem1"]
    assert [r.seeds for r in asked] == [5, 1, 5, 5, 5]
    assert {(r.quick, r.place.data_dir) for r in asked} == {(False, str(tmp_path))}
    assert (tmp_path / "out" / "stand-in.md").read_text() == "# A stand-in\n"
    record = json.loads((tmp_path / "out" / "stand-in.json").read_text())
    assert record["found"] == 1
    assert set(record["versions"]) == {"nftk", "torch"}


def test_every_setting_is_said_and_quick_is_one_seed(asked, tmp_path):
    code, _, err = command("reproduce", "choice", "--quick", "--out", tmp_path, "--runs", tmp_path, "--jobs", 3)
    assert code == 0
    (request,) = asked
    assert (request.seeds, request.quick, request.jobs) == (1, True, 3)
    for setting in ("weight_decay 2e-06", "lr_omega 0.1", "batch_size 25", "omega_start", "loss cross_entropy"):
        assert setting in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["table3"], "the experiment must be one of table1, figure2, sparsity, stability, theorem1, choice, "),
        (["table1", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["table1", "--jobs", "0"], "jobs must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_a_sentence(asked, tmp_path, arguments, sentence):
    code, out, err = command("reproduce", *arguments, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert err.startswith("nftk")
    assert sentence in err
    assert not asked
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_a_folder_is_refused(asked, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = command("reproduce", "--out", tmp_path / "file", "--runs", tmp_path / "runs")
    assert code == 2
    assert "--out and --runs must be folders, got the file" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_interrupted_it_says_the_command_that_goes_on(monkeypatch, tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(reproducing.EXPERIMENTS, "figure2", interrupted)
    out, runs = tmp_path / "a folder", tmp_path / "runs"
    code, _, err = command("reproduce", "figure2", "--out", out, "--runs", runs, "--seeds", 2, "--jobs", 1, "--quick")
    assert code == 130
    last = err.strip().splitlines()[-1]
    assert last.endswith(f"nftk reproduce figure2 --out '{out}' --runs {runs} --seeds 2 --jobs 1 --quick")
