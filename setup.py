"""Maps the two source folders and adds the extension; everything else about the package stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

# a build in pip's isolation does not have the folder of setup.py on its path
sys.path.insert(0, str(Path(__file__).parent / "csrc"))
import build_extension

setup(
    packages=[*find_packages(include=["nftk", "nftk.*"]), "nftk.kernels"],
    # a top-level package named kernels would collide with the one on PyPI
    package_dir={"nftk": "nftk", "nftk.kernels": "kernels"},
    package_data={
        "nftk": ["py.typed", "_C.pyi"],
        "nftk.interpret": ["report.css", "report.js"],
        "nftk.kernels": ["tuned/*.json"],
    },
    **build_extension.settings(),
)
