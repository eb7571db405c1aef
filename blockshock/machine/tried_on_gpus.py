"""Those of torch's private parts that only a GPU can try."""

from __future__ import annotations

import torch

from blockshock.machine import torch_internals as internals
from blockshock.machine.internal import Internal, check


def _matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W (64, 128) whose first two of four are zeros, x (16, 128), and their product.

    Of 64 columns a product in eight bits reads what lies behind its W: ``kernels.cusparselt_layout``.
    """
    w = torch.arange(64 * 128, device="cuda").remainder(7).view(64, 128) + 1
    w = w * torch.tensor([0, 0, 1, 1], device="cuda").repeat(32)
    x = torch.arange(16 * 128, device="cuda").remainder(5).view(16, 128)
    w_NK, x_BK = w.to(torch.bfloat16), x.to(torch.bfloat16)
    return w_NK, x_BK, (x_BK.double() @ w_NK.double().T).to(torch.bfloat16)


def _try_cusparselt() -> None:
    w_NK, x_BK, y_BN = _matrices()
    check(torch.equal(internals.sparse_mm(internals.compress(w_NK), x_BK.T, None, (0, 1, -1)), y_BN))


def _try_all_of_cusparselt() -> None:
    _try_cusparselt()
    w_NK, x_BK, y_BN = _matrices()
    w_NK, x_BK = w_NK.to(torch.int8), x_BK.to(torch.int8)
    packed, halves = internals.compress(w_NK), torch.full((64,), 0.5, device="cuda")
    check(torch.equal(internals.sparse_mm_of_bytes(packed, x_BK.T, halves, torch.bfloat16, (0, 1, -1)), y_BN / 2))
    sums_BN = internals.sparse_mm_of_bytes(packed, x_BK.T, None, torch.int32, (0, 1, -1))
    check(torch.equal(sums_BN.to(torch.bfloat16), y_BN))
    check(len(internals.search(packed, x_BK.T, None, halves, torch.bfloat16)) == 3)


def _try_search() -> None:
    w_NK, x_BK, _ = _matrices()
    check(len(internals.search(internals.compress(w_NK), x_BK.T, None)) == 3)


def _try_scaled_mm() -> None:
    w_NK, x_BK, y_BN = _matrices()
    factors = (x_BK.to(torch.float8_e4m3fn), w_NK.to(torch.float8_e4m3fn).T)
    scales = torch.full((16, 1), 0.5, device="cuda"), torch.full((1, 64), 4.0, device="cuda")
    check(torch.equal(internals.scaled_mm(*factors, scales, torch.bfloat16, quick=True), 2 * y_BN))
    of_a_gradient, scale = x_BK.to(torch.float8_e5m2), torch.full((), 2.0, device="cuda")
    for dtype in (torch.bfloat16, torch.float32):
        found_BN = internals.scaled_mm(of_a_gradient, factors[1], (scale, scale), dtype, quick=False)
        check(torch.equal(found_BN, (4 * (x_BK.double() @ w_NK.double().T)).to(dtype)))


def _try_cutlass() -> None:
    w_NK, x_BK, y_BN = _matrices()
    sparse = torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense(w_NK)
    assert sparse.packed is not None
    assert sparse.meta is not None
    for bias in (None, torch.zeros_like(w_NK[:, 0])):
        check(torch.equal(internals.cutlass_mm(sparse.packed, sparse.meta, x_BK.T, bias).T, y_BN))


def _try_bsr() -> None:
    w_NK, x_BK, _ = (matrix[:, :64].contiguous() for matrix in _matrices())
    kept = torch.eye(4, device="cuda", dtype=torch.bool).logical_not()
    blocks = w_NK.view(4, 16, 4, 16).transpose(1, 2)[kept]
    weight = blocks, kept.nonzero()[:, 1].clone(), torch.arange(0, 13, 3, device="cuda")
    w_NK = w_NK.where(kept.repeat_interleave(16, 0).repeat_interleave(16, 1), 0)
    for bias in (None, w_NK[5].clone()):
        y_BN, found_BN = x_BK.double() @ w_NK.double().T, torch.empty_like(x_BK)
        internals.bsr_product(weight, x_BK, bias, found_BN, (16, 1, 1, 4))
        check(torch.equal(found_BN, (y_BN if bias is None else y_BN + bias.double()).to(x_BK.dtype)))


def _try_compiling() -> None:
    out = torch.zeros(1, device="cuda")
    source = 'extern "C" __global__ void seven(float *out) { out[0] = 7; }'
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    kernel = internals.load_cubin(internals.compile_cuda(source, "seven", capability), "seven")
    kernel.set_shared_memory_config(64 << 10)
    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[out], shared_mem=64 << 10)
    check(out.item() == 7)


def _try_stream() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        index, stream = torch.cuda.current_device(), torch.cuda.current_stream()
        check(internals.stream_address(index) == stream.cuda_stream != 0)
    check(internals.stream_address(index) != stream.cuda_stream)


def _lacks_cusparselt() -> str | None:
    return None if torch.backends.cusparselt.is_available() else "torch has no cuSPARSELt here"


def _lacks_fp8() -> str | None:
    return None if torch.cuda.get_device_capability() >= (8, 9) else "this GPU has no products in fp8"


def _lacks_bsr() -> str | None:
    return None if internals.has_bsr() else "torch has no Triton kernels here"


def _lacks_cutlass() -> str | None:
    return None if torch.cuda.get_device_capability()[0] == 8 else "torch has CUTLASS 2:4 for GPUs of 8.x only"


_SEARCHED = "cuSPARSELt's algorithms are not searched, and the kernel cusparselt takes up to three times as long"
_COMPILED = (
    "the kernel streamed is not there, and masks that repeat in tiles cannot be trained on GPUs: their values are not "
    "brought into the order of Wᵀ"
)
ON_GPUS = {
    "torch._cslt_compress": Internal("the kernel cusparselt cannot pack", _try_cusparselt, "cuda", _lacks_cusparselt),
    "torch._cslt_sparse_mm": Internal(
        "the kernel cusparselt cannot multiply", _try_all_of_cusparselt, "cuda", _lacks_cusparselt
    ),
    "torch._scaled_mm": Internal("the format fp8 has no dense product", _try_scaled_mm, "cuda", _lacks_fp8),
    "torch._C._cusparselt.mm_search": Internal(_SEARCHED, _try_search, "cuda", _lacks_cusparselt),
    "torch._sparse_semi_structured_mm": Internal(
        "the kernel cutlass cannot multiply", _try_cutlass, "cuda", _lacks_cutlass
    ),
    "torch._sparse_semi_structured_addmm": Internal(
        "the kernel cutlass cannot multiply where there is a bias", _try_cutlass, "cuda", _lacks_cutlass
    ),
    "torch.sparse._triton_ops._bsr_strided_addmm_kernel": Internal(
        "the block kernel bsr cannot multiply", _try_bsr, "cuda", _lacks_bsr
    ),
    "torch.cuda._utils._nvrtc_compile": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.cuda._utils._cuda_load_module": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.cuda._utils._get_gpu_runtime_library": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch.cuda._utils._check_cuda": Internal(_COMPILED, _try_compiling, "cuda"),
    "torch._C._cuda_getCurrentRawStream": Internal(_COMPILED, _try_stream, "cuda"),
}
"""As in ``INTERNALS``."""
