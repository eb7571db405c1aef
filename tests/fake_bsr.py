"""torch's block-sparse kernel on a CPU: it takes no more than what Triton takes, and may be told to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from blockshock.kernels import BlockKernel, bsr
from blockshock.machine import torch_internals

Meta = dict[str, int]


def product(wrong_where: Callable[[Meta], bool]) -> Callable[..., None]:
    """``torch_internals.bsr_product``, wrong by one block where it is told to."""

    def multiply(
        bsr_NK: torch.Tensor, x_KB: torch.Tensor, bias: torch.Tensor | None, y_NB: torch.Tensor, meta: Meta
    ) -> None:
        size, tile = bsr_NK.values().shape[1], x_KB.shape[1] / meta["SPLIT_N"]
        assert tile == int(tile) >= 16
        assert int(tile) & (int(tile) - 1) == 0, "Triton's ranges are powers of two"
        assert size >= 16
        assert x_KB.stride(0) == 1
        if meta["num_warps"] > 8:
            raise RuntimeError("out of resource: shared memory")
        w_NK = bsr_NK.to_dense().float()
        if wrong_where(meta):
            w_NK[w_NK.any(1).nonzero()[0].item() // size * size :][:size] = 0  # a row of blocks that has one
        added = 0 if bias is None else bias.float()[:, None]
        y_NB.copy_(w_NK @ x_KB.float() + added)

    return multiply


@contextmanager
def faked(wrong_where: Callable[[Meta], bool] = lambda meta: False) -> Iterator[type[bsr.Bsr]]:
    """The kernel ``bsr`` runs on CPUs, over a product that is wrong where it is told to be; each takes one second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_internals, "bsr_product", product(wrong_where))
        patch.setattr(bsr.Bsr, "unavailable", BlockKernel.unavailable)
        patch.setattr(bsr.Bsr, "device_types", ("cpu",))
        patch.setattr(bsr.timing, "median_seconds", lambda call, device, rounds: call() is None or 1.0)
        # Nor what this process remembers.
        patch.setattr(bsr, "_settings", bsr.AlgorithmCache("bsr-checked", fits=bsr._settings._fits))
        yield bsr.Bsr
