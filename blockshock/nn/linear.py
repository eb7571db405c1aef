"""BlockShockLinear: an ``nn.Linear`` whose weight is two 2:4 halves, each on its own rank, for any torch model.

    layer = BlockShockLinear(nn.Linear(1024, 4096), group)

It computes what the ``nn.Linear`` computed, and trains as it would have trained. Input and output are replicated: every
rank passes the same x and gets the whole y, as with ``ColwiseParallel(output_layouts=Replicate())``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from blockshock.kernels import build_kernel
from blockshock.matrices import Mask
from blockshock.methods import Row
from blockshock.nn.arguments import check_picks
from blockshock.nn.method_linear import MethodLinear


class BlockShockLinear(MethodLinear):
    """y = x Wᵀ + b with W = W⁰ + W¹: each half 2:4, and complementary.

    Its parameters are the halves of this rank and, on every rank, the bias. An optimizer's ``step()`` packs them again
    by itself; after any other change of a parameter call ``refresh()``. A forward pass raises StalePacking where that
    was forgotten, but for writes that torch does not count, and for compiled layers: ``check()`` finds those. Hooks of
    the linear, its mode and what of it is frozen come along. ``state_dict()`` holds what an ``nn.Linear``'s
    holds, ``weight`` and ``bias``, and the mask of the first half. All ranks make it together. It loads into any
    number of ranks, kernel and storage, with the same mask; an ``nn.Linear``'s loads too.

    Args:
        linear: what to compute; where it lies, the layer will. Rank 0's values are used on all ranks.
        group: the ranks, as a process group or a one-dimensional DeviceMesh; None for the default group, or for both
            halves on this device if there is none.
        mask: of the first half, by name or as a Mask; None for one that fits the kernel in both directions.
        kernel: as of the benchmark's ``--kernels``.
        storage: as of the benchmark's ``--storages``.
        dtype: that the products are computed in; None for the linear's own, which the parameters keep in any case.
        tokens: rows of x that the kernel ``auto`` is chosen for.

    Raises:
        InputError: this is not an nn.Linear on a device, or cannot be split like this; or it computes, holds or shares
            more than x Wᵀ + b, as pruned, adapted and tied ones do.
        KernelUnavailable: the kernel cannot run here.
    """

    row = Row("block_shock")  # of layers that were pickled when they did not say so
    tokens = 1024

    def __init__(
        self,
        linear: nn.Linear,
        group: Any = None,
        *,
        mask: str | Mask | None = None,
        kernel: str = "auto",
        storage: str = "compressed",
        dtype: torch.dtype | None = None,
        tokens: int = 1024,
    ) -> None:
        check_picks(mask, kernel, storage)
        mask = build_kernel(kernel).training_mask if mask is None else mask
        row = Row("block_shock", {"kernel": kernel, "mask": mask, "storage": storage})
        super().__init__(linear, row, group, dtype=dtype, tokens=tokens)
