"""The package as others get it: what import costs, what a wheel holds, which way imports run."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_tree import copy_source, environment

import nftk

ROOT = Path(__file__).parent.parent
# imports run one way: a folder may import from those before it
ORDER = [
    "reference", "ops", "constraints", "modules", "tangent", "training", "regression", "surrogate",
    "attribution", "interpret", "data", "experiments", "cli",
]  # fmt: skip


def fresh(code, **variables):
    call = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, cwd="/", env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_no_more_than_torch_plus_a_tenth_of_a_second(tmp_path):
    code = "import torch, time; t = time.process_time(); import nftk; print(time.process_time() - t)"
    # compiled once, as pip compiles what it installs
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    assert min(float(fresh(code, **kept)) for _ in range(4)) < 0.1


def test_what_looks_at_a_trained_network_is_imported_when_asked_for():
    code = """
import sys, nftk
later = {"attribution", "data", "interpret", "reference", "regression", "surrogate", "tangent"}
assert not later & {name.split(".")[1] for name in sys.modules if name.startswith("nftk.")}
assert set(nftk.__all__) <= set(dir(nftk))
for name in nftk.__all__:
    getattr(nftk, name)
try:
    nftk.nothing
except AttributeError as error:
    print(error)
"""
    assert fresh(code) == "module 'nftk' has no attribute 'nothing'"


def test_import_leaves_heavy_packages_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import nftk; "
        "print({m.split('.')[0] for m in set(sys.modules) - before})"
    )
    loaded = ast.literal_eval(fresh(code))
    assert not loaded & {"matplotlib", "sklearn", "scipy", "triton", "typer", "rich", "pandas"}


def test_loading_a_network_loads_no_compiler(tmp_path):
    """It takes torch seconds."""
    path = tmp_path / "network.safetensors"
    nftk.NFTKMLP(3, [4, 4], 2).save(path)
    code = f"import sys, nftk; nftk.NFTKMLP.load({str(path)!r}); print('torch._dynamo' in sys.modules)"
    assert fresh(code) == "False"


def test_the_module_is_the_command():
    pytest.importorskip("typer", reason="needs typer for the command line")
    done = subprocess.run([sys.executable, "-m", "nftk", "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "Usage: python -m nftk" in done.stdout
    assert "reproduce" in done.stdout


def test_public_names():
    for name in nftk.__all__:
        assert getattr(nftk, name).__doc__, name
    assert importlib.metadata.version("nftk") == nftk.__version__
    contract = {
        "KernelRidge", "LayerKernels", "MultipleKernelRidge", "NFTKMLP", "attribution", "constraints", "empirical_ntk",
        "fit", "kernel_prediction", "ops", "plot_omega", "reference", "surrogate",
    }  # fmt: skip
    assert contract <= set(nftk.__all__)


def test_kernels_are_installed_as_nftk_kernels():
    assert fresh("import nftk.kernels; print(nftk.kernels.__name__)") == "nftk.kernels"


def imported(path):
    """Folders of nftk that a file imports at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "nftk" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1]


@pytest.mark.parametrize("folder", ORDER)
def test_imports_run_one_way(folder):
    allowed = ORDER[: ORDER.index(folder) + 1]
    for path in (ROOT / "nftk" / folder).rglob("*.py"):
        assert set(imported(path)) <= set(allowed), path


def test_every_folder_has_its_place():
    assert {p.parent.name for p in (ROOT / "nftk").glob("*/__init__.py")} == set(ORDER)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = copy_source(out / "source")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", out, source],
        capture_output=True,
        text=True,
        # test_build.py has the wheels with and without compiled parts
        env=environment(NFTK_BUILD_CUDA=0, DEBUG=1),
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"nftk", f"nftk-{nftk.__version__}.dist-info"}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nftk").rglob("*.py")}
    sources |= {f"nftk/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "nftk/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nftk, nftk.kernels, torch; "
        "assert nftk.NFTKMLP(4, [3], 2)(torch.ones(1, 4)).shape == (1, 2); print(nftk.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
