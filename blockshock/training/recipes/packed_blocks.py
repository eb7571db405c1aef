"""S(W) in blocks, as the block-sparse kernel of GPUs multiplies it, where others come to be kept but as many."""

from __future__ import annotations

import torch

from blockshock.kernels import BLOCK_KERNELS, BlockLayout, Packed
from blockshock.kernels.bsr import LEAST_SIZE, PackedBsr
from blockshock.matrices import in_blocks
from blockshock.training.recipes.base import Recipe


def bsr_takes(N: int, K: int, recipe: Recipe, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether blocks of a recipe's (N, K) weight are multiplied by the kernel ``bsr`` on that device."""
    kernel, size = BLOCK_KERNELS.get("bsr")(), recipe.size
    # Smaller blocks are stored in larger ones, of which no same number is kept.
    return size >= LEAST_SIZE and not (kernel.unavailable(device, dtype) or kernel.unsuitable(N, K, size))


def block_bytes(N: int, K: int, recipe: Recipe, itemsize: int) -> int:
    """Bytes of the packings for both directions, by arithmetic; none of blocks that are too small for them."""
    if recipe.size < LEAST_SIZE:
        return 0
    layout = BlockLayout(N, K, recipe.size, recipe.kept(recipe.elements_beside(N, K)))
    return 2 * layout.value_bytes(itemsize) + layout.index_bytes() + layout.transposed.index_bytes()


class BlocksAnew(PackedBsr):
    """Blocks (size × size) of a W (N, K) that are kept, in whose place others may come.

    Args:
        kept_RC: which, boolean (N/size, K/size).
        tuned: search for the fastest setting, as ``bsr`` does.
    """

    def __init__(
        self, w_NK: torch.Tensor, kept_RC: torch.Tensor, size: int, bias: torch.Tensor | None, tuned: bool
    ) -> None:
        Packed.__init__(self)  # there is no piece to pack
        (self.N, self.K), self.size, self._tuned, self._chosen = w_NK.shape, size, tuned, {}
        self._count = int(kept_RC.count_nonzero())
        for name, held in zip(("blocks", "columns", "starts"), self._found(w_NK, kept_RC), strict=True):
            self.register_buffer(name, held, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def _found(self, w_NK: torch.Tensor, kept_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is held, of as many blocks as ever: nothing waits for the device to count them."""
        columns, kept = kept_RC.shape[1], kept_RC.flatten()
        # Each kept block's number goes to its place among them, and those of all others to one behind them.
        places = (kept.cumsum(0) - 1).where(kept, self._count)
        numbers = torch.arange(len(kept), device=kept.device)
        where = torch.zeros(self._count + 1, dtype=torch.int64, device=kept.device).scatter_(0, places, numbers)
        where = where[: self._count]
        counts = kept_RC.sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return in_blocks(w_NK, self.size)[where // columns, where % columns], where % columns, starts

    def take(self, w_NK: torch.Tensor, kept_RC: torch.Tensor) -> None:
        """Another one. Copied: a captured graph goes on reading where the old one lies."""
        vars(self)["writes"] += 1
        held = self.blocks, self.columns, self.starts
        for one, found in zip(held, self._found(w_NK, kept_RC), strict=True):
            one.copy_(found)
