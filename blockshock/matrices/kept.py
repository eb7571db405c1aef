"""Where the kept values of a mask lie: reading them out of a dense matrix, writing them back, and their gradient.

For a mask that is a tile of few distinct rows all of this is slices, and the gradient is dense products over the kept
columns: half the FLOPs. For any other mask it goes by stored positions, and the gradient is made dense, in row
blocks, and then gathered. Nothing here waits for the device, so that a CUDA graph can capture it.
"""

from __future__ import annotations

import torch
from torch import nn

from blockshock.matrices.blocks_of_rows import row_blocks
from blockshock.matrices.compressed import expand, gather_kept
from blockshock.matrices.masks import Mask
from blockshock.matrices.positions import KeptMask, mask_positions
from blockshock.matrices.repeating_rows import MOST_PATTERNS, RowPatterns

_BLOCK_BYTES = 256 << 20


def product(a_MB: torch.Tensor, b_BK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b, accumulated in float32 at least, in the given dtype; zeros for an empty batch."""
    if a_MB.dtype == b_BK.dtype == dtype:
        return torch.mm(a_MB, b_BK)
    if not a_MB.shape[1]:
        return a_MB.new_zeros(len(a_MB), b_BK.shape[1], dtype=dtype)
    if a_MB.is_cuda and a_MB.itemsize == 2 and dtype == torch.float32:
        return torch.mm(a_MB, b_BK, out_dtype=dtype)
    wide = torch.promote_types(a_MB.dtype, dtype)
    return (a_MB.to(wide) @ b_BK.to(wide)).to(dtype)


class Kept(nn.Module):
    """The kept values (N, K/2) of one mask, rows in order. Holds nothing, or their positions: half a byte a group.

    Args:
        shared: where the mask holds them, they are the mask's own, which stays where this is.
    """

    _positions: torch.Tensor | None

    def __init__(self, mask: Mask, device: torch.device, shared: bool = False) -> None:
        super().__init__()
        self.N, self.K = mask.N, mask.K
        self.patterns = row_patterns_of(mask)
        positions = None if self.patterns else mask_positions(mask)
        if positions is not None and isinstance(mask, KeptMask) and not shared:
            positions = positions.clone()
        self.register_buffer("_positions", positions, persistent=False)

    @staticmethod
    def held_bytes(N: int, K: int, mask: Mask | None) -> int:
        """Bytes that this holds for such a mask; at most, if it is not known."""
        return 0 if mask is not None and row_patterns_of(mask) else N * -(-K // 8)

    def gather(self, w_NK: torch.Tensor) -> torch.Tensor:
        """The kept values of a dense matrix."""
        if self.patterns:
            return self.patterns.unsort(self.patterns.kept(w_NK))
        assert self._positions is not None
        return gather_kept(w_NK, self._positions)

    def scatter(self, values_NJ: torch.Tensor, out_NK: torch.Tensor) -> None:
        """Write the dense matrix that has these kept values, and zeros elsewhere."""
        if self.patterns:
            out_NK.copy_(self.patterns.dense(self.patterns.sort(values_NJ)))
            return
        assert self._positions is not None
        for start, stop in row_blocks(self.N, self.K * 8, _BLOCK_BYTES):
            expand(values_NJ[start:stop], self._positions[start:stop], out_NK[start:stop])

    def gradient(
        self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor, dtype: torch.dtype, sorted_by_pattern: bool
    ) -> torch.Tensor:
        """The kept values of grad_yᵀ @ x, (N, K/2), in the given dtype.

        Args:
            x_BK: or of it the columns (B, K/2) that the mask keeps, where all its rows keep the same.
            sorted_by_pattern: rows sorted by the mask's row patterns, which it must have; otherwise in order.
        """
        if x_BK.shape[1] != self.K:
            return product(grad_y_BN.t(), x_BK, dtype)
        if self.patterns:
            parts = [
                product(grad_BR.t(), pattern.kept.take(x_BK), dtype)
                for pattern, grad_BR in zip(self.patterns, self.patterns.split(grad_y_BN), strict=True)
            ]
            if len(parts) == 1:
                return parts[0]
            return torch.cat(parts) if sorted_by_pattern else self.patterns.interleave(parts)
        assert self._positions is not None
        grad_NJ = torch.empty(self.N, self.K // 2, dtype=dtype, device=x_BK.device)
        for start, stop in row_blocks(self.N, self.K * dtype.itemsize, _BLOCK_BYTES):
            dense_RK = product(grad_y_BN[:, start:stop].T, x_BK, dtype)
            gather_kept(dense_RK, self._positions[start:stop], grad_NJ[start:stop])
        return grad_NJ


def row_patterns_of(mask: Mask) -> RowPatterns | None:
    """The row patterns of a mask whose rows repeat with few distinct ones; None for any other mask."""
    if mask.tile is None or mask.N % mask.tile.shape[0]:
        return None
    patterns = RowPatterns(mask.tile, mask.N)
    return patterns if len(patterns) <= MOST_PATTERNS else None
