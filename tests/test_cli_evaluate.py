"""nftk evaluate: the numbers of training again, on other data too, and runs that it refuses."""

import json
import re

import numpy as np
import pytest
from cli_runs import (
    QUICK,
    blobs,  # noqa: F401  (a fixture)
    command,
    finished_run,  # noqa: F401  (a fixture)
    wide_terminal,  # noqa: F401  (a fixture)
)


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
