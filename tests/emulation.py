"""Triton's interpreter, made to show what only a GPU would: rounding, order of programs, waiting, stray reads.

Written for Triton 3.6 to 3.9; the tests that use it fail loudly if its inner names move.
"""

import contextlib
import inspect
import random
import sys
import threading
import time

import numpy as np
from triton.runtime import interpreter

builder = interpreter.interpreter_builder


def _round_tf32(x):
    """To the nearest number with ten bits behind the point, ties away from zero: PTX's cvt.rna.tf32.f32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _toward_zero(x):
    """float64 to float32, truncated; what is too large becomes infinite."""
    near = x.astype(np.float32)
    cut = np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)
    return np.where(np.abs(x) >= 2.0**128, near, cut)


def _tensor_core(a, b, acc):
    """acc + a b as tensor cores add: exact products, eight at a time, and every sum truncated to float32."""
    for k in range(0, a.shape[-1], 8):
        exact = a[..., k : k + 8].astype(np.float64) @ b[..., k : k + 8, :].astype(np.float64)
        acc = _toward_zero(acc.astype(np.float64) + exact)
    return acc


def _values(handle):
    """Numbers of a tile; the interpreter keeps bfloat16 as raw bits, and multiplies those (3.9.0)."""
    if str(handle.dtype.scalar) == "bf16":
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data.astype(np.float32)


def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    """tl.dot with the rounding of its precision."""
    x, y, acc = _values(a), _values(b), d.data
    word = getattr(input_precision, "name", str(input_precision)).upper()
    single = str(a.dtype.scalar) == "fp32"
    if not single or word == "IEEE":
        out = np.matmul(x, y) + acc
    elif word == "TF32":
        out = _tensor_core(_round_tf32(x), _round_tf32(y), acc)
    else:
        assert word == "TF32X3", word
        big_x, big_y = _round_tf32(x), _round_tf32(y)
        out = _tensor_core(_round_tf32(x - big_x), big_y, np.zeros_like(acc))
        out = _tensor_core(big_x, _round_tf32(y - big_y), out)
        # as Triton 3.9 does: of an infinity the small part is NaN, and counts for nothing
        out = _tensor_core(big_x, big_y, np.where(np.isnan(out), np.float32(0), out)) + acc
    return interpreter.TensorHandle(out.astype(np.float32), d.dtype.scalar)


def create_fp_trunc(self, src, dst_type):
    """A cast to fewer bits; to bfloat16 the interpreter truncates (3.9.0), where a GPU rounds to nearest, ties even."""
    if str(src.dtype.scalar) != "fp32" or str(dst_type.scalar) != "bf16":
        return self.cast_impl(src, dst_type)
    bits = np.ascontiguousarray(src.data, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded = np.where(np.isnan(src.data), np.uint32(0x7FC0), rounded)
    return interpreter.TensorHandle(rounded.astype(np.uint16), dst_type.scalar)


def _call(fn, args):
    # a GPU makes infinity and NaN without a word
    with np.errstate(all="ignore"):
        fn(**args)


class Bounds:
    """The memory that a launch may touch: what its tensors reach, to the byte. A read beyond would go unnoticed."""

    def __init__(self, args):
        spans = sorted(self._spans(args))
        self.starts = np.array([start for start, _ in spans], np.uint64)
        # the furthest end so far, because views of one buffer overlap
        self.ends = np.maximum.accumulate(np.array([end for _, end in spans], np.uint64))

    def _spans(self, args):
        for arg in args:
            if isinstance(arg, tuple):
                yield from self._spans(arg)
            elif hasattr(arg, "data_ptr") and arg.numel():
                last = sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=True))
                yield arg.data_ptr(), arg.data_ptr() + (last + 1) * arg.element_size()

    def check(self, what, ptrs, mask, dtype):
        """Raise if an unmasked pointer leads out."""
        wanted = np.asarray(ptrs.data)[np.asarray(mask.data).astype(bool)].astype(np.uint64)
        if wanted.size == 0:
            return
        at = np.searchsorted(self.starts, wanted, side="right")
        size = np.uint64(np.dtype(dtype).itemsize)
        inside = (at > 0) & (wanted + size <= self.ends[np.maximum(at, 1) - 1])
        assert inside.all(), f"{what} out of bounds: {np.count_nonzero(~inside)} of {wanted.size}"


class Grid:
    """How the programs of a launch are run: in which order, or all at once; and how many launches there were."""

    def __init__(self):
        self.order = "forward"
        self.launches = []
        self.bounds = None

    def run(self, fn, args, grid):
        programs = [(x, y, z) for x in range(grid[0]) for y in range(grid[1]) for z in range(grid[2])]
        if self.order == "backward":
            programs.reverse()
        elif self.order == "random":
            random.Random(len(programs)).shuffle(programs)
        if self.order != "together":
            for index in programs:
                builder.set_grid_idx(*index)
                _call(fn, args)
            return
        errors = []

        def program(index):
            try:
                builder.set_grid_idx(*index)
                _call(fn, args)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=program, args=(index,), daemon=True) for index in programs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
            assert not thread.is_alive(), "a program still waits for others"
        if errors:
            raise errors[0]


@contextlib.contextmanager
def emulate():
    """Patch the interpreter; yields the Grid that its launches go through."""
    grid = Grid()
    local = threading.local()

    def call(self, *args_dev, **kwargs):
        spec = inspect.getfullargspec(self.fn)
        kwargs = {k: v for k, v in kwargs.items() if k in spec.args or k in spec.kwonlyargs}
        args_hst, kwargs_hst = self._init_args_hst(args_dev, kwargs)
        scope = interpreter._patch_lang(self.fn)
        try:
            args = inspect.getcallargs(self.fn, *args_hst, **kwargs_hst)
            args = {k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in args.items()}
            size = tuple(self.grid(args) if callable(self.grid) else self.grid)
            size += (1,) * (3 - len(size))
            builder.set_grid_dim(*size)
            grid.launches.append(self.fn.__name__)
            grid.bounds = Bounds((*args_hst, *kwargs_hst.values()))
            grid.run(self.fn, args, size)
        finally:
            if scope is not None:
                scope.restore()
        # the tensors lie in host memory, which the interpreter wrote itself; its copy back would count as work

    rewrite, patch_lang, rewriting = interpreter.InterpretedFunction.rewrite, interpreter._patch_lang, threading.RLock()

    def rewrite_alone(self):
        # Python 3.11's parser counts its depth over all threads, and may then refuse a function that is right
        with rewriting:
            return rewrite(self)

    def patch_lang_alone(fn):
        # it goes through the globals of a function, to which rewriting one adds
        with rewriting:
            return patch_lang(fn)

    kind = type(builder)
    load, store, atomic = kind.create_masked_load, kind.create_masked_store, kind.create_atomic_rmw

    def checked_load(self, ptrs, mask, *rest):
        grid.bounds.check("load", ptrs, mask, interpreter._get_np_dtype(ptrs.get_element_ty()))
        return load(self, ptrs, mask, *rest)

    def checked_store(self, ptrs, value, mask, *rest):
        grid.bounds.check("store", ptrs, mask, value.data.dtype)
        return store(self, ptrs, value, mask, *rest)

    def yielding_atomic(self, *args):
        found = atomic(self, *args)
        if grid.order == "together":
            # a program that waits for others would hold the interpreter's lock, which they need to arrive
            time.sleep(5e-4)
        return found

    kind.create_masked_load, kind.create_masked_store = checked_load, checked_store
    kind.create_atomic_rmw = yielding_atomic
    saved = kind.create_dot, kind.create_fp_trunc, interpreter.GridExecutor.__call__, sys.getswitchinterval()
    kind.create_dot, kind.create_fp_trunc = create_dot, create_fp_trunc
    interpreter.GridExecutor.__call__ = call
    interpreter.InterpretedFunction.rewrite, interpreter._patch_lang = rewrite_alone, patch_lang_alone
    # each thread is a program with an index of its own
    kind.grid_idx = property(lambda self: local.index, lambda self, index: setattr(local, "index", index))
    sys.setswitchinterval(1e-4)
    try:
        yield grid
    finally:
        del kind.grid_idx
        interpreter.InterpretedFunction.rewrite, interpreter._patch_lang = rewrite, patch_lang
        kind.create_masked_load, kind.create_masked_store, kind.create_atomic_rmw = load, store, atomic
        kind.create_dot, kind.create_fp_trunc, interpreter.GridExecutor.__call__, interval = saved
        sys.setswitchinterval(interval)
