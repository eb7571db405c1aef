"""Matrices as libraries that read raw memory need them: rows one after the other, from an aligned address on.

cuSPARSELt and torch's CUTLASS product take a pointer and believe that a matrix of (rows, columns) lies there. What a
column slice, a row stride, an expanded or a transposed tensor has there is something else, and they multiply it without
a word. Every kernel that hands a pointer to such a library passes it through here.
"""

from __future__ import annotations

import torch

from blockshock.stages import copied, stage

ALIGNMENT = 16
"""Bytes: of the vectors that these libraries load."""


def dense_rows(matrix_BK: torch.Tensor, multiple: int = 1) -> torch.Tensor:
    """The matrix itself, where it lies as libraries need it, else a copy that does: stage ``layout``, and counted.

    Args:
        multiple: the rows are filled up with zeros to a multiple of it.
    """
    rows, columns = matrix_BK.shape
    missing = -rows % multiple
    if not missing and is_dense(matrix_BK):
        return matrix_BK
    with stage("layout"):
        whole_BK = whole_numbers(matrix_BK)
        dense_BK = whole_BK.new_empty(rows + missing, columns)
        dense_BK[:rows] = whole_BK
        dense_BK[rows:] = 0
        return copied(dense_BK if whole_BK is matrix_BK else dense_BK.view(matrix_BK.dtype))


def whole_numbers(matrix_BK: torch.Tensor) -> torch.Tensor:
    """Floating-point numbers of eight bits as bytes, of which 0 is the same number; any other matrix itself.

    For what copies and fills up: Inductor writes zeros to no rows as NaN, and Triton knows no constant of such a dtype
    but 0.
    """
    return matrix_BK.view(torch.uint8) if matrix_BK.itemsize == 1 and matrix_BK.is_floating_point() else matrix_BK


def aligned_rows(matrix_BK: torch.Tensor) -> torch.Tensor:
    """The matrix itself, where each row by itself lies densely from an aligned address on, else as ``dense_rows``: for
    kernels of ours, which take the distance of rows."""
    row = matrix_BK.stride(0) if len(matrix_BK) > 1 else 0
    aligned = row * matrix_BK.itemsize % ALIGNMENT == 0 and _is_aligned(matrix_BK)
    return matrix_BK if aligned and matrix_BK.stride(1) == 1 and row < 2**31 else dense_rows(matrix_BK)


def is_dense(matrix_BK: torch.Tensor) -> bool:
    """Whether a matrix lies as libraries need it."""
    # Strides are compared, for a tensor of one row is contiguous whatever its row stride, and libraries read that.
    return matrix_BK.stride() == (matrix_BK.shape[1], 1) and _is_aligned(matrix_BK)


def _is_aligned(tensor: torch.Tensor) -> bool:
    return not torch.compiler.is_compiling() and tensor.data_ptr() % ALIGNMENT == 0  # compilers know no addresses
