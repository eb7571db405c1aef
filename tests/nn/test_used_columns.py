"""Of x a layer keeps for backward what its gradients read: of a mask whose rows are all alike, the columns of these."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from blockshock.nn.method_linear import MethodLinear

TOKENS, K = 6, 64


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ("pruned-gathered-1100", K // 2),
        ("pruned-gathered-1100-masked", K),  # its gradient is that of a dense matrix
        ("pruned-reference-1100", K),
        ("block_shock-gathered", K),  # two halves, of all columns together
        ("dense_single", K),
    ],
)
def test_it_keeps_the_columns_that_it_reads(row: str, columns: int) -> None:
    torch.manual_seed(0)
    layer = MethodLinear(nn.Linear(K, 48), row)
    x, grad_y = torch.randn(TOKENS, K, requires_grad=True), torch.randn(TOKENS, 48)
    kept: list[torch.Size] = []
    with saved_tensors_hooks(lambda held: kept.append(held.shape) or held, lambda held: held):  # type: ignore[func-returns-value]
        y = layer(x)
    assert kept == [(TOKENS, columns)]
    found = torch.autograd.grad(y, [x, *layer.parameters()], grad_y)
    w_NK = layer.weight.detach()
    torch.testing.assert_close(found[0], grad_y @ w_NK)
    dense_NK = grad_y.T @ x.detach()
    storage = layer.layer.storages()[0]
    torch.testing.assert_close(found[1], storage.held(dense_NK))
    torch.testing.assert_close(found[2], grad_y.sum(0))
