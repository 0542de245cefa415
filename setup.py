"""Maps the two source folders; everything else about the package stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nftk", "nftk.*"]), "nftk.kernels"],
    # a top-level package named kernels would collide with the one on PyPI
    package_dir={"nftk": "nftk", "nftk.kernels": "kernels"},
    package_data={"nftk": ["py.typed"], "nftk.kernels": ["tuned/*.json"]},
)
