"""cuSPARSELt's products as compiled code calls them: it knows where x lies only when it runs."""

from __future__ import annotations

import torch

from blockshock.kernels.cusparselt_layout import BYTES_TOKENS_MULTIPLE, TOKENS_MULTIPLE
from blockshock.kernels.cusparselt_search import multiplied
from blockshock.kernels.layout import dense_rows
from blockshock.machine import torch_internals


@torch.library.custom_op(
    "blockshock::cusparselt",
    mutates_args=(),
    schema="(Tensor packed, Tensor x, Tensor? bias, int N, int algorithm, int split_k, int split_k_mode) -> Tensor",
)
def traced(
    packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, N: int, algorithm: int, split_k: int, mode: int
) -> torch.Tensor:
    """The product (B, N) of rows (B, K), by a setting."""
    return multiplied(packed, dense_rows(x, TOKENS_MULTIPLE), bias, (algorithm, split_k, mode))[: len(x)]


@traced.register_fake
def _(packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, N: int, *setting: int) -> torch.Tensor:
    return x.new_empty(x.shape[0], N)


@torch.library.custom_op(
    "blockshock::cusparselt_bytes",
    mutates_args=(),
    schema="(Tensor packed, Tensor x, Tensor? scales, ScalarType out, int N, int algorithm, int split_k, "
    "int split_k_mode) -> Tensor",
)
def traced_of_bytes(
    packed: torch.Tensor,
    x: torch.Tensor,
    scales: torch.Tensor | None,
    out: torch.dtype,
    N: int,
    algorithm: int,
    split_k: int,
    mode: int,
) -> torch.Tensor:
    """The same in eight bits, in a dtype. torch's own call cannot be traced where that is float32."""
    dense_BK = dense_rows(x, BYTES_TOKENS_MULTIPLE)
    setting = algorithm, split_k, mode
    return torch_internals.sparse_mm_of_bytes(packed, dense_BK.T, scales, out, setting)[: len(x)]


@traced_of_bytes.register_fake
def _(
    packed: torch.Tensor, x: torch.Tensor, scales: torch.Tensor | None, out: torch.dtype, N: int, *setting: int
) -> torch.Tensor:
    return x.new_empty(x.shape[0], N, dtype=out)
