"""nftk train cut off by Ctrl-C, by kill, or while it writes: what is left, and how the run goes on."""

import json
import signal
import time

import pytest
from cli_runs import (
    QUICK,
    RUN_FILES,
    blobs,  # noqa: F401  (a fixture)
    command,
    finished_run,  # noqa: F401  (a fixture)
    start,
    wide_terminal,  # noqa: F401  (a fixture)
)

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
