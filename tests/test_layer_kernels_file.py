"""LayerKernels in a file: saved whole or not at all, and nothing but such a file is loaded."""

import json

import pytest
import torch
from layer_kernel_examples import make
from safetensors import SafetensorError
from safetensors.torch import save_file

import nftk
from nftk import LayerKernels
from nftk.tangent import kernel_file


@pytest.mark.parametrize("reduction", ["full", "diagonal", "trace", "sum_logits", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_save_and_load(tmp_path, reduction, dtype):
    k = make(reduction, n2=5, dtype=dtype)
    k.save(tmp_path / "k.safetensors")
    back = LayerKernels.load(tmp_path / "k.safetensors")
    assert torch.equal(back.blocks, k.blocks)
    assert (back.names, back.reduction, back.symmetric) == (k.names, k.reduction, k.symmetric)
    assert back.matrix().data_ptr() == back.blocks.data_ptr()
    make(reduction).normalize().save(tmp_path / "k.safetensors")
    back = LayerKernels.load(tmp_path / "k.safetensors")
    assert back.normalization == "cosine"
    assert back.symmetric


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match="must be a file, got none there"):
        LayerKernels.load(tmp_path / "none")
    (tmp_path / "text").write_text("no kernels")
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        LayerKernels.load(tmp_path / "text")
    nftk.NFTKMLP(3, [4], 2).save(tmp_path / "model")
    with pytest.raises(ValueError, match="must hold kernels that nftk wrote"):
        LayerKernels.load(tmp_path / "model")
    make("full").save(tmp_path / "k")
    (tmp_path / "cut").write_bytes((tmp_path / "k").read_bytes()[:-8])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        LayerKernels.load(tmp_path / "cut")


def write(path, kernel, tensor=None):
    """A file as save writes it, with a header of the caller's."""
    header = kernel if isinstance(kernel, str) else json.dumps({"kernel": kernel})
    tensor = torch.zeros(1, 2, 2) if tensor is None else tensor
    save_file({"kernels": tensor}, str(path), metadata={"nftk": header})
    return path


HEADER = {"names": ["a"], "reduction": "trace", "normalization": None, "symmetric": True}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("names", "a", "names must be a list of strings, got 'a'"),
        ("names", [1], r"names must be a list of strings, got \[1\]"),
        ("names", {"a": 1}, "names must be a list of strings, got"),
        ("names", None, "names must be a list of strings, got None"),
        ("names", ["a", "b"], "names must have 1 entries, one a block, got 2"),
        ("reduction", ["trace"], r"reduction must be one of .*, got \['trace'\]"),
        ("reduction", "traces", "reduction must be one of .*, got 'traces'"),
        ("normalization", 3, "normalization must be None or one of 'cosine', 'joint', got 3"),
        ("normalization", "cosines", "normalization must be None or one of 'cosine', 'joint', got 'cosines'"),
        ("normalization", ["joint"], "normalization must be None or one of"),
        ("symmetric", "yes", "symmetric must be True or False, got 'yes'"),
        ("symmetric", 1, "symmetric must be True or False, got 1"),
        ("symmetric", None, "symmetric must be True or False, got None"),
        ("reduction", "full", r"blocks must have 5 dimensions where reduction is 'full', got 3"),
        ("reduction", "diagonal", r"blocks must have 4 dimensions where reduction is 'diagonal', got 3"),
    ],
)
def test_load_checks_the_header(tmp_path, key, value, reason):
    LayerKernels.load(write(tmp_path / "k", HEADER))
    write(tmp_path / "k", HEADER | {key: value})
    with pytest.raises(
        ValueError, match=f"^nftk.LayerKernels.load: .*k must hold kernels that nftk wrote, got {reason}"
    ):
        LayerKernels.load(tmp_path / "k")
    write(tmp_path / "k", {name: told for name, told in HEADER.items() if name != key})
    with pytest.raises(ValueError, match=f"k must hold kernels that nftk wrote, got no {key!r} in its header"):
        LayerKernels.load(tmp_path / "k")


@pytest.mark.parametrize(
    "header",
    ["", "{", "3", "null", "[]", "{}", '{"kernel": 3}', '{"kernel": {}}', "[" * 100_000],
    ids=lambda header: header[:20],
)  # fmt: skip
def test_load_of_odd_headers(tmp_path, header):
    with pytest.raises(
        ValueError, match="^nftk.LayerKernels.load: .*k must hold kernels that nftk wrote, got "
    ) as seen:
        LayerKernels.load(write(tmp_path / "k", header))
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_load_of_odd_numbers(tmp_path, dtype):
    with pytest.raises(ValueError, match="k must hold kernels that nftk wrote, got blocks must have a floating dtype"):
        LayerKernels.load(write(tmp_path / "k", HEADER, torch.zeros(1, 2, 2).to(dtype)))


def test_load_checks_the_device_first(tmp_path):
    for bad in ("nonsense", "cuda:99", 3.4):
        with pytest.raises(
            ValueError, match=f"load: device must be one that torch can use here, got {bad!r}: "
        ) as seen:
            LayerKernels.load(tmp_path / "none", device=bad)
        assert "\n" not in str(seen.value)
    make("full").save(tmp_path / "k")
    assert LayerKernels.load(tmp_path / "k", torch.device("meta")).blocks.device.type == "meta"
    with pytest.raises(ValueError, match="must be a file, got a folder"):
        LayerKernels.load(tmp_path)


def test_save_writes_whole_files_only(tmp_path, monkeypatch):
    k = make("trace")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(ValueError, match="nftk.LayerKernels.save: .*folder must be a file, got a folder"):
        k.save(tmp_path / "folder")
    with pytest.raises(ValueError, match="must be in a folder that exists, got no .*missing"):
        k.save(tmp_path / "missing" / "k")
    k.save(tmp_path / "k")

    def fail(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(kernel_file, "save_file", fail)
    with pytest.raises(OSError, match="No space left on device.*k'"):
        (2 * k).save(tmp_path / "k")
    with pytest.raises(OSError, match="No space left on device.*new'"):
        k.save(tmp_path / "new")
    assert torch.equal(LayerKernels.load(tmp_path / "k").blocks, k.blocks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "k"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept"]


def test_save_onto_the_file_it_was_loaded_from(tmp_path):
    make("full")[[], :].save(tmp_path / "k")
    assert LayerKernels.load(tmp_path / "k").shape == (0, 4)
    k = make("full")
    k.save(tmp_path / "k")
    (2 * LayerKernels.load(tmp_path / "k")).save(tmp_path / "k")
    assert torch.equal(LayerKernels.load(tmp_path / "k").blocks, 2 * k.blocks)
