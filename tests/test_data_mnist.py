"""nftk.data: where MNIST is looked for, and its download from a server on this machine."""

import gzip
import hashlib
import http.server
import os
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from test_data_idx import idx_bytes, images, write_folder

from nftk.data import DataError, RemoteFile, download_mnist, load_data, load_mnist
from nftk.data.mnist import FILES, MIRRORS

BODIES = {
    "train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(images()), mtime=0),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(np.array([0, 2, 1], np.uint8)), mtime=0),
    "t10k-images-idx3-ubyte.gz": gzip.compress(idx_bytes(images(2)), mtime=0),
    "t10k-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(np.array([1, 2], np.uint8)), mtime=0),
}
SMALL = {name: RemoteFile(len(body), hashlib.sha256(body).hexdigest()) for name, body in BODIES.items()}
FIRST = "train-images-idx3-ubyte.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODIES in the manner that the first part of the path names."""

    def do_GET(self):
        manner, name = self.path.strip("/").split("/")
        self.server.asked.append(self.path)
        body = BODIES[name]
        if manner == "absent":
            self.send_error(404)
            return
        self.send_response(200)
        if manner != "endless":
            self.send_header("Content-Length", str(len(body) + (100 if manner == "longer" else 0)))
        self.end_headers()
        if manner == "other":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if manner == "cut":
            body = body[: len(body) // 2]
        if manner == "longer":
            body += b"\0" * 100
        self.wfile.write(body)
        if manner == "endless":
            self.send_without_end()

    def send_without_end(self):
        with suppress(ConnectionError):
            for _ in range(64):
                self.wfile.write(bytes(1 << 20))
            self.server.finished = True

    def log_message(self, *args):
        pass


@contextmanager
def serve():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.finished = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch):
    # a proxy of the machine must not be asked for 127.0.0.1
    monkeypatch.setenv("no_proxy", "*")
    with serve() as running:
        running.mirror = lambda manner: f"http://127.0.0.1:{running.server_port}/{manner}/"
        yield running


def held(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_download(server, tmp_path):
    folder = tmp_path / "a" / "b"
    download_mnist(folder, [server.mirror("good")], files=SMALL)
    assert held(folder) == BODIES
    assert len(server.asked) == 4
    download_mnist(folder, [server.mirror("good")], files=SMALL)
    assert len(server.asked) == 4, "what is there and right is not downloaded again"
    (folder / FIRST).write_bytes(BODIES[FIRST][:-1] + b"\7")
    download_mnist(folder, [server.mirror("good")], files=SMALL)
    assert len(server.asked) == 5
    assert held(folder) == BODIES


@pytest.mark.parametrize("manner", ["absent", "other", "cut", "longer", "endless"])
def test_second_mirror(server, tmp_path, manner):
    download_mnist(tmp_path, [server.mirror(manner), server.mirror("good")], files=SMALL)
    assert held(tmp_path) == BODIES
    assert len(server.asked) == 8
    assert not server.finished, "a body is read no further than the file's own size"


def test_no_mirror(server, tmp_path):
    manners = ["absent", "other", "cut", "longer"]
    (tmp_path / FIRST).write_bytes(b"old")
    with pytest.raises(DataError) as caught:
        download_mnist(tmp_path, [server.mirror(manner) for manner in manners], files=SMALL)
    size, found = len(BODIES[FIRST]), hashlib.sha256(BODIES[FIRST][:-1] + bytes([BODIES[FIRST][-1] ^ 1])).hexdigest()
    absent, other, cut, longer = map(server.mirror, manners)
    assert str(caught.value) == (
        f"nftk.data: {tmp_path / FIRST}: file must come from a mirror, got none of {absent} (HTTP status 404), "
        f"{other} (sha256 {found[:12]}... where {SMALL[FIRST].sha256[:12]}... is right), "
        f"{cut} ({size // 2} of {size} bytes), {longer} (more than {size} bytes); "
        "without a network, put the four idx files in a folder and name it in NFTK_DATA or with --data-dir"
    )
    assert held(tmp_path) == {FIRST: b"old"}, "nothing is left behind, and what was there is as it was"


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serve() as closed:
        port = closed.server_port
    with pytest.raises(DataError, match=r"\(Connection refused\); without a network, put .* NFTK_DATA or with --data"):
        download_mnist(tmp_path / "cache", [f"http://127.0.0.1:{port}/"], files=SMALL)
    assert held(tmp_path / "cache") == {}


def test_interrupted(server, tmp_path, monkeypatch):
    seen = []

    def interrupt(source, target):
        seen.append(Path(source).read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_mnist(tmp_path, [server.mirror("good")], files=SMALL)
    assert seen == [BODIES[FIRST]], "the file is whole on disk before it gets its name"
    assert held(tmp_path) == {}


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/mnist: folder must be writable, got Not a directory; without"):
        download_mnist(tmp_path / "file" / "mnist", [], files=SMALL)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_progress(server, tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    download_mnist(tmp_path, [server.mirror("good")], files=SMALL, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert (FIRST in err and "bytes" in err) if terminal else err == ""


def test_search_order(server, tmp_path, monkeypatch):
    """data_dir, then NFTK_DATA, then the cache, then the mirrors."""
    mirrors = [server.mirror("good")]
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("NFTK_DATA", "")

    def rows(data_dir=None):
        split = load_mnist(data_dir, mirrors=mirrors, files=SMALL)
        assert split.name == "mnist"
        return len(split.x_train)

    assert rows() == 3
    assert held(cache / "nftk" / "mnist") == BODIES
    assert len(server.asked) == 4
    assert rows() == 3
    for n, (setting, folder) in enumerate(
        [("env", "mnist"), ("env", "."), ("argument", "mnist"), ("argument", ".")], 4
    ):
        top = tmp_path / f"set{n}"
        top.mkdir()
        write_folder(top / folder, train_images=images(n), train_labels=np.arange(n, dtype=np.uint8))
        if setting == "env":
            monkeypatch.setenv("NFTK_DATA", str(top))
        assert rows(top if setting == "argument" else None) == n
    monkeypatch.setenv("NFTK_DATA", str(write_folder(tmp_path / "partial", t10k_labels=None)))
    assert rows() == 3, "a folder in NFTK_DATA without all the files is passed over"
    monkeypatch.setenv("NFTK_DATA", "")
    monkeypatch.chdir(tmp_path / "set4")
    assert rows() == 3, "an empty NFTK_DATA is not the current folder"
    assert len(server.asked) == 4


def test_given_folder_is_not_filled(server, tmp_path):
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path, mirrors=[server.mirror("good")], files=SMALL)
    assert str(caught.value) == (
        f"nftk.data: {tmp_path}: data folder must hold the four MNIST idx files, itself or in its folder mnist, got no "
        "train-images-idx3-ubyte"
    )
    assert held(tmp_path) == {}
    assert server.asked == []


def test_real(data_dir):
    split = load_data("mnist", data_dir)
    assert split.name == "mnist"
    assert (len(split.x_train), len(split.x_test)) == (60000, 10000)


def test_sums(data_dir):
    """Sizes and sums of the module are those of the real files, so that no download is tried."""
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in MIRRORS)
    for name, remote in FILES.items():
        content = (data_dir / "mnist" / name).read_bytes()
        assert remote == (len(content), hashlib.sha256(content).hexdigest())
