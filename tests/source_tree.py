"""A copy of what a source distribution is made from, because setuptools leaves a build folder where it works."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
# what changes a build; a test says what it sets
SETTINGS = ("CC", "CXX", "CXXFLAGS", "LDFLAGS", "CUDA_HOME", "CUDA_PATH", "DEBUG", "NFTK_BUILD_CUDA", "NFTK_CUDA_ARCHS")


def copy_source(folder):
    """Copy it and return the folder."""
    ignored = shutil.ignore_patterns("__pycache__", "_C*.so", "_C_missing.txt")
    for name in ("nftk", "kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    return folder


def environment(**settings):
    """The environment for a build with these settings and no others, in which pip says what it does."""
    kept = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "PIP_QUIET", "PYTHONPATH")}
    return kept | {name: str(value) for name, value in settings.items()}
