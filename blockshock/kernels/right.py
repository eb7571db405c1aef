"""Whether what a library's algorithm multiplied is right, before that algorithm is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from blockshock.matrices import row_blocks


def product(x_BK: torch.Tensor, w_NK: torch.Tensor, bias: torch.Tensor | None) -> Iterator[tuple[slice, torch.Tensor]]:
    """x @ Wᵀ (+ bias) in float32: some columns at once, and which (B, R)."""
    x_BK = x_BK.float()
    for start, stop in row_blocks(len(w_NK), 4 * max(w_NK.shape[1], 4 * len(x_BK))):
        exact_BR = x_BK @ w_NK[start:stop].float().T
        if bias is not None:
            exact_BR += bias[start:stop].float()
        yield slice(start, stop), exact_BR


def is_product(
    y_BN: torch.Tensor,
    x_BK: torch.Tensor,
    w_NK: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float | None = None,
) -> bool:
    """Whether y is x @ Wᵀ (+ bias): as a whole, and every element for itself.

    Both limits leave room for the roundings of a sum that was split. One wrong term in each sum goes beyond the
    first, one wrong element beyond the second.

    Args:
        eps: of a sum; None for that of the dtype of y.
    """
    return is_like(y_BN, product(x_BK, w_NK, bias), eps)


def is_like(y_BN: torch.Tensor, exact: Iterable[tuple[slice, torch.Tensor]], eps: float | None = None) -> bool:
    """The same of a ``product`` that is made already."""
    eps = torch.finfo(y_BN.dtype).eps if eps is None else eps
    error, size, wrong = (torch.zeros((), dtype=torch.float64, device=y_BN.device) for _ in range(3))
    for columns, exact_BR in exact:
        off_BR = (y_BN[:, columns].float() - exact_BR).abs()
        # So counted, NaN is wrong.
        wrong += (~(off_BR <= 4 * eps * (exact_BR.abs() + exact_BR.square().mean().sqrt()))).sum()
        error += off_BR.double().square().sum()
        size += exact_BR.double().square().sum()
    return bool(wrong == 0) and bool(error.sqrt() <= eps * size.sqrt())
