"""Builds nftk._C for setup.py: finds a compiler and nvcc, writes the commands for ninja, and says what was left out.

Three outcomes, each said in one line and told by `nftk info`: C++ and CUDA; C++ alone, where no nvcc is; nothing, where
no C++ compiler is, and then the package is pure Python. What a compiler finds wrong in the source ends the build.

The environment: CXX, CXXFLAGS and LDFLAGS as everywhere; CUDA_HOME or CUDA_PATH, the CUDA toolkit to take;
NFTK_BUILD_CUDA, 1 to fail without nvcc and 0 to leave CUDA out; NFTK_CUDA_ARCHS, as in "80;90a"; DEBUG=1, for -O0 -g.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, SetupError

SOURCE = Path(__file__).parent
# A100, H100 with what only it has, B200; those of the same generation run them too, later ones the newest's PTX
ARCHITECTURES = ("80", "90a", "100")
_OLDEST = 80
# where nftk/_dispatch.py looks for the reason that there is no extension
_NOTE = "_C_missing.txt"
_MEND_NVCC = (
    "install the CUDA toolkit, or `pip install nvidia-cuda-nvcc`, "
    "then run `NFTK_BUILD_CUDA=1 pip install .` in nftk's source"
)
_MEND_COMPILER = "install one, as by `apt install g++`, then run `pip install .` in nftk's source"


class NotFoundError(Exception):
    """Something to build with is not there; the text says what, as part of a sentence."""


def say(text: str) -> None:
    """Print a line that `pip install -v` shows."""
    print(f"nftk: {text}", flush=True)


def find_compiler(env: Mapping[str, str]) -> list[str]:
    """Return the command of a C++ compiler that can build an extension of this Python.

    Args:
        env: The environment: CXX and PATH.

    Returns:
        The words of the command.

    Raises:
        NotFoundError: If there is none.
    """
    if sys.platform == "win32":
        raise NotFoundError("nftk's C++ is written for Linux and macOS")
    names = [env["CXX"]] if env.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        first, *others = shlex.split(name)
        path = shutil.which(first, path=env.get("PATH"))
        if path is not None:
            break
    else:
        raise NotFoundError(f"no C++ compiler was found ({', '.join(names)})")
    command = [path, *others]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise NotFoundError(f"Python's headers are not installed ({header})")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <optional>\nint main() { return std::optional<int>(0).value(); }\n")
        done = _run([*command, "-std=c++17", str(source), "-o", str(source.with_suffix(""))], env)
    if done.returncode:
        raise NotFoundError(f"{name} cannot build a C++17 program ({_last_line(done.stderr)})")
    return command


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler with all that it needs."""

    path: str
    version: str  # as in "13.0"
    includes: tuple[str, ...]
    static_runtime: str
    supported: tuple[int, ...]  # architectures without their suffix


def nvcc_path(env: Mapping[str, str]) -> str:
    """Return where nvcc is: in the toolkit that CUDA_HOME or CUDA_PATH names, in PATH, or among pip's packages.

    Args:
        env: The environment.

    Returns:
        Its path.

    Raises:
        NotFoundError: If it is nowhere, or not in the toolkit named.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(name):
            path = Path(env[name]) / "bin" / "nvcc"
            # a place that was named is taken or refused, never replaced by another
            if not os.access(path, os.X_OK):
                raise NotFoundError(f"{name}={env[name]} has no bin/nvcc")
            return str(path)
    found = shutil.which("nvcc", path=env.get("PATH"))
    if found is not None:
        return found
    # an isolated build sees its own packages in sys.path, and those of the environment it came from in purelib alone
    for folder in dict.fromkeys([*sys.path, sysconfig.get_path("purelib")]):
        for path in sorted(Path(folder).glob("nvidia/*/bin/nvcc"), reverse=True):
            if os.access(path, os.X_OK):
                return str(path)
    raise NotFoundError("no nvcc was found (CUDA_HOME, CUDA_PATH, PATH, pip's nvidia-cuda-nvcc)")


def find_nvcc(env: Mapping[str, str], compiler: list[str]) -> Nvcc:
    """Return an nvcc that has shown that it works with a C++ compiler.

    Args:
        env: The environment.
        compiler: The C++ compiler's command.

    Returns:
        It and what belongs to it.

    Raises:
        NotFoundError: If there is none, or it does not work.
    """
    path = nvcc_path(env)
    release = re.search(r"release (\d+\.\d+)", _run([path, "--version"], env).stdout)
    if release is None:
        raise NotFoundError(f"{path} --version names no release")
    # nvcc may be a script that calls another, so it is asked where its toolkit is
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text("__global__ void probe() {}\n")
        dry = _run([path, "--dryrun", "-c", str(source), "-o", str(source.with_suffix(".o"))], env).stderr
        top = re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
        libraries = re.search(r"^#\$ LIBRARIES=(.*)$", dry, re.MULTILINE)
        root = Path(top[1].strip()).resolve() if top else Path(path).resolve().parent.parent
        listed = [Path(word.removeprefix("-L")) for word in shlex.split(libraries[1])] if libraries else []
        # pip's packages lie otherwise than nvcc expects
        places = [place / "libcudart_static.a" for place in [*listed, root / "lib64", root / "lib"]]
        static = next((place for place in places if place.exists()), None)
        if static is None:
            raise NotFoundError(f"{path} has no libcudart_static.a beside it")
        includes = [str(root / name) for name in ("include", "include/cccl") if (root / name).is_dir()]
        flags = [f"-I{include}" for include in includes] + _host_compiler(compiler)
        done = _run([path, *flags, "-ptx", str(source), "-o", str(source.with_suffix(".ptx"))], env)
    if done.returncode:
        raise NotFoundError(f"{path} cannot compile with {shlex.join(compiler)} ({_first_error(done.stderr)})")
    listing = _run([path, "--list-gpu-code"], env).stdout
    supported = sorted({int(number) for number in re.findall(r"\bsm_(\d+)\b", listing)})
    return Nvcc(path, release[1], tuple(includes), str(static.resolve()), tuple(supported))


def architectures(given: str | None, nvcc: Nvcc) -> list[str]:
    """Return the architectures to build for, in order.

    Args:
        given: NFTK_CUDA_ARCHS, or None for those of the default that nvcc has.
        nvcc: The compiler.

    Returns:
        Such as ["80", "90a", "100"].

    Raises:
        SetupError: If a name is none, or nvcc does not have it.
    """
    if not given:
        return [name for name in ARCHITECTURES if int(name.rstrip("a")) in nvcc.supported]
    names = [name for name in re.split(r"[;,\s]+", given) if name]
    for name in names:
        match = re.fullmatch(r"(\d{2,3})([af]?)", name)
        if match is None:
            raise SetupError(f"NFTK_CUDA_ARCHS must be numbers such as '80;90a;100', got {given!r}")
        number = int(match[1])
        if number < _OLDEST:
            raise SetupError(f"NFTK_CUDA_ARCHS must name architectures from {_OLDEST} on, got {name!r}")
        if number not in nvcc.supported or (match[2] and number < 90):
            known = ", ".join(str(n) for n in nvcc.supported if n >= _OLDEST)
            raise SetupError(f"NFTK_CUDA_ARCHS must be among those of nvcc {nvcc.version} ({known}), got {name!r}")
    if not names:
        raise SetupError(f"NFTK_CUDA_ARCHS must name an architecture, got {given!r}")
    return sorted(dict.fromkeys(names), key=lambda name: (int(name.rstrip("af")), name))


def wants_cuda(env: Mapping[str, str]) -> bool | None:
    """Return NFTK_BUILD_CUDA: True for must, False for leave out, None for where nvcc is.

    Args:
        env: The environment.

    Returns:
        What it says.

    Raises:
        SetupError: If it says neither.
    """
    given = env.get("NFTK_BUILD_CUDA", "")
    if given not in ("", "0", "1"):
        raise SetupError(f"NFTK_BUILD_CUDA must be 0 or 1, got {given!r}")
    return bool(int(given)) if given else None


class BuildExtension(build_ext):
    """Builds the one extension with ninja, and only what has changed since the last time."""

    def build_extension(self, ext: Extension) -> None:
        """Build it where setuptools wants it."""
        env = os.environ
        compiler = find_compiler(env)
        nvcc, defines = self._cuda(env, compiler)
        debug = env.get("DEBUG") == "1"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # not build_temp, which an editable install throws away
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}{'-debug' if debug else ''}"
        folder = SOURCE.parent.resolve() / "build" / f"csrc-{tag}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(_ninja_file(target, folder, compiler, nvcc, defines, debug, env))
        words = [*_ninja(), "-C", str(folder), "-j", str(_cores())]
        if subprocess.run(words, env=dict(env)).returncode:
            raise CompileError("csrc does not compile; the compiler's words stand above")

    def _cuda(self, env: Mapping[str, str], compiler: list[str]) -> tuple["tuple[Nvcc, list[str]] | None", list[str]]:
        """The CUDA compiler with its architectures, or None; and what bindings.cpp is told of it."""
        wanted = wants_cuda(env)
        reason = "NFTK_BUILD_CUDA was 0"
        mend = "run `NFTK_BUILD_CUDA=1 pip install .` in nftk's source"
        if wanted is not False:
            try:
                nvcc = find_nvcc(env, compiler)
            except NotFoundError as missing:
                if wanted:
                    raise SetupError(f"NFTK_BUILD_CUDA is 1, but {missing}; {_MEND_NVCC}") from None
                reason, mend = str(missing), _MEND_NVCC
            else:
                names = architectures(env.get("NFTK_CUDA_ARCHS"), nvcc)
                words = ", ".join(f'"{name}"' for name in [*names, f"{_ptx(names)}+PTX"])
                say(f"builds nftk._C with CUDA {nvcc.version} by {nvcc.path} for {', '.join(names)}")
                return (nvcc, names), [
                    "-DNFTK_CUDA",
                    f'-DNFTK_CUDA_VERSION="{nvcc.version}"',
                    f"-DNFTK_CUDA_ARCHITECTURES={words}",
                ]
        say(f"builds nftk._C without CUDA: {reason}; to have it, {mend}")
        text = f"{reason}; {mend}".replace("\\", "\\\\").replace('"', '\\"')
        return None, [f'-DNFTK_WHY_NO_CUDA="{text}"']


class BuildPython(build_py):
    """Leaves a note in the package where no extension is built."""

    why_no_extension: str | None = None

    def run(self) -> None:
        """Copy the modules; then write the note, or remove one that is no longer true."""
        super().run()
        editable = getattr(self, "editable_mode", False)
        folder = Path(self.get_package_dir("nftk")) if editable else Path(self.build_lib, "nftk")
        note = folder / _NOTE
        if self.why_no_extension is None:
            note.unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(self.why_no_extension + "\n")
        # of an earlier build in the same place
        (folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)


def settings() -> dict[str, Any]:
    """Return what setup() needs: the extension, unless there is nothing to build it with.

    Returns:
        Arguments of setup().

    Raises:
        SystemExit: If what the environment asks for cannot be.
    """
    commands = {"build_ext": BuildExtension, "build_py": BuildPython}
    try:
        wanted = wants_cuda(os.environ)
        find_compiler(os.environ)
    except SetupError as error:
        raise SystemExit(f"error: {error}") from None
    except NotFoundError as missing:
        if wanted:
            raise SystemExit(f"error: NFTK_BUILD_CUDA is 1, but {missing}; {_MEND_COMPILER}") from None
        say(f"builds no extension, nftk will be pure Python: {missing}; to have it, {_MEND_COMPILER}")
        BuildPython.why_no_extension = f"{missing}; {_MEND_COMPILER}"
        return {"cmdclass": commands}
    # the sources are ninja's to know; setuptools only has to see that there is an extension
    return {"cmdclass": commands, "ext_modules": [Extension("nftk._C", sources=[])]}


def _ninja_file(
    target: Path,
    folder: Path,
    compiler: list[str],
    cuda: tuple[Nvcc, list[str]] | None,
    defines: list[str],
    debug: bool,
    env: Mapping[str, str],
) -> str:
    """The commands that make the extension."""
    import pybind11

    level = ["-O0", "-g"] if debug else ["-O3"]
    common = ["-std=c++17", *level]
    # a square root that may set errno is a call, and no loop around it becomes one of vectors
    host = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread", "-fno-math-errno"]
    python = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    cxx = [*compiler, *common, *host, *shlex.split(env.get("CXXFLAGS", ""))]
    sources = sorted(SOURCE.glob("*.cpp"))
    rules = [("cxx", [*cxx]), ("binding", [*cxx, *python, *defines])]
    link = [*compiler, *(["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"])]
    link += ["-pthread"] if debug or sys.platform == "darwin" else ["-pthread", "-s"]
    libraries: list[str] = []
    if cuda is not None:
        nvcc, names = cuda
        sources += sorted(SOURCE.glob("*.cu"))
        codes = [f"arch=compute_{name},code=sm_{name}" for name in names]
        codes.append(f"arch=compute_{_ptx(names)},code=compute_{_ptx(names)}")
        words = [nvcc.path, *common, *(f"-I{path}" for path in nvcc.includes), *_host_compiler(compiler)]
        words += [word for code in codes for word in ("-gencode", code)]
        # ninja has a core for every file, nvcc the rest for the architectures of one
        files = sum(source.suffix == ".cu" for source in sources)
        words += ["--threads", str(max(1, _cores() // files)), "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-pthread"]
        rules.append(("nvcc", [*words, *(["-lineinfo"] if debug else [])]))
        # static, and hidden from others: the extension loads where no CUDA library is, and beside torch's own
        libraries += [nvcc.static_runtime, "-ldl", "-lrt", "-Wl,--exclude-libs,ALL"]
    lines = ["ninja_required_version = 1.5"]
    for name, command in rules:
        lines += [
            f"rule {name}",
            f"  command = {_shell(command)} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    flags = [*libraries, *shlex.split(env.get("LDFLAGS", ""))]
    lines += ["rule link", f"  command = {_shell(link)} $in -o $out {_shell(flags)}"]
    objects = []
    for source in sources:
        objects.append(folder / f"{source.name}.o")
        rule = "nvcc" if source.suffix == ".cu" else "binding" if source.name == "bindings.cpp" else "cxx"
        lines.append(f"build {_path(objects[-1])}: {rule} {_path(source.resolve())}")
    lines.append(f"build {_path(target)}: link {' '.join(map(_path, objects))}")
    lines.append(f"default {_path(target)}")
    return "\n".join(lines) + "\n"


def _ptx(names: list[str]) -> str:
    """The newest architecture without its suffix: only that one's PTX runs on newer GPUs."""
    return names[-1].rstrip("af")


def _host_compiler(compiler: list[str]) -> list[str]:
    # of `ccache g++ -m64` the second word
    words = [word for word in compiler if not word.startswith("-")]
    return ["-ccbin", shutil.which(words[-1]) or words[-1]]


def _ninja() -> list[str]:
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    path = shutil.which("ninja")
    if path is None:
        raise SetupError("ninja must be installed to build nftk._C; run `pip install ninja`")
    return [path]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(words: list[str], env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, env=dict(env), stdin=subprocess.DEVNULL)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def _first_error(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if "error" in line.lower()), _last_line(text))


def _shell(words: Iterable[str]) -> str:
    """Words of a command, for the shell that ninja calls."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    """A path in a build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
