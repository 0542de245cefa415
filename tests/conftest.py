"""Session-wide fixtures."""

import os
from pathlib import Path

import pytest
import torch


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
