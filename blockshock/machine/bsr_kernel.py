"""torch's block-sparse kernel: what it is given, how it is compiled, launched and tuned.

It takes the addresses and strides of four matrices and of a weight in blocks. Triton compiles a kernel for its
constants, for each stride whether it is 1, a multiple of 16 or neither, and for each address whether it is a multiple
of 16. None of that goes by the number of tokens.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

BsrWeight = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Blocks (J, size, size), the column of each in blocks (J,), and where rows of blocks begin (N/size + 1,)."""
BsrSetting = tuple[int, int, int, int]
"""Tokens of a tile, rows of blocks that go by together, stages and warps."""


def bsr_arguments(
    weight: BsrWeight,
    x_BK: torch.Tensor,
    bias: torch.Tensor | None,
    y_BN: torch.Tensor,
    setting: BsrSetting,
    float32: Any,
) -> dict[str, Any]:
    """For y = x @ Wᵀ (+ bias), by name, so that another order does no harm.

    To torch's kernel x is (K, B) and y (N, B), each in tiles of a block's rows by ``tile`` columns, and all come in
    batches: here one.

    Args:
        float32: as Triton has it, in which sums are kept.
    """
    (blocks, columns, starts), (tile, group, stages, warps) = weight, setting
    size, has_bias = blocks.shape[1], bias is not None
    given: dict[str, Any] = {
        "values_ptr": blocks, "values_batch_stride": 0, "values_nnz_stride": blocks.stride(0),
        "values_row_block_stride": blocks.stride(1), "values_col_block_stride": blocks.stride(2),
        "crow_indices_ptr": starts, "crow_indices_batch_stride": 0, "crow_indices_stride": starts.stride(0),
        "col_indices_ptr": columns, "col_indices_batch_stride": 0, "col_indices_stride": columns.stride(0),
        "beta": int(has_bias), "beta_is_one": has_bias, "beta_is_nonzero": has_bias,
        "alpha": 1, "alpha_is_one": True, "left_alpha_is_one": True, "right_alpha_is_one": True,
        "BLOCKSIZE_ROW": size, "BLOCKSIZE_INNER": size, "BLOCKSIZE_COL": tile, "GROUP_SIZE_ROW": group,
        "SPLIT_N": 1,  # the kernel has no use for the number of tiles, but would be compiled for each
        "acc_dtype": float32, "allow_tf32": True, "num_stages": stages, "num_warps": warps,
    }  # fmt: skip
    unread = (y_BN, 0, 0)
    matrices = {
        "input": unread if bias is None else (bias, 0, bias.stride(0)),
        "dense": (x_BK, x_BK.stride(0), x_BK.stride(1)),
        "output": (y_BN, y_BN.stride(0), y_BN.stride(1)),
        "left_alpha": unread,
        "right_alpha": unread,
    }
    for name, (matrix, across, along) in matrices.items():
        given[f"{name}_ptr"], given[f"{name}_batch_stride"] = matrix, 0
        given[f"{name}_tiled_row_stride"], given[f"{name}_tiled_col_stride"] = size * along, tile * across
        given[f"{name}_row_block_stride"], given[f"{name}_col_block_stride"] = along, across
    return given


def _bsr_kernel() -> Any:
    return getattr(importlib.import_module("torch.sparse._triton_ops"), "_bsr_strided_addmm_kernel", None)


def has_bsr() -> bool:
    """Whether torch has its Triton kernels of block-sparse products here: they need triton, and a GPU that it knows."""
    return _bsr_kernel() is not None


def knows_bsr() -> bool:
    """Whether the kernel that torch has takes what `bsr_product` gives it, no more and no less."""
    block = torch.empty(1, 16, 16)
    given = bsr_arguments((block, block[0, 0], block[0, 0]), block[0], None, block[0], (16, 1, 1, 1), None)
    return inspect.signature(_bsr_kernel().fn).parameters.keys() == given.keys() - {"num_stages", "num_warps"}


def bsr_product(
    weight: BsrWeight, x_BK: torch.Tensor, bias: torch.Tensor | None, y_BN: torch.Tensor, setting: BsrSetting
) -> None:
    """Write x @ Wᵀ (+ bias) to y (B, N) on the current GPU, by one launch of torch's kernel.

    Not by ``bsr_dense_addmm``, which has the kernel compiled anew for each B.

    Args:
        x_BK, y_BN: of any strides below 2³¹ ÷ B.
        setting: with tiles of a power of two of tokens, 16 at least, that divides B: 65,535 tiles at most.
    """
    float32 = importlib.import_module("torch.sparse._triton_ops").tl.float32
    grid = (len(weight[2]) - 1, len(x_BK) // setting[0], 1)
    _bsr_kernel()[grid](**bsr_arguments(weight, x_BK, bias, y_BN, setting, float32))


def compile_bsr(
    weight: BsrWeight, x_BK: torch.Tensor, bias: torch.Tensor | None, y_BN: torch.Tensor, settings: Sequence[BsrSetting]
) -> None:
    """Compile what `bsr_product` launches for such tensors by these settings, side by side; what was is not again.

    A setting that does not compile says so when it is launched; where triton has no such mode, all are compiled then.
    """
    ops = importlib.import_module("torch.sparse._triton_ops")
    mode = getattr(ops.triton, "AsyncCompileMode", None)
    if mode is None:
        return
    kernel, float32 = _bsr_kernel(), ops.tl.float32
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor, mode(executor, ignore_errors=True):
        for setting in settings:
            kernel.warmup(grid=(1, 1, 1), **bsr_arguments(weight, x_BK, bias, y_BN, setting, float32))


def minimized(
    target: Callable[[dict[str, int]], float],
    initial: dict[str, int],
    reference: dict[str, int],
    step: Callable[[str, int, int, dict[str, int]], int],
) -> dict[str, int]:
    """Where torch's tuner of those kernels finds the target smallest, one or two steps at a time from what is given.

    Where the target raises, it goes elsewhere; empty if it raises at both beginnings.
    """
    minimize = importlib.import_module("torch.sparse._triton_ops_meta").minimize
    found: dict[str, int] = minimize(target, initial, reference, step, max_step=1)[0]
    return found
