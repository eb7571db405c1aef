"""Products of a W that is packed anew at each step: its rows, or its columns, are tokens.

Which of cuSPARSELt's algorithms is the fastest depends on all sizes and on how x and the product lie; of large products
it is searched once for an octave of tokens, as a layer's is. The others take the default one.
"""

from __future__ import annotations

from functools import cache

import torch

from blockshock.errors import KernelUnavailable
from blockshock.kernels.cusparselt import searched
from blockshock.kernels.cusparselt_search import DEFAULT, Request, Setting
from blockshock.kernels.layout import dense_rows, is_dense
from blockshock.kernels.octaves import octave_of
from blockshock.machine import torch_internals
from blockshock.stages import stage

MULTIPLE = 16
"""Of rows and columns of W."""
WORTH = 1 << 33
"""Multiplications of a dense product from which on a search is worth its seconds."""


def times_packed(
    packed: torch.Tensor, N: int, x_KC: torch.Tensor, tokens_are: str, into: str, turned: bool = False
) -> torch.Tensor:
    """W @ x (N, C) of a packed 2:4 W (N, K), in the dtype of x.

    Args:
        tokens_are: ``rows`` or ``columns`` of W.
        into: the stage that the product counts as.
        turned: the product is (C, N).

    Raises:
        KernelUnavailable: nothing that was tried multiplies such matrices right on this GPU.
    """
    x_turned = is_dense(x_KC.T)
    x_KC = x_KC if x_turned else dense_rows(x_KC)
    K, C = x_KC.shape
    setting = DEFAULT
    if packed.is_cuda and N * K * C >= WORTH:
        least, most = octave_of(N if tokens_are == "rows" else K, MULTIPLE)
        sizes = (most, K) if tokens_are == "rows" else (N, most)
        setting = _setting(*sizes, C, least, x_KC.dtype, x_KC.device, tokens_are, x_turned, turned)
    with stage(into):
        return torch_internals.sparse_mm(packed, x_KC, None, setting, turned=turned)


@cache
def _setting(
    N: int,
    K: int,
    C: int,
    least: int,
    dtype: torch.dtype,
    device: torch.device,
    tokens_are: str,
    x_turned: bool,
    y_turned: bool,
) -> Setting:
    """Of products of N rows and K columns, of which those that are tokens are the most of an octave."""
    name = str(dtype).removeprefix("torch.")
    request = Request(N, K, C, least, name, False, tokens_are=tokens_are, x_turned=x_turned, y_turned=y_turned)
    lies = f"x turned={x_turned}, y turned={y_turned}"
    found = searched(f"N{N} K{K} C{C} {name} of {least} {tokens_are}, {lies}", device, request)
    if found.setting is None:
        raise KernelUnavailable(
            f"cusparselt: of what was tried for a 2:4 ({N}, {K}) whose {tokens_are} are tokens, times ({K}, {C}) of "
            f"{name}, nothing multiplies right on this GPU: {found.name}; turn sparsity off for this layer"
        )
    return found.setting
