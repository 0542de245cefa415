"""Session-wide fixtures."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # before torch is imported: workers whose threads are more than the cores wait for each other
    cores_each = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores_each)))

import torch

if not torch.cuda.is_available():
    # before Triton is imported: its interpreter then runs the kernels here
    os.environ.setdefault("TRITON_INTERPRET", "1")
# without it cuBLAS warns in deterministic mode, which is on in every test, and warnings are errors
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# their assertions tell what they compared, as those of the tests do
pytest.register_assert_rewrite("network_inputs", "training_problem")


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """Make torch.empty return NaN, so code that leaves an element unwritten fails its test."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)  # nftk train may have changed it


@pytest.fixture(scope="session")
def data_dir():
    """The folder that NFTK_DATA names, or a skip that says so."""
    folder = os.environ.get("NFTK_DATA")
    if not folder:
        pytest.skip("NFTK_DATA names no folder with the datasets")
    if not Path(folder).is_dir():
        pytest.fail(f"NFTK_DATA names {folder}, which is not a folder")
    return Path(folder)


@pytest.fixture
def grid():
    """Triton's interpreter as tests/emulation.py mends it; yields what knows of its launches."""
    from nftk import _dispatch

    if _dispatch._TRITON_PACKAGE is not None:
        pytest.skip(_dispatch._TRITON_PACKAGE)
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the interpreter is off, because a GPU is there: tests/test_gpu_kernels.py runs the kernels on it")
    from emulation import emulate

    with emulate() as found:
        yield found


@pytest.fixture
def small_tiles(grid, monkeypatch):
    """The smallest tiles, so that small shapes have many; yields a function that sets the number of splits."""
    from nftk.kernels import _workspace, choice

    def set_splits(splits):
        tiles = choice.Tiles(16, 16, 16, splits, 4, 2)
        monkeypatch.setattr(choice, "default_tiles", lambda *args, **kwargs: tiles)

    set_splits(0)
    yield set_splits
    for zeros in _workspace._by_stream.values():
        assert not zeros.any(), "a kernel left a counter behind"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """csrc's tangent_gram compiled for the CPU."""
    import tangent_gram_host as host

    if host.missing() is not None:
        pytest.skip(host.missing())
    return host.Host(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def emulated(library):
    """The same in the place of nftk._C."""
    import tangent_gram_host as host

    return host.Extension(library)


@pytest.fixture
def cuda(emulated, monkeypatch):
    """backend="cuda" on a CPU's tensors: the kernels' very source."""
    import importlib

    from nftk import _dispatch

    load = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: emulated if name == "nftk._C" else load(name))
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, device: None)
    return emulated
