"""nftk._C: its C++ parts against torch, what it says of itself, and what nftk says of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nftk import _dispatch, _extension

ROOT = Path(__file__).parent.parent
needs_extension = pytest.mark.skipif(_extension.NO_CPP is not None, reason=str(_extension.NO_CPP))
if _extension.NO_CPP is None:
    from nftk import _C

WIDTHS = ["baseline", "avx2", "avx512"]


@needs_extension
def test_wrong_counts_are_refused():
    layer = (0, 0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0)
    numbers = torch.ones(64, dtype=torch.float64)

    def recursion(layers=(layer,), **changes):
        memory = dict.fromkeys(("gap", "rows1", "rows2", "out"), numbers.data_ptr())
        rest = {
            "gap_strides": (2, 1), "sizes": (2, 2), "out_strides": (4, 2, 1), "weights": 0, "outputs": 1,
            "tangent": True, "symmetric": False, "number": "float64", "wide": False, "threads": 1,
        }  # fmt: skip
        _C.layer_recursion(list(layers), **(memory | rest | changes))

    def gaps(**changes):
        memory = dict.fromkeys(("gram", "u1", "u2"), numbers.data_ptr())
        rest = {"stride": 2, "sizes": (2, 2, 3), "near": 0.1, "upper": False, "number": "float64", "threads": 1}
        _C.gaps_from_gram(**(memory | rest | changes))

    def transpose(**changes):
        memory = dict.fromkeys(("out", "x"), numbers.data_ptr())
        rest = {"out_stride": 8, "x_stride": 8, "sizes": (2, 2), "number": "float64"}
        _C.transpose(**(memory | rest | changes))

    recursion()
    gaps()
    transpose(x=numbers[16:].data_ptr())
    too_wide = WIDTHS[WIDTHS.index(_C.build_info()["vectors"]) + 1 :]
    for call, error, text in [
        (lambda: recursion([layer[:-1]]), TypeError, "incompatible function arguments"),
        (lambda: recursion([(99, *layer[1:])]), ValueError, "layer_recursion: kind is unknown"),
        (lambda: recursion([(0, -1, *layer[2:])]), ValueError, "layer_recursion: order must be at least 0"),
        (lambda: recursion(sizes=(-1, 2)), ValueError, "layer_recursion: sizes must be at least 0"),
        (lambda: recursion(rows2=0), ValueError, "layer_recursion: tensors must have memory, got address 0"),
        (lambda: recursion(gap_strides=(1, 2)), ValueError, "layer_recursion: columns must lie next to each other"),
        (lambda: recursion(sizes=(1, 2), symmetric=True), ValueError, "symmetric must go with as many rows as columns"),
        (lambda: recursion(number="int8"), ValueError, "layer_recursion: number must be float32 or float64"),
        (lambda: recursion(vectors="neon"), ValueError, "vectors must be one of baseline, avx2, avx512, got neon"),
        (lambda: gaps(u1=0), ValueError, "gaps_from_gram: tensors must have memory, got address 0"),
        (lambda: gaps(sizes=(1, 2, 3), upper=True), ValueError, "upper must go with as many rows as columns"),
        (lambda: gaps(number="half"), ValueError, "gaps_from_gram: number must be float32 or float64"),
        (lambda: transpose(out=0), ValueError, "transpose: tensors must have memory, got address 0"),
        (lambda: transpose(out_stride=1), ValueError, "transpose: rows must not overlap"),
        (lambda: transpose(x_stride=1), ValueError, "transpose: rows must not overlap"),
        (lambda: transpose(number="half"), ValueError, "transpose: number must be float32 or float64"),
        *((lambda name=name: recursion(vectors=name), ValueError, f"this CPU has no {name}") for name in too_wide),
    ]:
        with pytest.raises(error, match=re.escape(text)):
            call()


@needs_extension
def test_build_info():
    info = _C.build_info()
    assert set(info) == {"cuda", "cuda_version", "why_no_cuda", "architectures", "compiler", "vectors"}
    assert info["vectors"] in WIDTHS
    assert info["compiler"].startswith(("gcc ", "clang "))
    if info["cuda"]:
        assert re.fullmatch(r"\d+\.\d+", info["cuda_version"])
        assert info["architectures"][-1].endswith("+PTX")
        assert info["why_no_cuda"] is None
    else:
        assert info["cuda_version"] is None
        assert info["architectures"] == []
        assert info["why_no_cuda"]


@needs_extension
def test_the_stub_names_what_is_there():
    stub = ast.parse((ROOT / "nftk/_C.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    there = {name for name in dir(_C) if not name.startswith("_")}
    assert there == named - (set() if _C.build_info()["cuda"] else {"tangent_gram"})
    for node in stub.body:
        if isinstance(node, ast.FunctionDef) and node.name in there:
            arguments = [a.arg for a in [*node.args.args, *node.args.kwonlyargs]]
            signature = getattr(_C, node.name).__doc__.splitlines()[0]
            assert re.findall(r"(\w+): ", signature) == arguments, signature


def call_tangent_gram(entries, **changes):
    keywords = {
        "out": 0, "out_strides": (0,) * 5, "sizes": (1, 1, 1), "outputs": 1, "form": "full", "symmetric": False,
        "accumulate": False, "number": "float32", "precision": "highest", "device": 0, "stream": 0,
    }  # fmt: skip
    _C.tangent_gram(entries, **(keywords | changes))


@pytest.mark.skipif(_extension.NO_CUDA is not None, reason=str(_extension.NO_CUDA))
def test_tangent_gram_refuses_wrong_counts():
    entry = (0, (0, 0), 0, (0, 0, 0), 0, (0, 0, 0), 1, 1, 0, 0)
    for entries, changes, error, text in [
        ([entry], {}, ValueError, "entries must have memory, got address 0"),
        ([], {}, ValueError, "out must have memory, got address 0"),
        ([entry[:-1]], {}, TypeError, "incompatible function arguments"),
        ([(*entry, 0)], {}, TypeError, "incompatible function arguments"),
        ([(0, (0,), *entry[2:])], {}, TypeError, "incompatible function arguments"),
        ([], {"out_strides": (0,) * 4}, TypeError, "incompatible function arguments"),
        ([], {"sizes": (1, 1)}, TypeError, "incompatible function arguments"),
        ([], {"out": 8, "form": "half"}, ValueError, "form must be one of full, trace, diagonal, got half"),
        ([], {"out": 8, "number": "int8"}, ValueError, "number must be one of float32, float64, got int8"),
        ([], {"out": 8, "sizes": (-1, 1, 1)}, ValueError, "sizes must not be negative"),
    ]:
        with pytest.raises(error, match=re.escape(text)):
            call_tangent_gram(entries, **changes)


def load(tmp_path, module, note=None):
    """What nftk._extension says of a package with this _C.py in the place of the extension."""
    package = tmp_path / "nftk"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_extension.py").write_text((ROOT / "nftk/_extension.py").read_text())
    if module is not None:
        (package / "_C.py").write_text(module)
    if note is not None:
        (package / "_C_missing.txt").write_text(note + "\n")
    code = "from nftk import _extension as e; print([e.BUILT, e.NO_CPP, e.NO_CUDA])"
    # -S: an editable install would find the real one
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_no_extension_is_told(tmp_path):
    told = "nftk._C was never built; run `pip install .` in nftk's source"
    assert load(tmp_path, None) == [None, told, told]


def test_the_note_of_a_build_without_a_compiler_is_told(tmp_path):
    told = "nftk was installed without nftk._C: no C++ compiler was found (c++); install one"
    assert load(tmp_path, None, "no C++ compiler was found (c++); install one") == [None, told, told]


def test_an_extension_that_does_not_load_is_told(tmp_path):
    built, no_cpp, no_cuda = load(tmp_path, "raise ImportError('libstdc++.so.6: version not found')")
    assert built is None
    assert no_cpp == no_cuda
    assert no_cpp.startswith("nftk._C does not load (libstdc++.so.6: version not found); run `pip install .`")


def test_an_extension_without_cuda_is_told(tmp_path):
    module = "def build_info(): return {'cuda': False, 'why_no_cuda': 'no nvcc was found; install it'}"
    _, no_cpp, no_cuda = load(tmp_path, module)
    assert no_cpp is None
    assert no_cuda == "nftk._C was built without CUDA: no nvcc was found; install it"


@pytest.mark.parametrize(
    ("architectures", "capability", "served"),
    [
        (["80", "90a", "100", "100+PTX"], (8, 0), True),
        (["80", "90a", "100", "100+PTX"], (8, 9), True),  # same generation
        (["80", "90a", "100", "100+PTX"], (9, 0), True),
        (["80", "90a", "100", "100+PTX"], (12, 1), True),  # PTX
        (["90a", "90+PTX"], (8, 0), False),
        (["100", "100+PTX"], (9, 0), False),
        (["86", "86+PTX"], (8, 0), False),
        (["90a"], (9, 1), False),  # what only the H100 has
    ],
)
def test_gpus_that_the_architectures_serve(monkeypatch, architectures, capability, served):
    monkeypatch.setattr(_extension, "BUILT", {"architectures": architectures})
    told = _extension.not_for(capability)
    assert (told is None) == served
    if not served:
        number = "{}{}".format(*capability)
        assert f"built for {', '.join(architectures)}, and this GPU is {number}" in told
        assert f"NFTK_CUDA_ARCHS={number} NFTK_BUILD_CUDA=1 pip install ." in told


def test_why_not(monkeypatch):
    for name, value in [("_NO_CPP", None), ("_NO_CUDA", None)]:
        monkeypatch.setattr(_dispatch, name, value)
    assert _dispatch.why_not("cpp", "cpu") is None
    assert _dispatch.why_not("cpp", "cuda:1") == (
        "it needs tensors on a CPU, and these are on 'cuda:1'; use backend='torch'"
    )
    assert "needs tensors on a CUDA GPU" in _dispatch.why_not("cuda", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _dispatch.why_not("cuda", "cuda") == "torch finds no CUDA GPU; use backend='torch'"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_extension, "BUILT", {"architectures": ["90a"]})
    assert _dispatch.why_not("cuda", "cuda:0") is None
    monkeypatch.setattr(_extension, "BUILT", {"architectures": ["100"]})
    assert "nftk._C was built for 100, and this GPU is 90" in _dispatch.why_not("cuda", "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in _dispatch.why_not("cuda", "cuda:0")
    monkeypatch.setattr(_dispatch, "_NO_CUDA", "nftk._C was never built")
    assert _dispatch.why_not("cuda", "cuda:0") == "nftk._C was never built"
    monkeypatch.setattr(_dispatch, "_NO_CPP", "nftk._C was never built")
    assert _dispatch.why_not("cpp", "cpu") == "nftk._C was never built"


def test_auto_takes_cpp_on_a_cpu_where_it_is(monkeypatch):
    monkeypatch.setattr(_dispatch, "_NO_CPP", None)
    supported = ("cuda", "cpp", "torch")
    assert _dispatch.resolve("op", "auto", supported, "cpu") == "cpp"
    assert _dispatch.resolve("op", "auto", supported, "cpu", {"cpp": "float16"}) == "torch"
    monkeypatch.setattr(_dispatch, "_NO_CPP", "nftk._C was never built")
    assert _dispatch.resolve("op", "auto", supported, "cpu") == "torch"
    with pytest.raises(RuntimeError, match="nftk.op: backend 'cpp' is not available: nftk._C was never built"):
        _dispatch.resolve("op", "cpp", supported, "cpu")


def test_why_not_compiles():
    def asked(x):
        told = [_dispatch.why_not(*question) for question in [("cuda", "cuda"), ("cpp", "cpu"), ("cpp", "cuda")]]
        return x + sum(2**i for i, reason in enumerate(told) if reason is None)

    x = torch.zeros(1)
    assert torch.equal(torch.compile(asked, fullgraph=True, backend="eager")(x), asked(x))


def test_info_tells_of_both_parts():
    from nftk.cli.info import info

    told = info()
    parts = told["nftk._C"]
    assert parts["C++"]["usable"] == (_extension.NO_CPP is None)
    assert parts["CUDA"]["usable"] == (_extension.NO_CUDA is None)
    assert parts["CUDA"].get("why") == _extension.NO_CUDA
    assert told["backends"]["cpp"]["usable"] == parts["C++"]["usable"]
    if _extension.BUILT is not None:
        assert parts["C++"]["vectors"] == _extension.BUILT["vectors"]
