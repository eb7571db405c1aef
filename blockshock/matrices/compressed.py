"""Compressed24: the kept values of a 2:4 matrix and their positions, in plain torch, on any device and dtype.

Per group of four: two values, and four bits (two 2-bit positions, the lower first). In bf16 that is 9/16 of the dense
bytes. Compression reads the mask and never looks for zeros, so kept zeros, −0.0 and NaN survive bit for bit.
"""

from __future__ import annotations

import math

import torch

from blockshock.errors import InputError, MaskError
from blockshock.matrices import kept_on_gpu
from blockshock.matrices.blocks_of_rows import check_slice, row_blocks
from blockshock.matrices.masks import DenseMask, Mask
from blockshock.matrices.positions import KeptMask, positions_of, unpacked  # noqa: F401 - pickled layers look for it here
from blockshock.matrices.weights import WeightSource

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory seen as integers, so that values of any dtype move bit for bit and on every device."""
    if tensor.itemsize not in _INTEGER:
        raise InputError(f"elements of 1, 2, 4 or 8 bytes can be compressed, {tensor.dtype} has {tensor.itemsize}")
    return tensor.view(_INTEGER[tensor.itemsize])


class Compressed24(torch.nn.Module):
    """A 2:4 matrix (N, K) as kept values (N, K/2) and packed positions (N, ⌈K/8⌉), two groups a byte.

    Buffers: ``values_NJ`` in the matrix's dtype, ``positions`` uint8. Rows are independent, so any row block can be
    compressed or decompressed alone.

    Args:
        persistent: the buffers are part of the module's state.
    """

    values_NJ: torch.Tensor
    positions: torch.Tensor

    def __init__(self, N: int, K: int, dtype: torch.dtype, device: torch.device | str, persistent: bool = True) -> None:
        super().__init__()
        self.N, self.K = N, K
        positions = torch.empty(N, math.ceil(K / 8), dtype=torch.uint8, device=device)
        self.register_buffer("values_NJ", torch.empty(N, K // 2, dtype=dtype, device=device), persistent)
        self.register_buffer("positions", positions, persistent)

    @classmethod
    def from_tensor(cls, w_NK: torch.Tensor, mask: Mask | torch.Tensor) -> Compressed24:
        """Compress a matrix of any dtype of 1, 2, 4 or 8 bytes. What the mask drops is lost."""
        mask = DenseMask(mask) if isinstance(mask, torch.Tensor) else mask
        if tuple(w_NK.shape) != (mask.N, mask.K):
            raise MaskError(f"matrix {tuple(w_NK.shape)} and mask ({mask.N}, {mask.K}) differ in shape")
        packed = cls(mask.N, mask.K, w_NK.dtype, w_NK.device)
        for start, stop in row_blocks(mask.N, mask.K * w_NK.itemsize, block_bytes=16 << 20):
            packed.write_rows(start, w_NK[start:stop], mask.rows(start, stop))
        return packed

    @classmethod
    def from_source(
        cls, source: WeightSource, columns: slice, mask: Mask, persistent: bool = True, rows: slice = slice(None)
    ) -> Compressed24:
        """Compress the given columns and rows of a source under the mask of those, in row blocks."""
        shape = len(range(source.N)[rows]), len(range(source.K)[columns])
        if shape != (mask.N, mask.K):
            raise MaskError(f"matrix {shape} and mask ({mask.N}, {mask.K}) differ in shape")
        packed, first = cls(mask.N, mask.K, source.dtype, source.device, persistent), range(source.N)[rows].start
        for start, stop in row_blocks(mask.N, source.K * source.dtype.itemsize, block_bytes=16 << 20):
            packed.write_rows(start, source.rows(first + start, first + stop)[:, columns], mask.rows(start, stop))
        return packed

    def write_rows(self, start: int, w_RK: torch.Tensor, mask_RK: torch.Tensor) -> None:
        """Compress rows [start, start + R) in place.

        Raises:
            InputError: the rows are not all there, or not of this width and dtype.
            MaskError: the mask is not 2:4, or of another shape.
        """
        stop = start + len(w_RK)
        check_slice(start, stop, self.N)
        if w_RK.shape[1:] != (self.K,) or w_RK.dtype != self.values_NJ.dtype:
            raise InputError(
                f"rows of {self.values_NJ.dtype} (R, {self.K}) are compressed, got {w_RK.dtype} {tuple(w_RK.shape)}"
            )
        if w_RK.shape != mask_RK.shape:
            raise MaskError(f"matrix {tuple(w_RK.shape)} and mask {tuple(mask_RK.shape)} differ in shape")
        self.positions[start:stop] = positions_of(mask_RK, first_row=start)
        gather_kept(w_RK, self.positions[start:stop], self.values_NJ[start:stop])

    def decompress(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) as a dense tensor (rows, K) with zeros where the mask drops."""
        rows = slice(start, self.N if stop is None else stop)
        check_slice(start, rows.stop, self.N)
        return expand(self.values_NJ[rows], self.positions[rows])

    def decompress_columns(self, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) as a dense tensor (N, columns).

        Raises:
            InputError: start is not a multiple of eight, or stop neither that nor K: positions share bytes.
        """
        if start % 8 or (stop % 8 and stop != self.K):
            raise InputError(
                f"columns [{start}, {stop}) of K = {self.K}: both ends must be multiples of 8, or the end K"
            )
        check_slice(start, stop, self.K, "columns")
        values = self.values_NJ[:, start // 2 : stop // 2].contiguous()
        return expand(values, self.positions[:, start // 8 : -(-stop // 8)])


def _check_positions(positions: torch.Tensor, rows: int, K: int) -> None:
    if K % 4 or tuple(positions.shape) != (rows, -(-K // 8)) or positions.dtype != torch.uint8:
        raise InputError(
            f"({rows}, {K}) rows go with uint8 positions ({rows}, ⌈K/8⌉), K a multiple of 4; "
            f"got {positions.dtype} {tuple(positions.shape)}"
        )


def gather_kept(w_RK: torch.Tensor, positions: torch.Tensor, out_RJ: torch.Tensor | None = None) -> torch.Tensor:
    """The kept values (R, K/2) of dense rows, bit for bit, in ``out_RJ`` of their dtype if that is given."""
    _check_positions(positions, *w_RK.shape)
    w_RK = w_RK.contiguous()
    if kept_on_gpu.fits(w_RK.shape[1], positions, w_RK, out_RJ):
        return kept_on_gpu.gather(w_RK, positions, out_RJ)
    kept_RJ = pick(w_RK, unpacked(positions, w_RK.shape[1]))
    return kept_RJ if out_RJ is None else out_RJ.copy_(kept_RJ)


def pick(w_RK: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The kept values (R, K/2) of dense rows, by their positions as of ``unpacked``, bit for bit."""
    return bits(w_RK.contiguous()).unflatten(1, (-1, 4)).gather(2, where).flatten(1).view(w_RK.dtype)


def expand(values_RJ: torch.Tensor, positions: torch.Tensor, out_RK: torch.Tensor | None = None) -> torch.Tensor:
    """The dense (R, K) rows of kept values (R, K/2) and their packed positions (R, ⌈K/8⌉), bit for bit.

    Args:
        out_RK: takes them, cast to its dtype.
    """
    dtype = values_RJ.dtype if out_RK is None else out_RK.dtype
    values_RJ, (rows, kept_of_row) = values_RJ.to(dtype), values_RJ.shape
    _check_positions(positions, rows, 2 * kept_of_row)
    if kept_on_gpu.fits(2 * kept_of_row, positions, values_RJ, out_RK):
        return kept_on_gpu.scatter(values_RJ, positions, out_RK)
    kept = bits(values_RJ.contiguous()).unflatten(1, (-1, 2))
    spread = torch.zeros(*kept.shape[:2], 4, dtype=kept.dtype, device=kept.device)
    dense_RK = spread.scatter_(2, unpacked(positions, 2 * kept_of_row), kept).flatten(1).view(dtype)
    return dense_RK if out_RK is None else out_RK.copy_(dense_RK)
