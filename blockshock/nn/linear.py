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
    """y = x Wᵀ + b with W = W⁰ + W¹: each half 2:4, and complementary. All else is as of ``MethodLinear``.

    Its parameters are the halves of this rank and, on every rank, the bias. A state holds the mask of the first half,
    and loads into a layer of the same mask; an ``nn.Linear``'s loads too.

    Args:
        linear: what to compute.
        group: the ranks; None for the default group, or for both halves on this device if there is none.
        mask: of the first half, by name or as a Mask; None for one that fits the kernel in both directions.
        kernel: as of the benchmark's ``--kernels``.
        storage: as of the benchmark's ``--storages``.
        combine: how the ranks make one output, as of the benchmark's ``--combines``.
        dtype, tokens: as of ``MethodLinear``, as what it raises is.
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
        combine: str = "nccl",
        dtype: torch.dtype | None = None,
        tokens: int = 1024,
    ) -> None:
        check_picks(mask, kernel, storage, combine)
        mask = build_kernel(kernel).training_mask if mask is None else mask
        row = Row("block_shock", {"kernel": kernel, "mask": mask, "storage": storage, "combine": combine})
        super().__init__(linear, row, group, dtype=dtype, tokens=tokens)
