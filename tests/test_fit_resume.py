"""fit's checkpoints: a run that is killed anywhere goes on, and ends as if nothing had been."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from training_problem import assert_same_parameters, make, toy, without_seconds

import nftk
from nftk.training.checkpoint import load_checkpoint

SCRIPT = """
import sys, torch, nftk
torch.set_num_threads(1)
torch.manual_seed(2)
x = torch.randn(400, 4)
y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
model = nftk.NFTKMLP(4, [16, 16], 3, dropout=0.1)
history = nftk.fit(
    model, (x, y), (x, y), epochs=14, batch_size=8, proximal=0.1, schedule=sys.argv[3], phase_epochs=3,
    optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), checkpoint=sys.argv[1], resume=True,
    lr_schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    on_step=lambda epoch, step, steps: print(epoch, step, flush=True),
)
columns = {k: history.column(k) for k in ("loss", "test_loss", "zeros", "lr", "phase")}
torch.save({"model": model.state_dict(), "history": columns}, sys.argv[2])
"""


class TestResume:
    @pytest.mark.parametrize("schedule", ["joint", "alternating"])
    def test_kill_9_in_the_middle_ends_bit_identical(self, tmp_path, schedule):
        def start(name):
            arguments = [tmp_path / f"{name}.pt", tmp_path / f"{name}.end", schedule]
            return subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *map(str, arguments)], stdout=subprocess.PIPE, text=True
            )

        with start("whole") as whole:
            whole.communicate()
        killed_at = []
        # in the middle of an epoch, right after a checkpoint, and wherever the signal lands
        for target, pause in (("3 25", 0.0), ("7 1", 0.0), ("10 50", 0.01)):
            with start("killed") as process:
                for line in process.stdout:
                    if line.split() == target.split():
                        time.sleep(pause)
                        process.send_signal(signal.SIGKILL)
                        break
                process.stdout.close()
                assert process.wait() == -signal.SIGKILL
            killed_at.append(len(load_checkpoint(tmp_path / "killed.pt")["history"]))
            assert not (tmp_path / "killed.end").exists()
        assert killed_at[0] < killed_at[1] < killed_at[2] < 14
        with start("killed") as last:
            last.communicate()
        want, got = (torch.load(tmp_path / f"{name}.end") for name in ("whole", "killed"))
        assert want["history"] == got["history"]
        for name, tensor in want["model"].items():
            assert torch.equal(tensor, got["model"][name]), name

    def test_a_kill_while_writing_leaves_the_old_checkpoint(self, tmp_path, monkeypatch):
        x, y = toy()
        path = tmp_path / "run.pt"
        nftk.fit(make(), (x, y), epochs=2, checkpoint=path)
        before = path.read_bytes()
        save = torch.save

        def half(state, file):
            save(state, file)
            with open(file, "r+b") as handle:
                handle.truncate(100)
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            nftk.fit(make(), (x, y), epochs=4, checkpoint=path, resume=True)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_more_epochs_continue_a_finished_run(self, tmp_path):
        x, y = toy()
        a, b = make(), make()
        whole = nftk.fit(a, (x, y), (x, y), epochs=5, batch_size=7)
        nftk.fit(b, (x, y), (x, y), epochs=3, batch_size=7, checkpoint=tmp_path / "run.pt")
        c = make()
        history = nftk.fit(c, (x, y), (x, y), epochs=5, batch_size=7, checkpoint=tmp_path / "run.pt", resume=True)
        assert_same_parameters(a, c)
        assert without_seconds(history) == without_seconds(whole)

    def test_own_generator_of_a_loader_is_resumed(self, tmp_path):
        x, y = toy()

        def loader():
            return DataLoader(
                TensorDataset(x, y), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(9)
            )

        a, b, c = make(), make(), make()
        nftk.fit(a, loader(), epochs=4)
        nftk.fit(b, loader(), epochs=2, checkpoint=tmp_path / "run.pt")
        nftk.fit(c, loader(), epochs=4, checkpoint=tmp_path / "run.pt", resume=True)
        assert_same_parameters(a, c)

    def test_other_settings_data_or_model_are_refused(self, tmp_path):
        x, y = toy()
        path = tmp_path / "run.pt"
        nftk.fit(make(), (x, y), epochs=1, checkpoint=path)
        with pytest.raises(ValueError, match=r"checkpoint must be a new file without resume=True"):
            nftk.fit(make(), (x, y), epochs=2, checkpoint=path)
        resume = {"checkpoint": path, "resume": True, "epochs": 2}
        with pytest.raises(ValueError, match=r"lr must be 0.02 to continue .*run.pt, got 0.1"):
            nftk.fit(make(), (x, y), lr=0.1, **resume)
        with pytest.raises(ValueError, match="seed must be 0 to continue"):
            nftk.fit(make(), (x, y), seed=1, **resume)
        for other in ((x + 1, y), (x, 2 - y), (x.flip(0), y)):
            with pytest.raises(ValueError, match="train_digest must be"):
                nftk.fit(make(), other, **resume)
        with pytest.raises(ValueError, match="learning_rates must be"):
            nftk.fit(make(), (x, y), optimizer=lambda p: torch.optim.SGD(p, lr=0.3), **resume)
        frozen = make()
        frozen.hidden[0].requires_grad_(False)
        with pytest.raises(ValueError, match="trainable must be"):
            nftk.fit(frozen, (x, y), **resume)
        with pytest.raises(ValueError, match="model must be"):
            nftk.fit(nftk.NFTKMLP(4, [8, 9], 3), (x, y), **resume)
        with pytest.raises(ValueError, match="constraint must be"):
            nftk.fit(make(), (x, y), constraint="simplex", **resume)
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ValueError, match="must be a whole checkpoint, got"):
            nftk.fit(make(), (x, y), **resume)
        torch.save({"a": 1}, path)
        with pytest.raises(ValueError, match="must be a checkpoint of nftk.fit"):
            nftk.fit(make(), (x, y), **resume)

    def test_everything_comes_from_the_checkpoint(self, tmp_path):
        """A fresh model that another seed drew, without zeros, goes on as the one that was killed."""
        omega = torch.full((3, 2), 0.5)
        omega[0, 0] = 0
        settings = {"proximal": 1.0, "lr": 0.1, "lr_omega": 0.0}
        whole, first = make(omega_init=omega), make(omega_init=omega)
        want = nftk.fit(whole, toy(), epochs=4, **settings)
        nftk.fit(first, toy(), epochs=2, checkpoint=tmp_path / "run.pt", **settings)
        torch.manual_seed(9)
        other = nftk.NFTKMLP(4, [8, 8], 3)
        got = nftk.fit(other, toy(), epochs=4, checkpoint=tmp_path / "run.pt", resume=True, **settings)
        assert_same_parameters(whole, other)
        assert got[-1].zeros_from_start == want[-1].zeros_from_start == 1.0

    def test_there_is_a_checkpoint_before_the_first_step(self, tmp_path):
        path = tmp_path / "run.pt"
        seen = []
        nftk.fit(make(), toy(), epochs=1, checkpoint=path, on_step=lambda *_: seen.append(path.exists()))
        assert all(seen)

    def test_folder_that_is_not_there_and_a_full_disk(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"c.pt must be in a folder that exists, got no .*nowhere"):
            nftk.fit(make(), toy(), checkpoint=tmp_path / "nowhere" / "c.pt")

        def full(state, file):
            raise RuntimeError("basic_ios::clear: iostream error")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"iostream error: '.*c\.pt'"):
            nftk.fit(make(), toy(), checkpoint=tmp_path / "c.pt")
        assert not list(tmp_path.iterdir())

    def test_another_thread_count_warns(self, tmp_path):
        x, y = toy()
        nftk.fit(make(), (x, y), epochs=1, checkpoint=tmp_path / "run.pt")
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            with pytest.warns(UserWarning, match="will not end bit-identical"):
                nftk.fit(make(), (x, y), epochs=2, checkpoint=tmp_path / "run.pt", resume=True)
        finally:
            torch.set_num_threads(threads)
