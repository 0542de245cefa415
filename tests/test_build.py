"""csrc/build_extension.py: what it finds to build with, what it says where something is missing, and pip's builds."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from source_tree import ROOT, copy_source, environment

pytest.importorskip("setuptools", reason="setuptools is not installed")
sys.path.insert(0, str(ROOT / "csrc"))
import build_extension as build

from nftk import _extension

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the fake compilers are shell scripts for Linux"
)
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def fake_nvcc(path, top, *, codes="sm_75 sm_80 sm_86 sm_90 sm_100", compiles=":", libraries=""):
    """A script that answers as nvcc does; its toolkit is in `top`."""
    return script(
        path,
        f"""case "$*" in
        *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88";;
        *--list-gpu-code*) printf '%s\\n' {codes};;
        *--dryrun*) echo '#$ TOP={top}/bin/..' >&2; echo '#$ LIBRARIES=  {libraries}' >&2;;
        *) {compiles};;
        esac
        """,
    )


def toolkit(folder, lib="lib", **answers):
    (folder / lib).mkdir(parents=True)
    (folder / lib / "libcudart_static.a").touch()
    (folder / "include").mkdir()
    fake_nvcc(folder / "bin/nvcc", folder, **answers)
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """An environment without nvcc in it, and a Python without pip's packages."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "purelib"))
    (tmp_path / "empty").mkdir()
    return {"PATH": str(tmp_path / "empty")}


@linux
def test_nvcc_is_looked_for_in_this_order(nowhere, tmp_path, monkeypatch):
    with pytest.raises(build.NotFoundError, match=r"no nvcc was found \(CUDA_HOME, CUDA_PATH, PATH, pip's"):
        build.nvcc_path(nowhere)
    outer = toolkit(tmp_path / "purelib/nvidia/cu13")
    assert build.nvcc_path(nowhere) == str(outer / "bin/nvcc")
    inner = toolkit(tmp_path / "overlay/nvidia/cu13")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "overlay")])
    assert build.nvcc_path(nowhere) == str(inner / "bin/nvcc")
    for variable in ("PATH", "CUDA_PATH", "CUDA_HOME"):
        place = toolkit(tmp_path / variable)
        nowhere[variable] = str(place / "bin" if variable == "PATH" else place)
        assert build.nvcc_path(nowhere) == str(place / "bin/nvcc")


@linux
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_that_was_named_is_not_replaced(nowhere, tmp_path, variable):
    nowhere["PATH"] = str(toolkit(tmp_path / "another") / "bin")
    nowhere[variable] = str(tmp_path / "gone")
    with pytest.raises(build.NotFoundError, match=f"{variable}={tmp_path}/gone has no bin/nvcc"):
        build.nvcc_path(nowhere)


@linux
@pytest.mark.parametrize("lib", ["lib", "lib64"])
def test_the_toolkit_behind_a_script(nowhere, tmp_path, lib):
    real = toolkit(tmp_path / "cuda", lib)
    script(tmp_path / "bin/nvcc", f'exec {real}/bin/nvcc "$@"\n')
    nvcc = build.find_nvcc(nowhere | {"PATH": f"{tmp_path}/bin:/bin:/usr/bin"}, ["c++"])
    assert nvcc.path == str(tmp_path / "bin/nvcc")
    assert nvcc.version == "13.0"
    assert nvcc.static_runtime == str(real / lib / "libcudart_static.a")
    assert nvcc.includes == (str(real / "include"),)
    assert nvcc.supported == (75, 80, 86, 90, 100)


@linux
def test_the_runtime_where_nvcc_links_from(nowhere, tmp_path):
    elsewhere = tmp_path / "usr lib"
    elsewhere.mkdir()
    (elsewhere / "libcudart_static.a").touch()
    fake_nvcc(tmp_path / "bin/nvcc", tmp_path, libraries=f'"-L{elsewhere}/stubs" "-L{elsewhere}"')
    nvcc = build.find_nvcc(nowhere | {"PATH": f"{tmp_path}/bin:/bin:/usr/bin"}, ["c++"])
    assert nvcc.static_runtime == str(elsewhere / "libcudart_static.a")


@linux
def test_an_nvcc_that_does_not_work_is_not_found(nowhere, tmp_path):
    env = nowhere | {"PATH": "/bin:/usr/bin", "CUDA_HOME": str(tmp_path / "cuda")}
    refused = 'echo "one.h" >&2; echo "host_config.h:1: error: unsupported GNU version!" >&2; exit 1'
    toolkit(tmp_path / "cuda", compiles=refused)
    with pytest.raises(
        build.NotFoundError, match=r"cannot compile with c\+\+ \(host_config.h:1: error: unsupported GNU"
    ):
        build.find_nvcc(env, ["c++"])
    (tmp_path / "cuda/lib/libcudart_static.a").unlink()
    with pytest.raises(build.NotFoundError, match="nvcc has no libcudart_static.a beside it"):
        build.find_nvcc(env, ["c++"])
    script(tmp_path / "cuda/bin/nvcc", "echo nothing\n")
    with pytest.raises(build.NotFoundError, match="nvcc --version names no release"):
        build.find_nvcc(env, ["c++"])


def an_nvcc(*supported):
    return build.Nvcc("/cuda/bin/nvcc", "13.0", (), "/cuda/lib/libcudart_static.a", supported or (75, 80, 86, 90, 100))


def test_architectures():
    assert build.architectures(None, an_nvcc()) == ["80", "90a", "100"]
    assert build.architectures("", an_nvcc()) == ["80", "90a", "100"]
    # an older nvcc builds what it knows
    assert build.architectures(None, an_nvcc(70, 80, 90)) == ["80", "90a"]
    assert build.architectures("100;80, 90a 80", an_nvcc()) == ["80", "90a", "100"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("sm_80", "NFTK_CUDA_ARCHS must be numbers such as '80;90a;100', got 'sm_80'"),
        ("8.0", "NFTK_CUDA_ARCHS must be numbers such as '80;90a;100', got '8.0'"),
        ("80;native", "NFTK_CUDA_ARCHS must be numbers such as '80;90a;100', got '80;native'"),
        ("75", "NFTK_CUDA_ARCHS must name architectures from 80 on, got '75'"),
        ("80;120", "NFTK_CUDA_ARCHS must be among those of nvcc 13.0 (80, 86, 90, 100), got '120'"),
        ("80a", "NFTK_CUDA_ARCHS must be among those of nvcc 13.0 (80, 86, 90, 100), got '80a'"),
        (";", "NFTK_CUDA_ARCHS must name an architecture, got ';'"),
    ],
)
def test_architectures_that_are_none(given, text):
    with pytest.raises(build.SetupError, match=re.escape(text)):
        build.architectures(given, an_nvcc())


def test_build_cuda_is_0_or_1():
    assert [build.wants_cuda({"NFTK_BUILD_CUDA": given}) for given in ("", "0", "1")] == [None, False, True]
    assert build.wants_cuda({}) is None
    with pytest.raises(build.SetupError, match="NFTK_BUILD_CUDA must be 0 or 1, got 'yes'"):
        build.wants_cuda({"NFTK_BUILD_CUDA": "yes"})


@linux
def test_compilers_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(build.NotFoundError, match=r"no C\+\+ compiler was found \(c\+\+, g\+\+, clang\+\+\)"):
        build.find_compiler({"PATH": str(tmp_path / "empty")})
    with pytest.raises(build.NotFoundError, match=r"no C\+\+ compiler was found \(/gone/c\+\+\)"):
        build.find_compiler({"PATH": os.environ["PATH"], "CXX": "/gone/c++"})
    script(tmp_path / "c++", "echo 'unknown option -std=c++17' >&2; exit 1\n")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    with pytest.raises(
        build.NotFoundError, match=r"c\+\+ cannot build a C\+\+17 program \(unknown option -std=c\+\+17\)"
    ):
        build.find_compiler({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    monkeypatch.undo()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(build.NotFoundError, match="Python's headers are not installed"):
        build.find_compiler({"PATH": f"{tmp_path}:/bin:/usr/bin"})


def ninja_file(tmp_path, monkeypatch, cuda=None, debug=False, env=None):
    class Pybind11:
        @staticmethod
        def get_include():
            return "/pybind 11"

    monkeypatch.setitem(sys.modules, "pybind11", Pybind11)
    target = tmp_path / "a b$c" / "_C.so"
    return build._ninja_file(target, tmp_path, ["ccache", "c++"], cuda, ["-DWHY=\"no 'nvcc'\""], debug, env or {})


@linux
def test_commands(tmp_path, monkeypatch):
    text = ninja_file(tmp_path, monkeypatch, env={"CXXFLAGS": "-Dthis", "LDFLAGS": "-Lthat"})
    assert f"build {tmp_path}/a$ b$$c/_C.so: link " in text
    assert "'-isystem/pybind 11'" in text
    assert "bindings.cpp.o: binding " in text
    assert "layer_recursion.cpp.o: cxx " in text
    assert "nvcc" not in text.replace("no '\"'\"'nvcc'\"'\"'", "")
    assert "-O3" in text
    assert "march=native" not in text
    assert "-Dthis" in text
    assert "-Lthat" in text
    text = ninja_file(tmp_path, monkeypatch, debug=True)
    assert "-O0 -g" in text
    assert "-O3" not in text


@linux
def test_commands_for_cuda(tmp_path, monkeypatch):
    text = ninja_file(tmp_path, monkeypatch, (an_nvcc(), ["80", "90a"]))
    codes = re.findall(r"-gencode (\S+)", text)
    # the PTX without the suffix, which newer GPUs would refuse
    assert codes == [
        "arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90",
    ]  # fmt: skip
    assert re.search(r"-ccbin \S*c\+\+", text)
    assert "ccbin ccache" not in text
    assert "libcudart_static.a -ldl -lrt -Wl,--exclude-libs,ALL" in text
    assert "tangent_gram.cu.o: nvcc " in text


# ---- pip's own builds


def pip(*words, **settings):
    command = [sys.executable, "-m", "pip", *words, "-v", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment(**settings))
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A folder with what a build requires, as pip would put it into its isolated environment."""
    folder = tmp_path_factory.mktemp("tools")
    required = re.search(r"^requires = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    code, told = pip("install", "--target", folder, *re.findall(r'"([^"]+)"', required), "wheel")
    if code:
        pytest.skip(f"pip cannot fetch what a build requires: {told.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def sdist(tools, tmp_path_factory):
    source = copy_source(tmp_path_factory.mktemp("sdist") / "source")
    code = "import setuptools.build_meta as b; b.build_sdist('..')"
    env = environment(PYTHONPATH=tools)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=source, env=env)
    assert done.returncode == 0, done.stderr
    return next(source.parent.glob("*.tar.gz"))


@pytest.fixture
def no_nvcc(tmp_path):
    return {"CUDA_HOME": tmp_path / "no-cuda"}


def run_from(folder, code):
    # an editable install would lend its own nftk._C to a package without one
    finders = "[f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]"
    code = f"import sys; sys.meta_path[:] = {finders}; sys.path.insert(0, {str(folder)!r}); {code}"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TELL = "import nftk._extension as e; print(e.__file__); print(e.NO_CPP); print(e.NO_CUDA)"


@linux
@needs_compiler
@pytest.mark.slow
def test_a_wheel_without_nvcc_has_the_cpp_parts(sdist, no_nvcc, tmp_path):
    code, told = pip("wheel", "--wheel-dir", tmp_path, sdist, DEBUG=1, **no_nvcc)
    assert code == 0, told
    reason = f"CUDA_HOME={no_nvcc['CUDA_HOME']} has no bin/nvcc; "
    assert f"nftk: builds nftk._C without CUDA: {reason}" in told.replace("; to have it, ", "; ")
    wheel = next(tmp_path.glob("*.whl"))
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert re.search(rf"-{tag}-{tag}t?-linux_{platform.machine()}.whl$", wheel.name)
    zipfile.ZipFile(wheel).extractall(tmp_path / "there")
    file, no_cpp, no_cuda = run_from(tmp_path / "there", TELL).splitlines()
    assert file.startswith(str(tmp_path / "there"))
    assert no_cpp == "None"
    assert no_cuda.startswith(f"nftk._C was built without CUDA: {reason}install the CUDA toolkit, or `pip install")


@pytest.mark.slow
def test_a_wheel_without_a_compiler_is_pure_python(sdist, tmp_path):
    code, told = pip("wheel", "--wheel-dir", tmp_path, sdist, CXX="/gone/c++")
    assert code == 0, told
    reason = "no C++ compiler was found (/gone/c++); "
    assert f"nftk: builds no extension, nftk will be pure Python: {reason}" in told
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "there")
    _, no_cpp, no_cuda = run_from(tmp_path / "there", TELL).splitlines()
    assert no_cpp == no_cuda
    assert no_cpp.startswith(f"nftk was installed without nftk._C: {reason}install one, as by `apt install g++`")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"NFTK_BUILD_CUDA": "1", "CUDA_HOME": "/gone"},
            "error: NFTK_BUILD_CUDA is 1, but CUDA_HOME=/gone has no bin/nvcc; install the CUDA toolkit, or "
            "`pip install nvidia-cuda-nvcc`, then run `NFTK_BUILD_CUDA=1 pip install .` in nftk's source",
        ),
        (
            {"NFTK_BUILD_CUDA": "1", "CXX": "/gone/c++"},
            "error: NFTK_BUILD_CUDA is 1, but no C++ compiler was found (/gone/c++); install one",
        ),
        ({"NFTK_BUILD_CUDA": "yes"}, "error: NFTK_BUILD_CUDA must be 0 or 1, got 'yes'"),
        ({"CUDA_HOME": "fake", "NFTK_CUDA_ARCHS": "sm_80"}, "error: NFTK_CUDA_ARCHS must be numbers such as"),
    ],
    ids=["nvcc", "compiler", "setting", "architecture"],
)
def test_a_build_that_cannot_be_ends_in_a_sentence(tools, sdist, tmp_path, settings, text):
    if "CXX" not in settings and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    if settings.get("CUDA_HOME") == "fake":
        settings = settings | {"CUDA_HOME": toolkit(tmp_path / "cuda")}
    code, told = pip("wheel", "--no-build-isolation", "--wheel-dir", tmp_path, sdist, PYTHONPATH=tools, **settings)
    assert code != 0
    assert text in told
    assert not list(tmp_path.glob("*.whl"))


@pytest.fixture(scope="module")
def checkout(tools, tmp_path_factory):
    """An editable install of a copy, in an environment of its own: the folder, and what builds it again."""
    place = tmp_path_factory.mktemp("editable")
    source = copy_source(place / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)

    def install(**settings):
        settings = {"CUDA_HOME": place / "no-cuda", "DEBUG": 1, "PYTHONPATH": tools} | settings
        words = ["--python", place / "venv/bin/python", "install", "--no-build-isolation", "--editable", source]
        return pip(*words, **settings)

    code, told = install()
    assert code == 0, told
    return source, install, place / "venv/bin/python"


@linux
@needs_compiler
@pytest.mark.slow
def test_an_editable_install_finds_the_extension(checkout):
    source, _, python = checkout
    built = source / f"nftk/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert built.exists()
    # the package's other imports are not in that environment
    code = (
        f"import importlib.util as u; print(u.find_spec('nftk').origin); import sys; sys.path[:0] = [{str(source)!r}]; "
    )
    code += "sys.modules['nftk'] = type(sys)('nftk'); sys.modules['nftk'].__path__ = [sys.path[0] + '/nftk']; "
    code += "import nftk._C as c; print(c.__file__, c.build_info()['cuda'])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.split() == [str(source / "nftk/__init__.py"), str(built), "False"], done.stderr


@linux
@needs_compiler
@pytest.mark.slow
def test_only_what_changed_is_compiled_again(checkout):
    source, install, _ = checkout
    os.utime(source / "csrc/layer_recursion.cpp")
    code, told = install()
    assert code == 0, told
    assert [Path(path).name for path in re.findall(r" -c (\S+)", told)] == ["layer_recursion.cpp"]


@linux
@needs_compiler
@pytest.mark.slow
def test_source_that_does_not_compile_ends_the_build(checkout):
    source, install, _ = checkout
    path = source / "csrc/layer_recursion.cpp"
    right = path.read_text()
    path.write_text(right + "int wrong = this_name_is_not_there;\n")
    code, told = install()
    path.write_text(right)
    assert code != 0
    assert "this_name_is_not_there" in told
    assert "error: csrc does not compile; the compiler's words stand above" in told


@linux
@needs_compiler
@pytest.mark.slow
def test_an_editable_install_forgets_an_extension_that_it_no_longer_builds(checkout):
    source, install, _ = checkout
    built, note = source / f"nftk/_C{sysconfig.get_config_var('EXT_SUFFIX')}", source / "nftk/_C_missing.txt"
    code, told = install(CXX="/gone/c++")
    assert code == 0, told
    assert not built.exists()
    assert note.read_text().startswith("no C++ compiler was found (/gone/c++)")
    code, told = install()
    assert code == 0, told
    assert built.exists()
    assert not note.exists()


@linux
@pytest.mark.skipif(_extension.NO_CUDA is not None, reason=str(_extension.NO_CUDA))
@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd")
def test_the_extension_needs_no_cuda_library():
    from nftk import _C

    needed = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True).stdout
    assert "libstdc++" in needed
    assert "cuda" not in needed
