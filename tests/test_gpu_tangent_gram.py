"""The tests of the CUDA source on a GPU, where the bodies in inline PTX run that no CPU can run."""

import pytest
import torch
from tangent_gram_host import out_strides, samples
from test_tangent_gram_cuda import (  # noqa: F401  (collected here too, with this file's library)
    test_accumulate,
    test_diagonal_of_a_full_result,
    test_empty,
    test_errors,
    test_forward,
    test_highest_is_as_exact_as_float32,
    test_long_sums,
    test_many_tiles,
    test_no_rows_with_gaps,
    test_no_terms,
    test_schedules_agree,
    test_slices_and_outputs,
    test_strides,
    test_tiles_agree,
    test_trace_of_rows_with_and_without_gaps,
)

C = pytest.importorskip("nftk._C", reason="the C++ extension was not built")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(not C.build_info()["cuda"], reason="the extension was built without nvcc"),
]


def whole(x):
    """All that a tensor's memory holds, its gaps too."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def on_gpu(x):
    """The same numbers at the same strides, with what lies between them."""
    return whole(x).cuda().as_strided(x.shape, x.stride(), x.storage_offset())


class Gpu:
    """What Host of tangent_gram_host is, on the current GPU."""

    def tangent_gram(
        self, entries, out, d, form="full", symmetric=False, accumulate=False, precision="highest", tile="automatic",
        seed=0, sizes=None, strides=None,
    ):  # fmt: skip
        there, keep, table = on_gpu(out), [], []
        for e in entries:
            s, a, b = (on_gpu(x) for x in (e.s, e.a, e.b))
            keep += [s, a, b]
            table.append((s.data_ptr(), s.stride(), a.data_ptr(), a.stride()[:3], b.data_ptr(), b.stride()[:3],
                          a.shape[3], a.shape[0], e.first_output, e.output_step))  # fmt: skip
        C.tangent_gram(
            table, out=there.data_ptr(), out_strides=strides or out_strides(out, form),
            sizes=(*(sizes or samples(out, form)), d), outputs=out.shape[0], form=form,
            symmetric=symmetric, accumulate=accumulate, number=str(out.dtype).removeprefix("torch."),
            precision=precision, tile=tile, device=torch.cuda.current_device(),
            stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        torch.cuda.synchronize()
        whole(out).copy_(whole(there))


@pytest.fixture(scope="module")
def library():
    return Gpu()
