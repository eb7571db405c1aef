"""cuSPARSELt's two calls as torch makes them, on a CPU: they read raw memory, and believe that a matrix lies there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from blockshock.kernels import Kernel, cusparselt
from blockshock.matrices.compressed import Compressed24, bits, expand


def raw(matrix: torch.Tensor) -> torch.Tensor:
    """What lies from the first element of a matrix on, read row by row as if it were dense."""
    if matrix.data_ptr() % 16:
        raise RuntimeError("CUDA error: CUSPARSE_STATUS_INVALID_VALUE")
    rows, columns = matrix.shape
    start, size = matrix.storage_offset(), rows * columns
    memory = torch.empty(0, dtype=matrix.dtype).set_(matrix.untyped_storage())
    unknown = float("nan") if matrix.is_floating_point() else -99
    found = matrix.new_full((size,), unknown)  # beyond the storage lies what nobody knows
    found[: len(memory) - start] = memory[start : start + size]
    return found.view(rows, columns)


def compress(w_NK: torch.Tensor) -> torch.Tensor:
    """[kept values | positions]: of each four those that are not zero, and the first ones if those are fewer."""
    grouped = raw(w_NK).unflatten(1, (-1, 4))
    dropped = bits(grouped) == 0 if w_NK.itemsize == 1 else grouped == 0  # in eight bits −0.0 is not zero to it
    order = dropped.long().argsort(dim=-1, stable=True)[..., :2]
    mask = torch.zeros(grouped.shape, dtype=torch.bool).scatter_(2, order, True).flatten(1)
    packed = Compressed24.from_tensor(raw(w_NK), mask)
    metadata = packed.positions.contiguous().view(w_NK.dtype).flatten()
    return torch.cat([packed.values_NJ.flatten(), metadata]).view(len(w_NK), -1)


def sparse_mm(
    packed: torch.Tensor, x_KB: torch.Tensor, bias: torch.Tensor | None = None, alpha: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None, transpose_result: bool = False,
    alg_id: int = 0, split_k: int = 1, split_k_mode: int = -1,
) -> torch.Tensor:  # fmt: skip
    assert transpose_result or bias is None
    assert x_KB.shape[1] % (16 // packed.itemsize) == 0
    assert (packed.itemsize == 1) == (out_dtype is not None)
    assert x_KB.shape[1]
    if alpha is not None and packed.is_floating_point():
        raise RuntimeError("CUDA error: operation not supported")
    rows, K = len(packed), len(x_KB)
    if packed.itemsize == 1:  # places are read by 64 rows and 128 columns
        read = rows * K // 2 + -(-rows // 64) * 64 * -(-K // 128) * 128 // 8
        held = packed.untyped_storage().nbytes() - packed.storage_offset()
        assert read <= held or K % 128 == 0, f"illegal memory access: {read} bytes are read of {held}"
    flat = packed.flatten()
    positions = flat[rows * K // 2 :].view(torch.uint8).view(rows, K // 8)
    w_NK = expand(flat[: rows * K // 2].view(rows, K // 2), positions)
    x_BK = raw(x_KB).T if x_KB.is_contiguous() else raw(x_KB.T)
    y_BN = x_BK.float() @ w_NK.float().T * (1 if alpha is None else alpha)
    found_BN = (y_BN + (0 if bias is None else bias.float())).to(out_dtype or packed.dtype)
    return found_BN if transpose_result else found_BN.T.contiguous()


@contextmanager
def faked() -> Iterator[type[cusparselt.Cusparselt]]:
    """The kernel ``cusparselt:search=no`` runs on CPUs, over a library that believes what it is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_cslt_compress", compress)
        patch.setattr(torch, "_cslt_sparse_mm", sparse_mm)
        patch.setattr(cusparselt.Cusparselt, "unavailable", Kernel.unavailable)
        patch.setattr(cusparselt.Cusparselt, "device_types", ("cpu",))
        yield cusparselt.Cusparselt


@pytest.fixture(scope="module")
def fake_cusparselt() -> Iterator[type[cusparselt.Cusparselt]]:
    with faked() as kernel:
        yield kernel
