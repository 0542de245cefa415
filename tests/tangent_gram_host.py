"""csrc's tangent_gram, compiled for the CPU over the engine of tests/cuda, and called with tensors; and its truth."""

import ctypes
import math
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
FORMS = ("full", "trace", "diagonal")
PRECISIONS = ("highest", "tf32", "bf16")
TILES = ("automatic", "small", "large")
FLAGS = ("-std=c++17", "-O2", "-march=native", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-shared", "-fPIC")


def missing():
    """Why the engine cannot run here, or None."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "the engine that runs CUDA source on a CPU knows x86-64 Linux only"
    if shutil.which("g++") is None:
        return "no g++ to compile the CUDA source for the CPU with"
    return None


@dataclass
class Entry:
    """One S [n1, n2] with A [slices, n1, d, c] and B [slices, n2, d, c]."""

    s: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    first_output: int = 0
    output_step: int = 1


class _Entry(ctypes.Structure):
    _fields_ = [
        *[("s", ctypes.c_void_p), ("s_stride1", ctypes.c_int64), ("s_stride2", ctypes.c_int64)],
        *[("a", ctypes.c_void_p), ("a_slice", ctypes.c_int64), ("a_sample", ctypes.c_int64), ("a_row", ctypes.c_int64)],
        *[("b", ctypes.c_void_p), ("b_slice", ctypes.c_int64), ("b_sample", ctypes.c_int64), ("b_row", ctypes.c_int64)],
        *[("channels", ctypes.c_int64), ("slices", ctypes.c_int32)],
        *[("first_output", ctypes.c_int32), ("output_step", ctypes.c_int32)],
    ]


def out_strides(out, form):
    """Strides as tangent_gram wants them: output, sample 1, row 1, sample 2, row 2."""
    if form == "full":
        return out.stride()
    if form == "trace":
        return out.stride(0), out.stride(1), 0, out.stride(2), 0
    return *out.stride(), 0


def samples(out, form):
    """How many the two batches of a result have."""
    return out.shape[1], out.shape[2 if form == "trace" else 3]


class Host:
    """The library, compiled into a folder and loaded."""

    def __init__(self, folder):
        path = Path(folder) / "tangent_gram_host.so"
        include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda'}"]
        command = ["g++", *FLAGS, *include, ROOT / "tests/cuda/library.cpp", "-o", path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        self._library = ctypes.CDLL(str(path))
        self._library.last_error.restype = ctypes.c_char_p

    def _allow(self, tensor, writable=False):
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            size = ctypes.c_uint64((last + 1) * tensor.element_size())
            self._library.allow(ctypes.c_void_p(tensor.data_ptr()), size, int(writable))

    def current_device(self):
        return self._library.current_device()

    def last_blocks(self):
        return self._library.last_blocks()

    def last_launch(self):
        """Device and stream."""
        self._library.last_stream.restype = ctypes.c_uint64
        return self._library.last_device(), self._library.last_stream()

    def tangent_gram(
        self, entries, out, d, form="full", symmetric=False, accumulate=False, precision="highest", tile="automatic",
        device=0, stream=0, seed=0, sizes=None, strides=None,
    ):  # fmt: skip
        """Call csrc's launcher; out is [o, n1, d, n2, d], [o, n1, n2] or [o, n1, d, n2]. Return how often it launched.

        A seed other than 0 shuffles the order of blocks, warps and lanes.
        """
        self._library.forbid_all()
        self._allow(out, writable=True)
        table = (_Entry * len(entries))()
        for row, e in zip(table, entries, strict=True):
            for x in (e.s, e.a, e.b):
                self._allow(x)
            values = (e.s.data_ptr(), *e.s.stride(), e.a.data_ptr(), *e.a.stride()[:3], e.b.data_ptr(),
                      *e.b.stride()[:3], e.a.shape[3], e.a.shape[0], e.first_output, e.output_step)  # fmt: skip
            for (name, _), value in zip(_Entry._fields_, values, strict=True):
                setattr(row, name, value)
        strides = (ctypes.c_int64 * 5)(*(strides or out_strides(out, form)))
        shape = (ctypes.c_int64 * 5)(*(sizes or samples(out, form)), d, out.shape[0], len(entries))
        options = (ctypes.c_int * 7)(
            FORMS.index(form), symmetric, accumulate, out.dtype == torch.float64, PRECISIONS.index(precision),
            TILES.index(tile), device,
        )  # fmt: skip
        code = self._library.run_tangent_gram(
            table, ctypes.c_void_p(out.data_ptr()), strides, shape, options, *map(ctypes.c_uint64, (stream, seed))
        )
        if code:
            raise {1: ValueError, 2: RuntimeError}[code](self._library.last_error().decode())
        return self._library.launches()


class Extension:
    """The same library behind the signature of nftk._C.tangent_gram: addresses in place of tensors."""

    def __init__(self, host):
        self._host = host
        self.launches = 0

    def _allow(self, address, sizes, strides, itemsize, writable=False):
        if 0 in sizes:
            return
        steps = [(size - 1) * stride for size, stride in zip(sizes, strides, strict=True)]
        low, high = sum(step for step in steps if step < 0), sum(step for step in steps if step > 0)
        start, length = address + low * itemsize, (high - low + 1) * itemsize
        self._host._library.allow(ctypes.c_void_p(start), ctypes.c_uint64(length), int(writable))

    def tangent_gram(
        self, entries, *, out, out_strides, sizes, outputs, form, symmetric, accumulate, number, precision,
        tile="automatic", device, stream,
    ):  # fmt: skip
        library = self._host._library
        library.forbid_all()
        n1, n2, d = sizes
        size = 8 if number == "float64" else 4
        rows = {"full": (d, d), "trace": (1, 1), "diagonal": (d, 1)}[form]
        self._allow(out, (outputs, n1, rows[0], n2, rows[1]), out_strides, size, writable=True)
        table = (_Entry * len(entries))()
        for row, entry in zip(table, entries, strict=True):
            s, s_strides, a, a_strides, b, b_strides, channels, slices, first, step = entry
            self._allow(s, (n1, n2), s_strides, size)
            for address, n, strides in ((a, n1, a_strides), (b, n2, b_strides)):
                self._allow(address, (slices, n, d, channels), (*strides, 1), size)
            values = (s, *s_strides, a, *a_strides, b, *b_strides, channels, slices, first, step)
            for (name, _), value in zip(_Entry._fields_, values, strict=True):
                setattr(row, name, value)
        strides = (ctypes.c_int64 * 5)(*out_strides)
        shape = (ctypes.c_int64 * 5)(n1, n2, d, outputs, len(entries))
        options = (ctypes.c_int * 7)(
            FORMS.index(form), symmetric, accumulate, number == "float64", PRECISIONS.index(precision),
            TILES.index(tile), device,
        )  # fmt: skip
        code = library.run_tangent_gram(
            table, ctypes.c_void_p(out), strides, shape, options, *map(ctypes.c_uint64, (stream, 0))
        )
        assert code == 0, library.last_error().decode()
        self.launches += library.launches()


SUBSCRIPTS = {"full": "ab,aic,bjc->aibj", "trace": "ab,aic,bic->ab", "diagonal": "ab,aic,bic->aib"}


def formula(entries, outputs, n1, n2, d, form, dtype, of=lambda x: x):
    """The definition, a term at a time; `of` is applied to all inputs."""
    shape = {"full": (n1, d, n2, d), "trace": (n1, n2), "diagonal": (n1, d, n2)}[form]
    out = torch.zeros(outputs, *shape, dtype=dtype)
    for e in entries:
        for q in range(e.a.shape[0]):
            s, a, b = (of(x).to(dtype) for x in (e.s, e.a[q], e.b[q]))
            out[e.first_output + q * e.output_step] += torch.einsum(SUBSCRIPTS[form], s, a, b)
    return out


def to_tf32(x):
    """The nearest TF32 value, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def strided(values, align, shift=0):
    """The same numbers [p, n, d, c] in a larger array of NaN.

    Rows begin at multiples of `align` elements, and the whole is `shift` elements further on.
    """
    p, n, d, c = values.shape
    padded = (p + 1, n + 2, d + 1, -(-(c + 1) // align) * align)
    buffer = torch.full((math.prod(padded) + shift,), math.nan, dtype=values.dtype)
    view = buffer[shift:].view(padded)[:p, :n, :d, :c]
    view.copy_(values)
    return view
