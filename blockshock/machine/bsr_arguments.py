"""What torch's block-sparse kernel is given: the addresses and strides of four matrices and of a weight in blocks.

Triton compiles a kernel for its constants, for each stride whether it is 1, a multiple of 16 or neither, and for each
address whether it is a multiple of 16. None of that goes by the number of tokens.
"""

from __future__ import annotations

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
